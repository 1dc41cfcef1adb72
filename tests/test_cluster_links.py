"""Tests of server/cluster against what torture has found: connections in the making, and several failures at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydispatch import dispatcher
from pymongo.errors import BulkWriteError
from redis.asyncio import Redis

from server.bus import INBOX_CHANGED, REFUSED
from server.checks import NotYet, Trouble
from server.cluster import backplane as backplane_module
from server.cluster import redis as redis_module
from server.cluster.gaps import Gaps
from server.cluster.link import LinkDown, Patience
from server.cluster.mongodb import MongoLink
from server.cluster.outgoing import MESSAGE_BYTES
from server.cluster.redis import MANY_SHARDS, RedisLink
from server.cluster.redis_connection import Commands, Subscription
from server.config import Cluster
from server.errors import StoreUnavailable
from server.messages import Event, Missed, Seen, now
from server.rooms import NOBODY, Room, Rooms
from server.store.mongo_connection import Connection
from server.torture.relay import Relay
from tests.support.backplanes import ALICE, BOB, Channel, Member, Node, added, an_hour_ago, channel_of, until
from tests.support.redis_server import RedisServer


async def test_nobody_uses_a_connection_that_is_being_made(redis_server: RedisServer) -> None:
    """Who sends meanwhile is told that there is none; the connection is fit for use afterwards."""
    relay = Relay(redis_server.port)
    await relay.open()
    commands = Commands(
        Cluster(backplane="redis", redis_url=f"redis://127.0.0.1:{relay.port}/0", timeout_s=20)
    )
    try:
        relay.silence()  # so that the greeting waits
        connecting = asyncio.create_task(commands.connect())
        await until(lambda: relay.connections, "the connection")
        await asyncio.sleep(0.1)
        with pytest.raises(LinkDown, match="not connected"):
            await commands.execute([("PING",)])
        relay.mend()
        await connecting
        assert await commands.execute([("PING",)]) == [b"PONG"]
    finally:
        await commands.disconnect()
        await relay.close()


async def test_a_link_that_has_not_failed_yet_is_no_trouble_for_the_log() -> None:
    """At a start it is asked for before its first attempt has come to something."""
    patience = Patience("a place", str)

    async def fail() -> None:
        patience.stop()
        raise OSError("no way")

    with pytest.raises(NotYet, match="^not connected$"):
        patience.check()
    await patience.keep(fail)
    with pytest.raises(Trouble, match="^not connected$") as caught:
        patience.check()
    assert caught.type is Trouble
    patience.well()
    patience.check()


@asynccontextmanager
async def commands_over(relay: Relay) -> AsyncIterator[Commands]:
    """A connection for commands by this way."""
    await relay.open()
    url = f"redis://127.0.0.1:{relay.port}/0"
    commands = Commands(Cluster(backplane="redis", redis_url=url, timeout_s=20))
    try:
        await commands.connect()
        yield commands
    finally:
        await commands.disconnect()
        await relay.close()


async def test_who_asks_at_the_same_time_gets_their_own_answers(redis_server: RedisServer) -> None:
    """One after the other, however many commands each has."""
    async with commands_over(Relay(redis_server.port)) as commands:
        asked = [[("ECHO", f"{who} {number}") for number in range(3)] for who in range(20)]
        answers = await asyncio.gather(*map(commands.execute, asked))
        assert answers == [[text.encode() for _, text in each] for each in asked]


async def test_nobody_gets_the_answer_to_what_was_cut_off(redis_server: RedisServer) -> None:
    """Nor what comes behind one that is refused: the connection is of no use any more."""
    relay = Relay(redis_server.port)
    async with commands_over(relay) as commands:
        relay.silence()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await commands.execute([("ECHO", "late")])
        relay.mend()
        with pytest.raises(LinkDown, match="not connected"):
            await commands.execute([("ECHO", "next")])
        await commands.connect()
        with pytest.raises(LinkDown, match="unknown command"):
            await commands.execute([("NONSENSE",), ("ECHO", "behind")])
        with pytest.raises(LinkDown, match="not connected"):
            await commands.execute([("ECHO", "next")])


async def test_who_is_brought_up_to_date_is_told_how_many_there_are() -> None:
    """A sync of dialect 2 says what there is, not how much. Who is not here is nobody's concern, nor how many there are
    of who listens to a whole tenant; who missed something twice is brought up to date since the first time."""
    rooms, alice, everybody = Rooms(), Member(), ("acme", NOBODY)
    rooms.join(ALICE, alice)
    rooms.join(BOB, Member())
    listener = Member()
    rooms.join(everybody, listener)
    gaps = Gaps(rooms)
    told: list[Room] = []

    def hear(rooms: Sequence[Room]) -> None:
        told.extend(rooms)

    dispatcher.connect(hear, INBOX_CHANGED, gaps)
    instant = an_hour_ago()
    gaps.note([ALICE, BOB, everybody, ("acme", "carol")], instant)
    gaps.note([ALICE], instant + timedelta(minutes=30))
    assert gaps.waiting == 3
    running = asyncio.create_task(gaps.run())
    await until(lambda: told, "both being brought up to date")
    running.cancel()
    await asyncio.wait([running])
    assert sorted(told) == [ALICE, BOB]
    assert alice.gaps == listener.gaps == [instant]


@pytest.mark.parametrize(
    "details",
    [
        {"writeErrors": [], "writeConcernErrors": [{"code": 11602, "errmsg": "operation was interrupted"}]},
        {"writeErrors": [{"code": 10107, "errmsg": "not primary"}], "writeConcernErrors": []},
    ],
    ids=["not confirmed", "not primary"],
)
def test_a_batch_that_a_failover_cuts_off_is_to_be_tried_again(details: dict[str, object]) -> None:
    """It says no more of the documents than that the store is away."""
    connection = Connection("mongodb://127.0.0.1/", "db", None, 1.0)
    with pytest.raises(StoreUnavailable), connection.bounded():
        raise BulkWriteError(details)


def test_a_batch_that_is_refused_for_good_is_not() -> None:
    """Trying again would change nothing."""
    connection = Connection("mongodb://127.0.0.1/", "db", None, 1.0)
    details = {"writeErrors": [{"code": 121, "errmsg": "not valid"}], "writeConcernErrors": []}
    with pytest.raises(BulkWriteError), connection.bounded():
        raise BulkWriteError(details)


# -- users of many shards of Redis ---------------------------------------------------------------------------
@pytest.fixture
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    async with channel_of("redis", request) as channel:
        yield channel


USERS: list[Room] = [("acme", f"user-{number}") for number in range(4 * MANY_SHARDS)]


async def followers(channel: Channel, *names: str) -> list[int]:
    """How many nodes subscribe to each of these."""
    base = f"{channel.settings.prefix}:{channel.epoch}"
    async with Redis.from_url(channel.settings.redis_url, protocol=2) as client:
        found = await client.pubsub_numsub(*(f"{base}:{name}" for name in names))
    return [count for _, count in found]


async def test_a_node_that_comes_to_follow_many_shards_hears_of_everything_once(channel: Channel) -> None:
    """In order, also what is published while it changes over to the messages that are joined."""
    here, there = await channel.meet(2)
    alice = await there.joined(ALICE)
    assert isinstance(there.link, RedisLink)
    let_go, kept = there.link._let_go_of, set[int]()

    async def keep(shards: Collection[int]) -> None:
        kept.update(shards)

    there.link._let_go_of = keep  # type: ignore[method-assign]  # for the time being
    said: list[Event] = []
    for number, room in enumerate(USERS):
        said.append(Seen((str(number),), number))
        here.backplane.publish([(ALICE, said[-1])])
        there.join(room)
        await asyncio.sleep(0.001)
    await until(lambda: said[-1] in alice.told, "the last event")
    assert alice.told == said
    names = "joined", f"{{{there.link.shard_of(ALICE)}}}"
    assert await followers(channel, *names) == [1, 1]
    await let_go(kept)
    async with asyncio.timeout(30):
        while await followers(channel, *names) != [1, 0]:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.01)


async def test_who_comes_to_a_node_that_follows_many_shards_is_reached_at_once(channel: Channel) -> None:
    """There is nothing that may be missing, so they need not be brought up to date."""
    here, there = await channel.meet(2)
    for room in USERS:
        there.join(room)
    await there.joined(USERS[-1])
    assert isinstance(there.link, RedisLink)
    shards = {there.link.shard_of(room) for room in USERS}
    names = (("acme", f"late-{number}") for number in range(10_000))
    late = next(room for room in names if there.link.shard_of(room) not in shards)
    member = await there.joined(late)
    here.backplane.publish([(late, Missed()), *((room, Missed()) for room in USERS)])
    await until(lambda: member.told, "the event")
    assert (member.told, member.gaps) == ([Missed()], [])


@pytest.mark.parametrize("bodies", [b"\0\0", b"\0\0\0\x09\x91"], ids=["no length", "cut off"])
async def test_joined_messages_that_cannot_be_read_are_counted_and_ignored(
    channel: Channel, bodies: bytes
) -> None:
    """What comes behind them arrives."""
    here, there = await channel.meet(2)
    members = [there.join(room) for room in USERS]
    await there.joined(USERS[-1])
    refused: list[str] = []

    def note(code: str) -> None:
        refused.append(code)

    dispatcher.connect(note, REFUSED, sender=there.backplane)
    async with Redis.from_url(channel.settings.redis_url, protocol=2) as client:
        assert await client.publish(f"{channel.settings.prefix}:{channel.epoch}:joined", bodies) == 1
    await until(lambda: refused, "the message being refused")
    here.backplane.publish((room, Missed()) for room in USERS)
    await until(lambda: all(member.told for member in members), "the events behind it")
    assert refused == ["garbled"]


async def until_followed(channel: Channel, name: str, count: int) -> None:
    """Return when so many nodes subscribe to this."""
    async with asyncio.timeout(30):
        while await followers(channel, name) != [count]:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.01)


async def test_a_node_that_follows_many_shards_does_so_again_after_it_was_cut_off(channel: Channel) -> None:
    """What was sent meanwhile is read."""
    here, there = await channel.meet(2)
    members = [there.join(room) for room in USERS]
    await until(lambda: all(member.gaps for member in members), "all being followed")
    for member in members:
        member.gaps.clear()
    assert isinstance(there.link, RedisLink)
    await there.link._subscription.disconnect()
    await until(lambda: all(member.gaps for member in members), "all being brought up to date")
    here.backplane.publish((room, Missed()) for room in USERS)
    await until(lambda: all(member.told for member in members), "what is published then")


async def test_who_comes_while_a_node_changes_over_is_brought_up_to_date(channel: Channel) -> None:
    """What was sent before it follows all shards does not come."""
    here, there = await channel.meet(2)
    assert isinstance(there.link, RedisLink)
    follow, held = there.link._subscription.follow, list[bytes]()

    async def hold(channels: Sequence[bytes]) -> None:
        held.extend(channels)

    there.link._subscription.follow = hold  # type: ignore[method-assign]  # for the time being
    for room in USERS:
        there.join(room)
    await until(lambda: held, "the changing over")
    shards = {there.link.shard_of(room) for room in USERS}
    names = (("acme", f"late-{number}") for number in range(10_000))
    late = next(room for room in names if there.link.shard_of(room) not in shards)
    member = there.join(late)
    await until(lambda: room_is_said(there.link, late), "who has come being known")
    here.backplane.publish([(late, Missed())])
    await here.backplane.flushed()
    await follow(held)
    await until(lambda: member.gaps, "the gap")


def room_is_said(link: RedisLink, room: Room) -> bool:
    return link.shard_of(room) in link._followed and room not in link._unsaid


# -- shards that come and go ---------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards without users are let go of at once."""
    monkeypatch.setattr(redis_module, "BEAT_S", 0.02)
    monkeypatch.setattr(redis_module, "LINGER_S", 0.0)


