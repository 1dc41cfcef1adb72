"""Tests of server/health.py, over HTTP."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from server import bus, health
from server.callers import CallerPolicy
from server.checks import Checks, State, Trouble
from server.errors import BadCredentials, RateLimited, ServerError, StoreUnavailable
from server.exposition import Exposition
from server.grants import Grant, Scope
from server.health import Instruments, note_request
from server.metrics import Metrics, Sources
from server.store import MailCounts
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer
from tests.test_metrics import Speaker, publication, stored, value

FOREIGN = {"Host": "notify.example.org"}
"""What a caller sends who is not taken for somebody on this machine."""

PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
}
PLAIN = {"Accept": "text/plain"}

KEYS: dict[str, Grant | ServerError] = {
    "operator": Grant("default", frozenset({Scope.ADMIN}), "key operator"),
    "acme-admin": Grant("acme", frozenset(Scope), "key admin"),
    "acme-publish": Grant("acme", frozenset({Scope.PUBLISH}), "key publish"),
    "default-publish": Grant("default", frozenset({Scope.PUBLISH}), "key publish"),
    "wrong": BadCredentials("the key is wrong"),
    "often": RateLimited("too many", 6.5),
}


async def _who(request: HTTPServerRequest) -> Grant | None:
    key = request.headers.get("Authorization")
    if key is None:
        return None
    found = KEYS[key]
    if isinstance(found, ServerError):
        raise found
    return found


async def _mail_counts() -> MailCounts:
    return MailCounts(due=3, refused=1)


@dataclass
class Node:
    """A node that is nothing but its instruments, on a port of its own."""

    instruments: Instruments
    speaker: Speaker
    failure: dict[str, Exception]
    """What is wrong with the dependencies, by name."""
    application: Application
    url: str = ""

    async def get(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> HTTPResponse:
        """As a caller elsewhere, unless the headers say otherwise."""
        client = AsyncHTTPClient()
        return await client.fetch(
            self.url + path, headers=FOREIGN | (headers or {}), raise_error=False, **options
        )

    async def json(self, path: str, headers: dict[str, str] | None = None) -> Any:
        answer = await self.get(path, headers)
        assert answer.headers["Content-Type"].startswith("application/json"), answer.body
        return json.loads(answer.body)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    metrics, speaker, failure = Metrics({"version": "1"}), Speaker(), dict[str, Exception]()
    metrics.hear(speaker)
    metrics.watch(
        Sources(
            connections=lambda: {"websocket": 4},
            joined=lambda: {"default": 1, "acme": 2},
            users=lambda: {"default": 1, "acme": 1},
            queues={},
            mail_counts=_mail_counts,
        )
    )
    checks = Checks(metrics.note_check, kept_s=0)

    def probe(name: str) -> Any:
        async def ask() -> None:
            if name in failure:
                raise failure[name]

        return ask

    checks.add("store", probe("store"), is_vital=True)
    checks.add("mail", probe("mail"))
    checks.state = State.SERVING
    instruments = Instruments(
        metrics=metrics,
        exposition=Exposition(metrics, kept_s=0),
        checks=checks,
        who=_who,
        identify=CallerPolicy().identify,
    )
    application = Application(
        health.routes(instruments), log_function=lambda handler: note_request(metrics, handler)
    )
    running = Node(instruments, speaker, failure, application)
    server = HTTPServer(application)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        server.add_socket(listening)
        running.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield running
        server.stop()
        await server.close_all_connections()
    metrics.close()


# -- alive and ready -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics"])
async def test_all_can_be_asked_by_head(node: Node, path: str) -> None:
    """Load balancers ask like this; nothing of it may be kept by anybody."""
    answer = await node.get(path, method="HEAD")
    assert (answer.code, answer.body) == (200, b"")
    assert answer.headers["Cache-Control"] == "no-store"


async def test_ready_means_that_all_is_well(node: Node) -> None:
    """Each dependency with its latency."""
    answer = await node.get("/readyz")
    assert answer.code == 200
    found = json.loads(answer.body)
    assert found["status"] == "ready"
    assert {name: each["status"] for name, each in found["dependencies"].items()} == {
        "store": "up",
        "mail": "up",
    }
    assert all(each["latency_ms"] >= 0 for each in found["dependencies"].values())


async def test_without_mail_the_node_serves_on(node: Node) -> None:
    """Mail is late then, not lost; taking the node out would help nobody."""
    node.failure["mail"] = Trouble("mail does not go out")
    answer = await node.get("/readyz")
    found = json.loads(answer.body)
    assert (answer.code, found["status"]) == (200, "degraded")
    assert found["dependencies"]["mail"] | {"latency_ms": 0} == {
        "status": "down",
        "latency_ms": 0,
        "reason": "mail does not go out",
    }


async def test_without_the_store_the_node_is_not_ready(node: Node) -> None:
    """And alive all the same: starting it anew would not bring the store back. The reason names no address."""
    node.failure["store"] = StoreUnavailable("mongodb://10.1.2.3:27017 refused")
    answer = await node.get("/readyz")
    found = json.loads(answer.body)
    assert (answer.code, found["status"]) == (503, "unavailable")
    assert found["dependencies"]["store"]["reason"] == "store_unavailable"
    assert (await node.get("/healthz")).code == 200


@pytest.mark.parametrize("state", [State.STARTING, State.STOPPING])
async def test_a_node_that_starts_or_stops_is_not_ready(node: Node, state: State) -> None:
    """Load balancers take it out."""
    node.instruments.checks.state = state
    answer = await node.get("/readyz")
    assert (answer.code, json.loads(answer.body)) == (503, {"status": state.value, "dependencies": {}})


# -- C2's health ---------------------------------------------------------------------------------------------
async def test_health_has_the_shape_of_c2(node: Node) -> None:
    """With what is ours beside it."""
    answer = await node.get("/health")
    found = json.loads(answer.body)
    assert answer.code == 200
    assert found["status"] == "healthy"
    assert datetime.fromisoformat(found["timestamp"]).utcoffset() == timedelta(0)
    assert found["redis"] == {"status": "not_configured", "ping_ms": None}
    assert found["websocket"] == {"active_connections": 4, "total_unique_users": 2}
    assert isinstance(found["uptime_seconds"], int)
    assert found["store"]["status"] == "connected" and found["store"]["ping_ms"] >= 0
    assert found["mail"]["status"] == "connected"
    assert set(found) == {
        "status",
        "timestamp",
        "redis",
        "websocket",
        "uptime_seconds",
        "store",
        "mail",
    }


async def test_health_counts_nobody_for_strangers_where_figures_are_not_public(node: Node) -> None:
    """Or a tenant could count the others'."""
    node.instruments.public_metrics = False
    found = await node.json("/health", {})
    assert found["websocket"] == {"active_connections": None, "total_unique_users": None}


