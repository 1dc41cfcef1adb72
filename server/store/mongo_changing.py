"""Changing inboxes on MongoDB, where several nodes may change the same documents at once.

A change leaves `marks` as they are, so that nobody is sent again what comes back; and where `ackedAt` was not written
down it keeps the time of the change before, which was the acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from bson import ObjectId

from server.store import Change
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw
from server.store.mongo_reading import MAX_REV, NOT_DELETED, OLDEST_FIRST, Reading, id_list
from server.store.mongo_revs import StoredRevs

_STATE = {"seen": 1, "rev": 1}

_UNSEEN: Raw = {"seen": False, **NOT_DELETED}
_SEEN: Raw = {"seen": {"$ne": False}, **NOT_DELETED}
_TOMBSTONE: Raw = {"delete": True}

# The original's documents may lack the last change.
_BEFORE: Raw = {"$ifNull": ["$ackedAt", "$updatedAt", "$createdAt"]}


class Changing:
    """The verbs of the store that change documents."""

    def __init__(
        self, connection: Connection, reading: Reading, revs: StoredRevs, clock: Callable[[], datetime]
    ) -> None:
        self._connection = connection
        self._reading = reading
        self._revs = revs
        self._clock = clock

    async def mark_seen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """As `Store.mark_seen`."""
        found = await self._own(tenant, user_id, ids, NOT_DELETED)
        unseen = [each for each in found if not each["seen"]]
        return await self._change(tenant, user_id, found, unseen, _UNSEEN, self._to_seen())

    async def mark_unseen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """As `Store.mark_unseen`."""
        found = await self._own(tenant, user_id, ids, NOT_DELETED)
        seen = [each for each in found if each["seen"]]
        return await self._change(tenant, user_id, found, seen, _SEEN, {"seen": False, "ackedAt": _BEFORE})

    async def delete(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """As `Store.delete`."""
        found = await self._own(tenant, user_id, ids, NOT_DELETED)
        at = self._clock()
        # What was seen before `ackedAt` was written down was acknowledged then.
        acked_at = {"$ifNull": ["$ackedAt", {"$cond": ["$seen", "$updatedAt", at]}]}
        to = {"delete": True, "deletedAt": at, "updatedAt": at, "ackedAt": acked_at}
        return await self._change(tenant, user_id, found, found, NOT_DELETED, to)

    async def restore(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """As `Store.restore`."""
        found = await self._own(tenant, user_id, ids, _TOMBSTONE)
        to = {"delete": False, "deletedAt": None, "ackedAt": _BEFORE}
        return await self._change(tenant, user_id, found, found, _TOMBSTONE, to)

    async def mark_all_seen(self, tenant: str, user_id: str, limit: int, up_to: int | None) -> Change:
        """As `Store.mark_all_seen`."""
        changed: list[ObjectId] = []
        rev = None
        # Not $lte: the original's have none.
        old_enough: Raw = {} if up_to is None else {"$nor": [{"rev": {"$gt": max(min(up_to, MAX_REV), 0)}}]}
        unseen: Raw = {"seen": False, **old_enough}
        while len(changed) < limit:
            found = await self._reading.select(
                tenant,
                user_id,
                unseen,
                index="unseen",
                order=OLDEST_FIRST,
                limit=limit - len(changed),
                fields={"createdAt": 1, "rev": 1},
            )
            if not found:
                break
            if rev is None:
                rev = await self._rev_above(found)
            ids = [each["_id"] for each in found]
            where = {**_UNSEEN, **old_enough}
            if await self._update(tenant, user_id, ids, where, self._to_seen(), rev) == len(ids):
                changed += ids
                break
            # Another device was quicker for some. Others take their place, or the caller would think none are left.
            changed += [each["_id"] for each in await self._among(tenant, user_id, ids, {"rev": rev})]
            unseen["rev"] = {"$not": {"$gte": rev}}
        return Change(tuple(map(str, changed)), len(changed), rev if changed else None)

    def _to_seen(self) -> Raw:
        return {"seen": True, "ackedAt": {"$ifNull": ["$ackedAt", self._clock()]}}

    async def _own(self, tenant: str, user_id: str, ids: Sequence[str], which: Raw) -> list[Raw]:
        """Of the documents with these ids those that are the user's and match, in the order given, once each."""
        return await self._among(tenant, user_id, id_list(ids), which)

    async def _among(self, tenant: str, user_id: str, ids: Sequence[ObjectId], where: Raw) -> list[Raw]:
        return await self._reading.among(tenant, user_id, ids, where, _STATE)

    async def _change(
        self, tenant: str, user_id: str, found: Sequence[Raw], to_change: Sequence[Raw], still: Raw, to: Raw
    ) -> Change:
        """Of the documents found change those `to_change` that are `still` so.

        What another device changed after they were read may have a rev above. Then all go to a higher one, also those
        changed already: they have one in common. Every round takes another change that came in between, so they end;
        and the time limit of the verb bounds them.
        """
        ids = [each["_id"] for each in to_change]
        where, left = still, to_change
        changed, rev = 0, None
        while left:
            rev = await self._rev_above(left)
            changed = await self._update(tenant, user_id, ids, where, to, rev)
            if changed == len(ids):
                break
            left = await self._among(tenant, user_id, ids, still)
            where = {"$or": [still, {"rev": rev}]}
        return Change(tuple(str(each["_id"]) for each in found), changed, rev if changed else None)

    async def _rev_above(self, found: Sequence[Raw]) -> int:
        """A rev for these documents, above what each has, which another node with a faster clock may have issued."""
        return await self._revs.next(above=max(each.get("rev", 0) for each in found))

    async def _update(
        self, tenant: str, user_id: str, ids: Sequence[ObjectId], where: Raw, to: Raw, rev: int
    ) -> int:
        """Give these documents the fields `to` (expressions) and the rev, as far as they match `where` and have none as
        high; how many."""
        below: Raw = {"rev": {"$not": {"$gte": rev}}}  # Not $lt: the original's have none.
        same = {"tenant": tenant, "_userId": user_id, "_id": {"$in": ids}, **below, **where}
        change = {"$set": {"updatedAt": self._clock(), **to, "rev": rev}}
        # MongoDB might take the index with rev in it, and step over what has another.
        updated = await self._connection.documents.update_many(same, [change], hint="_id_")
        return updated.modified_count
