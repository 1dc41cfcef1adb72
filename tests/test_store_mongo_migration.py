"""What the store on MongoDB does, when it opens, with documents of the original system and of earlier versions."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import bson
import pytest
from bson import MaxKey, MinKey, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from server.errors import StartupError, StoreUnavailable
from server.grants import KnownUser
from server.messages import Document, now
from server.store import mongo_migration, mongo_progress
from server.store.mongo import MongoStore
from server.store.mongo_connection import Connection
from server.store.mongo_migration import Migration
from tests.support.mongo_stores import (
    USER,
    opened,
    original,
    until,
    until_it_succeeds,
)
from tests.support.mongod import Mongod, MongoDatabase
from tests.support.stores import put, whole_inbox

DEFAULT = "default"
SAIGON = ZoneInfo("Asia/Ho_Chi_Minh")
NEW_YORK = ZoneInfo("America/New_York")

Raw = dict[str, Any]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few documents take several."""
    monkeypatch.setattr(mongo_migration, "BATCH_DOCUMENTS", 10)


def ids(documents: Sequence[Document]) -> list[str]:
    return [document.id for document in documents]


def at(hour: int, minute: int = 0, day: int = 1, month: int = 5) -> datetime:
    return datetime(2014, month, day, hour, minute, tzinfo=UTC)


async def opening_times(
    database: MongoDatabase, raw: Database[Raw], zone: ZoneInfo | None
) -> dict[ObjectId, datetime]:
    """`createdAt` of each document, after the store has opened in this zone."""
    async with opened(database, legacy_timezone=zone):
        return {each["_id"]: each["createdAt"] for each in raw["notifications"].find()}


# -- documents -----------------------------------------------------------------------------------------------


