"""Tests of server/session.py and server/screen.py, on the real core and store; only the transport is left out."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server import backplane as backplane_module
from server import scan as scan_module
from server.conversations import classic as module
from server.messages import Added, Deleted, Document, Event, Seen, UnseenCount, altered
from server.screen import REMEMBERED_S
from server.session import Session
from server.wire import FAILED, SLOW, EventFrames
from tests.support.core import (
    ALICE,
    BOB,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    MAX_QUEUE_BYTES,
    PAGE_LIMIT,
    Core,
    command,
    open_core,
    publication,
)
from tests.support.recording import ELSEWHERE, Message, RecordingConnection

NOBODYS = "0123456789abcdef01234567"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


def _join(connection: RecordingConnection, login: str, password: str | None = None) -> None:
    command(connection, "join", {"login": login, "password": password or login})


def _ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


async def _is_done(connection: RecordingConnection) -> list[Message]:
    """What the client was told up to now: all of its commands have been carried out, and all events delivered."""
    await (command(connection, "no such command") or asyncio.sleep(0))
    told = []
    while (message := await connection.next()).data != _UNKNOWN:
        told.append(message)
    return told


_UNKNOWN = {
    "code": "invalid",
    "message": "name: unknown command; known are join, unseen, content, seen, delete, leave",
    "field": "name",
}


async def _ended(core: Core) -> None:
    """Return when no session has anything to do any more."""
    await core.tasks.finish(deadline_s=30)


def _push(session: Session, *events: Event) -> None:
    """As a room does."""
    frames = EventFrames()
    for event in events:
        frame = frames.frame(event)
        session._screen.push([(event, frame)], frame)


def _session(connection: RecordingConnection) -> Session:
    assert connection.session is not None
    return connection.session


# -- before a join -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("unseen", {}),
        ("content", {"page": 0}),
        ("content", {"before": None}),
        ("seen", [NOBODYS]),
        ("seen", {"all": True}),
        ("delete", {"ids": [NOBODYS]}),
    ],
)
async def test_a_command_before_join_is_answered_by_an_error(core: Core, name: str, data: Any) -> None:
    """The store is not asked, and the connection lives on."""
    connection = core.connect()
    command(connection, name, data)
    assert await connection.next() == Message(
        "error", {"code": "not_joined", "message": "join first: this connection has no user"}
    )
    assert core.store.calls == []
    await core.join("alice", connection)


async def test_leave_before_join_is_nothing(core: Core) -> None:
    """Nobody can leave nobody's room."""
    connection = core.connect()
    command(connection, "leave")
    assert await _is_done(connection) == []


async def test_a_client_that_goes_before_joining_was_nobody(core: Core) -> None:
    """There is no room to leave, and what it asked for before was not for anybody."""
    connection = core.connect()
    command(connection, "seen", [NOBODYS])
    connection.go()
    await _ended(core)
    assert core.store.calls == []
    assert core.rooms.user_count == 0


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("garbage", None),
        ("[" * 5000, None),
        ('{"name": "steal"}', "name"),
        ('{"name": "join", "data": {"login": "alice"}}', "data.password"),
        ('{"name": "seen", "data": {"ids": "all"}}', "data.ids"),
    ],
)
async def test_garbage_is_answered_by_an_error_that_names_the_field(
    core: Core, text: str, field: str | None
) -> None:
    """And changes nothing: before a join and after it, the connection lives on."""
    connection = core.connect()
    for _ in range(2):
        _session(connection).receive(text)
        message = await connection.next()
        assert (message.name, message.data["code"], message.data.get("field")) == ("error", "invalid", field)
        await core.join("alice", connection)


# -- joining -------------------------------------------------------------------------------------------------
async def test_a_join_with_nothing_unseen_is_answered_by_an_empty_list_and_the_count(core: Core) -> None:
    """`[]` is an old client's only sign of a good join."""
    connection = core.connect()
    _join(connection, "alice")
    assert [await connection.next(), await connection.next()] == [
        Message("notification", []),
        Message("count", {"unseen": 0}),
    ]
    assert core.rooms.is_online(ALICE)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (99, [99]), (100, [100]), (250, [100, 100, 50])])
async def test_all_unseen_follow_a_join_oldest_first(core: Core, count: int, sizes: list[int]) -> None:
    """In frames of at most 100, then their count; seen, deleted and other people's are left out."""
    seen, deleted, *unseen = _ids(await core.fill("alice", count + 2))
    await core.fill("bob", 1)
    await core.inbox.mark_seen(ALICE, (seen,))
    await core.inbox.delete(ALICE, (deleted,))
    connection = core.connect()
    _join(connection, "alice")
    frames = [await connection.next() for _ in sizes]
    assert [len(frame.data) for frame in frames] == sizes
    assert [id_ for frame in frames for id_ in frame.ids] == unseen
    assert await connection.next() == Message("count", {"unseen": count})


async def test_long_unseen_come_in_smaller_frames(core: Core) -> None:
    """So that no frame is much longer than the longest notification may be."""
    for size in (40_000, 40_000, 10, 10):
        await core.notify("alice", content="x" * size)
    connection = core.connect()
    _join(connection, "alice")
    frames = [await connection.next() for _ in range(3)]
    assert [len(document["content"]) for frame in frames for document in frame.data] == [
        40_000,
        40_000,
        10,
        10,
    ]
    assert [len(frame.data) for frame in frames] == [1, 2, 1]
    assert (await connection.next()).name == "count"


async def test_the_newest_that_are_long_are_fewer_and_more_follow(core: Core) -> None:
    """A frame says what it answers, and whether older ones follow: paging by `before` misses none."""
    for number in range(5):
        await core.notify("alice", content=str(number) * 40_000)
    connection = await core.join("alice")
    shown: list[str] = []
    before, more = None, True
    while more:
        command(connection, "content", {"before": before, "limit": 3})
        answer = await connection.next()
        assert answer.beside["before"] == before
        shown += [document["content"][0] for document in answer.data]
        before, more = answer.ids[-1], answer.beside["more"]
    assert shown == ["4", "3", "2", "1", "0"]


