"""Brings documents of the original system and of earlier versions up to this one, when the store opens.

The original wrote neither `tenant` nor `nid`, and its times are those of the clock on its wall. Its documents become
those of the tenant `default`, each a notification of its own, with its times as instants. What the times said is kept
in `legacy` ({createdAt, updatedAt, deletedAt, zone}), so that they can be read again in another zone. Every document is
brought up by one atomic update, and only once, so this may be interrupted anywhere, and be done by several nodes at
once: what is left is what has no `tenant` yet, or was read in another zone. What the original writes while this version
runs is brought up at the next start.

It is MongoDB that reads local times. One that the clock leaves out, when summer begins, counts on from before the
change (02:30 is 03:30); of one that it repeats, when summer ends, the later is meant (Python would take the earlier).

The users of these documents are registered just before that; once also those of all other documents, with a mark of
how far it is.

The state is in the document `migration` of the meta collection: `zone`, in which the times were read (null: some in
another), `usersUpTo`, the `_id` up to which users are registered, and `hasUsers` when all are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from bson import ObjectId
from pymongo.errors import OperationFailure

from server.errors import StartupError
from server.grants import DEFAULT_TENANT
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw
from server.store.mongo_users import KnownUsers, UserKey

logger = logging.getLogger(__name__)

BATCH_DOCUMENTS = 1000

BATCH_LIMIT_S = 60.0
"""For one batch. More than for a verb: nobody waits for it, and a time-out would only begin it anew."""

COUNT_LIMIT_S = 600.0

PROGRESS_S = 5.0
"""Between two lines of the log."""

MAX_REMEMBERED = 100_000
"""Users of whom it is remembered since when they are registered."""

_STATE = {"_id": "migration"}

_FIRST_ID = ObjectId(bytes(12))

_UNKNOWN_ZONE_CODE = 40485


class Migration:
    """To be run on a connection that is open, with its indexes. `zone`: that of the machine which the original ran on;
    None: its clock was set to UTC."""

    def __init__(self, connection: Connection, users: KnownUsers, zone: ZoneInfo | None) -> None:
        self._connection = connection
        self._users = users
        self._zone = "UTC" if zone is None else str(zone)
        self._since: dict[UserKey, datetime] = {}

    async def run(self) -> None:
        """Bring up what there is, which takes no time if there is nothing. Raises `StartupError` if MongoDB does not
        know the zone."""
        try:
            await self._bring_up()
        except OperationFailure as exc:
            if exc.code != _UNKNOWN_ZONE_CODE:
                raise
            raise StartupError(
                f"{self._connection.name} knows no time zone {self._zone!r}: give another name of that zone as"
                " [MONGODB] legacy_timezone"
            ) from None

    async def _bring_up(self) -> None:
        state = await self._read_state()
        if state["zone"] != self._zone:
            await self._convert_again()
        await self._convert_new()
        if not state.get("hasUsers"):
            await self._register_users(state.get("usersUpTo", _FIRST_ID))
        self._since.clear()

    async def _read_state(self) -> Raw:
        with self._connection.bounded():
            meta = self._connection.meta
            # Who is first has nothing in another zone.
            await meta.update_one(_STATE, {"$setOnInsert": {"zone": self._zone}}, upsert=True)
            return await meta.find_one(_STATE) or {}

    async def _set_state(self, change: Raw) -> None:
        with self._connection.bounded():
            await self._connection.meta.update_one(_STATE, change)

    # -- documents of the original ---------------------------------------------------------------------------

    async def _convert_new(self) -> None:
        """Those without a tenant."""
        progress = None
        async for batch in self._without_tenant():
            progress = progress or await self._count_those_without_tenant()
            # First, so that a crash in between leaves nobody out.
            await self._register(await self._group_without_tenant(batch))
            await self._adopt(batch)
            progress.advance(len(batch))
        if progress is not None:
            progress.end()

    async def _without_tenant(self) -> AsyncIterator[list[Raw]]:
        """What has no tenant, `_id` and `_userId`, in batches to be brought up before the next is asked for."""
        everybody: Raw = {}
        user = everybody
        while True:
            with self._connection.bounded(BATCH_LIMIT_S):
                left = self._connection.documents.find(
                    {"tenant": None, **user}, {"_userId": 1}, limit=BATCH_DOCUMENTS, hint="changes"
                )
                batch = await left.to_list()
            if batch:
                yield batch
                # The index has them by user. To begin at the first again would take longer and longer: it steps over
                # the entries of all that were brought up.
                user = {"_userId": {"$gte": batch[-1].get("_userId")}}
            elif user is everybody:
                return
            else:
                user = everybody

    async def _adopt(self, batch: Sequence[Raw]) -> None:
        documents = self._connection.documents
        with self._connection.bounded(BATCH_LIMIT_S):
            if not self._connection.is_router:
                still = {"_id": {"$in": [each["_id"] for each in batch]}, "tenant": None}
                await documents.update_many(still, self._adoption(), hint="_id_")
                return
            # What may move to another shard MongoDB takes one at a time, and by its shard key.
            ones = [{"_id": each["_id"], "tenant": None, "_userId": each.get("_userId")} for each in batch]
            await asyncio.gather(*(documents.update_one(one, self._adoption()) for one in ones))

    async def _count_those_without_tenant(self) -> _Progress:
        with self._connection.bounded(COUNT_LIMIT_S):
            left = await self._connection.documents.count_documents({"tenant": None}, hint="changes")
        return _Progress("migrated", f"documents of {self._connection.documents.full_name}", left)

    async def _convert_again(self) -> None:
        """Those that were brought up in another zone."""
        total = await self._estimate()
        progress = _Progress("looked for times in another zone in", "documents", total)
        await self._set_state({"$set": {"zone": None}})
        async for ids in self._ranges():
            with self._connection.bounded(BATCH_LIMIT_S):
                others = {"_id": ids, "legacy.zone": {"$exists": True, "$ne": self._zone}}
                await self._connection.documents.update_many(others, [self._conversion()])
            progress.advance(BATCH_DOCUMENTS)
        await self._set_state({"$set": {"zone": self._zone}})
        progress.end()

    async def _ranges(self) -> AsyncIterator[Raw]:
        """Conditions on `_id` that together take in all documents, `BATCH_DOCUMENTS` at a time."""
        after: Raw = {}
        while True:
            with self._connection.bounded(BATCH_LIMIT_S):
                last = await self._connection.documents.find_one(
                    {"_id": after} if after else {}, {"_id": 1}, sort={"_id": 1}, skip=BATCH_DOCUMENTS - 1
                )
            if last is None:
                yield after or {"$exists": True}
                return
            yield {**after, "$lte": last["_id"]}
            after = {"$gt": last["_id"]}

    def _adoption(self) -> list[Raw]:
        """The update that brings up a document of the original."""
        before = {"createdAt": "$createdAt", "updatedAt": "$updatedAt", "deletedAt": "$deletedAt"}
        return [{"$set": {"tenant": DEFAULT_TENANT, "nid": "$_id", "legacy": before}}, self._conversion()]

    def _conversion(self) -> Raw:
        """The stage of an update that takes the times from `legacy`, but for those that we have written since."""
        is_ours = {"$ne": [{"$type": "$rev"}, "missing"]}
        times = {
            name: {"$cond": [is_ours, f"${name}", _instant(f"$legacy.{name}", self._zone)]}
            for name in ("updatedAt", "deletedAt")
        }
        created_at = _instant("$legacy.createdAt", self._zone)
        return {"$set": {"createdAt": created_at, **times, "legacy.zone": self._zone}}

    # -- users -----------------------------------------------------------------------------------------------

    async def _register_users(self, up_to: ObjectId) -> None:
        """Those of all documents beyond this `_id`."""
        progress = _Progress("registered the users of", "documents", await self._estimate())
        while groups := await self._group_beyond(up_to):
            await self._register(groups)
            up_to = max(each["last"] for each in groups)
            await self._set_state({"$max": {"usersUpTo": up_to}})
            progress.advance(sum(each["count"] for each in groups))
        await self._set_state({"$set": {"hasUsers": True}, "$unset": {"usersUpTo": ""}})
        progress.end()

    async def _register(self, groups: Sequence[Raw]) -> None:
        """The users of these groups, since the earliest time that they have."""
        since = {(each["_id"]["tenant"], each["_id"]["userId"]): each["firstSeenAt"] for each in groups}
        earlier = {
            user: at for user, at in since.items() if user not in self._since or at < self._since[user]
        }
        with self._connection.bounded(BATCH_LIMIT_S):
            await self._users.write_first_seen(earlier)
        self._since.update(earlier)
        if len(self._since) > MAX_REMEMBERED:
            self._since.clear()

    async def _group_beyond(self, up_to: ObjectId) -> list[Raw]:
        """The next documents beyond this `_id`, by user."""
        return await self._group({"_id": {"$gt": up_to}}, "$tenant", "$createdAt")

    async def _group_without_tenant(self, batch: Sequence[Raw]) -> list[Raw]:
        """Of these documents those that have no tenant yet, by user."""
        which = {"_id": {"$in": [each["_id"] for each in batch]}, "tenant": None}
        return await self._group(which, DEFAULT_TENANT, _instant("$createdAt", self._zone))

    async def _group(self, which: Raw, tenant: str, created_at: str | Raw) -> list[Raw]:
        """The first of these documents, by user; what is no document of an inbox is left out."""
        whole = {"_userId": {"$type": "string"}, "createdAt": {"$type": "date"}}
        group = {
            "_id": {"tenant": tenant, "userId": "$_userId"},
            "firstSeenAt": {"$min": created_at},
            "last": {"$max": "$_id"},
            "count": {"$sum": 1},
        }
        pipeline: list[Raw] = [
            {"$match": {**which, **whole}},
            {"$sort": {"_id": 1}},
            {"$limit": BATCH_DOCUMENTS},
            {"$group": group},
        ]
        with self._connection.bounded(BATCH_LIMIT_S):
            return await (await self._connection.documents.aggregate(pipeline, hint="_id_")).to_list()

    async def _estimate(self) -> int:
        with self._connection.bounded():
            return await self._connection.documents.estimated_document_count()


class _Progress:
    """Tells the log how far it is, every few seconds and at the end."""

    def __init__(self, done: str, what: str, total: int) -> None:
        self._text = f"{done} %s of about {total:,} {what}"
        self._count = 0
        self._total = total
        self._told_at = time.monotonic()

    def advance(self, count: int) -> None:
        self._count = min(self._count + count, self._total)
        if time.monotonic() >= self._told_at + PROGRESS_S:
            self._tell()

    def end(self) -> None:
        if self._count:
            self._tell()

    def _tell(self) -> None:
        logger.info(self._text, f"{self._count:,}")
        self._told_at = time.monotonic()


def _instant(local: str, zone: str) -> Raw:
    """The expression for what the original meant by a time: it wrote local time, and MongoDB took it for UTC."""
    units = ("year", "month", "dayOfMonth", "hour", "minute", "second", "millisecond")
    parts: Raw = {("day" if unit == "dayOfMonth" else unit): {f"${unit}": local} for unit in units}
    is_time = {"$eq": [{"$type": local}, "date"]}
    return {"$cond": [is_time, {"$dateFromParts": {**parts, "timezone": zone}}, local]}
