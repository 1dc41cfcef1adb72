"""The same request has its effect once: what `Store.add` and `Broadcasts.add` promise of a request with a key, by both
stores."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import OperationFailure

from server.errors import InProgress, KeyReused, StoreUnavailable, TooLarge
from server.grants import ApiKey, Scope, Tenant
from server.messages import Document, EmailDuty, Mail, MailRecipient, Notification, Recipient, altered, now
from server.store import Accepted, MailCounts, MailOutcome, Once, RefusedMail, Store, Stored, sqlite_once
from server.store.mongo import MongoStore
from server.store.sqlite import SQLiteStore
from tests.support.mongod import MongoDatabase
from tests.support.stores import TENANT, MongoPlace, Place, SQLitePlace, make_notification, whole_inbox

USERS = ["zoe", "alice", "bob"]

COUNTS = pytest.mark.parametrize("count", [1, 3], ids=["one-user", "several-users"])


def once(key: str = "key", fingerprint: bytes = b"f" * 32, keep_s: float = 3600.0) -> Once:
    return Once(key, fingerprint, keep_s)


def mail_to(user_id: str) -> MailRecipient:
    return MailRecipient(user_id, f"{user_id}@example.test", now() - timedelta(minutes=1))


def duty_of(users: Sequence[str]) -> EmailDuty:
    return EmailDuty(Mail("subject", "content"), tuple(map(mail_to, users)))


async def add(
    store: Store,
    key: Once | None,
    users: Sequence[str] = USERS,
    notification: Notification | None = None,
    owed: bool = True,
) -> Stored:
    """A request as a door reads it: each time with a nid and an instant of its own."""
    recipients = [Recipient(user, f"{user}@example.test") for user in users]
    notification = notification or make_notification(content="c", data={"a": [1]})
    return await store.add(notification, recipients, duty_of(users) if owed else None, key)


async def inboxes(store: Store, users: Sequence[str] = USERS, tenant: str = TENANT) -> list[Document]:
    return [document for user in users for document in await whole_inbox(store, user, tenant)]


@asynccontextmanager
async def opened(place: Place, **options: Any) -> AsyncIterator[Store]:
    store = place.store(**options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@COUNTS
async def test_a_request_that_comes_first(store: Store, count: int) -> None:
    """Is stored as without a key."""
    users = USERS[:count]
    notification = make_notification(content="c", data={"a": [1]})
    stored = await add(store, once(), users, notification)
    assert stored == Stored(notification, stored.documents, stored.documents)
    assert [document.user_id for document in stored.documents] == users
    assert len({document.id for document in stored.documents}) == count
    assert stored.documents == await inboxes(store, users)
    assert await store.mail_counts() == MailCounts(count, 0)
    assert [job.nid for job in await store.claim_mail(60, 10)] == [notification.nid]


@COUNTS
async def test_a_repeat_changes_nothing(store: Store, count: int) -> None:
    """It is answered with the first nid and instant, and the documents as they are now; nobody is to be told."""
    users = USERS[:count]
    first = await add(store, once(), users)
    again = await add(store, once(), users)
    assert again == Stored(first.notification, first.documents, [], is_repeat=True)
    await store.delete(TENANT, users[0], [first.documents[0].id])
    again = await add(store, once(), users[::-1])
    assert [document.user_id for document in again.documents] == users[::-1]
    assert again.documents[-1].deleted
    assert again.documents[-1].notification == first.notification
    assert await store.mail_counts() == MailCounts(count, 0)
    assert await store.complete_intents() == []


@COUNTS
async def test_a_mail_that_went_out_is_not_owed_again(store: Store, count: int) -> None:
    """Nor one that was refused for good, which is still known."""
    users = USERS[:count]
    stored = await add(store, once(), users)
    [job] = await store.claim_mail(60, 10)
    refused = RefusedMail("zoe", "zoe@example.test", 550, "no such user")
    sent = tuple(each for each in job.recipients if each.user_id != "zoe")
    assert await store.settle_mail(job, MailOutcome(sent=sent, refused=(refused,)))
    assert (await add(store, once(), users)).is_repeat
    assert await store.mail_counts() == MailCounts(0, 1)
    assert await store.claim_mail(60, 10) == []
    nid = stored.notification.nid
    found = await store.deliveries.of_notification(TENANT, nid, after=None, limit=9)
    assert {each.user_id: each.refused for each in found} == {
        user: refused if user == "zoe" else None for user in users
    }
    [last] = await store.deliveries.of_notification(TENANT, nid, after=found[-1].user_id[:-1], limit=9)
    assert last.refused == found[-1].refused


async def test_the_same_key_for_another_request(store: Store) -> None:
    """Is refused, and nothing is stored; the first one is still known."""
    await add(store, once(), ["alice"])
    with pytest.raises(KeyReused):
        await add(store, once(fingerprint=b"g" * 32), USERS)
    assert len(await inboxes(store)) == 1
    assert (await add(store, once(), ["alice"])).is_repeat


async def test_keys_belong_to_a_tenant(store: Store) -> None:
    """Another tenant's are others, and so is every other key."""
    other = make_notification("other")
    assert not (await add(store, once(), ["alice"])).is_repeat
    assert not (await add(store, once(), ["alice"], other)).is_repeat
    for key in ("Key", "key ", "kéy", "$literal", "a.b", "k" * 255):
        assert not (await add(store, once(key), ["alice"])).is_repeat
        assert (await add(store, once(key), ["alice"])).is_repeat
    assert len(await whole_inbox(store, "alice")) == 7


