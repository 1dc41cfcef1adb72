"""Three nodes behind HAProxy, over a replica set of three and each backplane: what is published at one reaches every
door of the others; and nothing is lost or comes twice, whatever of it goes away."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from email import message_from_bytes
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.backplanes import LINKS, until
from tests.support.client import SocketClient
from tests.support.client_v2 import ClientV2, client_v2
from tests.support.cluster import Cluster
from tests.support.event_streams import event_stream
from tests.support.feeds import add_key, hub_path, listening, service_path, user_token
from tests.support.mongod import ReplicaSet
from tests.support.rabbitmq import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer
from tests.support.sockjs_clients import PollingClient
from tests.test_cross_table import PUBLISHERS, RECEIVERS, Canonical, Place, Publisher, Receiver, virtual_host

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(240)]

ACKNOWLEDGED_WITHIN_S = 60.0
"""The end of a hang: a failover takes some seconds."""


@pytest.fixture(scope="module")
def replica_set() -> Iterator[ReplicaSet]:
    with ReplicaSet() as replica_set:
        yield replica_set


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with RedisServer() as redis:
        yield redis


@pytest.fixture(scope="module")
def amqp_url(rabbitmq: RabbitMQServer) -> Iterator[str]:
    with virtual_host(rabbitmq) as url:
        yield url


@pytest.fixture(scope="module", params=LINKS)
def started(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    replica_set: ReplicaSet,
    own_redis: RedisServer,
    amqp_url: str,
) -> Iterator[Cluster]:
    brokers = {"NOTIFY_REDIS_HUB_URL": own_redis.url(), "NOTIFY_RABBITMQ_URL": amqp_url}
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(folder, request.param, replica_set, own_redis, **brokers) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """All of it well, before and after."""
    yield started
    started.heal()


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


# -- doors ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def listening_key(started: Cluster) -> str:
    return add_key(started.nodes[0], "default", "listening", "listen")


def _batch(media_type: str) -> Callable[[Place, str], Any]:
    async def publish(place: Place, user: str) -> None:
        item = {"users": [{"id": user}], "content": "of many"}
        body = json.dumps(item) + "\n" if "ndjson" in media_type else json.dumps([item])
        answer = place.server.request(
            "POST", "/api/v2/notifications", body.encode(), {"Content-Type": media_type}
        )
        assert answer.status == 200, answer.body

    return publish


DOORS_IN = {
    **{name: PUBLISHERS[name] for name in ("C1", "C1 least", "C2", "C3", "C3 queue", "C3 call", "C4", "C5")},
    "NDJSON": Publisher(_batch("application/x-ndjson"), Canonical({"content": "of many"})),
    "JSON batch": Publisher(_batch("application/json"), Canonical({"content": "of many"})),
}


@asynccontextmanager
async def on_polling(place: Place, user: str) -> AsyncIterator[Any]:
    async with PollingClient(place.server) as client:
        await client.join_by_token(user_token(user))

        async def receive() -> Any:
            [document] = await client.next("notification")
            return document

        yield receive


@asynccontextmanager
async def on_v2(place: Place, user: str) -> AsyncIterator[Any]:
    async with client_v2(place.server, user) as client:

        async def receive() -> Any:
            return await client.push("notification")

        yield receive


@asynccontextmanager
async def on_rest(place: Place, user: str) -> AsyncIterator[Any]:
    async def receive() -> Any:
        while not (documents := await asyncio.to_thread(inbox, place.server, user)):  # noqa: ASYNC110  # REST tells nobody
            await asyncio.sleep(0.05)
        return documents[0]

    yield receive


def check_content(document: Any, expected: Canonical, user: str) -> None:
    assert {name: document[name] for name in expected.texts} == expected.texts


DOORS_OUT = {
    **RECEIVERS,
    "polling": Receiver(on_polling, RECEIVERS["C1"].check),
    "v2": Receiver(on_v2, check_content),
    "REST": Receiver(on_rest, check_content),
}


@pytest.mark.parametrize("publisher", DOORS_IN.values(), ids=DOORS_IN.keys())
async def test_published_at_one_node_it_reaches_every_door_of_another(
    cluster: Cluster, listening_key: str, amqp_url: str, publisher: Publisher, user: str
) -> None:
    """As the contract of each door has it, while the user listens by all of them."""
    here, there = (
        Place(node, listening_key, cluster.redis, amqp_url) for node in (cluster.nodes[0], cluster.nodes[1])
    )
    async with AsyncExitStack() as stack:
        receivers = {
            name: (each, await stack.enter_async_context(each.open(there, user)))
            for name, each in DOORS_OUT.items()
            if publisher.is_for_all or not each.is_for_all_only
        }
        await publisher.publish(here, user)
        for receiver, receive in receivers.values():
            async with asyncio.timeout(30):
                receiver.check(await receive(), publisher.expected, user)


async def test_what_is_done_on_one_node_is_done_on_all_screens(cluster: Cluster, user: str) -> None:
    """Seen, unseen, deleted, restored: by a socket on each node and by requests, with the counts."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_v2(node, user)) for node in cluster.nodes]
        classic = await stack.enter_async_context(SocketClient(cluster.nodes[2]))
        await classic.join_by_token(user_token(user))
        cluster.nodes[0].must_notify(user, content="one")
        ids = [(await client.push("notification"))["_id"] for client in clients]
        assert len(set(ids)) == 1
        steps: list[tuple[str, dict[str, bool], int]] = [
            ("seen", {"seen": True}, 0),
            ("unseen", {"seen": False}, 1),
            ("delete", {"deleted": True}, 0),
            ("restore", {"deleted": False}, 1),
        ]
        for (name, fields, unseen), client in zip(steps, itertools.cycle(clients), strict=False):
            if name in ("unseen", "restore"):  # by a request, the others by a socket
                change(cluster.nodes[1], user, {"ids": ids[:1], **fields})
            else:
                await client.ask(name, {"ids": ids[:1]})
            for each in clients:
                await knows(each, unseen)
        await classic.next("seen")
        await classic.next("delete")
        assert {json.dumps(client.model.inbox) for client in clients} == {json.dumps({ids[0]: False})}


