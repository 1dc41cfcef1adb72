"""The Socket.IO door of CONTRACT C4, from outside: by its stock client, and packet by packet."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.async_api import Browser
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.answering import AnsweringServer
from tests.support.feeds import SETTINGS, WAIT_S, hub_path, internal, user_token
from tests.support.pages import Pages
from tests.support.processes import ServersEnd, wait_until
from tests.support.realtime import (
    SEPARATOR,
    PollingClient,
    connect_packet,
    figure,
    socket_client,
    stock_client,
)
from tests.support.running_server import RunningServer
from tests.support.sockjs_door import RawClient

TRANSPORTS = {
    "as-it-comes": {},
    "polling": {"transports": ["polling"]},
    "websocket": {"transports": ["websocket"]},
}

each_transport = pytest.mark.parametrize("options", TRANSPORTS.values(), ids=TRANSPORTS)

ELSEWHERE = {"X-Forwarded-For": "198.51.100.7"}
"""Seen from behind a trusted proxy: a caller that is counted by its address."""

UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

BEHIND_PROXY = {"NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("socketio"), **SETTINGS) as running:
        yield running


@pytest.fixture
def user(node_modules: Path) -> str:
    return f"user-{uuid4().hex}"


async def all_gone(server: RunningServer) -> None:
    """Return when no connection is open any more."""

    def are_gone() -> bool:
        open_now: int = server.get("/health").json()["websocket"]["active_connections"]
        return open_now == 0

    await asyncio.to_thread(wait_until, are_gone, "the connections ending")


async def joined(server: RunningServer, user: str) -> list[str]:
    """What a client over HTTP is told first, who has just come; it has missed something."""
    client = PollingClient(server)
    return await client.join(user) or await client.poll()


# -- the stock client ----------------------------------------------------------------------------------------
@each_transport
async def test_the_stock_client_hears_its_notifications(
    server: RunningServer, user: str, options: dict[str, Any]
) -> None:
    """`io(url, {auth: {token}})` and `on("notification:new")`, in their order, whatever carries them."""
    async with stock_client(server, user_token(user), **options) as client:
        await client.until("connect")
        payloads = [{"n": number, "text": "grüße \u2028 " + "x" * number} for number in range(5)]
        for payload in payloads:
            internal(server, [user], payload)
        assert [await client.payload() for _ in payloads] == payloads


async def test_a_client_goes_over_to_websocket_and_misses_nothing(server: RunningServer, user: str) -> None:
    """It begins over HTTP; what is sent while it changes comes once, and in order."""
    async with stock_client(server, user_token(user)) as client:
        assert await client.next() == ["open", "polling"]
        heard = []
        upgraded = False
        for number in range(20):
            await asyncio.to_thread(internal, server, [user], {"n": number})
        while len(heard) < 20 or not upgraded:
            what = await client.next()
            upgraded = upgraded or what == ["upgrade", "websocket"]
            if what[0] == "event":
                heard.append(what[2]["n"])
        assert heard == list(range(20))


async def test_a_client_in_a_browser_hears_its_notifications(
    server: RunningServer, user: str, browser: Browser, node_modules: Path
) -> None:
    """On a page of another origin, with and without credentials."""
    library = node_modules / "socket.io-client" / "dist" / "socket.io.min.js"
    async with Pages(browser) as pages:
        # A client that goes away may have a poll under way, which comes after its session has ended.
        pages.forgive("/socket.io/?EIO=4&transport=polling&")
        page = await pages.bare(f"http://localhost:{server.port}")
        await page.add_script_tag(path=library)
        for number, options in enumerate(({}, {"withCredentials": True}, {"transports": ["websocket"]})):
            heard = page.evaluate(
                """([url, options]) => new Promise((resolve, reject) => {
                    const socket = io(url, options);
                    socket.on("connect_error", reject);
                    socket.on("notification:new", (payload) => { socket.disconnect(); resolve(payload); });
                })""",
                [server.url, {"auth": {"token": user_token(user)}, **options}],
            )
            internal(server, [user], {"number": number})
            assert await asyncio.wait_for(heard, WAIT_S) == {"number": number}


async def test_what_comes_in_by_another_door_is_an_object_too(server: RunningServer, user: str) -> None:
    """CONTRACT C1 has no payload: its fields are one."""
    async with stock_client(server, user_token(user)) as client:
        await client.until("connect")
        server.must_notify(user, content="C", title="T")
        assert await client.payload() == {"title": "T", "content": "C"}


WRONG = {
    "none": (None, "no_credentials", "a token is needed: io(url, {auth: {token}})"),
    "empty": ("", "no_credentials", "a token is needed: io(url, {auth: {token}})"),
    "a-number": (7, "bad_credentials", "the token is no text, or too long"),
    "too-long": ("x" * 9000, "bad_credentials", "the token is no text, or too long"),
    "garbage": ("abc.def.ghi", "bad_credentials", "the token is wrong"),
    "forged": (user_token("alice", secret="6e" * 32), "bad_credentials", "the token is wrong"),
    "expired": (
        user_token("alice", lifetime_s=-600),
        "token_expired",
        "the token has expired; get a new one",
    ),
}


@each_transport
@pytest.mark.parametrize(("token", "code", "message"), WRONG.values(), ids=WRONG)
async def test_a_wrong_token_is_a_connect_error(
    server: RunningServer, node_modules: Path, options: dict[str, Any], token: Any, code: str, message: str
) -> None:
    """It says what is wrong, and the client does not try again by itself."""
    async with stock_client(server, token, **options) as client:
        assert await client.until("connect", "connect_error") == [
            "connect_error",
            message,
            {"code": code},
            False,
        ]


async def test_a_refused_client_may_come_again_with_another_token(server: RunningServer, user: str) -> None:
    async with stock_client(server, "wrong") as client:
        await client.until("connect_error")
        await client.do("connect", user_token(user))
        await client.until("connect")
        internal(server, [user], {"n": 1})
        assert await client.payload() == {"n": 1}


async def test_other_namespaces_are_refused(server: RunningServer, user: str) -> None:
    async with stock_client(server, user_token(user), namespace="/admin") as client:
        refused = ["connect_error", "Invalid namespace", {"code": "not_found"}, False]
        assert await client.until("connect", "connect_error") == refused


@each_transport
async def test_what_a_client_says_is_ignored(
    server: RunningServer, user: str, options: dict[str, Any]
) -> None:
    """Events with and without binary parts; it goes on hearing."""
    async with stock_client(server, user_token(user), **options) as client:
        await client.until("connect")
        await client.do("emit", "hello", {"a": [1, None]})
        await client.do("binary", 5000)
        await client.do("emit", "hello", "x" * 100_000)
        await client.do("binary", 3)
        internal(server, [user], {"n": 1})
        assert await client.payload() == {"n": 1}


# -- coming back ---------------------------------------------------------------------------------------------
async def test_what_a_client_missed_comes_once_when_it_is_back(
    tmp_path: Path, settings_of_store: dict[str, str], user: str
) -> None:
    """While the client, and then the server, was away; what it has heard before does not come again."""
    with RunningServer(tmp_path, **settings_of_store) as server:
        async with stock_client(server, user_token(user), transports=["websocket"]) as client:
            await client.until("connect")
            internal(server, [user], {"n": 0})
            assert await client.payload() == {"n": 0}
            await client.do("disconnect")
            await all_gone(server)
            internal(server, [user], {"n": 1})
            await client.do("connect", user_token(user))
            assert await client.payload() == {"n": 1}
            # What it says carries the news that it has got everything; its system would take its time with that.
            await client.do("emit", "hello")
            await client.until("done")
            await asyncio.to_thread(server.stop)
            assert await client.until("event") == ["event", "close", {"code": 1001, "reason": "going away"}]
            assert (await client.until("disconnect"))[2], "it does not try again"
            await asyncio.to_thread(server.start)
            internal(server, [user], {"n": 2})
            assert await client.payload() == {"n": 2}
            internal(server, [user], {"n": 3})
            assert await client.payload() == {"n": 3}


async def test_what_a_polling_client_never_fetched_comes_again(tmp_path: Path, user: str) -> None:
    """It was given to a session that nobody came back to: that is not sent."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_DISCONNECT_DELAY_S="0.5") as server:
        lost = PollingClient(server)
        await lost.join(user)
        for number in range(5):
            internal(server, [user], {"n": number})
        await all_gone(server)
        again = [f'42["notification:new",{{"n":{number}}}]' for number in range(5)]
        client = PollingClient(server)
        told = await client.join(user)
        while len(told) < len(again):
            told += await client.poll()
        assert told == again


