"""Everything that runs during the torture: the server, its store and its neighbours, those who publish and those who
listen. Started in order, and ended, whatever happened."""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from server.errors import StartupError
from server.torture.brokers import RabbitPublisher, RedisPublisher
from server.torture.children import Reaper
from server.torture.clients import ClassicClient, Client, ClientV2
from server.torture.feeds import HubFeed, RealtimeFeed, ServiceFeed
from server.torture.hands import VERBS, Hand
from server.torture.ledger import Changes, Ledger
from server.torture.lines import PollingLine, SocketLine, SockJSLine
from server.torture.mongod import SET, Mongod, ReplicaSet, drop_database
from server.torture.node import Node
from server.torture.nodes import Nodes
from server.torture.publishers import (
    Audience,
    BroadcastDoor,
    Door,
    InternalDoor,
    NotifyDoor,
    Publishers,
    ServiceDoor,
    publish_until_acknowledged,
)
from server.torture.services import MailServer, RabbitMQ, Redis, Service
from server.torture.streams import ClassicStream, StreamV2
from server.torture.ways import Ways

MEMBERS = 3
"""Of the replica set of several nodes."""

PESTERING, PESTERING_CHARS = 40, 48_000
"""Notifications, and their size, for a user whose clients do not read: more than the queue of a connection."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. `users`: of each kind; `publishers`: at once, over HTTP; `pause_s`: on average between
    two requests of one, `change_s` between two changes of one user."""

    rounds: int
    users: int
    publishers: int
    pause_s: float
    change_s: float


