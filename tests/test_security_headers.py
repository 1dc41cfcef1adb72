"""Tests of server/security_headers.py, and of what every route answers to every method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tornado.routing import PathMatches, ReversibleRuleRouter
from tornado.web import Application, RequestHandler

from server.app import Server
from server.config import load
from server.security_headers import NO_PAGE, PAGE
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer

WAIT_S = 20.0
"""How long something may take that is to come: no measure, only the end of a hang."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")

SAMPLES = (
    "/",
    "/example",
    "/example/style.css",
    "/example/none",
    "/demo/users",
    "/demo/mailbox",
    "/client/notifications.js",
    "/client/sockjs.min.js",
    "/notify",
    "/api/v2/tokens",
    "/api/v2/users/alice/sign-out",
    "/api/users/token/",
    "/api/users/token/refresh/",
    "/api/users/token/verify/",
    "/api/users/is-authenticated/",
    "/api/notifications/",
    "/api/notifications/send/",
    "/api/v2/notifications",
    "/api/notifications/65f2c0ffee00000000000001/deliveries",
    "/api/realtime/internal/notify",
    "/api/outbox",
    "/api/outbox/65f2c0ffee00000000000001",
    "/api/outbox/65f2c0ffee00000000000001/retry",
    "/api/v2/inbox",
    "/api/schema/",
    "/api/docs/",
    "/api/docs/docs.css",
    "/api/none",
    "/ws",
    "/ws/v2",
    "/ws/notify/",
    "/ws/notifications/alice/",
    "/events",
    "/events/ticket",
    "/socket.io/",
    "/healthz",
    "/readyz",
    "/health",
    "/metrics",
    "/notification/",
    "/notification/info",
    "/notification/iframe.html",
    "/notification/websocket",
    "/notification/0/{}/websocket",
    "/notification/0/{}/xhr",
    "/notification/0/{}/xhr_send",
    "/notification/0/{}/xhr_streaming",
    "/notification/0/{}/eventsource",
    "/notification/0/{}/htmlfile?c=x",
    "/notification/0/{}/jsonp?c=x",
    "/notification/0/{}/jsonp_send",
)
"""A path for each route; `{}`: a session's id, a new one each time."""

PAGES = {
    "/",
    "/example/style.css",
    "/api/docs/",
    "/api/docs/docs.css",
    "/notification/iframe.html",
    "/notification/0/{}/htmlfile?c=x",
}
"""Those with a policy of their own, or that of SockJS's pages."""


@dataclass(frozen=True)
class Head:
    """The first line and the headers of an answer. Names in lower case; `lines`: as they came."""

    status: int
    headers: dict[str, str]
    lines: list[str]


class Service:
    """The whole server, in the process of the test: so that its routes can be looked at."""

    def __init__(self, application: Application, port: int) -> None:
        self.application = application
        self.port = port
        self._count = 0

    async def ask(self, method: str, path: str, *headers: str) -> Head:
        """What is answered, without its body; the connection is over then."""
        self._count += 1
        lines = [f"{method} {path.format(f's{self._count}')} HTTP/1.1", f"Host: localhost:{self.port}"]
        request = "\r\n".join([*lines, "Content-Length: 0", *headers, "", ""]).encode()
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            finally:
                writer.close()
        fields = dict(line.split(": ", 1) for line in rest)
        return Head(int(first.split()[1]), {name.lower(): value for name, value in fields.items()}, rest)