async def test_a_page_of_long_ones_comes_in_several_frames(core: Core) -> None:
    """The page holds what its number says."""
    for size in (40_000, 40_000, 10):
        await core.notify("alice", content="x" * size)
    connection = await core.join("alice")
    command(connection, "content", 0)
    assert [len(message.data) for message in await _is_done(connection)] == [1, 2]


async def test_a_page_of_long_ones_is_sent_frame_by_frame(core: Core) -> None:
    """Each when the one before has left: else a client that reads as fast as it can, or polls, would be closed as slow
    for what it asked for, whenever it asks."""
    for number in range(5):
        await core.notify("alice", content=str(number) * 60_000)
    connection = core.connect(RecordingConnection(is_slow=True))
    _join(connection, "alice")
    while (await connection.read())[-1].name != "count":
        pass
    connection.most_queued = 0
    command(connection, "content", 0)
    shown: list[str] = []
    while len(shown) < 5:
        shown += [fields["content"][0] for message in await connection.read() for fields in message.data]
    assert shown == ["0", "1", "2", "3", "4"]
    assert connection.most_queued == 1


async def test_a_slow_client_joins_while_it_is_pushed_more_than_may_wait(core: Core) -> None:
    """What comes while a frame leaves is left to the next read of the listing: nothing is missing, nothing twice, and
    nobody is closed for what could not have been sent yet."""
    first = _ids(await core.fill("alice", 150))
    connection = core.connect(RecordingConnection(is_slow=True))
    _join(connection, "alice")
    await connection.queued()
    pushed = [
        document.id
        for _ in range(12)
        for document in await core.notify("alice", content="x" * (MAX_QUEUE_BYTES // 4))
    ]
    shown: list[str] = []
    while True:
        frames = await connection.read()
        shown += [id_ for frame in frames if frame.name == "notification" for id_ in frame.ids]
        if any(frame.name == "count" for frame in frames):
            break
    assert shown == first + pushed
    assert connection.reasons == []


async def test_ten_thousand_unseen_come_one_frame_at_a_time(core: Core) -> None:
    """The next frame is made when the last one has left, however slow the client reads."""
    expected = _ids(await core.fill("alice", 10_000))
    connection = core.connect(RecordingConnection(is_slow=True))
    _join(connection, "alice")
    ids: list[str] = []
    for number in range(1, 101):
        [frame] = await connection.read()
        assert len(frame.data) == 100
        ids += frame.ids
        assert core.store.calls.count("unseen") <= number + 1
    assert ids == expected
    assert await connection.read() == [Message("count", {"unseen": 10_000})]
    assert connection.most_queued == 1
    assert connection.reasons == []


@pytest.mark.parametrize(
    ("login", "password"),
    [("alice", "wrong"), ("nobody", "nobody"), ("carol", "carol")],
    ids=["demo", "unknown", "known"],
)
async def test_a_wrong_password_changes_nothing(core: Core, login: str, password: str) -> None:
    """An error without a hint at what was wrong; who was joined before stays so."""
    connection = await core.join("bob")
    _join(connection, login, password)
    expected = {"code": "bad_credentials", "message": "login or password is wrong"}
    assert await connection.next() == Message("error", expected)
    assert not core.rooms.is_online(ALICE)
    [document] = await core.notify("bob")
    assert (await connection.next()).ids == [document.id]


async def test_a_demo_user_from_elsewhere_is_refused(core: Core) -> None:
    """The session tells where its connection calls from."""
    connection = core.connect(RecordingConnection(ELSEWHERE))
    _join(connection, "alice")
    assert (await connection.next()).data["code"] == "bad_credentials"
    _join(connection, "carol", "carol's secret")
    assert (await connection.next()).name == "notification"


async def test_joining_as_somebody_else_leaves_the_first_users_room(core: Core) -> None:
    """The original left the connection in both."""
    connection = await core.join("alice")
    await core.fill("bob", 2)
    _join(connection, "bob")
    assert [len((await connection.next()).data), (await connection.next()).data] == [2, {"unseen": 2}]
    assert not core.rooms.is_online(ALICE)
    await core.notify("alice")
    [document] = await core.notify("bob")
    assert [message.ids for message in await _is_done(connection)] == [[document.id]]


async def test_joining_again_as_the_same_user_is_a_fresh_welcome(core: Core) -> None:
    """As a client does that wants to be sure; pushes still come once."""
    connection = await core.join("alice")
    [first] = await core.notify("alice")
    _join(connection, "alice")
    [second] = await core.notify("alice")
    shown = [
        id_ for message in await _is_done(connection) if message.name == "notification" for id_ in message.ids
    ]
    assert shown.count(second.id) == 1
    assert set(shown) == {first.id, second.id}
    assert core.rooms.user_count == 1


async def test_leaving_keeps_the_connection(core: Core) -> None:
    """Be nobody again, and somebody else later."""
    connection = await core.join("alice")
    command(connection, "leave", {})
    command(connection, "unseen", {})
    assert (await connection.next()).data["code"] == "not_joined"
    assert not core.rooms.is_online(ALICE)
    await core.notify("alice")
    await core.join("bob", connection)
    assert not connection.received()


async def test_one_user_on_many_screens(core: Core) -> None:
    """Each hears of everything, until it goes."""
    first, second = await core.join("alice"), await core.join("alice")
    [document] = await core.notify("alice")
    assert (await first.next()).ids == (await second.next()).ids == [document.id]
    first.go()
    assert core.rooms.is_online(ALICE)
    [document] = await core.notify("alice")
    assert (await second.next()).ids == [document.id]
    assert not first.received()


# -- reading -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", [{"page": 1}, 1, "1", {"page": "1"}], ids=repr)
async def test_a_page_is_asked_for_in_either_form(core: Core, form: Any) -> None:
    """As many as configured, oldest first."""
    documents = _ids(await core.fill("alice", 2 * PAGE_LIMIT + 1))
    connection = core.connect()
    await core.join("alice", connection)
    command(connection, "content", form)
    assert (await connection.next()).ids == documents[PAGE_LIMIT : 2 * PAGE_LIMIT]


@pytest.mark.parametrize(("page", "count"), [(-7, 10), (0, 10), (2, 1), (3, 0), (10**30, 0)])
async def test_a_page_number_is_clamped(core: Core, page: int, count: int) -> None:
    """Before the first is the first; behind the last there is an empty one."""
    await core.fill("alice", 2 * PAGE_LIMIT + 1)
    connection = core.connect()
    await core.join("alice", connection)
    command(connection, "content", {"page": page})
    assert len((await connection.next()).data) == count


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"before": None}, slice(-1, -PAGE_LIMIT - 1, -1)),
        ({"limit": 3}, slice(-1, -4, -1)),
        ({"limit": 0}, slice(-1, -2, -1)),
        ({"limit": 1000}, slice(-1, -101, -1)),
    ],
    ids=repr,
)
async def test_the_newest_come_newest_first(core: Core, data: Any, expected: slice) -> None:
    """C1's extension; as many as asked for, at most 100, else as configured."""
    documents = _ids(await core.fill("alice", 120))
    connection = core.connect()
    await core.join("alice", connection)
    command(connection, "content", data)
    assert (await connection.next()).ids == documents[expected]