@COUNTS
async def test_a_key_whose_time_is_over(store: Store, count: int) -> None:
    """Is a new one, for whatever request; documents of both are there."""
    users = USERS[:count]
    first = await add(store, once(keep_s=0.001), users)
    await asyncio.sleep(0.01)
    second = await add(store, once(fingerprint=b"g" * 32), users)
    assert not second.is_repeat
    assert second.notification.nid != first.notification.nid
    assert len(await inboxes(store, users)) == 2 * count
    assert await store.mail_counts() == MailCounts(2 * count, 0)
    with pytest.raises(KeyReused):
        await add(store, once(), users)


async def test_keys_are_remembered_by_whoever_opens_the_store_next(place: Place) -> None:
    """They are as durable as what they stand for."""
    async with opened(place) as store:
        first = await add(store, once())
    async with opened(place) as store:
        assert await add(store, once()) == altered(first, new=[], is_repeat=True)


@COUNTS
async def test_many_at_the_same_moment(place: Place, count: int) -> None:
    """One effect, one of them tells of it, and all have the same answer; on several nodes, too."""
    users = USERS[:count]
    nodes = [place.store() for _ in range(3 if place.is_shared else 1)]
    for node in nodes:
        await node.open()
    try:
        for number in range(10):
            key = once(f"key {number}")
            answers = await asyncio.gather(*(add(node, key, users) for node in nodes for _ in range(4)))
            assert Counter(answer.is_repeat for answer in answers)[False] == 1
            assert len({answer.notification.nid for answer in answers}) == 1
            assert len({answer.notification.created_at for answer in answers}) == 1
            [new] = [answer.new for answer in answers if answer.new]
            assert all(answer.documents == new for answer in answers)
            assert [document.user_id for document in new] == users
        documents = await inboxes(nodes[0], users)
        assert len(documents) == 10 * count
        assert await nodes[0].mail_counts() == MailCounts(10 * count, 0)
        assert len(await nodes[0].claim_mail(60, 100)) == 10
        assert await nodes[0].complete_intents() == []
    finally:
        for node in nodes:
            await node.close()


async def test_one_of_two_different_requests_with_the_same_key_at_once(store: Store) -> None:
    """Is carried out, and the other refused."""
    requests = [once(fingerprint=bytes([number]) * 32) for number in range(8)]
    answers = await asyncio.gather(*(add(store, each) for each in requests), return_exceptions=True)
    assert Counter(type(answer) for answer in answers) == {Stored: 1, KeyReused: 7}
    assert len(await inboxes(store)) == 3


async def test_who_waits_too_long_for_the_same_request(place: Place) -> None:
    """Is told that it is in progress."""
    async with opened(place, timeout_s=0.2) as store:
        turns = getattr(store, "_turns", None) or store._adding._turns  # type: ignore[attr-defined]  # the store's own
        async with turns.take((TENANT, "key")):
            with pytest.raises(InProgress):
                await add(store, once())
            assert not (await add(store, once("another"))).is_repeat
        assert not (await add(store, once())).is_repeat