PLANS = {
    "short": Plan(rounds=8, users=2, publishers=5, pause_s=0.25, change_s=0.4),
    "long": Plan(rounds=60, users=3, publishers=6, pause_s=0.3, change_s=0.4),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the person at the terminal wants. `rounds`: None: as the plan has it; `mongodb_url`: of one that is there,
    which nobody kills; None: one is started, of three members if there are several nodes; `only`: these kinds of
    faults, () for all; `backplane`: of several nodes."""

    seed: int
    store: str = "embedded"
    plan: str = "short"
    rounds: int | None = None
    mongodb_url: str | None = None
    only: tuple[str, ...] = ()
    nodes: int = 1
    backplane: str = "redis"


class House:
    """To be opened once; `close` ends all of it."""

    def __init__(self, options: Options, folder: Path, reaper: Reaper) -> None:
        self.left_out: list[str] = []
        self.ledger, self.changes = Ledger(), Changes()
        self.plan = PLANS[options.plan]
        self.seed = str(options.seed)
        names = {
            kind: [f"{kind}-{number}" for number in range(self.plan.users)]
            for kind in ("new", "mixed", "feed", "away")
        }
        self.audience = Audience([*names["new"], *names["mixed"]], names["feed"], names["away"])
        if sys.platform != "linux":
            self.left_out.append("a full disk, and what the server may leak: both are asked of Linux")
        self.mail = MailServer(reaper, folder)
        self.redis = self._if_found(Redis, reaper, folder)
        self.rabbitmq = self._if_found(RabbitMQ, reaper, folder)
        self.store, self._database = self._store(options, reaper, folder)
        self.ways: list[Ways] = []
        self.nodes = Nodes(self._make_nodes(options, reaper, folder), self.seed)
        self.rabbit_publisher = (
            None if self.rabbitmq is None else RabbitPublisher(self.rabbitmq, self.ledger, self.audience)
        )
        self.clients: list[Client] = []
        self.hands: list[Hand] = []
        self._make_clients(names)
        self.publishers = self._make_publishers()
        self._listening: list[asyncio.Task[None]] = []
        self._changing: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._pestering = random.Random(f"{self.seed} pestering")  # noqa: S311  # repeats a run, keeps no secret

    # -- what there is ---------------------------------------------------------------------------------------
    def _if_found(self, kind: Any, reaper: Reaper, folder: Path) -> Any:
        if kind.program() is None:
            self.left_out.append(f"{kind.name}: it is not installed here")
            return None
        return kind(reaper, folder)

    def _store(
        self, options: Options, reaper: Reaper, folder: Path
    ) -> tuple[Mongod | ReplicaSet | None, str]:
        if options.store == "embedded":
            return None, ""
        database = f"torture_{uuid.uuid4().hex[:12]}"
        if options.mongodb_url is not None:
            self.left_out.append("killing and freezing MongoDB: the one that was named is not ours")
            return None, database
        if Mongod.program() is None:
            raise StartupError(
                "there is no mongod: name one by MONGODB_BIN, put it into the PATH, or give --mongodb-url"
            )
        if options.nodes > 1:
            return ReplicaSet(reaper, folder, MEMBERS), database
        return Mongod(reaper, folder), database

    def _make_nodes(self, options: Options, reaper: Reaper, folder: Path) -> list[Node]:
        common = self._settings(options)
        if options.nodes == 1:
            node = Node(reaper, folder, common)
            node.store_ports = self.store.ports if self.store else ()
            return [node]
        if options.backplane == "redis" and self.redis is None:
            raise StartupError(
                "there is no Redis for the backplane: install one, or give --backplane mongodb"
            )
        return [
            self._make_one_of_several(number, common, options, reaper, folder)
            for number in range(1, options.nodes + 1)
        ]

    def _make_one_of_several(
        self, number: int, settings: dict[str, str], options: Options, reaper: Reaper, folder: Path
    ) -> Node:
        """With ways of its own to what it shares with the others."""
        ways = Ways(self.redis.port if self.redis else None, self.store.ports if self.store else (), SET)
        settings = settings | {"NOTIFY_CLUSTER_BACKPLANE": options.backplane}
        if self.redis is not None:
            settings["NOTIFY_REDIS_HUB_URL"] = ways.redis_url
        if options.backplane == "redis":
            settings["NOTIFY_CLUSTER_REDIS_URL"] = ways.redis_url
        if self.store is not None:
            settings["NOTIFY_MONGODB_URL"] = ways.mongodb_url
        node = Node(reaper, folder, settings, f"server-{number}")
        node.store_ports = ways.mongodb_ports
        self.ways.append(ways)
        return node

    def _settings(self, options: Options) -> dict[str, str]:
        settings = {"NOTIFY_EMAIL_HOST": "127.0.0.1", "NOTIFY_EMAIL_PORT": str(self.mail.port)}
        if self.redis is not None:
            settings |= {"NOTIFY_REDIS_HUB_URL": self.redis.url, "NOTIFY_REDIS_HUB_TIMEOUT_S": "2"}
        if self.rabbitmq is not None:
            settings |= {"NOTIFY_RABBITMQ_URL": self.rabbitmq.url, "NOTIFY_RABBITMQ_TIMEOUT_S": "3"}
        self._url = options.mongodb_url or (self.store.url if self.store else None)
        if self._url is not None:
            settings |= {"NOTIFY_MONGODB_URL": self._url, "NOTIFY_MONGODB_DB": self._database}
        return settings

    @property
    def node(self) -> Node:
        """The first."""
        return self.nodes.all[0]

    @property
    def neighbours(self) -> list[Service]:
        return [each for each in (self.mail, self.redis, self.rabbitmq) if each is not None]

    # -- who listens -----------------------------------------------------------------------------------------
    def _make_clients(self, names: dict[str, list[str]]) -> None:
        nodes, seed = self.nodes, self.seed
        raw = partial(SocketLine.open, nodes, "/notification/websocket")
        framed, polling = partial(SockJSLine.open, nodes), partial(PollingLine.open, nodes)
        for user in names["new"]:
            self._add_changing(user, tuple(VERBS))
            self.clients += [
                ClientV2("dialect 2 over SockJS", user, framed, seed),
                ClientV2("dialect 2 over raw WebSocket", user, raw, seed),
                ClientV2("dialect 2 over polling", user, polling, seed),
                StreamV2("dialect 2 over SSE", user, nodes, seed),
            ]
        for user in names["mixed"]:
            # Classic clients are not told when something becomes unseen again.
            self._add_changing(user, ("seen", "delete", "restore"))
            self.clients += [
                ClassicClient("classic over SockJS", user, framed, seed),
                ClassicClient("classic over raw WebSocket", user, raw, seed),
                ClassicClient("classic over polling", user, polling, seed),
                ClassicStream("classic over SSE", user, nodes, seed),
            ]
        for user in names["feed"]:
            self.clients += [
                HubFeed("C2", user, nodes, seed),
                ServiceFeed("C3", user, nodes, seed),
                RealtimeFeed("C4 (Socket.IO)", user, nodes, seed),
            ]

    def _add_changing(self, user: str, verbs: Sequence[str]) -> None:
        open_line = partial(SocketLine.open, self.nodes, "/ws/v2")
        client = ClientV2("dialect 2 over /ws/v2", user, open_line, self.seed)
        self.clients.append(client)
        self.hands.append(Hand(client, self.changes, verbs, self.seed))

    # -- who publishes ---------------------------------------------------------------------------------------
    def _make_publishers(self) -> list[tuple[Publishers, int]]:
        """With how many of each there are."""
        given = self.nodes, self.ledger, self.audience
        doors: list[tuple[Door, int]] = [
            (NotifyDoor(*given), 6),
            (ServiceDoor(*given), 3),
            (InternalDoor(*given), 3),
            (BroadcastDoor(*given), 1),
        ]
        publishers = [(Publishers(self.ledger, doors, self.seed), self.plan.publishers)]
        # Of their own: who waits for a broker that is away publishes nothing else.
        if self.rabbit_publisher is not None:
            publishers.append(
                (Publishers(self.ledger, [(self.rabbit_publisher, 1)], self.seed + " rabbitmq"), 1)
            )
        if self.redis is not None:
            redis = RedisPublisher(self.redis, self.ledger, self.audience)
            publishers.append((Publishers(self.ledger, [(redis, 1)], self.seed + " redis"), 1))
        return publishers

    async def pester(self, user: str) -> None:
        """Publish much to one user."""
        door = NotifyDoor(self.nodes, self.ledger, self.audience)
        for _ in range(PESTERING):
            request = self.ledger.open(door.name, [user], size=PESTERING_CHARS)
            await publish_until_acknowledged(door, request, self.ledger, self._pestering)

    # -- life ------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Start the processes, in order. Raises `StartupError`."""
        services: list[Service | ReplicaSet] = [*([self.store] if self.store else []), *self.neighbours]
        if self._url is not None and self.store is None:
            # The first to be pushed is the last to be done: a server that still runs would make it anew.
            self._stack.push_async_callback(drop_database, self._url, self._database)
        for service in (*services, *self.ways, *self.nodes.all):
            self._stack.push_async_callback(service.close)
        await asyncio.gather(*(service.start() for service in services), *(ways.open() for ways in self.ways))
        for node in self.nodes.all:
            await node.start()
            if not await node.serves(30.0):
                raise StartupError(f"the server does not become ready; what it says is in {node.log}")

    def listen(self) -> None:
        """Let all clients come, and stay."""
        self._listening = [start(client.run(), client.name) for client in self.clients]

    def publish(self) -> None:
        """Let all publish and change, until `finish`."""
        for publishers, count in self.publishers:
            publishers.start(count, self.plan.pause_s)
        self._changing = [start(hand.run(self.plan.change_s), "a hand") for hand in self.hands]

    async def finish(self, timeout_s: float) -> None:
        """What was begun is brought to its end; nothing more is begun."""
        await asyncio.gather(*(each.finish(timeout_s) for each, _ in self.publishers))
        await end(self._changing)

    async def leave(self) -> None:
        """All clients go."""
        await end(self._listening)

    async def close(self) -> None:
        """Idempotent."""
        await end([*self._changing, *self._listening])
        for publishers, _ in self.publishers:
            await publishers.finish(0.0)
        if self.rabbit_publisher is not None:
            await self.rabbit_publisher.close()
        await self._stack.aclose()


def start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.create_task(work, name=name)


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel these; a mistake of ours in one is raised."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    ended, tasks[:] = list(tasks), []
    for task in ended:
        if not task.cancelled():
            task.result()