@asynccontextmanager
async def serving(folder: Path, **settings: str) -> AsyncIterator[Service]:
    port = free_port()
    environ = {"NOTIFY_APPLICATION_DATA": str(folder / "data"), "NOTIFY_APPLICATION_PORT": str(port)}
    server = Server(load(None, environ | settings))
    stop, started = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(server.run(stop, started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait((running, waiting), timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
    application = server._entrance.application
    try:
        assert started.is_set(), running
        yield Service(application, port)
    finally:
        stop.set()
        waiting.cancel()
        await running


@pytest.fixture(params=["DEBUG", "RELEASE"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    release = {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE", "NOTIFY_MONGODB_URL": "embedded"}
    async with serving(tmp_path, **(release if request.param == "RELEASE" else {})) as running:
        yield running


def routes_of(application: Application) -> dict[PathMatches, type[RequestHandler]]:
    """All of them, but the last one, which is for all that has none."""
    found: dict[PathMatches, type[RequestHandler]] = {}

    def walk(router: ReversibleRuleRouter) -> None:
        for rule in router.rules:
            if isinstance(rule.target, ReversibleRuleRouter):
                walk(rule.target)
            else:
                assert isinstance(rule.matcher, PathMatches)
                found[rule.matcher] = rule.target

    walk(application.default_router)
    return found


def assert_clean(head: Head, what: str) -> None:
    """Said of every answer."""
    assert head.headers["server"] == "notification-server", what
    assert head.headers["x-content-type-options"] == "nosniff", what
    assert head.headers["referrer-policy"] == "same-origin", what
    assert head.headers["content-security-policy"], what
    assert "strict-transport-security" not in head.headers, what  # it would be ignored over plain HTTP
    assert len(head.headers) == len(head.lines), f"{what}: a header stands there twice: {head.lines}"
    assert "Tornado" not in "".join(head.lines), what


async def test_every_route_answers_every_method_cleanly(service: Service) -> None:
    """Its version is nobody's business, nothing is taken for something else than it says, and what is no page can do
    nothing; what a route has no method for is 405."""
    routes = routes_of(service.application)
    untried = dict(routes)
    for path in SAMPLES:
        matching = [each for each in routes if each.regex.match(path.partition("?")[0])]
        if not matching:
            continue  # the page in RELEASE
        # One for upgrades and one for the others have the same pattern.
        alike = [each for each in matching if each.regex == matching[0].regex]
        for each in alike:
            untried.pop(each, None)
        for method in METHODS:
            head = await service.ask(method, path)
            what = f"{method} {path}: {head.status} {head.lines}"
            assert_clean(head, what)
            unknown = RequestHandler._unimplemented_method
            if all(getattr(routes[each], method.lower(), unknown) is unknown for each in alike):
                assert head.status in (405, 401, 403, 404), what
                assert head.status == 405 or path.startswith(("/demo", "/api", "/notify")), what
            if path not in PAGES:
                assert head.headers["content-security-policy"] == NO_PAGE, what
    assert not untried, f"add samples for {[each.regex.pattern for each in untried]}"


async def test_pages_have_a_policy_that_lets_them_work(tmp_path: Path) -> None:
    """The example page loads its own scripts only; SockJS's pages have scripts in them."""
    async with serving(tmp_path) as service:
        page = (await service.ask("GET", "/")).headers["content-security-policy"]
        assert "default-src 'self'" in page and "frame-ancestors 'self'" in page and "unsafe" not in page
        for path in ("/notification/iframe.html", "/notification/0/{}/htmlfile?c=x"):
            framed = (await service.ask("GET", path)).headers["content-security-policy"]
            assert framed.startswith("frame-ancestors 'self'") and "default-src" not in framed


async def test_the_pages_of_sockjs_can_be_framed_in_release(tmp_path: Path) -> None:
    """By pages of any origin, unless `origins` says which."""
    release = {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE", "NOTIFY_MONGODB_URL": "embedded"}
    async with serving(tmp_path, **release) as service:
        for path in ("/notification/iframe.html", "/notification/0/{}/htmlfile?c=x"):
            assert (await service.ask("GET", path)).headers["content-security-policy"] == PAGE


async def test_the_websocket_handshake_too(service: Service) -> None:
    """It is an answer as others are."""
    head = await service.ask(
        "GET",
        "/notification/websocket",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    assert head.status == 101
    assert_clean(head, "101")


@pytest.mark.parametrize(
    "path",
    [
        "/none",
        "/admin",
        "/.git/config",
        "/client/../index.html",
        "/notification/x/y",
    ],
)
async def test_what_is_not_there(service: Service, path: str) -> None:
    """404 as clean as the rest."""
    for method in METHODS:
        head = await service.ask(method, path)
        assert head.status == (405 if method == "BREW" else 404), (method, path)
        assert_clean(head, path)
        assert head.headers["content-security-policy"] == NO_PAGE


def test_a_bug_is_told_to_the_log_only(tmp_path: Path) -> None:
    """500 without a traceback, a path or a message; also in DEBUG."""
    fault = """
from server import health
async def fail(*_):
    raise RuntimeError("a secret stands here")
health.ReadyHandler.get = fail
"""
    (tmp_path / "sitecustomize.py").write_text(fault)
    root = Path(__file__).resolve().parents[1]
    with RunningServer(tmp_path, PYTHONPATH=f"{tmp_path}:{root}") as server:
        answer = server.get("/readyz")
        assert answer.status == 500
        assert b"secret" not in answer.body and b"Traceback" not in answer.body and b".py" not in answer.body
        assert answer.headers["Server"] == "notification-server"
        assert answer.headers["Content-Security-Policy"] == NO_PAGE
        wait_until(lambda: "a secret stands here" in server.log, "the log")
