"""The WebSocket `/ws` of CONTRACT C2, from outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.support.client import SocketClient
from tests.support.feeds import (
    SETTINGS,
    WAIT_S,
    add_key,
    add_tenant,
    hub_path,
    listening,
    metrics,
    post,
    refused,
    remembered,
    send,
    service_path,
    tenant_path,
    user_token,
)
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer
from tests.test_frame_reader import CLOSE, frame

ROOT = Path(__file__).resolve().parents[1]

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}

ELSEWHERE = {"X-Forwarded-For": "198.51.100.7"}
"""Seen from behind a trusted proxy: a caller that is counted by its address."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("hub"), **SETTINGS) as running:
        yield running


def numbers(frames: list[Any]) -> list[int]:
    return [frame["payload"]["n"] for frame in frames]


# -- who comes in --------------------------------------------------------------------------------------------
async def test_without_a_token_there_is_no_upgrade(server: RunningServer) -> None:
    """401, in the words of the original; an empty one is none."""
    for path in ("/ws", "/ws?token=", "/ws?token=%20", "/ws?other=x"):
        assert await refused(server, path) == (401, {"error": "missing token parameter"})


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a.b.c",
        "%FF%FE",
        "%00",
        "x" * 20_000,
        user_token("alice", secret="6e" * 32),
        user_token("alice", lifetime_s=-600),
        user_token(""),
        user_token("u" * 2000),
        user_token("alice", tenant="nobody"),
    ],
    ids=["short", "dots", "no-utf8", "nul", "long", "forged", "expired", "nobody", "long-id", "no-tenant"],
)
async def test_a_wrong_token_is_refused_before_the_upgrade(server: RunningServer, token: str) -> None:
    """401, and one text whatever is wrong with it."""
    assert await refused(server, f"/ws?token={token}") == (401, {"error": "invalid or expired token"})


async def test_who_is_signed_out_while_waiting_for_its_turn_does_not_stay(tmp_path: Path, user: str) -> None:
    """A crowd connects one by one: that its token was right a while ago is not enough. It does not say when it was
    made."""
    (tmp_path / "sitecustomize.py").write_text(HELD)
    with RunningServer(tmp_path, **SETTINGS, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}") as server:
        key = add_key(server, "default", "admin", "admin")

        async def come() -> tuple[int, str]:
            async with listening(server, hub_path(user)) as client:
                return await client.closed()

        coming = asyncio.create_task(come())
        try:
            await asyncio.to_thread(wait_until, lambda: "its turn" in server.log, "the token being taken")
            assert post(server, f"/api/v2/users/{user}/sign-out", {}, key).status == 204
        finally:
            (tmp_path / "go on").touch()
        assert await coming == (3501, "signed_out")


HELD = """
import asyncio, pathlib
from server.arrivals import Arrivals
async def held(self):
    print("waits for its turn", flush=True)
    while not pathlib.Path("go on").exists():
        await asyncio.sleep(0.01)
Arrivals.to_connect = held
"""


async def test_no_token_gets_into_the_log(server: RunningServer, user: str) -> None:
    """Neither a right nor a wrong one, nor a key, nor what cannot be decoded."""
    async with listening(server, hub_path(user)):
        pass
    for secret in ("wrong-token-1a2b", "%FFwrong-token-1a2b"):
        await refused(server, f"/ws?token={secret}")
        await refused(server, f"/ws/notifications/{user}/?token={secret}")
        await refused(server, f"/ws/notify/?api_key={secret}")
    assert "wrong-token-1a2b" not in server.log
    assert "eyJ" not in server.log