async def test_the_newest_before_a_document(core: Core) -> None:
    """How a client pages on; an id that is not the user's has nothing before it."""
    documents = _ids(await core.fill("alice", 5))
    [bobs] = _ids(await core.fill("bob", 1))
    connection = core.connect()
    await core.join("alice", connection)
    command(connection, "content", {"before": documents[3], "limit": 2})
    command(connection, "content", {"before": documents[3].upper(), "limit": 2})
    command(connection, "content", {"before": bobs})
    assert [(await connection.next()).ids for _ in range(3)] == [documents[2:0:-1], documents[2:0:-1], []]


async def test_unseen_can_be_asked_for_again(core: Core) -> None:
    """As at the join, but for the count."""
    connection = await core.join("alice")
    command(connection, "unseen", {})
    assert await connection.next() == Message("notification", [])
    documents = await core.fill("alice", 101)
    command(connection, "unseen", None)
    assert (await connection.next()).ids + (await connection.next()).ids == _ids(documents)
    assert await _is_done(connection) == []


async def test_answers_come_in_the_order_of_the_commands(core: Core) -> None:
    """However fast they were sent."""
    documents = _ids(await core.fill("alice", 6))
    connection = core.connect()
    await core.join("alice", connection)
    for id_ in documents:
        command(connection, "content", {"before": id_, "limit": 1})
    answers = [(await connection.next()).ids for _ in documents]
    assert answers == [[], *([id_] for id_ in documents[:-1])]


async def test_a_change_is_answered_before_what_was_asked_next(core: Core) -> None:
    """Though it comes to the asker as to all screens: by the room."""
    first, second, third = _ids(await core.fill("alice", 3))
    connection = core.connect()
    await core.join("alice", connection)
    connection.received()
    for name, data in (
        ("seen", [first]),
        ("content", 0),
        ("delete", [second]),
        ("seen", "?"),
        ("seen", {"all": True}),
    ):
        command(connection, name, data)
    told = await _is_done(connection)
    assert [message.name for message in told] == ["seen", "notification", "delete", "error", "seen"]
    assert [message.data for message in (told[0], told[2], told[4])] == [[first], [second], [third]]
    assert [fields["seen"] for fields in told[1].data] == [True, False, False]


async def test_each_answer_leaves_before_the_next_is_made(core: Core) -> None:
    """A client that asks much and reads slowly is not slow as long as it reads."""
    await core.fill("alice", 3)
    connection = core.connect(RecordingConnection(is_slow=True))
    _join(connection, "alice")
    for name, data in (("content", 0), ("content", {"limit": 2}), ("unseen", {})):
        command(connection, name, data)
    sizes = []
    while len(sizes) < 5:
        sizes += [len(message.data) for message in await connection.read()]
    assert sizes == [3, 1, 3, 2, 3]  # the one: {"unseen": 3}
    assert connection.most_queued <= 2


# -- changing ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["seen", "delete"])
@pytest.mark.parametrize("form", [lambda ids: {"ids": ids}, lambda ids: ids], ids=["object", "bare"])
async def test_a_change_reaches_all_connections_of_the_user_once(core: Core, name: str, form: Any) -> None:
    """The asker's too; with all of the ids given, not only the first."""
    asker, other, bob = core.connect(), core.connect(), await core.join("bob")
    ids = _ids(await core.fill("alice", 3))
    await core.join("alice", asker)
    await core.join("alice", other)
    command(asker, name, form(ids))
    assert await other.next() == Message(name, ids)
    assert await _is_done(asker) == [Message(name, ids)]
    assert await _is_done(other) == await _is_done(bob) == []


@pytest.mark.parametrize("name", ["seen", "delete"])
async def test_ids_of_another_user_change_nothing_and_are_told_to_nobody_else(core: Core, name: str) -> None:
    """The asker is answered that nothing of that was theirs."""
    [bobs] = await core.fill("bob", 1)
    alice, other = await core.join("alice"), await core.join("alice")
    bob = core.connect()
    await core.join("bob", bob)
    command(alice, name, [bobs.id, NOBODYS, "no id"])
    assert await _is_done(alice) == [Message(name, [])]
    assert await _is_done(other) == await _is_done(bob) == []
    assert await core.inbox.unseen(BOB, after=None, limit=9) == [bobs]


