"""Revs that no clock going backwards repeats: a `RevClock` whose ceiling MongoDB keeps for the next start."""

from __future__ import annotations

import asyncio

from server.ids import new_id
from server.revs import COUNTER_BITS, RevClock
from server.store.mongo_connection import Collection

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
    """One for each node; all share one ceiling, in the document `rev` of the meta collection."""

    def __init__(self, clock: RevClock) -> None:
        self._clock = clock
        self._ceiling = 0
        self._raising = asyncio.Lock()

    async def open(self, meta: Collection) -> None:
        """Go above every rev that any node has issued."""
        self._meta = meta
        stored = await meta.find_one({"_id": "rev"})
        if stored is not None:
            self._clock.witness(stored["ceiling"])

    async def next(self, above: int = 0) -> int:
        """A rev above `above` and all that this node issued or witnessed, under a ceiling that is durable."""
        self._clock.witness(above)
        rev = self._clock.next()
        if rev > self._ceiling:
            await self._raise_ceiling(rev)
        return rev

    def at_hand(self) -> int | None:
        """As `next`; None if that takes a round trip."""
        rev = self._clock.next()
        return rev if rev <= self._ceiling else None

    async def _raise_ceiling(self, rev: int) -> None:
        async with self._raising:
            if rev <= self._ceiling:
                return
            ceiling = rev + (LEAD_MS << COUNTER_BITS)
            await self._meta.update_one({"_id": "rev"}, {"$max": {"ceiling": ceiling}}, upsert=True)
            self._ceiling = ceiling
