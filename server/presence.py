"""Who is away: asked when a notification is accepted, and again before a mail goes out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from server.backplane import Backplane
from server.messages import now
from server.rooms import Room, Rooms

HEARTBEATS_UNTIL_AWAY = 2
"""A user whose connections stay silent for so many heartbeats after a push is not reading: an open socket is
not a reader."""


STEP_S = 1.0
"""A wall clock that differs by more from what it should show was set."""

MAX_SPANS = 16
"""So many are remembered, from one time that the clock is set to the next."""


@dataclass(slots=True)
class _Span:
    """A time in which the wall clock went evenly, so many seconds ahead of the monotonic one. When exactly it was set
    is not known: spans overlap."""

    ahead_s: float
    begins_at: float
    ends_at: float


class Moments:
    """Which moment (`time.monotonic`) an instant was, also if the wall clock has been set since. That happens when a
    machine was asleep, too: the monotonic clock stood still meanwhile."""

    def __init__(
        self, clock: Callable[[], datetime] = now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        ahead_s, present = self._look()
        self._spans = deque([_Span(ahead_s, -math.inf, present)], MAX_SPANS)

    def note(self) -> None:
        """See whether the wall clock was set. To be called now and then."""
        (ahead_s, present), last = self._look(), self._spans[-1]
        if abs(ahead_s - last.ahead_s) <= STEP_S:
            last.ahead_s = ahead_s  # it is slewed
        else:
            self._spans.append(_Span(ahead_s, last.ends_at, present))
        last.ends_at = present

    def of(self, instant: datetime) -> float:
        """Of several moments in which the clock showed `instant` the last one; the present if there was none."""
        self.note()
        for span in reversed(self._spans):
            at = instant.timestamp() - span.ahead_s
            if span.begins_at <= at <= span.ends_at + STEP_S:
                return at
        return self._spans[-1].ends_at

    def _look(self) -> tuple[float, float]:
        moment = self._monotonic()
        return self._clock().timestamp() - moment, moment


class Presence:
    """What is known of users' being there, on this node and on the others. Unknown counts as away: a mail too many
    beats one too few."""

    def __init__(
        self, rooms: Rooms, backplane: Backplane, heartbeat_s: float, moments: Moments | None = None
    ) -> None:
        self._rooms = rooms
        self._backplane = backplane
        self._moments = moments or Moments()
        self.away_after_s = HEARTBEATS_UNTIL_AWAY * heartbeat_s
        """Seconds of silence after a push, after which an online user counts as away."""

    async def online(self, rooms: Collection[Room]) -> set[Room]:
        """Those of these users who have a connection on any node."""
        here = set(self._rooms.online(rooms))
        others = set(rooms) - here
        return here | await self._backplane.online_elsewhere(others) if others else here

    async def alive_since(self, tenant: str, user_ids: Collection[str], instant: datetime) -> set[str]:
        """Those of these users of whom a connection gave a sign of life after `instant` (aware UTC), even if it has
        closed since."""
        silent_for_s = time.monotonic() - self._moments.of(instant)
        alive = self._rooms.alive_since(tenant, user_ids, silent_for_s)
        others = set(user_ids) - alive
        if others:
            alive |= await self._backplane.alive_elsewhere(tenant, others, silent_for_s)
        return alive

    def sweep(self) -> None:
        """To be called now and then: see whether the clock was set, and drop what is too old to matter to any mail
        still to be decided."""
        self._moments.note()
        self._rooms.forget_signs_of_life(time.monotonic() - 2 * self.away_after_s)