async def test_others_are_told_of_the_users_own_ids_only(core: Core) -> None:
    """Mixed with somebody else's, the user's own change."""
    [bobs], [own] = await core.fill("bob", 1), await core.fill("alice", 1)
    alice, other = core.connect(), core.connect()
    await core.join("alice", alice)
    await core.join("alice", other)
    command(alice, "seen", [bobs.id, own.id])
    assert await other.next() == await alice.next() == Message("seen", [own.id])


@pytest.mark.parametrize("name", ["seen", "delete"])
async def test_a_change_made_before_is_answered_to_the_asker_alone(core: Core, name: str) -> None:
    """A click on what another screen has marked already still gets its answer."""
    [document] = await core.fill("alice", 1)
    alice, other = core.connect(), core.connect()
    await core.join("alice", alice)
    await core.join("alice", other)
    command(alice, name, [document.id])
    await _is_done(alice)
    await _is_done(other)
    command(alice, name, [document.id])
    command(alice, name, [])
    assert await _is_done(alice) == [
        Message(name, [document.id] if name == "seen" else []),
        Message(name, []),
    ]
    assert await _is_done(other) == []


@pytest.mark.parametrize("count", [0, 1, 500, 1200])
async def test_all_unseen_are_marked_seen(core: Core, count: int) -> None:
    """`{all: true}`: every screen hears of each of them once; if there were none, only the asker hears so."""
    ids = _ids(await core.fill("alice", count))
    alice, other = core.connect(), core.connect()
    await core.join("alice", alice)
    await core.join("alice", other)
    command(alice, "seen", {"all": True})
    told = await _is_done(alice)
    assert {message.name for message in told} == {"seen"}
    assert [id_ for message in told for id_ in message.data] == ids
    assert max(len(message.data) for message in told) <= 500
    assert other.received() == (told if count else [])
    assert await core.inbox.count_unseen(ALICE) == 0


@pytest.mark.parametrize("name", ["seen", "delete"])
async def test_many_ids_are_changed_in_batches(core: Core, name: str) -> None:
    """All of them, told in frames that fit any queue."""
    ids = _ids(await core.fill("alice", 1200))
    alice = core.connect()
    await core.join("alice", alice)
    assert len(json.dumps(ids)) > MAX_PENDING_BYTES
    waiting = command(alice, name, ids)
    assert waiting is not None
    await waiting
    told = await _is_done(alice)
    assert [len(message.data) for message in told] == [500, 500, 200]
    assert [id_ for message in told for id_ in message.data] == ids
    assert await core.inbox.count_unseen(ALICE) == 0


@pytest.mark.parametrize("all_of_them", [True, False])
async def test_changes_of_many_are_told_as_fast_as_the_asker_reads(core: Core, all_of_them: bool) -> None:
    """The next batch is made when the last one has left: a slow client is asked for patience, not cut off."""
    ids = _ids(await core.fill("alice", 1500))
    connection = core.connect()
    await core.join("alice", connection)
    connection.received()
    connection.is_slow = True
    waiting = command(connection, "seen", {"all": True} if all_of_them else ids)
    told: list[str] = []
    for batch in (1, 2, 3):
        await connection.queued()
        await core.store.ping()  # whatever was asked of the store before is done
        assert core.store.calls.count("mark_all_seen" if all_of_them else "mark_seen") == batch
        [message] = await connection.read()
        told += message.data
    if waiting is not None:
        await waiting
    assert told == ids
    assert connection.reasons == []


# -- reads and pushes ----------------------------------------------------------------------------------------
async def test_a_push_that_arrives_during_a_read_waits_behind_its_answer(core: Core) -> None:
    """Also one for what the read could not see any more: in the end the client knows both."""
    [old] = await core.fill("alice", 1)
    connection = core.connect()
    await core.join("alice", connection)
    gate = core.store.hold("page")
    command(connection, "content", 0)
    await gate.reached()
    [new] = await core.notify("alice")
    await core.inbox.mark_seen(ALICE, (old.id,))
    await core.backplane.flushed()
    assert not connection.received()
    gate.open()
    answer, arrival, change = [await connection.next() for _ in range(3)]
    assert (answer.ids, answer.data[0]["seen"]) == ([old.id], False)
    assert arrival.ids == [new.id]
    assert change == Message("seen", [old.id])


async def test_a_push_that_arrives_during_the_welcome_waits_behind_it(core: Core) -> None:
    """The room is joined before anything is read, so nothing falls between."""
    connection, gate = core.connect(), core.store.hold("welcome")
    _join(connection, "alice")
    await gate.reached()
    [new] = await core.notify("alice")
    gate.open()
    assert [(await connection.next()).name for _ in range(2)] == ["notification", "count"]
    assert (await connection.next()).ids == [new.id]


async def test_the_join_of_a_known_user_asks_the_store_once(core: Core) -> None:
    """All that is unseen, if it goes into a frame, says how much that is."""
    await core.fill("alice", 2)
    await core.join("alice")
    await core.broadcaster._look()
    core.store.calls.clear()
    connection = core.connect()
    _join(connection, "alice")
    assert len((await connection.next()).ids) == 2
    assert await connection.next() == Message("count", {"unseen": 2})
    assert core.store.calls == ["welcome"]


