"""Tests of server/marks.py, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server import marks as module
from server.errors import StoreUnavailable
from server.ids import new_id
from server.marks import Marks, Sent
from server.messages import Document
from server.store import HUB, SERVICE
from server.wire import Frame
from tests.support.core import ALICE, BOB, Core, open_core
from tests.support.feed_connection import FeedConnection


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


async def unmarked(core: Core, way: str = HUB, user: str = "alice") -> list[str]:
    """The ids that the store would send in this way."""
    room = (ALICE[0], user)
    documents = await core.store.deliveries.backlog(*room, way, since=None, after=None, limit=1000)
    return [document.id for document in documents]


def ids_of(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


# -- writing -------------------------------------------------------------------------------------------------
async def test_what_is_noted_together_is_one_write(core: Core) -> None:
    """Of all users; for each way its own."""
    mine, theirs = ids_of(await core.fill("alice", 20)), ids_of(await core.fill("bob", 20))
    for id_ in mine:
        core.marks.note(HUB, ALICE, [id_])
        core.marks.note(HUB, ALICE, [id_])
    core.marks.note(HUB, BOB, theirs[:5])
    assert core.marks.waiting == 25
    await core.marks.write()
    assert core.store.calls.count("mark") == 1
    assert core.marks.waiting == 0
    assert await unmarked(core) == []
    assert await unmarked(core, user="bob") == theirs[5:]
    assert await unmarked(core, SERVICE) == mine


async def test_large_writes_are_divided(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whole users."""
    monkeypatch.setattr(module, "MAX_PER_WRITE", 5)
    for number in range(10):
        core.marks.note(HUB, (ALICE[0], f"user-{number}"), [f"{number:024x}", f"{number + 100:024x}"])
    await core.marks.write()
    assert core.store.calls.count("mark") == 4
    assert core.marks.waiting == 0


async def test_while_the_store_is_away_marks_wait(core: Core) -> None:
    """And are written when it is back."""
    [document] = await core.fill("alice", 1)
    core.marks.note(HUB, ALICE, [document.id])
    core.store.goes_away()
    with pytest.raises(StoreUnavailable):
        await core.marks.write()
    assert core.marks.waiting == 1
    core.store.is_back()
    await core.marks.write()
    assert await unmarked(core) == []


async def test_a_write_that_is_cancelled_forgets_nothing(core: Core) -> None:
    """The end of the server writes it once more."""
    [document] = await core.fill("alice", 1)
    core.marks.note(HUB, ALICE, [document.id])
    gate = core.store.hold("mark")
    writing = asyncio.create_task(core.marks.write())
    await gate.reached()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert core.marks.waiting == 1
    gate.open()
    await core.marks.write()
    assert core.marks.waiting == 0


async def test_marks_that_wait_are_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is above the bound is not remembered: it comes again one day."""
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    for document in await core.fill("alice", 5):
        core.marks.note(HUB, ALICE, [document.id])
    assert core.marks.waiting == 3
    await core.marks.write()
    assert len(await unmarked(core)) == 2


async def test_a_user_takes_no_place_of_others(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who acknowledges whatever comes to mind while nothing can be written has a bound of their own."""
    monkeypatch.setattr(module, "MAX_PER_USER", 3)
    for _ in range(5):
        core.marks.note(SERVICE, ALICE, [new_id("default") for _ in range(2)])
    assert core.marks.waiting == 3
    theirs = ids_of(await core.fill("bob", 3))
    core.marks.note(SERVICE, BOB, theirs)
    assert core.marks.waiting == 6
    await core.marks.write()
    assert core.marks.waiting == 0
    assert await unmarked(core, SERVICE, "bob") == []