async def test_documents_of_the_original(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """They are the default tenant's, each a notification of its own, with rev 0 and times made from local ones."""
    whole = original()
    bare = original(1, seen=True)
    for field in ("type", "title", "url", "icon", "image"):
        del bare[field]
    raw["notifications"].insert_many([whole, bare, original(2, delete=True)])
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        newer, older = await store.newest(DEFAULT, USER, before=None, limit=10)
        assert older.id == older.notification.nid == str(whole["_id"])
        assert older.created_at == older.updated_at == at(5)
        assert older.notification.created_at == older.created_at
        assert older.notification.tenant == DEFAULT
        assert (older.notification.type, older.notification.content) == ("info", "old 0")
        assert (older.rev, older.seen, older.deleted, older.notification.data) == (0, False, False, None)
        assert (newer.seen, newer.notification.type, newer.notification.title) == (True, "", "")
        assert await store.newest("other", USER, before=None, limit=10) == []
        assert await store.count_unseen(DEFAULT, [USER]) == {USER: 1}
        assert await store.still_unseen(DEFAULT, older.notification.nid, [USER]) == {USER}


async def test_the_original_times_are_kept(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """As they were written, with the zone in which they were read, also those of a deleted document."""
    local = datetime(2014, 5, 1, 12)
    times = {
        "createdAt": local,
        "updatedAt": local + timedelta(hours=1),
        "deletedAt": local + timedelta(hours=2),
    }
    document = original(**times, delete=True)
    raw["notifications"].insert_one(document)
    async with opened(mongo_database, legacy_timezone=SAIGON):
        [found] = raw["notifications"].find()
    assert found["legacy"] == {
        **{name: each.replace(tzinfo=UTC) for name, each in times.items()},
        "zone": "Asia/Ho_Chi_Minh",
    }
    assert [found[name] for name in times] == [at(5), at(6), at(7)]
    assert found.items() >= {"tenant": DEFAULT, "nid": document["_id"], "delete": True, "seen": False}.items()
    assert "rev" not in found


async def test_changing_a_document_of_the_original(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """It gets a rev and true times of the change; its createdAt stays as it was."""
    seen, deleted, by_all = original(), original(1), original(2)
    raw["notifications"].insert_many([seen, deleted, by_all])
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        before = await store.newest(DEFAULT, USER, before=None, limit=10)
        change = await store.mark_seen(DEFAULT, USER, [str(seen["_id"])])
        assert change.changed == 1 and change.rev
        await store.delete(DEFAULT, USER, [str(deleted["_id"])])
        assert (await store.mark_all_seen(DEFAULT, USER, limit=10)).ids == (str(by_all["_id"]),)
        after = await store.newest(DEFAULT, USER, before=None, limit=10)
        assert ids(after) == [before[0].id, before[2].id]
        assert after[1].rev == change.rev
        assert after[1].created_at == before[2].created_at
        assert now() - after[1].updated_at < timedelta(minutes=5)
        older = await store.newest(DEFAULT, USER, before=str(deleted["_id"]), limit=10)
        assert ids(older) == [str(seen["_id"])]


@pytest.mark.parametrize("zone", [None, SAIGON, NEW_YORK], ids=str)
async def test_paging_through_old_and_new(
    mongo_database: MongoDatabase, raw: Database[Raw], zone: ZoneInfo | None
) -> None:
    """In all directions by true time, each document once, though the stored times of old and new overlapped."""
    local = datetime.now(zone or UTC).replace(tzinfo=None, microsecond=0)
    ages = range(0, 60, 5)
    old = [original(createdAt=local - timedelta(minutes=age), content=str(age)) for age in ages]
    raw["notifications"].insert_many(old)
    async with opened(mongo_database, legacy_timezone=zone) as store:
        for age in (age + 2 for age in ages):
            await put(store, tenant=DEFAULT, created_at=now() - timedelta(minutes=age), content=str(age))
        for limit in (1, 4, 30):
            newest = await in_steps(store, limit)
            assert [int(each.notification.content) for each in newest] == sorted(
                (*ages, *(age + 2 for age in ages))
            )
            assert await unseen_in_steps(store, limit) == newest[::-1]
            pages = [await store.page(DEFAULT, USER, page=page, limit=limit) for page in range(25)]
            assert sum(pages, []) == newest[::-1]


async def in_steps(store: MongoStore, limit: int) -> list[Document]:
    documents: list[Document] = []
    while some := await store.newest(
        DEFAULT, USER, before=documents[-1].id if documents else None, limit=limit
    ):
        documents += some
    return documents


async def unseen_in_steps(store: MongoStore, limit: int) -> list[Document]:
    documents: list[Document] = []
    while some := await store.unseen(DEFAULT, USER, after=documents[-1] if documents else None, limit=limit):
        documents += some
    return documents


async def test_what_the_original_writes_later(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """Beside a running server it is brought up at the next start, and its users are known."""
    users = ["alice", "bob", "carol"]
    for number, user in enumerate(users):
        raw["notifications"].insert_one(original(number, _userId=user))
        async with opened(mongo_database, legacy_timezone=SAIGON) as store:
            assert len(await whole_inbox(store, user, DEFAULT)) == 1
            known = await store.directory.users(DEFAULT, after=None, limit=9)
            assert [(each.user_id, each.first_seen_at) for each in known] == [
                (each, at(5, minutes)) for minutes, each in enumerate(users[: number + 1])
            ]


async def test_documents_that_are_not_whole(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """Without times or a user, or with other types than the original's: none keeps the store from opening."""
    strange: list[Raw] = [
        {},
        {"_userId": None},
        {"_userId": 7, "createdAt": "yesterday"},
        {"createdAt": 1.5},
        {"tenant": None},
    ]
    raw["notifications"].insert_many([*strange, original()])
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        assert len(await whole_inbox(store, tenant=DEFAULT)) == 1
        assert [user.user_id for user in await store.directory.users(DEFAULT, after=None, limit=9)] == [USER]
    assert raw["notifications"].count_documents({"tenant": DEFAULT}) == len(strange) + 1


# -- what the original can hardly have written ---------------------------------------------------------------

BEYOND_CALENDARS = {
    "soon after": DatetimeMS(253_402_300_800_000),
    "at the end": datetime(9999, 12, 31, 23, 59),
    "the last there is": DatetimeMS(2**63 - 1),
    "the first there is": DatetimeMS(-(2**63)),
    "at the beginning": datetime(1, 1, 1),
}


def told(caplog: pytest.LogCaptureFixture, words: str) -> str:
    """The one line of the log that has these words."""
    [line] = [record.message for record in caplog.records if words in record.message]
    return line


@pytest.mark.parametrize("zone", [None, SAIGON, NEW_YORK], ids=str)
@pytest.mark.parametrize("when", BEYOND_CALENDARS)
async def test_times_that_no_calendar_has(
    mongo_database: MongoDatabase,
    raw: Database[Raw],
    caplog: pytest.LogCaptureFixture,
    when: str,
    zone: ZoneInfo | None,
) -> None:
    """Become the nearest that can be shown, what was written is kept, and the log names the first document once."""
    time = BEYOND_CALENDARS[when]
    first, second = (original(number, createdAt=time, updatedAt=time, deletedAt=time) for number in range(2))
    raw["notifications"].insert_many([original(), first, second])
    async with opened(mongo_database, legacy_timezone=zone) as store:
        documents = await whole_inbox(store, tenant=DEFAULT)
        year = 9999 if "first" not in when and "beginning" not in when else 1
        assert sorted(each.created_at.year for each in documents) == sorted([2014, year, year])
        assert {each.deleted_at and each.deleted_at.year for each in documents} == {None, year}
        [user] = await store.directory.users(DEFAULT, after=None, limit=9)
        assert user.first_seen_at.year in (1, 2014)
    assert raw["notifications"].count_documents({"legacy.createdAt": time}) == 2
    line = told(caplog, "cannot be read")
    assert line.startswith(
        f"2 documents of {raw.name}.notifications have times that cannot be read, the first one"
    )
    assert str(first["_id"]) in line
    # Brought up for good; another zone reads what is kept.
    caplog.clear()
    async with opened(mongo_database, legacy_timezone=ZoneInfo("Europe/Berlin")) as store:
        assert len(await whole_inbox(store, tenant=DEFAULT)) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


NO_TIMES: dict[str, Any] = {
    "text": "yesterday",
    "integer": 20140501,
    "null": None,
    "list": [datetime(2014, 5, 1)],
    "object": {"$date": 1},
    "timestamp": Timestamp(1, 1),
    "missing": ...,
}


@pytest.mark.parametrize("kind", NO_TIMES)
async def test_what_is_no_time(
    mongo_database: MongoDatabase, raw: Database[Raw], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The `_id` says when the document was made; its user is known, and can read it."""
    document = original(createdAt=NO_TIMES[kind], updatedAt=NO_TIMES[kind], deletedAt=NO_TIMES[kind])
    document = {name: value for name, value in document.items() if value is not ...}
    raw["notifications"].insert_one(document)
    made_at = document["_id"].generation_time
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        [found] = await whole_inbox(store, tenant=DEFAULT)
        assert (found.created_at, found.updated_at, found.deleted_at) == (made_at, made_at, None)
        assert await store.directory.users(DEFAULT, after=None, limit=9) == [
            KnownUser(DEFAULT, USER, made_at, None)
        ]
    assert str(document["_id"]) in told(caplog, "1 documents")


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("is_router", [False, True])
async def test_users_that_are_none(
    mongo_database: MongoDatabase, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch, is_router: bool
) -> None:
    """Whatever stands in place of their id, also many times: everybody else is brought up, and known."""
    if is_router:
        monkeypatch.setattr(Connection, "is_router", property(lambda _: True, lambda *_: None), raising=False)
    users: list[Any] = [
        7,
        2.5,
        float("nan"),
        True,
        ["alice", "bob"],
        {"id": 1},
        {"$ref": "x", "$id": 1},
        re.compile("a"),
        DatetimeMS(2**60),
        ObjectId(),
        MinKey(),
        MaxKey(),
        None,
        "",
        "x" * 100_000,
    ]
    raw["notifications"].insert_many(
        [original(number, _userId=user) for user in users for number in range(12)] + [original()]
    )
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        assert len(await whole_inbox(store, tenant=DEFAULT)) == 1 + 12
        known = [user.user_id for user in await store.directory.users(DEFAULT, after=None, limit=99)]
        assert known == ["", USER]
    assert count_left(raw) == 0


async def test_a_text_that_is_none(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """A user's id that is not UTF-8, as old drivers let through."""
    wrong = bson.encode(original(_userId="Q" * 9)).replace(b"Q" * 9, b"\xff" * 9)
    raw["notifications"].insert_many([RawBSONDocument(wrong), original()])
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        assert len(await whole_inbox(store, tenant=DEFAULT)) == 1
    assert count_left(raw) == 0


@pytest.mark.usefixtures("small_batches")
async def test_ids_that_are_no_object_ids(
    mongo_database: MongoDatabase, raw: Database[Raw], caplog: pytest.LogCaptureFixture
) -> None:
    """No client could say that such a document is seen: it stays as it is, at every start, and is told of."""
    others: list[Any] = [*range(15), "text", None, {"a": 1}, DatetimeMS(2**60), MinKey()]
    raw["notifications"].insert_many([original(_id=id_) for id_ in others] + [original(), original(1)])
    for zone in (None, SAIGON):
        caplog.clear()
        async with opened(mongo_database, legacy_timezone=zone) as store:
            documents = await whole_inbox(store, tenant=DEFAULT)
            hours = 12 if zone is None else 5
            assert [each.created_at for each in documents] == [at(hours, 1), at(hours)]
        assert told(caplog, "no ObjectId").startswith(f"{len(others)} documents of {raw.name}.notifications")
    assert count_left(raw) == len(others)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("is_router", [False, True])
async def test_documents_as_large_as_can_be(
    mongo_database: MongoDatabase,
    raw: Database[Raw],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_router: bool,
) -> None:
    """MongoDB takes nothing more in them: they stay as they are, and keep back none of the others."""
    if is_router:
        monkeypatch.setattr(Connection, "is_router", property(lambda _: True, lambda *_: None), raising=False)
    room = 16 * 1024 * 1024 - len(bson.encode(original())) - 10
    huge = original(content="x" * room)
    raw["notifications"].insert_one(huge)
    raw["notifications"].insert_many([original(number) for number in range(25)])
    for _ in range(2):
        caplog.clear()
        async with opened(mongo_database, legacy_timezone=SAIGON) as store:
            assert len(await whole_inbox(store, tenant=DEFAULT)) == 25
        assert told(caplog, "refuses to change them").endswith(f"has the _id {huge['_id']} (error 17419)")
    assert count_left(raw) == 1


@pytest.mark.usefixtures("small_batches")
async def test_a_collection_that_takes_nothing(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """That is no matter of single documents: the reason is told, and nothing begins without them."""
    raw["notifications"].insert_many([original(number) for number in range(25)])
    raw.command("collMod", "notifications", validator={"tenant": {"$exists": False}})
    with pytest.raises(StartupError, match="cannot be used: Document failed validation"):
        await MongoStore(mongo_database.url, mongo_database.name).open()
    raw.command("collMod", "notifications", validator={})
    async with opened(mongo_database) as store:
        assert len(await whole_inbox(store, tenant=DEFAULT)) == 25


async def test_lists_in_place_of_values(
    mongo_database: MongoDatabase, raw: Database[Raw], caplog: pytest.LogCaptureFixture
) -> None:
    """MongoDB makes no index over two of them: they are put away, and the rest is as ever."""
    listed = original(_userId=["alice", "bob"], createdAt=[1, 2], rev=[3])
    raw["notifications"].insert_many([listed, original()])
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        assert len(await whole_inbox(store, tenant=DEFAULT)) == 1
    found = raw["notifications"].find_one({"_id": listed["_id"]}) or {}
    assert found["legacy"]["lists"] == {"_userId": ["alice", "bob"], "createdAt": [1, 2], "rev": [3]}
    assert found["tenant"] == DEFAULT and "rev" not in found
    assert told(caplog, "legacy.lists").startswith("1 documents")


async def test_batches_that_take_too_long(
    mongo_database: MongoDatabase, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are smaller at the next try, and the next, until they are done in time."""
    raw["notifications"].insert_many([original(number) for number in range(300)])
    group = Migration._group_without_tenant
    tried: list[int] = []

    async def slow(self: Migration, batch: Sequence[Raw]) -> list[Raw]:
        tried.append(len(batch))
        if len(batch) > 20:
            raise StoreUnavailable
        return await group(self, batch)

    monkeypatch.setattr(Migration, "_group_without_tenant", slow)
    monkeypatch.setattr(mongo_migration, "BATCH_DOCUMENTS", 300)
    store = MongoStore(mongo_database.url, mongo_database.name)
    await until_it_succeeds(store.open)
    assert len(await whole_inbox(store, tenant=DEFAULT)) == 300
    await store.close()
    assert tried[:3] == [300, 75, 18]


# -- time zones ----------------------------------------------------------------------------------------------

CLOCK_CHANGES = {
    "before summer": (at(1, 59, 9, 3), at(6, 59, 9, 3)),
    "left out": (at(2, 30, 9, 3), at(7, 30, 9, 3)),
    "in summer": (at(3, 0, 9, 3), at(7, 0, 9, 3)),
    "before it is repeated": (at(0, 59, 2, 11), at(4, 59, 2, 11)),
    "repeated": (at(1, 30, 2, 11), at(6, 30, 2, 11)),
    "after it is repeated": (at(2, 0, 2, 11), at(7, 0, 2, 11)),
}
"""What the clocks of New York showed around the changes of 2014, and the instants that are made of it."""


@pytest.mark.parametrize("change", CLOCK_CHANGES)
async def test_changes_of_the_clock(mongo_database: MongoDatabase, raw: Database[Raw], change: str) -> None:
    """What was left out counts on from before; of what was repeated the later is meant."""
    local, instant = CLOCK_CHANGES[change]
    raw["notifications"].insert_one(original(createdAt=local))
    assert list((await opening_times(mongo_database, raw, NEW_YORK)).values()) == [instant]


@pytest.mark.usefixtures("small_batches")
async def test_another_zone(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """Set or changed later: the times are read again from what the original wrote, however they were read before."""
    old = {document["_id"]: document for document in (original(number) for number in range(35))}
    raw["notifications"].insert_many(list(old.values()))
    async with opened(mongo_database) as store:
        new = await put(store, tenant=DEFAULT)
    for zone, hours in ((None, 0), (SAIGON, 7), (NEW_YORK, -4), (SAIGON, 7), (None, 0)):
        times = await opening_times(mongo_database, raw, zone)
        assert times.pop(ObjectId(new.id)) == new.created_at
        assert times == {
            id_: document["createdAt"].replace(tzinfo=UTC) - timedelta(hours=hours)
            for id_, document in old.items()
        }


async def test_another_zone_changes_no_time_of_ours(
    mongo_database: MongoDatabase, raw: Database[Raw]
) -> None:
    """Whoever saw or deleted a document of the original since did so when they did."""
    documents = [original(number) for number in range(3)]
    raw["notifications"].insert_many(documents)
    seen, deleted, neither = (str(document["_id"]) for document in documents)
    async with opened(mongo_database) as store:
        await store.mark_seen(DEFAULT, USER, [seen])
        await store.delete(DEFAULT, USER, [deleted])
    before = {str(each["_id"]): each for each in raw["notifications"].find()}
    async with opened(mongo_database, legacy_timezone=SAIGON):
        after = {str(each["_id"]): each for each in raw["notifications"].find()}
    for id_ in (seen, deleted):
        assert after[id_]["createdAt"] == before[id_]["createdAt"] - timedelta(hours=7)
        for time in ("updatedAt", "deletedAt"):
            assert after[id_][time] == before[id_][time]
    assert after[neither]["updatedAt"] == before[neither]["updatedAt"] - timedelta(hours=7)


@pytest.mark.usefixtures("small_batches")
async def test_a_change_of_zone_that_was_interrupted(
    mongo_database: MongoDatabase, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is not taken for done when the setting is what it was before."""
    raw["notifications"].insert_many([original(number) for number in range(35)])
    before = await opening_times(mongo_database, raw, SAIGON)
    with monkeypatch.context() as patch:
        crash_at(patch, "_set_state", 2)
        with pytest.raises(Crash):
            await MongoStore(mongo_database.url, mongo_database.name, legacy_timezone=NEW_YORK).open()
    assert {each["createdAt"] for each in raw["notifications"].find()}.isdisjoint(before.values())
    assert await opening_times(mongo_database, raw, SAIGON) == before


async def test_a_zone_that_mongodb_does_not_know(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """The sentence names the zone and the setting; another name helps."""
    raw["notifications"].insert_one(original())
    with pytest.raises(StartupError, match=r"no time zone 'America/Coyhaique'.*\[MONGODB\] legacy_timezone"):
        await opening_times(mongo_database, raw, ZoneInfo("America/Coyhaique"))
    assert list((await opening_times(mongo_database, raw, SAIGON)).values()) == [at(5)]


# -- interruptions, and several at once ----------------------------------------------------------------------


class Crash(Exception):
    """The process ends here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    """A process that migrates ends at the `number`-th call of this step."""
    whole = getattr(Migration, step)
    calls = 0

    async def crashing(self: Migration, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Crash
        return await whole(self, *arguments)

    monkeypatch.setattr(Migration, step, crashing)


def half_a_hundred(raw: Database[Raw]) -> list[Raw]:
    """Documents of the original for ten users, not in the order of their times."""
    documents = [original(number * 7 % 50, _userId=f"user-{number % 10}") for number in range(50)]
    raw["notifications"].insert_many(documents)
    return documents


async def check_half_a_hundred(store: MongoStore, documents: list[Raw]) -> None:
    """Every document is there, with its time, and every user since their first one."""
    firsts: dict[str, datetime] = {}
    for document in documents:
        created_at = document["createdAt"].replace(tzinfo=UTC) - timedelta(hours=7)
        firsts[document["_userId"]] = min(created_at, firsts.get(document["_userId"], now()))
        [stored] = [
            each
            for each in await whole_inbox(store, document["_userId"], DEFAULT)
            if each.id == str(document["_id"])
        ]
        assert stored.created_at == stored.updated_at == created_at
    assert await store.directory.users(DEFAULT, after=None, limit=100) == [
        KnownUser(DEFAULT, user, firsts[user], None) for user in sorted(firsts)
    ]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("step", ["_read_state", "_set_state", "_register", "_adopt"])
async def test_a_crash_in_the_middle(
    mongo_database: MongoDatabase,
    raw: Database[Raw],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    number: int,
) -> None:
    """The next start goes on, and what comes of it is the same."""
    documents = half_a_hundred(raw)
    with monkeypatch.context() as patch:
        crash_at(patch, step, number)
        try:
            await opening_times(mongo_database, raw, SAIGON)
        except Crash:
            pass
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        await check_half_a_hundred(store, documents)


def count_left(raw: Database[Raw]) -> int:
    """Documents that are still as the original wrote them."""
    return raw["notifications"].count_documents({"tenant": None})


@pytest.mark.usefixtures("small_batches")
async def test_being_stopped_between_two_batches(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """Cancelled while it migrates, again and again, a store that opens gets further each time."""
    documents = half_a_hundred(raw)
    left = len(documents)
    while left:
        opening = asyncio.create_task(opening_times(mongo_database, raw, SAIGON))
        await until(lambda: opening.done() or count_left(raw) < left)  # noqa: B023
        opening.cancel()
        await asyncio.wait([opening])
        left = count_left(raw)
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        await check_half_a_hundred(store, documents)


@pytest.mark.usefixtures("small_batches")
async def test_several_nodes_at_once(mongo_database: MongoDatabase, raw: Database[Raw]) -> None:
    """They share the work, and each opens only when all of it is done."""
    documents = half_a_hundred(raw)
    stores = [MongoStore(mongo_database.url, mongo_database.name, legacy_timezone=SAIGON) for _ in range(4)]

    async def open_and_check(store: MongoStore) -> None:
        await store.open()
        await check_half_a_hundred(store, documents)

    await asyncio.gather(*map(open_and_check, stores))
    for store in stores:
        await store.close()


@pytest.mark.usefixtures("small_batches")
async def test_one_at_a_time_behind_a_router(
    mongo_database: MongoDatabase, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where documents may move to other shards, which nothing but the number of commands shows here."""
    documents = half_a_hundred(raw)
    monkeypatch.setattr(Connection, "is_router", property(lambda _: True, lambda *_: None), raising=False)
    raw.command("profile", 2)
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        raw.command("profile", 0)
        await check_half_a_hundred(store, documents)
    updates = list(raw["system.profile"].find({"op": "update", "ns": f"{raw.name}.notifications"}))
    assert len(updates) == len(documents)
    assert all({"_id", "tenant", "_userId"} <= each["command"]["q"].keys() for each in updates)


async def test_a_mongod_that_is_killed(own_mongod: Mongod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening says that the store is away; when it is back it goes on."""
    monkeypatch.setattr(mongo_migration, "BATCH_DOCUMENTS", 50)
    database = MongoDatabase(own_mongod.url, "inbox")
    documents = [original(number, _userId=f"user-{number}") for number in range(2000)]
    with own_mongod.client() as client:
        notifications = client["inbox"]["notifications"]
        notifications.insert_many(documents)
        store = MongoStore(database.url, database.name, legacy_timezone=SAIGON, timeout_s=3.0)
        opening = asyncio.create_task(store.open())
        await until(lambda: notifications.count_documents({"tenant": DEFAULT}) > 0)
    own_mongod.kill()
    with pytest.raises(StoreUnavailable):
        await opening
    own_mongod.start()
    await until_it_succeeds(store.open)
    with own_mongod.client() as client:
        assert client["inbox"]["notifications"].count_documents({"tenant": DEFAULT}) == len(documents)
    assert len(await store.directory.users(DEFAULT, after=None, limit=5000)) == len(documents)
    await store.close()


# -- progress ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
async def test_the_log_says_how_far_it_is(
    mongo_database: MongoDatabase,
    raw: Database[Raw],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Step by step, of about how many; and nothing more at the next start."""
    monkeypatch.setattr(mongo_progress, "PROGRESS_S", 0.0)
    caplog.set_level(logging.INFO)
    half_a_hundred(raw)
    await opening_times(mongo_database, raw, SAIGON)
    said = re.findall(r"migrated (\d+) of about 50 documents", caplog.text)
    assert said == ["10", "20", "30", "40", "50", "50"]
    assert "registered the users of 50 of about 50 documents" in caplog.text
    caplog.clear()
    await opening_times(mongo_database, raw, SAIGON)
    assert caplog.text == ""


async def test_a_short_migration_says_one_thing(
    mongo_database: MongoDatabase, raw: Database[Raw], caplog: pytest.LogCaptureFixture
) -> None:
    """That it was done; a new store says nothing."""
    caplog.set_level(logging.INFO)
    async with opened(mongo_database):
        assert "migrated" not in caplog.text and "registered" not in caplog.text
    half_a_hundred(raw)
    await opening_times(mongo_database, raw, None)
    assert caplog.text.count("migrated") == 1


# -- users ---------------------------------------------------------------------------------------------------


async def test_users_of_documents_from_before_are_known(
    mongo_database: MongoDatabase, raw: Database[Raw]
) -> None:
    """Of every tenant, also those who have deleted all of them; registered once, not at each start."""
    ours: Raw = {"nid": ObjectId(), "rev": 1, "createdAt": now(), "updatedAt": now()}
    raw["notifications"].insert_many(
        [
            original(5, _userId="alice"),
            original(3, _userId="alice"),
            original(4, _userId="bob", delete=True),
            original(_userId="carol", tenant="acme", **ours),
        ]
    )
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        assert await store.directory.users(DEFAULT, after=None, limit=10) == [
            KnownUser(DEFAULT, "alice", at(5, 3), None),
            KnownUser(DEFAULT, "bob", at(5, 4), None),
        ]
        [carol] = await store.directory.users("acme", after=None, limit=10)
        assert carol == KnownUser("acme", "carol", ours["createdAt"], None)
    raw["notifications_users"].delete_many({})
    async with opened(mongo_database, legacy_timezone=SAIGON) as store:
        assert await store.directory.users(DEFAULT, after=None, limit=10) == []