async def test_a_push_of_what_was_answered_already_is_dropped(core: Core) -> None:
    """The read came after the store, the push came late: the answer has shown it, nothing comes twice."""
    connection = await core.join("alice")
    gate = core.store.hold("unseen")
    [document] = await core.fill("alice", 1)
    command(connection, "unseen")
    await gate.reached()
    _push(_session(connection), Added(document), UnseenCount(1))
    gate.open()
    assert (await connection.next()).ids == [document.id]
    assert await connection.next() == Message("count", {"unseen": 1})
    [newer] = await core.fill("alice", 1)
    command(connection, "content", {"limit": 1})
    assert [each["_id"] for each in (await connection.next()).data] == [newer.id]
    for each in (document, newer):
        _push(_session(connection), Added(each))
    assert await _is_done(connection) == []


async def test_a_push_older_than_what_was_answered_is_dropped_and_a_newer_one_is_not(core: Core) -> None:
    """Of each kind of event; the rev decides, whether the push waited or came later."""
    connection = await core.join("alice")
    [document] = await core.fill("alice", 1)
    [other] = await core.fill("alice", 1)
    change = await core.inbox.mark_seen(ALICE, (document.id,))
    assert change.rev is not None
    await core.backplane.flushed()
    connection.received()
    command(connection, "content", 0)
    assert (await connection.next()).data[0]["seen"]

    stale: list[Event] = [
        Added(document),
        Seen((document.id,), change.rev),
        Deleted((document.id,), document.rev),
        Seen((document.id, other.id), other.rev),
    ]
    fresh: list[Event] = [
        Added(altered(document, rev=change.rev + 1)),
        Seen((document.id, other.id), change.rev),
        Seen((document.id,), change.rev + 1),
        Deleted((document.id, NOBODYS), change.rev),
        Deleted((document.id,), change.rev + 1),
    ]
    _push(_session(connection), *stale, *fresh)
    expected = ["notification", "seen", "seen", "delete", "delete"]
    assert [message.name for message in await _is_done(connection)] == expected


async def test_of_a_push_only_what_an_answer_has_shown_is_dropped(core: Core) -> None:
    """A document that was deleted with others, and restored before it was read, stays on the screen."""
    connection = await core.join("alice")
    [first], [second] = await core.fill("alice", 1), await core.fill("alice", 1)
    gate = core.store.hold("delete")
    deleting = asyncio.create_task(core.inbox.delete(ALICE, (first.id, second.id)))
    await gate.reached()
    await core.store.restore(*ALICE, [first.id])
    command(connection, "unseen")
    assert (await connection.next()).ids == [first.id]
    gate.open()
    await deleting
    assert await connection.next() == Message("delete", [second.id])