async def test_a_failure_does_not_end_the_writing(
    core: Core, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and tried again."""
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    [document] = await core.fill("alice", 1)
    core.marks.note(HUB, ALICE, [document.id])
    core.store.failure = RuntimeError("a bug")
    running = core.tasks.start(core.marks.run(), "marks")
    assert await asyncio.wait_for(core.store.failed.get(), 30) == "mark"
    assert await asyncio.wait_for(core.store.failed.get(), 30) == "mark"
    core.store.is_back()
    async with asyncio.timeout(30):
        while await unmarked(core):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
    assert not running.done()
    assert {record.getMessage() for record in caplog.records} == {
        "what was sent could not be remembered; it is tried again"
    }


# -- reading beside it ---------------------------------------------------------------------------------------
async def test_readers_know_what_the_store_may_not_show_yet(core: Core) -> None:
    """What waits, what is being written at this moment, and what is noted and even written while they read."""
    first, second, third = ids_of(await core.fill("alice", 3))
    core.marks.note(HUB, ALICE, [first])
    gate = core.store.hold("mark")
    writing = asyncio.create_task(core.marks.write())
    await gate.reached()
    core.marks.note(HUB, ALICE, [second])
    with core.marks.noted(HUB, ALICE) as noted:
        assert noted == {first, second}
        core.marks.note(HUB, ALICE, [third])
        core.marks.note(HUB, BOB, ["b" * 24])
        core.marks.note(SERVICE, ALICE, ["c" * 24])
        gate.open()
        await writing
        await core.marks.write()
        assert core.marks.waiting == 0
        assert noted == {first, second, third}
    with core.marks.noted(HUB, ALICE) as noted:
        assert noted == set()
    assert core.marks._readers == {}


async def test_readers_do_not_disturb_each_other(core: Core) -> None:
    """Each has its own set, also where they are equal."""
    with core.marks.noted(HUB, ALICE) as first:
        with core.marks.noted(HUB, ALICE) as second:
            pass
        core.marks.note(HUB, ALICE, ["a" * 24])
    assert (first, second) == ({"a" * 24}, set())


# -- what has arrived ----------------------------------------------------------------------------------------
def sent_over(marks: Marks, connection: FeedConnection, *ids: str) -> Sent:
    """These were sent, in a frame each, and lie in the queue of the connection."""
    sent = Sent(marks, HUB, ALICE, connection)
    for id_ in ids:
        frame = Frame(f'"{id_}"')
        connection.send(frame)
        sent.add(id_, len(frame.text))
    return sent


async def test_sent_is_what_has_arrived(core: Core) -> None:
    """In order: what is behind something that is still on its way is on its way, too."""
    connection = FeedConnection(is_slow=True)
    sent_over(core.marks, connection, "a", "bb", "ccc")
    with core.marks.noted(HUB, ALICE) as noted:
        assert noted == set()
    for arrived in ({"a"}, {"a", "bb"}, {"a", "bb", "ccc"}):
        connection.take_one()
        with core.marks.noted(HUB, ALICE) as noted:
            assert noted == arrived


async def test_what_a_connection_leaves_behind_was_not_sent(core: Core) -> None:
    """Only what had arrived by its end; and nothing is kept of it."""
    first, second = ids_of(await core.fill("alice", 2))
    connection = FeedConnection(is_slow=True)
    sent = sent_over(core.marks, connection, first, second)
    connection.take_one()
    sent.end()
    assert core.marks.waiting == 1
    connection.take_one()
    await core.marks.write()
    assert await unmarked(core) == [second]
    sent_again = sent_over(core.marks, connection)
    sent_again.end()
    sent.end()
    assert core.marks._unsettled == {}


async def test_who_leaves_takes_nothing_from_other_connections_of_the_user(core: Core) -> None:
    """What they were sent is looked after until it has arrived, and then no more."""
    first, second = ids_of(await core.fill("alice", 2))
    leaving, staying = FeedConnection(is_slow=True), FeedConnection(is_slow=True)
    left = sent_over(core.marks, leaving, first)
    sent_over(core.marks, staying, second)
    left.end()
    staying.take_one()
    await core.marks.write()
    assert await unmarked(core) == [first]
    assert core.marks._unsettled == {}


async def test_all_that_has_arrived_is_noted_before_a_write(core: Core) -> None:
    """Nobody has to ask for it."""
    [document] = await core.fill("alice", 1)
    sent_over(core.marks, FeedConnection(), document.id)
    await core.marks.write()
    assert await unmarked(core) == []
