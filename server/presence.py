"""Who is away: asked when a notification is accepted, and again before a mail goes out."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import datetime

from server.backplane import Backplane
from server.moments import Moments
from server.rooms import Room, Rooms

HEARTBEATS_UNTIL_AWAY = 2
"""A user whose connections stay silent for so many heartbeats after a push is not reading: an open socket is
not a reader."""


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

    async def alive_since(
        self, tenant: str, user_ids: Collection[str], instant: datetime, ago_s: float | None = None
    ) -> set[str]:
        """Those of these users of whom a connection gave a sign of life after `instant` (aware UTC), even if it has
        closed since. `ago_s`: how long ago that was, by a clock that nodes share; None: the clock of this node showed
        it."""
        silent_for_s = time.monotonic() - self._moments.of(instant)
        if ago_s is not None:
            # Another node's clock may be behind, and ours stands still while the machine is asleep: the later of two
            # moments counts, as a mail too many beats one too few.
            silent_for_s = min(silent_for_s, ago_s)
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
