"""Broadcasts whose documents MongoDB refuses for good, and what earlier versions wrote of refused mail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydispatch import dispatcher
from pymongo.database import Database

from server import broadcaster as module
from server.bus import NOTIFICATION_FAILED
from server.errors import TooLarge
from server.messages import MailRecipient, Notification, Publication, now
from server.store import BroadcastRefused, MailOutcome, RefusedMail, mongo_adding, mongo_broadcasts
from server.store.mongo import MongoStore
from tests.support.mongo_stores import opened
from tests.support.mongod import MongoDatabase
from tests.support.stores import make_notification, owe, put, whole_inbox
from tests.test_broadcaster import ACME, Node, node_on
from tests.test_tenants import add_tenant

BAD = "c0ntent"
"""A content that a validator of the operator's does not take."""


@pytest.fixture
async def store(mongo_database: MongoDatabase) -> AsyncIterator[MongoStore]:
    async with opened(mongo_database) as store:
        await add_tenant(store.directory, ACME)
        yield store


@pytest.fixture
async def node(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    node = node_on(store)
    await node.tenants.open()
    try:
        yield node
    finally:
        await node.tasks.cancel()


async def refuse_some(store: MongoStore, raw: Database[dict[str, Any]]) -> None:
    """From now on documents with the content `BAD` are refused. (The collection must be there.)"""
    await put(store, "somebody", "else")
    raw.command("collMod", "notifications", validator={"content": {"$ne": BAD}})


async def test_a_refused_broadcast_is_set_aside(
    store: MongoStore, node: Node, raw: Database[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Told once, with its id and without its content, and counted; those before and after it go on, and who joins has
    them. It is kept: the operator can have it tried again."""
    failed: list[tuple[Publication, str]] = []

    def note(publication: Publication, code: str) -> None:
        failed.append((publication, code))

    dispatcher.connect(note, NOTIFICATION_FAILED, sender=node.broadcaster)
    await put(store, "alice", ACME)
    await refuse_some(store, raw)
    first, bad, last = [await node.broadcast(message=message) for message in ("a", BAD, "b")]
    await node.joins("alice")
    assert await node.having(first, "alice") == await node.having(last, "alice") == [1]
    await put(store, "bob", ACME, created_at=first.created_at)
    node.runs()
    await node.is_done()
    for notification, count in ((first, 1), (bad, 0), (last, 1)):
        assert await node.having(notification, "alice", "bob") == [count, count]
    assert [(each.notification.nid, each.door, code) for each, code in failed] == [
        (bad.nid, "broadcast", "broadcast_refused")
    ]
    [record] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert bad.nid in record.getMessage() and "121" in record.getMessage()
    assert BAD not in caplog.text
    [aside] = raw["notifications_broadcasts"].find()
    assert (str(aside["_id"]), "lease" in aside, "leasedUntil" in aside) == (bad.nid, False, False)
    assert await store.deliveries.of_notification(ACME, bad.nid, after=None, limit=9) == []

    raw.command("collMod", "notifications", validator={})
    change = {"$unset": {"failedAt": "", "failure": ""}}
    raw["notifications_broadcasts"].update_one({"failedAt": {"$exists": True}}, change)
    async with asyncio.timeout(30):
        while await node.having(bad, "alice", "bob") != [1, 1]:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.02)
    await node.is_done()
    assert raw["notifications_broadcasts"].count_documents({}) == 0
    dispatcher.disconnect(note, NOTIFICATION_FAILED, sender=node.broadcaster)


async def test_what_was_set_aside_is_not_open(store: MongoStore, raw: Database[dict[str, Any]]) -> None:
    """It is not claimed, counted or given, and who had claimed it has it no more; several who meet it tell once."""
    await refuse_some(store, raw)
    bad = make_notification(ACME, content=BAD)
    await store.broadcasts.add(bad)
    claimed = await store.broadcasts.claim(600.0)
    assert claimed is not None
    for _ in range(2):
        with pytest.raises(BroadcastRefused, match="refuses the document"):
            await store.broadcasts.expand(bad, ["a", "b"])
    assert not await store.broadcasts.advance(claimed, "b", 600.0)
    assert not await store.broadcasts.finish(claimed)
    assert await store.broadcasts.claim(600.0) is None
    assert await store.broadcasts.count_open() == 0
    assert await store.broadcasts.open_of(ACME, "a", since=bad.created_at, after=None, limit=9) == []
    assert await store.broadcasts.give("a", [bad]) == []


async def test_one_that_is_too_large_for_a_document(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there was room for the broadcast: it is set aside as well."""

    def too_large(*_: object) -> None:
        raise TooLarge("data", "too large")

    notification = make_notification(ACME)
    await store.broadcasts.add(notification)
    monkeypatch.setattr(mongo_adding, "encode", too_large)
    assert await store.broadcasts.give("a", [notification]) == []
    with pytest.raises(BroadcastRefused):
        await store.broadcasts.expand(notification, ["a"])
    assert await store.broadcasts.count_open() == 0


async def test_what_a_user_has_is_stepped_over(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of the open ones that are, in portions."""
    monkeypatch.setattr(mongo_broadcasts, "LOOKED_AT", 3)
    notifications: list[Notification] = [make_notification(ACME) for _ in range(11)]
    notifications.sort(key=lambda each: (each.created_at, each.nid))
    for each in notifications:
        await store.broadcasts.add(each)
    await store.broadcasts.give("a", notifications[:7] + notifications[8:10])

    async def open_of(user: str, limit: int, after: Notification | None = None) -> list[Notification]:
        since = notifications[0].created_at
        return await store.broadcasts.open_of(ACME, user, since=since, after=after, limit=limit)

    assert await open_of("a", 9) == [notifications[7], notifications[10]]
    assert await open_of("a", 1) == [notifications[7]]
    assert await open_of("a", 9, after=notifications[7]) == [notifications[10]]
    assert await open_of("b", 5) == notifications[:5]
    assert await open_of("b", 50, after=notifications[4]) == notifications[5:]
    assert len(await whole_inbox(store, "a", ACME)) == 9


@pytest.mark.parametrize("users", [("alice",), ("alice", "bob")], ids=["one", "several"])
async def test_refusals_of_earlier_versions_have_no_time(
    store: MongoStore, raw: Database[dict[str, Any]], users: tuple[str, ...]
) -> None:
    """They are shown without it."""
    recipients = [MailRecipient(user, f"{user}@example.test", now()) for user in users]
    notification = await owe(store, *recipients)
    [job] = await store.claim_mail(60, 10)
    refused = tuple(RefusedMail(each.user_id, each.email, 550, "no") for each in job.recipients)
    assert await store.settle_mail(job, MailOutcome(refused=refused))
    for collection in ("notifications", "notifications_intents"):
        raw[collection].update_many(
            {"mail.refused": {"$exists": True}}, {"$unset": {"mail.refused.$[].refusedAt": ""}}
        )
    found = await store.deliveries.of_notification(notification.tenant, notification.nid, after=None, limit=9)
    assert [(each.refused, each.refused_at) for each in found] == [(each, None) for each in refused]
