"""Remembers in the store what clients have been sent and have acknowledged, many marks in one write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from server.errors import StoreUnavailable
from server.rooms import Room
from server.store import WAYS, Deliveries

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 0.25
"""What a crash forgets was sent in this time, and is sent again."""

MAX_WAITING = 200_000
"""Marks that wait while the store is away. What is above that is sent again one day."""

MAX_PER_WRITE = 5_000


class Marks:
    """One for each node. `deliveries`: that of the store, to be used while it is open."""

    def __init__(self, deliveries: Callable[[], Deliveries]) -> None:
        self._deliveries = deliveries
        self._waiting: dict[str, dict[Room, set[str]]] = {way: {} for way in WAYS}
        self._count = 0
        self._writing = asyncio.Lock()

    def note(self, way: str, room: Room, ids: Iterable[str]) -> None:
        """These documents of the user have been sent in this way (or acknowledged: see `store.Deliveries.mark`)."""
        if self._count >= MAX_WAITING:
            return
        marked = self._waiting[way].setdefault(room, set())
        before = len(marked)
        marked.update(ids)
        self._count += len(marked) - before

    def is_noted(self, way: str, room: Room, id_: str) -> bool:
        """Whether that waits to be written."""
        return id_ in self._waiting[way].get(room, ())

    @property
    def waiting(self) -> int:
        return self._count

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.write()
            except StoreUnavailable:
                logger.debug("what was sent cannot be remembered now: %d marks wait", self._count)

    async def write(self) -> None:
        """Write all that is noted now. Raises `StoreUnavailable`: then it waits on."""
        async with self._writing:
            for way in WAYS:
                while some := self._take(way):
                    try:
                        await self._deliveries().mark(way, some)
                    except BaseException:
                        for room, ids in some.items():
                            self.note(way, room, ids)
                        raise

    def _take(self, way: str) -> dict[Room, set[str]]:
        """Some of what waits, at most about `MAX_PER_WRITE`."""
        waiting, some, size = self._waiting[way], {}, 0
        while waiting and size < MAX_PER_WRITE:
            room = next(iter(waiting))
            some[room] = waiting.pop(room)
            size += len(some[room])
        self._count -= size
        return some
