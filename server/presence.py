"""Who is away: asked when a notification is accepted, and again before a mail goes out."""

from __future__ import annotations

import time
from datetime import datetime

from server.backplane import LocalBackplane
from server.messages import now
from server.rooms import Room, Rooms

HEARTBEATS_UNTIL_AWAY = 2
"""A user whose connections stay silent for so many heartbeats after a push is not reading: an open socket is
not a reader."""


class Presence:
    """What this node knows of its users' being there. Unknown counts as away: a mail too many beats one too
    few."""

    def __init__(self, rooms: Rooms, backplane: LocalBackplane, heartbeat_s: float) -> None:
        self._rooms = rooms
        self._backplane = backplane
        self.away_after_s = HEARTBEATS_UNTIL_AWAY * heartbeat_s
        """Seconds of silence after a push, after which an online user counts as away."""

    def is_online(self, room: Room) -> bool:
        """Whether the user has a connection on any node."""
        return self._backplane.is_online(room)

    def alive_since(self, tenant: str, user_id: str, instant: datetime) -> bool:
        """Whether a connection of the user gave a sign of life after `instant` (aware UTC), even if it has
        closed since."""
        silent_for_s = (now() - instant).total_seconds()
        last_alive_at = self._rooms.last_alive_at((tenant, user_id))
        return last_alive_at is not None and last_alive_at > time.monotonic() - silent_for_s

    def forget(self) -> None:
        """Drop what is too old to matter to any mail still to be decided."""
        self._rooms.forget_signs_of_life(time.monotonic() - 2 * self.away_after_s)
