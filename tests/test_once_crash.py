"""Processes that are killed or sleep in the middle of requests with idempotency keys, and carry them out again: each
user has each notification exactly once, and one mail is owed for it."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from server.messages import now
from server.store import MailOutcome, Store
from server.store.mongo import MongoStore
from tests.support.once_load import REQUESTS, USERS, users_of
from tests.support.stores import Place, fresh_place, whole_inbox

ROOT = Path(__file__).resolve().parents[1]

Acknowledged = dict[int, str]
"""What was printed of a request: always the same."""


class Load:
    """A process of `once_load`."""

    def __init__(self, process: Process, acknowledged: Acknowledged) -> None:
        self._process = process
        self._acknowledged = acknowledged

    @classmethod
    async def start(cls, place: Place, acknowledged: Acknowledged) -> Load:
        argv = [sys.executable, "-m", "tests.support.once_load", *place.arguments()]
        return cls(await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=PIPE), acknowledged)

    async def acknowledges(self, count: int) -> None:
        """Return after that many more, or when it has ended."""
        for _ in range(count):
            if not await self._read_line():
                return

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def finish(self) -> int:
        """Wait for its end; what it returned."""
        while await self._read_line():
            pass
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL; what was acknowledged until then counts too."""
        if self._process.returncode is None:
            self._process.kill()
        await self.finish()

    async def _read_line(self) -> bool:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        if not line.endswith("\n"):
            return False
        number, _, what = line.partition(" ")
        assert self._acknowledged.setdefault(int(number), what) == what
        return True


async def check(place: Place, acknowledged: Acknowledged, mailed: Counter[str]) -> None:
    """All requests were acknowledged, and each had its effect once."""
    assert acknowledged.keys() == set(range(REQUESTS))
    store = place.store()
    await store.open()
    try:
        await complete(store)
        found: dict[int, dict[str, str]] = {}
        for number in range(USERS):
            for document in await whole_inbox(store, f"user-{number}"):
                ids = found.setdefault(int(document.notification.content), {})
                assert document.user_id not in ids
                ids[document.user_id] = document.id
        assert found == {number: ids_in(what) for number, what in acknowledged.items()}
        assert all(list(ids_in(what)) == users_of(number) for number, what in acknowledged.items())
        await mail_all(store, mailed)
        expected = Counter(
            f"{what.split()[0]} {user}" for what in acknowledged.values() for user in ids_in(what)
        )
        assert mailed == expected
    finally:
        await store.close()


def ids_in(what: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in what.split()[1:])


async def complete(store: Store) -> None:
    """What was left half stored, as if that were long ago."""
    if isinstance(store, MongoStore):
        long_ago = {"$set": {"openedAt": now() - timedelta(hours=1)}}
        await store._connection.intents.update_many({"openedAt": {"$exists": True}}, long_ago)
    await store.complete_intents()
    if isinstance(store, MongoStore):
        assert await store._connection.intents.count_documents({}) == 0


async def mail_all(store: Store, mailed: Counter[str]) -> None:
    """Send all mail that is due."""
    while jobs := await store.claim_mail(60, 100):
        for job in jobs:
            mailed.update(f"{job.nid} {recipient.user_id}" for recipient in job.recipients)
            assert await store.settle_mail(job, MailOutcome(sent=job.recipients))


async def kill_and_repeat(place: Place, rounds: int) -> None:
    """Where several nodes may, two at once carry out the same."""
    acknowledged: Acknowledged = {}
    mailed: Counter[str] = Counter()
    for _ in range(rounds):
        loads = [await Load.start(place, acknowledged) for _ in range(1 + place.is_shared)]
        try:
            await asyncio.gather(*(load.acknowledges(random.randint(1, 100)) for load in loads))
        finally:
            for load in loads:
                await load.kill()
        # Of what goes out now none may go out again.
        store = place.store()
        await store.open()
        await mail_all(store, mailed)
        await store.close()
    last = await Load.start(place, acknowledged)
    assert await last.finish() == 0
    await check(place, acknowledged, mailed)


async def test_killed_and_repeated(place: Place) -> None:
    """However often the process is killed, and whatever was mailed meanwhile."""
    await kill_and_repeat(place, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_and_repeated_again_and_again(place: Place) -> None:
    """The same over many rounds."""
    await kill_and_repeat(place, 12)


@pytest.mark.parametrize("kind", ["mongo-standalone", "mongo-replica-set"])
async def test_a_process_that_sleeps_while_another_does_its_work(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """It is stopped in the middle (SIGSTOP), and finds everything done and mailed when it goes on."""
    with fresh_place(kind, request) as place:
        await sleep_and_wake_up(place)


async def sleep_and_wake_up(place: Place) -> None:
    acknowledged: Acknowledged = {}
    mailed: Counter[str] = Counter()
    sleeper = await Load.start(place, acknowledged)
    try:
        await sleeper.acknowledges(random.randint(1, 60))
        sleeper.send(signal.SIGSTOP)
        other = await Load.start(place, acknowledged)
        assert await other.finish() == 0
        store = place.store()
        await store.open()
        await mail_all(store, mailed)
        await store.close()
        sleeper.send(signal.SIGCONT)
        assert await sleeper.finish() == 0
    finally:
        await sleeper.kill()
    await check(place, acknowledged, mailed)
