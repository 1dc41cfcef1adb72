"""Tests of server/cluster against what torture has found: connections in the making, and several failures at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import pytest
from pydispatch import dispatcher
from pymongo.errors import BulkWriteError
from redis.asyncio import Redis

from server.bus import INBOX_CHANGED, REFUSED
from server.cluster.gaps import Gaps
from server.cluster.link import LinkDown
from server.cluster.redis import MANY_SHARDS, RedisLink
from server.cluster.redis_connection import Commands
from server.config import Cluster
from server.errors import StoreUnavailable
from server.messages import Event, Missed, Seen
from server.rooms import Room, Rooms
from server.store.mongo_connection import Connection
from server.torture.relay import Relay
from tests.support.backplanes import ALICE, BOB, Channel, Member, an_hour_ago, channel_of, until
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


async def test_who_is_brought_up_to_date_is_told_how_many_there_are() -> None:
    """A sync of dialect 2 says what there is, not how much."""
    rooms = Rooms()
    rooms.join(ALICE, Member())
    rooms.join(BOB, Member())
    gaps = Gaps(rooms)
    told: list[Room] = []

    def hear(rooms: Sequence[Room]) -> None:
        told.extend(rooms)

    dispatcher.connect(hear, INBOX_CHANGED, gaps)
    gaps.note([ALICE, BOB], an_hour_ago())
    running = asyncio.create_task(gaps.run())
    await until(lambda: told, "both being brought up to date")
    running.cancel()
    await asyncio.wait([running])
    assert sorted(told) == [ALICE, BOB]


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
