"""A crash loses nothing that was acknowledged, stores nothing twice, and leaves nothing half stored.

The crash is SIGKILL, of the process that writes or of the database server, under load and at a moment that differs
from round to round; all rounds of a test go on with the same data.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from bson import ObjectId

from server.errors import StoreUnavailable
from server.messages import Document, now
from server.store import Store
from tests.support.broadcast_load import expand_all
from tests.support.mongo_stores import original, until
from tests.support.mongod import Mongod
from tests.support.store_load import USERS, users_of
from tests.support.stores import TENANT, MongoPlace, Place, fresh_place, whole_inbox

ROOT = Path(__file__).resolve().parents[1]

CHECK_TIMEOUT_S = 1.0
"""Of the store that looks at what the crash has left. Short, as what was left half done must be older than it."""

COMPLETED_WITHIN_S = 30.0

Acknowledged = dict[str, dict[str, str]]
"""nid -> user -> id, as the load printed them."""


class Load:
    """The process of a module of tests.support that prints what was acknowledged."""

    def __init__(self, process: Process, acknowledged: Acknowledged) -> None:
        self._process = process
        self._acknowledged = acknowledged

    @classmethod
    async def start(cls, place: Place, acknowledged: Acknowledged, module: str = "store_load") -> Load:
        argv = [sys.executable, "-m", f"tests.support.{module}", *place.arguments()]
        return cls(await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=PIPE), acknowledged)

    async def acknowledges(self, count: int) -> None:
        """Return after that many more adds."""
        for _ in range(count):
            line = await self._read_line()
            assert line, "the load ended by itself"

    async def acknowledges_what_came_after(self, instant: datetime) -> None:
        """Return when an add that began after `instant` is acknowledged: what was before may still be in the pipe."""
        while ObjectId(next(reversed(self._acknowledged))).generation_time <= instant:
            await self.acknowledges(1)

    async def kill(self) -> None:
        """SIGKILL; what was acknowledged until then counts too."""
        self._process.kill()
        while await self._read_line():
            pass
        await self._process.wait()

    async def _read_line(self) -> bool:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        if not line.endswith("\n"):
            return False
        nid, *pairs = line.split()
        self._acknowledged[nid] = dict(pair.split(":") for pair in pairs)
        return True


async def stored(store: Store) -> dict[str, list[Document]]:
    """nid -> its documents, of all users of the load."""
    documents: dict[str, list[Document]] = {}
    for number in range(USERS):
        for document in await whole_inbox(store, f"user-{number}"):
            documents.setdefault(document.notification.nid, []).append(document)
    return documents


def half_stored(notifications: dict[str, list[Document]]) -> list[str]:
    """The nids that some of their recipients have, and others not."""
    return [
        nid
        for nid, documents in notifications.items()
        if len(documents) < len(users_of(documents[0].notification.content))
    ]


def count_owed(notifications: dict[str, list[Document]]) -> int:
    """How many of the documents come with a mail that nobody has sent."""
    documents = itertools.chain.from_iterable(notifications.values())
    return sum(document.notification.data["owed"] for document in documents)


def owed(notifications: dict[str, list[Document]]) -> int:
    """How many mails the load meant to be owed for these."""
    return sum(
        document.notification.data["owed"] for documents in notifications.values() for document in documents
    )


async def completed(store: Store) -> dict[str, list[Document]]:
    """What is stored once all that was begun is completed, which takes a while: a store leaves alone what is so young
    that its writer may still be at it. Gives up after `COMPLETED_WITHIN_S`."""
    gives_up_at = time.monotonic() + COMPLETED_WITHIN_S
    while True:
        is_late = time.monotonic() > gives_up_at
        try:
            await store.complete_intents()
            notifications = await stored(store)
            due = (await store.mail_counts()).due
        except StoreUnavailable:
            # A machine may take longer than its short limit.
            if is_late:
                raise
            continue
        if is_late or (not half_stored(notifications) and due == owed(notifications)):
            return notifications
        await asyncio.sleep(0.2)


async def check(place: Place, acknowledged: Acknowledged) -> None:
    """Open the store anew and compare."""
    store = place.store(timeout_s=CHECK_TIMEOUT_S)
    await store.open()
    try:
        notifications = await completed(store)
        assert not half_stored(notifications)
        assert acknowledged.keys() <= notifications.keys()
        for nid, documents in notifications.items():
            recipients = Counter(document.user_id for document in documents)
            assert recipients == Counter(users_of(documents[0].notification.content))
            if nid in acknowledged:
                assert {document.user_id: document.id for document in documents} == acknowledged[nid]
        assert (await store.mail_counts()).due == owed(notifications)
        unseen = await store.count_unseen(TENANT, [f"user-{number}" for number in range(USERS)])
        assert sum(unseen.values()) == sum(map(len, notifications.values()))
    finally:
        await store.close()


async def kill_the_writer(place: Place, rounds: int) -> None:
    acknowledged: Acknowledged = {}
    for _ in range(rounds):
        load = await Load.start(place, acknowledged)
        try:
            await load.acknowledges(random.randint(1, 400))
        finally:
            await load.kill()
        await check(place, acknowledged)


async def test_killing_the_writer(place: Place) -> None:
    """A process that is killed while it adds has stored all that it acknowledged, once and whole."""
    await kill_the_writer(place, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killing_the_writer_again_and_again(place: Place) -> None:
    """The same over many rounds."""
    await kill_the_writer(place, 8)


# -- broadcasts ----------------------------------------------------------------------------------------------

LISTENERS = [f"listener-{number:02}" for number in range(60)]


async def kill_who_broadcasts(place: Place, rounds: int) -> None:
    """Where several nodes may, two at once."""
    async with opened(place) as store:
        await store.directory.note_users({(TENANT, listener): now() for listener in LISTENERS})
    acknowledged: Acknowledged = {}
    for _ in range(rounds):
        loads = [await Load.start(place, acknowledged, "broadcast_load") for _ in range(1 + place.is_shared)]
        try:
            for load in loads:
                await load.acknowledges(random.randint(1, 30))
        finally:
            for load in loads:
                await load.kill()
    async with opened(place) as store:
        async with asyncio.timeout(COMPLETED_WITHIN_S):
            while await store.broadcasts.count_open():
                await expand_all(store)  # all but what leases of the killed still hold
        await check_broadcasts(store, acknowledged)


async def check_broadcasts(store: Store, acknowledged: Acknowledged) -> None:
    """Everybody has each of them once. One that was stored and not acknowledged everybody has, too."""
    documents = [document for listener in LISTENERS for document in await whole_inbox(store, listener)]
    received = Counter((document.notification.nid, document.user_id) for document in documents)
    assert set(received.values()) == {1}
    nids = {nid for nid, _ in received}
    assert nids >= acknowledged.keys()
    assert received.keys() == {(nid, listener) for nid in nids for listener in LISTENERS}
    assert len({document.id for document in documents}) == len(documents)
    assert await store.count_unseen(TENANT, LISTENERS) == dict.fromkeys(LISTENERS, len(nids))


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Store]:
    store = place.store()
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_killing_who_broadcasts(place: Place) -> None:
    """A broadcast that was acknowledged reaches everybody once, however often those who store its documents are killed
    meanwhile, and whoever goes on."""
    await kill_who_broadcasts(place, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killing_who_broadcasts_again_and_again(place: Place) -> None:
    """The same over many rounds."""
    await kill_who_broadcasts(place, 8)


async def test_killing_who_migrates(request: pytest.FixtureRequest) -> None:
    """A process that brings up old documents leaves each as it was or as it is to be, killed again and again."""
    with fresh_place("mongo-standalone", request) as place:
        assert isinstance(place, MongoPlace)
        mongod = request.getfixturevalue("mongod_standalone")
        documents = [original(number, _userId=f"user-{number % USERS}") for number in range(20_000)]
        with mongod.client() as client:
            notifications = client[place.db]["notifications"]
            notifications.insert_many(documents)
            while left := notifications.count_documents({"tenant": None}):
                load = await Load.start(place, {})
                # It adds nothing before it has migrated everything.
                fewer = left - random.randint(1, 6000)
                await until(
                    lambda fewer=fewer: notifications.count_documents({"tenant": None}) <= max(fewer, 0)
                )
                await load.kill()
                half = notifications.count_documents({"tenant": None, "legacy": {"$exists": True}})
                assert half == notifications.count_documents({"tenant": "default", "legacy.zone": None}) == 0
        store = place.store()
        await store.open()
        try:
            for number in range(USERS):
                inbox = await whole_inbox(store, f"user-{number}", "default")
                assert [each.id for each in inbox[::-1]] == [
                    str(each["_id"]) for each in documents if each["_userId"] == f"user-{number}"
                ]
            known = await store.directory.users("default", after=None, limit=100)
            assert [user.user_id for user in known] == [f"user-{number}" for number in range(USERS)]
        finally:
            await store.close()


@contextmanager
def own_mongod(kind: str) -> Iterator[Mongod]:
    with Mongod(replica_set="rs0" if kind == "replica-set" else None) as mongod:
        yield mongod


async def kill_the_database(kind: str, rounds: int) -> None:
    acknowledged: Acknowledged = {}
    with own_mongod(kind) as mongod:
        place = MongoPlace(mongod.url, "test_crash")
        for _ in range(rounds):
            load = await Load.start(place, acknowledged)
            try:
                await load.acknowledges(random.randint(1, 200))
                await asyncio.to_thread(mongod.kill)
                await asyncio.to_thread(mongod.start)
                async with asyncio.timeout(60):
                    await load.acknowledges_what_came_after(now())
                    await load.acknowledges(random.randint(1, 100))
            finally:
                await load.kill()
            await check(place, acknowledged)


@pytest.mark.parametrize("kind", ["standalone", "replica-set"])
async def test_killing_the_database(kind: str) -> None:
    """A mongod that is killed has kept all that was acknowledged, and the writer goes on by itself when it is back."""
    await kill_the_database(kind, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["standalone", "replica-set"])
async def test_killing_the_database_again_and_again(kind: str) -> None:
    """The same over many rounds."""
    await kill_the_database(kind, 3)
