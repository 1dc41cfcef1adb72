"""Bodies of requests to publishing doors (server/ingest/base.py) that never come to their end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from server.ingest.base import DoorHandler, Gate


class _Door(DoorHandler):
    def post(self) -> None:
        raise AssertionError("the body is not complete")


def _requests() -> list[asyncio.Task[Any]]:
    """Those that are being handled."""
    return [task for task in asyncio.all_tasks() if "_execute" in repr(task.get_coro())]


@pytest.mark.parametrize("abrupt", [True, False], ids=["reset", "closed"])
async def test_who_hangs_up_amid_a_body(abrupt: bool) -> None:
    """Leaves nothing behind."""
    server = HTTPServer(Application([("/", _Door, {"gate": cast(Gate, None)})]))
    listening, port = bind_unused_port()
    server.add_socket(listening)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nsome")
    async with asyncio.timeout(30):
        while not _requests():  # noqa: ASYNC110  # it can only be asked
            await asyncio.sleep(0.01)
        (writer.transport.abort if abrupt else writer.close)()
        await asyncio.wait(_requests())
    server.stop()
    await server.close_all_connections()