def problem(answer: Response, status: int, code: str) -> None:
    """As RFC 9457 has it."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    body = answer.json()
    assert (body["type"], body["title"], body["status"]) == ("about:blank", code, status)
    assert body["detail"]


@pytest.fixture(scope="module")
def listen_key(server: RunningServer) -> str:
    return add_key(server, "default", "listening", "listen")


@pytest.fixture(params=["hub", "service", "tenant", "v2"])
def path(request: pytest.FixtureRequest, user: str, listen_key: str) -> str:
    """Of each of these doors, with a good token or key."""
    paths = {"hub": hub_path(user), "service": service_path(user), "tenant": tenant_path(listen_key)}
    paths["v2"] = "/ws/v2"  # where join comes later
    return paths[request.param]


def test_what_is_no_upgrade_is_told_to_upgrade(server: RunningServer, path: str) -> None:
    """With a good token or key: 426 and what to; also where the version is not ours (RFC 9110 section 15.5.22)."""
    for headers in ({}, {"Upgrade": "h2c"}, {**UPGRADE, "Sec-WebSocket-Version": "12"}):
        answer = server.request("GET", path, headers=headers)
        problem(answer, 426, "upgrade_required")
        assert answer.headers["Upgrade"] == "websocket"
        assert "upgrade" in answer.headers["Connection"].lower()
        assert answer.headers["Sec-Websocket-Version"] == "13"


@pytest.mark.parametrize("missing", ["Connection", "Sec-WebSocket-Key"])
def test_half_an_upgrade_is_400(server: RunningServer, path: str, missing: str) -> None:
    headers = {name: value for name, value in UPGRADE.items() if name != missing}
    problem(server.request("GET", path, headers=headers), 400, "bad_request")


async def test_an_upgrade_of_http_1_0_is_400(server: RunningServer, path: str) -> None:
    """Which knows none (RFC 9110 section 7.8): a proxy may speak it unless told otherwise. The answer says so."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade(path).replace(b" HTTP/1.1", b" HTTP/1.0"))
    head, _, body = (await asyncio.wait_for(reader.read(), WAIT_S)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "HTTP/1.1" in json.loads(body)["detail"]


def test_other_methods_are_none(server: RunningServer, path: str) -> None:
    """405 and the one that there is, whoever asks."""
    for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for each in (path, path.partition("?")[0]):
            answer = server.request(method, each)
            assert (answer.status, answer.headers["Allow"]) == (405, "GET")
            if method != "HEAD":
                problem(answer, 405, "method_not_allowed")


async def test_pages_of_other_origins_stay_out_where_origins_are_named(tmp_path: Path, user: str) -> None:
    """403, whatever token they have; the named ones and what is no page come in."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_APPLICATION_ORIGINS="https://shop.example") as server:
        status, body = await refused(server, hub_path(user), Origin="https://evil.example")
        assert (status, list(body)) == (403, ["error"])
        async with listening(server, hub_path(user), Origin="https://shop.example"):
            pass
        async with listening(server, hub_path(user)):
            pass


# -- what is said --------------------------------------------------------------------------------------------
async def test_a_frame_is_type_payload_and_timestamp(server: RunningServer, user: str) -> None:
    """Nothing else in it; the payload as it was published, the timestamp RFC 3339 in UTC, of the acceptance."""
    payload = {"title": "é", "n": [1, 2.5, None, True], "deep": {"$ref": 10**30, "a.b": "\x00"}}
    async with listening(server, hub_path(user)) as client:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        send(server, user, payload)
        frame = await client.frame()
    assert frame.keys() == {"type", "payload", "timestamp"}
    assert (frame["type"], frame["payload"]) == ("notification", payload)
    assert frame["timestamp"].endswith("Z")
    assert before <= datetime.fromisoformat(frame["timestamp"]) <= datetime.now(UTC)


async def test_what_has_no_payload_comes_as_its_texts(server: RunningServer, user: str) -> None:
    """Of `/notify`: those that are not empty, and its own type."""
    async with listening(server, hub_path(user)) as client:
        server.must_notify(user, content="text", type="alert", title="T")
        server.must_notify(user)
        first, second = await client.frames(2)
    assert (first["type"], first["payload"]) == ("alert", {"type": "alert", "title": "T", "content": "text"})
    assert (second["type"], second["payload"]) == ("notification", {})


async def test_all_connections_of_a_user_are_told_and_nobody_else(server: RunningServer, user: str) -> None:
    """Each once, in the order of publishing; a user of the same name of another tenant is somebody else."""
    tenant = f"t-{uuid4().hex[:8]}"
    key = add_tenant(server, tenant)
    async with (
        listening(server, hub_path(user)) as first,
        listening(server, hub_path(user)) as second,
        listening(server, hub_path(f"{user}-else")) as other,
        listening(server, hub_path(user, tenant=tenant)) as namesake,
    ):
        for n in range(20):
            send(server, user, {"n": n})
        send(server, user, {"n": "theirs"}, key)
        send(server, f"{user}-else", {"n": "other"})
        assert numbers(await first.frames(20)) == numbers(await second.frames(20)) == list(range(20))
        assert numbers([await other.frame()]) == ["other"]
        assert numbers([await namesake.frame()]) == ["theirs"]


async def test_what_a_client_says_is_passed_over(server: RunningServer, user: str) -> None:
    """Text of any kind; the connection lives on, and is told of what comes."""
    async with listening(server, hub_path(user)) as client:
        for text in ("", "{", "null", '{"name":"join"}', "x" * 100_000):
            await client.say(text)
        send(server, user, {"n": 1})
        assert numbers([await client.frame()]) == [1]


async def test_a_binary_frame_ends_the_connection(server: RunningServer, user: str) -> None:
    """1003: there is no such thing in this dialect."""
    async with listening(server, hub_path(user)) as client:
        await client.say(b"\x00")
        assert (await client.closed())[0] == 1003


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=50) | st.sampled_from(['{"type":"message_ack"}', "[" * 5000]), max_size=5)
)
def test_no_text_of_a_client_hurts(server: RunningServer, texts: list[str]) -> None:
    """Whatever is said: the next notification comes."""

    async def run() -> None:
        user = f"hostile-{uuid4().hex}"
        async with listening(server, hub_path(user)) as client:
            for text in texts:
                await client.say(text)
            send(server, user, {"n": 1})
            assert numbers([await client.frame()]) == [1]

    asyncio.run(run())


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.binary(max_size=60))
def test_no_query_hurts(server: RunningServer, query: bytes) -> None:
    """Bytes of any kind as a token: refused, never a 5xx."""
    quoted = "".join(f"%{byte:02X}" for byte in query)
    for path in (
        "/ws?token=",
        "/ws/notifications/1/?token=",
        f"/ws/notifications/{quoted or 'x'}/?token=",
        "/ws/notify/?api_key=",
    ):
        assert 400 <= server.get(path + quoted).status < 500


# -- until when ----------------------------------------------------------------------------------------------
async def test_the_connection_ends_with_its_token(server: RunningServer, user: str) -> None:
    """3005, at once after `exp`."""
    async with listening(server, hub_path(user, lifetime_s=2)) as client:
        assert await client.closed() == (3005, "token_expired")


async def test_a_user_who_is_signed_out_is_cut_off(server: RunningServer, user: str) -> None:
    """3501; the token from before lets nobody in again, a newer one does."""
    path = hub_path(user, iat=time.time())
    async with listening(server, path) as client:
        assert server.run("user", "sign-out", user).returncode == 0
        assert await client.closed() == (3501, "signed_out")
    assert await refused(server, path) == (401, {"error": "invalid or expired token"})
    async with listening(server, hub_path(user, iat=time.time() + 1)):
        pass


async def test_a_token_made_with_a_key_ends_with_the_key(server: RunningServer, user: str) -> None:
    """3500 when the key is revoked; the token is worthless then."""
    name = f"k-{uuid4().hex[:8]}"
    key = add_key(server, "default", name, "listen")
    token = post(server, "/api/v2/tokens", {"user_id": user}, key).json()["token"]
    async with listening(server, f"/ws?token={token}") as client:
        server.must_run("key", "revoke", "default", name)
        assert await client.closed() == (3500, "revoked")
    assert await refused(server, f"/ws?token={token}") == (401, {"error": "invalid or expired token"})


async def test_a_user_has_only_so_many_connections(tmp_path: Path, user: str) -> None:
    """One more is closed with 3429, and those before live on; when one has gone there is room again."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_LIMITS_CONNECTIONS_PER_USER="2") as server:
        async with listening(server, hub_path(user)) as first:
            async with listening(server, hub_path(user)), listening(server, hub_path(user)) as third:
                assert await third.closed() == (3429, "too_many_connections")
                send(server, user, {"n": 1})
                assert numbers([await first.frame()]) == [1]
            await has_connections(server, 1)
            async with listening(server, hub_path(user)) as again:
                send(server, user, {"n": 2})
                assert numbers([await again.frame()]) == [2]


async def has_connections(server: RunningServer, count: int) -> None:
    """Return when it has so many connections of this kind."""

    def has() -> bool:
        found = re.search(r'notification_connections\{transport="hub"\} (\d+)', metrics(server))
        return int(found[1] if found else 0) == count

    await asyncio.to_thread(wait_until, has, f"{count} connections")


async def test_who_connects_too_often_is_told_when_to_come_back(tmp_path: Path, user: str) -> None:
    """429 with Retry-After, counted by the address that a trusted proxy names; others are let in."""
    limits = {
        "NOTIFY_LIMITS_CONNECTS_PER_ADDRESS": "1/60s",
        "NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1",
    }
    with RunningServer(tmp_path, **SETTINGS, **limits) as server:
        async with listening(server, hub_path(user), **ELSEWHERE):
            pass
        answer = await asyncio.to_thread(server.request, "GET", hub_path(user), None, ELSEWHERE)
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        async with listening(server, hub_path(user)):
            pass


async def test_the_other_doors_say_it_in_their_words(tmp_path: Path, user: str) -> None:
    """Not 403, by which their clients would take their token or key for a wrong one. The slash may be left out."""
    limits = {
        "NOTIFY_LIMITS_CONNECTS_PER_ADDRESS": "2/60s",
        "NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1",
    }
    with RunningServer(tmp_path, **SETTINGS, **limits) as server:
        key = add_key(server, "default", "listening", "listen")
        service, tenant = service_path(user).replace("/?", "?"), tenant_path(key).replace("/?", "?")
        async with listening(server, service, **ELSEWHERE), listening(server, tenant, **ELSEWHERE):
            pass
        for path, field in ((service, "error"), (tenant, "detail")):
            answer = await asyncio.to_thread(server.request, "GET", path, None, ELSEWHERE)
            assert (answer.status, list(answer.json())) == (429, [field])
            assert "too many" in answer.json()[field]


async def test_figures_count_the_connections_and_the_refused(server: RunningServer, user: str) -> None:
    """By transport, and by door and code."""
    await refused(server, "/ws")
    async with listening(server, hub_path(user)):
        await has_connections(server, 1)
    await has_connections(server, 0)
    assert 'notification_requests_refused_total{code="no_credentials",door="hub"' in metrics(server)


# -- what waited ---------------------------------------------------------------------------------------------
async def test_what_was_missed_comes_once_at_the_next_connect(
    tmp_path: Path, settings_of_store: dict[str, str]
) -> None:
    """Oldest first, from whatever door, also over a restart of the server; then never again."""
    with RunningServer(tmp_path, **settings_of_store) as server:
        for n in range(3):
            send(server, "alice", {"n": n})
        async with listening(server, hub_path("alice")) as client:
            assert numbers(await client.frames(3)) == [0, 1, 2]
            send(server, "alice", {"n": 3})
            assert numbers([await client.frame()]) == [3]
        send(server, "alice", {"n": 4})
        server.restart()
        async with listening(server, hub_path("alice")) as client:
            send(server, "alice", {"n": 5})
            assert numbers(await client.frames(2)) == [4, 5]
        send(server, "alice", {"n": 6})
        async with listening(server, hub_path("alice")) as client:
            assert numbers([await client.frame()]) == [6]


async def test_who_says_goodbye_at_once_has_had_what_came(server: RunningServer, user: str) -> None:
    """Also without a code, as a page does by `close()`: nothing of it comes again."""
    async with listening(server, hub_path(user)):
        pass
    for n in range(5):
        async with listening(server, hub_path(user)) as client:
            send(server, user, {"n": n})
            assert numbers([await client.frame()]) == [n]
            client.socket.transport.write(frame(CLOSE))
            await client.closed()
    send(server, user, {"n": 5})
    async with listening(server, hub_path(user)) as client:
        assert numbers([await client.frame()]) == [5]


async def test_a_crash_loses_nothing(tmp_path: Path, settings_of_store: dict[str, str]) -> None:
    """SIGKILL: what was not sent comes; what was sent and remembered does not come again."""
    with RunningServer(tmp_path, **settings_of_store) as server:
        async with listening(server, hub_path("alice")) as client:
            send(server, "alice", {"n": 0})
            assert numbers([await client.frame()]) == [0]
        await remembered(server)
        send(server, "alice", {"n": 1})
        server.kill()
        server.start()
        async with listening(server, hub_path("alice")) as client:
            send(server, "alice", {"n": 2})
            assert numbers(await client.frames(2)) == [1, 2]


async def test_a_crash_amid_the_sending_repeats_at_most(
    tmp_path: Path, settings_of_store: dict[str, str]
) -> None:
    """However often the server is killed: in the end each of them has come."""
    with RunningServer(tmp_path, **settings_of_store) as server:
        for n in range(60):
            send(server, "alice", {"n": n})
        told: list[int] = []
        for count in (5, 17, 30):
            async with listening(server, hub_path("alice")) as client:
                told += numbers(await client.frames(count))
                server.kill()
                told += await rest(client.socket)
            server.start()
        send(server, "alice", {"n": 60})
        async with listening(server, hub_path("alice")) as client:
            while 60 not in told:
                told += numbers([await client.frame()])
    assert set(told) == set(range(61))


async def rest(socket: Any) -> list[int]:
    """What had arrived before the connection broke."""
    told = []
    try:
        while True:
            told.append(json.loads(await asyncio.wait_for(socket.recv(), WAIT_S))["payload"]["n"])
    except ConnectionClosed:
        return told


async def test_what_a_slow_client_never_got_comes_later(tmp_path: Path, user: str) -> None:
    """A client that stops reading is closed as slow; what lay in its queue was not sent, and comes at the next
    connect."""
    bounds = {"NOTIFY_CONNECTIONS_QUEUE_BYTES": "65536", "NOTIFY_LIMITS_CONNECTIONS_PER_USER": "1"}
    with RunningServer(tmp_path, **SETTINGS, **bounds) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(upgrade(hub_path(user)))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        count, told = 0, None
        while told is None:
            send(server, user, {"n": count, "text": "x" * 30_000})
            count += 1
            told = await waiting(server, user)
        writer.transport.abort()
    # What its kernel had taken counts as sent. The last one was refused by the queue, in which two more were.
    assert 3 <= len(told) < count
    assert told == list(range(count - len(told), count))


async def waiting(server: RunningServer, user: str) -> list[int] | None:
    """What waits for the user; None while their only connection is another one."""
    async with listening(server, hub_path(user)) as client:
        try:
            told = numbers([await client.frame()])
        except ConnectionClosed:
            assert await client.closed() == (3429, "too_many_connections")
            return None
        send(server, user, {"n": -1})
        while told[-1] != -1:
            told += numbers([await client.frame()])
        return told[:-1]


def upgrade(path: str) -> bytes:
    head = (
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    return ("\r\n".join(head) + "\r\n\r\n").encode()


async def test_what_was_seen_or_deleted_elsewhere_is_not_sent(server: RunningServer) -> None:
    """On a classic screen: whoever has read it there needs it no more."""
    user = "bob"  # a demo user: the classic client joins with a password
    server.must_notify(user, content="seen")
    server.must_notify(user, content="deleted")
    server.must_notify(user, content="new")
    async with SocketClient(server) as screen:
        by_content = {document["content"]: document["_id"] for document in await screen.join(user)}
        await screen.send("seen", {"ids": [by_content["seen"]]})
        await screen.next("seen")
        await screen.send("delete", {"ids": [by_content["deleted"]]})
        await screen.next("delete")
    async with listening(server, hub_path(user)) as client:
        assert (await client.frame())["payload"] == {"content": "new"}


async def test_a_page_that_comes_while_another_is_open_gets_only_what_is_new(
    server: RunningServer, user: str
) -> None:
    """What the first was sent a moment ago is not sent to the second."""
    async with listening(server, hub_path(user)) as first:
        send(server, user, {"n": 1})
        assert numbers([await first.frame()]) == [1]
        async with listening(server, hub_path(user)) as second:
            send(server, user, {"n": 2})
            assert numbers([await second.frame()]) == [2]


async def test_more_than_a_portion_comes_in_order(server: RunningServer, user: str) -> None:
    """And what is published meanwhile comes behind, each once."""
    for n in range(250):
        send(server, user, {"n": n})
    async with listening(server, hub_path(user)) as client:
        for n in range(250, 270):
            send(server, user, {"n": n})
        assert numbers(await client.frames(270)) == list(range(270))
