"""The store on MongoDB: standalone, replica set or sharded cluster (shard key: `tenant`, `_userId`).

The verbs are in `mongo_reading`, `mongo_changing` and `mongo_adding`, which stores notifications; `mongo_broadcasts`
keeps those for everybody, `mongo_mail` the mail that is owed, `mongo_deliveries` what was sent, `mongo_directory` who
may do what; `mongo_migration` brings up what an earlier version left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from pymongo.errors import OperationFailure

from server import messages
from server.messages import Document, EmailDuty, Notification, Recipient
from server.revs import instant_of
from server.store import (
    MAX_JOB_RECIPIENTS,
    Addition,
    Broadcasts,
    Change,
    Counts,
    Deliveries,
    Directory,
    Leases,
    MailCounts,
    MailJob,
    MailOutcome,
    Once,
    Outbox,
    Retention,
    Stored,
    Welcome,
)
from server.store.mongo_adding import Adding
from server.store.mongo_broadcasts import MongoBroadcasts
from server.store.mongo_changing import Changing
from server.store.mongo_connection import INDEX_BUILD_LIMIT_S, PARALLEL_ARRAYS_CODE, Connection
from server.store.mongo_deliveries import MongoDeliveries
from server.store.mongo_directory import MongoDirectory
from server.store.mongo_documents import INDEXES
from server.store.mongo_leases import MongoLeases
from server.store.mongo_mail import MailDuties
from server.store.mongo_migration import Migration
from server.store.mongo_outbox import MongoOutbox
from server.store.mongo_reading import Reading
from server.store.mongo_retention import MongoRetention
from server.store.mongo_revs import StoredRevs, read_epoch
from server.store.mongo_users import KnownUsers


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
        self._connection = Connection(url, db, collection, timeout_s)
        self._revs = StoredRevs()
        users = KnownUsers(self._connection, self._revs.latest)
        self._adding = Adding(self._connection, self._revs, users)
        self._reading = Reading(self._connection)
        self._changing = Changing(self._connection, self._reading, self._revs, clock)
        self._mail = MailDuties(self._connection, clock)
        self._migration = Migration(self._connection, users, legacy_timezone)
        self._directory = MongoDirectory(self._connection, users, self._mail, clock)
        self.directory: Directory = self._directory
        self.deliveries: Deliveries = MongoDeliveries(self._connection, clock)
        self.broadcasts: Broadcasts = MongoBroadcasts(self._connection, self._adding)
        self.leases: Leases = MongoLeases(self._connection)
        self.outbox: Outbox = MongoOutbox(self._connection)
        self.retention: Retention = MongoRetention(self._connection)
        self.name = self._connection.name
        self.epoch = ""

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
            self.epoch = await read_epoch(self._connection.meta)
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
        self,
        notification: Notification,
        recipients: Sequence[Recipient],
        duty: EmailDuty | None,
        once: Once | None = None,
    ) -> Stored:
        if once is None and len(recipients) == 1:
            return await self._adding.add_one(notification, recipients[0].user_id, duty)
        with self._connection.operation():
            return await self._adding.add(notification, recipients, duty, once)

    async def add_many(self, additions: Sequence[Addition]) -> list[Stored | Exception]:
        adding = (self.add(each.notification, each.recipients, each.duty, each.once) for each in additions)
        outcomes: list[Stored | Exception] = []
        for outcome in await asyncio.gather(*adding, return_exceptions=True):  # which share their batches
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def complete_intents(self) -> list[Document]:
        return await self._adding.complete()

    # -- reading ---------------------------------------------------------------------------------------------

    async def newest(
        self,
        tenant: str,
        user_id: str,
        *,
        before: str | None,
        limit: int,
        type: str | None = None,
        seen: bool | None = None,
    ) -> list[Document]:
        with self._connection.operation():
            return await self._reading.newest(tenant, user_id, before, limit, type, seen)

    async def page(self, tenant: str, user_id: str, *, page: int, limit: int) -> list[Document]:
        with self._connection.operation():
            return await self._reading.page(tenant, user_id, page, limit)

    async def unseen(
        self, tenant: str, user_id: str, *, after: Document | None, limit: int
    ) -> list[Document]:
        with self._connection.operation():
            return await self._reading.unseen(tenant, user_id, after, limit)

    async def changes(
        self, tenant: str, user_id: str, *, after: tuple[int, str], limit: int
    ) -> list[Document]:
        with self._connection.operation():
            return await self._reading.changes(tenant, user_id, after, limit)

    async def find(self, tenant: str, user_id: str, ids: Sequence[str]) -> list[Document]:
        with self._connection.operation():
            return await self._reading.find(tenant, user_id, ids)

    async def position(self) -> int:
        with self._connection.operation():
            # One that nobody else gets: whatever this node changes later has a higher one, also after a restart.
            return await self._revs.next()

    def position_at(self, instant: datetime) -> int:
        return self._revs.as_of(instant)

    async def present(self, tenant: str) -> datetime:
        with self._connection.operation():
            return max(instant_of(await self._revs.next()), await self._revs.read_clock())

    async def counts(self, tenant: str, user_ids: Collection[str]) -> dict[str, Counts]:
        with self._connection.operation():
            return await self._reading.counts(tenant, user_ids)

    async def count_unseen(self, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
        with self._connection.operation():
            return await self._reading.count_unseen(tenant, user_ids)

    async def welcome(
        self,
        tenant: str,
        user_id: str,
        *,
        unseen: int = 0,
        counts: bool = False,
        changes: int = 0,
        after: tuple[int, str] = (0, ""),
    ) -> Welcome:
        with self._connection.operation():
            return await self._reading.welcome(tenant, user_id, unseen, counts, changes, after)

    # -- changing --------------------------------------------------------------------------------------------

    async def mark_seen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        with self._connection.operation():
            return await self._changing.mark_seen(tenant, user_id, ids)

    async def mark_all_seen(
        self, tenant: str, user_id: str, *, limit: int, up_to: int | None = None
    ) -> Change:
        with self._connection.operation():
            return await self._changing.mark_all_seen(tenant, user_id, limit, up_to)

    async def mark_unseen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        with self._connection.operation():
            return await self._changing.mark_unseen(tenant, user_id, ids)

    async def delete(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        with self._connection.operation():
            return await self._changing.delete(tenant, user_id, ids)

    async def restore(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        with self._connection.operation():
            return await self._changing.restore(tenant, user_id, ids)

    # -- mail ------------------------------------------------------------------------------------------------

    async def claim_mail(
        self, lease_s: float, limit: int, recipients: int = MAX_JOB_RECIPIENTS
    ) -> list[MailJob]:
        with self._connection.operation():
            return await self._mail.claim(lease_s, limit, recipients)

    async def settle_mail(self, job: MailJob, outcome: MailOutcome) -> bool:
        with self._connection.operation():
            return await self._mail.settle(job, outcome)

    async def next_mail_due(self) -> datetime | None:
        with self._connection.operation():
            return await self._mail.next_due()

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        with self._connection.operation():
            return await self._reading.still_unseen(tenant, nid, user_ids)

    async def mail_counts(self) -> MailCounts:
        with self._connection.operation():
            return await self._mail.counts()