async def test_what_a_polling_client_has_fetched_does_not_come_again(
    server: RunningServer, user: str
) -> None:
    """Who says goodbye has read it, though they have not come for more."""
    client = PollingClient(server)
    await client.join(user)
    internal(server, [user], {"n": 1})
    assert await client.poll() == ['42["notification:new",{"n":1}]']
    await client.post("1")
    internal(server, [user], {"n": 2})
    assert await joined(server, user) == ['42["notification:new",{"n":2}]']


async def test_a_client_that_leaves_the_namespace_has_left(server: RunningServer, user: str) -> None:
    """As with a goodbye; what it has fetched does not come again."""
    async with socket_client(server, user) as over_websocket:
        await over_websocket.socket.send("41")
        assert await over_websocket.closed() == ([], 1000, "left")
    client = PollingClient(server)
    await client.join(user)
    internal(server, [user], {"n": 1})
    assert await client.poll() == ['42["notification:new",{"n":1}]']
    await client.post("41")
    assert await client.poll() == ["1"]
    internal(server, [user], {"n": 2})
    assert await joined(server, user) == ['42["notification:new",{"n":2}]']


# -- why it ends ---------------------------------------------------------------------------------------------
@each_transport
async def test_a_client_whose_token_ends_is_told_so(
    server: RunningServer, user: str, options: dict[str, Any]
) -> None:
    """By the event `close`; it comes back by itself, and is refused with the old token."""
    async with stock_client(server, user_token(user, lifetime_s=2), **options) as client:
        await client.until("connect")
        assert await client.until("event") == ["event", "close", {"code": 3005, "reason": "token_expired"}]
        assert (await client.until("disconnect"))[2]
        assert (await client.until("connect_error"))[2] == {"code": "token_expired"}


