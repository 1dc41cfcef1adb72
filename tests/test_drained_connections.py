"""What waits for a connection to take everything (server/transports/connections.py), and is ended meanwhile."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest
from tornado.iostream import IOStream

from server.transports.connections import StreamedConnection


async def test_who_waits_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """That is no error for the log, and the stream lives on."""
    near, far = socket.socketpair()
    stream = IOStream(near)
    left = stream.write(b"x" * 5_000_000)
    waiting = asyncio.ensure_future(StreamedConnection.drained(cast(StreamedConnection, _Connection(stream))))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.to_thread(_read, far, 5_000_000)
    await left
    stream.close()
    far.close()
    assert caplog.records == []


class _Connection:
    def __init__(self, stream: IOStream) -> None:
        self._stream: Any = stream


def _read(connection: socket.socket, size: int) -> None:
    while size:
        size -= len(connection.recv(65536))
