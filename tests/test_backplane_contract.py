"""What must be true of the backplane of several nodes, over Redis and over MongoDB: real ones, and killed ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydispatch import dispatcher

from server.bus import BROADCAST_HEARD, INBOX_CHANGED, REFUSED
from server.cluster.mongodb import MongoLink
from server.ids import new_id
from server.messages import (
    Added,
    AllSeen,
    Broadcasted,
    Counted,
    Counts,
    Deleted,
    Event,
    Missed,
    Notification,
    Restored,
    Seen,
    Unseen,
    UnseenCount,
    now,
)
from server.presence import Presence
from server.rooms import NOBODY, Room
from tests.support.backplanes import ALICE, BOB, LINKS, Channel, Member, Node, added, channel_of, until

MIB = 1024 * 1024


@pytest.fixture(params=LINKS)
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    async with channel_of(request.param, request) as channel:
        yield channel


@pytest.fixture(params=LINKS)
async def own_channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    """On a server that the test may kill."""
    async with channel_of(request.param, request, own=True) as channel:
        yield channel


def server_of(request: pytest.FixtureRequest, channel: Channel) -> Any:
    return request.getfixturevalue("own_redis_server" if channel.kind == "redis" else "own_mongod")


# -- telling -------------------------------------------------------------------------------------------------
async def test_every_event_reaches_the_users_other_nodes_as_it_is(channel: Channel) -> None:
    """In the order in which they were published, each equal to what was published; here as well as there."""
    here, there = await channel.meet(2)
    local, remote = here.join(ALICE), await there.joined(ALICE)
    document = added(ALICE, rev=2**62).document
    events: list[Event] = [
        added(ALICE, rev=1),
        Seen(("a", "b"), 5, ("a",)),
        Seen(("c",), 6, None, is_part=True),
        AllSeen(6),
        Unseen(("a",), 7),
        Deleted(("b",), 8),
        Restored(document),
        Missed(),
    ]
    here.backplane.publish((ALICE, event) for event in events)
    await until(lambda: Missed() in remote.told, "the last event")
    assert remote.told == events
    assert local.told == events


async def test_a_burst_arrives_whole_and_in_order(channel: Channel) -> None:
    """More than goes into one message, of several users."""
    here, there = await channel.meet(2)
    members = {
        room: await there.joined(room) for room in (("acme", f"user-{number}") for number in range(20))
    }
    notification = added(ALICE).document.notification
    sent: dict[Room, list[Event]] = {room: [] for room in members}
    for number in range(300):
        told = [(room, added(room, number, notification=notification)) for room in members]
        for room, event in told:
            sent[room].append(event)
        here.backplane.publish(told)
    await until(lambda: all(len(member.told) == 300 for member in members.values()), "all events")
    assert all(member.told == sent[room] for room, member in members.items())
    shared = [event.document.notification for event in members["acme", "user-1"].told]  # type: ignore[union-attr]
    assert all(each is shared[0] for each in shared)


async def test_the_longest_notification_arrives(channel: Channel) -> None:
    """As long as [LIMITS] lets `content` and `data` be, and what JSON makes of the latter."""
    here, there = await channel.meet(2)
    alice = await there.joined(ALICE)
    data = "é" * (2 * MIB)
    longest = Notification(new_id(), "acme", now(), "x" * (2 * MIB), data=data)
    here.backplane.publish([(ALICE, added(ALICE, notification=longest)), (ALICE, Missed())])
    await until(lambda: Missed() in alice.told, "what is published behind it")
    assert [event.document.notification.data for event in alice.told if isinstance(event, Added)] == [data]


async def test_who_is_sent_what_is_too_long_for_a_message_is_brought_up_to_date(channel: Channel) -> None:
    """MongoDB would not take it, and what is behind it would wait."""
    here, there = await channel.meet(2)
    alice = await there.joined(ALICE)
    alice.gaps.clear()
    here.backplane.publish([(ALICE, added(ALICE, content="x" * (16 * MIB - 200))), (ALICE, Missed())])
    await until(lambda: alice.gaps, "the gap")
    await until(lambda: Missed() in alice.told, "what is published behind it")
    assert alice.told == [Missed()]


async def test_users_who_come_while_others_are_followed_are_told_too(channel: Channel) -> None:
    """One at each turn of the loop, so that some come at whatever the link is doing."""
    here, there = await channel.meet(2)
    members: dict[Room, Member] = {}
    for number in range(300):
        room = ("acme", f"user-{number}")
        members[room] = there.join(room)
        await asyncio.sleep(0)

    def all_are_told() -> bool:
        untold = [room for room, member in members.items() if not member.told]
        here.backplane.publish((room, Missed()) for room in untold)
        return not untold

    await until(all_are_told, "all being told")


async def test_a_node_tells_its_own_connections_without_waiting_for_others(channel: Channel) -> None:
    """Also before it has found any of them."""
    node = channel.node()
    alice = node.join(ALICE)
    node.backplane.publish([(ALICE, Missed())])
    await node.backplane.delivered(ALICE)
    assert alice.told == [Missed()]


async def test_counts_are_made_by_each_node(channel: Channel) -> None:
    """They are told to nobody else; whoever is told of a change counts anew."""
    here, there = await channel.meet(2)
    alice = await there.joined(ALICE)
    counted: list[Room] = []

    def note(rooms: set[Room]) -> None:
        counted.extend(rooms)

    dispatcher.connect(note, INBOX_CHANGED, sender=there.backplane)
    counts: list[Event] = [UnseenCount(3), Counted(Counts(3, 3, {}))]
    here.backplane.publish(
        [(ALICE, event) for event in [*counts, Seen(("a",), 1)]] + [(BOB, Seen(("a",), 1))]
    )
    await until(lambda: counted and alice.told, "the change being heard of, here and by her connection")
    assert alice.told == [Seen(("a",), 1)]
    assert counted == [ALICE]


async def test_a_broadcast_is_heard_of_at_once_everywhere(channel: Channel) -> None:
    """By those who listen to the tenant, and by each node itself, which has documents to store."""
    here, there, without_users = await channel.meet(3)
    listener = await there.joined(("acme", NOBODY))
    heard: list[str] = []

    def note(notification: Any) -> None:
        heard.append(notification.nid)

    for node in (there, without_users):
        dispatcher.connect(note, BROADCAST_HEARD, sender=node.backplane)
    notification = added(ALICE).document.notification
    here.backplane.publish([(("acme", NOBODY), Broadcasted(notification))])
    await until(lambda: len(heard) == 2, "the broadcast")
    await there.backplane.flushed()
    assert listener.told == [Broadcasted(notification)]
    assert heard == [notification.nid] * 2


async def test_another_stores_nodes_hear_nothing(channel: Channel) -> None:
    """Deployments may share what is between their nodes."""
    here, there = await channel.meet(2)
    foreign = channel.node(epoch="another")
    alice, strange = await there.joined(ALICE), foreign.join(ALICE)
    await until(lambda: not _trouble(foreign), "the stranger being connected")
    here.backplane.publish([(ALICE, Missed())])
    await until(lambda: alice.told, "the event")
    assert (strange.told, foreign.backplane.others) == ([], frozenset())
    assert await foreign.backplane.online_elsewhere([ALICE]) == set()


async def test_another_stores_nodes_remove_nobody(channel: Channel) -> None:
    """Of whom they know nothing is somebody else's."""
    here, there = await channel.meet(2)
    there.join(ALICE)
    await until_online(here, {ALICE})
    foreign = channel.node(epoch="another")
    await until(lambda: not _trouble(foreign), "the stranger being connected")
    if isinstance(foreign.link, MongoLink):
        await foreign.link._tidy()
    assert await is_known(here) == {ALICE}


