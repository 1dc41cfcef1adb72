"""The WebSocket `/ws/notifications/{user id}/` of CONTRACT C3, from outside."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import SocketClient
from tests.support.feeds import (
    SETTINGS,
    Listener,
    add_key,
    listening,
    must,
    post,
    refused,
    remembered,
    send,
    service_path,
    user_token,
)
from tests.support.running_server import RunningServer

PING = {"type": "command", "key": "ping"}
PONG = {"type": "command_processing_result", "key": "ping", "value": "pong"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("service"), **SETTINGS) as running:
        yield running


async def values(client: Listener, count: int) -> list[Any]:
    return [frame["value"] for frame in await client.frames(count)]


async def acknowledge(client: Listener, key: str) -> None:
    """And wait until the server has heard it: it answers what comes behind."""
    await client.say({"type": "message_ack", "key": key})
    assert await client.asked(PING) == PONG


async def begin(server: RunningServer, user: str) -> None:
    """The user uses this dialect for the first time."""
    async with listening(server, service_path(user)) as client:
        send(server, user, "first")
        frame = await client.frame()
        await acknowledge(client, frame["key"])


# -- who comes in --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "token"),
    [
        ("alice", None),
        ("alice", ""),
        ("alice", "x.y.z"),
        ("alice", user_token("bob")),
        ("Alice", user_token("alice")),
        ("alice%20", user_token("alice")),
        ("alice", user_token("alice", lifetime_s=-600)),
        ("alice", user_token("alice", secret="6e" * 32)),
        ("%FF", user_token("alice")),
    ],
    ids=["none", "empty", "wrong", "bobs", "case", "blank", "expired", "forged", "no-utf8"],
)
async def test_who_is_not_that_user_is_refused_before_the_upgrade(
    server: RunningServer, path: str, token: str | None
) -> None:
    """403: without a token, by a wrong one, or another user's (a path that is no text: 400)."""
    query = "" if token is None else f"?token={token}"
    status, body = await refused(server, f"/ws/notifications/{path}/{query}")
    assert status == (400 if path == "%FF" else 403)
    assert list(body) == (["type", "title", "status", "detail"] if status == 400 else ["error"])


@pytest.mark.parametrize("user_id", ["1", "a b", "a/b", "é", "a%2Fb", "a:b?c#d"])
async def test_user_ids_of_any_characters_come_in(server: RunningServer, user_id: str) -> None:
    """Escaped in the path as URLs have it."""
    async with listening(server, service_path(user_id)) as client:
        send(server, user_id, {"n": 1})
        assert await values(client, 1) == [{"n": 1}]


async def test_the_identity_token_of_a_password_opens_the_socket(server: RunningServer) -> None:
    """As the original's page does it: password, then identity token, then socket. The refresh token opens nothing."""
    tokens = must(post(server, "/api/users/token/", {"username": "alice", "password": "alice"}))
    async with listening(server, f"/ws/notifications/alice/?token={tokens['identity']}") as client:
        assert await client.asked(PING) == PONG
    assert (await refused(server, f"/ws/notifications/alice/?token={tokens['refresh']}"))[0] == 403


# -- until when ----------------------------------------------------------------------------------------------
async def test_the_connection_ends_with_its_token(server: RunningServer, user: str) -> None:
    """3005."""
    async with listening(server, service_path(user, lifetime_s=2)) as client:
        assert await client.closed() == (3005, "token_expired")


async def test_sign_out_and_revoked_keys_end_connections(server: RunningServer, user: str) -> None:
    """3501 and 3500."""
    key = add_key(server, "default", f"k-{user[-8:]}", "listen")
    token = must(post(server, "/api/v2/tokens", {"user_id": user}, key))["token"]
    async with (
        listening(server, service_path(user, iat=time.time())) as client,
        listening(server, f"/ws/notifications/{user}/?token={token}") as other,
    ):
        server.must_run("key", "revoke", "default", f"k-{user[-8:]}")
        assert await other.closed() == (3500, "revoked")
        assert server.run("user", "sign-out", user).returncode == 0
        assert await client.closed() == (3501, "signed_out")


