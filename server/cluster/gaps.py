"""What is done about messages that may not have come: the connections of the users concerned are brought up to date,
one user after the other, so that neither store nor loop is overrun when it concerns all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import datetime

from server.bus import INBOX_CHANGED, tell
from server.rooms import NOBODY, Room, Rooms

logger = logging.getLogger(__name__)

PORTION = 25
PAUSE_S = 0.025
"""After so many users so long a pause: 1000 in a second at most, which a store takes beside everything else."""

WORTH_A_LINE = 10
"""Users, from which on the log says it."""


class Gaps:
    """One for each node."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._due: dict[Room, datetime] = {}
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many users are to be brought up to date."""
        return len(self._due)

    def note(self, rooms: Iterable[Room], since: datetime) -> None:
        """Messages for these users that were sent since then may not have come. Who is not here does not mind."""
        before = len(self._due)
        for room in self._rooms.online(rooms):
            self._due[room] = min(since, self._due.get(room, since))
        if len(self._due) - before >= WORTH_A_LINE:
            logger.info("backplane: %d users are brought up to date", len(self._due))
        if self._due:
            self._wake.set()

    async def run(self) -> None:
        """Bring them up to date, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due:
                rooms = list(self._due)[:PORTION]
                for room in rooms:
                    self._bring_up_to_date(room, self._due.pop(room))
                # How many there are, not all are told with what they missed.
                tell(INBOX_CHANGED, self, rooms=[room for room in rooms if room[1] != NOBODY])
                await asyncio.sleep(PAUSE_S)

    def _bring_up_to_date(self, room: Room, since: datetime) -> None:
        try:
            self._rooms.missed(room, since)
        except Exception:
            logger.exception("could not bring tenant=%s user=%s up to date", *room)
