"""`Deliveries` on MongoDB. In a document `marks` has a bit for each of `WAYS` in which it was sent, and `ackedAt` says
when a client acknowledged it, or it was first seen or deleted; what is absent is none.

`<collection>_ways` has since when users use which: `_id` is {tenant, userId}, as of the known users.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from bson import ObjectId
from pymongo import ReturnDocument, UpdateMany

from server.errors import NotFound
from server.ids import is_id
from server.messages import Document
from server.store import ACKNOWLEDGED, WAYS, Delivery, RefusedMail
from server.store.mongo_connection import Connection
from server.store.mongo_documents import WHOLE, Raw, beyond
from server.store.mongo_reading import read_documents
from server.store.mongo_users import UserKey, id_of

_BEFORE_ALL = ObjectId(bytes(12))

_UNSEEN: Raw = {"seen": False, "delete": False}
"""Nor deleted."""

_DELIVERY = {
    "_userId": 1,
    "createdAt": 1,
    "updatedAt": 1,
    "seen": 1,
    "delete": 1,
    "ackedAt": 1,
}


class MongoDeliveries:
    """`Deliveries` on an open connection."""

    def __init__(self, connection: Connection, clock: Callable[[], datetime]) -> None:
        self._connection = connection
        self._clock = clock

    async def begin(self, tenant: str, user_id: str, way: str, at: datetime) -> datetime:
        user = {"_id": id_of((tenant, user_id))}
        with self._connection.operation():
            found = await self._connection.ways.find_one(user)
            if found is None or way not in found:
                found = await self._connection.ways.find_one_and_update(
                    user,
                    [{"$set": {way: {"$ifNull": [f"${way}", at]}}}],
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                )
        return at if found is None else found[way]

    async def backlog(
        self,
        tenant: str,
        user_id: str,
        way: str | None,
        *,
        since: datetime | None,
        after: Document | None,
        limit: int,
    ) -> list[Document]:
        lowest = [] if since is None else [(since, _BEFORE_ALL)]
        if after is not None:
            lowest.append((after.created_at, ObjectId(after.id)))
        # The index has the documents of each value in their order, and MongoDB merges them.
        query = {
            "tenant": tenant,
            "_userId": user_id,
            **_UNSEEN,
            "marks": {"$in": [None, *_values(0 if way is None else _bit(way), are_set=False)]},
            **(beyond(max(lowest), 1) if lowest else {}),
        }
        sort = {"createdAt": 1, "_id": 1}
        with self._connection.operation():
            found = self._connection.documents.find(query, WHOLE, sort=sort, limit=limit, hint="backlog")
            return await read_documents(await found.to_list(), is_for_a_frame=True)

    async def mark(self, way: str, documents: Mapping[UserKey, Collection[str]]) -> None:
        bit = _bit(way)
        unmarked = {"marks": {"$nin": _values(bit, are_set=True)}}
        marked: Raw = {"$bit": {"marks": {"or": bit}}}
        changes: list[tuple[Raw, Raw]] = [(unmarked, marked)]
        if way == ACKNOWLEDGED:
            acknowledged = {**marked, "$set": {"ackedAt": self._clock()}}
            changes = [({**unmarked, **_UNSEEN}, acknowledged), ({**unmarked, "$nor": [_UNSEEN]}, marked)]
        updates = [
            UpdateMany(
                {"tenant": tenant, "_userId": user_id, "_id": {"$in": ids}, **which}, change, hint="_id_"
            )
            for (tenant, user_id), given in documents.items()
            if (ids := [ObjectId(id_) for id_ in given if is_id(id_)])
            for which, change in changes
        ]
        if updates:
            with self._connection.operation():
                await self._connection.documents.bulk_write(updates, ordered=False)

    async def of_notification(
        self, tenant: str, nid: str, *, after: str | None, limit: int
    ) -> list[Delivery]:
        with self._connection.operation():
            found = await self._find(tenant, nid, after, limit) if is_id(nid) else []
            if not (found or (is_id(nid) and await self._is_there(tenant, nid))):
                raise NotFound(f"there is no notification {nid!r}")
            refused = await self._refused(tenant, nid) if found else {}
        return [_delivery(each, refused.get(each["_userId"])) for each in found]

    async def _find(self, tenant: str, nid: str, after: str | None, limit: int) -> list[Raw]:
        query: Raw = {"tenant": tenant, "nid": ObjectId(nid)}
        if after is not None:
            query["_userId"] = {"$gt": after}
        documents = self._connection.documents
        found = documents.find(query, _DELIVERY, sort={"_userId": 1}, limit=limit, hint="notification")
        return await found.to_list()

    async def _is_there(self, tenant: str, nid: str) -> bool:
        """Whether anybody has it, or will."""
        document = {"tenant": tenant, "nid": ObjectId(nid)}
        if await self._connection.documents.find_one(document, {"_id": 1}, hint="notification") is not None:
            return True
        broadcast = {"tenant": tenant, "_id": ObjectId(nid)}
        return await self._connection.broadcasts.find_one(broadcast, {"_id": 1}, hint="_id_") is not None

    async def _refused(self, tenant: str, nid: str) -> dict[str, Raw]:
        """Whose mail was refused, by user id: it is written down in what is left of the notification's intent, or in
        the document of its first user, who may be the only one."""
        notification = {"tenant": tenant, "nid": ObjectId(nid)}
        where = {**notification, "mail.refusals": {"$exists": True}}
        place = await self._connection.intents.find_one(where, {"mail.refused": 1}, hint="refused")
        if place is None:
            first, documents = {"_userId": 1}, self._connection.documents
            place = await documents.find_one(
                notification, {"mail.refused": 1}, sort=first, hint="notification"
            )
        places = [] if place is None else [place]
        return {
            each["_userId"]: each for place in places for each in place.get("mail", {}).get("refused", ())
        }


def _bit(way: str) -> int:
    return 1 << WAYS.index(way)


def _values(bit: int, *, are_set: bool) -> list[int]:
    """All values of `marks` that have this bit, or that have it not."""
    return [value for value in range(1, 1 << len(WAYS)) if bool(value & bit) == are_set]


def _delivery(found: Raw, refused: Raw | None) -> Delivery:
    delivered_at = found.get("ackedAt")
    if delivered_at is None and (found["seen"] or found["delete"]):
        # Before this was written down.
        delivered_at = found.get("updatedAt") or found["createdAt"]
    return Delivery(
        user_id=found["_userId"],
        sent_at=found["createdAt"],
        delivered_at=delivered_at,
        refused=None if refused is None else _refused_mail(refused),
        refused_at=None if refused is None else refused.get("refusedAt"),
    )


def _refused_mail(found: Raw) -> RefusedMail:
    return RefusedMail(found["_userId"], found["email"], found["code"], found["reason"])
