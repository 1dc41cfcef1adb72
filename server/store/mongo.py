"""The store on MongoDB: standalone, replica set or sharded cluster (shard key: `tenant`, `_userId`).

It reads and changes inboxes itself; `mongo_adding` stores notifications, `mongo_broadcasts` keeps those for everybody,
`mongo_mail` the mail that is owed, `mongo_deliveries` what was sent, `mongo_directory` who may do what;
`mongo_migration` brings up what an earlier version left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from bson import ObjectId
from pymongo.errors import OperationFailure

from server import messages
from server.ids import is_id
from server.messages import Document, EmailDuty, Notification, Recipient
from server.revs import RevClock
from server.store import Broadcasts, Change, Deliveries, Directory, Leases, MailCounts, MailJob, MailOutcome
from server.store.mongo_adding import Adding
from server.store.mongo_broadcasts import MongoBroadcasts
from server.store.mongo_connection import INDEX_BUILD_LIMIT_S, PARALLEL_ARRAYS_CODE, Connection
from server.store.mongo_deliveries import MongoDeliveries
from server.store.mongo_directory import MongoDirectory
from server.store.mongo_documents import INDEXES, WHOLE, Raw, beyond, read_document
from server.store.mongo_leases import MongoLeases
from server.store.mongo_mail import MailDuties
from server.store.mongo_migration import Migration
from server.store.mongo_revs import StoredRevs
from server.store.mongo_users import KnownUsers

OLDEST_FIRST = 1
NEWEST_FIRST = -1

_KEYS = {"createdAt": 1, "rev": 1}
"""What the place of a document and its next rev are known by, beside its `_id`."""

_MAX_REV = (1 << 63) - 1
"""What MongoDB takes for an integer."""

_NOT_DELETED: Raw = {"delete": False}
_UNSEEN: Raw = {"seen": False, "delete": False}

Position = tuple[datetime, ObjectId]


class MongoStore:
    """`Store` on the database `db` of the server or cluster at `url` (one client to it, made by `open`).

    `collection`: that of the documents; None: the one named like `db` if there is one (the original's), else
    `notifications`. `timeout_s` bounds every verb. `legacy_timezone`: the zone of the original's times; None: UTC.
    """

    changes_overlap_s = 30.0
    """More than the time limit of any verb, plus what the clocks of the nodes may differ."""

    def __init__(
        self,
        url: str,
        db: str,
        *,
        collection: str | None = None,
        timeout_s: float = 10.0,
        legacy_timezone: ZoneInfo | None = None,
        clock: Callable[[], datetime] = messages.now,
    ) -> None:
        self._clock = clock
        self._connection = Connection(url, db, collection, timeout_s)
        self._revs = StoredRevs(RevClock())
        users = KnownUsers(self._connection)
        self._adding = Adding(self._connection, self._revs, users)
        self._mail = MailDuties(self._connection, clock)
        self._migration = Migration(self._connection, users, legacy_timezone)
        self._directory = MongoDirectory(self._connection, users, self._mail, clock)
        self.directory: Directory = self._directory
        self.deliveries: Deliveries = MongoDeliveries(self._connection, clock)
        self.broadcasts: Broadcasts = MongoBroadcasts(self._connection, self._adding)
        self.leases: Leases = MongoLeases(self._connection)
        self.name = self._connection.name

    async def open(self) -> None:
        await self._connection.open()
        try:
            with self._connection.opening():
                await self._make_indexes()
                await self._prepare()
        except BaseException:
            await self._connection.disconnect()
            raise

    async def _make_indexes(self) -> None:
        try:
            await self._connection.make_indexes(INDEXES)
        except OperationFailure as exc:
            if exc.code != PARALLEL_ARRAYS_CODE:
                raise
            with self._connection.bounded(INDEX_BUILD_LIMIT_S):
                await self._migration.put_lists_away()
            await self._connection.make_indexes(INDEXES)

    async def _prepare(self) -> None:
        with self._connection.operation():
            await self._revs.open(self._connection.meta)
        await self._directory.found()
        await self._migration.run()

    async def close(self) -> None:
        await self._connection.drain()
        await self._adding.close()
        await self._connection.disconnect()

    async def ping(self) -> None:
        await self._connection.ping()

    # -- storing ---------------------------------------------------------------------------------------------

    async def add(
        self, notification: Notification, recipients: Sequence[Recipient], duty: EmailDuty | None
    ) -> list[Document]:
        with self._connection.operation():
            return await self._adding.add(notification, recipients, duty)

    async def complete_intents(self) -> list[Document]:
        return await self._adding.complete()

    # -- reading ---------------------------------------------------------------------------------------------

    async def newest(self, tenant: str, user_id: str, *, before: str | None, limit: int) -> list[Document]:
        with self._connection.operation():
            position = None
            if before is not None:
                position = await self._position(tenant, user_id, before)
                if position is None:
                    return []
            found = await self._find(tenant, user_id, order=NEWEST_FIRST, past=position, limit=limit)
            return [read_document(each) for each in found]

    async def page(self, tenant: str, user_id: str, *, page: int, limit: int) -> list[Document]:
        with self._connection.operation():
            found = await self._find(tenant, user_id, order=OLDEST_FIRST, skip=page * limit, limit=limit)
            return [read_document(each) for each in found]

    async def unseen(
        self, tenant: str, user_id: str, *, after: Document | None, limit: int
    ) -> list[Document]:
        position = None if after is None else (after.created_at, ObjectId(after.id))
        with self._connection.operation():
            found = await self._find(
                tenant, user_id, {"seen": False}, order=OLDEST_FIRST, past=position, limit=limit
            )
            return [read_document(each) for each in found]

    async def changes(
        self, tenant: str, user_id: str, *, after: tuple[int, str], limit: int
    ) -> list[Document]:
        query = {"tenant": tenant, "_userId": user_id, **_changed_after(*after)}
        sort = {"rev": 1, "_id": 1}
        with self._connection.operation():
            found = self._connection.documents.find(query, WHOLE, sort=sort, limit=limit, hint="changes")
            return [read_document(each) for each in await found.to_list()]

    async def count_unseen(self, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
        unseen = {"tenant": tenant, "_userId": {"$in": list(user_ids)}, "seen": False, "delete": False}
        group = {"$group": {"_id": "$_userId", "count": {"$sum": 1}}}
        counts = dict.fromkeys(user_ids, 0)
        with self._connection.operation():
            pipeline: list[Raw] = [{"$match": unseen}, group]
            async for found in await self._connection.documents.aggregate(pipeline, hint="unseen"):
                counts[found["_id"]] = found["count"]
        return counts

    async def _position(self, tenant: str, user_id: str, id_: str) -> Position | None:
        """The place of a document in its user's inbox, None if it is not the user's. It may be deleted."""
        if not is_id(id_):
            return None
        one = {"tenant": tenant, "_userId": user_id, "_id": ObjectId(id_)}
        found = await self._connection.documents.find_one(one, _KEYS)
        return None if found is None else (found["createdAt"], found["_id"])

    async def _find(
        self,
        tenant: str,
        user_id: str,
        where: Raw | None = None,
        *,
        order: int,
        limit: int,
        past: Position | None = None,
        skip: int = 0,
        fields: Raw = WHOLE,
    ) -> list[Raw]:
        """Documents of an inbox that are not deleted, in `order`, those past a position only."""
        query: Raw = {"tenant": tenant, "_userId": user_id, "delete": False, **(where or {})}
        if past is not None:
            query |= beyond(past, order)
        # MongoDB would choose by what it learnt with another user, whose inbox may be quite different.
        index = "unseen" if where else "inbox"
        sort = {"createdAt": order, "_id": order}
        found = self._connection.documents.find(query, fields, sort=sort, skip=skip, limit=limit, hint=index)
        return await found.to_list()

    # -- changing --------------------------------------------------------------------------------------------

    async def mark_seen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        with self._connection.operation():
            found = await self._own(tenant, user_id, ids)
            unseen = [each for each in found if not each["seen"]]
            changed, rev = await self._change(tenant, user_id, unseen, _UNSEEN, self._to_seen())
            return Change(tuple(str(each["_id"]) for each in found), changed, rev)

    async def delete(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        with self._connection.operation():
            found = await self._own(tenant, user_id, ids)
            at = self._clock()
            # What was seen before `ackedAt` was written down was acknowledged then.
            acked_at = {"$ifNull": ["$ackedAt", {"$cond": ["$seen", "$updatedAt", at]}]}
            tombstone = {"delete": True, "deletedAt": at, "updatedAt": at, "ackedAt": acked_at}
            changed, rev = await self._change(tenant, user_id, found, _NOT_DELETED, tombstone)
            return Change(tuple(str(each["_id"]) for each in found), changed, rev)

    async def mark_all_seen(self, tenant: str, user_id: str, *, limit: int) -> Change:
        with self._connection.operation():
            return await self._mark_oldest_seen(tenant, user_id, limit)

    def _to_seen(self) -> Raw:
        return {"seen": True, "ackedAt": {"$ifNull": ["$ackedAt", self._clock()]}}

    async def _own(self, tenant: str, user_id: str, ids: Sequence[str]) -> list[Raw]:
        """Of the documents with these ids those that are the user's and not deleted, in the order given, once each."""
        wanted = list(dict.fromkeys(ObjectId(id_) for id_ in ids if is_id(id_)))
        return await self._among(tenant, user_id, wanted, _NOT_DELETED) if wanted else []

    async def _among(self, tenant: str, user_id: str, ids: Sequence[ObjectId], where: Raw) -> list[Raw]:
        """Of the user's documents with these ids those that match `where`, in this order: `_id`, `seen` and `rev`."""
        query = {"tenant": tenant, "_userId": user_id, "_id": {"$in": ids}, **where}
        found = await self._connection.documents.find(query, {"seen": 1, "rev": 1}).to_list()
        by_id = {each["_id"]: each for each in found}
        return [by_id[id_] for id_ in ids if id_ in by_id]

    async def _change(
        self, tenant: str, user_id: str, found: Sequence[Raw], still: Raw, to: Raw
    ) -> tuple[int, int | None]:
        """Change those of the found documents that are `still` so; how many those were, and their new rev.

        What another device changed after they were read may have a rev above. Then all go to a higher one, also those
        changed already: they have one in common. Every round takes another change that came in between, so they end;
        and the time limit of the verb bounds them.
        """
        ids = [each["_id"] for each in found]
        where, left = still, found
        changed, rev = 0, None
        while left:
            rev = await self._rev_above(left)
            changed = await self._update(tenant, user_id, ids, where, to, rev)
            if changed == len(ids):
                break
            left = await self._among(tenant, user_id, ids, still)
            where = {"$or": [still, {"rev": rev}]}
        return changed, rev if changed else None

    async def _mark_oldest_seen(self, tenant: str, user_id: str, limit: int) -> Change:
        changed: list[ObjectId] = []
        rev = None
        unseen: Raw = {"seen": False}
        while len(changed) < limit:
            found = await self._find(
                tenant, user_id, unseen, order=OLDEST_FIRST, limit=limit - len(changed), fields=_KEYS
            )
            if not found:
                break
            if rev is None:
                rev = await self._rev_above(found)
            ids = [each["_id"] for each in found]
            if await self._update(tenant, user_id, ids, _UNSEEN, self._to_seen(), rev) == len(ids):
                changed += ids
                break
            # Another device was quicker for some. Others take their place, or the caller would think none are left.
            changed += [each["_id"] for each in await self._among(tenant, user_id, ids, {"rev": rev})]
            unseen = {"seen": False, "rev": {"$not": {"$gte": rev}}}
        return Change(tuple(map(str, changed)), len(changed), rev if changed else None)

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
        return (await self._connection.documents.update_many(same, [change])).modified_count

    # -- mail ------------------------------------------------------------------------------------------------

    async def claim_mail(self, lease_s: float, limit: int) -> list[MailJob]:
        with self._connection.operation():
            return await self._mail.claim(lease_s, limit)

    async def settle_mail(self, job: MailJob, outcome: MailOutcome) -> bool:
        with self._connection.operation():
            return await self._mail.settle(job, outcome)

    async def next_mail_due(self) -> datetime | None:
        with self._connection.operation():
            return await self._mail.next_due()

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        if not is_id(nid):
            return set()
        unseen = {"_userId": {"$in": list(user_ids)}, "seen": False, "delete": False}
        query = {"tenant": tenant, "nid": ObjectId(nid), **unseen}
        with self._connection.operation():
            found = await self._connection.documents.find(query, {"_userId": 1}).to_list()
            return {each["_userId"] for each in found}

    async def mail_counts(self) -> MailCounts:
        with self._connection.operation():
            return await self._mail.counts()


def _changed_after(rev: int, id_: str) -> Raw:
    """The filter for the documents of a user beyond this place among the changes."""
    if rev < 0 or (rev, id_) == (0, ""):
        return {}
    later = {"_id": {"$gt": ObjectId(id_ if is_id(id_) else bytes(12))}}
    if rev == 0:
        # The original's documents have no rev: the index has them first.
        return {"$or": [{"rev": None, **later}, {"rev": {"$gt": 0}}]}
    rev = min(rev, _MAX_REV)
    # The first condition alone gives the bounds of the index scan; an $or over both would need a sort.
    return {"rev": {"$gte": rev}, "$or": [{"rev": {"$gt": rev}}, later]}