async def test_a_ticket_for_events_leads_to_the_node_that_made_it(cluster: Cluster, user: str) -> None:
    """A browser that comes through the front: each of its tickets is good there."""
    bearer = {"Authorization": f"Bearer {user_token(user)}"}
    async with AsyncExitStack() as stack:
        for _ in range(6):
            answer = await asyncio.to_thread(cluster.front.request, "POST", "/events/ticket", b"", bearer)
            path = f"/events?ticket={answer.json()['ticket']}"
            stream = await stack.enter_async_context(event_stream(cluster.front, path=path))
            assert stream.status == 200
            await stream.caught_up()


async def knows(client: ClientV2, unseen: int) -> None:
    """Return when it has been told that so many are unseen, and of which."""
    while (client.model.counts or {}).get("unseen") != unseen or (
        list(client.model.inbox.values()).count(False) != unseen
    ):
        await client.frame()


def change(node: RunningServer, user: str, fields: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {user_token(user)}", "Content-Type": "application/json"}
    answer = node.request("PATCH", "/api/v2/inbox", json.dumps(fields).encode(), headers)
    assert answer.status == 200, answer.body


def inbox(node: RunningServer, user: str) -> list[dict[str, Any]]:
    answer = node.request(
        "GET", "/api/v2/inbox?limit=100", None, {"Authorization": f"Bearer {user_token(user)}"}
    )
    assert answer.status == 200, answer.body
    documents: list[dict[str, Any]] = answer.json()["documents"]
    return documents


# -- what may go away ----------------------------------------------------------------------------------------
class Publishing:
    """A backend that publishes through the front, and asks again, with the same key, until it is acknowledged."""

    def __init__(self, server: RunningServer, user: str) -> None:
        self.acknowledged: list[str] = []
        self.answers: list[int] = []
        self._server = server
        self._user = user
        self._is_ending = False

    async def __aenter__(self) -> Publishing:
        self._task = asyncio.create_task(self._run())
        await self.some_more()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_ending = True
        await self._task

    async def some_more(self) -> None:
        """Return when some that were begun after now are acknowledged."""
        wanted = len(self.acknowledged) + 5
        await until(lambda: len(self.acknowledged) >= wanted or self._task.done(), "acknowledgements")

    async def _run(self) -> None:
        for number in itertools.count():
            if self._is_ending:
                return
            await self._publish(f"{self._user}-{number}")

    async def _publish(self, key: str) -> None:
        ends_at = time.monotonic() + ACKNOWLEDGED_WITHIN_S
        while time.monotonic() < ends_at:
            try:
                answer = await asyncio.to_thread(
                    self._server.notify, self._user, content=key, idempotency_key=key
                )
            except OSError:
                continue  # nobody was there, or went away
            self.answers.append(answer.status)
            if answer.status == 200:
                self.acknowledged.append(key)
                return
            assert answer.status in (409, 429, 500, 502, 503, 504), answer.body
            await asyncio.sleep(0.05)
        raise AssertionError(f"never acknowledged: {key}")


def contents(documents: list[dict[str, Any]]) -> list[str]:
    return sorted(document["content"] for document in documents)


def whole_inbox(node: RunningServer, user: str) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {user_token(user)}"}
    before, is_more = "", True
    while is_more:
        page = node.request("GET", f"/api/v2/inbox?limit=100{before}", None, headers).json()
        documents += page["documents"]
        is_more = page["older"]
        before = f"&before={documents[-1]['_id']}" if documents else ""
    return documents


@pytest.mark.parametrize("fault", ["kill -9", "step down"])
async def test_the_primary_of_the_store_goes_away(cluster: Cluster, fault: str, user: str) -> None:
    """Publishers see 503 or a delay; what is acknowledged is there, once; and all screens are told."""
    async with AsyncExitStack() as stack:
        screens = [await stack.enter_async_context(client_v2(node, user)) for node in cluster.nodes]
        async with Publishing(cluster.front, user) as publishing:
            do = cluster.mongod.kill_primary if fault == "kill -9" else cluster.mongod.step_down
            await asyncio.to_thread(do)
            await publishing.some_more()
        assert contents(whole_inbox(cluster.nodes[0], user)) == sorted(publishing.acknowledged)
        assert set(publishing.answers) <= {200, 409, 503}
        for screen in screens:
            await told(screen, publishing.acknowledged)


async def told(screen: ClientV2, wanted: list[str]) -> None:
    """Return when this client has been told of all of these, and how many they are, without asking unasked."""
    async with asyncio.timeout(60):
        while (
            not {each["content"] for each in screen.model.documents.values()} >= set(wanted)
            or (screen.model.counts or {}).get("unseen", 0) < len(wanted)
        ):  # fmt: skip
            await next_frame(screen)


async def next_frame(screen: ClientV2) -> None:
    """And what there is to do about it."""
    await screen.frame()
    if screen.model.must_sync:
        await screen.sync()


async def test_redis_goes_away(cluster: Cluster, user: str) -> None:
    """Each node goes on serving its own connections and all publishing; when it is back, nothing is missing on any
    connection of any node. Where Redis is not the backplane, nobody minds."""
    users = [f"{user}-{number}" for number in range(len(cluster.nodes))]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        near = {
            each: await enter(client_v2(node, each)) for each, node in zip(users, cluster.nodes, strict=True)
        }
        far = [await enter(client_v2(node, each)) for each in users for node in cluster.nodes]
        hub = await enter(listening(cluster.nodes[1], hub_path(users[0])))
        service = await enter(listening(cluster.nodes[2], service_path(users[0])))
        classic = await enter(SocketClient(cluster.nodes[2]))
        await classic.join_by_token(user_token(users[0]))
        stream = await enter(event_stream(cluster.nodes[1], users[0]))
        await stream.caught_up()
        cluster.redis.kill()
        for each, node in zip(users, cluster.nodes, strict=True):
            for number in range(3):
                node.must_notify(each, content=f"{number}")
            await told(near[each], ["0", "1", "2"])  # while Redis is away
            assert node.get("/readyz").status == 200
        cluster.redis.start()
        for client in far:
            await told(client, ["0", "1", "2"])
        assert await contents_of(hub.frame, lambda frame: frame["payload"]["content"]) == {"0", "1", "2"}
        assert await contents_of(service.frame, lambda frame: frame["value"]["content"]) == {"0", "1", "2"}
        seen: set[str] = set()
        while len(seen) < 3:
            seen |= {each["content"] for each in await classic.next("notification")}
        assert (await classic.next("count"))["unseen"] == 3
        events: set[str] = set()
        while len(events) < 3:
            event = await stream.event()
            assert event is not None
            events |= {event.data["content"]} if event.name == "notification" else set()


async def contents_of(receive: Callable[[], Any], content: Callable[[Any], str]) -> set[str]:
    """Of the next messages, until three different ones have come."""
    found: set[str] = set()
    while len(found) < 3:
        found.add(content(await receive()))
    return found


class Returning:
    """A client of dialect 2 that comes back through the front whenever its connection ends, and syncs."""

    def __init__(self, server: RunningServer, user: str) -> None:
        self._server = server
        self._user = user
        self.client: ClientV2 | None = None
        self.connected = 0

    async def __aenter__(self) -> Returning:
        self._task = asyncio.create_task(self._run())
        await until(lambda: self.connected, "the first connection")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        model = None
        while True:
            try:
                async with client_v2(self._server, self._user, model=model) as client:
                    self.client, model = client, client.model
                    self.connected += 1
                    while True:
                        await next_frame(client)
            except (OSError, EOFError, ConnectionClosed, InvalidStatus, RuntimeError):  # a TimeoutError, too
                await asyncio.sleep(0.1)

    @property
    def contents(self) -> set[str]:
        return (
            set()
            if self.client is None
            else {each["content"] for each in self.client.model.documents.values()}
        )


async def test_a_node_is_killed(cluster: Cluster, user: str) -> None:
    """Its clients come back elsewhere and miss nothing; its users who do not come back are away within seconds; what it
    alone consumed another one consumes."""
    victim, survivor = cluster.nodes[0], cluster.nodes[1]
    gone = f"{user}-gone"
    async with AsyncExitStack() as stack:
        returning = [await stack.enter_async_context(Returning(cluster.front, user)) for _ in range(6)]
        lost = await stack.enter_async_context(SocketClient(victim))
        await lost.join_by_token(user_token(gone))
        async with Publishing(cluster.front, user) as publishing:
            victim.kill()
            await publishing.some_more()
        await until(
            lambda: all(each.contents >= set(publishing.acknowledged) for each in returning),
            "all being told by another node",
        )
        assert sum(each.connected for each in returning) > len(returning)
        assert contents(whole_inbox(survivor, user)) == sorted(publishing.acknowledged)
        # Away within seconds, so that the mail is due at once: it is there long before the lease of anything ends.
        await asyncio.sleep(4)
        to = {"id": gone, "email": "gone@example.org"}
        survivor.must_notify(to, content="x", title=f"to {gone}", email_send="true")
        await until(lambda: f"to {gone}" in mails(cluster), "the mail to who was on the node")
        # Its leases, at the latest when they end.
        hub_user = f"{user}-hub"
        await until(
            lambda: cluster.redis.publish(f"user_noti:{hub_user}", '{"payload": {"title": "x"}}'), "the hub"
        )
        await until(lambda: inbox(survivor, hub_user), "what came by the hub")


def mails(cluster: Cluster) -> set[str]:
    """The subjects of what was mailed."""
    paths = [path for node in cluster.nodes for path in (node.data / "mail").glob("**/*.eml")]
    return {str(message_from_bytes(path.read_bytes())["Subject"]) for path in paths}


@pytest.mark.parametrize("started", ["redis"], indirect=True)
@pytest.mark.parametrize("how", ["reset", "silent"])
async def test_a_node_is_cut_off_from_the_others(cluster: Cluster, how: str, user: str) -> None:
    """It goes on with its own connections; when the way is back, nothing is missing on either side. (Over MongoDB its
    way to the others is its store.)"""
    node, other = cluster.nodes[0], cluster.nodes[1]
    async with client_v2(node, user) as here, client_v2(other, user) as there:
        cluster.network.cut(0, "redis", is_silent=how == "silent")
        node.must_notify(user, content="of the one")
        other.must_notify(user, content="of the others")
        await told(here, ["of the one"])
        await told(there, ["of the others"])
        await until(lambda: dependency(node, "backplane") == "down", "the cut being noticed")
        assert node.get("/readyz").status == 200
        cluster.network.mend()
        for screen in (here, there):
            await told(screen, ["of the one", "of the others"])


def dependency(node: RunningServer, name: str) -> str:
    found: str = node.get("/readyz").json()["dependencies"].get(name, {"status": "unknown"})["status"]
    return found


@pytest.mark.parametrize("how", ["reset", "silent"])
async def test_a_node_is_cut_off_from_the_store(cluster: Cluster, how: str, user: str) -> None:
    """It says 503, so that the proxy leaves it alone; through the proxy everything goes on; and back again, its
    connections are told what they missed."""
    node = cluster.nodes[0]
    async with client_v2(node, user) as screen:
        cluster.network.cut(0, "mongod", is_silent=how == "silent")
        async with Publishing(cluster.front, user) as publishing:
            await until(lambda: node.get("/readyz").status == 503, "the cut being noticed")
            assert node.notify(user, content="at the node itself", idempotency_key="x").status == 503
            await publishing.some_more()
        cluster.network.mend()
        await told(screen, publishing.acknowledged)
        there = contents(whole_inbox(cluster.nodes[1], user))
        assert [each for each in there if each != "at the node itself"] == sorted(publishing.acknowledged)


async def test_a_rolling_restart(cluster: Cluster, user: str) -> None:
    """One node after the other, under load: nothing is lost, nothing comes twice, and clients miss nothing."""
    async with AsyncExitStack() as stack:
        returning = [await stack.enter_async_context(Returning(cluster.front, user)) for _ in range(3)]
        async with Publishing(cluster.front, user) as publishing:
            for node in cluster.nodes:
                await asyncio.to_thread(node.restart)
                await until(lambda node=node: node.get("/readyz").status == 200, "the node serving")  # type: ignore[misc]
            await publishing.some_more()
        assert contents(whole_inbox(cluster.front, user)) == sorted(publishing.acknowledged)
        await until(
            lambda: all(each.contents >= set(publishing.acknowledged) for each in returning), "all being told"
        )
