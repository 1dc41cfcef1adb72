"""`Broadcasts` on MongoDB. `<collection>_broadcasts` has those that are open: the fields of the notification, its nid
as `_id`, the `after` up to which users have their documents, `lease` with `leasedUntil`, and in `once`, if it
has one, the idempotency `key` and whose call it was that inserted it (`by`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from server.messages import Document, Notification
from server.store import Accepted, Broadcast, Once
from server.store.mongo_adding import Adding
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw, encode, notification_fields, read_notification
from server.store.mongo_tenants import all_removed, removed_among

_OLDEST_FIRST = {"createdAt": 1, "_id": 1}

# In `$expr` what is missing is less than any time.
_IS_FREE = {"$expr": {"$lte": ["$leasedUntil", "$$NOW"]}}


class MongoBroadcasts:
    """`Broadcasts` on an open connection."""

    def __init__(self, connection: Connection, adding: Adding) -> None:
        self._connection = connection
        self._adding = adding
        self._records = adding.records

    async def add(self, notification: Notification, once: Once | None = None) -> Accepted:
        with self._connection.operation():
            if once is not None:
                return await self._add_once(notification, once)
            await self._connection.broadcasts.insert_one(_record(notification))
            return Accepted(notification)

    async def _add_once(self, notification: Notification, once: Once) -> Accepted:
        """As `mongo_once` has it."""
        mark = {"key": once.key, "by": ObjectId()}
        _record(notification, mark)  # what is too large for MongoDB claims no key
        claimed = await self._records.claim(notification, once)
        accepted = claimed.notification
        repeat = Accepted(accepted, is_repeat=True)
        if claimed.done_by is not None:
            return repeat
        try:
            await self._connection.broadcasts.insert_one(_record(accepted, mark))
        except DuplicateKeyError:
            return repeat
        if await self._records.done_by(accepted, once) in (None, mark["by"]):
            return Accepted(accepted)
        await self._connection.broadcasts.delete_one({"_id": ObjectId(accepted.nid), "once": mark})
        return repeat

    async def claim(self, lease_s: float) -> Broadcast | None:
        lease = secrets.token_hex(16)
        with self._connection.operation():
            claimed = await self._connection.broadcasts.find_one_and_update(
                {**await self._not_removed(), **_IS_FREE},
                [{"$set": {"lease": lease, "leasedUntil": _until(lease_s)}}],
                sort=_OLDEST_FIRST,
                hint="oldest",
                return_document=ReturnDocument.AFTER,
            )
        if claimed is None:
            return None
        return Broadcast(read_notification(claimed), claimed.get("after"), lease)

    async def expand(self, notification: Notification, user_ids: Sequence[str]) -> list[Document]:
        with self._connection.operation():
            return await self._adding.expand(notification, user_ids)

    async def advance(self, broadcast: Broadcast, after: str, lease_s: float) -> bool:
        # A user id is not to be taken for an expression.
        progress = {"after": {"$literal": after}, "leasedUntil": _until(lease_s)}
        with self._connection.operation():
            if await removed_among(self._connection, [broadcast.notification.tenant]):
                return False
            advanced = await self._connection.broadcasts.update_one(_held(broadcast), [{"$set": progress}])
            return advanced.matched_count == 1

    async def finish(self, broadcast: Broadcast) -> bool:
        held = _held(broadcast)
        with self._connection.operation():
            found = await self._connection.broadcasts.find_one(held, {"once": 1})
            if found is None:
                return False
            if "once" in found:
                await self._records.note_done(
                    broadcast.notification.tenant, nid=found["_id"], **found["once"]
                )
            return (await self._connection.broadcasts.delete_one(held)).deleted_count == 1

    async def open_of(self, tenant: str) -> list[Notification]:
        with self._connection.operation():
            found = self._connection.broadcasts.find({"tenant": tenant}, sort=_OLDEST_FIRST, hint="tenant")
            return [read_notification(each) for each in await found.to_list()]

    async def count_open(self) -> int:
        with self._connection.operation():
            return await self._connection.broadcasts.count_documents(await self._not_removed())

    async def _not_removed(self) -> Raw:
        return {"tenant": {"$nin": await all_removed(self._connection)}}


def _record(notification: Notification, mark: Raw | None = None) -> RawBSONDocument:
    once = {} if mark is None else {"once": mark}
    return encode({"_id": ObjectId(notification.nid), **notification_fields(notification), **once})


def _held(broadcast: Broadcast) -> Raw:
    return {"_id": ObjectId(broadcast.notification.nid), "lease": broadcast.lease}


def _until(lease_s: float) -> Raw:
    return {"$add": ["$$NOW", round(lease_s * 1000)]}
