"""A store that is whole is found so, whatever has happened to it; each kind of damage is found, and mended."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.database import Database

from server.grants import ALL_SCOPES, DEFAULT_TENANT, ApiKey, Tenant, hash_secret
from server.ids import new_id
from server.messages import MailRecipient, Recipient, now
from server.revs import COUNTER_BITS
from server.store import Horizon, MailOutcome, Once, RefusedMail, Store
from server.store.mongo_connection import Connection
from server.store.mongo_fsck_kinds import Kinds
from server.store.sqlite_fsck_kinds import KINDS
from tests.support.command import Command, Outcome, no_variables
from tests.support.old_stores import put_old_store
from tests.support.stores import (
    TENANT,
    MongoPlace,
    Place,
    SQLitePlace,
    fresh_place,
    make_notification,
    owe,
    put,
    put_many,
    whole_inbox,
)

Raw = dict[str, Any]

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
FUTURE_MS = 4_102_444_800_000


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    no_variables(monkeypatch, folder)
    return Command(capsys)


def use(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the configuration name this place."""
    if isinstance(place, SQLitePlace):
        monkeypatch.setenv("NOTIFY_APPLICATION_DATA", str(place.path.parent))
    else:
        assert isinstance(place, MongoPlace)
        monkeypatch.setenv("NOTIFY_MONGODB_URL", place.url)
        monkeypatch.setenv("NOTIFY_MONGODB_DB", place.db)


async def fsck(run: Command, *arguments: str) -> tuple[int, Any]:
    """The exit code, and what it says as JSON."""
    outcome = await asyncio.to_thread(run, "fsck", "--json", *arguments)
    assert outcome.out, outcome.err
    return outcome.code, outcome.json()


async def fill(store: Store) -> None:
    """A little of everything."""
    key = ApiKey(new_id(), TENANT, "first", hash_secret("x"), ALL_SCOPES, now())
    await store.directory.add_tenant(Tenant(TENANT, now()), key)
    documents = await put_many(store, 4, "alice", type="order")
    await store.mark_seen(TENANT, "alice", [documents[0].id])
    await store.delete(TENANT, "alice", [documents[1].id])
    at = now()
    for name in ("owed", "refused", "leased"):
        await owe(
            store,
            *(MailRecipient(f"{name}-{n}", f"{name}-{n}@example.test", at) for n in range(2)),
            content=name,
        )
        for job in await store.claim_mail(600, 9) if name == "refused" else ():
            refused = tuple(RefusedMail(each.user_id, each.email, 550, "no") for each in job.recipients)
            await store.settle_mail(job, MailOutcome(refused=refused))
    [*_, leased] = await store.claim_mail(600, 1)
    assert leased.recipients
    await owe(store, MailRecipient("zoe", "zoe@example.test", at), content="for one")
    await store.broadcasts.add(make_notification())
    await store.broadcasts.claim(60)
    await store.broadcasts.add(make_notification())
    recipients = [Recipient("alice"), Recipient("bob")]
    await store.add(make_notification(), recipients, None, Once("key", b"f" * 32, 3600.0))
    await store.leases.take("redis", "me", 60)
    yesterday = round((now() - timedelta(days=1)).timestamp() * 1000)
    await store.retention.raise_horizon(TENANT, Horizon(None, yesterday << COUNTER_BITS))


@pytest.fixture
async def whole(place: Place) -> Place:
    """A store with all that."""
    store = place.store()
    await store.open()
    await fill(store)
    await store.close()
    return place


# -- what is whole -------------------------------------------------------------------------------------------


