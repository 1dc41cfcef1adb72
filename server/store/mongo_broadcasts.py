"""`Broadcasts` on MongoDB. `<collection>_broadcasts` has those that are open: the fields of the notification, its nid
as `_id`, the `after` up to which users have their documents, `lease` with `leasedUntil`, and in `once`, if it
has one, the idempotency `key` and whose call it was that inserted it (`by`).

One whose documents MongoDB refuses (a validator of the operator's, a limit) would stay open for ever. It is set aside:
with `failedAt` and `failure`. Taking `failedAt` away again has it tried again.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from server.errors import TooLarge
from server.messages import Document, Notification
from server.store import Accepted, Broadcast, BroadcastRefused, Once
from server.store.mongo_adding import Adding
from server.store.mongo_connection import Connection, DocumentRefused
from server.store.mongo_documents import Raw, beyond, encode, notification_fields, read_notification
from server.store.mongo_tenants import all_removed, removed_among

logger = logging.getLogger(__name__)

_OPEN: Raw = {"failedAt": None}
_OLDEST_FIRST = {"createdAt": 1, "_id": 1}

# In `$expr` what is missing is less than any time.
_IS_FREE = {"$expr": {"$lte": ["$leasedUntil", "$$NOW"]}}


LOOKED_AT = 1000
"""Open broadcasts at a time of which is asked whether a user has them."""

Position = tuple[datetime, ObjectId]
_BEFORE_ALL = ObjectId(bytes(12))


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

    async def claim(self, lease_s: float, passing_over: Collection[str] = ()) -> Broadcast | None:
        lease = secrets.token_hex(16)
        with self._connection.operation():
            claimed = await self._connection.broadcasts.find_one_and_update(
                {**await self._open(passing_over), **_IS_FREE},
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
            try:
                return await self._adding.expand(notification, user_ids)
            except (DocumentRefused, TooLarge) as exc:
                await self._set_aside(notification, exc)
                raise BroadcastRefused(str(exc)) from exc

    async def give(self, user_id: str, notifications: Sequence[Notification]) -> list[Document]:
        with self._connection.operation():
            return await self._adding.give(user_id, notifications)

    async def _set_aside(self, notification: Notification, refusal: Exception) -> None:
        """Keep it for the operator, out of the way of the others. Whoever holds the lease is to stop."""
        kept = await self._connection.broadcasts.update_one(
            {"_id": ObjectId(notification.nid), **_OPEN},
            {
                "$set": {"failure": str(refusal)},
                "$currentDate": {"failedAt": True},
                "$unset": {"lease": "", "leasedUntil": ""},
            },
        )
        if kept.modified_count:
            what = "broadcast %s is not stored for all users of tenant %s, and set aside: %s"
            logger.error(what, notification.nid, notification.tenant, refusal)

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

    async def open_of(
        self, tenant: str, user_id: str, *, since: datetime, after: Notification | None, limit: int
    ) -> list[Notification]:
        lowest = (since, _BEFORE_ALL) if after is None else max((since, _BEFORE_ALL), _position(after))
        lacking: list[ObjectId] = []
        with self._connection.operation():
            while len(lacking) < limit:
                some = await self._positions(tenant, lowest)
                nids = [nid for _, nid in some]
                having = await self._adding.having(tenant, nids, [user_id])
                lacking += [nid for nid in nids if (nid, user_id) not in having]
                if len(some) < LOOKED_AT:
                    break
                lowest = some[-1]
            return await self._read(lacking[:limit])

    async def _positions(self, tenant: str, lowest: Position) -> list[Position]:
        """Of a portion of those that are open, and nothing of what they hold."""
        query = {"tenant": tenant, **_OPEN, **beyond(lowest, 1)}
        found = self._connection.broadcasts.find(
            query, {"createdAt": 1}, sort=_OLDEST_FIRST, limit=LOOKED_AT, hint="tenant"
        )
        return [(each["createdAt"], each["_id"]) for each in await found.to_list()]

    async def _read(self, nids: Sequence[ObjectId]) -> list[Notification]:
        """Those that are still there, in this order."""
        if not nids:
            return []
        found = await self._connection.broadcasts.find({"_id": {"$in": nids}}, hint="_id_").to_list()
        by_nid = {each["_id"]: read_notification(each) for each in found}
        return [by_nid[nid] for nid in nids if nid in by_nid]

    async def count_open(self) -> int:
        with self._connection.operation():
            return await self._connection.broadcasts.count_documents(await self._open())

    async def _open(self, passing_over: Collection[str] = ()) -> Raw:
        others = [*await all_removed(self._connection), *passing_over]
        return {**_OPEN, "tenant": {"$nin": others}}


def _record(notification: Notification, mark: Raw | None = None) -> RawBSONDocument:
    once = {} if mark is None else {"once": mark}
    return encode({"_id": ObjectId(notification.nid), **notification_fields(notification), **once})


def _held(broadcast: Broadcast) -> Raw:
    return {"_id": ObjectId(broadcast.notification.nid), "lease": broadcast.lease}


def _position(notification: Notification) -> Position:
    return notification.created_at, ObjectId(notification.nid)


def _until(lease_s: float) -> Raw:
    return {"$add": ["$$NOW", round(lease_s * 1000)]}
