"""A connection to one of the addresses of a host, whichever can be reached."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

NEXT_ADDRESS_AFTER_S = 5.0
"""How long to wait for an address before the next is tried: for a lost packet to be sent again."""


async def reach(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one. Raises OSError, TimeoutError."""
    async with asyncio.timeout(timeout_s):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failures = []
        for left, (family, _, _, _, address) in zip(range(len(found))[::-1], found, strict=True):
            # One that swallows what it is sent, as of IPv6 often, leaves time for the others.
            share_s = min(NEXT_ADDRESS_AFTER_S, timeout_s / len(found)) if left else None
            try:
                async with asyncio.timeout(share_s):
                    return await _connected(family, address)
            except OSError as exc:
                failures.append(str(exc) or f"{address[0]} does not answer")
    raise OSError("; ".join(failures))


async def _connected(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection
