"""What the store on MongoDB promises beyond the contract of all stores (test_store_contract.py).

How it opens, its indexes and revs, and that a notification is stored as a whole whatever fails in between. What it
does with older documents is in test_store_mongo_migration.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    CursorNotFound,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.message import _CursorAddress

from server import flights
from server.checks import Trouble
from server.errors import Busy, NotFound, ServerError, StartupError, StoreUnavailable, TooLarge
from server.messages import Document, EmailDuty, Mail, MailRecipient, Recipient, now
from server.revs import COUNTER_BITS
from server.store import (
    HUB,
    Bounds,
    BroadcastRefused,
    Change,
    Counts,
    MailCounts,
    MailOutcome,
    Once,
    PostponedMail,
    RefusedMail,
    TypeCounts,
    mongo_adding,
    mongo_batches,
    mongo_connection,
    mongo_reading,
    mongo_revs,
)
from server.store.mongo import MongoStore
from server.store.mongo_batches import MAX_BATCH_BYTES, Batches
from server.store.mongo_reading import MAX_REV
from server.store.mongo_retention import MongoRetention
from server.store.mongo_revs import StoredRevs
from tests.support.mongo_stores import USER, opened, original, until_it_succeeds
from tests.support.mongod import Mongod, MongoDatabase
from tests.support.ports import free_port
from tests.support.stores import TENANT, make_notification, owe, put, put_many, read_sign_outs, whole_inbox

DEFAULT = "default"
USERS = [f"user-{number}" for number in range(7)]
RECIPIENTS = [Recipient(user, f"{user}@example.test") for user in USERS]


@pytest.fixture
async def store(mongo_database: MongoDatabase) -> AsyncIterator[MongoStore]:
    async with opened(mongo_database) as store:
        yield store


def ids(documents: Sequence[Document]) -> list[str]:
    return [document.id for document in documents]


# -- opening -------------------------------------------------------------------------------------------------


def test_the_name_shows_no_credentials() -> None:
    """Hosts and database, and nothing of user or password, whatever characters they hold."""
    names = {
        "mongodb://127.0.0.1:27017/": "MongoDB (127.0.0.1:27017, db inbox)",
        "mongodb://bob:s3cret@a:1,b:2/?replicaSet=rs0": "MongoDB (a:1,b:2, db inbox)",
        "mongodb+srv://bob:s3cret@cluster.example.test/admin": "MongoDB (cluster.example.test, db inbox)",
    }
    assert {url: MongoStore(url, "inbox").name for url in names} == names


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://",
        "mongodb://u:s3/cret@127.0.0.1/",
        "mongodb://127.0.0.1:x/",
        "http://x",
        "mongodb://127.0.0.1/?tsl=true",
        "mongodb://127.0.0.1/?wtimeoutms=soon",
        "mongodb://u:s3?cret=x@127.0.0.1/",
    ],
)
@pytest.mark.filterwarnings("default")  # as pymongo warns whoever does not forbid it
async def test_a_bad_address_cannot_start(url: str) -> None:
    """One sentence that names the setting and gives away nothing of the address; before anything is opened. An option
    that pymongo would go on without, as `tls` with its letters in disorder, is refused, too."""
    with pytest.raises(StartupError, match=re.escape("[MONGODB] url")) as refused:
        MongoStore(url, "inbox")
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


@pytest.mark.parametrize("host", ["c.docdb.amazonaws.com", "c.mongo.cosmos.azure.com"])
def test_a_host_of_another_make_can_start(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also with a log in which pymongo cannot say what it says of such, so that it warns instead."""
    caplog.set_level(logging.WARNING)
    assert MongoStore(f"mongodb://{host}/", "inbox").name == f"MongoDB ({host}, db inbox)"


async def test_a_refused_login_cannot_start(mongo_database: MongoDatabase) -> None:
    """Waiting would not help; the sentence is without the password."""
    url = mongo_database.url.replace("mongodb://", "mongodb://bob:s3cret@")
    with pytest.raises(StartupError, match="refuses the login") as refused:
        await MongoStore(url, mongo_database.name).open()
    assert "s3cret" not in str(refused.value)


async def test_a_name_that_mongodb_does_not_take(mongo_database: MongoDatabase) -> None:
    """Database and collection are named as what is wrong."""
    with pytest.raises(StartupError, match="db or collection"):
        await MongoStore(mongo_database.url, "a b").open()
    with pytest.raises(StartupError, match="db or collection"):
        await MongoStore(mongo_database.url, mongo_database.name, collection="a$b").open()