@each_transport
async def test_a_user_who_is_signed_out_is_disconnected(
    server: RunningServer, user: str, options: dict[str, Any]
) -> None:
    """And does not come back by itself."""
    async with stock_client(server, user_token(user), **options) as client:
        await client.until("connect")
        assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
        assert await client.until("event") == ["event", "close", {"code": 3501, "reason": "signed_out"}]
        assert await client.until("disconnect") == ["disconnect", "io server disconnect", False]


async def test_a_user_has_as_many_connections_as_they_may(tmp_path: Path, user: str) -> None:
    """One more is closed, with the reason; it may come when another one has gone."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_LIMITS_CONNECTIONS_PER_USER="1") as server:
        async with stock_client(server, user_token(user)) as first:
            await first.until("connect")
            async with socket_client(server) as second:
                await second.socket.send(connect_packet(user))
                assert await second.closed() == ([], 3429, "too_many_connections")
            async with stock_client(server, user_token(user)) as third:
                assert (await third.until("connect", "reconnect_attempt"))[0] == "reconnect_attempt"
                await first.do("disconnect")
                await third.until("connect")


@each_transport
async def test_while_nobody_can_say_who_a_client_is_it_comes_back(
    tmp_path: Path, user: str, options: dict[str, Any]
) -> None:
    """By itself: who is refused stays away, and its token may be right."""
    async with AnsweringServer({"user_id": user}) as hook:
        hook.status = 503
        with RunningServer(tmp_path, NOTIFY_HOOK_URL=hook.url) as server:
            async with stock_client(server, "some token", **options) as client:
                assert (await client.until("connect", "connect_error", "reconnect_attempt"))[
                    0
                ] == "reconnect_attempt"
                hook.status = 200
                assert (await client.until("connect", "connect_error"))[0] == "connect"
                internal(server, [user], {"n": 1})
                assert await client.payload() == {"n": 1}


async def test_nobody_stays_without_joining(tmp_path: Path, node_modules: Path) -> None:
    """Neither over WebSocket nor over HTTP."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_LIMITS_JOIN_WITHIN_S="0.5") as server:
        async with socket_client(server) as client:
            assert await client.closed() == ([], 3006, "not_joined")
        polling = PollingClient(server)
        await polling.open()
        assert await polling.poll() == ["1"]


@each_transport
async def test_a_client_that_answers_pings_stays(tmp_path: Path, user: str, options: dict[str, Any]) -> None:
    """Longer than silence is borne."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        async with stock_client(server, user_token(user), **options, reconnection=False) as client:
            await client.until("connect")
            for _ in range(5):
                await client.until("ping")
            internal(server, [user], {"n": 1})
            assert await client.payload() == {"n": 1}


async def test_a_client_that_answers_no_ping_is_closed(tmp_path: Path, user: str) -> None:
    """Over WebSocket, and over HTTP, where it asks and says nothing but is seen to live."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        async with socket_client(server, user) as client:
            packets, code, reason = await client.closed()
            assert (code, reason) == (3009, "no sign of life")
            assert packets == ["2", "2", '42["close",{"code":3009,"reason":"no sign of life"}]']
        polling = PollingClient(server)
        await polling.join(user)
        for _ in range(4):
            assert await polling.poll() == ["2"]


async def test_a_client_that_is_always_told_something_is_pinged_too(tmp_path: Path, user: str) -> None:
    """Without pings the stock client gives up, whatever else it hears."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        client = PollingClient(server)
        await client.join(user)
        heard: list[str] = []
        for number in range(20):
            await asyncio.to_thread(internal, server, [user], {"n": number})
            await asyncio.sleep(0.1)  # no request of it waits meanwhile
            heard += await client.poll()
        assert "2" in heard
        events = [packet for packet in heard if packet != "2"]
        assert events == [f'42["notification:new",{{"n":{number}}}]' for number in range(20)]


async def test_a_slow_client_is_pinged_too(tmp_path: Path, user: str) -> None:
    """Behind what waits for it."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        raw = await connected_raw(server)
        await raw.upgrade("/socket.io/?EIO=4&transport=websocket")
        raw.write_frame(1, connect_packet(user).encode())
        await raw.read_until(b'40{"sid":"')
        await asyncio.to_thread(fill, server, user, 15)
        got = b""
        for _ in range(15):
            got += await raw.reader.read(4096)
            await asyncio.sleep(0.1)
        internal(server, [user], {"last": True})
        while b'{"last":true}' not in got:
            got += await asyncio.wait_for(raw.reader.read(65536), WAIT_S)
        assert b"\x81\x012" in got
        raw.writer.close()


# -- the protocol --------------------------------------------------------------------------------------------
async def test_the_handshake_says_what_the_client_needs(server: RunningServer, user: str) -> None:
    said = await PollingClient(server).open()
    assert said["upgrades"] == ["websocket"]
    assert (said["pingInterval"], said["pingTimeout"], said["maxPayload"]) == (25_000, 50_000, 16_384)
    assert len(said["sid"]) >= 24