@pytest.mark.usefixtures("quick")
async def test_a_shard_without_users_is_let_go_of_and_followed_again(channel: Channel) -> None:
    """Who comes to it then is reached; so is who came back before that, and who stayed when another left."""
    here, there = await channel.meet(2)
    names = (("acme", f"user-{number}") for number in itertools.count())
    left, stayed = itertools.islice((name for name in names if there.link.shard_of(name) == 0), 2)
    leaving, staying = there.join(left), await there.joined(stayed)
    there.rooms.leave(left, leaving)
    alice, bob = await there.joined(ALICE), await there.joined(BOB)
    there.rooms.leave(BOB, bob)
    there.rooms.leave(ALICE, alice)
    back = there.join(ALICE)
    await until_followed(channel, f"{{{there.link.shard_of(BOB)}}}", 0)
    here.backplane.publish([(ALICE, Missed()), (stayed, Missed())])
    await until(lambda: back.told, "the event for who came back")
    await until(lambda: staying.told, "the event for who stayed")
    bob = await there.joined(BOB)
    here.backplane.publish([(BOB, Missed())])
    await until(lambda: bob.told, "the event for who came again")


# -- what Redis knows of who is online -----------------------------------------------------------------------
async def until_online(channel: Channel, room: Room, *, is_online: bool = True) -> None:
    """Return when other nodes find it so."""
    [asker, *_] = channel.nodes
    async with asyncio.timeout(30):
        while (await asker.backplane.online_elsewhere([room]) == {room}) != is_online:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.01)


