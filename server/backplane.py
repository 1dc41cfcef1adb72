"""The way from a change in the store to every screen of the users it concerns, on all nodes. One node needs
no other: `LocalBackplane` is the whole of it. Several have theirs wrapped by that of `cluster`.

Events go out in the order in which they were published. Fan-out runs after the publisher has been answered,
in slices that leave the loop to others in between. What is published for a user while their connections are being
told waits for the next round, and each connection gets all of that as one write: the more there is to tell, the less
each event costs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from server.checks import Probe
from server.messages import Event
from server.rooms import Room, Rooms

logger = logging.getLogger(__name__)

MIN_SLICE_S = 0.0005
MAX_SLICE_S = 0.005
"""How long fan-out may hold the loop before others get a turn: as long as they took for theirs, within these bounds."""

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

    async def alive_elsewhere(self, tenant: str, user_ids: Collection[str], instant: datetime) -> set[str]:
        """Those of these users of whom another node had a sign of life after `instant` (aware UTC). Who cannot be asked
        about gave none."""
        return set()


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """A room whose sessions are being told of these events; `steps`: what is left of that."""

    room: Room
    events: list[Event]
    steps: Iterator[None]


class LocalBackplane(Backplane):
    """Publishes to the rooms of this process."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._backlog: dict[Room, list[Event]] = {}
        self._waiting = 0
        self._current: _Round | None = None
        self._delivered_rooms = 0
        # who is to be told, with what, after how many rooms have been delivered to
        self._handovers: deque[tuple[int, int, Callable[[int], None]]] = deque()
        self._paused_at = 0.0
        self._has_space = asyncio.Event()
        self._has_space.set()
        self._is_flushed = asyncio.Event()
        self._is_flushed.set()

    def publish(
        self, events: Iterable[tuple[Room, Event]], handed_over: Callable[[int], None] | None = None
    ) -> None:
        frames = 0
        # Who is offline now reads the inbox at join: the store has the change already.
        for room, event in events:
            members = self._rooms.size(room)
            if members:
                self._backlog.setdefault(room, []).append(event)
                self._waiting += 1
                frames += members
        if frames and handed_over is not None:
            # Rooms are delivered to in the order of the backlog, and ours are among those in it now.
            before = self._delivered_rooms + (self._current is not None)
            self._handovers.append((before + len(self._backlog), frames, handed_over))
        if self._waiting > MAX_BACKLOG:
            self._has_space.clear()
        if self._backlog and self._is_flushed.is_set():
            self._is_flushed.clear()
            self._paused_at = time.monotonic()
            asyncio.get_running_loop().call_soon(self._deliver_slice)

    async def has_space(self) -> None:
        await self._has_space.wait()

    async def flushed(self) -> None:
        await self._is_flushed.wait()

    async def delivered(self, room: Room) -> None:
        last = self._backlog.get(room)
        if last is None:
            last = self._current.events if self._current is not None and self._current.room == room else None
        # For what is published from now on nobody waits here: there may be no end to it.
        while last is not None and self._is_to_be_told(room, last):  # noqa: ASYNC110  # at most a slice too late
            await asyncio.sleep(0)

    @property
    def waiting(self) -> int:
        return self._waiting

    def _is_to_be_told(self, room: Room, events: list[Event]) -> bool:
        return self._backlog.get(room) is events or (
            self._current is not None and self._current.events is events
        )

    def _deliver_slice(self) -> None:
        began_at = time.monotonic()
        end = began_at + min(max(began_at - self._paused_at, MIN_SLICE_S), MAX_SLICE_S)
        while self._deliver_step():
            if time.monotonic() >= end:
                break
        if self._waiting <= MAX_BACKLOG:
            self._has_space.set()
        if self._backlog or self._current is not None:
            self._paused_at = time.monotonic()
            asyncio.get_running_loop().call_soon(self._deliver_slice)
        else:
            self._is_flushed.set()
        while self._handovers and self._handovers[0][0] <= self._delivered_rooms:
            _, frames, handed_over = self._handovers.popleft()
            handed_over(frames)

    def _deliver_step(self) -> bool:
        """Tell some sessions of a room; False: there was nothing to do."""
        if self._current is None:
            if not self._backlog:
                return False
            room = next(iter(self._backlog))
            events = self._backlog.pop(room)
            self._waiting -= len(events)
            self._current = _Round(room, events, self._rooms.deliver(room, events))
        current = self._current
        try:
            next(current.steps)
        except StopIteration:
            self._end_room()
        except Exception:
            logger.exception("could not deliver events to tenant=%s user=%s", *current.room)
            self._end_room()
        return True

    def _end_room(self) -> None:
        self._current = None
        self._delivered_rooms += 1
