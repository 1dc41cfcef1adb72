"""Revs by the clock of MongoDB, which all nodes share: those of the nodes may differ, and be set. No clock going
backwards repeats one: a `RevClock` whose ceiling MongoDB keeps for the next start."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from server.ids import new_id
from server.messages import now
from server.moments import Moments
from server.revs import COUNTER_BITS, RevClock
from server.store.mongo_connection import CODEC_OPTIONS, Collection

LEAD_MS = 2000
"""How far the ceiling is stored ahead of use. A node that starts issues revs above the ceiling of all nodes, so it runs
up to this far ahead of them for a moment: well below a third of the overlap that a sync reads again (10 of 30 s)."""


async def read_epoch(meta: Collection) -> str:
    """See `Store.epoch`: in the document `epoch` of the meta collection, which the first node makes."""
    which = {"_id": "epoch"}
    # An upsert by `_id`: of several nodes at the same time one makes it, and all read that.
    await meta.update_one(which, {"$setOnInsert": {"epoch": new_id()}}, upsert=True)
    found = await meta.find_one(which)
    assert found is not None  # noqa: S101  # nobody removes it
    return str(found["epoch"])


class StoredRevs:
    """One for each node; all share one ceiling, in the document `rev` of the meta collection. MongoDB's clock is looked
    at when that is raised, which is every two seconds while revs are issued; in between the monotonic one counts."""

    def __init__(self) -> None:
        self._clock = RevClock(wall_clock_ms=self._now_ms)
        # MongoDB's clock, of the monotonic one
        self._ahead_ms = 0.0
        # by how much that may be wrong
        self._uncertain_ms = 0.0
        self._moments = Moments()
        self._ceiling = 0
        self._raised = 0  # how often
        self._raising = asyncio.Lock()

    async def open(self, meta: Collection) -> None:
        """Go above every rev that any node has issued."""
        self._meta = meta
        await self._look_at_clock()
        stored = await meta.find_one({"_id": "rev"})
        if stored is not None:
            self._clock.witness(stored["ceiling"])

    async def next(self, above: int = 0) -> int:
        """A rev above `above` and all that this node issued or witnessed, under a ceiling that is durable."""
        self._clock.witness(above)
        rev = self.at_hand()
        if rev is None:
            raised = self._raised
            async with self._raising:
                rev = self.at_hand()
                if rev is None and self._raised > raised:
                    rev = self._left()
                if rev is None:
                    rev = await self._raise_ceiling()
        return rev

    def at_hand(self) -> int | None:
        """As `next`; None if that takes a round trip."""
        if self._moments.note():
            # Not only set, perhaps: while a machine is asleep its monotonic clock stands still.
            self._ceiling = 0
        return self._clock.next_up_to(self._ceiling)

    @property
    def ahead_s(self) -> float:
        """How far MongoDB's clock is ahead of this node's."""
        return self._now_ms() / 1000 - now().timestamp()

    def as_of(self, instant: datetime) -> int:
        """As `Store.position_at`."""
        return int((instant.timestamp() + min(0.0, self.ahead_s)) * 1000) << COUNTER_BITS

    def _left(self) -> int | None:
        """For who has waited for the ceiling to be raised: one that is left under it, though that took longer than it
        leads ahead. Else each of them would have to raise it, one after the other."""
        rev = self._clock.last + 1
        if rev > self._ceiling:
            return None
        self._clock.witness(rev)
        return rev

    async def _raise_ceiling(self) -> int:
        await self._look_at_clock()
        rev = self._clock.next()
        ceiling = rev + (LEAD_MS << COUNTER_BITS)
        await self._meta.update_one({"_id": "rev"}, {"$max": {"ceiling": ceiling}}, upsert=True)
        self._ceiling = ceiling
        self._raised += 1
        return rev

    async def _look_at_clock(self) -> None:
        asked_at = time.monotonic()
        clock = await self.read_clock()
        # It was looked at in between: half of what that took is the least that this may be wrong by.
        looked_at = (asked_at + time.monotonic()) / 2
        self._ahead_ms = (clock.timestamp() - looked_at) * 1000
        self._uncertain_ms = (looked_at - asked_at) * 1000

    async def read_clock(self) -> datetime:
        """MongoDB's clock (aware UTC), as it is now."""
        hello = await self._meta.database.command("hello", codec_options=CODEC_OPTIONS)
        clock: datetime = hello["localTime"]
        return clock

    def latest(self) -> datetime:
        """The latest time (aware UTC) that MongoDB's clock has surely shown, as far as this node can tell."""
        return datetime.fromtimestamp((self._now_ms() - self._uncertain_ms) / 1000, UTC)

    def _now_ms(self) -> int:
        return int(time.monotonic() * 1000 + self._ahead_ms)