async def test_health_is_degraded_without_the_store(node: Node) -> None:
    """503, as in C2; a mail server that is away is shown only."""
    node.failure["mail"] = Trouble("mail does not go out")
    assert (await node.get("/health")).code == 200
    node.failure["store"] = OSError("gone")
    answer = await node.get("/health")
    found = json.loads(answer.body)
    assert (answer.code, found["status"]) == (503, "degraded")
    assert found["store"] == {
        "status": "disconnected",
        "ping_ms": None,
        "reason": "failed; the log says why",
    }
    assert found["mail"]["reason"] == "mail does not go out"


async def test_health_while_starting(node: Node) -> None:
    """Degraded, and nothing is known yet."""
    node.instruments.checks.state = State.STARTING
    answer = await node.get("/health")
    found = json.loads(answer.body)
    assert (answer.code, found["store"]) == (503, {"status": "unknown", "ping_ms": None})


# -- the figures ---------------------------------------------------------------------------------------------
async def test_a_plain_curl_gets_c2s_json(node: Node) -> None:
    """Its names, and its kinds of numbers."""
    bus.tell(
        bus.NOTIFICATION_PUSHED,
        node.speaker,
        publication=publication(),
        connections=5,
        push_s=0.1,
        total_s=None,
    )
    found = await node.json("/metrics", {"Accept": "*/*"})
    assert datetime.fromisoformat(found.pop("timestamp")).utcoffset() == timedelta(0)
    assert isinstance(found.pop("uptime_seconds"), int)
    assert found == {
        "service": "notification-server",
        "connections": {"active": 4, "total_unique_users": 2},
        "messages": {"received_from_redis": 0, "sent_to_clients": 5, "failed": 0},
    }


