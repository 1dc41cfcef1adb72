"""`Retention` on MongoDB: user by user, which the indexes of the inboxes serve, so that no insert pays for it.

How far back the inboxes of a tenant go is in `horizon` of its record: `floor`, and `oldestRev`. Idempotency keys go by
an index of MongoDB's own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bson import ObjectId

from server.store import Bounds, Horizon, Removed
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw
from server.store.mongo_users import id_of, of_tenant

USERS_PER_STEP = 500
"""Looked through at a time, which takes some milliseconds where nothing is to go."""

MAX_OWING = 1000
"""Notifications for which mail is owed, of these users, that are stepped over. With more, the rest waits for the next
time."""

_FIELDS: Raw = {"nid": 1, "_userId": 1, "createdAt": 1, "delete": 1}


@dataclass(slots=True)
class _Owing:
    """Notifications for which mail is owed, and when those of their documents were created that are not deleted."""

    nids: set[ObjectId] = field(default_factory=set)
    created_at: list[datetime] = field(default_factory=list)


class MongoRetention:
    """`Retention` on an open connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def horizons(self) -> Mapping[str, Horizon]:
        with self._connection.operation():
            which: Raw = {"horizon": {"$exists": True}}
            found = await self._connection.tenants.find(which, {"horizon": 1}).to_list()
        return {
            each["_id"]: Horizon(each["horizon"].get("floor"), each["horizon"].get("oldestRev", 0))
            for each in found
        }

    async def raise_horizon(self, tenant: str, horizon: Horizon) -> None:
        highest: Raw = {"horizon.oldestRev": horizon.oldest_rev}
        if horizon.floor is not None:
            highest["horizon.floor"] = horizon.floor
        with self._connection.operation():
            # One of a tenant that was erased meanwhile would be the next one's of its name.
            await self._connection.tenants.update_one({"_id": tenant, "removedAt": None}, {"$max": highest})

    async def remove(self, tenant: str, bounds: Bounds, limit: int) -> AsyncGenerator[Removed, None]:
        users: list[str] = []
        while users := await self._users(tenant, users[-1] if users else ""):
            owing = _Owing()
            is_done = False
            while not is_done:
                with self._connection.operation():
                    removed, is_done = await self._remove_some(tenant, users, bounds, limit, owing)
                yield removed

    async def forget_keys(self, limit: int) -> int:
        return 0

    async def _users(self, tenant: str, after: str) -> list[str]:
        """The next ones."""
        where = of_tenant(tenant)
        where["_id"]["$gt"] = id_of((tenant, after))
        with self._connection.operation():
            found = await self._connection.users.find(
                where, {"_id": 1}, sort={"_id": 1}, limit=USERS_PER_STEP
            ).to_list()
        return [each["_id"]["userId"] for each in found]

    async def _remove_some(
        self, tenant: str, users: Sequence[str], bounds: Bounds, limit: int, owing: _Owing
    ) -> tuple[Removed, bool]:
        """What was removed of these users, and whether they have nothing left that is to go. `owing`: those that were
        found to be so before; further ones are added."""
        found = await self._find(tenant, users, bounds, limit, owing.nids)
        owing.nids |= await self._owing(tenant, {each["nid"] for each in found})
        free = [each for each in found if each["nid"] not in owing.nids]
        owing.created_at += [
            each["createdAt"] for each in found if each["nid"] in owing.nids and not each["delete"]
        ]
        await self._delete(tenant, bounds, free)
        await self._tidy(tenant, {each["nid"] for each in free})
        documents = [each for each in free if not each["delete"]]
        removed = Removed(
            len(documents),
            len(free) - len(documents),
            frozenset(each["_userId"] for each in documents),
            min(owing.created_at, default=None),
        )
        return removed, len(found) < limit or len(owing.nids) > MAX_OWING

    async def _find(
        self, tenant: str, users: Sequence[str], bounds: Bounds, limit: int, left_out: set[ObjectId]
    ) -> list[Raw]:
        these: Raw = {"tenant": tenant, "_userId": {"$in": list(users)}, "nid": {"$nin": list(left_out)}}
        found: list[Raw] = []
        for index, which in (("inbox", _old(bounds)), ("tombstones", _dead(bounds))):
            if which is not None and len(found) < limit:
                documents = self._connection.documents.find(
                    {**these, **which}, _FIELDS, limit=limit - len(found), hint=index
                )
                found += await documents.to_list()
        return found

    async def _owing(self, tenant: str, nids: set[ObjectId]) -> set[ObjectId]:
        """Those of these notifications for which mail is owed. That of an intent that is open will be."""
        these: Raw = {"tenant": tenant, "nid": {"$in": list(nids)}, "mail.subject": {"$exists": True}}
        is_due: Raw = {"mail.due": {"$exists": True}}
        is_due_or_open: Raw = {"$or": [is_due, {"openedAt": {"$exists": True}}]}
        owing: set[ObjectId] = set()
        for place, which in (
            (self._connection.documents, is_due),
            (self._connection.intents, is_due_or_open),
        ):
            found = await place.find({**these, **which}, {"nid": 1}, hint="outbox").to_list()
            owing |= {each["nid"] for each in found}
        return owing

    async def _delete(self, tenant: str, bounds: Bounds, found: Sequence[Raw]) -> None:
        # A tombstone may have been restored since.
        still = [which for which in (_old(bounds), _dead(bounds)) if which is not None]
        if found:
            users = sorted({each["_userId"] for each in found})
            these: Raw = {"tenant": tenant, "_userId": {"$in": users}}
            await self._connection.documents.delete_many(
                {**these, "_id": {"$in": [each["_id"] for each in found]}, "$or": still}, hint="_id_"
            )

    async def _tidy(self, tenant: str, nids: set[ObjectId]) -> None:
        """Remove the mail that was refused, of notifications of which the last document has gone."""
        refused: Raw = {"tenant": tenant, "nid": {"$in": list(nids)}, "mail.refusals": {"$exists": True}}
        async for intent in self._connection.intents.find(refused, {"nid": 1}, hint="refused"):
            of_it = {"tenant": tenant, "nid": intent["nid"]}
            if await self._connection.documents.find_one(of_it, {"_id": 1}, hint="notification") is None:
                await self._connection.intents.delete_one({"_id": intent["_id"], "mail.due": None})


def _old(bounds: Bounds) -> Raw | None:
    """The filter for documents, not deleted, that have had their time; None: none have."""
    if bounds.created_before is None:
        return None
    return {"delete": False, "createdAt": {"$lt": bounds.created_before}}


def _dead(bounds: Bounds) -> Raw:
    """The filter for tombstones."""
    deleted_before: Raw = {"deletedAt": {"$lt": bounds.deleted_before}}
    either: list[Raw] = [
        {"rev": {"$lt": bounds.rev_below}, **deleted_before},
        # The original's have no rev.
        {"rev": None, **deleted_before},
    ]
    if bounds.created_before is not None:
        either.append({"createdAt": {"$lt": bounds.created_before}})
    return {"delete": True, "$or": either}
