"""The same request at several nodes on one MongoDB: whatever they do in whichever order, wherever they sleep or end, it
has its effect once.

Nodes are held before each of their commands to MongoDB, and let go one command at a time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.errors import AutoReconnect

from server.errors import StoreUnavailable
from server.messages import EmailDuty, Mail, MailRecipient, Recipient, now
from server.store import MailOutcome, Once, Stored, mongo_adding
from server.store.mongo import MongoStore
from tests.support.mongod import MongoDatabase
from tests.support.stores import TENANT, make_notification

USERS = ("zoe", "alice", "bob")

GATED = ("once", "intents", "documents", "users", "broadcasts")

LONG_AGO = timedelta(hours=1)


class Gate:
    """Where a node waits before each command. One that has ended carries out none any more."""

    def __init__(self) -> None:
        self.is_shut = False
        self.is_dead = False
        self._waiting: asyncio.Future[None] | None = None
        self._moved = asyncio.Event()

    async def pass_through(self) -> None:
        if self.is_dead:
            raise AutoReconnect("it has ended")
        if self.is_shut:
            self._waiting = asyncio.get_running_loop().create_future()
            self._moved.set()
            await self._waiting
            if self.is_dead:
                raise AutoReconnect("it has ended")

    async def let_one_pass(self, task: asyncio.Task[Any]) -> None:
        """Return when the next command waits, or the task has ended."""
        self._moved.clear()
        task.add_done_callback(lambda _: self._moved.set())
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.set_result(None)
        if not task.done():
            await self._moved.wait()

    def open(self) -> None:
        self.is_shut = False
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.set_result(None)


class Gated:
    """A collection behind a gate."""

    def __init__(self, collection: Any, gate: Gate) -> None:
        self._collection = collection
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._collection, name)
        return self._held(found) if asyncio.iscoroutinefunction(found) else found

    def _held(self, command: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            await self._gate.pass_through()
            return await command(*arguments, **options)

        return call


class Node:
    """A store, held at its gate while it adds."""

    def __init__(self, store: MongoStore) -> None:
        self.store = store
        self.gate = Gate()
        self.task: asyncio.Task[Any] | None = None
        for name in GATED:
            setattr(store._connection, name, Gated(getattr(store._connection, name), self.gate))

    async def begin(self, request: Callable[[MongoStore], Any]) -> None:
        self.gate.is_shut, self.gate.is_dead = True, False
        self.task = asyncio.ensure_future(request(self.store))
        await self.gate.let_one_pass(self.task)

    async def step(self) -> bool:
        """Let one command happen; False if there is no more."""
        assert self.task is not None
        if self.task.done():
            return False
        await self.gate.let_one_pass(self.task)
        return True

    async def crash(self) -> None:
        self.gate.is_dead = True
        await self.finish()

    async def finish(self) -> Stored | None:
        """Go on to the end; None: it has crashed."""
        assert self.task is not None
        self.gate.open()
        with suppress(StoreUnavailable):
            result: Stored = await self.task
            return result
        return None


class World:
    """Two nodes that carry out a request, and a third one that sweeps, mails and looks."""

    def __init__(self, a: Node, b: Node, third: MongoStore) -> None:
        self.a, self.b, self.third = a, b, third
        self._numbers = itertools.count()
        self.mailed: Counter[str] = Counter()
        self.told: Counter[str] = Counter()

    async def begin(self, users: Sequence[str]) -> None:
        """The same request arrives at both nodes."""
        self.users, self.key = users, Once(f"key {next(self._numbers)}", b"f" * 32, 3600.0)
        self.mailed.clear()
        self.told.clear()
        await self.a.begin(self.add)
        await self.b.begin(self.add)

    async def add(self, store: MongoStore) -> Stored:
        recipients = [Recipient(user, f"{user}@x.test") for user in self.users]
        due_at = now() - LONG_AGO
        owed = tuple(MailRecipient(each.user_id, str(each.email), due_at) for each in recipients)
        stored = await store.add(
            make_notification(content="c"), recipients, EmailDuty(Mail("s", "c"), owed), self.key
        )
        self.told.update(document.user_id for document in stored.new)
        return stored

    async def sweep(self) -> None:
        """What was left half stored is old now, and is completed."""
        await self.third._connection.intents.update_many(
            {"openedAt": {"$exists": True}}, {"$set": {"openedAt": now() - LONG_AGO}}
        )
        self.told.update(document.user_id for document in await self.third.complete_intents())

    async def mail(self) -> None:
        """Whatever mail is due goes out."""
        for job in await self.third.claim_mail(60, 10):
            self.mailed.update(recipient.user_id for recipient in job.recipients)
            assert await self.third.settle_mail(job, MailOutcome(sent=job.recipients))

    async def check(self) -> None:
        """The same request once more, and all that is left to do: everybody has it once, and one mail."""
        last = await self.add(self.third)
        await self.sweep()
        await self.mail()
        assert self.mailed == dict.fromkeys(self.users, 1)
        documents = self.third._connection.documents
        found = await documents.find({"nid": {"$exists": True}}).to_list()
        assert Counter(each["_userId"] for each in found) == dict.fromkeys(self.users, 1)
        assert {str(each["nid"]) for each in found} == {last.notification.nid}
        assert all("mail" not in each for each in found)
        assert await self.third._connection.intents.count_documents({}) == 0
        await documents.delete_many({})


@asynccontextmanager
async def world(database: MongoDatabase) -> AsyncIterator[World]:
    stores = [MongoStore(database.url, database.name) for _ in range(3)]
    for store in stores:
        await store.open()
    try:
        yield World(Node(stores[0]), Node(stores[1]), stores[2])
    finally:
        for store in stores:
            await store.close()


@pytest.fixture(autouse=True)
def one_document_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_adding, "CHUNK_DOCUMENTS", 1)


EVERYBODY = pytest.mark.parametrize("users", [USERS[:1], USERS], ids=["one-user", "several-users"])


@EVERYBODY
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "sleeps"])
async def test_a_node_that_ends_or_sleeps_anywhere(
    mongo_database: MongoDatabase, users: Sequence[str], ends: bool
) -> None:
    """Before each of its commands in turn: another node carries the request out, its mail goes out, and when the first
    one wakes up it changes nothing."""
    async with world(mongo_database) as here:
        for steps in itertools.count():
            await here.begin(users)
            has_more = all([await here.a.step() for _ in range(steps)])
            if ends:
                await here.a.crash()
            await here.b.finish()
            await here.mail()
            await here.sweep()
            await here.a.finish()
            assert max(here.told.values(), default=1) == 1
            await here.check()
            if not has_more:
                break
        assert steps > len(users) + 1


@EVERYBODY
async def test_nobody_comes_back(mongo_database: MongoDatabase, users: Sequence[str]) -> None:
    """A node ends before each of its commands in turn, and there is no repeat: nobody has it, or all do, with one
    mail."""
    async with world(mongo_database) as here:
        documents = here.third._connection.documents
        for steps in itertools.count():
            await here.begin(users)
            await here.b.crash()
            has_more = all([await here.a.step() for _ in range(steps)])
            await here.a.crash()
            await here.sweep()
            await here.mail()
            count = await documents.count_documents({})
            assert count in (0, len(users))
            assert here.mailed == (dict.fromkeys(users, 1) if count else {})
            await documents.delete_many({})
            await here.third._connection.once.delete_many({})
            if not has_more:
                break


ACTIONS = {
    "a": lambda here: here.a.step(),
    "b": lambda here: here.b.step(),
    "sweep": lambda here: here.sweep(),
    "mail": lambda here: here.mail(),
    "a ends": lambda here: here.a.crash(),
    "b ends": lambda here: here.b.crash(),
}

schedules = st.lists(st.sampled_from([*ACTIONS, "a", "b", "a", "b", "a", "b"]), max_size=30)


@EVERYBODY
def test_any_order(mongo_database: MongoDatabase, users: Sequence[str]) -> None:
    """Of the commands of two nodes, of sweeps, mail and crashes."""
    with asyncio.Runner() as runner:
        context = world(mongo_database)
        here = runner.run(context.__aenter__())

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(schedules)
        def holds(schedule: list[str]) -> None:
            runner.run(carry_out(here, users, schedule))

        try:
            holds()
        finally:
            runner.run(context.__aexit__(None, None, None))


async def carry_out(here: World, users: Sequence[str], schedule: list[str]) -> None:
    await here.begin(users)
    for action in schedule:
        await ACTIONS[action](here)
    await here.a.finish()
    await here.b.finish()
    await here.check()


async def test_a_broadcast_that_is_added_again(mongo_database: MongoDatabase) -> None:
    """By a node that slept, anywhere, while it was added elsewhere and reached everybody: it does not begin again, and
    exactly one node tells of it."""
    async with world(mongo_database) as here:
        broadcasts = here.third.broadcasts
        for steps in itertools.count():
            key = Once(f"broadcast {steps}", b"f" * 32, 3600.0)

            async def add(store: MongoStore, key: Once = key) -> Any:
                return await store.broadcasts.add(make_notification(title="t"), key)

            await here.a.begin(add)
            has_more = all([await here.a.step() for _ in range(steps)])
            await here.b.begin(add)
            here.b.gate.open()
            assert here.b.task is not None and here.a.task is not None
            answers = [await here.b.task]
            while (broadcast := await broadcasts.claim(60)) is not None:
                await broadcasts.expand(broadcast.notification, ["alice"])
                assert await broadcasts.finish(broadcast)
            here.a.gate.open()
            answers.append(await here.a.task)
            assert sorted(answer.is_repeat for answer in answers) == [False, True]
            assert len({answer.notification.nid for answer in answers}) == 1
            assert await broadcasts.count_open() == 0
            assert len(await here.third.newest(TENANT, "alice", before=None, limit=99)) == steps + 1
            if not has_more:
                break
        assert steps > 2
