"""No mail is lost in any crash, and none is repeated but what was on its way at that moment.

The mail server is a real one and counts; the crash is SIGKILL of the process that mails.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from server.messages import MailRecipient, now
from server.store import MailCounts, Store
from tests.support.smtp_sink import SMTPSink, SunkMail
from tests.support.stores import TENANT, Place, fresh_place, owe

ROOT = Path(__file__).resolve().parents[1]

SHORT_LEASE_S = 2.0
"""What a killed process held is claimed again after it."""

LONG_LEASE_S = 600.0
"""That does not run out during a test."""

UNTIL_BOTH_RUN_S = 5.0
"""Two processes that start take less, and then both begin at the same moment."""

MAX_IN_HAND = 4 * 5
"""Recipients of one process between the mail server's answer and settling: connections, and recipients of a message.
A job of more is settled as a whole, so these tests owe each notification to fewer."""


@pytest.fixture
async def sink() -> AsyncIterator[SMTPSink]:
    with SMTPSink() as sink:
        yield sink


@pytest.fixture
def shared_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where several nodes may be at once."""
    with fresh_place("mongo-replica-set", request) as place:
        yield place


async def start(place: Place, sink: SMTPSink, lease_s: float) -> Process:
    argv = ["-m", "tests.support.mail_load", str(sink.port), str(lease_s), *place.arguments()]
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, cwd=ROOT, stdout=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"running\n"
    return process


async def kill(process: Process) -> None:
    process.kill()
    await process.wait()


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Store]:
    store = place.store()
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def owe_many(place: Place, count: int, in_s: float = 0.0) -> set[tuple[str, str]]:
    """To one, two, three or four users each, due in so many seconds; all mails, by notification and address."""
    owed = set()
    due_at = now() + timedelta(seconds=in_s)
    async with opened(place) as store:
        for number in range(count):
            users = [f"user-{number}-{each}" for each in range(number % 4 + 1)]
            recipients = [MailRecipient(user, f"{user}@example.test", due_at) for user in users]
            notification = await owe(store, *recipients)
            owed |= {(notification.nid, each.email) for each in recipients}
    return owed


def nid_of(mail: SunkMail) -> str:
    """By its Message-ID."""
    match = re.search(rb"^Message-ID: <([0-9a-f]{24})@example\.org>\r$", mail.content, re.MULTILINE)
    assert match is not None
    return match[1].decode()


def taken(sink: SMTPSink) -> Counter[tuple[str, str]]:
    """How often the sink has taken each mail, by notification and address."""
    return Counter((nid_of(mail), address) for mail in sink.mails for address in mail.recipients)


async def owed_now(place: Place) -> set[tuple[str, str]]:
    async with opened(place) as store:
        entries = await store.outbox.entries(TENANT, limit=10_000)
    return {(entry.nid, entry.email) for entry in entries}


async def until_all_is_settled(place: Place) -> None:
    """By looking from beside, as the processes hold the store."""
    beside = place.beside()
    await beside.open()
    try:
        async with asyncio.timeout(90):
            while await beside.outbox.entries(TENANT, limit=1):  # noqa: ASYNC110 - another process changes it
                await asyncio.sleep(0.1)
    finally:
        await beside.close()


async def test_killed_after_handing_over(place: Place, sink: SMTPSink) -> None:
    """The mail server has taken the mail, and nobody has written it down: it comes again, as the same message."""
    [mail] = await owe_many(place, 1)
    sink.hang_at = "end"
    process = await start(place, sink, SHORT_LEASE_S)
    await sink.stuck.wait()
    await kill(process)
    assert taken(sink) == {mail: 1}
    assert await owed_now(place) == {mail}
    sink.hang_at = None
    process = await start(place, sink, SHORT_LEASE_S)
    await until_all_is_settled(place)
    await kill(process)
    assert taken(sink) == {mail: 2}
    first, second = sink.mails
    assert first.content == second.content


async def kill_again_and_again(place: Place, sink: SMTPSink, notifications: int, kills: int) -> None:
    owed = await owe_many(place, notifications)
    may_repeat: Counter[tuple[str, str]] = Counter()
    taken_before: Counter[tuple[str, str]] = Counter()
    for _ in range(kills):
        process = await start(place, sink, SHORT_LEASE_S)
        for _ in range(random.randint(1, notifications // (2 * kills))):
            await sink.next_mail()
        await kill(process)
        # What the sink had been sent by then it may still be taking.
        before = -1
        while before != len(sink.mails):
            before = len(sink.mails)
            await asyncio.sleep(0.1)
        gap = {mail for mail in await owed_now(place) if taken(sink)[mail] > taken_before[mail]}
        assert len(gap) <= MAX_IN_HAND
        may_repeat.update(gap)
        taken_before = taken(sink)
    process = await start(place, sink, SHORT_LEASE_S)
    await until_all_is_settled(place)
    await kill(process)
    mailed = taken(sink)
    assert set(mailed) == owed
    assert all(times <= 1 + may_repeat[mail] for mail, times in mailed.items())
    contents: dict[str, set[bytes]] = {}
    for mail in sink.mails:
        contents.setdefault(nid_of(mail), set()).add(mail.content)
    assert {len(each) for each in contents.values()} == {1}


async def test_killing_who_mails(place: Place, sink: SMTPSink) -> None:
    """Everybody gets each mail; twice only what had been taken and not settled when a process was killed, and then it
    is the same message."""
    await kill_again_and_again(place, sink, 40, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killing_who_mails_again_and_again(place: Place, sink: SMTPSink) -> None:
    """The same over many rounds."""
    await kill_again_and_again(place, sink, 300, 10)


async def test_two_nodes_share_the_work(shared_place: Place, sink: SMTPSink) -> None:
    """Each mail is sent by one of them."""
    place = shared_place
    owed = await owe_many(place, 40, in_s=UNTIL_BOTH_RUN_S)
    nodes = await asyncio.gather(*(start(place, sink, LONG_LEASE_S) for _ in range(2)))
    await until_all_is_settled(place)
    for node in nodes:
        await kill(node)
    assert taken(sink) == dict.fromkeys(owed, 1)
    async with opened(place) as store:
        assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_one_of_two_nodes_is_killed(shared_place: Place, sink: SMTPSink) -> None:
    """The other one mails what is left at once, and what the dead one held when its leases end."""
    place = shared_place
    owed = await owe_many(place, 40, in_s=UNTIL_BOTH_RUN_S)
    first, second = await asyncio.gather(*(start(place, sink, SHORT_LEASE_S) for _ in range(2)))
    for _ in range(10):
        await sink.next_mail()
    await kill(first)
    await until_all_is_settled(place)
    await kill(second)
    mailed = taken(sink)
    assert set(mailed) == owed
    assert sum(mailed.values()) - len(owed) <= MAX_IN_HAND
