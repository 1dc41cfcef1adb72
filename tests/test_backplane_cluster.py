"""Tests of server/cluster: what waits, what is old, what is overtaken, and what clients are given after a gap."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from server import backplane as local_module
from server import feed as feed_module
from server import screen as screen_module
from server.auth import Identity
from server.cluster import asking as asking_module
from server.cluster import backplane as backplane_module
from server.cluster import gaps, outgoing
from server.cluster import link as link_module
from server.cluster.asking import Asking
from server.cluster.backplane import LATE_S, ClusterBackplane
from server.cluster.codec import (
    Answered,
    Asked,
    Left,
    Lost,
    Reader,
    Told,
    decode,
    encode,
    encode_notification,
    encode_told,
)
from server.cluster.link import LIFE_S, RETRY_FIRST_S, RETRY_MAX_S, Ears, Link, LinkDown, Message, Patience
from server.cluster.redis_connection import Commands, reason_of
from server.cluster.repeats import KEEP_S, REMEMBERED, Repeats
from server.config import Cluster, load
from server.conversations import v2
from server.errors import InvalidConfig
from server.feed import Feed, HubFeed, RealtimeFeed, ServiceFeed
from server.ids import new_id
from server.inbox import CHANGES_PER_BATCH
from server.inbox_feed import InboxFeed
from server.messages import (
    Added,
    Deleted,
    Event,
    Missed,
    Notification,
    Recipient,
    Restored,
    Seen,
    Unseen,
    UnseenCount,
    now,
)
from server.rooms import Room, Rooms
from server.stream_feed import StreamFeed
from server.tasks import Tasks
from tests.support.backplanes import ALICE, BOB, Member, added, until
from tests.support.clock import Clock
from tests.support.core import Core, command, notification, open_core
from tests.support.feed_connection import FeedConnection, listen
from tests.support.recording import RecordingConnection
from tests.support.redis_server import RedisServer

ALICE_HERE: Room = ("default", "alice")
"""A demo user."""


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


class OpenLink(Link):
    """One whose other end is the test. `is_down`: nothing can be sent. `loses_the_answer`: what is sent next comes, and
    the sender does not know."""

    name = "a test"
    shards = 4

    def __init__(self) -> None:
        self.is_down = False
        self.loses_the_answer = False
        self.fails_with: Exception | None = None
        self.sent: list[Message] = []
        self.ears: Ears | None = None

    def note(self, room: Room) -> None: ...

    async def run(self, ears: Ears) -> None:
        self.ears = ears
        ears.connected()

    async def send(self, messages: Sequence[Message]) -> None:
        if self.is_down:
            raise LinkDown
        if self.fails_with is not None:
            error, self.fails_with = self.fails_with, None
            raise error
        self.sent += messages
        if self.loses_the_answer:
            self.loses_the_answer = False
            raise LinkDown

    async def online(self, rooms: Collection[Room], nodes: Collection[str]) -> set[Room]:
        raise LinkDown

    async def leave(self) -> None: ...

    async def probe(self) -> None: ...

    def told(self) -> list[tuple[Room, Event]]:
        """All events that were sent, in their order."""
        reader, found = Reader(), []
        for message in self.sent:
            told = decode(message.body)
            if isinstance(told, Told):
                found += list(reader.events(told, lambda room: True))
        return found

    def lost(self) -> list[Lost]:
        return [each for each in (decode(message.body) for message in self.sent) if isinstance(each, Lost)]


@pytest.fixture
def link() -> OpenLink:
    return OpenLink()


@pytest.fixture
async def queue(link: OpenLink) -> AsyncIterator[outgoing.Outgoing]:
    tasks, queue = Tasks(), outgoing.Outgoing(link, "us")
    tasks.start(queue.run(), "sending")
    yield queue
    await tasks.cancel()


# -- what waits to be sent -----------------------------------------------------------------------------------
async def test_what_is_published_in_one_turn_goes_out_together(
    link: OpenLink, queue: outgoing.Outgoing
) -> None:
    """In a message for each shard; the notification is in it once."""
    queue.connected()
    notification = added(ALICE, content="x" * 1000).document.notification
    events: list[Event] = [added(ALICE, rev, notification=notification) for rev in range(50)]
    for event in events:
        queue.put(ALICE, event)
    assert queue.waiting == 50
    await queue.flushed()
    assert (queue.waiting, len(link.sent)) == (0, 1)
    assert link.told() == [(ALICE, event) for event in events]
    assert len(link.sent[0].body) < 10_000


async def test_what_is_published_soon_after_goes_out_together(
    link: OpenLink, queue: outgoing.Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending is followed by a rest, if it took any time."""
    monkeypatch.setattr(outgoing, "REST_PER_SENDING", 1e6)
    monkeypatch.setattr(outgoing, "MAX_REST_S", 0.5)
    queue.connected()
    for rev in range(10):
        queue.put(ALICE, Seen(("a",), rev))
        await asyncio.sleep(0.001)
    await queue.flushed()
    assert [event for _, event in link.told()] == [Seen(("a",), rev) for rev in range(10)]
    assert len(link.sent) == 2


