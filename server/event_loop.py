"""The event loop of a node: asyncio's own or uvloop, with look-ups of names in threads of their own.

asyncio looks names up in the few threads that everything else has that must not block the loop. A name whose servers do
not answer holds a thread for up to half a minute, and whoever asks gives up and asks again before that: all threads
would soon hang on the login hook's name, and nobody could look for MongoDB, write a mail to a file or read the metrics.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

from server.errors import StartupError


class NamesApart(asyncio.AbstractEventLoop):
    """A loop with this before it asks for a name once for all who wait for it: there are no more threads than names in
    the configuration."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[Any, asyncio.Future[Any]] = {}

    # As asyncio's; uvloop's own connections look their names up themselves, in threads of theirs.
    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        asked = host, port, family, type, proto, flags
        lookup = self._lookups.get(asked)
        if lookup is None:
            found: Future[Any] = Future()
            # Nobody waits for it at the end of the process, as for those of an executor.
            Thread(target=_look_up, args=(asked, found), name="name look-up", daemon=True).start()
            lookup = self._lookups[asked] = asyncio.wrap_future(found, loop=self)
            lookup.add_done_callback(lambda _: self._forget(asked))
        # A thread cannot be stopped: whoever gives up leaves it to the others who wait, and to who comes next.
        return await asyncio.shield(lookup)

    def _forget(self, asked: Any) -> None:
        lookup = self._lookups.pop(asked)
        if not lookup.cancelled():
            lookup.exception()  # that nobody waits for it any more is no mistake


def _look_up(asked: Any, found: Future[Any]) -> None:
    try:
        found.set_result(socket.getaddrinfo(*asked))
    except Exception as error:
        found.set_exception(error)


class AsyncioLoop(NamesApart, asyncio.SelectorEventLoop):
    """asyncio's own."""


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """For `asyncio` or `uvloop`. Raises `StartupError`."""
    if name == "asyncio":
        return AsyncioLoop
    try:
        import uvloop
    except ImportError as exc:
        raise StartupError(
            "[APPLICATION] event_loop: uvloop is not installed; `pip install uvloop` brings it"
        ) from exc
    return type("UvLoop", (NamesApart, uvloop.Loop), {})
