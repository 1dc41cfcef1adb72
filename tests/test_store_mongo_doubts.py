"""Tests of server/store/mongo_doubts.py: what was stored though its request was told otherwise."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from server.errors import StoreUnavailable
from server.messages import Document, Recipient
from server.store import Once, Stored
from server.store import mongo_doubts as module
from server.store.mongo import MongoStore
from server.store.mongo_connection import Connection
from tests.support.mongod import MongoDatabase
from tests.support.stores import TENANT, MongoPlace, make_notification

USERS = ("zoe", "alice", "bob")

KEY = Once("key", b"f" * 32, 3600.0)


@pytest.fixture
async def mongo(mongo_database: MongoDatabase) -> AsyncIterator[MongoStore]:
    store = MongoPlace(mongo_database.url, mongo_database.name).store()
    assert isinstance(store, MongoStore)
    await store.open()
    yield store
    await store.close()


async def add(store: MongoStore, once: Once | None) -> Stored:
    return await store.add(make_notification(), [Recipient(user) for user in USERS], None, once)


class Lossy:
    """The collection, of which the answer to one kind of commands gets lost, or the command itself."""

    def __init__(self, collection: Any, command: str, *, arrives: bool) -> None:
        self._collection, self._command, self._arrives = collection, command, arrives

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        return self._lost(found) if name == self._command else found

    def _lost(self, command: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            if self._arrives:
                await command(*arguments, **options)
            raise AutoReconnect("the answer is lost")

        return call


async def fail(store: MongoStore, once: Once | None, monkeypatch: pytest.MonkeyPatch, arrives: bool) -> None:
    """A request whose documents are all there, and whose intent cannot be removed, or is, and nobody hears of it."""
    with monkeypatch.context() as patch:
        intents = Lossy(store._connection.intents, "delete_one", arrives=arrives)
        patch.setattr(store._connection, "intents", intents)
        with pytest.raises(StoreUnavailable):
            await add(store, once)


async def told(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who is told by the next sweeps, when it has become late."""
    monkeypatch.setattr(store._adding, "_grace_s", -60.0)  # the store's clock is another one
    monkeypatch.setattr(store._adding._doubts, "_grace_s", 0.0)
    documents = [*await store.complete_intents(), *await store.complete_intents()]
    return sorted(document.user_id for document in documents)


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "command lost"])
async def test_after_the_last_document(
    mongo: MongoStore, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """With a key: a repeat finds it complete and tells nobody, so that the sweep has to."""
    await fail(mongo, KEY, monkeypatch, arrives)
    again = await add(mongo, KEY)
    assert (again.is_repeat, again.new) == (True, [])
    assert await told(mongo, monkeypatch) == sorted(USERS)


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "command lost"])
async def test_after_the_intent_is_closed(
    mongo: MongoStore, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """Without a key: if the intent is closed, no sweep finds it any more; if it is open, they are told of it once."""
    await fail(mongo, None, monkeypatch, arrives)
    assert await told(mongo, monkeypatch) == sorted(USERS)


async def test_who_has_changed_it_since_knows_of_it(
    mongo: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have read it."""
    await fail(mongo, None, monkeypatch, arrives=True)
    [document] = await mongo.newest(TENANT, "alice", before=None, limit=1)
    await mongo.mark_seen(TENANT, "alice", [document.id])
    assert await told(mongo, monkeypatch) == ["bob", "zoe"]


async def test_what_takes_the_last_places_meanwhile_waits_for_its_turn(
    mongo: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken out in place of what it has pushed out."""
    monkeypatch.setattr(mongo._adding._doubts, "_uncertain", deque(maxlen=len(USERS)))
    read_stored = module.read_stored
    is_first = True

    async def slowly(connection: Connection, documents: Sequence[Document]) -> list[Document]:
        nonlocal is_first
        found = await read_stored(connection, documents)
        if is_first:
            is_first = False
            await fail(mongo, None, monkeypatch, arrives=True)
        return found

    await fail(mongo, None, monkeypatch, arrives=True)
    monkeypatch.setattr(module, "read_stored", slowly)
    assert await told(mongo, monkeypatch) == sorted(2 * USERS)


@pytest.mark.parametrize("once", [KEY, None], ids=["with a key", "without"])
async def test_who_is_cancelled_after_the_insert(
    mongo: MongoStore, monkeypatch: pytest.MonkeyPatch, once: Once | None
) -> None:
    """As what a broker's message asks for is, when the store is away for another: it comes again, here or at another
    node, and whoever has it then finds it complete."""
    batcher = mongo._adding._batcher
    insert = batcher.insert

    async def cancelled(*arguments: Any) -> None:
        await insert(*arguments)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(batcher, "insert", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await mongo.add(make_notification(), [Recipient("alice")], None, once)
    assert await told(mongo, monkeypatch) == ["alice"]


async def test_after_a_part_of_a_batch_for_everybody(
    mongo: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tries it again finds that those have theirs, and tells the others only."""
    notification = make_notification()
    await mongo.broadcasts.add(notification)
    documents = mongo._connection.documents
    with monkeypatch.context() as patch:
        lossy = Lossy(documents, "insert_many", arrives=True)
        patch.setattr(mongo._connection, "documents", lossy)
        with pytest.raises(StoreUnavailable):
            await mongo.broadcasts.expand(notification, USERS)
    assert await mongo.broadcasts.expand(notification, USERS) == []
    assert await told(mongo, monkeypatch) == sorted(USERS)
