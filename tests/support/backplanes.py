"""Nodes without anything but rooms and a backplane, on real links: what one publishes, others are told."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from server.cluster.backplane import ClusterBackplane, new_node_id
from server.cluster.link import Link
from server.cluster.mongodb import MongoLink
from server.cluster.redis import RedisLink
from server.config import Cluster, MongoDB
from server.dialects import Dialect
from server.ids import new_id
from server.messages import Added, Counted, Document, Event, Notification
from server.rooms import Push, Room, Rooms, SignIn
from server.wire import Frame
from tests.support.mongod import Mongod
from tests.support.recording import RecordingConnection
from tests.support.redis_server import RedisServer

LINKS = ("redis", "mongodb")

ALICE: Room = ("acme", "alice")
BOB: Room = ("acme", "bob")

CREATED_AT = datetime(2026, 11, 21, 12, tzinfo=UTC)

SOON_S = 90.0
"""The guard against a hang. A mongod that was frozen on a busy machine takes writes at once, but may be half a minute
late in saying that they are durable, and before that in passing them on."""


async def until(condition: Callable[[], object], what: str) -> None:
    """Return when it is true. Raises TimeoutError(what)."""
    ends_at = time.monotonic() + SOON_S
    while not condition():  # noqa: ASYNC110  # what happens on another node tells nobody
        if time.monotonic() > ends_at:
            raise TimeoutError(what)
        await asyncio.sleep(0.01)


def added(
    room: Room, rev: int = 1, content: str = "hello", notification: Notification | None = None
) -> Added:
    """A new document of this user."""
    tenant, user_id = room
    notification = notification or Notification(new_id(), tenant, CREATED_AT, content, data={"n": [1, None]})
    return Added(Document(new_id(), user_id, notification, CREATED_AT, CREATED_AT, rev))


class Everything:
    """A dialect that tells of every event."""

    counts_as = Counted

    def frame(self, event: Event) -> Frame | None:
        return Frame("{}")


EVERYTHING = Everything()


class Member:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.connection = RecordingConnection()
        self.dialect: Dialect = EVERYTHING
        self.sign_in: SignIn | None = None
        self.told: list[Event] = []
        self.gaps: list[datetime] = []

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        self.told.extend(event for event, _ in pushes)

    def missed(self, since: datetime) -> None:
        self.gaps.append(since)


@dataclass
class Node:
    """`link`: how it speaks to the others."""

    rooms: Rooms
    backplane: ClusterBackplane
    link: Link
    id: str

    def join(self, room: Room) -> Member:
        member = Member()
        self.rooms.join(room, member)
        return member

    async def joined(self, room: Room) -> Member:
        """Someone who is reached by other nodes from now on."""
        member = self.join(room)
        await until(lambda: member.gaps or self._is_reached(room), f"{room} being followed")
        return member

    def _is_reached(self, room: Room) -> bool:
        if isinstance(self.link, RedisLink):
            shard, deaf = self.link.shard_of(room), self.link._deaf_since.values()
            return shard in self.link._followed and not any(shard in shards for _, shards in deaf)
        return self.link._token is not None if isinstance(self.link, MongoLink) else False

    async def knows(self, *others: Node) -> None:
        """Return when this node has heard that exactly those are alive."""
        ids = {other.id for other in others}
        await until(lambda: self.backplane.others == ids, "the others being known")


@dataclass
class Channel:
    """Where nodes meet."""

    kind: str
    settings: Cluster
    mongodb: MongoDB
    epoch: str = field(default_factory=lambda: uuid.uuid4().hex)
    nodes: list[Node] = field(default_factory=list)

    def node(self, *, epoch: str | None = None) -> Node:
        """One more, which has been started."""
        id_, rooms, shared = new_node_id(), Rooms(), epoch or self.epoch
        link: Link
        if self.kind == "redis":
            link = RedisLink(self.settings, id_, lambda: shared)
        else:
            link = MongoLink(self.settings, self.mongodb, id_, lambda: shared)
        node = Node(rooms, ClusterBackplane(rooms, link, id_), link, id_)
        node.backplane.start()
        self.nodes.append(node)
        return node

    async def meet(self, count: int) -> list[Node]:
        """So many nodes that know each other."""
        nodes = [self.node() for _ in range(count)]
        for node in nodes:
            await node.knows(*(other for other in nodes if other is not node))
        return nodes

    async def say(self, node: Node, body: bytes) -> None:
        """To a node, as somebody does who has no business there."""
        if self.kind == "redis":
            async with Redis.from_url(self.settings.redis_url, protocol=2) as client:
                assert await client.publish(f"{self.settings.prefix}:{self.epoch}:all", body)
        else:
            assert isinstance(node.link, MongoLink)
            event: dict[str, Any] = {"at": datetime.now(UTC), "epoch": self.epoch, "from": "x", "to": None}
            await node.link._collection("events").insert_one(event | {"body": body})

    async def close(self) -> None:
        await asyncio.gather(*(node.backplane.close() for node in self.nodes))


@asynccontextmanager
async def channel_of(
    kind: str, request: pytest.FixtureRequest, *, own: bool = False
) -> AsyncIterator[Channel]:
    """`own`: on a server for this test alone."""
    prefix = f"test_{uuid.uuid4().hex[:12]}"
    mongodb, url = MongoDB(), ""
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("own_redis_server" if own else "redis_server")
        url = server.url()
    else:
        mongod: Mongod | None = request.getfixturevalue("own_mongod") if own else None
        mongodb = MongoDB(url=mongod.url if mongod else request.getfixturevalue("mongo_url"), db=prefix)
    settings = Cluster(backplane=kind, redis_url=url, prefix=prefix)  # type: ignore[arg-type]  # one of LINKS
    channel = Channel(kind, settings, mongodb)
    try:
        yield channel
    finally:
        await channel.close()
        if kind == "mongodb" and not own:
            client: AsyncMongoClient[dict[str, Any]]
            async with AsyncMongoClient(mongodb.url) as client:
                await client.drop_database(prefix)


def an_hour_ago() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)