async def test_a_store_that_is_away_leaves_no_key(place: Place) -> None:
    """The same request is carried out when the store is back."""
    store = place.store()
    with pytest.raises(StoreUnavailable):
        await add(store, once())
    await store.open()
    try:
        assert not (await add(store, once())).is_repeat
    finally:
        await store.close()


async def test_what_fails_leaves_no_key(store: Store) -> None:
    """The key can be used for what is right."""
    with pytest.raises((TooLarge, UnicodeEncodeError)):
        await add(store, once(), notification=make_notification(content="\ud800", data="x" * 17_000_000))
    assert not (await add(store, once(fingerprint=b"g" * 32))).is_repeat
    assert len(await inboxes(store)) == 3


async def test_a_thousand_users(store: Store) -> None:
    """More than one statement or batch takes."""
    users = [f"user-{number}" for number in range(1200)]
    first = await add(store, once(), users)
    again = await add(store, once(), users)
    assert again.documents == first.documents == first.new
    assert await store.count_unseen(TENANT, users) == dict.fromkeys(users, 1)
    assert await store.mail_counts() == MailCounts(1200, 0)


async def test_erasing_a_tenant_erases_its_keys(store: Store) -> None:
    """A new tenant of that name knows nothing of them; those of others stay."""
    keys = [once(f"key {number}") for number in range(25)]
    for key in keys:
        await add(store, key, ["alice"], make_notification("other"))
    await add(store, once(), ["alice"])
    await store.directory.add_tenant(Tenant("other", now()), make_key("other"))
    await store.directory.remove_tenant("other", now())
    while await store.directory.erase_tenant("other", 10):
        pass
    for key in keys:
        assert not (await add(store, key, ["alice"], make_notification("other"))).is_repeat
    assert (await add(store, once(), ["alice"])).is_repeat


def make_key(tenant: str) -> ApiKey:
    return ApiKey("id", tenant, "name", "hashed", frozenset({Scope.PUBLISH}), now())


# -- broadcasts ----------------------------------------------------------------------------------------------


async def carry_out(store: Store) -> list[Document]:
    """Bring all open broadcasts to alice and bob."""
    documents: list[Document] = []
    while (broadcast := await store.broadcasts.claim(60)) is not None:
        documents += await store.broadcasts.expand(broadcast.notification, ["alice", "bob"])
        assert await store.broadcasts.finish(broadcast)
    return documents


async def test_a_broadcast_comes_once(store: Store) -> None:
    """Repeats before and after it has reached everybody change nothing, and have the same answer."""
    notification = make_notification(title="t")
    assert await store.broadcasts.add(notification, once()) == Accepted(notification)
    repeat = Accepted(notification, is_repeat=True)
    assert await store.broadcasts.add(make_notification(title="t"), once()) == repeat
    assert await store.broadcasts.count_open() == 1
    documents = await carry_out(store)
    assert len(documents) == 2
    assert await store.broadcasts.add(make_notification(title="t"), once()) == repeat
    assert await store.broadcasts.count_open() == 0
    assert await carry_out(store) == []
    assert await inboxes(store, ["alice", "bob"]) == documents
    with pytest.raises(KeyReused):
        await store.broadcasts.add(notification, once(fingerprint=b"g" * 32))


async def test_broadcasts_at_the_same_moment(place: Place) -> None:
    """One effect; all but one are repeats of it."""
    nodes = [place.store() for _ in range(3 if place.is_shared else 1)]
    for node in nodes:
        await node.open()
    try:
        adding = (node.broadcasts.add(make_notification(), once()) for node in nodes for _ in range(4))
        answers = await asyncio.gather(*adding)
        assert Counter(answer.is_repeat for answer in answers)[False] == 1
        assert len({answer.notification.nid for answer in answers}) == 1
        assert await nodes[0].broadcasts.count_open() == 1
    finally:
        for node in nodes:
            await node.close()


async def test_a_key_is_for_one_notification_or_one_broadcast(store: Store) -> None:
    """They share the keys of the tenant."""
    await store.broadcasts.add(make_notification(), once())
    with pytest.raises(KeyReused):
        await add(store, once(fingerprint=b"g" * 32))


# -- what only one of them does ------------------------------------------------------------------------------


