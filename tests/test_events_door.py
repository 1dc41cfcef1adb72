"""Server-Sent Events at `/events`, from outside: by curl, a browser, a proxy, and byte by byte."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.async_api import Browser

from tests.support.answering import AnsweringServer
from tests.support.client import SocketClient
from tests.support.event_streams import Event, EventStream, event_stream
from tests.support.feeds import SETTINGS, WAIT_S, user_token
from tests.support.pages import Pages
from tests.support.ports import free_port
from tests.support.processes import Process, ServersEnd, wait_until
from tests.support.realtime import figure
from tests.support.running_server import Response, RunningServer

ELSEWHERE = {"X-Forwarded-For": "198.51.100.7"}
"""Seen from behind a trusted proxy: a caller that is counted by its address."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("events"), **SETTINGS) as running:
        yield running


def bearer(user: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {user_token(user, **claims)}"}


def ticket(server: RunningServer, user: str) -> str:
    answer = server.request("POST", "/events/ticket", b"", bearer(user))
    assert answer.status == 200, answer.body
    assert answer.json()["expires_in"] == 30
    text: str = answer.json()["ticket"]
    return text


def contents(events: list[Event]) -> list[str]:
    return [event.data["content"] for event in events if event.name == "notification"]


async def change(server: RunningServer, user: str, name: str, *ids: str) -> None:
    """What another screen of the user does."""
    async with SocketClient(server) as screen:
        await screen.send("join", {"token": user_token(user)})
        await screen.send(name, {"ids": list(ids)})
        await screen.next(name)


# -- what is told --------------------------------------------------------------------------------------------
async def test_a_client_is_told_what_it_has_not_seen_and_then_what_happens(
    server: RunningServer, user: str
) -> None:
    """Unseen documents, oldest first; how many; from then on each event by its name, with JSON and where it stands."""
    for number in range(3):
        server.must_notify(user, content=str(number))
    async with event_stream(server, user) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["connection"] == "close"
        first = await stream.caught_up()
        assert contents(first) == ["0", "1", "2"]
        assert first[-1] == Event("count", {"unseen": 3}, first[2].data["rev"])
        assert 2000 <= (stream.retry_ms or 0) <= 6000
        server.must_notify(user, content="grüße \u2028 end")
        pushed = await stream.next("notification")
        assert (pushed.data["content"], pushed.id) == ("grüße \u2028 end", pushed.data["rev"])
        assert (await stream.next("count")).data == {"unseen": 4}
        await change(server, user, "seen", pushed.data["_id"])
        seen = await stream.next("seen")
        assert seen.data == {"ids": [pushed.data["_id"]]}
        assert (await stream.next("count")).data == {"unseen": 3}
        await change(server, user, "delete", pushed.data["_id"])
        deleted = await stream.next("delete")
        assert deleted.data == {"ids": [pushed.data["_id"]]}
        assert str(pushed.id) < str(seen.id) < str(deleted.id)


def test_curl_shows_it(server: RunningServer, user: str) -> None:
    """`curl -N`, line by line."""
    server.must_notify(user, content="for curl")
    with subprocess.Popen(
        ["curl", "-sN", "-H", f"Authorization: Bearer {user_token(user)}", f"{server.url}/events"],
        stdout=subprocess.PIPE,
        text=True,
    ) as curl:
        assert curl.stdout is not None
        lines = [curl.stdout.readline() for _ in range(7)]
        curl.kill()
    assert lines[0].startswith("retry: ")
    assert lines[1:3] == ["\n", "event: notification\n"]
    assert json.loads(lines[3].removeprefix("data: "))["content"] == "for curl"
    assert lines[5] == "event: count\n"


# -- coming back ---------------------------------------------------------------------------------------------
async def test_who_comes_back_is_told_what_has_changed(
    tmp_path: Path, settings_of_store: dict[str, str], user: str
) -> None:
    """While the client, and then the server, was away: what is new, seen and deleted, each as it is now."""
    with RunningServer(tmp_path, **settings_of_store) as server:
        async with event_stream(server, user) as stream:
            await stream.caught_up()
            documents = {}
            for content in ("stays", "is seen", "is deleted"):
                server.must_notify(user, content=content)
                event = await stream.event()
                while event is not None and event.name == "count":
                    event = await stream.event()
                assert event is not None
                documents[content] = event.data
                last = event.id
        await change(server, user, "seen", documents["is seen"]["_id"])
        await change(server, user, "delete", documents["is deleted"]["_id"])
        server.must_notify(user, content="is new")
        await asyncio.to_thread(server.restart)
        async with event_stream(server, user, last_id=last) as stream:
            *changes, count = await stream.caught_up()
    told = {event.data["content"]: event.data["seen"] for event in changes if event.name == "notification"}
    assert told.pop("is new") is False
    assert told.pop("is seen") is True
    assert [event.data["ids"] for event in changes if event.name == "delete"] == [
        [documents["is deleted"]["_id"]]
    ]
    # A store whose changes may become visible late tells again of what is that young.
    assert told == ({"stays": False} if "NOTIFY_MONGODB_URL" in settings_of_store else {})
    assert count.data == {"unseen": 2}
    ids = [event.id for event in changes]
    assert ids == sorted(ids, key=str)


async def test_who_was_cut_off_in_the_first_listing_gets_it_again(server: RunningServer, user: str) -> None:
    """It stands nowhere before its end: no document of it carries an id."""
    for number in range(3):
        server.must_notify(user, content=str(number))
    async with event_stream(server, user) as stream:
        assert (await stream.next("notification")).id is None


@pytest.mark.parametrize(
    "last_id",
    ["0", "x", "0" * 17, "-000000000000001", "0X00000000000001", "ｆ" * 16, "ÿ", "f" * 16, "8" + "0" * 15],
    ids=["short", "x", "long", "minus", "prefix", "wide", "latin", "largest", "too-large"],
)
async def test_an_id_that_is_none_of_ours_counts_as_none(
    server: RunningServer, user: str, last_id: str
) -> None:
    """All that is unseen comes."""
    server.must_notify(user, content="unseen")
    async with event_stream(server, user, last_id=last_id) as stream:
        assert contents(await stream.caught_up()) == ["unseen"]


async def test_the_last_id_may_stand_in_the_query(server: RunningServer, user: str) -> None:
    """A new EventSource has no other place for it; the header goes before."""
    async with event_stream(server, user) as stream:
        await stream.caught_up()
        server.must_notify(user, content="seen by the stream")
        last = (await stream.next("notification")).id
    path = f"/events?last_event_id={last}"
    async with event_stream(server, user, path=path) as stream:
        assert contents(await stream.caught_up()) == []
    async with event_stream(server, user, path=path, last_id="0" * 16) as stream:
        assert contents(await stream.caught_up()) == ["seen by the stream"]


# -- who comes in --------------------------------------------------------------------------------------------
def problem(answer: Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"]) == ("about:blank", answer.status)
    assert body["detail"]
    return answer.status, body["title"]


REFUSED = {
    "nothing": ({}, "no_credentials"),
    "an-empty-one": ({"Authorization": "Bearer "}, "no_credentials"),
    "another-scheme": ({"Authorization": "Basic YTpi"}, "no_credentials"),
    "garbage": ({"Authorization": "Bearer a.b.c"}, "bad_credentials"),
    "too-long": ({"Authorization": "Bearer " + "x" * 9000}, "bad_credentials"),
    "expired": (bearer("alice", lifetime_s=-600), "token_expired"),
    "forged": (bearer("alice", secret="6e" * 32), "bad_credentials"),
}


@pytest.mark.parametrize("path", ["/events", "/events/ticket"])
@pytest.mark.parametrize(("headers", "code"), REFUSED.values(), ids=REFUSED)
def test_without_a_right_token_there_is_no_stream(
    server: RunningServer, path: str, headers: dict[str, str], code: str
) -> None:
    """401, as RFC 9457 and RFC 6750 have it, and not to be kept."""
    answer = server.request("POST" if "ticket" in path else "GET", path, headers=headers)
    assert problem(answer) == (401, code)
    error = "" if code == "no_credentials" else ', error="invalid_token"'
    assert answer.headers["Www-Authenticate"] == f'Bearer realm="notifications"{error}'
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(
    "query", ["v=3", "v=%FF", "last_event_id=%FF", "v=2&since=%FF", "v=2&last_event_id=%FF"]
)
def test_what_is_asked_for_wrongly_is_no_stream(server: RunningServer, user: str, query: str) -> None:
    """400, which names the field: another token would not help."""
    answer = server.request("GET", f"/events?{query}", headers=bearer(user))
    assert problem(answer) == (400, "invalid")
    assert answer.json()["field"] == query.rpartition("&")[2].partition("=")[0]
    assert "Www-Authenticate" not in answer.headers
    assert "Traceback" not in server.log


@pytest.mark.parametrize("query", ["ticket=wrong", "ticket=%FF", "ticket=" + "x" * 20_000, "token=abc"])
def test_a_wrong_ticket_lets_nobody_in(server: RunningServer, query: str) -> None:
    """Nor does a token in the query."""
    assert problem(server.get(f"/events?{query}"))[0] == 401


async def test_a_ticket_lets_in_once(server: RunningServer, user: str) -> None:
    """For the user whose token got it; a HEAD does not use it up."""
    text = ticket(server, user)
    assert server.request("HEAD", f"/events?ticket={text}").status == 405
    server.must_notify(user, content="mine")
    async with event_stream(server, path=f"/events?ticket={text}") as stream:
        assert contents(await stream.caught_up()) == ["mine"]
        assert problem(server.get(f"/events?ticket={text}")) == (401, "bad_credentials")


async def test_who_shows_a_token_needs_no_ticket(server: RunningServer, user: str) -> None:
    """Nor is it used up: a token goes before, right or wrong, however its scheme is written."""
    text = ticket(server, user)
    path = f"/events?ticket={text}"
    for scheme in ("Bearer", "bearer  ", "BEARER"):
        headers = {"Authorization": f"{scheme} {user_token(user)}"}
        async with event_stream(server, path=path, headers=headers) as stream:
            assert stream.status == 200
    wrong = server.request("GET", path, headers={"Authorization": "Bearer wrong"})
    assert problem(wrong) == (401, "bad_credentials")
    async with event_stream(server, path=path, headers={"Authorization": "Basic YTpi"}) as stream:
        assert stream.status == 200


async def test_of_several_tickets_the_last_one_counts(server: RunningServer, user: str) -> None:
    """As of all fields; blanks around it are none of it."""
    async with event_stream(server, path=f"/events?ticket=x&ticket=%20{ticket(server, user)}+") as stream:
        assert stream.status == 200


async def test_a_ticket_ends_with_its_token(server: RunningServer, user: str) -> None:
    """An answer says so, and no stream that ends at once."""
    answer = server.request("POST", "/events/ticket", b"", bearer(user, lifetime_s=4))
    await asyncio.sleep(4.5)
    assert problem(server.get(f"/events?ticket={answer.json()['ticket']}")) == (401, "token_expired")


def test_a_user_who_uses_no_tickets_gets_no_more(server: RunningServer, user: str) -> None:
    """Until the first has ended; a page may read when that is."""
    for _ in range(32):
        ticket(server, user)
    headers = bearer(user) | {"Origin": "https://shop.example"}
    answer = server.request("POST", "/events/ticket", b"", headers)
    assert problem(answer) == (429, "rate_limited")
    assert answer.headers["Retry-After"] == "30"
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


async def test_who_leaves_before_it_is_known_who_it_is(tmp_path: Path, user: str) -> None:
    """Nobody has come, and nothing fails."""
    async with AnsweringServer({"user_id": user}) as hook:
        hook.hold()
        with RunningServer(tmp_path, NOTIFY_HOOK_URL=hook.url, NOTIFY_HOOK_TIMEOUT_S="30") as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /events HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer some\r\n\r\n")
            its_end = ServersEnd(server.pid, writer)
            await hook.asked(1)
            writer.transport.abort()
            await asyncio.to_thread(wait_until, lambda: not its_end.is_open, "the server hearing of it")
            hook.let_go()
            async with event_stream(server, headers={"Authorization": "Bearer other"}) as stream:
                assert stream.status == 200
                await asyncio.to_thread(wait_until, lambda: connections(server) == 1, "one stream")
            assert "Traceback" not in server.log


async def test_a_ticket_is_worth_no_more_than_its_token(server: RunningServer, user: str) -> None:
    """When the user is signed out before it is used, it is none."""
    text = ticket(server, user)
    async with event_stream(server, user) as stream:
        await stream.caught_up()
        assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
        await stream.next("close")  # the server knows
    assert problem(server.get(f"/events?ticket={text}")) == (401, "bad_credentials")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [(method, "/events", "GET, OPTIONS") for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH")]
    + [(method, "/events/ticket", "POST, OPTIONS") for method in ("HEAD", "GET", "PUT", "DELETE")],
)
def test_other_methods_are_none(
    server: RunningServer, user: str, method: str, path: str, allowed: str
) -> None:
    answer = server.request(method, path, headers=bearer(user))
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert problem(answer) == (405, "method_not_allowed")


async def test_a_user_has_as_many_streams_as_they_may(tmp_path: Path, user: str) -> None:
    """429 before the stream; another one when the first has gone."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_LIMITS_CONNECTIONS_PER_USER="1") as server:
        async with event_stream(server, user) as stream:
            await stream.caught_up()
            answer = server.request("GET", "/events", headers=bearer(user))
            assert problem(answer) == (429, "too_many_connections")
            assert answer.headers["Retry-After"] == "10"
        wait_until(lambda: connections(server) == 0, "the stream ending")
        async with event_stream(server, user) as stream:
            await stream.caught_up()


async def test_an_address_comes_as_often_as_it_may(tmp_path: Path, user: str) -> None:
    """429; other addresses come in."""
    limits = {"NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1", "NOTIFY_LIMITS_CONNECTIONS_PER_ADDRESS": "1"}
    with RunningServer(tmp_path, **SETTINGS, **limits) as server:
        async with event_stream(server, user, headers=ELSEWHERE) as stream:
            await stream.caught_up()
            answer = server.request("GET", "/events", headers=bearer(user) | ELSEWHERE)
            assert problem(answer) == (429, "too_many_connections")
            async with event_stream(server, user, headers={"X-Forwarded-For": "198.51.100.8"}) as other:
                await other.caught_up()


def test_pages_of_other_origins_stay_out_where_origins_are_named(tmp_path: Path, user: str) -> None:
    """403 without a header by which they could read it; the named one may ask for and send what it needs."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_APPLICATION_ORIGINS="https://shop.example") as server:
        for method, path in (("GET", "/events"), ("POST", "/events/ticket")):
            asks = {
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization",
            }
            evil, shop = {"Origin": "https://evil.example"}, {"Origin": "https://shop.example"}
            answer = server.request(method, path, headers=bearer(user) | evil)
            assert problem(answer) == (403, "refused")
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert server.request("OPTIONS", path, headers=asks | evil).status == 403
            answer = server.request("OPTIONS", path, headers=asks | shop)
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
            assert {"Authorization", "Last-Event-ID"} <= set(
                answer.headers["Access-Control-Allow-Headers"].split(", ")
            )
            assert answer.headers["Allow"] == f"{method}, OPTIONS"
            assert int(answer.headers["Access-Control-Max-Age"]) > 0
            assert method in answer.headers["Access-Control-Allow-Methods"]
            answer = server.request(method, path, headers=shop)
            assert problem(answer) == (401, "no_credentials")
            assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"


async def test_no_secret_gets_into_the_log(server: RunningServer, user: str) -> None:
    """Neither tokens nor tickets, right or wrong."""
    text = ticket(server, user)
    async with event_stream(server, path=f"/events?ticket={text}") as stream:
        await stream.caught_up()
    server.get("/events?ticket=secret-ticket")
    server.get("/events?ticket=%FFsecret-ticket")
    server.request("GET", "/events", headers={"Authorization": "Bearer secret-token"})
    assert text not in server.log
    assert "secret-" not in server.log
    assert "eyJ" not in server.log


# -- a browser -----------------------------------------------------------------------------------------------
def example() -> str:
    """The function `listen` of docs/integrations/sse.md."""
    page = (Path(__file__).parents[1] / "docs" / "integrations" / "sse.md").read_text()
    return page.partition("```js\n")[2].partition("```")[0]


LISTEN = """([url, token]) => {
    window.heard = [];
    listen(url, async () => token, (name, data) => { if (name !== "count") heard.push(data.content ?? data); });
}"""


async def test_event_source_hears_and_comes_back(tmp_path: Path, user: str, browser: Browser) -> None:
    """On a page of another origin, as the guide has it; what it misses while the server restarts comes once."""
    with RunningServer(tmp_path, **SETTINGS) as server:
        async with Pages(browser) as pages:
            page = await pages.bare(f"http://localhost:{server.port}")
            for problem_of_restart in ("ERR_", "404", "502", "503"):
                pages.forgive(problem_of_restart)
            await page.add_script_tag(content=example())
            await page.evaluate(LISTEN, [server.url, user_token(user)])
            server.must_notify(user, content="first")
            await page.wait_for_function("() => heard.length === 1")
            await asyncio.to_thread(server.stop)
            await page.wait_for_function("() => heard.length === 2")
            await asyncio.to_thread(server.start)
            server.must_notify(user, content="second")
            await page.wait_for_function("() => heard.length === 3")
            server.must_notify(user, content="third")
            await page.wait_for_function("() => heard.length >= 4")
            assert await page.evaluate("() => heard") == [
                "first",
                {"code": 1001, "reason": "going away"},
                "second",
                "third",
            ]


async def test_fetch_reads_it_too(server: RunningServer, user: str, browser: Browser) -> None:
    """With a token in the header, from another origin: a browser asks first whether it may."""
    server.must_notify(user, content="for fetch")
    async with Pages(browser) as pages:
        page = await pages.bare(f"http://localhost:{server.port}")
        text = await page.evaluate(
            """async ([url, token]) => {
                const headers = { Authorization: `Bearer ${token}`, "Last-Event-ID": "0000000000000000" };
                const reader = (await fetch(`${url}/events`, { headers })).body.getReader();
                const decoder = new TextDecoder();
                let text = "";
                while (!text.includes("event: count")) text += decoder.decode((await reader.read()).value);
                await reader.cancel();
                return text;
            }""",
            [server.url, user_token(user)],
        )
    assert "for fetch" in text


# -- what is between -----------------------------------------------------------------------------------------
async def test_an_old_client_reads_it_bare(server: RunningServer, user: str) -> None:
    """HTTP/1.0 knows no chunks; the stream ends with the connection."""
    async with event_stream(server, user, version="1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        await stream.caught_up()
        server.must_notify(user, content="bare")
        assert (await stream.next("notification")).data["content"] == "bare"
        assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
        while (event := await stream.event()) is not None:
            last = event
        assert (last.name, last.data["code"]) == ("close", 3501)


async def test_an_old_client_is_told_nothing_but_lines(server: RunningServer, user: str) -> None:
    """Of the stream itself, from its beginning to its end: no sizes of chunks between them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET /events HTTP/1.0\r\nAuthorization: {bearer(user)['Authorization']}\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"event: count\n"), WAIT_S)
    assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
    body = (head + await asyncio.wait_for(reader.read(), WAIT_S)).partition(b"\r\n\r\n")[2].decode()
    writer.close()
    lines = body.split("\n")
    assert [line for line in lines if line and not re.match("(retry|event|data|id): ", line)] == []
    assert "event: close" in lines


NGINX = """user root; daemon off; pid nginx.pid; worker_processes 1; error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_set_header Host $host; {more} }}
    }}
}}
"""


@pytest.mark.parametrize(
    "more", ["", 'proxy_http_version 1.1; proxy_set_header Connection "";'], ids=["1.0", "1.1"]
)
async def test_nginx_passes_it_on_at_once(
    server: RunningServer, user: str, nginx: Path, tmp_path: Path, more: str
) -> None:
    """With nothing set but the address, and as its manual recommends; its end, too."""
    port = free_port()
    (tmp_path / "nginx.conf").write_text(NGINX.format(port=port, upstream=server.port, more=more))
    proxy = Process(
        [nginx, "-p", f"{tmp_path}/", "-c", "nginx.conf", "-e", "stderr"], log=tmp_path / "nginx.log"
    )
    proxy.start()
    try:
        wait_until(lambda: _answers(port), "nginx")
        async with event_stream(server, user, port=port) as stream:
            await stream.caught_up()
            server.must_notify(user, content="through nginx")
            assert (await stream.next("notification")).data["content"] == "through nginx"
            assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
            while (event := await stream.event()) is not None:
                last = event
            assert (last.name, last.data["code"]) == ("close", 3501)
            assert stream.has_ended
    finally:
        proxy.stop()


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


# -- why it ends ---------------------------------------------------------------------------------------------
async def end_of(stream: EventStream) -> dict[str, Any]:
    """What the last event says, which is `close`."""
    last = None
    while (event := await stream.event()) is not None:
        last = event
    assert stream.has_ended
    assert last is not None and last.name == "close", last
    data: dict[str, Any] = last.data
    return data


async def test_a_stream_ends_with_its_token(server: RunningServer, user: str) -> None:
    async with event_stream(server, headers=bearer(user, lifetime_s=2)) as stream:
        assert await end_of(stream) == {"code": 3005, "reason": "token_expired"}


async def test_a_stream_ends_when_the_user_is_signed_out(server: RunningServer, user: str) -> None:
    async with event_stream(server, user) as stream:
        await stream.caught_up()
        assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
        assert await end_of(stream) == {"code": 3501, "reason": "signed_out"}


async def test_a_stream_ends_when_the_server_stops(tmp_path: Path, user: str) -> None:
    with RunningServer(tmp_path, **SETTINGS) as server:
        async with event_stream(server, user) as stream:
            await stream.caught_up()
            assert await asyncio.to_thread(server.stop) == 0
            assert await end_of(stream) == {"code": 1001, "reason": "going away"}


async def test_who_says_something_behind_the_request_is_cut_off(server: RunningServer, user: str) -> None:
    """There is nothing to say, and nobody who would read it."""
    async with event_stream(server, user) as stream:
        await stream.caught_up()
        stream.writer.write(b"GET /healthz HTTP/1.1\r\n\r\n" * 1000)
        assert await stream.event() is None
        assert not stream.has_ended


def connections(server: RunningServer) -> int:
    count: int = server.get("/health").json()["websocket"]["active_connections"]
    return count


# -- heartbeats and slow clients -----------------------------------------------------------------------------
async def test_a_client_that_takes_comments_stays(tmp_path: Path, user: str) -> None:
    """It says nothing; that its system confirms them is what shows that it lives."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        async with event_stream(server, user) as stream:
            await stream.caught_up()
            for _ in range(6):
                await stream.comment()
            server.must_notify(user, content="still there")
            assert (await stream.next("notification")).data["content"] == "still there"


