"""The page, the client files and the demo, against the running server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_until
from tests.support.running_server import RunningServer

DEMO_PATHS = ["/", "/example/app.js", "/example/style.css", "/demo/users", "/demo/mailbox"]
RELEASE = {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE", "NOTIFY_MONGODB_URL": "embedded"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("admin")) as running:
        yield running


@pytest.mark.parametrize("path", DEMO_PATHS)
def test_the_page_and_the_demo_are_there_in_debug(server: RunningServer, path: str) -> None:
    """For callers on this machine."""
    assert server.get(path).status == 200


@pytest.mark.parametrize("path", DEMO_PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Origin": "https://evil.example"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"Via": "1.1 proxy"},
    ],
)
def test_the_demo_answers_callers_on_this_machine_only(
    server: RunningServer, path: str, headers: dict[str, str]
) -> None:
    """Nobody through a proxy, under a foreign name or from a foreign page."""
    assert server.request("GET", path, None, headers).status == 403


def test_in_release_there_is_no_page_and_no_demo(tmp_path: Path) -> None:
    """Only what every server answers: health and the client files."""
    with RunningServer(tmp_path, **RELEASE) as server:
        assert [server.get(path).status for path in DEMO_PATHS] == [404] * len(DEMO_PATHS)
        for path in ("/healthz", "/client/notifications.js", "/client/sockjs.min.js"):
            assert server.get(path).status == 200


def test_nothing_of_a_notification_can_become_a_script(server: RunningServer) -> None:
    """The policy allows scripts and styles from this server's own files only, and no inline ones."""
    headers = server.get("/").headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert b"<script>" not in server.get("/").body


@pytest.mark.parametrize("path", ["/client/notifications.js", "/client/sockjs.min.js"])
def test_pages_of_any_origin_may_load_the_client(server: RunningServer, path: str) -> None:
    """As a module or as a script, from wherever the page is."""
    answer = server.request("GET", path, None, {"Origin": "https://shop.example", "Host": "bell.example"})
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "javascript" in answer.headers["Content-Type"]


@pytest.mark.parametrize(
    "path", ["/example/../../config.ini", "/example/%2e%2e/%2e%2e/config.ini", "/client/app.js"]
)
def test_no_other_file_can_be_had(server: RunningServer, path: str) -> None:
    """Whatever the path says."""
    assert server.get(path).status in (400, 403, 404)


async def test_the_mailbox_shows_what_would_have_gone_out(server: RunningServer) -> None:
    """Newest first, as plain fields."""
    recipient = {"id": "nobody here", "email": "away@example.test"}
    server.must_notify(recipient, title="One", content="1", email_send=True)
    await asyncio.to_thread(
        wait_until, lambda: len(server.get("/demo/mailbox").json()["mails"]) == 1, "a mail"
    )
    server.must_notify(recipient, title="Two <b>", content="<p>2</p>", email_send=True)
    await asyncio.to_thread(
        wait_until, lambda: len(server.get("/demo/mailbox").json()["mails"]) == 2, "a mail"
    )
    two, one = server.get("/demo/mailbox").json()["mails"]
    assert (two["subject"], one["subject"]) == ("Two <b>", "One")
    assert (two["to"], two["text"].strip()) == (["away@example.test"], "<p>2</p>")
