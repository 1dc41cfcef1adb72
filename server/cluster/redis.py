"""The way between nodes over Redis (6.2 or later): publish/subscribe by shards of users, and who is online.

`PREFIX:EPOCH` stands before all names, so that deployments may share a Redis: the epoch is that of the store.

    …:{SHARD}               channel: what is new for the users of a shard; a node subscribes while it has one of them
    …:joined                channel: the same of all shards; a node with users of many subscribes to it instead
    …:all, …:node:NODE      channels: what is for all nodes; what is for one
    …:nodes                 sorted set: nodes, by when they last gave a sign of life (by the clock of Redis)
    …:online:{SHARD}:NODE   set: the users of a shard who have a connection on a node
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, TypeVar

from redis.exceptions import RedisError

from server.cluster.link import (
    BEAT_S,
    LEFTOVERS_S,
    LIFE_S,
    LOOKUP_S,
    Address,
    Ears,
    Link,
    LinkDown,
    Message,
    Patience,
)
from server.cluster.redis_connection import Commands, Subscription, reason_of
from server.config import Cluster
from server.rooms import Room
from server.tasks import first_of

T = TypeVar("T")

SHARDS = 256
"""The same on all nodes, for ever."""

MANY_SHARDS = 64
"""Who follows more gets what is sent at the same time as one message: that costs much more than finding that there is
nobody here for an event in it."""

LINGER_S = 60.0
"""A shard without users here is followed for so long: they come back."""

KEEP_S = 90
"""Sets of users last so long, and are renewed three times as often: those of dead nodes go by themselves."""

MAX_MEMBERS = 1000
"""In one command."""

JOINED_MESSAGES, JOINED_BYTES = 500, 64 * 1024
"""In one, if it has more than one: their receivers hear them in one turn of the loop."""

TURN = 64
"""Messages after which others get a turn."""

_PUBLISH = """
local joined = {}
for i = 2, #ARGV, 2 do
    redis.call('PUBLISH', ARGV[i], ARGV[i + 1])
    joined[i / 2] = struct.pack('>I4', #ARGV[i + 1]) .. ARGV[i + 1]
end
redis.call('PUBLISH', ARGV[1], table.concat(joined))
"""
"""To those who follow each shard, and to those who follow all. Of many messages there is one answer, which is what they
would cost most."""

_LENGTH = struct.Struct(">I")

_BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[3])
return redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[2], '+inf')
"""


class RedisLink(Link):
    """`epoch`: that of the store; asked for when `run` begins."""

    shards = SHARDS

    def __init__(self, settings: Cluster, node: str, epoch: Callable[[], str]) -> None:
        self._settings = settings
        self._node = node
        self._epoch = epoch
        self._base = ""
        self._sending = Commands(settings)
        self._asking = Commands(settings)
        self._subscription = Subscription(settings)
        self.name = self._sending.name
        self._patience = Patience(self.name, reason_of)
        # the users of this node, by shard
        self._rooms: dict[int, set[Room]] = {}
        self._empty_since: dict[int, float] = {}
        # those of whom Redis does not know yet what has become of them
        self._unsaid: set[Room] = set()
        self._renewed_at = 0.0
        # shards that are followed, or will be in a moment
        self._followed: set[int] = set()
        self._follows_all = False
        # as of when messages of a channel may be missing, until it is subscribed to, and those of which shards
        self._deaf_since: dict[bytes, tuple[datetime, set[int]]] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    def note(self, room: Room) -> None:
        shard = self.shard_of(room)
        rooms = self._rooms.setdefault(shard, set())
        if room in rooms:
            rooms.discard(room)
            if not rooms:
                self._empty_since[shard] = time.monotonic()
        else:
            rooms.add(room)
            self._empty_since.pop(shard, None)
        self._unsaid.add(room)
        self._wake.set()

    async def run(self, ears: Ears) -> None:
        self._base = f"{self._settings.prefix}:{self._epoch()}"
        self._subscription.heard_at = datetime.now(UTC)
        await self._patience.keep(lambda: self._attempt(ears))

    async def _attempt(self, ears: Ears) -> None:
        """Connect, and follow the other nodes until that fails."""
        async with AsyncExitStack() as connections:
            for each in (self._sending, self._asking, self._subscription):
                await each.connect()
                connections.push_async_callback(each.disconnect)
            await self._follow_anew()
            self._unsaid.update(*self._rooms.values())
            ears.connected()
            await self._beat(ears)
            self._patience.well()
            await first_of(
                self._listen(ears),
                self._keep_beating(ears),
                self._keep_up(),
                self._until_stopped(),
            )

    def stop(self) -> None:
        self._patience.stop()
        self._stopping.set()

    async def send(self, messages: Sequence[Message]) -> None:
        by_shard = [each for each in messages if isinstance(each.to, int)]
        others = [each for each in messages if not isinstance(each.to, int)]
        commands: list[tuple[Any, ...]] = [("PUBLISH", self._channel(each.to), each.body) for each in others]
        for some in _joined(by_shard):
            told = (part for each in some for part in (self._channel(each.to), each.body))
            commands.append(("EVAL", _PUBLISH, 0, self._all_shards, *told))
        await self._sending.execute(commands)

    async def probe(self) -> None:
        self._patience.check()

    async def leave(self) -> None:
        """The connections are closed by now; this takes another one."""
        try:
            await self._asking.connect()
            keys = [self._online_key(shard, self._node) for shard in self._rooms]
            await self._asking.execute(
                [("ZREM", f"{self._base}:nodes", self._node), *(("UNLINK", key) for key in keys)]
            )
        except (LinkDown, RedisError, OSError):
            pass  # it all goes by itself in a while
        finally:
            await self._asking.disconnect()

    # -- names -----------------------------------------------------------------------------------------------
    def _channel(self, to: Address) -> str:
        if isinstance(to, int):
            return f"{self._base}:{{{to}}}"
        return f"{self._base}:all" if to is None else f"{self._base}:node:{to}"

    @property
    def _all_shards(self) -> str:
        return f"{self._base}:joined"

    def _online_key(self, shard: int, node: str) -> str:
        return f"{self._base}:online:{{{shard}}}:{node}"

    # -- listening -------------------------------------------------------------------------------------------
    async def _follow_anew(self) -> None:
        """On a new connection: what was sent since the last one was heard is missing."""
        since = self._subscription.heard_at
        self._deaf_since.clear()
        self._followed.clear()
        self._follows_all = False
        await self._subscribe({self._channel(None): set(), self._channel(self._node): set()}, since)
        await self._follow({shard for shard, rooms in self._rooms.items() if rooms}, since)

    async def _follow(self, shards: set[int], since: datetime) -> None:
        """These too, of which messages may be missing as of then."""
        self._followed |= shards
        if not self._follows_all and len(self._followed) <= MANY_SHARDS:
            await self._subscribe({self._channel(shard): {shard} for shard in shards}, since)
        elif not self._follows_all:
            self._follows_all = True
            await self._subscribe({self._all_shards: shards}, since)
        elif (deaf := self._deaf_since.get(self._all_shards.encode())) is not None:
            deaf[1].update(shards)

    async def _subscribe(self, channels: Mapping[str, set[int]], since: datetime) -> None:
        if channels:
            self._deaf_since.update(
                (name.encode(), (since, set(shards))) for name, shards in channels.items()
            )
            await self._subscription.follow([name.encode() for name in channels])

    async def _listen(self, ears: Ears) -> None:
        always = {self._channel(to).encode() for to in (None, self._node)}
        joined = self._all_shards.encode()
        hears_all, turn = False, 0
        async for pushed in self._subscription.pushed():
            match pushed:
                case [b"message", channel, bytes() as bodies] if channel == joined:
                    for body in _apart(bodies):
                        ears.received(body)
                        await ears.ready()
                        turn = (turn + 1) % TURN
                        if not turn:
                            await asyncio.sleep(0)
                # That of a shard has come joined, too.
                case [b"message", channel, bytes() as body] if not hears_all or channel in always:
                    ears.received(body)
                    await ears.ready()
                case [b"subscribe", bytes() as channel, _]:
                    since, shards = self._deaf_since.pop(channel, (None, set[int]()))
                    if since is not None:
                        ears.missed([room for shard in shards for room in self._rooms.get(shard, ())], since)
                    if channel == joined:
                        hears_all = True
                        await self._let_go_of(self._followed - shards)

    async def _let_go_of(self, shards: Collection[int]) -> None:
        if shards:
            await self._subscription.let_go([self._channel(shard).encode() for shard in shards])

    async def _keep_up(self) -> None:
        """Follow the shards of users who come, and tell who comes and goes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Of all who are here: some have come while those before them were followed, and said.
            new = {shard for shard, rooms in self._rooms.items() if rooms} - self._followed
            if new:
                await self._follow(new, datetime.now(UTC))
            await self._say_who_is_online()

    async def _until_stopped(self) -> None:
        await self._stopping.wait()

    def _has(self, room: Room) -> bool:
        return room in self._rooms.get(self.shard_of(room), ())

    # -- who is online ---------------------------------------------------------------------------------------
    async def _say_who_is_online(self) -> None:
        unsaid, self._unsaid = self._unsaid, set()
        members: dict[tuple[str, int], list[bytes]] = {}
        for room in unsaid:
            verb = "SADD" if self._has(room) else "SREM"
            members.setdefault((verb, self.shard_of(room)), []).append(_member(room))
        commands: list[tuple[Any, ...]] = []
        for (verb, shard), some in members.items():
            key = self._online_key(shard, self._node)
            commands += [(verb, key, *portion) for portion in _portions(some)]
            commands += [("EXPIRE", key, KEEP_S)] if verb == "SADD" else []
        try:
            await self._asking.execute(commands)
        except BaseException:  # cut off, too: who has left would else be online for ever
            self._unsaid |= unsaid
            raise

    async def _keep_beating(self, ears: Ears) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._beat(ears)
            await self._let_go_of_empty_shards()

    async def _beat(self, ears: Ears) -> None:
        await self._subscription.ask()
        await self._sending.execute(
            [("PING",)]
        )  # one that is broken is to be noticed, even if nothing is sent
        ages = round(LIFE_S * 1000), round(LEFTOVERS_S * 1000)
        [nodes] = await self._asking.execute([("EVAL", _BEAT, 1, f"{self._base}:nodes", self._node, *ages)])
        ears.heard_of([node.decode() for node in nodes])
        if time.monotonic() - self._renewed_at > KEEP_S / 3:
            self._renewed_at = time.monotonic()
            await self._renew()
        if self._unsaid:
            self._wake.set()

    async def _renew(self) -> None:
        """What Redis has forgotten (it was restarted, or another one took over) is said again."""
        shards = [shard for shard, rooms in self._rooms.items() if rooms]
        known = await self._asking.execute(
            [("EXPIRE", self._online_key(shard, self._node), KEEP_S) for shard in shards]
        )
        for shard, is_known in zip(shards, known, strict=True):
            if not is_known:
                self._unsaid |= self._rooms[shard]

    async def _let_go_of_empty_shards(self) -> None:
        before = time.monotonic() - LINGER_S
        empty = [shard for shard, since in self._empty_since.items() if since < before]
        for shard in empty:
            del self._empty_since[shard], self._rooms[shard]
            self._followed.discard(shard)
        if not self._follows_all:
            await self._let_go_of(empty)

    async def online(self, rooms: Collection[Room], nodes: Collection[str]) -> set[Room]:
        by_shard: dict[int, list[Room]] = {}
        for room in rooms:
            by_shard.setdefault(self.shard_of(room), []).append(room)
        asked: list[Sequence[Room]] = []
        commands: list[tuple[Any, ...]] = []
        for shard, some in by_shard.items():
            for portion in _portions(some):
                members = [_member(room) for room in portion]
                for node in nodes:
                    asked.append(portion)
                    commands.append(("SMISMEMBER", self._online_key(shard, node), *members))
        try:
            async with asyncio.timeout(LOOKUP_S):
                answers = await self._asking.execute(commands)
        except TimeoutError as exc:
            raise LinkDown("no answer in time") from exc
        return {
            room
            for portion, answer in zip(asked, answers, strict=True)
            for room, is_there in zip(portion, answer, strict=True)
            if is_there
        }


def _member(room: Room) -> bytes:
    return "\0".join(room).encode("utf-8", "surrogatepass")


def _portions(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + MAX_MEMBERS] for start in range(0, len(items), MAX_MEMBERS)]


def _joined(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """As many at once as may be told in one."""
    some: list[Message] = []
    size = 0
    for message in messages:
        size += len(message.body)
        if some and (len(some) >= JOINED_MESSAGES or size > JOINED_BYTES):
            yield some
            some, size = [], len(message.body)
        some.append(message)
    if some:
        yield some


def _apart(bodies: bytes) -> Iterator[bytes]:
    """What `_PUBLISH` has joined. What does not end where it should is cut off: nobody can read it."""
    start = 0
    while start < len(bodies):
        end = start + _LENGTH.size
        [length] = _LENGTH.unpack(bodies[start:end].rjust(_LENGTH.size, b"\xff"))
        start = end + length
        yield bodies[end:start]