async def test_a_client_whose_system_confirms_nothing_is_dead(tmp_path: Path, user: str) -> None:
    """It reads no more, and so much was sent that its system takes no more either."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        async with event_stream(server, user, receive_buffer_bytes=2048) as stream:
            await stream.caught_up()
            server.must_notify(user, content="x" * 30_000)
            await asyncio.to_thread(wait_until, lambda: connections(server) == 0, "the stream being given up")
            dead = 'notification_connections_closed_total{reason="no_sign_of_life",transport="events"}'
            await asyncio.to_thread(wait_until, lambda: figure(server, dead) == 1, "the figure of that")


async def test_a_slow_client_is_closed_and_costs_little(tmp_path: Path, user: str) -> None:
    """What it is sent at most is its queue and what the kernels hold; another client hears all."""
    with RunningServer(tmp_path, **SETTINGS) as server:
        async with (
            event_stream(server, user, receive_buffer_bytes=4096) as slow,
            event_stream(server, user) as other,
        ):
            await other.caught_up()
            got = []
            for number in range(40):
                await asyncio.to_thread(server.must_notify, user, content=f"{number} " + "x" * 20_000)
                while not got or got[-1] != number:
                    event = await other.event()
                    assert event is not None
                    if event.name == "notification":
                        got.append(int(event.data["content"].split()[0]))
            assert got == list(range(40))
            await asyncio.to_thread(wait_until, lambda: connections(server) == 1, "the slow one being closed")
            size = 0
            while (event := await slow.event()) is not None:
                size += len(json.dumps(event.data))
                last = event
            assert (last.name, last.data) == ("close", {"code": 3008, "reason": "slow"})
            assert size < 600_000


async def test_who_never_takes_the_goodbye_is_cut_off(tmp_path: Path, user: str) -> None:
    """After a while, with all that waits: the process's files and memory are not theirs to hold."""
    with RunningServer(tmp_path, **SETTINGS) as server:
        async with event_stream(server, user, receive_buffer_bytes=4096) as slow:
            its_end = ServersEnd(server.pid, slow.writer)
            for number in range(40):
                await asyncio.to_thread(server.must_notify, user, content=f"{number} " + "x" * 20_000)
            await asyncio.to_thread(wait_until, lambda: not its_end.is_open, "the socket being closed")


# -- hostile input -------------------------------------------------------------------------------------------
@given(
    last_id=st.text(
        st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40
    ),
    authorization=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_headers_say_nothing_breaks(server: RunningServer, last_id: str, authorization: str) -> None:
    """They are refused, as requests or as credentials."""
    headers = {"Last-Event-ID": last_id, "Authorization": authorization}
    answer = server.request(
        "GET", "/events", headers={name: value.encode("latin-1") for name, value in headers.items()}
    )  # type: ignore[misc]  # http.client takes bytes
    assert answer.status in (400, 401)
    assert "Traceback" not in server.log
