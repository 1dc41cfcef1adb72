"""A connection to Redis, as those who use one want it: bounded in time, and tried again by nobody but themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError

DEFAULT_PORT = 6379

REFUSALS = AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError
"""What is raised where the password is wrong, or the user may not do it."""

TURN = 64
"""Messages after which others get a turn: a full socket is read without waiting, and so without giving up the loop."""


def address_of(url: str) -> str:
    """`host:port`, for people."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or DEFAULT_PORT}"


def make_connection(url: str, *, password: str, ca: Path | None, timeout_s: float) -> Connection:
    """One that is not connected yet. `password`: in place of the one in the URL, unless it is empty; `ca`: a file of
    authorities for a `rediss` one, None: those that the system trusts. Only opening it is bounded, by `timeout_s`;
    what is said and answered is bounded by whoever uses it."""
    parts = urlsplit(url)
    make: Callable[..., Connection] = Connection
    if parts.scheme == "rediss":
        make = partial(SSLConnection, ssl_ca_certs=str(ca) if ca else None)
    return make(
        host=parts.hostname or "",
        port=parts.port or DEFAULT_PORT,
        db=int(parts.path.strip("/") or 0),
        username=unquote(parts.username) if parts.username else None,
        password=password or (unquote(parts.password) if parts.password else None),
        # For this redis-py makes a task of each sending, and a timer for each answer.
        socket_timeout=None,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # trying again is theirs
        client_name="notification-server",
        protocol=2,  # known to every Redis and to what speaks like it
    )


async def pushed(connection: Connection, silence_s: float) -> AsyncIterator[list[Any]]:
    """All that comes over a connection that has subscribed, in the order in which Redis sent it. After `silence_s`
    Redis is asked whether it is there; after as long again it is not: TimeoutError. Raises `RedisError` or OSError when
    the connection has ended."""
    is_asked, turn = False, 0
    while True:
        message = await connection.read_response(
            disable_decoding=True, timeout=silence_s, disconnect_on_error=False
        )
        if message is not None:
            is_asked = False
            yield message
            turn = (turn + 1) % TURN
            if not turn:
                await asyncio.sleep(0)
        elif is_asked:
            raise TimeoutError
        else:
            is_asked = True
            await connection.send_command("PING")
