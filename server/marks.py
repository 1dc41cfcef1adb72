"""Remembers in the store what clients have been sent and have acknowledged, many marks in one write.

Sent means: it has arrived at the client's machine. What a connection that is cut off, or closed as slow, leaves behind
in some queue was not sent, and comes at the next connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from server.errors import StoreUnavailable
from server.rooms import Connection, Room
from server.store import WAYS, Deliveries

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 0.25
"""What a crash forgets was sent in this time, and is sent again."""

RETRY_S = 2.0
"""After a write that failed for another reason than that the store is away."""

MAX_WAITING = 200_000
"""Marks that wait while the store is away. What is above that is sent again one day."""

MAX_PER_USER = 10_000
"""Of those of one user in one way: who acknowledges what there never was takes no place of others."""

MAX_PER_WRITE = 5_000


class Sent:
    """What one connection was sent in a way and may not have arrived yet, in its order. Its size is bounded by the
    connection's queue and the kernel's."""

    __slots__ = ("_bytes", "_connection", "_marks", "_waiting", "key")

    def __init__(self, marks: Marks, way: str, room: Room, connection: Connection) -> None:
        self.key = (way, room)
        self._marks = marks
        self._connection = connection
        self._waiting: deque[tuple[str, int]] = deque()
        self._bytes = 0

    def add(self, id_: str, size: int) -> None:
        """A document was sent, in a frame of at least so many bytes."""
        self._waiting.append((id_, size))
        self._bytes += size
        self._marks.watch(self)

    @property
    def under_way(self) -> set[str]:
        """What was sent on this connection, and is not known to have arrived."""
        return {id_ for id_, _ in self._waiting}

    def settle(self) -> bool:
        """Note what has arrived; whether that is all. What is in flight is what was sent last."""
        in_flight = self._connection.in_flight_bytes
        arrived = []
        while self._waiting and self._bytes - self._waiting[0][1] >= in_flight:
            id_, size = self._waiting.popleft()
            self._bytes -= size
            arrived.append(id_)
        if arrived:
            self._marks.note(*self.key, arrived)
        return not self._waiting

    def end(self) -> None:
        """The connection is over: what has not arrived by now will not."""
        self.settle()
        self._marks.unwatch(self)


class Marks:
    """One for each node. `deliveries`: that of the store, to be used while it is open."""

    def __init__(self, deliveries: Callable[[], Deliveries]) -> None:
        self._deliveries = deliveries
        self._waiting: dict[str, dict[Room, set[str]]] = {way: {} for way in WAYS}
        self._in_hand: dict[str, dict[Room, set[str]]] = {way: {} for way in WAYS}
        self._count = 0
        self._unsettled: dict[tuple[str, Room], set[Sent]] = {}
        # who reads, with what was noted since
        self._readers: dict[tuple[str, Room], dict[int, set[str]]] = {}
        self._writing = asyncio.Lock()

    def note(self, way: str, room: Room, ids: Iterable[str]) -> None:
        """These documents of the user have been sent in this way (or acknowledged: see `store.Deliveries.mark`)."""
        new = set(ids)
        for noted in self._readers.get((way, room), {}).values():
            noted |= new
        self._keep(way, room, new)

    def _keep(self, way: str, room: Room, ids: set[str]) -> None:
        if self._count >= MAX_WAITING:
            return
        marked = self._waiting[way].setdefault(room, set())
        before = len(marked)
        marked.update(islice(ids, MAX_PER_USER - before))
        self._count += len(marked) - before

    @contextlib.contextmanager
    def noted(self, way: str, room: Room) -> Iterator[set[str]]:
        """While the store is read: what it may not show yet, in a set that grows. What is written meanwhile is in it,
        for the reading may have begun before."""
        for sent in tuple(self._unsettled.get((way, room), ())):
            self._settle(sent)
        noted = self._waiting[way].get(room, set()) | self._in_hand[way].get(room, set())
        readers = self._readers.setdefault((way, room), {})
        readers[id(noted)] = noted
        try:
            yield noted
        finally:
            del readers[id(noted)]
            if not readers:
                del self._readers[way, room]

    @property
    def waiting(self) -> int:
        return self._count

    # -- what may not have arrived yet -----------------------------------------------------------------------
    def watch(self, sent: Sent) -> None:
        """Look after this, until all of it has arrived."""
        self._unsettled.setdefault(sent.key, set()).add(sent)

    def unwatch(self, sent: Sent) -> None:
        """Look after it no more."""
        unsettled = self._unsettled.get(sent.key)
        if unsettled is None:
            return
        unsettled.discard(sent)
        if not unsettled:
            del self._unsettled[sent.key]

    def _settle(self, sent: Sent) -> None:
        if sent.settle():
            self.unwatch(sent)

    # -- writing ---------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self.write()
            except StoreUnavailable:
                logger.debug("what was sent cannot be remembered now: %d marks wait", self._count)
            except Exception:
                # A bug met by one round must not end all that follow.
                logger.exception("what was sent could not be remembered; it is tried again")
                await asyncio.sleep(RETRY_S)

    async def write(self) -> None:
        """Write all that has arrived or was noted by now. Raises `StoreUnavailable`: then it waits on."""
        async with self._writing:
            for unsettled in tuple(self._unsettled.values()):
                for sent in tuple(unsettled):
                    self._settle(sent)
            for way in WAYS:
                while some := self._take(way):
                    await self._write(way, some)

    async def _write(self, way: str, some: dict[Room, set[str]]) -> None:
        self._in_hand[way] = some
        try:
            await self._deliveries().mark(way, some)
        except BaseException:
            for room, ids in some.items():
                self._keep(way, room, ids)
            raise
        finally:
            self._in_hand[way] = {}

    def _take(self, way: str) -> dict[Room, set[str]]:
        """Some of what waits, at most about `MAX_PER_WRITE`."""
        waiting, some, size = self._waiting[way], {}, 0
        while waiting and size < MAX_PER_WRITE:
            room = next(iter(waiting))
            some[room] = waiting.pop(room)
            size += len(some[room])
        self._count -= size
        return some
