"""`Broadcasts` on MongoDB. `<collection>_broadcasts` has those that are open: the fields of the notification, its nid
as `_id`, the `after` up to which users have their documents, and `lease` with `leasedUntil`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from bson import ObjectId
from pymongo import ReturnDocument

from server.messages import Document, Notification
from server.store import Broadcast
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

    async def add(self, notification: Notification) -> None:
        fields = {"_id": ObjectId(notification.nid), **notification_fields(notification)}
        with self._connection.operation():
            await self._connection.broadcasts.insert_one(encode(fields))

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
        with self._connection.operation():
            return (await self._connection.broadcasts.delete_one(_held(broadcast))).deleted_count == 1

    async def open_of(self, tenant: str) -> list[Notification]:
        with self._connection.operation():
            found = self._connection.broadcasts.find({"tenant": tenant}, sort=_OLDEST_FIRST, hint="tenant")
            return [read_notification(each) for each in await found.to_list()]

    async def count_open(self) -> int:
        with self._connection.operation():
            return await self._connection.broadcasts.count_documents(await self._not_removed())

    async def _not_removed(self) -> Raw:
        return {"tenant": {"$nin": await all_removed(self._connection)}}


def _held(broadcast: Broadcast) -> Raw:
    return {"_id": ObjectId(broadcast.notification.nid), "lease": broadcast.lease}


def _until(lease_s: float) -> Raw:
    return {"$add": ["$$NOW", round(lease_s * 1000)]}
