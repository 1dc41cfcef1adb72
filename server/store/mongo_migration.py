"""Brings documents of the original system and of earlier versions up to this one, when the store opens.

The original wrote neither `tenant` nor `nid`, and its times are those of the clock on its wall. Its documents become
those of the tenant `default`, each a notification of its own, with its times as instants. What the times said is kept
in `legacy` ({createdAt, updatedAt, deletedAt, zone}), so that they can be read again in another zone. Every document is
brought up by one atomic update, and only once, so this may be interrupted anywhere, and be done by several nodes at
once: what is left is what has no `tenant` yet, or was read in another zone. What the original writes while this version
runs is brought up at the next start.

It is MongoDB that reads local times; how is in `mongo_legacy`. No document keeps the store from opening: what cannot be
read of one is replaced, and what MongoDB refuses to change is left as it is, in nobody's inbox, and tried again at the
next start. Both are counted in the log, with the first `_id`.

The users of these documents are registered just before that; once also those of all other documents, with a mark of
how far it is.

The state is in the document `migration` of the meta collection: `zone`, in which the times were read (null: some in
another), `usersUpTo`, the `_id` up to which users are registered, and `hasUsers` when all are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from bson import CodecOptions, ObjectId
from bson.codec_options import DatetimeConversion
from pymongo.errors import OperationFailure

from server.errors import StartupError, StoreUnavailable
from server.grants import DEFAULT_TENANT
from server.store.mongo_connection import AUTHENTICATION_CODES, Collection, Connection
from server.store.mongo_documents import Raw
from server.store.mongo_legacy import (
    HAS_LISTS,
    HAS_TENANT,
    HAS_USER,
    IS_STRANGE,
    OBJECT_ID,
    WITHOUT_LISTS,
    adoption,
    conversion,
    created_at,
)
from server.store.mongo_progress import Exceptions, Progress
from server.store.mongo_users import KnownUsers, UserKey

logger = logging.getLogger(__name__)

BATCH_DOCUMENTS = 1000
"""At a time. Fewer when a batch was not done in time, as with documents of many megabytes."""
MIN_BATCH_DOCUMENTS = 10

BATCH_LIMIT_S = 60.0
"""For one batch. More than for a verb: nobody waits for it, and a time-out would only begin it anew."""

COUNT_LIMIT_S = 600.0

MAX_REMEMBERED = 100_000
"""Users of whom it is remembered since when they are registered."""

_STATE = {"_id": "migration"}

_FIRST_ID = ObjectId(bytes(12))

_UNKNOWN_ZONE_CODE = 40485

_TOLERANT = CodecOptions[Raw](
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
"""Takes whatever may stand in a document."""


class Migration:
    """To be run on a connection that is open, with its indexes. `zone`: that of the machine which the original ran on;
    None: its clock was set to UTC."""

    def __init__(self, connection: Connection, users: KnownUsers, zone: ZoneInfo | None) -> None:
        self._connection = connection
        self._users = users
        self._zone = "UTC" if zone is None else str(zone)
        self._since: dict[UserKey, datetime] = {}
        self._batch_size = BATCH_DOCUMENTS
        self._exceptions = Exceptions()

    async def run(self) -> None:
        """Bring up what there is, which takes no time if there is nothing. Raises `StartupError` if MongoDB does not
        know the zone."""
        try:
            await self._bring_up()
        except StoreUnavailable:
            # It may have been too much for the time that there is.
            self._batch_size = max(self._batch_size // 4, MIN_BATCH_DOCUMENTS)
            raise
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
        self._exceptions.tell(self._name)
        await self._tell_of_other_ids()

    async def _read_state(self) -> Raw:
        with self._connection.bounded():
            meta = self._connection.meta
            # Who is first has nothing in another zone.
            await meta.update_one(_STATE, {"$setOnInsert": {"zone": self._zone}}, upsert=True)
            return await meta.find_one(_STATE) or {}

    async def _set_state(self, change: Raw) -> None:
        with self._connection.bounded():
            await self._connection.meta.update_one(_STATE, change)

    @property
    def _name(self) -> str:
        return self._connection.documents.full_name

    @property
    def _documents(self) -> Collection:
        return self._connection.documents.with_options(codec_options=_TOLERANT)

    # -- documents of the original ---------------------------------------------------------------------------

    async def put_lists_away(self) -> None:
        """Of documents over which no index can be made because of them. To be called within a time limit."""
        count = (await self._documents.update_many(HAS_LISTS, WITHOUT_LISTS)).modified_count
        logger.warning(
            "%d documents of %s held lists in place of values, which are in `legacy.lists` now",
            count,
            self._name,
        )

    async def _convert_new(self) -> None:
        """Those without a tenant."""
        progress = None
        async for batch in self._without_tenant():
            progress = progress or await self._count_those_without_tenant()
            # First, so that a crash in between leaves nobody out.
            await self._register(await self._group_without_tenant(batch))
            await self._adopt(batch)
            for each in batch:
                if each["isStrange"]:
                    self._exceptions.add_strange(each["_id"])
            progress.advance(len(batch))
            self._batch_size = min(2 * self._batch_size, BATCH_DOCUMENTS)
        if progress is not None:
            progress.end()

    async def _without_tenant(self) -> AsyncIterator[list[Raw]]:
        """What has no tenant and is not refused: `_id`, `_userId` and `isStrange`, in batches to be brought up before
        the next is asked for."""
        everybody: Raw = {}
        user = everybody
        while True:
            ids = {**OBJECT_ID, "$nin": list(self._exceptions.refused)}
            with self._connection.bounded(BATCH_LIMIT_S):
                left = self._documents.find(
                    {"tenant": None, "_id": ids, **user},
                    {"_userId": 1, "isStrange": IS_STRANGE},
                    limit=self._batch_size,
                    hint="changes",
                )
                batch = await left.to_list()
            if batch:
                yield batch
                # The index has them by user. To begin at the first again would take longer and longer: it steps over
                # the entries of all that were brought up.
                last = batch[-1].get("_userId")
                user = {"_userId": {"$gte": last}} if isinstance(last, str) else everybody
            elif user is everybody:
                return
            else:
                user = everybody

    async def _adopt(self, batch: Sequence[Raw]) -> None:
        update = adoption(self._zone)
        if not self._connection.is_router:
            await self._update({"_id": {"$in": [each["_id"] for each in batch]}, "tenant": None}, update)
            return
        # What may move to another shard MongoDB takes one at a time, and by its shard key.
        ones = [{"_id": each["_id"], "tenant": None, "_userId": each.get("_userId")} for each in batch]
        await asyncio.gather(*(self._update_one(one, update) for one in ones))

    async def _update(self, which: Raw, update: Sequence[Raw]) -> None:
        """All of these but those that MongoDB refuses to change."""
        try:
            with self._connection.bounded(BATCH_LIMIT_S):
                await self._documents.update_many(which, update, hint="_id_")
        except OperationFailure as exc:
            _raise_if_about_all(exc)
            with self._connection.bounded(BATCH_LIMIT_S):
                left = await self._documents.find(which, {"_id": 1}, hint="_id_").to_list()
            are_changed = [await self._update_one({**which, "_id": each["_id"]}, update) for each in left]
            if len(left) >= BATCH_DOCUMENTS and not any(are_changed):
                raise  # that many are not wrong, something else is

    async def _update_one(self, which: Raw, update: Sequence[Raw]) -> bool:
        """Whether MongoDB did not refuse."""
        try:
            with self._connection.bounded(BATCH_LIMIT_S):
                await self._documents.update_one(which, update)
            return True
        except OperationFailure as exc:
            _raise_if_about_all(exc)
            self._exceptions.refused[which["_id"]] = exc.code
            return False

    async def _count_those_without_tenant(self) -> Progress:
        with self._connection.bounded(COUNT_LIMIT_S):
            left = await self._documents.count_documents({"tenant": None}, hint="changes")
        return Progress("migrated", f"documents of {self._name}", left)

    async def _convert_again(self) -> None:
        """Those that were brought up in another zone."""
        total = await self._estimate()
        progress = Progress("looked for times in another zone in", "documents", total)
        await self._set_state({"$set": {"zone": None}})
        async for ids in self._ranges():
            others = {"_id": ids, "legacy.zone": {"$exists": True, "$ne": self._zone}}
            await self._update(others, [conversion(self._zone)])
            progress.advance(BATCH_DOCUMENTS)
        await self._set_state({"$set": {"zone": self._zone}})
        progress.end()

    async def _ranges(self) -> AsyncIterator[Raw]:
        """Conditions on `_id` that together take in all documents, `BATCH_DOCUMENTS` at a time."""
        after: Raw = {"$gte": _FIRST_ID}
        while True:
            with self._connection.bounded(BATCH_LIMIT_S):
                last = await self._documents.find_one(
                    {"_id": after}, {"_id": 1}, sort={"_id": 1}, skip=BATCH_DOCUMENTS - 1
                )
            if last is None:
                yield after
                return
            yield {**after, "$lte": last["_id"]}
            after = {"$gt": last["_id"]}

    async def _tell_of_other_ids(self) -> None:
        others = {"tenant": None, "_id": {"$not": OBJECT_ID}}
        with self._connection.bounded(COUNT_LIMIT_S):
            first = await self._documents.find_one(others, {"_id": 1}, hint="changes")
            count = first and await self._documents.count_documents(others, hint="changes")
        if first:
            logger.warning(
                "%d documents of %s are left as they are, and in nobody's inbox: their _id is no ObjectId (the first:"
                " %.100r)",
                count,
                self._name,
                first["_id"],
            )

    # -- users -----------------------------------------------------------------------------------------------

    async def _register_users(self, up_to: ObjectId) -> None:
        """Those of all documents beyond this `_id`."""
        progress = Progress("registered the users of", "documents", await self._estimate())
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
        return await self._group(
            {"_id": {"$gt": up_to}, **HAS_TENANT}, "$tenant", created_at("$createdAt", "UTC")
        )

    async def _group_without_tenant(self, batch: Sequence[Raw]) -> list[Raw]:
        """Of these documents those that have no tenant yet, by user."""
        which = {"_id": {"$in": [each["_id"] for each in batch]}, "tenant": None}
        return await self._group(which, DEFAULT_TENANT, created_at("$createdAt", self._zone))

    async def _group(self, which: Raw, tenant: str, created_at: Raw) -> list[Raw]:
        """The first of these documents, by user; those of nobody are left out."""
        group = {
            "_id": {"tenant": tenant, "userId": "$_userId"},
            "firstSeenAt": {"$min": created_at},
            "last": {"$max": "$_id"},
            "count": {"$sum": 1},
        }
        pipeline: list[Raw] = [
            {"$match": {"$and": [which, HAS_USER]}},
            {"$sort": {"_id": 1}},
            {"$limit": self._batch_size},
            {"$group": group},
        ]
        with self._connection.bounded(BATCH_LIMIT_S):
            return await (await self._documents.aggregate(pipeline, hint="_id_")).to_list()

    async def _estimate(self) -> int:
        with self._connection.bounded():
            return await self._connection.documents.estimated_document_count()


def _raise_if_about_all(exc: OperationFailure) -> None:
    """Not if it is a document that is wrong."""
    if exc.code == _UNKNOWN_ZONE_CODE or exc.code in AUTHENTICATION_CODES:
        raise exc
