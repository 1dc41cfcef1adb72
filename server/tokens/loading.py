"""Gets the raw key set: from a file, or from an address."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.http_client import HTTPClient, NoReply

MAX_BYTES = 256 * 1024


class CannotLoad(Exception):
    """`str(error)` says why, for the log."""


async def load_address(http: HTTPClient, url: str, timeout_s: float) -> bytes:
    """What is there. Raises `CannotLoad`."""
    try:
        reply = await http.get(url, timeout_s)
    except NoReply as exc:
        raise CannotLoad(str(exc)) from exc
    if reply.status != 200:
        raise CannotLoad(f"the answer is {reply.status}, not 200")
    return reply.body


async def load_file(path: Path, timeout_s: float) -> bytes:
    """The whole file. Raises `CannotLoad`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.to_thread(_read, path)
    except TimeoutError as exc:
        raise CannotLoad(f"it could not be read within {timeout_s:g} s") from exc
    except OSError as exc:
        raise CannotLoad(f"it cannot be read: {exc.strerror}") from exc


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise CannotLoad(f"it is longer than {MAX_BYTES // 1024} KiB")
    return raw