async def test_what_redis_knows_of_who_is_online_goes_by_itself_and_is_said_again(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a dead node stays; and one that lives is not forgotten."""
    _, there = await channel.meet(2)
    there.join(ALICE)
    await until_online(channel, ALICE)
    assert isinstance(there.link, RedisLink)
    key = there.link._online_key(there.link.shard_of(ALICE), there.id)
    async with Redis.from_url(channel.settings.redis_url, protocol=2) as client:
        async with asyncio.timeout(30):
            while not 0 < await client.ttl(key) <= redis_module.KEEP_S:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.01)
        monkeypatch.setattr(redis_module, "KEEP_S", 1)
        await client.delete(key)
        await until_online(channel, ALICE)


async def test_who_has_left_as_the_way_was_cut_is_not_online(channel: Channel) -> None:
    """What was being said then is said again."""
    _, there = await channel.meet(2)
    alice = there.join(ALICE)
    await until_online(channel, ALICE)
    assert isinstance(there.link, RedisLink)
    execute, is_being_said = there.link._asking.execute, asyncio.Event()

    async def hang(commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if commands[0][0] != "SREM":
            return await execute(commands)
        is_being_said.set()
        await asyncio.Event().wait()
        return []

    there.link._asking.execute = hang  # type: ignore[method-assign]  # for the time being
    there.rooms.leave(ALICE, alice)
    async with asyncio.timeout(30):
        await is_being_said.wait()
    there.link._asking.execute = execute  # type: ignore[method-assign]
    await there.link._subscription.disconnect()
    await until_online(channel, ALICE, is_online=False)


# -- a node that is slow to read what others tell it ---------------------------------------------------------
class Slow:
    """A node that reads nothing behind a message, until it is released."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = asyncio.Event()
        monkeypatch.setattr(node.backplane, "ready", self.released.wait)
        # By how much gaps are taken to have begun earlier is not what it is about here.
        monkeypatch.setattr(backplane_module, "MARGIN", timedelta())
        monkeypatch.setattr(backplane_module, "LIFE_S", 0.0)
        self._node = node

    async def beat(self) -> None:
        """Return when it has heard who is alive, after now."""
        instant = now()
        await until(lambda: self._node.backplane._heard_of_at > instant, "who is alive")


async def test_what_redis_still_had_for_a_slow_node_is_read(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis cuts off who does not read. What such a node has heard last was on its way for long, and what came behind
    it is lost."""
    here, there = channel.node(), channel.node()
    assert isinstance(there.link, RedisLink)
    relay = Relay(urlsplit(channel.settings.redis_url).port or 0)
    await relay.open()
    try:
        over_relay = replace(channel.settings, redis_url=f"redis://127.0.0.1:{relay.port}/0")
        there.link._subscription = Subscription(over_relay)
        await here.knows(there)
        alice, slow = await there.joined(ALICE), Slow(there, monkeypatch)
        here.backplane.publish([(ALICE, Seen(("a",), 1))])
        await until(lambda: alice.told, "the first event")
        here.backplane.publish([(ALICE, Seen(("b",), 2))])
        await here.backplane.flushed()
        await slow.beat()  # the second one is at the node by then
        relay.silence()
        published_at = now()
        await slow.beat()
        alice.gaps.clear()
        slow.released.set()
        await until(lambda: len(alice.told) == 2, "the second event")
        relay.cut()
        relay.mend()
        await until(lambda: any(gap <= published_at for gap in alice.gaps), "the gap")
    finally:
        await relay.close()


async def test_what_a_stream_of_mongodb_still_had_for_a_slow_node_is_read(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot go on: here since its collection was dropped."""
    async with channel_of("mongodb", request) as channel:
        here, there = await channel.meet(2)
        assert isinstance(there.link, MongoLink)
        alice, slow = await there.joined(ALICE), Slow(there, monkeypatch)
        # Each in a message of its own, and both in one answer of MongoDB.
        here.backplane.publish([(ALICE, added(ALICE, rev, "x" * MESSAGE_BYTES)) for rev in (1, 2)])
        await until(lambda: alice.told, "the first event")
        await there.link._collection("events").drop()
        published_at = now()
        here.backplane.publish([(ALICE, Seen(("lost",), 3))])
        await here.backplane.flushed()
        await slow.beat()
        assert len(alice.told) == 1
        alice.gaps.clear()
        slow.released.set()
        await until(lambda: any(gap <= published_at for gap in alice.gaps), "the gap")
        here.backplane.publish([(ALICE, Missed())])
        await until(lambda: Missed() in alice.told, "what is published then")


# -- what MongoDB knows of nodes, and how they follow it ------------------------------------------------------
@pytest.fixture
async def mongo_channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    async with channel_of("mongodb", request) as channel:
        yield channel


def link_of(node: Node) -> MongoLink:
    assert isinstance(node.link, MongoLink)
    return node.link


def cut_off(node: Node) -> None:
    """End the attempt that is under way; the next one goes on with what this one has."""
    link_of(node)._is_ending = True
    link_of(node)._wake.set()


async def test_a_change_stream_goes_on_where_it_was_cut_off(mongo_channel: Channel) -> None:
    """What was told meanwhile is heard, and not only read."""
    here, there = await mongo_channel.meet(2)
    alice, link = await there.joined(ALICE), link_of(there)
    stream, is_cut_off, may_go_on = link._stream, asyncio.Event(), asyncio.Event()

    async def held(token: Any) -> Any:
        is_cut_off.set()
        await may_go_on.wait()
        return await stream(token)

    link._stream = held  # type: ignore[method-assign]  # for the time being
    cut_off(there)
    await is_cut_off.wait()
    here.backplane.publish([(ALICE, Seen(("a",), 1))])
    await here.backplane.flushed()
    may_go_on.set()
    await until(lambda: alice.told == [Seen(("a",), 1)], "the event")


async def test_a_change_stream_that_cannot_go_on_begins_anew(mongo_channel: Channel) -> None:
    """What was missed since all was surely heard is read."""
    here, there = await mongo_channel.meet(2)
    alice, link = await there.joined(ALICE), link_of(there)
    stream, begun = link._stream, list[bool]()

    async def refused(token: Any) -> Any:
        begun.append(token is None)
        if token is not None:
            token = {"_data": "8200"}  # MongoDB knows no such place
            link._heard_at = an_hour_ago()
        return await stream(token)

    link._stream = refused  # type: ignore[method-assign]
    cut_off(there)
    instant = now() - timedelta(minutes=30)
    await until(lambda: any(gap < instant for gap in alice.gaps), "the gap")
    assert begun == [False, True]
    here.backplane.publish([(ALICE, Missed())])
    await until(lambda: alice.told, "what is told then")


async def known_to_mongodb(node: Node, id_: str) -> tuple[int, int]:
    """How many entries there are of the node of this id: among nodes, and of its users."""
    link = link_of(node)
    nodes = await link._collection("nodes").count_documents({"_id": id_})
    return nodes, await link._collection("online").count_documents({"node": id_})


async def until_known(node: Node, id_: str, expected: tuple[int, int]) -> None:
    async with asyncio.timeout(30):
        while await known_to_mongodb(node, id_) != expected:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.02)


async def test_what_a_dead_node_has_left_in_mongodb_is_removed(mongo_channel: Channel) -> None:
    """What a living one has said is not; and one that others took for dead says it again."""
    here, there = await mongo_channel.meet(2)
    there.join(ALICE)
    await until_online(mongo_channel, ALICE)
    link = link_of(here)
    await link._collection("nodes").insert_one(
        {"_id": "dead", "epoch": mongo_channel.epoch, "at": an_hour_ago()}
    )
    for epoch in (mongo_channel.epoch, "another"):
        which = {"_id": f"dead/{epoch}", "epoch": epoch, "node": "dead", "room": link._key(BOB)}
        await link._collection("online").insert_one(which)
    link._tidied_at = float("-inf")
    await until_known(here, "dead", (0, 1))
    assert await known_to_mongodb(here, there.id) == (1, 1)
    await link._collection("online").delete_many({"node": there.id})
    await link._collection("nodes").delete_one({"_id": there.id})
    await until_known(here, there.id, (1, 1))


async def test_of_a_node_that_has_ended_nothing_is_left_in_mongodb(mongo_channel: Channel) -> None:
    here, there = await mongo_channel.meet(2)
    there.join(ALICE)
    await until_known(here, there.id, (1, 1))
    await there.backplane.close()
    assert await known_to_mongodb(here, there.id) == (0, 0)


async def test_who_has_left_as_the_way_to_mongodb_was_cut_is_not_online(mongo_channel: Channel) -> None:
    """What was being said then is said again."""
    _, there = await mongo_channel.meet(2)
    alice, link = there.join(ALICE), link_of(there)
    await until_online(mongo_channel, ALICE)
    say, is_being_said = link._say_who_is_online, asyncio.Event()

    async def fail(rooms: Sequence[Room]) -> None:
        link._say_who_is_online = say  # type: ignore[method-assign]  # from the next time on
        is_being_said.set()
        raise LinkDown("cut off")

    link._say_who_is_online = fail  # type: ignore[method-assign]
    there.rooms.leave(ALICE, alice)
    await is_being_said.wait()
    await until_online(mongo_channel, ALICE, is_online=False)


# -- the relay by which tests cut ways -----------------------------------------------------------------------
@asynccontextmanager
async def saying(*chunks: bytes) -> AsyncIterator[int]:
    """The port of something that says this in pieces, and ends."""

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_relay_changes_names_also_where_they_are_cut() -> None:
    """Nothing is held back at the end."""
    names = {b"127.0.0.1:20001": b"127.0.0.1:30001"}
    async with saying(b"a 127.0.0.1:20001 b 127.0", b".0.1:20001 c 127.0.0.1:2") as port:
        relay = Relay(port, names)
        await relay.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        assert await reader.read() == b"a 127.0.0.1:30001 b 127.0.0.1:30001 c 127.0.0.1:2"
        writer.close()
        await relay.close()


async def test_a_relay_that_is_cut_lets_nobody_through_until_it_is_mended() -> None:
    """Who is connected is thrown out."""
    async with saying(b"hello") as port:
        relay = Relay(port)
        await relay.open()
        relay.cut()
        for is_cut in (True, False):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            try:
                said = await reader.read()
            except ConnectionResetError:
                said = b""
            assert said == (b"" if is_cut else b"hello")
            writer.close()
            relay.mend()
        await relay.close()
