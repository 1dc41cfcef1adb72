"""Tests of server/counts.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from pydispatch import dispatcher

from server import counts as module
from server.bus import INBOX_CHANGED
from server.counts import UnseenCounts
from server.dialects import HubDialect
from server.errors import StoreUnavailable
from server.rooms import Room
from tests.support.core import ALICE, BOB, Core, command, open_core
from tests.support.recording import Member, RecordingConnection

MANY = [f"user {number}" for number in range(7)]


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


@pytest.fixture
async def counts(core: Core, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[UnseenCounts]:
    """Running, without pauses."""
    monkeypatch.setattr(module, "MIN_INTERVAL_S", 0)
    monkeypatch.setattr(module, "RETRY_INTERVAL_S", 0)
    counts = UnseenCounts(core.store, core.rooms, core.backplane)  # type: ignore[arg-type]
    core.tasks.start(counts.run(), "counts")
    yield counts
    counts.close()


async def _count(connection: RecordingConnection) -> int:
    """The next count that the client is told."""
    while (message := await connection.next()).name != "count":
        pass
    return int(message.data["unseen"])


def _changed(*rooms: Room) -> None:
    dispatcher.send(INBOX_CHANGED, None, rooms=rooms)


async def test_every_connection_of_a_user_is_told_the_count_after_each_change(
    core: Core, counts: UnseenCounts
) -> None:
    """New, seen, deleted: the number is the store's."""
    first, second = await core.join("alice"), await core.join("alice")
    [document] = await core.notify("alice")
    assert [await _count(first), await _count(second)] == [1, 1]
    [other] = await core.notify("alice", content="other")
    assert [await _count(first), await _count(second)] == [2, 2]
    await core.inbox.mark_seen(ALICE, (document.id,))
    assert [await _count(first), await _count(second)] == [1, 1]
    await core.inbox.delete(ALICE, (other.id,))
    assert [await _count(first), await _count(second)] == [0, 0]


@pytest.mark.parametrize("is_online", [False, True], ids=["not online", "online, but told no counts"])
async def test_only_whom_it_concerns_is_counted_and_told(
    core: Core, counts: UnseenCounts, is_online: bool
) -> None:
    """Who is not online costs no query, and hears the count when joining; nor does who has only clients of another
    system, which know none."""
    if is_online:
        core.rooms.join(ALICE, Member(dialect=HubDialect()))
    bob = await core.join("bob")
    core.store.calls.clear()
    await core.notify("alice")
    await core.notify("bob")
    assert await _count(bob) == 1
    assert core.store.calls == ["add", "add", "count_unseen"]


async def test_changes_in_quick_succession_share_one_count(core: Core, counts: UnseenCounts) -> None:
    """A burst costs one count, taken after its last change."""
    alice, bob = await core.join("alice"), await core.join("bob")
    await core.fill("alice", 3)
    core.store.calls.clear()
    for _ in range(50):
        _changed(ALICE, BOB)
    assert [await _count(alice), await _count(bob)] == [3, 0]
    await core.backplane.flushed()
    assert core.store.calls == ["count_unseen"]
    assert not alice.received()


async def test_a_change_while_counting_is_counted_again(core: Core, counts: UnseenCounts) -> None:
    """What came after the count was taken is not lost."""
    alice = await core.join("alice")
    gate = core.store.hold("count_unseen")
    _changed(ALICE)
    await gate.reached()
    await core.fill("alice", 1)
    _changed(ALICE)
    gate.open()
    assert [await _count(alice), await _count(alice)] == [0, 1]


async def test_a_store_that_is_away_delays_the_count(core: Core, counts: UnseenCounts) -> None:
    """It is told when the store is back, with what changed meanwhile."""
    alice, bob = await core.join("alice"), await core.join("bob")
    await core.fill("alice", 2)
    await core.fill("bob", 1)
    core.store.goes_away()
    _changed(ALICE)
    async with asyncio.timeout(30):
        assert [await core.store.failed.get(), await core.store.failed.get()] == ["count_unseen"] * 2
    _changed(BOB)
    core.store.is_back()
    assert [await _count(alice), await _count(bob)] == [2, 1]