@pytest.mark.parametrize(
    ("headers", "content_type", "end"),
    [
        (PLAIN, "text/plain; version=0.0.4; charset=utf-8", b"\n"),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8", b"# EOF\n"),
    ],
)
async def test_prometheus_gets_its_text(
    node: Node, headers: dict[str, str], content_type: str, end: bytes
) -> None:
    """As its Accept header asks; how the dependencies are and how much mail is owed was looked up for it."""
    answer = await node.get("/metrics", headers)
    assert answer.code == 200
    assert answer.headers["Content-Type"] == content_type
    assert answer.body.endswith(end)
    assert b'notification_dependency_up{dependency="store"} 1.0\n' in answer.body
    assert b'notification_mail_recipients{state="due"} 3.0\n' in answer.body


def _tenants(answer: HTTPResponse) -> set[str]:
    """Those that the answer speaks of."""
    assert answer.code == 200, answer.body
    return {tenant for tenant in ("default", "acme") if f'tenant="{tenant}"'.encode() in answer.body}


def _has_node(answer: HTTPResponse) -> bool:
    return b"process_open_fds" in answer.body


@pytest.mark.parametrize(
    ("headers", "tenants"),
    [
        ({}, set()),
        ({"Authorization": "operator"}, {"default", "acme"}),
        ({"Authorization": "acme-admin"}, {"acme"}),
        ({"Authorization": "acme-publish"}, set()),
        ({"Authorization": "default-publish"}, set()),
        ({"Host": "localhost"}, {"default", "acme"}),
    ],
)
async def test_who_sees_the_figures_of_which_tenant(
    node: Node, headers: dict[str, str], tenants: set[str]
) -> None:
    """An admin key of the first tenant and callers on this machine all of them, an admin key its own tenant's;
    everybody else the sums."""
    for tenant in ("default", "acme"):
        stored(node.speaker, publication(tenant))
    answer = await node.get("/metrics", PLAIN | headers)
    assert _tenants(answer) == tenants
    assert _has_node(answer)
    assert (b"notification_published_total{door" in answer.body) and (
        bool(tenants) or b'notification_published_total{door="notify"} 2.0\n' in answer.body
    )


async def test_the_json_of_a_tenant_is_its_own(node: Node) -> None:
    """Connections are those with one of its users."""
    found = await node.json("/metrics", {"Authorization": "acme-admin"})
    assert found["connections"] == {"active": 2, "total_unique_users": 1}


@pytest.mark.parametrize(
    ("key", "status"), [(None, 403), ("acme-publish", 403), ("acme-admin", 200), ("operator", 200)]
)
async def test_figures_that_are_not_public_are_for_admins_only(
    node: Node, key: str | None, status: int
) -> None:
    """And a tenant's admin then sees nothing of the node."""
    node.instruments.public_metrics = False
    for accept in (PLAIN, {"Accept": "*/*"}):
        answer = await node.get("/metrics", accept | ({"Authorization": key} if key else {}))
        assert answer.code == status
    if status == 403:
        assert json.loads(answer.body)["title"] == "refused"
    else:
        assert _has_node(await node.get("/metrics", PLAIN | {"Authorization": str(key)})) == (
            key == "operator"
        )


@pytest.mark.parametrize(
    ("key", "status", "retry_after"), [("wrong", 403, None), ("often", 429, "7")], ids=["wrong", "often"]
)
async def test_a_wrong_key_is_refused(node: Node, key: str, status: int, retry_after: str | None) -> None:
    """Rather than answered with less than was expected."""
    answer = await node.get("/metrics", {"Authorization": key})
    assert answer.code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers.get("Retry-After") == retry_after
    assert json.loads(answer.body)["status"] == status


@pytest.mark.parametrize(
    ("headers", "is_internal"),
    [
        ({}, True),
        ({"X-Forwarded-For": "203.0.113.9"}, False),
        ({"X-Forwarded-For": "127.0.0.1"}, False),
        ({"Via": "1.1 proxy"}, False),
        ({"X-Real-IP": "127.0.0.1"}, False),
    ],
)
async def test_internal_networks_see_everything_but_not_through_a_proxy(
    node: Node, headers: dict[str, str], is_internal: bool
) -> None:
    """A proxy that nobody trusts lends its address to all the world."""
    node.instruments.internal = (ipaddress.ip_network("127.0.0.0/8"),)
    stored(node.speaker, publication("acme"))
    assert bool(_tenants(await node.get("/metrics", PLAIN | headers))) == is_internal