async def test_a_user_has_only_so_many_connections(tmp_path: Path, user: str) -> None:
    """Of all kinds together: 3429."""
    with RunningServer(tmp_path, **SETTINGS, NOTIFY_LIMITS_CONNECTIONS_PER_USER="1") as server:
        async with (
            listening(server, service_path(user)) as first,
            listening(server, service_path(user)) as second,
        ):
            assert await second.closed() == (3429, "too_many_connections")
            assert await first.asked(PING) == PONG


# -- what is said --------------------------------------------------------------------------------------------
async def test_a_frame_is_type_key_and_value(server: RunningServer, user: str) -> None:
    """The value as it was published, whatever JSON it is; the key is the id of the user's document."""
    published = [{"a": [1, None]}, [1, 2], "text", 5, 1.5, False, "", {"title": "T", "message": "é"}, {}]
    async with listening(server, service_path(user)) as client:
        for payload in published:
            send(server, user, payload)
        frames = await client.frames(len(published))
    assert all(frame.keys() == {"type", "key", "value"} for frame in frames)
    assert {frame["type"] for frame in frames} == {"server_notification"}
    assert [json.dumps(frame["value"]) for frame in frames] == [json.dumps(each) for each in published]
    assert len({frame["key"] for frame in frames}) == len(published)


async def test_a_ping_is_answered_by_a_pong(server: RunningServer, user: str) -> None:
    """In this dialect's own words."""
    async with listening(server, service_path(user)) as client:
        assert await client.asked(PING) == PONG


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "null",
        "[]",
        "5",
        "[" * 4000,
        "[" * 5000,
        '{"type":"command"}',
        '{"type":"command","key":"quit"}',
        '{"type":"command","key":["ping"]}',
        '{"type":"message_ack"}',
        '{"type":"message_ack","key":7}',
        '{"type":{},"key":"ping"}',
        '{"type":"server_notification","key":"ping"}',
        "1" * 5000,
        '{"type":"\\ud800","key":"\\udfff"}',
        '{"type":"command","key":"ping"}' + " " * 4096,
        "[" + "1," * 500_000 + "1]",
    ],
    ids=lambda message: message[:30] + (f"-{len(message)}" if len(message) > 30 else ""),
)
async def test_anything_else_is_answered_by_an_error(server: RunningServer, user: str, message: str) -> None:
    """Of one shape, with a text; the connection lives on."""
    async with listening(server, service_path(user)) as client:
        error = await client.asked(message)
        assert error.keys() == {"type", "value"}
        assert error["type"] == "message_processing_error"
        assert isinstance(error["value"], str)
        assert await client.asked(PING) == PONG


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
messages = st.text(max_size=40) | st.builds(
    lambda type_, key: json.dumps({"type": type_, "key": key}),
    st.sampled_from(["message_ack", "command", "x"]) | json_values,
    st.sampled_from(["ping", "f" * 24, "0" * 24, "nothing"]) | json_values,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(messages, max_size=4))
def test_no_message_hurts(server: RunningServer, said: list[str]) -> None:
    """Whatever is said: the connection lives on, and the next notification comes."""

    async def run() -> None:
        user = f"hostile-{uuid4().hex}"
        async with listening(server, service_path(user)) as client:
            for text in said:
                await client.say(text)
            send(server, user, {"n": 1})
            while (frame := await client.frame())["type"] != "server_notification":
                assert frame["type"] in ("message_processing_error", "command_processing_result")
            assert frame["value"] == {"n": 1}

    asyncio.run(run())
    assert "Traceback" not in server.log