async def test_a_store_that_is_away_is_not_asked_without_end(
    core: Core, counts: UnseenCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has others to answer when it is back."""
    monkeypatch.setattr(module, "RETRY_INTERVAL_S", 1e9)
    await core.join("alice")
    core.store.goes_away()
    _changed(ALICE)
    async with asyncio.timeout(30):
        assert await core.store.failed.get() == "count_unseen"
    await asyncio.sleep(0.05)
    assert core.store.failed.empty()


def _connected(core: Core, rooms: Sequence[Room]) -> list[RecordingConnection]:
    connections = [RecordingConnection() for _ in rooms]
    for room, connection in zip(rooms, connections, strict=True):
        core.connect(connection)
        assert connection.session is not None
        core.rooms.join(room, connection.session._screen)
    return connections


async def test_many_users_are_counted_in_portions(
    core: Core, counts: UnseenCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query never holds up the store for all of them; users of several tenants are kept apart."""
    monkeypatch.setattr(module, "USERS_AT_ONCE", 3)
    rooms = [*(("default", user) for user in MANY), ("acme", MANY[0])]
    connections = _connected(core, rooms)
    await core.fill(MANY[0], 2)
    core.store.calls.clear()
    _changed(*rooms)
    assert [await _count(connection) for connection in connections] == [2, *[0] * 7]
    assert core.store.calls == ["count_unseen"] * 4


async def test_between_two_portions_is_time_for_others(
    core: Core, counts: UnseenCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round, however many it is about, is not told in one go: what is pushed meanwhile need not wait for its end."""
    monkeypatch.setattr(module, "USERS_AT_ONCE", 1)
    monkeypatch.setattr(module, "PAUSE_PER_WORK", 1e9)
    monkeypatch.setattr(module, "MAX_PAUSE_S", 1e9)
    rooms = [ALICE, BOB]
    connections = _connected(core, rooms)
    core.store.calls.clear()
    _changed(*rooms)
    messages = [asyncio.create_task(connection.next()) for connection in connections]
    [told], [untold] = await asyncio.wait(messages, return_when=asyncio.FIRST_COMPLETED)
    assert told.result().name == "count"
    index = messages.index(told)
    await core.notify(rooms[index][1])
    assert (await connections[index].next()).name == "notification"
    assert core.store.calls == ["count_unseen", "add"]
    assert untold.cancel()


@pytest.mark.parametrize("is_bounded", [False, True])
async def test_much_work_is_followed_by_rest_but_not_for_ever(
    core: Core, counts: UnseenCounts, monkeypatch: pytest.MonkeyPatch, is_bounded: bool
) -> None:
    """Between two rounds; between two portions it is bounded as well."""
    monkeypatch.setattr(module, "USERS_AT_ONCE", 1)
    monkeypatch.setattr(module, "REST_PER_WORK", 1e9)
    monkeypatch.setattr(module, "MAX_INTERVAL_S", 0.0 if is_bounded else 1e9)
    monkeypatch.setattr(module, "PAUSE_PER_WORK", 1e9)
    alice, bob = await core.join("alice"), await core.join("bob")
    _changed(ALICE, BOB)
    assert [await _count(alice), await _count(bob)] == [0, 0]
    core.store.calls.clear()
    _changed(ALICE)
    if is_bounded:
        assert await _count(alice) == 0
    else:
        await asyncio.sleep(0.05)
        assert (core.store.calls, alice.received()) == ([], [])


async def test_only_what_the_store_did_not_answer_is_asked_again(
    core: Core, counts: UnseenCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: a store that fails now and then would else never get through all of them."""
    monkeypatch.setattr(module, "USERS_AT_ONCE", 1)
    asked: list[str] = []
    tell = counts.tell

    async def tell_or_fail(tenant: str, user_ids: list[str]) -> None:
        asked.extend(user_ids)
        if len(asked) == 4:
            raise StoreUnavailable
        await tell(tenant, user_ids)

    monkeypatch.setattr(counts, "tell", tell_or_fail)
    connections = _connected(core, [("default", user) for user in MANY])
    _changed(*(("default", user) for user in MANY))
    assert [await _count(connection) for connection in connections] == [0] * 7
    await core.backplane.flushed()
    assert sorted(asked) == sorted([*MANY, asked[3]])
    assert asked[-1] == asked[3]
    assert not any(connection.received() for connection in connections)


async def test_without_a_change_there_is_nothing_to_do(
    core: Core, counts: UnseenCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One change, one round; then it sleeps, also if all who would be told are gone."""
    rounds, tell = [], counts.tell

    async def noted(tenant: str, user_ids: list[str]) -> None:
        rounds.append((tenant, user_ids))
        await tell(tenant, user_ids)

    monkeypatch.setattr(counts, "tell", noted)
    alice = await core.join("alice")
    _changed(ALICE)
    _changed(BOB)
    await _count(alice)
    alice.go()
    _changed(ALICE)
    for _ in range(20):
        await asyncio.sleep(0)
    assert rounds == [(ALICE[0], [ALICE[1]])]


async def test_after_close_nothing_is_heard_any_more(core: Core, counts: UnseenCounts) -> None:
    """The bus may outlive it."""
    alice = await core.join("alice")
    counts.close()
    core.store.calls.clear()
    _changed(ALICE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert core.store.calls == []
    assert not alice.received()
    dispatcher.connect(counts._note, INBOX_CHANGED)  # for the fixture, which closes it again


async def test_a_failed_count_silences_none_that_follow(
    core: Core, counts: UnseenCounts, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is logged; the next change is counted."""
    connection = await core.join("alice")
    core.store.failure = ZeroDivisionError()
    _changed(ALICE)
    await core.store.failed.get()
    core.store.is_back()
    await core.notify("alice")
    assert await _count(connection) == 1
    assert "could not tell counts" in caplog.text


async def test_who_speaks_of_more_is_told_all_counts(core: Core, counts: UnseenCounts) -> None:
    """By types; the others of the user as ever, and the other users cost no more than before."""
    classic, bob = await core.join("alice"), await core.join("bob")
    new = core.connect()
    command(new, "join", {"login": "alice", "password": "alice", "v": 2})
    assert (await new.next()).name == "joined"
    core.store.calls.clear()
    await core.notify("alice", type="order")
    assert await _count(classic) == 1
    assert core.store.calls == ["add", "counts"]
    while (message := await new.next()).name != "counts":
        pass
    assert message.data == {"unseen": 1, "total": 1, "types": {"order": {"unseen": 1, "total": 1}}}
    await core.notify("bob")
    assert await _count(bob) == 1
    assert core.store.calls[2:] == ["add", "count_unseen"]