@pytest.mark.parametrize(("address", "is_internal"), [("10.1.2.3", True), ("203.0.113.9", False)])
async def test_behind_a_trusted_proxy_the_callers_own_address_counts(
    node: Node, address: str, is_internal: bool
) -> None:
    """Not the proxy's."""
    loopback = ipaddress.ip_network("127.0.0.0/8")
    node.instruments.identify = CallerPolicy(trusted_proxies=(loopback,)).identify
    node.instruments.internal = (ipaddress.ip_network("10.0.0.0/8"), loopback)
    stored(node.speaker, publication("acme"))
    answer = await node.get("/metrics", PLAIN | {"X-Forwarded-For": address})
    assert bool(_tenants(answer)) == is_internal


async def test_internal_is_also_an_address_of_ipv4_written_as_ipv6(node: Node) -> None:
    """As a socket that listens on both shows it."""
    policy = CallerPolicy(trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),))
    node.instruments.identify = policy.identify
    node.instruments.internal = (ipaddress.ip_network("10.0.0.0/8"),)
    stored(node.speaker, publication("acme"))
    answer = await node.get("/metrics", PLAIN | {"X-Forwarded-For": "::ffff:10.1.2.3"})
    assert _tenants(answer)
    assert not _tenants(await node.get("/metrics", PLAIN | {"X-Forwarded-For": "not an address"}))


async def test_a_flood_is_answered_from_memory(node: Node) -> None:
    """A hundred at once: the store is asked once."""
    metrics, asked = node.instruments.metrics, 0

    async def ping() -> None:
        nonlocal asked
        asked += 1

    # What was found out stays fresh, however long the hundred take.
    checks = node.instruments.checks = Checks(clock=lambda: 0.0)
    checks.add("store", ping)
    checks.state = State.SERVING
    node.instruments.exposition = Exposition(metrics)
    paths = ["/readyz", "/health", "/metrics"] * 33
    answers = await asyncio.gather(*(node.get(path) for path in paths))
    assert {answer.code for answer in answers} == {200}
    assert asked == 1


# -- timing requests -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "door", "label"),
    [
        ("server.ingest.notify", "notify", "notify"),
        ("server.admin", None, "admin"),
        ("tornado.web", None, "none"),
        ("server.transports.sockjs.handlers", None, None),
    ],
)
async def test_requests_are_timed_by_the_door_that_answered(
    node: Node, module: str, door: str | None, label: str | None
) -> None:
    """Those of listening clients are not: they wait on purpose."""
    fields = {"__module__": module, "get": lambda handler: handler.finish()} | (
        {"door": door} if door else {}
    )
    node.application.add_handlers(".*", [("/asked", type("Handler", (RequestHandler,), fields))])
    assert (await node.get("/asked")).code == 200
    families = [
        family for family in node.instruments.metrics.registry.collect() if "http_request" in family.name
    ]
    found = {sample.labels["door"] for family in families for sample in family.samples}
    assert found == ({label} if label else set())


async def test_what_the_instruments_answer_is_timed_too(node: Node) -> None:
    """By class of status."""
    await node.get("/healthz")
    metrics = node.instruments.metrics
    assert value(metrics, "http_request_duration_seconds_count", door="health", status="2xx") == 1


# -- the running server --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("health")) as running:
        yield running


def test_a_running_server_is_ready_and_healthy(server: RunningServer) -> None:
    """With its own store and mail."""
    ready, healthy = server.get("/readyz"), server.get("/health")
    assert (ready.status, ready.json()["status"]) == (200, "ready")
    assert {"store", "mail"} <= set(ready.json()["dependencies"])
    assert (healthy.status, healthy.json()["store"]["status"]) == (200, "connected")


def test_a_running_server_counts_what_it_does(server: RunningServer) -> None:
    """A notification, its documents, the request that brought it, and one that was refused."""
    server.must_notify("ann", "bob")
    assert server.notify("ann", content="x" * 70_000).status == 413
    expected = {
        'notification_published_total{door="notify",tenant="default"} 1.0',
        'notification_documents_stored_total{door="notify",tenant="default"} 2.0',
        "notification_store_write_duration_seconds_count 1.0",
        'notification_http_request_duration_seconds_count{door="notify",status="2xx"} 1.0',
        'notification_http_request_duration_seconds_count{door="notify",status="4xx"} 1.0',
        'notification_requests_refused_total{code="too_large",door="notify",tenant="default"} 1.0',
        'notification_dependency_up{dependency="store"} 1.0',
    }

    def missing() -> set[str]:
        return expected - set(server.request("GET", "/metrics", None, PLAIN).body.decode().splitlines())

    wait_until(lambda: not missing(), f"all of {expected} being counted")
    assert server.get("/metrics").json()["service"] == "notification-server"