async def test_no_message_is_too_large(link: OpenLink, queue: outgoing.Outgoing) -> None:
    """But one event is never divided."""
    queue.connected()
    for rev in range(20):
        queue.put(ALICE, added(ALICE, rev, content="x" * 60_000))
    await queue.flushed()
    assert [event.rev for _, event in link.told()] == list(range(20))  # type: ignore[union-attr]
    assert max(len(message.body) for message in link.sent) < outgoing.MESSAGE_BYTES + 61_000


async def test_a_long_notification_for_many_is_not_sent_once_for_each(
    link: OpenLink, queue: outgoing.Outgoing
) -> None:
    """The messages are as many as for a short one, each with the notification once."""
    queue.connected()
    notification = added(ALICE, content="x" * 2 * outgoing.MESSAGE_BYTES).document.notification
    events: list[Event] = [
        added(ALICE, rev, notification=notification) for rev in range(2 * outgoing.MESSAGE_EVENTS)
    ]
    for event in events:
        queue.put(ALICE, event)
    await queue.flushed()
    assert link.told() == [(ALICE, event) for event in events]
    assert len(link.sent) == 2


async def test_changes_of_many_documents_fill_several_messages(
    link: OpenLink, queue: outgoing.Outgoing
) -> None:
    """They have as many ids, and no notification."""
    queue.connected()
    ids = tuple(new_id() for _ in range(CHANGES_PER_BATCH))
    events: list[Event] = [Seen(ids, rev, ids) for rev in range(100)]
    for event in events:
        queue.put(ALICE, event)
    await queue.flushed()
    assert link.told() == [(ALICE, event) for event in events]
    assert max(len(message.body) for message in link.sent) <= outgoing.MESSAGE_BYTES * 1.1


async def test_what_could_not_be_sent_is_sent_again(link: OpenLink, queue: outgoing.Outgoing) -> None:
    """Behind nothing that came later."""
    link.is_down = True
    for rev in range(3):
        queue.put(ALICE, Seen(("a",), rev))
        await asyncio.sleep(0)
    link.is_down = False
    queue.connected()
    await queue.flushed()
    assert [event for _, event in link.told()] == [Seen(("a",), rev) for rev in range(3)]
    assert link.lost() == []


async def test_what_is_put_in_after_a_failure_is_flushed_too(
    link: OpenLink, queue: outgoing.Outgoing
) -> None:
    """Also where the link itself has noticed nothing, and so does not say that it is there again."""
    queue.connected()
    link.is_down = True
    queue.put(ALICE, Seen(("a",), 1))
    await until(lambda: not queue._is_connected.is_set(), "the failure")
    link.is_down = False
    await until(lambda: not queue.waiting, "the next try")
    queue.put(ALICE, Seen(("a",), 2))
    await queue.flushed()
    assert [event for _, event in link.told()] == [Seen(("a",), 1), Seen(("a",), 2)]


