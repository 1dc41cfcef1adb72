"""A connection to Redis, as those who use one want it: bounded in time, and tried again by nobody but themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

DEFAULT_PORT = 6379


def address_of(url: str) -> str:
    """`host:port`, for people."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or DEFAULT_PORT}"


def make_connection(url: str, *, password: str, ca: Path | None, timeout_s: float) -> Connection:
    """One that is not connected yet. `password`: in place of the one in the URL, unless it is empty; `ca`: a file of
    authorities for a `rediss` one, None: those that the system trusts."""
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
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # trying again is theirs
        client_name="notification-server",
        protocol=2,  # known to every Redis and to what speaks like it
    )