# -- acknowledging -------------------------------------------------------------------------------------------
async def test_what_is_not_acknowledged_comes_at_every_connect(
    tmp_path: Path, settings_of_store: dict[str, str]
) -> None:
    """By the same key, oldest first, also after SIGKILL; what is acknowledged comes no more."""
    with RunningServer(tmp_path, **settings_of_store) as server:
        await begin(server, "alice")
        send(server, "alice", 1)
        async with listening(server, service_path("alice")) as client:
            [first] = await client.frames(1)
            send(server, "alice", 2)
            [second] = await client.frames(1)
        async with listening(server, service_path("alice")) as client:
            assert await client.frames(2) == [first, second]
        await remembered(server)
        server.kill()
        server.start()
        async with listening(server, service_path("alice")) as client:
            assert await client.frames(2) == [first, second]
            await acknowledge(client, first["key"])
        async with listening(server, service_path("alice")) as client:
            assert await client.frames(1) == [second]
            await acknowledge(client, second["key"].upper())
        server.restart()
        async with listening(server, service_path("alice")) as client:
            send(server, "alice", 3)
            assert await values(client, 1) == [3]


async def test_an_acknowledgement_is_for_the_own_documents_only(server: RunningServer, user: str) -> None:
    """A key of another user's, or a foreign one, changes nothing and is answered by nothing."""
    await begin(server, user)
    async with listening(server, service_path(user)) as client:
        send(server, user, "mine")
        [frame] = await client.frames(1)
    async with listening(server, service_path(f"{user}-else")) as thief:
        for key in (frame["key"], "0" * 24, "", "x", "\x00"):
            await acknowledge(thief, key)
    async with listening(server, service_path(user)) as client:
        assert await client.frames(1) == [frame]


async def test_equal_payloads_are_two_messages(server: RunningServer, user: str) -> None:
    """The original hashed the payload, and so lost one of them."""
    await begin(server, user)
    send(server, user, {"same": True})
    send(server, user, {"same": True})
    async with listening(server, service_path(user)) as client:
        first, second = await client.frames(2)
        assert first["value"] == second["value"]
        assert first["key"] != second["key"]


async def test_seen_and_deleted_count_as_acknowledged(server: RunningServer) -> None:
    """By whatever door: this user reads on a classic screen."""
    user = "alice"  # a demo user: the classic client joins with a password
    await begin(server, user)
    for value in ("seen", "deleted", "new"):
        send(server, user, value)
    async with SocketClient(server) as screen:
        by_value = {document["data"]: document["_id"] for document in await screen.join(user)}
        await screen.send("seen", {"ids": [by_value["seen"]]})
        await screen.next("seen")
        await screen.send("delete", {"ids": [by_value["deleted"]]})
        await screen.next("delete")
    async with listening(server, service_path(user)) as client:
        assert await values(client, 1) == ["new"]
        send(server, user, "last")
        assert await values(client, 1) == ["last"]


async def test_acknowledged_is_not_seen(server: RunningServer) -> None:
    """A screen still shows as unseen what a client of this dialect has acknowledged."""
    async with listening(server, service_path("bob")) as client:
        send(server, "bob", "acknowledged")
        [frame] = await client.frames(1)
        await acknowledge(client, frame["key"])
    async with SocketClient(server) as screen:
        [document] = await screen.join("bob")
        assert (document["_id"], document["seen"]) == (frame["key"], False)


async def test_nothing_from_before_the_first_use_comes(server: RunningServer, user: str) -> None:
    """However much lies in the inbox: this dialect begins with what comes after."""
    for n in range(3):
        send(server, user, n)
    for _ in range(2):
        async with listening(server, service_path(user)) as client:
            send(server, user, "new")
            assert await values(client, 1) == ["new"]
            assert await client.asked(PING) == PONG
        async with listening(server, service_path(user)) as client:
            frame = await client.frame()
            assert frame["value"] == "new"
            await acknowledge(client, frame["key"])


async def test_more_than_a_portion_comes_in_order(server: RunningServer, user: str) -> None:
    """And what is published meanwhile comes behind, each once."""
    await begin(server, user)
    for n in range(230):
        send(server, user, n)
    async with listening(server, service_path(user)) as client:
        for n in range(230, 240):
            send(server, user, n)
        assert await values(client, 240) == list(range(240))
        assert await client.asked(PING) == PONG
