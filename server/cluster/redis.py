"""The way between nodes over Redis (6.2 or later): publish/subscribe by shards of users, and who is online.

`PREFIX:EPOCH` stands before all names, so that deployments may share a Redis: the epoch is that of the store.

    …:{SHARD}               channel: what is new for the users of a shard; a node subscribes while it has one of them
    …:all, …:node:NODE      channels: what is for all nodes; what is for one
    …:nodes                 sorted set: nodes, by when they last gave a sign of life (by the clock of Redis)
    …:online:{SHARD}:NODE   set: the users of a shard who have a connection on a node
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
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
    together,
)
from server.cluster.redis_connection import Commands, Subscription, reason_of
from server.config import Cluster
from server.rooms import Room

T = TypeVar("T")

SHARDS = 256
"""The same on all nodes, for ever."""

LINGER_S = 60.0
"""A shard without users here is followed for so long: they come back."""

KEEP_S = 90
"""Sets of users last so long, and are renewed three times as often: those of dead nodes go by themselves."""

MAX_MEMBERS = 1000
"""In one command. Even: what is published comes in pairs."""

_PUBLISH = "for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"
"""Of many messages there is one answer, which is what they would cost most."""

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
        # shards that are subscribed to, or will be in a moment
        self._followed: set[int] = set()
        # as of when messages of a channel may be missing, until it is subscribed to
        self._deaf_since: dict[bytes, tuple[datetime, int | None]] = {}
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
            await together(
                self._listen(ears),
                self._keep_beating(ears),
                self._keep_up(),
                self._until_stopped(),
            )

    def stop(self) -> None:
        self._patience.stop()
        self._stopping.set()

    async def send(self, messages: Sequence[Message]) -> None:
        told = [part for each in messages for part in (self._channel(each.to), each.body)]
        await self._sending.execute([("EVAL", _PUBLISH, 0, *some) for some in _portions(told)])

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

    def _online_key(self, shard: int, node: str) -> str:
        return f"{self._base}:online:{{{shard}}}:{node}"

    # -- listening -------------------------------------------------------------------------------------------
    async def _follow_anew(self) -> None:
        """On a new connection: what was sent since the last one was heard is missing."""
        since = self._subscription.heard_at
        self._deaf_since.clear()
        self._followed = {shard for shard, rooms in self._rooms.items() if rooms}
        await self._follow([None, self._node, *self._followed], since)

    async def _follow(self, addresses: Iterable[Address], since: datetime) -> None:
        channels = []
        for to in addresses:
            channel = self._channel(to).encode()
            shard = to if isinstance(to, int) else None
            self._deaf_since[channel] = (since, shard)
            channels.append(channel)
        await self._subscription.follow(channels)

    async def _listen(self, ears: Ears) -> None:
        async for pushed in self._subscription.pushed():
            match pushed:
                case [b"message", _, bytes() as body]:
                    ears.received(body)
                    await ears.ready()
                case [b"subscribe", bytes() as channel, _]:
                    since, shard = self._deaf_since.pop(channel, (None, None))
                    if since is not None and shard is not None:
                        ears.missed(self._rooms.get(shard, ()), since)

    async def _keep_up(self) -> None:
        """Follow the shards of users who come, and tell who comes and goes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Of all who are here: some have come while those before them were followed, and said.
            new = {shard for shard, rooms in self._rooms.items() if rooms} - self._followed
            if new:
                self._followed |= new
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
        except LinkDown:
            self._unsaid |= unsaid
            raise

    async def _keep_beating(self, ears: Ears) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._beat(ears)
            await self._let_go_of_empty_shards()

    async def _beat(self, ears: Ears) -> None:
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
        if empty:
            await self._subscription.let_go([self._channel(shard).encode() for shard in empty])

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