async def test_what_was_answered_is_remembered_while_a_push_could_be_under_way(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No longer, since memory is bounded, and no shorter, whenever the clock of the first answer rings."""
    connection = await core.join("alice")
    [first], [second] = await core.fill("alice", 1), await core.fill("alice", 1)
    ages = {first.id: 0.6 * REMEMBERED_S, second.id: 0.0}
    answer_at = time.time()
    documents = [altered(each, rev=int((answer_at - ages[each.id]) * 1000) << 16) for each in (first, second)]

    async def answered(*_: Any, **__: Any) -> list[Document]:
        return documents

    monkeypatch.setattr(core.store, "page", answered, raising=False)
    command(connection, "content", 0)
    assert len((await connection.next()).data) == 2
    session = _session(connection)

    for passed, expected in ((0.0, []), (0.5, [first.id]), (1.1, [first.id, second.id])):
        monkeypatch.setattr(time, "time", lambda passed=passed: answer_at + passed * REMEMBERED_S)
        if session._screen._forgetting is not None:
            session._screen._forgetting.cancel()
            session._screen._prune()  # as the timer does
        _push(session, *(Added(document) for document in documents))
        assert [id_ for message in await _is_done(connection) for id_ in message.ids] == expected
    assert session._screen._forgetting is None


async def test_nothing_is_remembered_of_answers_about_old_documents(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most reads show what has not changed for long: they cost no memory."""
    connection = await core.join("alice")
    await core.fill("alice", 3)
    late = time.time() + 2 * REMEMBERED_S
    monkeypatch.setattr(time, "time", lambda: late)
    command(connection, "content", 0)
    assert len((await connection.next()).data) == 3
    assert _session(connection)._screen._answered is None


async def test_a_client_whose_waiting_pushes_are_too_many_is_slow(core: Core) -> None:
    """What waits behind an answer is bounded; another connection of the same user gets everything."""
    slow, other = await core.join("alice"), await core.join("alice")
    gate = core.store.hold("page")
    command(slow, "content", 0)
    await gate.reached()
    count = 0
    while not slow.reasons:
        await core.notify("alice", content="x" * (MAX_QUEUE_BYTES // 4))
        count += 1
    assert set(slow.reasons) == {SLOW}
    assert 2 <= count <= 4
    gate.open()
    await core.backplane.flushed()
    assert [message.name for message in other.received()] == ["notification"] * count
    await core.notify("alice")
    assert len(core.rooms.members(ALICE)) == 1


async def test_answers_and_pushes_keep_their_order_while_a_user_is_told_one_screen_at_a_time(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lists, or marks, in the midst of a lap: each screen has each document before it hears that it was seen,
    and none again after an answer that had it."""
    monkeypatch.setattr(backplane_module, "MAX_SLICE_S", 0.0)
    monkeypatch.setattr(scan_module, "VISITS_PER_STEP", 1)
    screens = [await core.join("alice") for _ in range(9)]
    listed: dict[int, set[str]] = {}
    documents: list[Document] = []
    for number, screen in enumerate(screens):
        documents += (await core.notifier.notify(publication("alice"))).documents
        await asyncio.sleep(0)
        if number % 3 == 1:
            command(screen, "content", 0)
        elif number % 3 == 2:
            command(screen, "seen", [documents[-1].id])
    await core.backplane.flushed()
    for screen in screens:
        shown: set[str] = set()
        for message in await _is_done(screen):
            if message.name == "seen":
                assert set(message.data) <= shown
            elif message.name == "notification":
                assert not listed.setdefault(id(screen), set()) & set(message.ids)
                if len(message.ids) > 1:
                    listed[id(screen)] |= set(message.ids)
                shown |= set(message.ids)
        assert shown == set(_ids(documents))
    inbox = await core.store.newest(*ALICE, before=None, limit=30)
    assert {document.id for document in inbox if document.seen} == set(_ids(documents[2::3]))


async def test_one_push_may_wait_however_large(core: Core) -> None:
    """An empty queue takes any one frame, also the queue behind an answer."""
    connection, gate = await core.join("alice"), core.store.hold("page")
    command(connection, "content", 0)
    await gate.reached()
    await core.notify("alice", content="x" * (2 * MAX_QUEUE_BYTES))
    gate.open()
    assert [message.name for message in await _is_done(connection)] == ["notification"] * 2
    assert connection.reasons == []


async def test_the_bound_of_waiting_pushes_holds_for_each_answer_anew(core: Core) -> None:
    """What waited behind an earlier answer has left."""
    connection = await core.join("alice")
    for _ in range(3):
        gate = core.store.hold("page")
        command(connection, "content", 0)
        await gate.reached()
        for size in (MAX_QUEUE_BYTES // 3, 1):
            await core.notify("alice", content="x" * size)
        gate.open()
        await _is_done(connection)
    assert connection.reasons == []


async def test_what_the_listing_comes_to_takes_no_room_of_what_waits(core: Core) -> None:
    """Also if it came before the listing waited."""
    first, second = await core.fill("alice", 2)
    screen = _session(core.connect())._screen
    frames = EventFrames()

    def push(event: Event) -> None:
        frame = frames.frame(event)
        screen.push([(event, frame)], frame)

    screen.begin_answer()
    content = "x" * MAX_QUEUE_BYTES
    push(Added(altered(second, notification=altered(second.notification, content=content))))
    with screen.listing_waits(first):
        push(UnseenCount(1))
    assert not screen.connection.is_closed


async def test_a_burst_goes_out_as_one_if_nothing_was_answered_lately(core: Core) -> None:
    """One write for several events."""
    connection = await core.join("alice")
    sent = []
    connection.send = sent.append  # type: ignore[method-assign]
    documents = await core.fill("alice", 3)
    core.backplane.publish((ALICE, Added(document)) for document in documents)
    await core.backplane.flushed()
    assert len(sent) == 1
    assert sent[0].text.count('"notification"') == 3


# -- a client that is gone -----------------------------------------------------------------------------------
async def test_changes_asked_for_right_before_the_end_are_still_made(core: Core) -> None:
    """People click and close; what would only be shown is not read any more."""
    first, second, third = await core.fill("alice", 3)
    connection, other = core.connect(), core.connect()
    await core.join("alice", connection)
    await core.join("alice", other)
    core.store.calls.clear()
    command(connection, "content", 0)
    command(connection, "seen", [first.id])
    command(connection, "unseen")
    command(connection, "delete", [second.id])
    command(connection, "content", {"limit": 5})
    connection.go()
    await _ended(core)
    assert core.store.calls == ["mark_seen", "delete"]
    assert [message.name for message in other.received()] == ["seen", "delete"]
    assert await core.inbox.unseen(ALICE, after=None, limit=9) == [third]
    assert not connection.received()


@pytest.mark.parametrize(("name", "data"), [("join", {"login": "bob", "password": "bob"}), ("leave", {})])
async def test_what_follows_a_join_or_leave_that_came_too_late_is_not_done(
    core: Core, name: str, data: Any
) -> None:
    """It was not meant for the user before it, and the one after it never came to be."""
    [document] = await core.fill("alice", 1)
    connection = core.connect()
    await core.join("alice", connection)
    command(connection, name, data)
    command(connection, "seen", [document.id])
    connection.go()
    await _ended(core)
    assert await core.inbox.unseen(ALICE, after=None, limit=9) == [document]
    assert core.rooms.user_count == 0


async def test_nothing_more_is_done_for_who_was_put_out(core: Core) -> None:
    """Not even what they asked for before."""
    [document] = await core.fill("alice", 1)
    connection = core.connect()
    await core.join("alice", connection)
    await core.tenants.sign_out(*ALICE)
    command(connection, "content", 0)
    command(connection, "delete", [document.id])
    connection.go()
    await _ended(core)
    assert await core.inbox.unseen(ALICE, after=None, limit=9) == [document]


async def test_a_client_that_goes_while_its_password_is_checked_is_in_no_room(core: Core) -> None:
    """Neither in the new user's nor in the one before, and what it asked for after that is not done."""
    [document] = await core.fill("alice", 1)
    connection = core.connect()
    await core.join("alice", connection)
    _join(connection, "carol", "carol's secret")
    command(connection, "seen", [document.id])
    await asyncio.sleep(0)
    connection.go()
    await _ended(core)
    assert core.rooms.user_count == 0
    assert await core.inbox.unseen(ALICE, after=None, limit=9) == [document]


@pytest.mark.parametrize("goes", [True, False])
async def test_who_is_gone_or_signed_out_while_their_join_waits_for_its_turn_is_in_no_room(
    core: Core, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits as the user's other connections have used up what they may do."""
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def pause(*_: object) -> None:
        waits.set()
        await goes_on.wait()

    monkeypatch.setattr(Session, "pause", pause)
    monkeypatch.setattr(core.limits, "pace_join", lambda _: 1.0)
    connection = core.connect()
    _join(connection, "alice")
    await waits.wait()
    if goes:
        connection.go()
    else:
        await core.tenants.sign_out(*ALICE)
    goes_on.set()
    await _ended(core)
    assert core.rooms.user_count == 0
    assert [message.name for message in connection.received()] == ([] if goes else ["error"])


async def test_a_client_that_goes_during_its_welcome_is_read_for_no_further(core: Core) -> None:
    """Of ten frames it took one."""
    await core.fill("alice", 1000)
    connection = core.connect(RecordingConnection(is_slow=True))
    _join(connection, "alice")
    await connection.read()
    connection.go()
    await _ended(core)
    assert core.store.calls.count("unseen") <= 3
    assert core.rooms.user_count == 0


async def test_a_client_that_goes_while_all_are_marked_seen_gets_its_wish(core: Core) -> None:
    """The batches go on without it."""
    await core.fill("alice", 1200)
    connection = core.connect()
    await core.join("alice", connection)
    gate = core.store.hold("mark_all_seen")
    command(connection, "seen", {"all": True})
    await gate.reached()
    connection.go()
    gate.open()
    await _ended(core)
    assert await core.inbox.count_unseen(ALICE) == 0


async def test_a_client_that_is_gone_is_not_listened_to(core: Core) -> None:
    """A transport may still hand in what it had read."""
    connection = await core.join("alice")
    connection.go()
    core.store.calls.clear()
    assert command(connection, "seen", {"all": True}) is None
    await _ended(core)
    assert core.store.calls == []
    _session(connection).closed()


# -- commands in a row ---------------------------------------------------------------------------------------
async def test_who_sends_faster_than_is_carried_out_is_asked_to_wait(core: Core) -> None:
    """An awaitable, until there is room again: the door reads no further meanwhile."""
    connection, gate, next_gate = await core.join("alice"), core.store.hold("page"), core.store.hold("unseen")
    command(connection, "content", 0)
    await gate.reached()
    answers = [command(connection, "content", 0) for _ in range(MAX_PENDING)]
    assert answers[:-1] == [None] * (MAX_PENDING - 1)
    first, second = answers[-1], command(connection, "unseen")
    assert first is not None
    assert second is not None
    waiting = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    gate.open()
    await next_gate.reached()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    assert command(connection, "content", 0) is None
    next_gate.open()
    assert [message.name for message in await _is_done(connection)] == ["notification"] * (MAX_PENDING + 3)


async def test_large_commands_count_by_their_size(core: Core) -> None:
    """A few may be too much already."""
    connection, gate = await core.join("alice"), core.store.hold("page")
    command(connection, "content", 0)
    await gate.reached()
    waiting = command(connection, "seen", [NOBODYS] * (MAX_PENDING_BYTES // len(NOBODYS)))
    assert waiting is not None
    gate.open()
    async with asyncio.timeout(30):
        await waiting
    assert [message.name for message in await _is_done(connection)] == ["notification", "seen"]


async def test_less_may_wait_for_who_has_not_joined(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger is asked to wait, and then refused, long before a user is."""
    monkeypatch.setattr("server.session.STRANGER_PENDING_BYTES", MAX_PENDING_BYTES // 10)
    connection = core.connect()
    large = "0" * (MAX_PENDING_BYTES // 20)
    waiting = [command(connection, "content", large) for _ in range(4)]
    assert waiting[0] is None
    assert waiting[1] is not None
    assert command(connection, "content", large) is None
    assert [message.data["code"] for message in connection.received()] == ["busy"]
    await asyncio.gather(*(each for each in waiting if each is not None))


@pytest.mark.parametrize(
    ("data", "taken"),
    [(0, 2 * MAX_PENDING), ("0" * (MAX_PENDING_BYTES // 2), 4)],
    ids=["many", "large"],
)
async def test_who_does_not_wait_is_told_that_the_server_is_busy(core: Core, data: Any, taken: int) -> None:
    """Beyond twice the bounds nothing is kept; what was taken before is carried out."""
    connection, gate = await core.join("alice"), core.store.hold("unseen")
    command(connection, "unseen")
    await gate.reached()
    waiting = [command(connection, "content", data) for _ in range(taken)]
    assert not connection.received()
    assert command(connection, "content", data) is None
    [refused] = connection.received()
    assert (refused.name, refused.data["code"]) == ("error", "busy")
    gate.open()
    await asyncio.gather(*(each for each in waiting if each is not None))
    assert len(await _is_done(connection)) == 1 + taken


async def test_who_waits_when_the_server_stops_is_let_go(core: Core) -> None:
    """The door's reading ends with the session's work."""
    connection, gate = await core.join("alice"), core.store.hold("page")
    command(connection, "content", 0)
    await gate.reached()
    waiting = [each for _ in range(MAX_PENDING) if (each := command(connection, "content", 0)) is not None]
    await core.tasks.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)


# -- failures ------------------------------------------------------------------------------------------------
async def test_a_join_while_the_store_is_away_is_welcomed_when_it_is_back(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told, and needs to do nothing."""
    monkeypatch.setattr(module, "JOIN_RETRY_FIRST_S", 0.001)
    [document] = await core.fill("alice", 1)
    core.store.goes_away()
    connection = core.connect()
    _join(connection, "alice")
    for _ in range(2):
        message = await connection.next()
        assert (message.name, message.data["code"]) == ("error", "store_unavailable")
    core.store.is_back()
    while (message := await connection.next()).name == "error":
        pass
    assert message.ids == [document.id]
    assert await connection.next() == Message("count", {"unseen": 1})
    [pushed] = await core.notify("alice")
    assert (await connection.next()).ids == [pushed.id]


async def test_a_listing_that_the_store_interrupts_is_brought_to_its_end(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was pushed meanwhile was left to the listing: it comes when the store is back, in its place, once."""
    monkeypatch.setattr(module, "JOIN_RETRY_FIRST_S", 0.001)
    connection = await core.join("alice")
    connection.is_slow = True
    first = _ids(await core.fill("alice", 150))
    command(connection, "unseen")
    await connection.queued()
    [pushed] = await core.notify("alice")
    core.store.goes_away()
    failed = 0
    shown: list[str] = []
    while len(shown) <= len(first):
        for frame in await connection.read():
            if frame.name == "error":
                failed += 1
                core.store.is_back()
            elif frame.name == "notification":
                shown += frame.ids
    assert failed
    assert shown == [*first, pushed.id]


async def test_tries_for_a_store_that_is_away_become_rarer(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as long each time up to a limit, and never all clients at the same moment."""
    delays: list[float] = []

    async def noted(session: Session, delay_s: float) -> None:
        delays.append(delay_s)
        await asyncio.sleep(0)

    monkeypatch.setattr(Session, "pause", noted)
    core.store.goes_away()
    connection = core.connect()
    _join(connection, "alice")
    for _ in range(9):
        await connection.next()
    connection.go()
    await _ended(core)
    limits = [
        min(module.JOIN_RETRY_FIRST_S * 2**number, module.JOIN_RETRY_MAX_S) for number in range(len(delays))
    ]
    assert all(limit / 2 <= delay <= limit for limit, delay in zip(limits, delays, strict=True))
    assert limits[-1] == module.JOIN_RETRY_MAX_S


async def test_a_client_that_goes_while_the_store_is_away_is_waited_for_no_longer(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session ends at once, and leaves nothing in any room."""
    monkeypatch.setattr(module, "JOIN_RETRY_FIRST_S", 3600.0)
    core.store.goes_away()
    connection = core.connect()
    _join(connection, "alice")
    await connection.next()
    connection.go()
    await _ended(core)
    assert core.rooms.user_count == 0


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("unseen", {}),
        ("content", 0),
        ("content", {"limit": 1}),
        ("seen", [NOBODYS]),
        ("seen", {"all": True}),
        ("delete", [NOBODYS]),
    ],
)
async def test_a_command_while_the_store_is_away_is_answered_so(core: Core, name: str, data: Any) -> None:
    """The connection lives on, and pushes are not held back for ever."""
    connection = await core.join("alice")
    core.store.goes_away()
    command(connection, name, data)
    assert (await connection.next()).data == {
        "code": "store_unavailable",
        "message": "the store does not answer; try again",
    }
    core.store.is_back()
    [document] = await core.notify("alice")
    assert (await connection.next()).ids == [document.id]


async def test_a_mistake_of_ours_ends_the_connection_and_is_logged_without_content(
    core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    """The client comes back and starts afresh; the log has the traceback and nothing that the client sent."""
    connection, other = await core.join("alice"), await core.join("alice")
    core.store.failure = KeyError("broken")
    with caplog.at_level(logging.DEBUG):
        command(connection, "seen", {"ids": [NOBODYS], "secret": "hunter2"})
        await _ended(core)
    assert connection.reasons == [FAILED]
    assert not connection.received()
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "a command failed")
    assert record.exc_info is not None
    assert "hunter2" not in caplog.text
    assert NOBODYS not in caplog.text
    core.store.is_back()
    [document] = await core.notify("alice")
    assert (await other.next()).ids == [document.id]


# -- the whole -----------------------------------------------------------------------------------------------
class Screen:
    """A client that believes every frame as it comes, as deployed clients do: no revs, no second thoughts."""

    def __init__(self) -> None:
        self.documents: dict[str, bool] = {}
        """id -> seen, of what is shown."""

    def show(self, message: Message) -> None:
        if message.name == "notification":
            self.documents |= {fields["_id"]: fields["seen"] for fields in message.data}
        elif message.name == "seen":
            self.documents |= {id_: True for id_ in message.data if id_ in self.documents}
        elif message.name == "delete":
            for id_ in message.data:
                self.documents.pop(id_, None)


@pytest.mark.parametrize("seed", range(12))
async def test_screens_end_with_the_state_of_the_inbox(core: Core, seed: int) -> None:
    """Whatever is published, marked, deleted and read at once, in whatever order the store's answers come back: no
    stale read overtakes a fresh push, no stale push a fresh read."""
    chance = random.Random(seed)

    async def some_time() -> None:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)

    core.services = replace(core.services, max_queue_bytes=1_000_000)
    known = _ids(await core.fill("alice", 5))
    connections = [core.connect() for _ in range(3)]
    for connection in connections:
        await core.join("alice", connection)
        command(connection, "content", 0)
        await _is_done(connection)
    screens = {id(connection): Screen() for connection in connections}
    for screen in screens.values():
        screen.documents = dict.fromkeys(known, False)

    core.store.delay = some_time
    notifying = []
    for _ in range(60):
        connection = chance.choice(connections)
        action = chance.choice(["notify", "seen", "delete", "unseen", "content", "all"])
        waiting = None
        if action == "notify":
            notifying.append(asyncio.ensure_future(core.notify("alice")))
        elif action == "content":
            waiting = command(connection, "content", {"limit": 100})
        elif action == "unseen":
            waiting = command(connection, "unseen")
        elif action == "all":
            waiting = command(connection, "seen", {"all": True})
        else:
            shown = screens[id(connection)].documents
            waiting = command(connection, action, chance.sample(sorted(shown), min(2, len(shown))))
        await (waiting or some_time())
        for each in connections:
            for message in each.received():
                screens[id(each)].show(message)
    await asyncio.gather(*notifying)
    for connection in connections:
        for message in await _is_done(connection):
            screens[id(connection)].show(message)
    await core.backplane.flushed()

    inbox = {
        document.id: document.seen for document in await core.inbox.newest(ALICE, before=None, limit=1000)
    }
    for connection in connections:
        for message in connection.received():
            screens[id(connection)].show(message)
        assert connection.reasons == []
        assert screens[id(connection)].documents == inbox
