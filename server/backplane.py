"""The way from a change in the store to every screen of the users it concerns, on all nodes. One node needs
no other: `LocalBackplane` is the whole of it. Several have theirs wrapped by that of `cluster`.

Events go out in the order in which they were published. Fan-out runs after the publisher has been answered,
in slices that leave the loop to others in between. Users take turns in it, some connections at a time (`scan`): who has
many holds up nobody who has few.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

from server.checks import Probe
from server.messages import Event
from server.rooms import Room, Rooms
from server.scan import Publication, Scan

logger = logging.getLogger(__name__)

MIN_SLICE_S = 0.0005
MAX_SLICE_S = 0.005
"""How long fan-out may hold the loop before others get theirs: as long as they took, within these bounds."""

TURNS_BETWEEN_SLICES = 8
"""Of the loop, that others get if these take no longer than `MAX_SLICE_S`. An answer takes several: the sooner it is
out, the sooner comes what is published next, and the more goes out as one write."""

MAX_BACKLOG = 100_000
"""Events waiting for fan-out above which new notifications wait before they are stored."""


class Backplane(ABC):
    """What the core knows of it, whether there is one node or many."""

    @abstractmethod
    def publish(
        self, events: Iterable[tuple[Room, Event]], handed_over: Callable[[int], None] | None = None
    ) -> None:
        """Queue events for the screens of their users, here and on every other node. Never blocks or
        raises. `handed_over` is called once they have been handed to the connections of this node, at the end of that
        slice, with how many frames that made; not at all if there are none."""

    @abstractmethod
    async def has_space(self) -> None:
        """Return when the backlog is within its bound: publishing must not outrun fan-out for ever."""

    @abstractmethod
    async def flushed(self) -> None:
        """Return when everything published so far has been handed to the connections of this node, and to the other
        nodes if they can be reached."""

    @abstractmethod
    async def delivered(self, room: Room) -> None:
        """Return when everything published for this user so far has been handed to the connections of this node."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many events wait for fan-out on this node."""

    @property
    def queues(self) -> Mapping[str, Callable[[], int]]:
        """What else waits, by its name."""
        return {}

    @property
    def probes(self) -> Mapping[str, Probe]:
        """What it depends on, by its name, for `Checks`: the way to the other nodes, if there may be any."""
        return {}

    # -- other nodes -----------------------------------------------------------------------------------------
    def start(self) -> None:  # noqa: B027  # one node has nothing to start
        """Find the other nodes; to be called when the store is open."""

    async def close(self) -> None:  # noqa: B027  # as start
        """Send what waits, within the caller's time, and take leave of the other nodes. Idempotent."""

    async def online_elsewhere(self, rooms: Collection[Room]) -> set[Room]:
        """Those of these users who have a connection on another node. Who cannot be asked about has none."""
        return set()

    async def alive_elsewhere(self, tenant: str, user_ids: Collection[str], silent_for_s: float) -> set[str]:
        """Those of these users of whom another node had a sign of life within the last so many seconds. Who cannot be
        asked about gave none."""
        return set()


class LocalBackplane(Backplane):
    """Publishes to the rooms of this process."""

    def __init__(self, rooms: Rooms, clock: Callable[[], float] = time.monotonic) -> None:
        self._rooms = rooms
        self._clock = clock
        # by room, and in the order in which they have their turns
        self._scans: dict[Room, Scan] = {}
        self._turns: deque[Scan] = deque()
        rooms.followers = self._scans
        self._waiting = 0
        self._paused_at = 0.0
        self._has_space = asyncio.Event()
        self._has_space.set()
        self._is_flushed = asyncio.Event()
        self._is_flushed.set()

    def publish(
        self, events: Iterable[tuple[Room, Event]], handed_over: Callable[[int], None] | None = None
    ) -> None:
        publication = Publication(handed_over)
        for room, event in events:
            members = self._rooms.members(room)
            # Who is offline now reads the inbox at join: the store has the change already.
            if not members:
                continue
            current = self._rooms.brought_up_to_date(event)
            if current is None:
                continue
            scan = self._scans.get(room)
            if scan is None:
                scan = self._scans[room] = Scan(room, members)
                self._turns.append(scan)
            scan.enter(current, publication)
            publication.under_way += 1
            publication.frames += len(members)
        self._waiting += publication.under_way
        if self._waiting > MAX_BACKLOG:
            self._has_space.clear()
        if self._turns and self._is_flushed.is_set():
            self._is_flushed.clear()
            self._pause(1)

    async def has_space(self) -> None:
        await self._has_space.wait()

    async def flushed(self) -> None:
        await self._is_flushed.wait()

    async def delivered(self, room: Room) -> None:
        scan = self._scans.get(room)
        if scan is None:
            return
        # For what is published from now on nobody waits here: there may be no end to it.
        end = scan.end
        while not scan.has_come_to(end):  # noqa: ASYNC110  # at most a slice too late
            await asyncio.sleep(0)

    @property
    def waiting(self) -> int:
        return self._waiting

    def _pause(self, turns: int) -> None:
        self._paused_at = self._clock()
        asyncio.get_running_loop().call_soon(self._go_on, turns - 1)

    def _go_on(self, turns: int) -> None:
        """With fan-out, when the loop has had so many turns more, or others have had it for long enough."""
        if turns > 0 and self._clock() < self._paused_at + MAX_SLICE_S:
            asyncio.get_running_loop().call_soon(self._go_on, turns - 1)
        else:
            self._deliver_slice()

    def _deliver_slice(self) -> None:
        began_at = self._clock()
        end = began_at + min(max(began_at - self._paused_at, MIN_SLICE_S), MAX_SLICE_S)
        done: list[Publication] = []
        while self._turns:
            self._tell_some(self._turns.popleft(), done)
            if self._clock() >= end:
                break
        if self._waiting <= MAX_BACKLOG:
            self._has_space.set()
        if self._turns:
            self._pause(TURNS_BETWEEN_SLICES)
        else:
            self._is_flushed.set()
        for publication in done:
            if publication.handed_over is not None:
                publication.handed_over(publication.frames)

    def _tell_some(self, scan: Scan, done: list[Publication]) -> None:
        """Some connections of a room. Adds to `done` the publications of which all have been told everything now."""
        for publication in scan.step():
            self._waiting -= 1
            publication.under_way -= 1
            if not publication.under_way:
                done.append(publication)
        if scan.is_over:
            del self._scans[scan.room]
        else:
            self._turns.append(scan)