async def test_too_much_is_dropped_and_the_others_hear_of_it(
    link: OpenLink,
    queue: outgoing.Outgoing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """First of all, as soon as they can hear anything; what came afterwards is told."""
    monkeypatch.setattr(outgoing, "MAX_EVENTS", 10)
    link.is_down = True
    began_at = now()
    for rev in range(25):
        queue.put(ALICE, Seen(("a",), rev))
        await asyncio.sleep(0)
    assert queue.waiting <= 10
    link.is_down = False
    queue.connected()
    await queue.flushed()
    [lost] = link.lost()
    assert lost.since_ms >= began_at.timestamp() * 1000 - 1
    assert link.told()[-1] == (ALICE, Seen(("a",), 24))
    assert "too much waits" in caplog.text


async def test_large_events_fill_the_queue_sooner(
    link: OpenLink, queue: outgoing.Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bound is one of memory, too."""
    monkeypatch.setattr(outgoing, "MAX_BYTES", 10_000)
    link.is_down = True
    for rev in range(9):
        queue.put(ALICE, added(ALICE, rev, content="x" * 4000))
    assert queue.waiting <= 2


async def test_what_is_dropped_again_and_again_was_missed_since_the_first(
    link: OpenLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is dropped, or sent, makes room for as much."""
    monkeypatch.setattr(outgoing, "MAX_BYTES", 10_000)
    clock = Clock()
    queue, tasks = outgoing.Outgoing(link, "us", clock), Tasks()

    def put_some() -> None:
        for rev in range(8):
            queue.put(ALICE, added(ALICE, rev, content="x" * 4000))
            clock.now += 1
        assert queue.waiting == 2

    began_at = clock.now
    put_some()
    queue.connected()
    tasks.start(queue.run(), "sending")
    await queue.flushed()
    await tasks.cancel()
    put_some()
    assert [lost.since_ms for lost in link.lost()] == [int(began_at * 1000)]
    assert [event.rev for _, event in link.told() if isinstance(event, Added)] == [6, 7]


async def test_what_has_become_old_is_not_sent_any_more(link: OpenLink) -> None:
    """Whoever missed it reads the inbox."""
    clock = Clock()
    queue, tasks = outgoing.Outgoing(link, "us", clock), Tasks()
    queue.put(ALICE, Seen(("a",), 1))
    clock.now += outgoing.MAX_AGE_S + 1
    queue.connected()
    tasks.start(queue.run(), "sending")
    await queue.flushed()
    await tasks.cancel()
    assert link.told() == []
    assert len(link.lost()) == 1


async def test_what_could_not_be_sent_for_too_long_is_known_to_be_missing(
    link: OpenLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since the first of what was to go out together."""
    monkeypatch.setattr(outgoing, "RETRY_S", 0.01)
    clock = Clock()
    began_at = clock.now
    queue, tasks = outgoing.Outgoing(link, "us", clock), Tasks()
    link.is_down = True
    for rev in range(3):
        queue.put(ALICE, Seen(("a",), rev))
        clock.now += 1
    tasks.start(queue.run(), "sending")
    await asyncio.sleep(0.05)
    clock.now += outgoing.MAX_AGE_S
    await until(lambda: not queue.waiting, "its being given up")
    link.is_down = False
    await until(link.lost, "its being told")
    await tasks.cancel()
    assert link.told() == []
    assert {lost.since_ms for lost in link.lost()} == {int(began_at * 1000)}


@pytest.mark.parametrize("where", ["notification", "event", "link"])
async def test_what_cannot_be_sent_at_all_is_known_to_be_missing(
    link: OpenLink, queue: outgoing.Outgoing, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and what comes later is told."""
    queue.connected()
    event: Event = Seen(("a",), 1)
    if where == "link":
        link.fails_with = ValueError("of no kind that is expected")
    elif where == "event":
        event = Seen((object(),), 1)  # type: ignore[arg-type]  # that is the mistake
    else:
        data: Any = {"no": object()}
        event = added(ALICE, notification=Notification(new_id(), "acme", now(), "no JSON", data=data))
    queue.put(ALICE, event)
    await queue.flushed()
    assert len(link.lost()) == 1
    queue.put(ALICE, Seen(("a",), 2))
    await queue.flushed()
    assert link.told() == [(ALICE, Seen(("a",), 2))]
    assert len(link.lost()) == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_the_end_does_not_wait_for_what_cannot_be_sent(link: OpenLink) -> None:
    """It would until that is too old."""
    queue, clock = outgoing.Outgoing(link, "us", Clock()), asyncio.get_running_loop().time
    link.is_down = True
    queue.put(ALICE, Seen(("a",), 1))
    sending = asyncio.create_task(queue.run())
    await asyncio.sleep(0.05)
    queue.stop()
    async with asyncio.timeout_at(clock() + 60):
        await sending


# -- what comes from other nodes -----------------------------------------------------------------------------
@pytest.fixture
async def node(link: OpenLink) -> AsyncIterator[tuple[ClusterBackplane, Rooms]]:
    rooms = Rooms()
    backplane = ClusterBackplane(rooms, link, "us")
    backplane.start()
    yield backplane, rooms
    await backplane.close()


# Of no message that a queue sends here: those are of the same node.
_numbers = itertools.count(1_000_000)


def told(*events: Event, sent_at: float | None = None) -> bytes:
    """What another node says to alice."""
    entries = [
        (
            ALICE,
            event,
            encode_notification(event.document.notification) if isinstance(event, Added | Restored) else None,
        )
        for event in events
    ]
    return encode_told("them", int(1000 * (sent_at or now().timestamp())), entries, next(_numbers))


async def test_what_another_nodes_later_change_has_taken_back_is_not_told(
    node: tuple[ClusterBackplane, Rooms],
) -> None:
    """Whichever comes first: screens end with what the inbox holds."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    new = added(ALICE, rev=1)
    id_ = new.document.id
    for event in (Unseen((id_,), 5), Seen((id_, "other"), 4), Restored(new.document), Deleted((id_,), 3)):
        backplane.received(told(event))
    await backplane.flushed()
    seen = [event for event in alice.told if isinstance(event, Seen)]
    assert [event.changed_ids for event in seen] == [("other",)]
    assert [type(event) for event in alice.told] == [Unseen, Seen, Restored]


async def test_what_is_sent_again_since_it_may_not_have_come_is_told_once(
    node: tuple[ClusterBackplane, Rooms],
) -> None:
    """Whatever it is: not all dialects have revs by which a client would know it."""
    backplane, rooms = node
    alice, other = Member(), OpenLink()
    rooms.join(ALICE, alice)
    queue, tasks = outgoing.Outgoing(other, "them"), Tasks()
    other.loses_the_answer = True
    for _ in range(3):
        queue.put(ALICE, added(ALICE))
    queue.connected()
    tasks.start(queue.run(), "sending")
    await until(lambda: len(other.sent) == 1, "the first try")
    queue.connected()
    await queue.flushed()
    await tasks.cancel()
    assert len(other.told()) == 6
    for message in other.sent:
        backplane.received(message.body)
    backplane.received(told(Missed()))
    await backplane.flushed()
    assert [type(event) for event in alice.told] == [Added] * 3 + [Missed]


def test_of_a_node_that_says_nothing_more_nothing_is_remembered() -> None:
    """And of the others no more than may be sent again."""
    clock = Clock()
    repeats = Repeats(clock)
    assert not any(repeats.is_one("busy", number) for number in range(REMEMBERED + 1))
    assert repeats.is_one("busy", REMEMBERED) and not repeats.is_one("busy", 0)
    assert not repeats.is_one("quiet", 1) and repeats.is_one("quiet", 1)
    assert not repeats.is_one("quiet", None) and not repeats.is_one("quiet", None)
    clock.now += KEEP_S + 1
    assert repeats.is_one("busy", REMEMBERED)
    assert not repeats.is_one("new", 1)
    assert not repeats.is_one("quiet", 1) and repeats.is_one("busy", REMEMBERED)


async def test_what_was_told_before_somebody_came_is_read_instead(core: Core) -> None:
    """The store has told them what has become of it since then, and this node may have heard nothing of that."""
    backplane = ClusterBackplane(core.rooms, OpenLink(), "us")
    backplane.start()
    stored = await core.store.add(*_to_alice("seen elsewhere"))
    await core.store.mark_seen(*ALICE_HERE, [stored.documents[0].id])
    sent_at = now().timestamp() - 6
    connection = await core.join("alice")
    late = [(ALICE_HERE, Added(each), encode_notification(each.notification)) for each in stored.documents]
    backplane.received(encode_told("them", int(1000 * sent_at), late, 1))
    first = await connection.next()
    await backplane.close()
    assert first.name == "seen"


async def test_what_is_late_is_told_to_who_was_here_before(
    node: tuple[ClusterBackplane, Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to who came long ago: nothing that was said since is missing here."""
    backplane, rooms = node
    alice, bob, moment = Member(), Member(), time.monotonic()
    for room, member, ago_s in ((ALICE, alice, 3600), (BOB, bob, LATE_S + 10)):
        monkeypatch.setattr(rooms, "_clock", [moment - ago_s].pop)
        rooms.join(room, member)
    events: list[tuple[Room, Event, bytes | None]] = [(room, Missed(), None) for room in (ALICE, BOB)]
    sent_at = now().timestamp() - LATE_S - 1
    monkeypatch.undo()
    backplane.received(encode_told("them", int(1000 * sent_at), events, 1))
    await backplane.flushed()
    assert [(member.told, member.gaps) for member in (alice, bob)] == [([Missed()], [])] * 2


async def test_what_is_too_old_is_read_instead(node: tuple[ClusterBackplane, Rooms]) -> None:
    """Nobody can put it in its place any more."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    sent_at = now().timestamp() - outgoing.MAX_AGE_S - 5
    backplane.received(told(Missed(), sent_at=sent_at))
    await until(lambda: alice.gaps, "the gap")
    assert alice.told == []
    assert alice.gaps[0].timestamp() <= sent_at


async def test_what_is_flushed_has_been_sent_to_other_nodes(
    node: tuple[ClusterBackplane, Rooms], link: OpenLink
) -> None:
    """And not only handed to the connections of this one."""
    backplane, _ = node
    await until(lambda: link.ears, "the link")
    backplane.publish([(ALICE, Seen(("a",), 1))])
    await backplane.flushed()
    assert link.told() == [(ALICE, Seen(("a",), 1))]


async def test_publishers_and_other_nodes_wait_while_too_much_waits_here(
    node: tuple[ClusterBackplane, Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has been handed to the connections of this node."""
    backplane, rooms = node
    rooms.join(ALICE, Member())
    monkeypatch.setattr(local_module, "MAX_BACKLOG", -1)
    backplane.publish([])
    waiting = [asyncio.create_task(each()) for each in (backplane.has_space, backplane.ready)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    monkeypatch.undo()
    backplane.publish([(ALICE, Missed())])
    await asyncio.gather(*waiting)


async def test_what_it_said_itself_it_does_not_hear(node: tuple[ClusterBackplane, Rooms]) -> None:
    """On some ways everybody gets everything."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    backplane.received(encode_told("us", int(now().timestamp() * 1000), [(ALICE, Missed(), None)], 1))
    await backplane.flushed()
    assert alice.told == []


async def test_a_node_that_lost_something_has_all_brought_up_to_date(
    node: tuple[ClusterBackplane, Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who are here, one portion after the other; who has gone meanwhile does not mind."""
    monkeypatch.setattr(gaps, "PORTION", 2)
    monkeypatch.setattr(gaps, "PAUSE_S", 0.0)
    backplane, rooms = node
    members = {("acme", f"user-{number}"): Member() for number in range(9)}
    for room, member in members.items():
        rooms.join(room, member)
    backplane.received(encode(Lost("them", int(now().timestamp() * 1000))))
    rooms.leave(("acme", "user-8"), members.pop(("acme", "user-8")))
    await until(lambda: all(member.gaps for member in members.values()), "all being brought up to date")
    assert {len(member.gaps) for member in members.values()} == {1}


async def test_who_fails_at_being_brought_up_to_date_holds_up_nobody(
    node: tuple[ClusterBackplane, Rooms], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor those for whom something is missing later."""

    class Failing(Member):
        def missed(self, since: datetime) -> None:
            raise RuntimeError("broken")

    backplane, rooms = node
    rooms.join(ALICE, Failing())
    bob = Member()
    rooms.join(BOB, bob)
    for room in (ALICE, BOB):
        backplane.missed([room], now())
    await until(lambda: bob.gaps, "the other one being brought up to date")
    assert [record.getMessage() for record in caplog.records] == [
        "could not bring tenant=acme user=alice up to date"
    ]


async def test_a_gap_does_not_begin_in_the_future(node: tuple[ClusterBackplane, Rooms]) -> None:
    """However far the clock of the node that tells of it is ahead."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    backplane.received(encode(Lost("them", int((now().timestamp() + 3600) * 1000))))
    await until(lambda: alice.gaps, "the gap")
    assert alice.gaps[0] < now()


async def test_a_message_that_is_too_long_is_not_read(
    node: tuple[ClusterBackplane, Rooms], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes send less; the next one is."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    message = told(Missed())
    monkeypatch.setattr(backplane_module, "MAX_MESSAGE_BYTES", len(message))
    backplane.received(told(Seen(("a",) * 100, 1)))
    backplane.received(message)
    await backplane.flushed()
    assert alice.told == [Missed()]
    assert "1 messages could not be read" in caplog.text


async def test_a_document_without_its_notification_is_none(
    node: tuple[ClusterBackplane, Rooms], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is shown another one in its place."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    whole, lacking = added(ALICE), added(ALICE)
    entries = [(ALICE, whole, encode_notification(whole.document.notification)), (ALICE, lacking, None)]
    backplane.received(encode_told("them", int(now().timestamp() * 1000), entries, next(_numbers)))
    await backplane.flushed()
    assert alice.told == []
    assert "1 messages could not be read" in caplog.text


async def test_only_so_many_questions_are_answered_at_once(
    node: tuple[ClusterBackplane, Rooms], link: OpenLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gets no answer takes the users for away."""
    backplane, rooms = node
    rooms.join(ALICE, Member())
    monkeypatch.setattr(backplane_module, "MAX_ANSWERING", 3)

    def ask(number: int) -> None:
        backplane.received(encode(Asked("them", number, "acme", ["alice", "bob"], 60.0)))

    for number in range(5):
        ask(number)
    await until(lambda: len(link.sent) == 3, "the answers")
    ask(5)
    await until(lambda: len(link.sent) == 4, "the answer to the next question")
    assert [decode(message.body) for message in link.sent] == [
        Answered("us", number, ["alice"]) for number in (0, 1, 2, 5)
    ]


async def test_of_a_question_that_was_answered_nothing_is_kept(
    node: tuple[ClusterBackplane, Rooms], link: OpenLink
) -> None:
    """It ends with the last answer; what comes later, or of whom nobody asked, changes nothing."""
    backplane, _ = node
    backplane.heard_of({"us", "them", "others"})
    asking = asyncio.create_task(backplane.alive_elsewhere("acme", ["alice", "bob"], 60.0))
    await until(lambda: link.sent, "the question")
    asked = decode(link.sent[0].body)
    assert asked == Asked("us", asked.number, "acme", ["alice", "bob"], 60.0)  # type: ignore[union-attr]
    backplane.received(encode(Answered("strangers", asked.number, ["bob"])))  # type: ignore[union-attr]
    for who in ("them", "others"):
        backplane.received(encode(Answered(who, asked.number, ["alice", "carol"])))  # type: ignore[union-attr]
    assert await asking == {"alice"}
    assert not backplane._asking._questions


async def test_a_question_is_open_until_all_nodes_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them once."""
    monkeypatch.setattr(asking_module, "WAIT_S", 60.0)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asking = Asking("us", Rooms(), send)
    found = asyncio.create_task(asking.alive(["near", "far"], "acme", ["alice", "bob", "carol"], 5))
    await until(lambda: sent, "the question")
    for user_id in ("alice", "carol"):
        asking.note(Answered("near", 1, [user_id]))
    await asyncio.sleep(0.05)
    asking.note(Answered("far", 1, ["bob"]))
    assert await found == {"alice", "bob"}


@pytest.mark.parametrize("was_known", [True, False])
async def test_who_died_while_nobody_could_be_heard_of_may_have_told_nobody(
    node: tuple[ClusterBackplane, Rooms], caplog: pytest.LogCaptureFixture, was_known: bool
) -> None:
    """Also a node that has come, stored something and gone in that time. What it stored is read, however long ago that
    was."""
    backplane, rooms = node
    backplane.heard_of({"us", "them"} if was_known else {"us"})
    heard_at = now()
    alice = Member()
    rooms.join(ALICE, alice)
    await asyncio.sleep(0.05)
    assert alice.gaps == []
    backplane.connected()
    backplane.heard_of({"us"})
    await until(lambda: alice.gaps, "the gap")
    assert alice.gaps[0] < heard_at - timedelta(seconds=2 * LIFE_S)
    assert ("1 nodes are gone without a word" in caplog.text) == was_known


async def test_who_left_in_order_has_told_everybody(node: tuple[ClusterBackplane, Rooms]) -> None:
    """Nothing is read again for that."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    backplane.heard_of({"us", "them"})
    backplane.received(encode(Left("them")))
    backplane.heard_of({"us"})
    await asyncio.sleep(0.05)
    assert alice.gaps == []


async def test_a_gap_that_never_was_cannot_reach_back_for_ever(
    node: tuple[ClusterBackplane, Rooms],
) -> None:
    """Whatever a message says of it."""
    backplane, rooms = node
    alice = Member()
    rooms.join(ALICE, alice)
    for since_ms in (-(2**62), -1, 0):
        backplane.received(encode(Lost("them", since_ms)))
    await until(lambda: alice.gaps, "the gap")
    assert alice.gaps[0] > now() - timedelta(days=2)


# -- what clients are given after a gap ----------------------------------------------------------------------
async def test_a_classic_client_is_given_what_has_changed(core: Core) -> None:
    """What is new, what was seen and what was deleted meanwhile, and a fresh count; nothing of before."""
    connection = await core.join("alice")
    [before] = await core.notify("alice", content="before")
    [to_be_seen] = await core.notify("alice", content="to be seen")
    [gone] = await core.notify("alice", content="gone")
    connection.received()
    await asyncio.sleep(0.01)  # what was before, and what comes now, are of other milliseconds
    since = now()
    await asyncio.sleep(0.01)
    [new] = (await core.store.add(*_to_alice("new"))).documents
    await core.store.mark_seen(*ALICE_HERE, [to_be_seen.id])
    await core.store.delete(*ALICE_HERE, [gone.id])
    core.rooms.missed(ALICE_HERE, since)
    heard: dict[str, Any] = {}
    while "count" not in heard:
        message = await connection.next()
        heard[message.name] = message.data
    assert [document["_id"] for document in heard["notification"]] == [new.id]
    assert (heard["seen"], heard["delete"]) == ([to_be_seen.id], [gone.id])
    assert before.id not in str(heard)
    assert heard["count"] == {"unseen": 2}


async def test_a_classic_client_is_not_given_again_what_it_has_listed(core: Core) -> None:
    """A gap is taken to have begun before it joined: most are that its node had not heard of this user until then."""
    since = now()
    await core.notify("alice", content="listed")
    connection = await core.join("alice")
    [new] = (await core.store.add(*_to_alice("new"))).documents
    core.rooms.missed(ALICE_HERE, since - timedelta(seconds=5))
    await until(lambda: not len(core.tasks), "all being done")
    told = [message.data for message in connection.received() if message.name == "notification"]
    assert [[document["_id"] for document in frame] for frame in told] == [[new.id]]


@pytest.mark.parametrize("kind", ["classic", "stream"])
async def test_who_came_during_a_long_gap_is_not_given_again_what_was_there_before(
    core: Core, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Though it was listed too long ago to be remembered: it was all there when they came."""
    monkeypatch.setattr(screen_module, "REORDER_WINDOW_S", 0)
    monkeypatch.setattr(screen_module, "REMEMBERED_S", -60)
    since = now()
    await core.notify("alice", content="listed")
    await asyncio.sleep(0.01)
    client, frames = await core.join("alice"), list[str]()
    if kind == "stream":
        recording, frames = recorded()
        feed = StreamFeed(recording, core.feeds, Identity(*ALICE_HERE), None)
        await until(lambda: not len(core.tasks), "the beginning being done")
        frames.clear()
    await core.store.add(*_to_alice("missed"))
    core.rooms.missed(ALICE_HERE, since - timedelta(seconds=5))
    await until(lambda: not len(core.tasks), "all being done")
    frames += [json.dumps(each.data) for each in client.received() if each.name == "notification"]
    if kind == "stream":
        feed.closed()
    assert any("missed" in frame for frame in frames)
    assert not any("listed" in frame for frame in frames)


async def test_a_client_is_given_what_it_missed_though_the_clock_stepped_back_since_it_came(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, frames = recorded()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    await until(lambda: not len(core.tasks), "the beginning being done")
    [screen] = core.rooms.members(ALICE_HERE)
    monkeypatch.setattr(screen, "joined_at", now() + timedelta(hours=1))
    since = now() - timedelta(seconds=1)
    await core.store.add(*_to_alice("missed"))
    core.rooms.missed(ALICE_HERE, since)
    await until(lambda: not len(core.tasks), "all being done")
    feed.closed()
    assert any("missed" in text for text in frames)


def _to_alice(content: str) -> tuple[Any, ...]:
    return notification(content=content), [Recipient("alice")], None


@pytest.fixture
def is_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away is asked again soon, and who waits for it is told so soon."""
    monkeypatch.setattr(feed_module, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(v2, "JOIN_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(v2, "DELAYED_AFTER_S", 0.01)
    monkeypatch.setattr(v2, "DELAYED_EACH_S", 0.01)


async def join_v2(core: Core) -> RecordingConnection:
    connection = core.connect()
    command(connection, "join", {"login": "alice", "password": "alice", "v": 2})
    while (await connection.next()).name != "joined":
        pass
    return connection


async def test_a_classic_client_ends_with_the_latest_count(core: Core) -> None:
    """Not with that which was read for it, if something was changed meanwhile."""
    connection = await core.join("alice")
    gate = core.store.hold("count_unseen")
    core.rooms.missed(ALICE_HERE, now())
    await gate.reached()
    core.backplane.publish([(ALICE_HERE, UnseenCount(7))])
    await core.backplane.flushed()
    gate.open()
    await until(lambda: not len(core.tasks), "all being done")
    assert [message.data for message in connection.received() if message.name == "count"] == [
        {"unseen": 0},
        {"unseen": 7},
    ]


@pytest.mark.usefixtures("is_impatient")
async def test_while_the_store_is_away_a_client_of_dialect_2_is_told_nothing(core: Core) -> None:
    """Only who waits for the answer to a join is told that it is delayed; what was missed comes when it is back."""
    connection = await join_v2(core)
    [new] = (await core.store.add(*_to_alice("new"))).documents
    core.store.goes_away()
    core.rooms.missed(ALICE_HERE, now())
    await asyncio.sleep(0.1)
    core.store.is_back()
    sync = await connection.next()
    assert (sync.name, [each["_id"] for each in sync.data["documents"]]) == ("sync", [new.id])


async def test_a_client_of_dialect_2_is_told_what_a_sync_would_say(core: Core) -> None:
    """Since it was told last, unasked; the same connection goes on."""
    connection = await join_v2(core)
    [new] = (await core.store.add(*_to_alice("new"))).documents
    core.rooms.missed(ALICE_HERE, now())
    sync = await connection.next()
    assert (sync.name, [each["_id"] for each in sync.data["documents"]]) == ("sync", [new.id])
    assert sync.data["upto"]


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_who_only_listens_is_given_what_waits(core: Core, kind: type[Feed]) -> None:
    """What was sent before does not come again; twice in a row is once."""
    connection = listen(core, kind)
    await core.notify("alice", content="before")
    await connection.next()
    await core.marks.write()
    await core.store.add(*_to_alice("missed"))
    for _ in range(2):
        core.rooms.missed(ALICE_HERE, now())
    assert "missed" in str(await connection.next())
    await core.marks.write()
    await until(lambda: not len(core.tasks), "all being done")
    assert connection.received() == []


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_is_on_its_way_to_who_only_listens_does_not_wait(core: Core, kind: type[Feed]) -> None:
    """Though it is not known to have arrived."""
    connection = listen(core, kind)
    await until(lambda: not len(core.tasks), "having caught up")
    connection.is_slow = True
    await core.notify("alice", content="on its way")
    await core.store.add(*_to_alice("missed"))
    core.rooms.missed(ALICE_HERE, now())
    await until(lambda: len(connection.queue) == 2, "what waits")
    connection.is_slow = False
    connection.take_one()
    connection.take_one()
    await until(lambda: not len(core.tasks), "all being done")
    received = str(connection.received())
    assert (received.count("on its way"), received.count("missed")) == (1, 1)


def recorded() -> tuple[FeedConnection, list[str]]:
    """A connection, and the frames that it is sent."""
    connection = FeedConnection()
    frames: list[str] = []
    connection.send = lambda frame: frames.append(frame.text)  # type: ignore[method-assign]  # no JSON
    return connection, frames


async def test_a_stream_is_given_what_has_changed(core: Core) -> None:
    """Since the gap began, and a fresh count."""
    connection, frames = recorded()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    [gone] = await core.notify("alice", content="gone")
    await until(lambda: any("gone" in text for text in frames), "the stream")
    await until(lambda: not len(core.tasks), "the beginning being done")
    frames.clear()
    await asyncio.sleep(0.01)  # what was before, and what comes now, are of other milliseconds
    since = now()
    await asyncio.sleep(0.01)
    await core.store.add(*_to_alice("missed"))
    await core.store.delete(*ALICE_HERE, [gone.id])
    feed.missed(since)
    await until(lambda: len(frames) == 3, "what was missed")
    assert "missed" in frames[0]
    assert "event: delete" in frames[1] and gone.id in frames[1]
    assert '{"unseen":1}' in frames[2]
    assert "id:" not in frames[2]  # it would go on from where it once began
    feed.closed()


async def test_a_stream_is_not_given_again_what_it_has_listed(core: Core) -> None:
    """A gap is taken to have begun before it came."""
    since = now()
    await core.notify("alice", content="listed")
    connection, frames = recorded()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    await until(lambda: not len(core.tasks), "the beginning being done")
    await core.store.add(*_to_alice("missed"))
    feed.missed(since - timedelta(seconds=5))
    await until(lambda: not len(core.tasks), "all being done")
    feed.closed()
    told = [text for text in frames if "event: notification" in text]
    assert [("listed" in text, "missed" in text) for text in told] == [(True, False), (False, True)]


@pytest.mark.parametrize("is_long_ago", [False, True])
async def test_a_service_client_is_not_given_again_what_it_has_listed(
    core: Core, monkeypatch: pytest.MonkeyPatch, is_long_ago: bool
) -> None:
    """Though it has not acknowledged it: neither what the gap is taken to begin before, nor what was there long before
    the gap and is remembered no more."""
    if is_long_ago:
        monkeypatch.setattr(screen_module, "REMEMBERED_S", -60)
    first = listen(core, ServiceFeed)  # from then on all is to be acknowledged
    await until(lambda: not len(core.tasks), "the beginning being done")
    first.go()
    since = now() - timedelta(seconds=5)
    await core.notify("alice", content="listed")
    connection = listen(core, ServiceFeed)
    await until(lambda: not len(core.tasks), "all being listed")
    if is_long_ago:
        await asyncio.sleep(0.01)  # what was before, and what comes now, are of other milliseconds
        since = now()
        await asyncio.sleep(0.01)
    await core.store.add(*_to_alice("missed"))
    core.rooms.missed(ALICE_HERE, since)
    await until(lambda: not len(core.tasks), "all being done")
    told = [message["value"]["content"] for message in connection.received()]
    assert told == ["listed", "missed"]


async def test_a_stream_that_misses_something_again_is_given_no_more_than_that(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is open, and since when; also of what it is not remembered that it was shown."""
    monkeypatch.setattr(screen_module, "REMEMBERED_S", -60)
    connection, frames = recorded()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    await until(lambda: frames and not len(core.tasks), "the beginning being done")
    for content in ("first", "second"):
        await asyncio.sleep(0.01)  # each is of another millisecond
        since = now()
        await asyncio.sleep(0.01)
        frames.clear()
        await core.store.add(*_to_alice(content))
        feed.missed(since)
        await until(lambda: len(frames) == 2 and not len(core.tasks), "what was missed")
        assert content in frames[0]
    feed.closed()


async def test_a_stream_misses_something_while_it_begins(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told all that is unseen nevertheless, and what it missed behind that, from the first gap on; together it
    costs one more reading."""
    # Or it would not be told again what it was just shown.
    monkeypatch.setattr(screen_module, "REMEMBERED_S", -60)
    await core.store.add(*_to_alice("long ago"))
    connection, frames = recorded()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    await asyncio.sleep(0.01)
    since = now()
    for ago_s in (0, 60, 0):
        feed.missed(since - timedelta(seconds=ago_s))
    await until(lambda: not len(core.tasks), "all being told")
    assert ["unseen" in text for text in frames] == [False, True, False, True]
    assert frames[0].count("long ago") == frames[2].count("long ago") == 1
    feed.closed()


async def test_a_stream_of_a_node_whose_clock_is_ahead(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gap began by that clock, while changes are dated by the one of the store."""
    monkeypatch.setattr(core.store, "position_at", lambda _: first.rev - 1, raising=False)
    connection, frames = recorded()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    await until(lambda: frames and not len(core.tasks), "the beginning being done")
    frames.clear()
    [first] = (await core.store.add(*_to_alice("missed"))).documents
    feed.missed(now() + timedelta(hours=1))
    await until(lambda: len(frames) == 2, "what was missed")
    assert "missed" in frames[0]
    feed.closed()


@pytest.mark.parametrize("is_away", [False, True], ids=["store there", "store away"])
@pytest.mark.usefixtures("is_impatient")
async def test_a_stream_of_dialect_2_is_told_what_a_sync_would_say(core: Core, is_away: bool) -> None:
    """Since it was told last; while the store is away, when it is back."""
    connection, frames = recorded()
    feed = InboxFeed(connection, core.feeds, Identity(*ALICE_HERE), None)
    await until(lambda: frames and not len(core.tasks), "the welcome")
    frames.clear()
    await core.store.add(*_to_alice("missed"))
    if is_away:
        core.store.goes_away()
    feed.missed(now())
    if is_away:
        await asyncio.sleep(0.1)
        core.store.is_back()
    await until(lambda: frames, "what was missed")
    assert '"name":"sync"' in frames[0]
    assert "missed" in frames[0]
    feed.closed()


# -- saying how it goes, and settings ------------------------------------------------------------------------
async def test_trouble_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried."""
    caplog.set_level("INFO")
    tries = 0
    patience = Patience("a place", lambda error: str(error))

    async def attempt() -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            patience.well()
            patience.stop()
        else:
            raise OSError("no")

    await patience.keep(attempt)
    assert [record.getMessage() for record in caplog.records] == [
        "backplane: no way to other nodes over a place: no; trying again",
        "backplane: connected to a place",
    ]


async def test_what_has_come_through_is_tried_again_as_soon_as_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And before that less and less often, but never seldom."""
    pauses: list[float] = []

    class Hasty:
        @staticmethod
        async def sleep(delay_s: float) -> None:
            pauses.append(delay_s)

    monkeypatch.setattr(link_module, "asyncio", Hasty)
    patience = Patience("a place", str)

    async def attempt() -> None:
        if len(pauses) == 20:
            patience.well()
        if len(pauses) == 21:
            patience.stop()
        raise OSError("no")

    await patience.keep(attempt)
    *before, after = pauses
    assert RETRY_FIRST_S < max(before) <= RETRY_MAX_S
    assert after <= RETRY_FIRST_S


async def test_a_refused_password_is_said_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Neither by an error, nor by the name of the place, nor by the settings."""
    with RedisServer(password="right") as server:
        settings = Cluster(backplane="redis", redis_url=f"redis://:wr0ng@127.0.0.1:{server.port}")
        commands = Commands(settings)
        with pytest.raises(RedisError) as error:
            await commands.connect()
        await commands.disconnect()
    assert reason_of(error.value) == "access is refused"
    assert "wr0ng" not in commands.name + repr(settings) + caplog.text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"BACKPLANE": "redis", "REDIS_URL": "redis://h"}, "the embedded store is for one process"),
        ({"BACKPLANE": "mongodb"}, "the embedded store is for one process"),
        ({"BACKPLANE": "redis", "_MONGODB": "mongodb://h"}, "is missing, so there is no Redis"),
        ({"BACKPLANE": "nats"}, "is none of: local, redis, mongodb"),
        (
            {
                "BACKPLANE": "redis",
                "_MONGODB": "mongodb://h",
                "REDIS_URL": "redis://:a@h",
                "REDIS_PASSWORD": "b",
            },
            "contradicts the one in redis_url",
        ),
        ({"BACKPLANE": "redis", "_MONGODB": "mongodb://h", "REDIS_URL": "redis://h:0"}, "has a port"),
    ],
    ids=["embedded, redis", "embedded, mongodb", "no url", "unknown", "two passwords", "port"],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, str], says: str) -> None:
    """With a sentence that names the key."""
    mongodb = {"NOTIFY_MONGODB_URL": settings.pop("_MONGODB")} if "_MONGODB" in settings else {}
    environ = {f"NOTIFY_CLUSTER_{name}": value for name, value in settings.items()}
    with pytest.raises(InvalidConfig) as refused:
        load(None, environ | mongodb)
    assert any("NOTIFY_CLUSTER_" in line and says in line for line in refused.value.problems)