BAD_REQUESTS = {
    "no-transport": ("GET", "EIO=4", 400, 0),
    "other-transport": ("GET", "EIO=4&transport=flashsocket", 400, 0),
    "no-version": ("GET", "transport=polling", 400, 5),
    "version-3": ("GET", "EIO=3&transport=polling", 400, 5),
    "unknown-session": ("GET", "EIO=4&transport=polling&sid=nobody", 400, 1),
    "unknown-session-post": ("POST", "EIO=4&transport=polling&sid=nobody", 400, 1),
    "handshake-by-post": ("POST", "EIO=4&transport=polling", 400, 2),
    "websocket-without-upgrade": ("GET", "EIO=4&transport=websocket", 400, 3),
    "jsonp": ("GET", "EIO=4&transport=polling&j=0", 400, 3),
    "other-method": ("DELETE", "EIO=4&transport=polling", 405, 3),
    "no-utf8": ("GET", "EIO=4&transport=polling&sid=%FF", 400, 3),
    "empty-session": ("GET", "EIO=4&transport=polling&sid=", 400, 1),
}


@pytest.mark.parametrize(("method", "query", "status", "code"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_a_request_that_is_not_of_the_protocol_is_refused(
    server: RunningServer, user: str, method: str, query: str, status: int, code: int
) -> None:
    """As Engine.IO's own server does it."""
    answer = await PollingClient(server).request(method, query, b"" if method == "POST" else None)
    assert (answer.status, answer.json()["code"]) == (status, code), answer.body


@pytest.mark.parametrize(
    "query", ["transport=polling&sid=%FF", "transport=%FF&sid=x", "transport=polling&sid=x"]
)
async def test_a_body_that_is_refused_unread_ends_the_connection(
    server: RunningServer, user: str, query: str
) -> None:
    """And the answer says so; a page may read it."""
    headers = {"Origin": "https://shop.example"}
    answer = await PollingClient(server, headers).request("POST", f"EIO=4&{query}", b"40")
    assert (answer.status, answer.headers["Connection"]) == (400, "close")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"


async def test_a_request_that_waits_brings_nothing(server: RunningServer, user: str) -> None:
    """A body of its own is refused unread."""
    client = PollingClient(server)
    await client.join(user)
    answer = await client.request("GET", client.query, b"3")
    assert (answer.status, answer.headers["Connection"]) == (400, "close")
    internal(server, [user], {"n": 1})
    assert await client.poll() == ['42["notification:new",{"n":1}]']


async def test_what_a_request_that_waits_brings_in_chunks_is_bounded(
    server: RunningServer, user: str
) -> None:
    """413, however much of it is still to come."""
    client = PollingClient(server)
    await client.join(user)
    raw = await connected_raw(server)
    head = f"GET /socket.io/?{client.query} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw.writer.write(head.encode() + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 2)
    status, headers = await raw.read_head()
    assert (status, headers["connection"]) == (413, "close")
    raw.writer.close()


async def test_answers_say_what_they_are(server: RunningServer, user: str) -> None:
    """Packets are text, refusals JSON; nobody keeps either."""
    client = PollingClient(server)
    first = await client.request("GET", "EIO=4&transport=polling")
    client.sid = json.loads(first.body[1:])["sid"]
    sent = await client.request("POST", client.query, connect_packet(user).encode())
    told = await client.request("GET", client.query)
    for answer in (first, sent, told):
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=UTF-8")
        assert answer.headers["Cache-Control"] == "no-store"
    refused = await client.request("GET", "EIO=4&transport=polling&sid=nobody")
    assert (refused.headers["Content-Type"], refused.headers["Cache-Control"]) == (
        "application/json",
        "no-store",
    )


async def test_a_page_may_send_the_headers_that_it_asks_for(server: RunningServer, user: str) -> None:
    """As Engine.IO's own server has it: `extraHeaders` of its client."""
    headers = {"Origin": "https://shop.example", "Access-Control-Request-Headers": "content-type,x-mine"}
    answer = await PollingClient(server, headers).request("OPTIONS", "EIO=4&transport=polling")
    assert answer.headers["Access-Control-Allow-Headers"] == "content-type,x-mine"


async def test_what_is_no_websocket_of_our_version_is_told_so(server: RunningServer, user: str) -> None:
    """426 and the version that there is."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "WebSocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "12",
    }
    answer = await PollingClient(server, headers).request("GET", "EIO=4&transport=websocket")
    assert (answer.status, answer.json()["code"]) == (426, 3)
    assert answer.headers["Sec-Websocket-Version"] == "13"


async def test_who_comes_over_websocket_has_nothing_to_go_over_to(server: RunningServer, user: str) -> None:
    raw = await connected_raw(server)
    await raw.upgrade("/socket.io/?EIO=4&transport=websocket")
    assert b'"upgrades":[]' in await raw.read_until(b"}")
    raw.writer.close()


async def test_a_session_that_is_over_cannot_be_taken_over(server: RunningServer, user: str) -> None:
    """Though it can be asked why it is."""
    client = PollingClient(server)
    await client.open()
    await client.post("9")
    with pytest.raises(InvalidStatus) as refusal:
        async with socket_client(server, sid=client.sid):
            pass
    assert refusal.value.response.status_code == 400
    assert (await client.request("POST", client.query, b"3")).json()["code"] == 1
    assert await client.poll() == ["1"]


@asynccontextmanager
async def looked_at(
    tmp_path: Path, user: str
) -> AsyncIterator[tuple[RunningServer, PollingClient, AnsweringServer, asyncio.Task[None]]]:
    """A client over HTTP, the hook that is asked who it is and does not answer yet, and the request that waits."""
    async with AnsweringServer({"user_id": user}) as hook:
        hook.hold()
        with RunningServer(tmp_path, NOTIFY_HOOK_URL=hook.url, NOTIFY_HOOK_TIMEOUT_S="30") as server:
            client = PollingClient(server)
            await client.open()
            posting = asyncio.create_task(client.post('40{"token":"first"}'))
            await hook.asked(1)
            yield server, client, hook, posting


async def test_requests_that_send_at_the_same_time_end_the_session(tmp_path: Path, user: str) -> None:
    """The second is refused while the first is looked at; nobody has joined."""
    async with looked_at(tmp_path, user) as (server, client, hook, posting):
        answer = await client.request("POST", client.query, b"3")
        assert (answer.status, answer.json()["code"]) == (400, 3)
        hook.let_go()
        await posting
        assert await client.poll() == ["1"]
        assert figure(server, 'notification_users_online{tenant="default"}') == 0


async def test_an_upgrade_of_http_1_0_is_refused(server: RunningServer, user: str) -> None:
    """Which knows none; the answer says so."""
    raw = await connected_raw(server)
    request = UPGRADE.format("/socket.io/?EIO=4&transport=websocket")
    raw.writer.write(request.replace(" HTTP/1.1", " HTTP/1.0").encode())
    status, _, body = await raw.read_answer()
    assert (status, json.loads(body)["code"]) == (400, 3)
    assert "HTTP/1.1" in json.loads(body)["message"]
    raw.writer.close()


async def test_requests_of_one_session_that_overlap_end_it(server: RunningServer, user: str) -> None:
    """Two that wait; the first one is told."""
    client = PollingClient(server)
    await client.join(user)
    answers = await asyncio.gather(client.poll(), client.poll())
    assert sorted(answers) == [["1"], ['42["close",{"code":1002,"reason":"another request is open"}]']]
    assert (await client.request("GET", client.query)).status == 400


async def test_a_session_that_went_over_is_no_more_over_http(server: RunningServer, user: str) -> None:
    """Nor can another WebSocket take it; and the first one goes on."""
    client = PollingClient(server)
    await client.join(user)
    waiting = asyncio.create_task(client.poll())
    async with socket_client(server, sid=client.sid) as upgraded:
        await upgraded.socket.send("2probe")
        assert await upgraded.packet() == "3probe"
        assert await waiting == ["6"]
        await upgraded.socket.send("5")
        internal(server, [user], {"n": 1})
        assert await upgraded.packet() == '42["notification:new",{"n":1}]'
        assert (await client.request("GET", client.query)).status == 400
        assert (await client.request("POST", client.query, b"3")).status == 400
        with pytest.raises(InvalidStatus):
            async with socket_client(server, sid=client.sid):
                pass


async def test_a_websocket_that_was_tried_in_vain_changes_nothing(server: RunningServer, user: str) -> None:
    """The session goes on over HTTP, and can be taken over later; what came meanwhile comes in order."""
    client = PollingClient(server)
    await client.join(user)
    async with socket_client(server, sid=client.sid) as tried:
        await tried.socket.send("2probe")
        assert await tried.packet() == "3probe"
    internal(server, [user], {"n": 1})
    assert await client.poll() == ['42["notification:new",{"n":1}]']
    internal(server, [user], {"n": 2})
    async with socket_client(server, sid=client.sid) as upgraded:
        await upgraded.socket.send("2probe")
        assert await upgraded.packet() == "3probe"
        internal(server, [user], {"n": 3})
        await upgraded.socket.send("5")
        for number in (2, 3):
            assert await upgraded.packet() == f'42["notification:new",{{"n":{number}}}]'


async def test_a_websocket_that_is_tried_out_ends_alone(server: RunningServer, user: str) -> None:
    """With whatever it ends, and whatever the session does meanwhile: that goes on over HTTP, and its request waits."""
    client = PollingClient(server)
    await client.join(user)

    async def next_packets() -> list[str]:
        while (packets := await client.poll()) == ["6"]:  # it asked while one was tried out
            pass
        return packets

    waiting = asyncio.create_task(next_packets())
    for packet in ("2" * 20_000, b"x" * 20_000, "2pro", "3", ""):
        async with socket_client(server, sid=client.sid) as tried:
            await tried.socket.send(packet)
            await tried.closed()
    assert not waiting.done()
    internal(server, [user], {"n": 1})
    assert await waiting == ['42["notification:new",{"n":1}]']


async def test_of_two_websockets_that_come_at_once_one_is_tried_out(tmp_path: Path, user: str) -> None:
    """The other one ends, with packets of it that are here already, and nothing fails."""
    with RunningServer(tmp_path, **SETTINGS) as server:
        client = PollingClient(server)
        await client.join(user)
        # The server stands still until all has come; others are before the two, so that both wait for their turn.
        server.signal(signal.SIGSTOP)
        raws = [await connected_raw(server) for _ in range(10)]
        for number, raw in enumerate(raws):
            sid = f"&sid={client.sid}" if number >= 8 else ""
            raw.writer.write(UPGRADE.format(f"/socket.io/?EIO=4&transport=websocket{sid}").encode())
            if sid:
                raw.write_frame(1, b"2probe")
            await raw.writer.drain()
        server.signal(signal.SIGCONT)
        *_, first, second = raws
        for raw in (first, second):
            assert (await raw.read_head())[0] == 101
        assert await first.reader.readexactly(8) == b"\x81\x063probe"
        assert await second.read_to_end() == b""
        first.write_frame(1, b"5")
        internal(server, [user], {"n": 1})
        assert b'{"n":1}' in await first.read_until(b"]")
        for raw in raws:
            raw.writer.close()
        await all_gone(server)
        assert "Traceback" not in server.log


async def test_a_client_that_joins_twice_while_it_is_looked_at(tmp_path: Path, user: str) -> None:
    """Over HTTP, and over the WebSocket that it has gone over to meanwhile: it is ended, and leaves nothing behind."""
    async with looked_at(tmp_path, user) as (server, client, hook, posting):
        async with socket_client(server, sid=client.sid) as upgraded:
            await upgraded.socket.send("2probe")
            assert await upgraded.packet() == "3probe"
            await upgraded.socket.send("5")
            await upgraded.socket.send('40{"token":"second"}')
            _, code, reason = await upgraded.closed()
            assert (code, reason) == (1002, "malformed packet")
        hook.let_go()
        await posting
        assert len(hook.questions) == 1
        assert figure(server, 'notification_users_online{tenant="default"}') == 0
        assert figure(server, "notification_connections{") == 0


@pytest.mark.parametrize("kind", ["hub", "websocket", "upgrade"])
async def test_a_client_that_is_gone_before_its_turn(tmp_path: Path, user: str, kind: str) -> None:
    """With packets that are still here: nobody has come, and nothing fails."""
    path = "/socket.io/?EIO=4&transport=websocket"
    with RunningServer(tmp_path, **SETTINGS) as server:
        client = PollingClient(server)
        if kind == "upgrade":
            await client.join(user)
            path += f"&sid={client.sid}"
        elif kind == "hub":
            path = hub_path(user)
        # The server stands still until all has come.
        server.signal(signal.SIGSTOP)
        raws = [await connected_raw(server) for _ in range(5)]
        for raw in raws:
            raw.writer.write(UPGRADE.format(path).encode())
            for packet in ("2probe", "5", connect_packet(user)):
                raw.write_frame(1, packet.encode())
            await raw.writer.drain()
            # So that it ends with a reset: after an orderly end one can still write.
            connection: socket.socket = raw.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.writer.transport.abort()
        server.signal(signal.SIGCONT)
        await all_gone(server)
        assert "Traceback" not in server.log


async def test_packets_that_wait_come_together(server: RunningServer, user: str) -> None:
    """In one answer."""
    client = PollingClient(server)
    await client.join(user)
    async with socket_client(server, user) as other:
        # What waited for the client when it came is told by itself; after this one, that is over.
        internal(server, [user], {"n": "first"})
        assert await client.poll() == ['42["notification:new",{"n":"first"}]']
        await other.packet()
        for number in range(3):
            internal(server, [user], {"n": number})
            await other.packet()  # it is answered before it is told
    assert await client.poll() == [f'42["notification:new",{{"n":{number}}}]' for number in range(3)]


MALFORMED = ["", "9", "x", "4", "4x", "49", "2", "2probe", "5", "6", "0{}", "40/", "40/a" + "b" * 200 + ",", "40[",
             "40" + "[" * 5000, "4\x00", "42[]", "41", "45-[]", "451-", "40{}x"]  # fmt: skip


@pytest.mark.parametrize("packet", MALFORMED)
async def test_a_packet_that_no_client_sends_ends_the_connection(
    server: RunningServer, user: str, packet: str
) -> None:
    """Before it has joined; `40/` is a namespace that is there, with no token."""
    async with socket_client(server) as client:
        await client.socket.send(packet)
        if packet == "40/":
            assert (await client.packet()).startswith('44{"message":"a token is needed')
        else:
            _, code, _ = await client.closed()
            assert code in (1002, 1000)
    polling = PollingClient(server)
    await polling.open()
    answer = await polling.request("POST", polling.query, packet.encode())
    assert answer.status in (200, 400)
    assert server.get("/healthz").status == 200


@pytest.mark.parametrize("packet", ["9", "4", "49", "4\x00", "42/admin,[]", "45-[]"])
async def test_a_packet_that_no_client_sends_ends_one_that_has_joined(
    server: RunningServer, user: str, packet: str
) -> None:
    """Which is told why, as by every end."""
    told = ['42["close",{"code":1002,"reason":"malformed packet"}]']
    async with socket_client(server, user) as client:
        await client.socket.send(packet)
        assert await client.closed() == (told, 1002, "malformed packet")
    polling = PollingClient(server)
    await polling.join(user)
    await polling.post(packet)
    assert await polling.poll() == told
    assert await polling.poll() == ["1"]


async def test_joining_twice_ends_the_connection(server: RunningServer, user: str) -> None:
    """As nobody else is to take its place."""
    async with socket_client(server, user) as client:
        await client.socket.send(connect_packet("somebody-else"))
        _, code, reason = await client.closed()
        assert (code, reason) == (1002, "malformed packet")


@given(
    texts=st.lists(st.text(max_size=50), max_size=4),
    prefix=st.sampled_from(["", "4", "40", "42", "40/", "45"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_client_says_others_are_served(
    server: RunningServer, texts: list[str], prefix: str
) -> None:
    """It is ignored, refused or closed; nothing of it is an error of ours."""

    async def say() -> None:
        async with socket_client(server) as client:
            try:
                for text in texts:
                    await client.socket.send(prefix + text)
            except ConnectionClosed:
                pass
        polling = PollingClient(server)
        await polling.open()
        body = SEPARATOR.join(prefix + text for text in texts)
        answer = await polling.request("POST", polling.query, body.encode("utf-8", "surrogatepass"))
        assert answer.status in (200, 400)

    asyncio.run(say())
    assert "Traceback" not in server.log


async def test_what_is_too_large_is_refused(server: RunningServer, user: str) -> None:
    """Of a stranger, more than a token could need; over HTTP before it is read."""
    client = PollingClient(server)
    await client.open()
    head = f"POST /socket.io/?{client.query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16385\r\n\r\n"
    for whole in (head, head.replace("16385", "1000000000")):
        raw = await connected_raw(server)
        raw.writer.write(whole.encode())
        assert (await raw.read_answer())[0] == 413
        raw.writer.close()
    raw = await connected_raw(server)
    raw.writer.write(re.sub("Content-Length: .*", "Transfer-Encoding: chunked", head).encode())
    for _ in range(3):
        raw.writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        await asyncio.sleep(0.05)
    assert (await raw.read_answer())[0] == 413
    raw.writer.close()
    answer = await client.request("POST", client.query, b"4" + b"\xff" * 16_383)
    assert (answer.status, answer.json()["message"]) == (400, "Bad request")
    assert "Traceback" not in server.log
    async with socket_client(server) as stranger:
        await stranger.socket.send("42" + "x" * 16_383)
        _, code, _ = await stranger.closed()
        assert code == 1009
    async with socket_client(server, user) as joined:
        await joined.socket.send("42" + "x" * 16_383)
        await joined.socket.send(b"x" * 16_383)
        internal(server, [user], {"n": 1})
        assert await joined.packet() == '42["notification:new",{"n":1}]'


async def test_a_flood_of_packets_is_paced(tmp_path: Path, user: str) -> None:
    """It is read no faster than commands may come, and the client hears all the same."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_LIMITS_COMMANDS_PER_CONNECTION="10/1s") as server:
        async with socket_client(server, user) as client:
            for _ in range(60):
                await client.socket.send('42["flood"]')
            internal(server, [user], {"n": 1})
            assert await client.packet() == '42["notification:new",{"n":1}]'
        polling = PollingClient(server)
        await polling.join(user)
        before = figure(server, "notification_throttled_total")
        await polling.post(*['42["flood"]'] * 60)
        wait_until(
            lambda: figure(server, "notification_throttled_total") > before, "the figure of held up packets"
        )


# -- who may come --------------------------------------------------------------------------------------------
async def test_an_address_comes_as_often_as_it_may(tmp_path: Path, user: str) -> None:
    """Then 429 and when to come back; other addresses come in."""
    limits = {"NOTIFY_LIMITS_CONNECTIONS_PER_ADDRESS": "2"}
    with RunningServer(tmp_path, **SETTINGS, **BEHIND_PROXY, **limits) as server:
        async with socket_client(server, user, headers=ELSEWHERE), socket_client(server, headers=ELSEWHERE):
            answer = await PollingClient(server, ELSEWHERE).request("GET", "EIO=4&transport=polling")
            assert (answer.status, answer.headers["Retry-After"]) == (429, "10")
            with pytest.raises(InvalidStatus) as refusal:
                async with socket_client(server, headers=ELSEWHERE):
                    pass
            assert refusal.value.response.status_code == 429
            await PollingClient(server, {"X-Forwarded-For": "198.51.100.8"}).open()
        await PollingClient(server, ELSEWHERE).open()


async def test_pages_of_other_origins_stay_out_where_origins_are_named(tmp_path: Path, user: str) -> None:
    """403 without a header by which they could read it; the named one, and our own, come in."""
    query = "EIO=4&transport=polling"
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_APPLICATION_ORIGINS="https://shop.example") as server:
        for origin, status in (
            ("https://evil.example", 403),
            ("https://shop.example", 200),
            (server.url, 200),
        ):
            headers = {"Origin": origin}
            answer = await PollingClient(server, headers).request("GET", query)
            assert answer.status == status
            allowed = answer.headers.get("Access-Control-Allow-Origin")
            assert allowed == (origin if status == 200 else None)
            preflight = await PollingClient(server, headers).request("OPTIONS", query)
            assert preflight.status == (204 if status == 200 else 403)
            try:
                async with socket_client(server, user, headers=headers):
                    assert status == 200
            except InvalidStatus as refusal:
                assert refusal.response.status_code == status


async def test_clients_are_counted(tmp_path: Path, user: str) -> None:
    """By the transport `socketio`, over HTTP and over WebSocket; those that have gone are not."""
    with RunningServer(tmp_path, **SETTINGS) as server:
        async with socket_client(server, user):
            await PollingClient(server).join(user)
            assert figure(server, 'notification_connections{transport="socketio"}') == 2


async def test_refused_clients_are_counted(tmp_path: Path, user: str) -> None:
    """By the door `socketio` and why: at the request, and at the token."""

    def refused(code: str) -> float:
        return figure(server, f'notification_requests_refused_total{{code="{code}",door="socketio"')

    limits = {"NOTIFY_LIMITS_CONNECTIONS_PER_ADDRESS": "1"}
    with RunningServer(tmp_path, **SETTINGS, **BEHIND_PROXY, **limits) as server:
        async with socket_client(server, headers=ELSEWHERE) as client:
            await client.socket.send("40")
            assert (await client.packet()).startswith("44")
            assert (
                await PollingClient(server, ELSEWHERE).request("GET", "EIO=4&transport=polling")
            ).status == 429
            assert (refused("no_credentials"), refused("too_many_connections")) == (1, 1)


async def test_no_secret_gets_into_the_log(server: RunningServer, user: str) -> None:
    """Neither tokens, right or wrong, nor ids of sessions."""
    client = PollingClient(server)
    await client.join(user)
    await client.request("GET", "EIO=4&transport=polling&sid=secret-session")
    await client.request("GET", "EIO=4&transport=polling&sid=%FFsecret-session")
    async with stock_client(server, "secret-token") as refused:
        await refused.until("connect_error")
    assert client.sid not in server.log
    assert "secret-" not in server.log
    assert "eyJ" not in server.log


# -- slow clients --------------------------------------------------------------------------------------------
@pytest.fixture
async def slow_server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    with RunningServer(tmp_path, **SETTINGS) as server:
        yield server


async def connected_raw(server: RunningServer) -> RawClient:
    """A connection of bytes whose buffer is soon full."""
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    return RawClient(reader, writer, "")


def fill(server: RunningServer, user: str, count: int) -> None:
    for number in range(count):
        internal(server, [user], {"n": number, "filler": "x" * 20_000})


async def test_a_slow_client_over_websocket_is_closed_and_costs_little(
    slow_server: RunningServer, user: str
) -> None:
    """What it is sent at most is its queue and what the kernels hold; another client hears all."""
    server = slow_server
    raw = await connected_raw(server)
    await raw.upgrade("/socket.io/?EIO=4&transport=websocket")
    raw.write_frame(1, connect_packet(user).encode())
    await raw.read_until(b"16384}")
    await raw.read_until(b'"}')
    async with stock_client(server, user_token(user)) as other:
        await other.until("connect")
        await asyncio.to_thread(fill, server, user, 40)
        for number in range(40):
            assert (await other.payload())["n"] == number
    got = await raw.read_to_end()
    assert len(got) < 600_000
    raw.writer.close()
    assert figure(server, 'notification_connections_closed_total{reason="slow",transport="socketio"}') == 1


async def test_a_slow_client_over_http_is_closed(slow_server: RunningServer, user: str) -> None:
    """One that asks and does not take the answer."""
    server = slow_server
    client = PollingClient(server)
    await client.join(user)
    await asyncio.to_thread(fill, server, user, 10)
    wait_until(lambda: figure(server, "notification_pushed_total") == 10, "all being pushed")
    raw = await connected_raw(server)
    length = 0
    while length < 100_000:
        # The first part of what is pushed may come by itself. All else is more than the kernels take: a smaller
        # answer would be over before the queue is full.
        await raw.reader.readexactly(length)
        await raw.write_request("GET", f"/socket.io/?{client.query}")
        length = int((await raw.read_head())[1]["content-length"])
    its_end = ServersEnd(server.pid, raw.writer)
    await asyncio.to_thread(fill, server, user, 40)
    slow = 'notification_connections_closed_total{reason="slow",transport="socketio"}'
    wait_until(lambda: figure(server, slow) == 1, "the slow client being closed")
    # The server lets go of it, whenever the kernels may get rid of what they hold.
    wait_until(lambda: not its_end.is_open, "its connection being dropped")
    raw.writer.transport.abort()


async def test_an_answer_that_is_cut_short_ends_the_session(slow_server: RunningServer, user: str) -> None:
    """What of it arrived is not known; so it comes again."""
    server = slow_server
    client = PollingClient(server)
    await client.join(user)
    raw = await connected_raw(server)
    await raw.write_request("GET", f"/socket.io/?{client.query}")
    await asyncio.to_thread(fill, server, user, 1)
    raw.writer.transport.abort()
    await all_gone(server)
    [packet] = await joined(server, user)
    assert json.loads(packet[2:])[1]["n"] == 0