async def test_sqlite_forgets_keys_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond their time go when others come, a few at a time, by their index."""
    monkeypatch.setattr(sqlite_once, "FORGET_AT_A_TIME", 4)
    present = now()
    path = tmp_path / "data" / "notifications.sqlite3"
    store = SQLiteStore(path, clock=lambda: present)
    await store.open()
    with closing(sqlite3.connect(path)) as connection:
        for number in range(10):
            await add(store, once(f"old {number}", keep_s=60), ["alice"])
        present += timedelta(seconds=60)
        left = []
        for number in range(4):
            await add(store, once(f"new {number}"), ["alice"])
            left.append(connection.execute("SELECT count(*) FROM once").fetchone()[0])
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sqlite_once.EXPIRED}", (0, 1)).fetchall()
    await store.close()
    assert left == [7, 4, 3, 4]
    assert [row[3] for row in plan] == ["SEARCH once USING COVERING INDEX once_by_end (expires_at<?)"]


async def test_sqlite_gives_a_file_without_keys_their_table(tmp_path: Path) -> None:
    """One that an earlier server made, or went on with."""
    place = SQLitePlace(tmp_path / "data" / "notifications.sqlite3")
    async with opened(place) as store:
        await add(store, None, ["alice"])
    with closing(sqlite3.connect(place.path)) as connection:
        connection.execute("DROP TABLE once")
    async with opened(place) as store:
        assert not (await add(store, once(), ["alice"])).is_repeat
        assert (await add(store, once(), ["alice"])).is_repeat


async def test_mongodb_forgets_keys_by_itself(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]]
) -> None:
    """It has an index for it, and each record says when; nothing else lies there for longer."""
    async with opened(MongoPlace(mongo_database.url, mongo_database.name)) as store:
        await add(store, once(keep_s=1000))
        await add(store, once("one"), ["alice"])
        await store.broadcasts.add(make_notification(), once("for all"))
    index = raw["notifications_once"].index_information()["expired"]
    assert (index["key"], index["expireAfterSeconds"]) == ([("expiresAt", 1)], 0)
    record = raw["notifications_once"].find_one({"_id": {"tenant": TENANT, "key": "key"}})
    assert record is not None
    assert abs(record["expiresAt"] - now() - timedelta(seconds=1000)) < timedelta(seconds=60)
    assert raw["notifications_intents"].count_documents({}) == 0


@COUNTS
async def test_an_answer_of_mongodb_that_got_lost(
    mongo_database: MongoDatabase, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """To the last write: the request fails, its repeat finds all of it, and the users are told after all, once."""
    users = USERS[:count]
    async with opened(MongoPlace(mongo_database.url, mongo_database.name)) as store:
        assert isinstance(store, MongoStore)
        insert = store._adding._batcher.insert

        async def insert_and_lose_the_answer(*arguments: Any) -> None:
            await insert(*arguments)
            raise StoreUnavailable

        with monkeypatch.context() as patch:
            patch.setattr(store._adding._batcher, "insert", insert_and_lose_the_answer)
            with pytest.raises(StoreUnavailable):
                await add(store, once(), users)
        again = await add(store, once(), users)
        assert (again.is_repeat, again.new) == (True, [])
        assert await store.complete_intents() == []
        monkeypatch.setattr(store._adding._doubts, "_grace_s", 0.0)
        told = await store.complete_intents()
        assert sorted(document.user_id for document in told) == sorted(users)
        assert await store.complete_intents() == []
        assert await store.mail_counts() == MailCounts(count, 0)


@COUNTS
async def test_what_mongodb_refuses_can_come_again(
    mongo_database: MongoDatabase, raw: Database[dict[str, Any]], count: int
) -> None:
    """By a validator of the operator's: when that is gone the same request is carried out, once."""
    users = USERS[:count]
    async with opened(MongoPlace(mongo_database.url, mongo_database.name)) as store:
        await add(store, None, ["somebody"])
        raw.command("collMod", "notifications", validator={"$nor": [{"_userId": users[0]}]})
        for _ in range(2):
            with pytest.raises(OperationFailure, match="refuses the document"):
                await add(store, once(), users)
        raw.command("collMod", "notifications", validator={})
        assert not (await add(store, once(), users)).is_repeat
        assert (await add(store, once(), users)).is_repeat
        assert len(await inboxes(store, users)) == count
        assert raw["notifications_intents"].count_documents({}) == 0