async def test_too_old_a_server_cannot_start(
    mongo_database: MongoDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says which version is needed."""
    monkeypatch.setattr(mongo_connection, "MIN_WIRE_VERSION", 1000)
    with pytest.raises(StartupError, match=r"version \d.*; MongoDB 5.0 or later is needed"):
        await MongoStore(mongo_database.url, mongo_database.name).open()


async def test_a_server_that_is_not_there(mongo_database: MongoDatabase) -> None:
    """Opening says so within the time limit, and every verb does until opening has succeeded."""
    store = MongoStore(f"mongodb://127.0.0.1:{free_port()}/", mongo_database.name, timeout_s=0.3)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            await store.open()
        with pytest.raises(StoreUnavailable):
            await store.ping()
    await store.close()


async def test_several_nodes_open_at_once(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """On a database that is empty, and on one that is not; each index is there once."""
    raw["notifications"].insert_many([original(number) for number in range(1000)])
    for _ in range(2):
        stores = [MongoStore(mongo_database.url, mongo_database.name) for _ in range(4)]
        await asyncio.gather(*(store.open() for store in stores))
        await asyncio.gather(*(put(store) for store in stores))
        for store in stores:
            await store.close()
    expected = {
        "_id_",
        "inbox",
        "unseen",
        "types",
        "backlog",
        "changes",
        "notification",
        "mail_due",
        "mail_leased",
        "mail_refused",
        "outbox",
        "tombstones",
    }
    assert set(raw["notifications"].index_information()) == expected


async def test_closing_waits_for_what_was_accepted(mongo_database: MongoDatabase) -> None:
    """Adds under way are finished, for one user and for several; the next one is refused."""
    store = MongoStore(mongo_database.url, mongo_database.name)
    await store.open()
    adding = [asyncio.create_task(put(store, content=str(number))) for number in range(20)]
    adding += [asyncio.create_task(store.add(make_notification(), RECIPIENTS, None)) for _ in range(3)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*adding)
    with pytest.raises(StoreUnavailable):
        await put(store)


async def test_the_collection(mongo_database: MongoDatabase, raw: Database[dict[str, Any]]) -> None:
    """The given one; else the original's, named like the database, if there is one; else `notifications`."""
    async with opened(mongo_database, collection="given") as store:
        await put(store)
        assert raw["given"].count_documents({}) == 1
    async with opened(mongo_database) as store:
        await put(store)
        assert raw["notifications"].count_documents({}) == 1
    raw[mongo_database.name].insert_one(original())
    async with opened(mongo_database) as store:
        await put(store)
        assert raw[mongo_database.name].count_documents({}) == 2


# -- indexes -------------------------------------------------------------------------------------------------


async def test_every_query_uses_its_index(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """No verb scans a collection or sorts in memory, and each reads what it returns and little more."""
    documents = raw["notifications"]
    documents.insert_many([original(number, _userId=f"user-{number % 10}") for number in range(2000)])
    async with opened(mongo_database) as store:
        for number in range(40):
            await store.add(make_notification(DEFAULT, content=str(number)), RECIPIENTS, None)
        notification = await owe(store, *(mail_to(user) for user in USERS), tenant=DEFAULT)
        await owe(store, mail_to("solo"), tenant=DEFAULT)
        long_ago = now() - timedelta(hours=1)
        sign_outs = (
            {"_id": {"tenant": DEFAULT, "userId": str(number)}, "at": long_ago, "writtenAt": long_ago}
            for number in range(2000)
        )
        raw["notifications_sign_outs"].insert_many(sign_outs)
        profile = Profile(raw)

        newest = await store.newest(DEFAULT, "user-3", before=None, limit=30)
        profile.expect("inbox", most=30)
        await store.newest(DEFAULT, "user-3", before=newest[-1].id, limit=30)
        profile.expect("inbox", "_id", most=32)
        await store.page(DEFAULT, "user-3", page=1, limit=30)
        profile.expect("inbox", most=60)
        oldest = await store.unseen(DEFAULT, "user-3", after=None, limit=30)
        profile.expect("unseen", most=30)
        await store.unseen(DEFAULT, "user-3", after=oldest[-1], limit=30)
        profile.expect("unseen", most=32)
        assert await store.count_unseen("other", ["user-3", "user-4"]) == {"user-3": 0, "user-4": 0}
        profile.expect("unseen", most=0)
        await store.mark_seen(DEFAULT, "user-3", ids(oldest[:3]))
        profile.expect("_id", most=6)
        await store.mark_all_seen(DEFAULT, "user-3", limit=5)
        profile.expect("unseen", "_id", most=10)
        await store.mark_all_seen(DEFAULT, "user-3", limit=5, up_to=1)
        profile.expect("unseen", "_id", most=10)
        await store.mark_unseen(DEFAULT, "user-3", ids(oldest[:3]))
        profile.expect("_id", most=6)
        await store.delete(DEFAULT, "user-3", ids(oldest[:3]))
        profile.expect("_id", most=6)
        await store.restore(DEFAULT, "user-3", ids(oldest[:3]))
        profile.expect("_id", most=6)
        await store.find(DEFAULT, "user-3", ids(oldest[:3]))
        profile.expect("_id", most=3)
        info = await store.newest(DEFAULT, "user-3", before=None, limit=30, type="info")
        profile.expect("types", most=32)
        await store.newest(DEFAULT, "user-3", before=info[-1].id, limit=30, type="info", seen=False)
        profile.expect("types", "_id", most=32)
        await store.newest(DEFAULT, "user-3", before=None, limit=30, seen=False)
        profile.expect("unseen", most=30)
        await store.newest(DEFAULT, "user-3", before=None, limit=3, seen=True)
        profile.expect("inbox", most=250)
        assert (await store.newest(DEFAULT, "user-3", before=None, limit=30, type="none")) == []
        profile.expect("types", most=0)
        assert (await store.counts(DEFAULT, ["user-3", "user-5"]))["user-3"].total == 200 + 40 + 1
        profile.expect("types", most=0, may_sort=True)  # the types
        await store.still_unseen(DEFAULT, notification.nid, USERS)
        profile.expect("notification", most=len(USERS))
        await store.next_mail_due()
        profile.expect("mail_due", "mail_leased", "_id", most=3)
        assert await store.mail_counts() == MailCounts(len(USERS) + 1, 0)
        profile.expect("mail_due", "mail_refused", most=0)
        assert len(await store.claim_mail(60, 10)) == 2
        profile.expect("mail_due", "_id", most=5)
        oldest = await store.changes(DEFAULT, "user-3", after=(0, ""), limit=30)
        profile.expect("changes", most=30)
        rest = await store.changes(DEFAULT, "user-3", after=(0, oldest[-1].id), limit=1000)
        profile.expect("changes", most=1000)
        assert len(rest) == 200 + 40 + 1 - 30
        await store.changes(DEFAULT, "user-3", after=(rest[-30].rev, rest[-30].id), limit=30)
        profile.expect("changes", most=31)

        waiting = await store.deliveries.backlog(DEFAULT, "user-3", HUB, since=None, after=None, limit=1000)
        profile.expect("backlog", most=1000)
        await store.deliveries.mark(HUB, {(DEFAULT, "user-3"): ids(waiting[:-20])})
        profile.expect("_id", most=len(waiting) - 20)
        left = await store.deliveries.backlog(
            DEFAULT, "user-3", HUB, since=None, after=waiting[5], limit=1000
        )
        profile.expect("backlog", most=20)
        assert left == waiting[-20:]
        await store.deliveries.backlog(DEFAULT, "user-3", HUB, since=now(), after=None, limit=1000)
        profile.expect("backlog", most=0)
        await store.deliveries.begin(DEFAULT, "user-3", HUB, now())
        profile.expect("_id", most=0)
        await store.deliveries.of_notification(DEFAULT, notification.nid, after="user-2", limit=3)
        profile.expect("notification", "refused", most=3 + 1)  # that which may have the refused mail of all
        with pytest.raises(NotFound):
            await store.deliveries.of_notification("other", notification.nid, after=None, limit=3)
        profile.expect("notification", "_id", most=0)

        for number in range(10):  # of those of one instant more may be looked at
            instant = now() - timedelta(seconds=10 - number)
            await store.broadcasts.add(make_notification(DEFAULT, content=str(number), created_at=instant))
        broadcast = await store.broadcasts.claim(60)
        assert broadcast is not None
        profile.expect("removed", "oldest", most=1)
        await store.broadcasts.expand(broadcast.notification, USERS)
        profile.expect("notification", most=0)
        await store.broadcasts.advance(broadcast, "user-5", 60)
        profile.expect("_id", most=2)
        start = broadcast.notification.created_at
        open_ = await store.broadcasts.open_of(DEFAULT, "user-3", since=start, after=None, limit=3)
        profile.expect("tenant", "notification", "_id", most=10 + 3)
        await store.broadcasts.open_of(DEFAULT, "user-3", since=start, after=open_[-1], limit=30)
        profile.expect("tenant", "notification", "_id", most=7 + 6)
        await store.broadcasts.finish(broadcast)
        profile.expect("_id", most=2)
        await store.leases.take("a", "b", 60)
        profile.expect("_id", most=1)

        await store.directory.users(DEFAULT, after="user-3", limit=3)
        profile.expect("_id", most=3)
        await store.directory.note_users({(DEFAULT, "user-3"): now(), (DEFAULT, "new"): now()})
        profile.expect("_id", most=1)
        await store.directory.note_key_use({"0" * 24: now()})
        profile.expect("keys", most=0)
        page = await store.directory.sign_outs(None, 10)
        profile.expect("_id", most=11)
        await store.directory.sign_outs(page.cursor, 10)
        profile.expect("_id", most=10)
        _, after = await read_sign_outs(store.directory)
        await store.directory.sign_out(DEFAULT, "user-3", now())
        profile.expect("_id", most=2100)
        await read_sign_outs(store.directory, after)
        profile.expect("written", "_id", most=2)
        await store.directory.forget_sign_outs(long_ago)
        profile.expect("at", most=0)


class Profile:
    """The profiler of MongoDB: what it did for each command, with the plan that it chose."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._database = database
        # MongoDB tells the keys of an index, not its name.
        self._keys: dict[str, set[str]] = {"_id": {""}}
        for collection in ("", "_intents", "_broadcasts", "_tenants", "_sign_outs"):
            for name, index in database[f"notifications{collection}"].index_information().items():
                known = self._keys.setdefault("_id" if name == "_id_" else name, set())
                known.add(self._key_of(index["key"]))
        database.command("profile", 2)
        self._seen: set[datetime] = set()
        self._count = 0

    @staticmethod
    def _key_of(key: Sequence[tuple[str, Any]]) -> str:
        return ", ".join(f"{field}: {direction}" for field, direction in key)

    def expect(self, *indexes: str, most: int, may_sort: bool = False) -> None:
        """Since the last call these indexes were used, and `most` documents were looked at."""
        self._database.command("profile", 0)
        # The ceiling of the revs is written now and then, whatever else goes on.
        others = {"planSummary": {"$exists": True}, "command.q._id": {"$ne": "rev"}}
        entries = list(self._database["system.profile"].find(others))
        self._database["system.profile"].drop()
        assert entries
        assert may_sort or not [entry for entry in entries if entry.get("hasSortStage")]
        used = set()
        for entry in entries:
            for plan in entry["planSummary"].split("}, "):
                key = re.fullmatch(r"(?:IXSCAN|COUNT_SCAN|DISTINCT_SCAN) \{ (.*?) ?\}?", plan)
                assert key or plan in ("IDHACK", "EOF"), f"{entry['planSummary']}: {entry['command']}"
                used.add(key.group(1).strip() if key else "")
        assert used <= set().union(*(self._keys[name] for name in indexes))
        assert [name for name in indexes if not used & self._keys[name]] == []
        assert sum(entry.get("docsExamined", 0) for entry in entries) <= most
        self._database.command("profile", 2)


# -- revs ----------------------------------------------------------------------------------------------------


async def test_a_clock_that_stepped_back_repeats_no_rev(store: MongoStore) -> None:
    """Were it that of MongoDB: a node that starts goes on above everything that was ever issued."""
    meta = store._connection.meta
    await meta.update_one(
        {"_id": "rev"}, {"$set": {"ceiling": 2_000_000_000_000 << COUNTER_BITS}}, upsert=True
    )
    issued = []
    for _ in range(2):
        revs = StoredRevs()
        await revs.open(meta)
        issued += [await revs.next() for _ in range(3)]
    assert issued == sorted(set(issued)) and issued[0] >> COUNTER_BITS >= 2_000_000_000_000


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
@pytest.mark.parametrize("when", ["before it opens", "while it is open"])
async def test_a_node_whose_clock_is_wrong(
    mongo_database: MongoDatabase,
    store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
    step_s: float,
    when: str,
) -> None:
    """Its revs are by MongoDB's clock, as those of the others: whoever is up to date there misses nothing of what is
    changed elsewhere. And it is not ready."""
    await store.ping()
    shift_s = step_s if when == "before it opens" else 0.0
    right_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + int(shift_s * 1e9))
    async with opened(mongo_database) as wrong:
        await wrong.position()
        shift_s = step_s
        positions = [await each.position() for each in (store, wrong, store, wrong)]
        gap_at = now()
        of_other = await put(store)
        overlap = int(store.changes_overlap_s * 1000) << COUNTER_BITS
        assert of_other.rev > max(positions) - overlap
        assert all(
            abs(each - (right_ns() // 1_000_000 << COUNTER_BITS)) < 10_000 << COUNTER_BITS
            for each in positions
        )
        assert of_other.rev > wrong.position_at(gap_at) - overlap
        with pytest.raises(Trouble, match=r"the clocks of this node and of MongoDB differ by 3600 s"):
            await wrong.ping()


@pytest.mark.parametrize("step_s", [8.0, -8.0])
@pytest.mark.parametrize("kind", ["one user", "several users", "with a key"])
async def test_mail_of_a_node_whose_clock_differs(
    mongo_database: MongoDatabase,
    store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
    step_s: float,
    kind: str,
) -> None:
    """When it is due, and how long ago its notification came, goes by MongoDB's clock. Else it came late; or who was
    there right before the notification was taken for somebody who is there since, and got none."""
    shift_s, right_ns = 0.0, time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + int(shift_s * 1e9))
    users = USERS[:1] if kind == "one user" else USERS[:3]
    async with opened(mongo_database) as other:
        shift_s, began_at = step_s, time.monotonic()
        at = now()
        later = at + timedelta(seconds=50)
        owed = [MailRecipient(USERS[0], "a@example.test", at, False)]
        owed += [MailRecipient(user, f"{user}@example.test", later, True) for user in users[1:]]
        duty = EmailDuty(Mail("subject", "content"), tuple(owed))
        once = Once("key", b"what", 60) if kind == "with a key" else None
        recipients = [Recipient(each.user_id, each.email) for each in owed]
        await other.add(make_notification(created_at=at), recipients, duty, once)
        shift_s = 0.0
        accepted_at = at - timedelta(seconds=step_s)
        [job] = await store.claim_mail(600, 10)
        assert [each.user_id for each in job.recipients] == USERS[:1]
        assert job.accepted_s_ago is not None
        assert -1 < job.accepted_s_ago < time.monotonic() - began_at + 1
        assert abs(job.recipients[0].due_at - accepted_at) < timedelta(seconds=1)
        shift_s = step_s
        again = PostponedMail(USERS[0], "a@example.test", 451, "later", now() + timedelta(seconds=50))
        await other.settle_mail(job, MailOutcome(retry=(again,)))
        shift_s = 0.0
        due_at = await store.next_mail_due()
        assert due_at is not None
        assert -1 < (due_at - accepted_at).total_seconds() - 50 < time.monotonic() - began_at + 1


async def test_a_change_goes_above_the_revs_of_a_faster_clock(
    store: MongoStore, raw: Database[dict[str, Any]]
) -> None:
    """The one rev of a change is greater than that of each document it changes, and is what they have."""
    documents = await put_many(store, 3, tenant=DEFAULT)
    ahead = documents[-1].rev + (3_600_000 << 16)
    raw["notifications"].update_one({"_id": ObjectId(documents[1].id)}, {"$set": {"rev": ahead}})
    for verb in (store.mark_seen, store.mark_unseen, store.delete, store.restore):
        change = await verb(DEFAULT, USER, ids(documents))
        assert change.rev is not None and change.rev > ahead
        assert {each["rev"] for each in raw["notifications"].find()} == {change.rev}
        ahead = change.rev


async def test_a_position_is_never_behind_what_a_node_changes_later(
    mongo_database: MongoDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is under the ceiling that is stored, so that not even the next start with a wrong clock goes below it."""
    async with opened(mongo_database) as store:
        position = await store.position()

    async def yesterday(revs: StoredRevs) -> None:
        revs._ahead_ms = ((now() - timedelta(days=1)).timestamp() - time.monotonic()) * 1000

    monkeypatch.setattr(StoredRevs, "_look_at_clock", yesterday)
    async with opened(mongo_database) as store:
        assert (await put(store)).rev > position
        assert await store.position() > position


async def test_no_node_lowers_the_ceiling_of_all(store: MongoStore, raw: Database[dict[str, Any]]) -> None:
    """Another one may have issued revs up to there, which the next to start has to go above."""
    ceiling = (await put(store)).rev + (1 << 40)
    raw["notifications_meta"].update_one({"_id": "rev"}, {"$set": {"ceiling": ceiling}})
    store._revs._ceiling = 0
    assert (await put(store)).rev < ceiling
    found = raw["notifications_meta"].find_one({"_id": "rev"})
    assert found is not None and found["ceiling"] == ceiling


async def test_a_ceiling_that_takes_longer_to_raise_than_it_leads_ahead(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while MongoDB is slow: all who wait for it get their revs by it, and need not raise it one by one."""
    monkeypatch.setattr(mongo_revs, "LEAD_MS", 1)
    meta, raised = store._connection.meta, []

    class Slow:
        database = meta.database

        async def update_one(self, *arguments: Any, **options: Any) -> None:
            raised.append(arguments)
            await asyncio.sleep(0.02)
            await meta.update_one(*arguments, **options)

    monkeypatch.setattr(store._revs, "_meta", Slow())
    monkeypatch.setattr(store._revs, "_ceiling", 0)
    positions = await asyncio.gather(*(store.position() for _ in range(20)))
    assert len(set(positions)) == 20 and len(raised) == 1


async def test_what_changes_between_finding_and_marking_all_up_to_a_rev(
    mongo_database: MongoDatabase, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device marks one unseen again, which is beyond the rev then: it stays so."""
    documents = await put_many(store, 3, tenant=DEFAULT)
    async with opened(mongo_database) as other:
        rev_above = store._changing._rev_above

        async def rev_after_the_other(found: Sequence[dict[str, Any]]) -> int:
            await other.mark_seen(DEFAULT, USER, [documents[1].id])
            await other.mark_unseen(DEFAULT, USER, [documents[1].id])
            # The other node may be ahead.
            [between] = await other.find(DEFAULT, USER, [documents[1].id])
            store._revs._clock.witness(between.rev)
            return await rev_above(found)

        monkeypatch.setattr(store._changing, "_rev_above", rev_after_the_other)
        change = await store.mark_all_seen(DEFAULT, USER, limit=9, up_to=documents[2].rev)
    assert change.ids == (documents[0].id, documents[2].id)
    assert ids(await store.unseen(DEFAULT, USER, after=None, limit=9)) == [documents[1].id]


@pytest.mark.parametrize("ahead", [0, 1], ids=["the same rev", "a higher rev"])
async def test_deleting_what_another_device_changes(
    store: MongoStore, raw: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Whatever rev it gives between reading and writing, twice, all tombstones have one above, that of the answer."""
    old = original(tenant=DEFAULT, nid=ObjectId())
    raw["notifications"].insert_one(old)
    deleted = [str(old["_id"]), *ids(await put_many(store, 4, tenant=DEFAULT))]
    quicker = iter([deleted[:1] + deleted[4:], deleted[4:]])
    rev_above = store._changing._rev_above
    given = 0

    async def rev_before_the_other(found: Sequence[dict[str, Any]]) -> int:
        nonlocal given
        rev = await rev_above(found)
        if changed := next(quicker, None):
            given = rev + ahead
            quickly = {"_id": {"$in": [ObjectId(id_) for id_ in changed]}, "delete": False}
            result = raw["notifications"].update_many(quickly, {"$set": {"seen": True, "rev": given}})
            assert result.modified_count == len(changed)
        return rev

    monkeypatch.setattr(store._changing, "_rev_above", rev_before_the_other)
    change = await store.delete(DEFAULT, USER, deleted)
    assert (change.ids, change.changed) == (tuple(deleted), 5)
    assert change.rev is not None and change.rev > given > 0
    tombstones = raw["notifications"].find({"delete": True})
    assert [(each["rev"], each["seen"]) for each in tombstones.sort("_id")] == [
        (change.rev, each in (deleted[0], deleted[4])) for each in sorted(deleted)
    ]


async def test_losing_a_race_for_some(
    mongo_database: MongoDatabase, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another device was quicker, a change counts and names only what it changed itself."""
    documents = await put_many(store, 6, tenant=DEFAULT)
    async with opened(mongo_database) as other:
        quicker = iter([ids(documents[1:3]), ids(documents[3:4]), ids(documents[:1])])
        rev_above = store._changing._rev_above

        async def rev_after_the_other(found: Sequence[dict[str, Any]]) -> int:
            await other.mark_seen(DEFAULT, USER, next(quicker))
            return await rev_above(found)

        monkeypatch.setattr(store._changing, "_rev_above", rev_after_the_other)
        change = await store.mark_all_seen(DEFAULT, USER, limit=4)
        assert change.ids == tuple(ids([documents[0], *documents[3:6]]))
        assert change.changed == 4
        inbox = {document.id: document.rev for document in await whole_inbox(store, tenant=DEFAULT)}
        assert {inbox[id_] for id_ in change.ids} == {change.rev}
        assert await store.mark_all_seen(DEFAULT, USER, limit=4) == Change((), 0, None)

        new = await put(store, tenant=DEFAULT)
        quicker = iter([[new.id]])
        assert await store.mark_seen(DEFAULT, USER, [new.id]) == Change((new.id,), 0, None)


async def test_marking_all_passes_over_what_others_have_changed(
    store: MongoStore, raw: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen just before keeps its rev; what is unseen again, with a higher one, is not waited for."""
    documents = await put_many(store, 6)
    rev_above = store._changing._rev_above

    async def rev_before_the_others(found: Sequence[dict[str, Any]]) -> int:
        rev = await rev_above(found)
        for document, change in ((documents[1], {"seen": True}), (documents[2], {"rev": rev + 1})):
            raw["notifications"].update_one({"_id": ObjectId(document.id)}, {"$set": change})
        return rev

    monkeypatch.setattr(store._changing, "_rev_above", rev_before_the_others)
    async with asyncio.timeout(30):
        change = await store.mark_all_seen(TENANT, USER, limit=9)
    assert change.ids == tuple(ids([documents[0], *documents[3:]]))
    assert ids(await store.unseen(TENANT, USER, after=None, limit=9)) == [documents[2].id]
    [seen] = await store.find(TENANT, USER, [documents[1].id])
    assert seen.rev == documents[1].rev


# -- one user: batches ---------------------------------------------------------------------------------------


async def test_concurrent_adds_share_round_trips(store: MongoStore, raw: Database[dict[str, Any]]) -> None:
    """A hundred requests at once take a few inserts, not a hundred."""
    raw.command("profile", 2)
    await asyncio.gather(*(put(store, f"user-{number}") for number in range(100)))
    raw.command("profile", 0)
    assert raw["notifications"].count_documents({}) == 100
    inserts = list(raw["system.profile"].find({"op": "insert", "ns": f"{raw.name}.notifications"}))
    assert sum(insert["ninserted"] for insert in inserts) == 100
    assert len(inserts) < 10


async def test_an_error_in_a_batch_is_its_own_requests(
    store: MongoStore, raw: Database[dict[str, Any]]
) -> None:
    """The other documents of the batch are stored."""
    await put(store, content="first")
    raw.command("collMod", "notifications", validator={"content": {"$ne": "bad"}})
    results = await asyncio.gather(
        *(put(store, content=content) for content in ("a", "bad", "b")), return_exceptions=True
    )
    assert isinstance(results[1], OperationFailure)
    assert_shows_no_content(results[1], "bad")
    assert isinstance(results[0], Document) and isinstance(results[2], Document)
    assert ids(await whole_inbox(store))[:2] == [results[2].id, results[0].id]


def assert_shows_no_content(error: BaseException, content: str) -> None:
    """Not even its traceback."""
    assert content not in "".join(traceback.format_exception(error))


async def test_too_many_waiting_is_busy(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the bound is refused at once; what came before it is stored."""
    await put(store)
    monkeypatch.setattr(mongo_batches, "MAX_WAITING_BYTES", 2000)
    results = await asyncio.gather(
        *(put(store, content="x" * 500) for _ in range(20)), return_exceptions=True
    )
    stored = [result for result in results if isinstance(result, Document)]
    assert {type(result) for result in results} == {Document, Busy}
    assert len(await whole_inbox(store)) == len(stored) + 1


async def test_batches_are_bounded(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By documents and by bytes; a document above the bound goes alone."""
    monkeypatch.setattr(mongo_batches, "MAX_BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(mongo_batches, "MAX_BATCH_BYTES", 2000)
    await asyncio.gather(*(put(store, content="x" * size) for size in (10, 5000, 10, 10, 10, 10, 5000)))
    assert len(await whole_inbox(store)) == 7


class Gate:
    """Holds up batches of a store that are about to be written, until it is open. `begun`: how large they are.
    `is_dry`: they are answered then, and not written."""

    def __init__(self, store: MongoStore, monkeypatch: pytest.MonkeyPatch, *, is_dry: bool = False) -> None:
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        self._is_dry = is_dry
        self._is_open = asyncio.Event()
        self._write = store._adding._batcher._write
        monkeypatch.setattr(store._adding._batcher, "_write", self._write_later)

    def open(self) -> None:
        self._is_open.set()

    async def _write_later(self, batch: Sequence[Any]) -> Any:
        self.begun.put_nowait(len(batch))
        await self._is_open.wait()
        return [None] * len(batch) if self._is_dry else await self._write(batch)


async def test_what_is_put_while_batches_are_under_way(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is sent while another is under way. What comes while as many as may be are goes together; closing waits
    for it."""
    gate = Gate(store, monkeypatch)
    tasks = []
    for _ in range(mongo_batches.MAX_FLIGHTS):
        tasks.append(asyncio.create_task(put(store)))
        assert await gate.begun.get() == 1
    tasks += [asyncio.create_task(put(store)) for _ in range(5)]
    await asyncio.sleep(0)
    assert gate.begun.empty()
    gate.open()
    await store.close()
    assert gate.begun.get_nowait() == 5
    assert len({(await task).id for task in tasks}) == len(tasks)


async def test_who_was_answered_or_gave_up_is_not_counted(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who come next wait for each other as ever."""
    monkeypatch.setattr(flights, "GATHER_S", 60.0)
    await put(store)
    gate = Gate(store, monkeypatch)
    gate.open()
    tasks = [asyncio.create_task(put(store)) for _ in range(flights.GATHERED_AT_ONCE + 2)]
    await asyncio.sleep(0)
    for task in tasks[2:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(2):
        assert gate.begun.get_nowait() == 2
        tasks = []
        for _ in range(2):
            tasks.append(asyncio.create_task(put(store)))
            for _ in range(flights.QUIET_TURNS - 1):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert gate.begun.get_nowait() == 2


async def test_batches_that_are_answered_in_the_same_turn(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes again at once, before anything else happens, is not left waiting."""
    gate = Gate(store, monkeypatch, is_dry=True)

    async def put_some(count: int) -> None:
        for _ in range(count):
            await put(store)

    tasks = []
    for count in (2, *[1] * (mongo_batches.MAX_FLIGHTS - 1)):
        tasks.append(asyncio.create_task(put_some(count)))
        await gate.begun.get()
    gate.open()
    async with asyncio.timeout(5.0):
        await asyncio.gather(*tasks)


async def test_what_is_too_late_is_not_sent(
    mongo_database: MongoDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits longer than a verb may take is told so, and what was not sent by then is not stored."""
    async with opened(mongo_database, timeout_s=1.0) as store:
        with monkeypatch.context() as patch:
            gate = Gate(store, patch)
            tasks = []
            for number in range(mongo_batches.MAX_FLIGHTS):
                tasks.append(asyncio.create_task(put(store, content=f"sent {number}")))
                await gate.begun.get()
            tasks.append(asyncio.create_task(put(store, content="not sent")))
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            gate.open()
            await store._adding.close()
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert gate.begun.empty()
        await put(store, content="later")
        contents = {document.notification.content for document in await whole_inbox(store)}
        assert "later" in contents and "not sent" not in contents


@pytest.mark.parametrize("recipients", [RECIPIENTS[:1], RECIPIENTS], ids=["one", "several"])
async def test_more_than_mongodb_takes(
    store: MongoStore, raw: Database[dict[str, Any]], recipients: list[Recipient]
) -> None:
    """A clear refusal, and nothing is stored."""
    with pytest.raises(TooLarge, match="MongoDB"):
        await store.add(make_notification(data="x" * 17_000_000), recipients, None)
    assert raw["notifications"].count_documents({}) == raw["notifications_intents"].count_documents({}) == 0


async def test_an_answer_that_got_lost(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that was stored though its request was told otherwise is completed, once."""
    write = store._adding._batcher._write

    async def insert_and_lose_the_answer(batch: Any) -> Any:
        await write(batch)
        raise StoreUnavailable()

    monkeypatch.setattr(store._adding._batcher, "_write", insert_and_lose_the_answer)
    with pytest.raises(StoreUnavailable):
        await put(store)
    assert await store.complete_intents() == []
    monkeypatch.setattr(store._adding._doubts, "_grace_s", 0.0)
    assert await store.complete_intents() == await whole_inbox(store)
    assert await store.complete_intents() == []


@pytest.mark.parametrize("way", ["many", "broadcast"])
async def test_long_ones_are_written_a_few_at_a_time(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What is encoded and sent at once holds up everybody."""
    insert_missing, sizes = store._adding._insert_missing, []

    async def note_the_size(documents: Any) -> Any:
        sizes.append(sum(len(each.raw) for each in documents))
        return await insert_missing(documents)

    monkeypatch.setattr(store._adding, "_insert_missing", note_the_size)
    users = [f"user {number}" for number in range(100)]
    notification = make_notification(content="x" * 60_000, data={"text": "x" * 60_000})
    if way == "many":
        documents = (await store.add(notification, [Recipient(user) for user in users], None)).documents
    else:
        documents = list(await store.broadcasts.expand(notification, users))
    assert sorted(document.user_id for document in documents) == sorted(users)
    assert len(sizes) > 1
    assert max(sizes) < 1.1 * MAX_BATCH_BYTES


async def test_a_batch_is_not_bound_by_what_binds_its_first_caller(store: MongoStore) -> None:
    """Those who come later, while it is still under way, go with it."""
    deadline: ContextVar[str | None] = ContextVar("deadline", default=None)
    seen: list[str | None] = []

    class Noting(Batches[str, None]):
        async def _write(self, items: Sequence[str]) -> Sequence[None]:
            seen.append(deadline.get())
            return [None] * len(items)

    batches = Noting(store._connection)
    deadline.set("of the first")
    await batches.put("first", 1)
    assert seen == [None]
    await batches.close()


# -- everybody: broadcasts -----------------------------------------------------------------------------------


async def test_an_expansion_whose_answer_got_lost(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has stored is completed, once, but for what its users have changed since; who asks again stores the
    rest."""
    monkeypatch.setattr(mongo_adding, "CHUNK_DOCUMENTS", 3)
    notification = make_notification()
    insert_missing, calls = store._adding._insert_missing, 0

    async def insert_and_lose_the_second_answer(documents: Any) -> Any:
        nonlocal calls
        calls += 1
        result = await insert_missing(documents)
        if calls == 2:
            raise AutoReconnect
        return result

    monkeypatch.setattr(store._adding, "_insert_missing", insert_and_lose_the_second_answer)
    with pytest.raises(StoreUnavailable):
        await store.broadcasts.expand(notification, USERS)
    [new] = await store.broadcasts.expand(notification, USERS)
    assert new.user_id == USERS[6]
    [seen] = await whole_inbox(store, USERS[2])
    await store.mark_seen("acme", USERS[2], [seen.id])
    assert await store.complete_intents() == []
    monkeypatch.setattr(store._adding._doubts, "_grace_s", 0.0)
    completed = await store.complete_intents()
    assert [document.user_id for document in completed] == [*USERS[:2], *USERS[3:6]]
    assert await store.complete_intents() == []
    assert len(await inboxes(store)) == len(USERS)


async def test_the_id_of_a_broadcasts_document(store: MongoStore) -> None:
    """It follows from notification and user, begins with the time as all ids do, and tells nothing of the others."""
    first, second = make_notification(), make_notification()
    documents = await store.broadcasts.expand(first, ["a", "b"])
    documents += await store.broadcasts.expand(second, ["a", "b"])
    assert len({document.id[8:] for document in documents}) == 4
    seconds = [ObjectId(document.id).generation_time for document in documents]
    assert seconds == [each.notification.created_at.replace(microsecond=0) for each in documents]


async def test_a_broadcast_that_is_refused(store: MongoStore, raw: Database[dict[str, Any]]) -> None:
    """Its documents are refused without their content; what is too large is not accepted at all."""
    refuse(raw)
    notification = make_notification(content=REFUSED)
    await store.broadcasts.add(notification)
    with pytest.raises(BroadcastRefused, match="refuses the document") as refused:
        await store.broadcasts.expand(notification, USERS)
    assert REFUSED not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(TooLarge):
        await store.broadcasts.add(make_notification(data="x" * 17_000_000))
    assert await store.broadcasts.count_open() == 0


# -- counts --------------------------------------------------------------------------------------------------


async def test_counts_of_few_types_and_of_many(
    store: MongoStore, mongo_database: MongoDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are the same by either way, in the same order, and nobody else's; a type that is no text counts as none."""
    for count, type_ in ((3, "a"), (1, "b"), (5, "c"), (1, "a "), (2, "")):
        documents = await put_many(store, count, type=type_)
        await store.mark_seen(TENANT, USER, [documents[0].id])
    [deleted] = await put_many(store, 1, type="d")
    await store.delete(TENANT, USER, [deleted.id])
    await put(store, "bob", type="a")
    odd = await put(store, type="e")
    client: MongoClient[dict[str, Any]]
    with MongoClient(mongo_database.url) as client:
        notifications = client[mongo_database.name].notifications
        assert notifications.update_one({"_id": ObjectId(odd.id)}, {"$set": {"type": 7}}).modified_count == 1
    quick = (await store.counts(TENANT, [USER]))[USER]
    assert (quick.unseen, quick.total) == (8, 13)
    assert list(quick.types.items()) == [
        ("c", TypeCounts(4, 5)),
        ("", TypeCounts(2, 3)),
        ("a", TypeCounts(2, 3)),
        ("a ", TypeCounts(0, 1)),
        ("b", TypeCounts(0, 1)),
    ]
    monkeypatch.setattr(mongo_reading, "FEW_DOCUMENTS", 12)
    assert (await store.counts(TENANT, [USER]))[USER] == quick
    monkeypatch.setattr(mongo_reading, "FEW_TYPES", 4)
    grouped = (await store.counts(TENANT, [USER]))[USER]
    assert (grouped.unseen, grouped.total, dict(grouped.types)) == (8, 13, dict(quick.types))
    assert await store.count_unseen(TENANT, [USER]) == {USER: 8}
    assert await store.count_unseen(TENANT, [USER, "bob", "nobody"]) == {USER: 8, "bob": 1, "nobody": 0}


async def test_counting_goes_on_after_a_connection_broke(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question is asked once more; if that does not help, the store is away."""
    await put(store)
    command = AsyncDatabase.command
    failures = [AutoReconnect("broke")]

    async def breaking(self: AsyncDatabase[Any], question: Any, **options: Any) -> Any:
        if "count" in question and failures:
            raise failures.pop()
        return await command(self, question, **options)

    monkeypatch.setattr(AsyncDatabase, "command", breaking)
    assert await store.count_unseen(TENANT, [USER]) == {USER: 1}
    failures += [AutoReconnect("broke"), AutoReconnect("broke")]
    with pytest.raises(StoreUnavailable):
        await store.count_unseen(TENANT, [USER])


# -- documents of the original -------------------------------------------------------------------------------


async def test_changes_of_the_originals_documents(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """They have no rev: they come before all others, by their ids, in portions, too."""
    old = sorted((original(number) for number in range(7)), key=lambda each: each["_id"])
    raw["notifications"].insert_many(old[::-1])
    async with opened(mongo_database) as store:
        new = await put(store, tenant=DEFAULT)
        changed = await store.delete(DEFAULT, USER, [str(old[2]["_id"])])
        expected = [*(str(each["_id"]) for each in old if each is not old[2]), new.id, str(old[2]["_id"])]
        found: list[Document] = []
        after = (0, "")
        while some := await store.changes(DEFAULT, USER, after=after, limit=2):
            found += some
            after = (some[-1].rev, some[-1].id)
        assert ids(found) == expected
        assert [each.rev for each in found] == [0] * 6 + [new.rev, changed.rev]
        assert ids(await store.changes(DEFAULT, USER, after=(1, ""), limit=9)) == expected[6:]


async def test_deliveries_of_the_originals_documents(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """What it has seen or deleted was delivered when that was; its unseen ones were sent in no way."""
    unseen, seen, deleted = original(1), original(2, seen=True), original(3, delete=True)
    at = datetime(2015, 6, 1, 10)
    for each in (seen, deleted):
        each["updatedAt"] = at
    raw["notifications"].insert_many([unseen, seen, deleted])
    async with opened(mongo_database) as store:

        async def delivered_at(document: dict[str, Any]) -> datetime | None:
            nid = str(document["_id"])
            [delivery] = await store.deliveries.of_notification(DEFAULT, nid, after=None, limit=9)
            return delivery.delivered_at

        then = at.replace(tzinfo=UTC)
        assert [await delivered_at(each) for each in (unseen, seen, deleted)] == [None, then, then]
        waiting = await store.deliveries.backlog(DEFAULT, USER, HUB, since=None, after=None, limit=9)
        assert ids(waiting) == [str(unseen["_id"])]
        await store.delete(DEFAULT, USER, [str(seen["_id"])])
        assert await delivered_at(seen) == then


async def test_the_originals_documents_come_back(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """Those without an `updatedAt`, too: what is no longer seen or deleted was delivered when it was made at the
    latest."""
    seen, deleted = original(2, seen=True), original(3, delete=True, deletedAt=datetime(2015, 6, 1, 10))
    for each in (seen, deleted):
        del each["updatedAt"]
    raw["notifications"].insert_many([seen, deleted])
    async with opened(mongo_database) as store:
        unseen = await store.mark_unseen(DEFAULT, USER, [str(seen["_id"])])
        restored = await store.restore(DEFAULT, USER, [str(deleted["_id"])])
        assert (unseen.changed, restored.changed) == (1, 1)
        assert await store.counts(DEFAULT, [USER]) == {USER: Counts(2, 2, {"info": TypeCounts(2, 2)})}
        for document in await whole_inbox(store, tenant=DEFAULT):
            assert (document.seen, document.deleted, document.deleted_at) == (False, False, None)
            nid = document.notification.nid
            [delivery] = await store.deliveries.of_notification(DEFAULT, nid, after=None, limit=9)
            assert delivery.delivered_at == document.created_at


async def test_types_that_the_original_did_not_write(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """Whatever is no text is read, counted and found as an empty one; a revless document is changed up to any rev."""
    old = [original(number, type=type_) for number, type_ in enumerate(["", None, "info", "x"])]
    del old[3]["type"]
    raw["notifications"].insert_many(old)
    async with opened(mongo_database) as store:
        assert await store.counts(DEFAULT, [USER]) == {
            USER: Counts(4, 4, {"": TypeCounts(3, 3), "info": TypeCounts(1, 1)})
        }
        empty = await store.newest(DEFAULT, USER, before=None, limit=9, type="")
        assert ids(empty) == [str(old[number]["_id"]) for number in (3, 1, 0)]
        assert {each.notification.type for each in empty} == {""}
        assert (await store.mark_all_seen(DEFAULT, USER, limit=9, up_to=1)).changed == 4
        assert len(await store.newest(DEFAULT, USER, before=None, limit=2, type="", seen=True)) == 2


# -- several users: intents ----------------------------------------------------------------------------------


def mail_to(user_id: str, due_at: datetime | None = None) -> MailRecipient:
    return MailRecipient(user_id, f"{user_id}@example.test", due_at or now() - timedelta(minutes=1))


def duty() -> EmailDuty:
    return EmailDuty(Mail("subject", "content"), tuple(map(mail_to, USERS)))


class Crash(Exception):
    """The process ends here."""


def grow_old(raw: Database[dict[str, Any]]) -> None:
    """As if the open intents had been left long ago."""
    raw["notifications_intents"].update_many(
        {"openedAt": {"$exists": True}}, {"$set": {"openedAt": now() - timedelta(hours=1)}}
    )


async def inboxes(store: MongoStore) -> list[Document]:
    return [document for user in USERS for document in await whole_inbox(store, user)]


@pytest.mark.parametrize("owed", [None, duty()], ids=["no-mail", "mail"])
@pytest.mark.parametrize("step", ["_insert_missing", "second _insert_missing", "_close_intent"])
async def test_a_crash_in_the_middle_is_completed(
    mongo_database: MongoDatabase,
    store: MongoStore,
    raw: Database[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    owed: EmailDuty | None,
) -> None:
    """At whatever step the writer ends: not before its time, then as a whole, once, and with the mail."""
    monkeypatch.setattr(mongo_adding, "CHUNK_DOCUMENTS", 3)
    number, name = (2, step.removeprefix("second ")) if "second" in step else (1, step)
    crash_at(monkeypatch, store, name, number)
    notification = make_notification(content="c", data={"a": 2**70})
    with pytest.raises(Crash):
        await store.add(notification, RECIPIENTS, owed)
    assert await store.mail_counts() == MailCounts(0, 0)
    assert await store.complete_intents() == []

    grow_old(raw)
    async with opened(mongo_database) as other:
        completed = await other.complete_intents()
        assert [document.user_id for document in completed] == USERS
        assert all(document.notification == notification for document in completed)
        assert await inboxes(other) == completed
        assert await other.complete_intents() == []
        jobs = await other.claim_mail(60, 10)
        assert [job.recipients for job in jobs] == ([owed.recipients] if owed else [])
    assert raw["notifications_intents"].count_documents({}) == len(jobs)


def crash_at(monkeypatch: pytest.MonkeyPatch, store: MongoStore, name: str, number: int) -> None:
    """The store's process ends at the `number`-th call of this step."""
    step = getattr(store._adding, name)
    calls = 0

    async def crashing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Crash
        return await step(*arguments)

    monkeypatch.setattr(store._adding, name, crashing)


async def test_what_was_completed_before_the_store_went_away_is_told(
    store: MongoStore, raw: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sweep finds it again; the rest is left to the next one."""
    for _ in range(2):
        await leave_open(store, monkeypatch, "c")
    grow_old(raw)
    complete_next, calls = store._adding._complete_next, 0

    async def once() -> list[Document] | None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise StoreUnavailable
        return await complete_next()

    with monkeypatch.context() as patch:
        patch.setattr(store._adding, "_complete_next", once)
        assert len(await store.complete_intents()) == len(USERS)
        with pytest.raises(StoreUnavailable):
            await store.complete_intents()
    assert len(await store.complete_intents()) == len(USERS)


async def test_several_nodes_complete_at_once(
    mongo_database: MongoDatabase,
    store: MongoStore,
    raw: Database[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each document is stored once and returned by one of them, and each mail is owed once."""
    for _ in range(10):
        with monkeypatch.context() as patch:
            crash_at(patch, store, "_insert_missing", 1)
            with pytest.raises(Crash):
                await store.add(make_notification(), RECIPIENTS, duty())
    grow_old(raw)
    async with opened(mongo_database) as second, opened(mongo_database) as third:
        nodes = (store, second, third)
        completed = sum(await asyncio.gather(*(node.complete_intents() for node in nodes)), [])
    assert sorted(ids(completed)) == sorted(ids(await inboxes(store)))
    assert len(completed) == 10 * len(USERS)
    assert await store.mail_counts() == MailCounts(10 * len(USERS), 0)


async def test_a_writer_that_was_merely_slow(
    mongo_database: MongoDatabase,
    store: MongoStore,
    raw: Database[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completed by another node, and mailed, and seen by a user meanwhile: it adds nothing and owes nothing again."""
    insert_missing = store._adding._insert_missing
    goes_on, is_waiting = asyncio.Event(), asyncio.Event()

    async def wait_and_insert(documents: Any) -> bool:
        is_waiting.set()
        await goes_on.wait()
        return await insert_missing(documents)

    monkeypatch.setattr(store._adding, "_insert_missing", wait_and_insert)
    adding = asyncio.create_task(store.add(make_notification(), RECIPIENTS, duty()))
    await is_waiting.wait()
    grow_old(raw)
    async with opened(mongo_database) as other:
        completed = await other.complete_intents()
        [job] = await other.claim_mail(60, 10)
        assert await other.settle_mail(job, MailOutcome(sent=job.recipients))
        await other.mark_seen("acme", USERS[0], [completed[0].id])
    goes_on.set()
    added = (await adding).documents
    assert ids(added) == ids(completed)
    assert added == await inboxes(store)
    assert added[0].seen
    assert await store.mail_counts() == MailCounts(0, 0)
    assert raw["notifications_intents"].count_documents({}) == 0


REFUSED = "c0ntent"
"""A content that a validator of the operator's does not take."""


def refuse(raw: Database[dict[str, Any]], **where: Any) -> None:
    """From now on documents like that are refused; by default those with the content `REFUSED`."""
    raw["notifications"].insert_one(
        original(_userId="somebody", tenant="else")
    )  # The collection must be there.
    raw.command("collMod", "notifications", validator={"$nor": [where or {"content": REFUSED}]})


async def leave_open(store: MongoStore, monkeypatch: pytest.MonkeyPatch, content: str) -> str:
    """The intent of a writer that ended before its documents; the nid."""
    notification = make_notification(content=content)
    with monkeypatch.context() as patch:
        crash_at(patch, store, "_insert_missing", 1)
        with pytest.raises(Crash):
            await store.add(notification, RECIPIENTS, duty())
    return notification.nid


async def test_a_refused_notification_leaves_nothing(
    store: MongoStore, raw: Database[dict[str, Any]]
) -> None:
    """The caller has the error, without the content; there is nothing to complete."""
    refuse(raw)
    with pytest.raises(OperationFailure, match="refuses the document") as refused:
        await store.add(make_notification(content=REFUSED), RECIPIENTS, duty())
    assert_shows_no_content(refused.value, REFUSED)
    assert raw["notifications_intents"].count_documents({}) == 0
    assert await inboxes(store) == []


async def test_a_notification_refused_for_some_is_set_aside(
    store: MongoStore, raw: Database[dict[str, Any]]
) -> None:
    """Not forgotten, since some users have it, but not tried again; its mail is not sent."""
    refuse(raw, _userId=USERS[3])
    with pytest.raises(OperationFailure, match="refuses the document"):
        await store.add(make_notification(), RECIPIENTS, duty())
    [intent] = raw["notifications_intents"].find()
    assert "openedAt" not in intent
    assert now() - intent["failedAt"] < timedelta(minutes=5)
    assert await store.claim_mail(60, 10) == []


async def test_a_refused_intent_is_not_in_the_way(
    store: MongoStore,
    raw: Database[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those behind it are completed; it is told once, by its nid, and kept: the operator can have it tried again."""
    refused = await leave_open(store, monkeypatch, REFUSED)
    good = [await leave_open(store, monkeypatch, "good") for _ in range(2)]
    refuse(raw)
    grow_old(raw)
    completed = await store.complete_intents()
    assert Counter(document.notification.nid for document in completed) == dict.fromkeys(good, len(USERS))
    assert await store.complete_intents() == []
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert refused in record.getMessage() and "121" in record.getMessage()
    assert REFUSED not in caplog.text
    assert len(await store.claim_mail(60, 10)) == len(good)

    raw.command("collMod", "notifications", validator={})
    past = now() - timedelta(hours=1)
    raw["notifications_intents"].update_one({"failedAt": {"$exists": True}}, {"$set": {"openedAt": past}})
    assert [each.notification.nid for each in await store.complete_intents()] == [refused] * len(USERS)
    assert len(await store.claim_mail(60, 10)) == 1
    assert raw["notifications_intents"].count_documents({"failedAt": {"$exists": True}}) == 0


@pytest.mark.parametrize("code", [91, 14031, 133, 202, 365])
async def test_an_error_that_passes_is_no_refusal(
    store: MongoStore, raw: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The intent stays open, though another document is refused: what may be stored later is."""
    errors = [{"index": index, "code": each, "errmsg": ""} for index, each in enumerate((121, code, 11000))]
    await leave_open(store, monkeypatch, "good")
    grow_old(raw)

    async def fail(*arguments: Any, **options: Any) -> None:
        raise BulkWriteError({"writeErrors": errors, "writeConcernErrors": []})

    with monkeypatch.context() as patch:
        patch.setattr(type(store._connection.documents), "insert_many", fail)
        with pytest.raises(StoreUnavailable):
            await store.complete_intents()
        with pytest.raises(StoreUnavailable):
            await store.add(make_notification(), RECIPIENTS, None)
    assert raw["notifications_intents"].count_documents({"openedAt": {"$exists": True}}) == 2
    assert len(await store.complete_intents()) == len(USERS)


@pytest.mark.parametrize("verb", ["insert_many", "bulk_write"])
@pytest.mark.parametrize("users", [1, 3])
async def test_what_no_majority_has_confirmed_is_answered_by_nobody(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch, verb: str, users: int
) -> None:
    """It may be rolled back, with the node that has it."""
    collection = type(store._connection.documents)
    write = getattr(collection, verb)

    async def unconfirmed(*arguments: Any, **options: Any) -> None:
        await write(*arguments, **options)
        errors = [{"code": 64, "errmsg": "waiting for replication timed out"}]
        raise BulkWriteError({"writeErrors": [], "writeConcernErrors": errors, "upserted": []})

    once = Once("key", b"f" * 32, 60.0) if verb == "bulk_write" else None
    await store.add(make_notification(), RECIPIENTS[:users], None)  # the users are known from then on
    with monkeypatch.context() as patch:
        patch.setattr(collection, verb, unconfirmed)
        with pytest.raises(StoreUnavailable):
            await store.add(make_notification(), RECIPIENTS[:users], None, once)


# -- mail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", [USERS[:1], USERS[:2]], ids=["one", "several"])
async def test_settled_mail_leaves_nothing_behind(
    store: MongoStore, raw: Database[dict[str, Any]], users: list[str]
) -> None:
    """Neither in the document nor elsewhere."""
    await owe(store, *map(mail_to, users))
    [job] = await store.claim_mail(60, 10)
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert raw["notifications_intents"].count_documents({}) == 0
    assert raw["notifications"].count_documents({"mail": {"$exists": True}}) == 0


@pytest.mark.parametrize("users", [USERS[:1], USERS[:2]], ids=["one", "several"])
async def test_refused_mail_keeps_its_reason(
    store: MongoStore, raw: Database[dict[str, Any]], users: list[str]
) -> None:
    """Where an operator finds it, no longer claimable; the inbox is read without it."""
    await owe(store, *map(mail_to, users))
    [job] = await store.claim_mail(60, 10)
    refused = tuple(RefusedMail(each.user_id, each.email, 550, "no such user") for each in job.recipients)
    assert await store.settle_mail(job, MailOutcome(refused=refused))
    place = raw["notifications" if len(users) == 1 else "notifications_intents"]
    [found] = place.find({"mail": {"$exists": True}})
    assert [(each["_userId"], each["code"], each["reason"]) for each in found["mail"]["refused"]] == [
        (user, 550, "no such user") for user in users
    ]
    assert not {"due", "lease", "leasedUntil", "recipients"} & set(found["mail"])
    assert await store.next_mail_due() is None


# -- a server that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        AutoReconnect("reset"),
        WTimeoutError("waiting for replication timed out", 64),
        ExecutionTimeout("operation exceeded time limit", 50),
        OperationFailure("no primary in the shard", 133),
        OperationFailure("Couldn't get a connection within the time limit", 202),
        OperationFailure("Read concern majority reads are currently not possible", 134),
        OperationFailure("socket exception", 9001),
        OperationFailure("operation was interrupted", 11601),
        OperationFailure("Unable to acquire IX lock", 24),
        CursorNotFound("cursor id 1 not found", 43),
        OperationFailure("Executor error during getMore :: caused by :: collection dropped", 175),
        OperationFailure("cursor was killed", 237),
        OperationFailure("Transaction numbers are only allowed on a replica set member or mongos", 20),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_that_mean_unavailable(store: MongoStore, error: PyMongoError) -> None:
    """What is not there or not in time is worth another try; the error of pymongo is its cause."""
    with pytest.raises(StoreUnavailable) as unavailable, store._connection.operation():
        raise error
    assert unavailable.value.__cause__ is error


async def test_errors_that_mean_something_else(store: MongoStore) -> None:
    """They stay what they are."""
    with pytest.raises(OperationFailure, match="validation"), store._connection.operation():
        raise OperationFailure("validation", 121)


async def test_a_frozen_server(own_mongod: Mongod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb gives up in time; an add that it caught in the middle is completed as a whole when it is back."""
    database = MongoDatabase(own_mongod.url, "inbox")
    async with opened(database, timeout_s=0.5) as store:
        before = await put(store)
        open_intent = store._adding._open_intent

        async def open_and_freeze(*arguments: Any) -> Any:
            intent = await open_intent(*arguments)
            own_mongod.freeze()
            return intent

        monkeypatch.setattr(store._adding, "_open_intent", open_and_freeze)
        with pytest.raises(StoreUnavailable):
            await store.add(make_notification(), RECIPIENTS, duty())
        for verb in (
            store.ping(),
            put(store, "frozen"),
            store.count_unseen(DEFAULT, [USER]),
            store.claim_mail(1, 1),
        ):
            with pytest.raises(StoreUnavailable):
                await verb
        own_mongod.thaw()

        completed: list[Document] = []
        while not [document for document in completed if document.user_id in USERS]:
            completed += await until_it_succeeds(store.complete_intents)
            await asyncio.sleep(0.05)
        assert await inboxes(store) == [document for document in completed if document.user_id in USERS]
        assert len(await inboxes(store)) == len(USERS)
        assert await whole_inbox(store) == [before]
        assert await store.mail_counts() == MailCounts(len(USERS), 0)


async def test_pymongo_does_not_say_once_more_that_the_server_is_away(
    own_mongod: Mongod, caplog: pytest.LogCaptureFixture
) -> None:
    """With a traceback, about its own housekeeping; anything else that goes wrong there is to be seen."""
    async with AsyncMongoClient[Any](own_mongod.url, serverSelectionTimeoutMS=50) as client:
        await client.admin.command("ping")
        own_mongod.kill()
        client._close_cursor_soon(1, _CursorAddress(("127.0.0.1", own_mongod.port), "db.documents"))
        await client._process_kill_cursors()
        assert not caplog.records
        client._close_cursor_soon(1, 7)  # type: ignore[arg-type]  # no address
        await client._process_kill_cursors()
    [record] = caplog.records
    assert record.exc_info is not None


async def test_killing_the_server_under_load(own_mongod: Mongod) -> None:
    """What was acknowledged is there after its restart, each notification whole or not at all, and the store serves
    again by itself."""
    database = MongoDatabase(own_mongod.url, "inbox")
    async with opened(database, timeout_s=3.0) as store:
        acknowledged, failed = await kill_in_the_middle(store, own_mongod)
        assert failed
        own_mongod.start()
        await until_it_succeeds(lambda: put(store, "again"))
        with own_mongod.client() as client:
            grow_old(client["inbox"])
        completed = await store.complete_intents()
        assert set(ids(completed)).isdisjoint(ids(acknowledged))
        stored = await inboxes(store)
        assert set(ids(acknowledged)) <= set(ids(stored))
        copies = Counter(document.notification.nid for document in stored)
        assert set(copies.values()) <= {1, len(USERS)}


async def kill_in_the_middle(store: MongoStore, mongod: Mongod) -> tuple[list[Document], list[ServerError]]:
    """The documents of the adds that succeeded, and the errors of those that did not."""
    acknowledged: list[Document] = []
    failed: list[ServerError] = []
    has_some = asyncio.Event()

    async def keep_adding(recipients: list[Recipient]) -> None:
        while not failed:
            try:
                acknowledged.extend((await store.add(make_notification(), recipients, None)).documents)
            except StoreUnavailable as exc:
                failed.append(exc)
            if len(acknowledged) > 100:
                has_some.set()

    adding = [asyncio.create_task(keep_adding([recipient])) for recipient in RECIPIENTS]
    adding += [asyncio.create_task(keep_adding(RECIPIENTS)) for _ in range(4)]
    await has_some.wait()
    await asyncio.to_thread(mongod.kill)
    await asyncio.gather(*adding)
    return acknowledged, failed


# -- retention -----------------------------------------------------------------------------------------------


async def removed(store: MongoStore) -> int:
    """How many documents and tombstones went, of all that there are."""
    steps = [step async for step in store.retention.remove(TENANT, Bounds(now(), MAX_REV, now()), 100)]
    return sum(step.documents + step.tombstones for step in steps)


async def test_what_is_not_complete_has_its_time_still_to_come(
    store: MongoStore, raw: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come again when it is completed. Its mail is sent first."""
    long_ago = now() - timedelta(days=9)
    with monkeypatch.context() as patch:
        crash_at(patch, store, "_close_intent", 1)
        with pytest.raises(Crash):
            await store.add(make_notification(created_at=long_ago), RECIPIENTS, duty())
    assert await removed(store) == 0
    grow_old(raw)
    await store.complete_intents()
    [job] = await store.claim_mail(60, 10)
    assert await removed(store) == 0
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert await removed(store) == len(USERS)


async def test_a_tombstone_that_is_restored_while_it_is_about_to_go_stays(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a document again, and not an old one."""
    [document] = await put_many(store, 1)
    await store.delete(TENANT, USER, [document.id])
    owing = MongoRetention._owing

    async def restored(*arguments: Any) -> Any:
        await store.restore(TENANT, USER, [document.id])
        return await owing(*arguments)

    monkeypatch.setattr(MongoRetention, "_owing", restored)
    async for _ in store.retention.remove(TENANT, Bounds(None, MAX_REV, now() + timedelta(days=1)), 100):
        pass
    assert ids(await whole_inbox(store)) == [document.id]
