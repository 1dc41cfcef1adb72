"""Tests of server/methods.py: what a route says of a method that it has not, at a running server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.web import RequestHandler

from server.methods import methods_of
from tests.support.running_server import RunningServer

ROUTES = {
    "/": "GET, HEAD",
    "/example/": "GET",
    "/demo/users": "GET",
    "/client/notifications.js": "GET, HEAD",
    "/healthz": "GET, HEAD",
    "/readyz": "GET, HEAD",
    "/health": "GET, HEAD",
    "/metrics": "GET, HEAD",
    "/api/schema/": "GET, HEAD",
    "/api/docs/": "GET, HEAD",
    "/api/notifications/": "GET",
    "/api/notifications/send/": "POST",
    "/api/users/token/": "POST, OPTIONS",
    "/notify": "POST, OPTIONS",
    "/events": "GET, OPTIONS",
    "/events/ticket": "POST, OPTIONS",
    "/ws": "GET",
    "/ws/notify/": "GET",
    "/ws/notifications/1/": "GET",
    "/socket.io/": "GET, POST, OPTIONS",
    "/notification/info": "OPTIONS, GET",
    "/notification/websocket": "GET",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("methods")) as running:
        yield running


@pytest.mark.parametrize("path", ROUTES)
def test_another_method_is_answered_by_those_that_there_are(server: RunningServer, path: str) -> None:
    """405 and the header `Allow`, as RFC 9110 section 15.5.6 demands."""
    for method in ("PATCH", "DELETE"):
        answer = server.request(method, path)
        assert (answer.status, answer.headers.get("Allow")) == (405, ROUTES[path])


def test_operators_are_told_as_a_problem(server: RunningServer) -> None:
    """RFC 9457, as of all that answers with JSON."""
    answer = server.request("POST", "/healthz", b"")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "method_not_allowed",
        "status": 405,
        "detail": "Method Not Allowed",
    }


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "OPTIONS"])
def test_an_unknown_address_is_answered_as_a_problem(server: RunningServer, method: str) -> None:
    """A backend that is off by a slash finds out, in the shape of all its other errors."""
    answer = server.request(method, "/api/realtime/internal/notify/", None if method == "GET" else b"{}")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json()["title"] == "not_found"


def test_methods_are_those_that_a_handler_has_or_inherits() -> None:
    class Reads(RequestHandler):
        def get(self) -> None: ...

        head = get

    class Writes(Reads):
        def put(self) -> None: ...

    assert methods_of(RequestHandler) == ""
    assert methods_of(Reads) == "GET, HEAD"
    assert methods_of(Writes) == "GET, HEAD, PUT"
