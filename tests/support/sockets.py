"""pymongo 4.20 forgets the socket of an attempt to connect that its own close cancels. Python would warn of it in
whatever test it is collected in, which fails by that."""

from __future__ import annotations

import asyncio
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from typing import Any

_connect = BaseSelectorEventLoop.sock_connect


async def _connect_or_close(loop: BaseSelectorEventLoop, sock: socket.socket, address: Any) -> None:
    try:
        await _connect(loop, sock, address)
    except asyncio.CancelledError:
        sock.close()
        raise


def close_what_is_forgotten() -> None:
    """From now on, whoever is cancelled while connecting a socket."""
    BaseSelectorEventLoop.sock_connect = _connect_or_close  # type: ignore[method-assign]