async def test_a_store_that_is_whole(whole: Place, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is said to be, with how much there is in it; beside a server, too, and mending changes nothing."""
    use(whole, monkeypatch)
    store = whole.store()
    await store.open()
    code, report = await fsck(run)
    assert (code, report["findings"]) == (0, [])
    counts = report["counts"]
    assert counts["documents"] == counts["unseen"] + 1 == 12
    assert (counts["tombstones"], counts["idempotency_keys"], counts["broadcasts"]) == (1, 1, 2)
    outcome = await asyncio.to_thread(run, "fsck")
    assert (outcome.code, outcome.err) == (0, "notification-server: all fits together\n")
    assert (await fsck(run, "--repair"))[0] == 0
    await store.close()


async def test_a_key_of_a_broadcast_that_came_to_nobody(
    place: Place, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tenant that knows no user nothing is left but the key, and that is as it should be: the request is not
    carried out again. Users who come later change nothing."""
    use(place, monkeypatch)
    store = place.store()
    await store.open()
    key = ApiKey(new_id(), TENANT, "first", hash_secret("x"), ALL_SCOPES, now())
    await store.directory.add_tenant(Tenant(TENANT, now()), key)
    once = Once("key", b"f" * 32, 3600.0)
    notification = (await store.broadcasts.add(make_notification(), once)).notification
    broadcast = await store.broadcasts.claim(60)
    assert broadcast is not None
    assert await store.broadcasts.finish(broadcast)
    assert (await fsck(run))[1]["findings"] == []
    await put_many(store, 1, "alice")
    await store.close()
    assert (await fsck(run, "--repair"))[0] == 0
    await store.open()
    again = await store.broadcasts.add(make_notification(), once)
    assert (again.notification.nid, again.is_repeat) == (notification.nid, True)
    await store.close()


async def test_what_an_earlier_version_left(
    place: Place, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is whole, once it is brought up."""
    put_old_store(place)
    store = place.store()
    await store.open()
    use(place, monkeypatch)
    assert (await fsck(run))[1]["findings"] == []
    await store.close()


async def test_an_empty_store(place: Place, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has nothing wrong."""
    store = place.store()
    await store.open()
    await store.close()
    use(place, monkeypatch)
    assert (await fsck(run))[1]["findings"] == []


# -- the embedded store --------------------------------------------------------------------------------------

_A_DOCUMENT = "(SELECT user, id FROM documents LIMIT 1)"

_OF_ALICE = "notification = (SELECT notification FROM documents WHERE seen)"

SQLITE_DAMAGES = {
    "clock-unreadable": ["UPDATE meta SET value = 'none' WHERE name = 'last_rev'"],
    "revs-unreadable": [
        "UPDATE documents SET rev = 'none' WHERE seen",
        f"UPDATE documents SET rev = {(1 << 63) - 1} WHERE deleted_at IS NOT NULL",
    ],
    "notifications-unreadable": [
        "UPDATE notifications SET nid = 'none', tenant = x'00', content = x'00', data = '{'"
        f" WHERE {_OF_ALICE.replace('notification =', 'key =')}",
        "UPDATE notifications SET created_at = 9e99 WHERE content = 'owed'",
    ],
    "documents-unreadable": [
        "UPDATE documents SET updated_at = 'none', acked_at = 'none', seen = 'none' WHERE seen",
        f"UPDATE documents SET deleted_at = {(1 << 63) - 1}, marks = 'none' WHERE deleted_at IS NOT NULL",
        f"UPDATE documents SET id = 'none' WHERE (user, id) = {_A_DOCUMENT}",
    ],
    "mail-unreadable": [
        "UPDATE mail_recipients SET due_at = 'none', failing_since = 'none' WHERE user_id = 'zoe'",
        "UPDATE mail_recipients SET leased_until = 'none' WHERE lease IS NOT NULL",
        "UPDATE mails SET leased_until = 9e99",
        "UPDATE refused_mail SET refused_at = 'none'",
    ],
    "keys-unreadable": ["UPDATE once SET expires_at = 'never'"],
    "documents-without-notification": ["UPDATE documents SET notification = 999 WHERE seen"],
    "documents-without-user": ["UPDATE documents SET user = 999 WHERE seen"],
    "documents-twice": [
        "INSERT INTO documents (user, id, notification, created_at, updated_at, rev, type)"
        " SELECT user, x'ffffffffffffffffffffffff', notification, created_at, updated_at, rev, type"
        " FROM documents WHERE seen"
    ],
    "documents-unlike-notification": [
        "UPDATE documents SET type = 'other' WHERE seen",
        f"UPDATE documents SET created_at = 5 WHERE (user, id) = {_A_DOCUMENT}",
    ],
    "revs-beyond-clock": ["UPDATE documents SET rev = rev + 65536000000 WHERE seen"],
    "broadcasts-without-notification": ["UPDATE broadcasts SET notification = 999 WHERE lease IS NULL"],
    "notifications-without-documents": ["DELETE FROM documents WHERE seen"],
    "mail-without-notification": ["UPDATE mails SET notification = 999 WHERE due_at IS NOT NULL"],
    "mail-without-text": [
        "DELETE FROM mails WHERE notification = (SELECT notification FROM mail_recipients WHERE user_id = 'zoe')"
    ],
    "mail-without-recipients": ["DELETE FROM mail_recipients WHERE user_id = 'zoe'"],
    "leases-in-part": [
        "UPDATE broadcasts SET leased_until = NULL",
        "UPDATE mail_recipients SET lease = 'x' WHERE user_id = 'zoe'",
    ],
    "mail-at-wrong-times": ["UPDATE mails SET due_at = NULL", "UPDATE mails SET leased_until = NULL"],
    "keys-without-effect": ["UPDATE once SET nid = x'ffffffffffffffffffffffff'"],
    "tenants-unknown": ["DELETE FROM tenants WHERE name = 'acme'"],
    "horizon-ahead": [
        f"UPDATE retention SET floor = {FUTURE_MS}, oldest_rev = 0 WHERE tenant = 'acme'",
        f"INSERT INTO retention (tenant, oldest_rev) VALUES ('default', {FUTURE_MS} << 16)",
        "INSERT INTO retention (tenant, oldest_rev) VALUES ('other', 'none')",
    ],
}


def test_each_kind_of_the_embedded_store_is_planted() -> None:
    """One that nobody can plant finds nothing."""
    assert set(SQLITE_DAMAGES) == {kind.code for kind in KINDS}


@pytest.fixture
async def file(tmp_path: Path) -> SQLitePlace:
    """An embedded store with a little of everything."""
    place = SQLitePlace(tmp_path / "data" / "notifications.sqlite3")
    store = place.store()
    await store.open()
    await fill(store)
    await store.close()
    return place


def change_file(place: SQLitePlace, *statements: str) -> None:
    with closing(sqlite3.connect(place.path, isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, f"changes nothing: {statement}"


@pytest.mark.parametrize("code", SQLITE_DAMAGES)
async def test_damage_of_a_file(
    file: SQLitePlace, run: Command, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Is found and left as it is, until it is mended; then nothing is found, and the store goes on."""
    change_file(file, *SQLITE_DAMAGES[code])
    use(file, monkeypatch)
    for _ in range(2):
        exit_code, report = await fsck(run)
        assert exit_code == 1
        assert code in {each["code"] for each in report["findings"]}
    exit_code, report = await fsck(run, "--repair", "--yes")
    assert (exit_code, report["findings"]) == (0, [])
    assert code in {each["code"] for each in report["found"]}
    await goes_on(file)


async def test_what_is_of_the_default_tenant_stays_in_use(
    place: Place, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That tenant is in every store, and nobody has removed it: a database that no server of this version has opened
    yet has no record of it."""
    store = place.store()
    await store.open()
    await put(store, "alice", tenant=DEFAULT_TENANT)
    await store.close()
    if isinstance(place, SQLitePlace):
        change_file(place, f"DELETE FROM tenants WHERE name = '{DEFAULT_TENANT}'")
    else:
        assert isinstance(place, MongoPlace)
        client: MongoClient[Raw]
        with MongoClient(place.url) as client:
            assert client[place.db].notifications_tenants.delete_one({"_id": DEFAULT_TENANT}).deleted_count
    use(place, monkeypatch)
    assert (await fsck(run))[0] == 1
    assert (await fsck(run, "--repair", "--yes"))[0] == 0
    store = place.store()
    await store.open()
    assert [tenant.name for tenant in (await store.directory.access()).tenants] == [DEFAULT_TENANT]
    await store.close()


async def test_an_inbox_that_began_in_the_future_is_read_anew(
    place: Place, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients drop nothing of what is there, as they would if it began now."""
    store = place.store()
    await store.open()
    before = round(now().timestamp() * 1000)
    await store.retention.raise_horizon(DEFAULT_TENANT, Horizon(now() + timedelta(days=30)))
    await store.close()
    use(place, monkeypatch)
    assert (await fsck(run, "--repair", "--yes"))[0] == 0
    store = place.store()
    await store.open()
    horizon = (await store.retention.horizons())[DEFAULT_TENANT]
    assert horizon.floor is None
    assert before <= horizon.oldest_rev >> COUNTER_BITS <= now().timestamp() * 1000
    await store.close()


async def goes_on(place: Place) -> None:
    """Notifications are stored, mail is claimed, revs rise."""
    store = place.store()
    await store.open()
    document = await put(store, "alice")
    inbox = await whole_inbox(store, "alice")
    assert document in inbox
    assert len({each.notification.nid for each in inbox}) == len(inbox)
    changes = await store.changes(TENANT, "alice", after=(0, ""), limit=99)
    assert changes[-1] == document
    [counts] = (await store.counts(TENANT, ["alice"])).values()
    assert counts.total == len(inbox)
    for job in await store.claim_mail(60, 99):
        assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    await store.close()


async def test_an_index_that_has_not_everything(
    file: SQLitePlace, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts would be wrong; it is made anew."""
    with closing(sqlite3.connect(file.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        where = "name = 'inbox_with_types'"
        [row] = connection.execute(f"SELECT * FROM sqlite_master WHERE {where}").fetchall()
        connection.execute(f"DELETE FROM sqlite_master WHERE {where}")
    change_file(file, "UPDATE documents SET seen = 1 WHERE seen = 0 AND deleted_at IS NULL")
    with closing(sqlite3.connect(file.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
    use(file, monkeypatch)
    code, report = await fsck(run)
    assert code == 1
    assert [each["code"] for each in report["findings"]] == ["file"]
    assert (await fsck(run, "--repair", "--yes"))[0] == 0
    store = file.store()
    await store.open()
    [counts] = (await store.counts(TENANT, ["alice"])).values()
    assert (counts.unseen, counts.total) == (0, 4)
    await store.close()


async def test_a_running_server_is_not_mended_under(
    file: SQLitePlace, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said who holds the folder; looking is free."""
    change_file(file, *SQLITE_DAMAGES["keys-without-effect"])
    store = file.store()
    await store.open()
    use(file, monkeypatch)
    assert (await fsck(run))[0] == 1
    outcome = await asyncio.to_thread(run, "fsck", "--json", "--repair", "--yes")
    assert outcome.code == 1
    assert "is in use by another notification server" in outcome.problem
    await store.close()


async def test_it_asks_before_it_mends(
    file: SQLitePlace, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has shown by then what it means to do."""
    change_file(file, *SQLITE_DAMAGES["keys-without-effect"])
    use(file, monkeypatch)
    outcome: Outcome = await asyncio.to_thread(run, "fsck", "--repair")
    assert outcome.code == 2
    assert "Mend all of that? Say --yes if that is meant." in outcome.err
    assert "1 idempotency keys of requests whose notification is not there" in outcome.out
    assert "--repair: they are forgotten" in outcome.out
    outcome = await asyncio.to_thread(run, "fsck", "--repair", "--yes")
    assert (outcome.code, outcome.err) == (0, "notification-server: keys-without-effect: mended\n")


def test_no_store(run: Command) -> None:
    """None is made."""
    outcome = run("fsck")
    assert outcome.code == 1
    assert outcome.problem.endswith("there is no store")


# -- MongoDB -------------------------------------------------------------------------------------------------


def one(documents: Any, **which: Any) -> Raw:
    found: Raw | None = documents.find_one(which)
    assert found is not None
    return found


def twice(db: Database[Raw]) -> None:
    document = one(db.notifications, seen=True)
    db.notifications.insert_one({**document, "_id": ObjectId("f" * 24)})


def without_documents(db: Database[Raw]) -> None:
    intent = one(db.notifications_intents, **{"mail.refusals": {"$gt": 0}})
    db.notifications.delete_many({"nid": intent["nid"]})
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    db.notifications_intents.update_one({"_id": intent["_id"]}, {"$set": {"createdAt": long_ago}})


def without_effect(db: Database[Raw]) -> None:
    key = one(db.notifications_once)
    db.notifications.delete_many({"nid": key["nid"]})
    db.notifications_once.update_one({}, {"$set": {"createdAt": now() - timedelta(hours=2)}})


def of_mail(where: str, **fields: Any) -> Callable[[Database[Raw]], None]:
    def plant(db: Database[Raw]) -> None:
        changed = db[where].update_one(
            {"mail.due": {"$exists": True}},
            {"$set": {f"mail.{name}": value for name, value in fields.items()}},
        )
        assert changed.modified_count == 1

    return plant


def changes(collection: str, which: Raw, change: Raw) -> Callable[[Database[Raw]], None]:
    def plant(db: Database[Raw]) -> None:
        assert db[collection].update_one(which, change).modified_count == 1

    return plant


def unreadable(db: Database[Raw]) -> None:
    values = {"nid": 7, "createdAt": None, "updatedAt": "none", "seen": "none", "data": 7, "rev": "none"}
    assert db.notifications.update_one({"seen": True}, {"$set": values}).modified_count == 1
    values = {"deletedAt": "none", "rev": (1 << 63) - 1, "data": '{"cut": '}
    deleted = {"$unset": {"delete": 1, "nid": 1}, "$set": values}
    assert db.notifications.update_one({"delete": True}, deleted).modified_count == 1


def of_no_text(db: Database[Raw]) -> None:
    fields = {"mail.subject": 7, "mail.content": None}
    change = {"$set": fields, "$unset": {"mail.subtype": 1, "mail.forced": 1}}
    assert db.notifications.update_one({"mail.due": {"$exists": True}}, change).modified_count == 1


MONGO_DAMAGES: dict[str, Callable[[Database[Raw]], object]] = {
    "clock-unreadable": changes("notifications_meta", {"_id": "rev"}, {"$set": {"ceiling": "none"}}),
    "documents-unreadable": unreadable,
    "mail-unreadable-documents": of_no_text,
    "mail-unreadable-intents": of_mail("notifications_intents", recipients="none"),
    "documents-without-user": lambda db: db.notifications_users.delete_many({"_id.userId": "alice"}),
    "documents-twice": twice,
    "tombstones-in-part": changes("notifications", {"delete": True}, {"$set": {"deletedAt": None}}),
    "revs-beyond-clock": changes("notifications", {"seen": True}, {"$inc": {"rev": 65_536_000_000}}),
    "mail-at-wrong-times-documents": of_mail("notifications", owed=7),
    "mail-at-wrong-times-intents": of_mail("notifications_intents", due=FUTURE),
    "leases-of-mail-documents": of_mail("notifications", leasedUntil=FUTURE),
    "leases-of-mail-intents": of_mail("notifications_intents", lease="x", leasedUntil=FUTURE),
    "intents-set-aside": lambda db: db.notifications_intents.insert_one(
        {
            "tenant": TENANT,
            "nid": ObjectId(),
            "createdAt": now(),
            "content": "",
            "recipients": [{"_id": ObjectId(), "_userId": "alice"}],
            "failedAt": now(),
            "failure": "refused",
        }
    ),
    "intents-of-nobody": without_documents,
    "leases-endless": changes("notifications_leases", {}, {"$set": {"until": FUTURE}}),
    "leases-of-broadcasts": changes(
        "notifications_broadcasts", {"lease": {"$exists": True}}, {"$set": {"leasedUntil": FUTURE}}
    ),
    "keys-without-effect": without_effect,
    "tenants-unknown-documents": lambda db: db.notifications_tenants.delete_one({"_id": TENANT}),
    "tenants-unknown-users": lambda db: db.notifications_users.insert_one(
        {"_id": {"tenant": "nobody", "userId": "x"}, "firstSeenAt": now()}
    ),
    "tenants-unknown-intents": lambda db: db.notifications_intents.insert_one(
        {"tenant": "nobody", "nid": ObjectId(), "createdAt": now(), "openedAt": now()}
    ),
    "horizon-ahead": changes(
        "notifications_tenants", {"_id": TENANT}, {"$set": {"horizon": {"floor": FUTURE, "oldestRev": 0}}}
    ),
}


def test_each_kind_of_mongodb_is_planted() -> None:
    """One that nobody can plant finds nothing."""
    connection = Connection("mongodb://127.0.0.1/", "x", None, 1.0)
    for name in ("documents", "intents", "broadcasts", "users", "tenants", "meta"):
        setattr(connection, name, MongoClient(connect=False)["x"][name])
    assert set(MONGO_DAMAGES) == {kind.code for kind in Kinds(connection).all()}


@pytest.fixture
async def database(request: pytest.FixtureRequest) -> Any:
    """A MongoDB with a little of everything."""
    with fresh_place("mongo-replica-set", request) as place:
        store = place.store()
        await store.open()
        await fill(store)
        await store.close()
        yield place


@pytest.fixture
def db(database: MongoPlace) -> Iterator[Database[Raw]]:
    client: MongoClient[Raw]
    with MongoClient(database.url, tz_aware=True) as client:
        yield client[database.db]


@pytest.mark.parametrize("code", MONGO_DAMAGES)
async def test_damage_of_a_database(
    database: MongoPlace, db: Database[Raw], run: Command, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Is found and left as it is, until it is mended; then nothing is found, and the store goes on."""
    MONGO_DAMAGES[code](db)
    use(database, monkeypatch)
    for _ in range(2):
        exit_code, report = await fsck(run)
        assert exit_code == 1
        assert code in {each["code"] for each in report["findings"]}
    exit_code, report = await fsck(run, "--repair", "--yes")
    assert (exit_code, report["findings"]) == (0, [])
    assert code in {each["code"] for each in report["found"]}
    await goes_on(database)
    assert json.dumps(report)
