"""Tells users' screens how many notifications they have, after each change of their inbox: how many unseen ones, and to
those who speak of more, how many in all and of each type.

The count is always the store's, never added up here: it cannot drift. Changes in quick succession share one
count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator

from pydispatch import dispatcher

from server.backplane import Backplane
from server.bus import INBOX_CHANGED
from server.errors import StoreUnavailable
from server.messages import Counted, Event, UnseenCount
from server.rooms import Room, Rooms
from server.store import Store

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.25
"""Between two rounds of counts: the first change is told at once, a burst costs four counts a second."""

REST_PER_WORK, MAX_INTERVAL_S = 19.0, 2.0
"""While many change all the time, a round that was much work is followed by so many times that of rest, up to so much:
what matters then are the changes themselves."""

USERS_AT_ONCE, PAUSE_PER_WORK, MAX_PAUSE_S = 16, 2.0, 0.002
"""A round counts and tells for so many users in one go, then leaves the loop to others for so many times what that
took, up to so much: a notification that comes meanwhile waits for a millisecond, not for the whole round."""

RETRY_INTERVAL_S = 2.0
"""Until the next try when the store does not answer."""


class UnseenCounts:
    """Hears of changes over the bus; `run` counts and tells."""

    def __init__(self, store: Store, rooms: Rooms, backplane: Backplane) -> None:
        self._store = store
        self._rooms = rooms
        self._backplane = backplane
        self._changed: set[Room] = set()
        self._wake = asyncio.Event()
        dispatcher.connect(self._note, INBOX_CHANGED)

    def _note(self, rooms: Collection[Room]) -> None:
        self._changed.update(self._rooms.online(rooms))
        if self._changed:
            self._wake.set()

    async def run(self) -> None:
        """Count and tell until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, set()
            worked_s = 0.0
            for tenant, user_ids in _portions(changed):
                began_at = time.monotonic()
                try:
                    await self.tell(tenant, user_ids)
                except StoreUnavailable:
                    logger.debug("counts wait for the store")
                    self._changed.update((tenant, user_id) for user_id in user_ids)
                    self._wake.set()
                    await asyncio.sleep(RETRY_INTERVAL_S)
                except Exception:
                    # The next change brings the next count: a bug in one must not silence all that follow.
                    logger.exception("could not tell counts")
                else:
                    took_s = time.monotonic() - began_at
                    worked_s += took_s
                    await asyncio.sleep(min(took_s * PAUSE_PER_WORK, MAX_PAUSE_S))
            await asyncio.sleep(min(max(worked_s * REST_PER_WORK, MIN_INTERVAL_S), MAX_INTERVAL_S))

    async def tell(self, tenant: str, user_ids: Collection[str]) -> None:
        """Count for these users of a tenant, as far as they are told counts, and tell them, now. Raises
        `StoreUnavailable`: nobody was told."""
        counted_as = {user_id: self._rooms.counts_as((tenant, user_id)) for user_id in user_ids}
        of_all = [user_id for user_id, events in counted_as.items() if Counted in events]
        of_unseen = [
            user_id
            for user_id, events in counted_as.items()
            if UnseenCount in events and Counted not in events
        ]
        told: list[tuple[Room, Event]] = []
        if of_all:
            for user_id, counts in (await self._store.counts(tenant, of_all)).items():
                room = (tenant, user_id)
                told += [(room, UnseenCount(counts.unseen)), (room, Counted(counts))]
        if of_unseen:
            unseen = await self._store.count_unseen(tenant, of_unseen)
            told += [((tenant, user_id), UnseenCount(count)) for user_id, count in unseen.items()]
        self._backplane.publish(told)

    def close(self) -> None:
        """Hear of nothing any more."""
        dispatcher.disconnect(self._note, INBOX_CHANGED)


def _portions(rooms: Collection[Room]) -> Iterator[tuple[str, list[str]]]:
    """Users of one tenant each, together all of these."""
    by_tenant: dict[str, list[str]] = {}
    for tenant, user_id in rooms:
        by_tenant.setdefault(tenant, []).append(user_id)
    for tenant, user_ids in by_tenant.items():
        for start in range(0, len(user_ids), USERS_AT_ONCE):
            yield tenant, user_ids[start : start + USERS_AT_ONCE]