# -- what must not be believed -------------------------------------------------------------------------------
GARBLED = {
    "empty": b"",
    "text": b"hello",
    "json": b'{"event": 1}',
    "of another form": b"\x93\xa1T\x01\x02",
    "a place that there is not": b"\x95\xa1T\xa1x\xcf\x00\x00\x01\xff\xff\xff\xff\xff\x90\x91\x93\xa4acme\xa5alice"
    b"\x92\xa1a\x97\x07\xa2id\x00\x00\x01\xc2\xc0",
    "nested": b"\x91" * 100_000,
}


@pytest.mark.parametrize("body", GARBLED.values(), ids=GARBLED)
async def test_what_cannot_be_read_is_counted_and_ignored(
    channel: Channel, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged without its content, and what comes behind it arrives."""
    here, there = await channel.meet(2)
    alice = await there.joined(ALICE)
    refused: list[str] = []

    def note(code: str) -> None:
        refused.append(code)

    dispatcher.connect(note, REFUSED, sender=there.backplane)
    with caplog.at_level(logging.WARNING):
        await channel.say(there, body)
        await until(lambda: refused, "the message being refused")
    here.backplane.publish([(ALICE, Missed())])
    await until(lambda: alice.told, "the event behind it")
    assert (refused, alice.told) == (["garbled"], [Missed()])
    assert {record.getMessage() for record in caplog.records} == {
        "backplane: 1 messages could not be read, and were ignored"
    }


# -- who is there --------------------------------------------------------------------------------------------
async def is_known(asker: Node, *rooms: Room) -> set[Room]:
    return await asker.backplane.online_elsewhere({ALICE, BOB, *rooms})


async def until_online(asker: Node, rooms: set[Room]) -> None:
    async with asyncio.timeout(30):
        while await is_known(asker) != rooms:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.05)


async def test_presence_is_known_on_all_nodes(channel: Channel) -> None:
    """While the user has a connection on any other node, and not longer."""
    here, there = await channel.meet(2)
    alice, again = there.join(ALICE), there.join(ALICE)
    await until_online(here, {ALICE})
    presence = Presence(here.rooms, here.backplane, heartbeat_s=25)
    here.join(BOB)
    assert await presence.online([ALICE, BOB, ("acme", "carol")]) == {ALICE, BOB}
    there.rooms.leave(ALICE, alice)
    there.join(BOB)
    await until_online(here, {ALICE, BOB})
    there.rooms.leave(ALICE, again)
    await until_online(here, {BOB})


async def test_many_users_are_looked_up_at_once(channel: Channel) -> None:
    """As many as a notification may have."""
    here, there = await channel.meet(2)
    rooms = [("acme", f"user-{number}") for number in range(3000)]
    for room in rooms[::3]:
        there.join(room)
    expected = set(rooms[::3])
    async with asyncio.timeout(60):
        while await here.backplane.online_elsewhere(rooms) != expected:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.05)


async def test_a_node_that_ends_takes_its_users_with_it(channel: Channel) -> None:
    """At once, and nobody has to be brought up to date: it has told all it had to tell."""
    here, there = await channel.meet(2)
    there.join(ALICE)
    bob = await here.joined(BOB)
    await until_online(here, {ALICE})
    bob.gaps.clear()
    await there.backplane.close()
    await until_online(here, set())
    await here.knows()
    assert bob.gaps == []


async def die(node: Node) -> None:
    """As by SIGKILL: without a word."""
    await node.backplane._tasks.cancel()


async def test_a_dead_nodes_users_are_away_within_seconds(channel: Channel) -> None:
    """And what it may have stored without telling is read by all others."""
    here, there = await channel.meet(2)
    there.join(ALICE)
    bob = await here.joined(BOB)
    await until_online(here, {ALICE})
    bob.gaps.clear()
    await die(there)
    await until_online(here, set())
    await until(lambda: bob.gaps, "the gap")
    assert bob.gaps[0] < now()


async def test_signs_of_life_are_asked_of_all_nodes(channel: Channel) -> None:
    """Of those users only who were asked about, however many, and since that instant."""
    here, there, third = await channel.meet(3)
    many = [f"user-{number}" for number in range(1100)]
    for node, user_id, silent_s in (
        (there, "alice", 5),
        (there, "bob", 100),
        *((third, user_id, 5) for user_id in many),
    ):
        node.join(("acme", user_id)).connection.last_alive_at = time.monotonic() - silent_s
    presence = Presence(here.rooms, here.backplane, heartbeat_s=25)
    asked = ["alice", "bob", "carol"]
    since = now() - timedelta(seconds=50)
    assert await presence.alive_since("acme", asked, since) == {"alice"}
    assert await presence.alive_since("acme", many, since) == set(many)
    assert await presence.alive_since("other", asked, now() - timedelta(seconds=50)) == set()
    assert await presence.alive_since("acme", ["bob"], now() - timedelta(seconds=50)) == set()


async def test_a_node_that_does_not_answer_knows_of_no_sign_of_life(channel: Channel) -> None:
    """Those who do answer count all the same: a mail too many beats one too few."""
    here, there, third = await channel.meet(3)
    there.join(ALICE).connection.last_alive_at = time.monotonic()
    third.join(BOB).connection.last_alive_at = time.monotonic()
    third.backplane._hear = lambda message: None  # type: ignore[method-assign]  # it hangs
    found = await here.backplane.alive_elsewhere("acme", ["alice", "bob"], 5)
    assert found == {"alice"}


# -- what is between the nodes goes away ---------------------------------------------------------------------
async def test_without_what_is_between_them_nodes_go_on_and_then_catch_up(
    own_channel: Channel, request: pytest.FixtureRequest
) -> None:
    """Killed: each tells its own, everybody else is away, and nobody waits. Back: all are brought up to date, and told
    what is new."""
    server = server_of(request, own_channel)
    here, there = await own_channel.meet(2)
    near, far = here.join(BOB), await there.joined(ALICE)
    await until_online(here, {ALICE})
    server.kill()
    here.backplane.publish([(ALICE, Seen(("lost",), 1)), (BOB, Missed())])
    await here.backplane.delivered(BOB)
    assert near.told == [Missed()]
    assert await here.backplane.online_elsewhere([ALICE]) == set()
    assert await here.backplane.alive_elsewhere("acme", ["alice"], 3600) == set()
    far.gaps.clear()
    stopped_at = now()
    server.start()
    # What was lost has been repeated, or is known to be missing.
    await until(lambda: far.gaps or far.told == [Seen(("lost",), 1)], "the gap being noticed")
    assert all(gap < stopped_at for gap in far.gaps)
    await until_online(here, {ALICE})
    here.backplane.publish([(ALICE, Seen(("new",), 2))])
    await until(lambda: Seen(("new",), 2) in far.told, "what is new")


@pytest.mark.timeout(300)
async def test_a_frozen_one_holds_up_nobody(own_channel: Channel, request: pytest.FixtureRequest) -> None:
    """Connections stay open and nothing is answered: questions end in time, and it is found out; thawed, what
    was published meanwhile is told, or read."""
    server = server_of(request, own_channel)
    here, there = await own_channel.meet(2)
    far = await there.joined(ALICE)
    far.gaps.clear()
    server.freeze()
    try:
        assert await here.backplane.online_elsewhere([ALICE]) == set()
        here.backplane.publish([(ALICE, Seen(("meanwhile",), 1))])
        await until(lambda: _trouble(here) and _trouble(there), "the trouble being noticed")
    finally:
        server.thaw()
    await until(lambda: far.told == [Seen(("meanwhile",), 1)] or far.gaps, "what was published meanwhile")
    await here.knows(there)


def _trouble(node: Node) -> str:
    trouble: str = node.link._patience.trouble  # type: ignore[attr-defined]
    return trouble


async def test_a_node_starts_without_it(own_channel: Channel, request: pytest.FixtureRequest) -> None:
    """Its own connections are served; when it comes, those who came before are brought up to date."""
    server = server_of(request, own_channel)
    server.kill()
    node = own_channel.node()
    alice = node.join(ALICE)
    node.backplane.publish([(ALICE, Missed())])
    await node.backplane.flushed()
    assert alice.told == [Missed()]
    server.start()
    await until(lambda: alice.gaps, "the gap")
    await until(lambda: not _trouble(node), "the link being well")


async def test_closing_does_not_wait_for_what_is_away(
    own_channel: Channel, request: pytest.FixtureRequest
) -> None:
    """What waits is lost then, and is read by whoever misses it."""
    here, there = await own_channel.meet(2)
    member: Member = await there.joined(ALICE)
    server_of(request, own_channel).kill()
    here.backplane.publish([(ALICE, Missed())])
    await here.backplane.close()
    await here.backplane.close()
    assert member.told == []
