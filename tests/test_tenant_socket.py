"""The WebSocket `/ws/notify/` of CONTRACT C5, from outside."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import SocketClient
from tests.support.feeds import add_key, add_tenant, broadcast, listening, refused, send, tenant_path
from tests.support.running_server import RunningServer

REFUSED = (403, {"detail": "Invalid API key"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("tenants")) as running:
        yield running


@pytest.fixture(scope="module")
def acme(server: RunningServer) -> str:
    """The key of a tenant, for everything."""
    return add_tenant(server, "acme")


@pytest.fixture(scope="module")
def globex(server: RunningServer) -> str:
    return add_tenant(server, "globex")


# -- who comes in --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("query", ["", "?api_key=", "?api_key=x", f"?api_key={'A' * 43}", "?api_key=%FF"])
async def test_without_a_good_key_there_is_no_upgrade(server: RunningServer, acme: str, query: str) -> None:
    """403, in the words of the original; also on the machine that may publish without a key."""
    assert await refused(server, f"/ws/notify/{query}") == REFUSED
    async with listening(server, tenant_path(acme)):
        pass


async def test_a_key_to_publish_is_none_to_listen(server: RunningServer) -> None:
    """And the other way about: a key to listen hears, and publishes nothing."""
    publishing = add_key(server, "default", "publishing", "publish")
    hearing = add_key(server, "default", "hearing", "listen")
    assert await refused(server, tenant_path(publishing)) == REFUSED
    async with listening(server, tenant_path(hearing)) as client:
        with pytest.raises(RuntimeError, match="403"):
            broadcast(server, key=hearing)
        broadcast(server, "T", key=publishing)
        assert (await client.frame())["title"] == "T"


async def test_a_key_of_a_page_hears_and_does_nothing_else(server: RunningServer) -> None:
    """Whoever finds it there makes no token with it, publishes nothing, and sees and ends nothing of the users."""
    page = add_key(server, "default", "page", "broadcasts")
    headers = {"Authorization": f"Api-Key {page}", "Content-Type": "application/json"}
    async with listening(server, tenant_path(page)) as client:
        for path in ("/api/v2/tokens", "/api/v2/users/alice/sign-out", "/notify", "/api/notifications/send/"):
            body = json.dumps({"user_id": "alice", "payload": {}, "content": "x", "users": [{"id": "alice"}]})
            assert server.request("POST", path, body.encode(), headers).status == 403
        for path in ("/api/outbox", "/api/notifications/0123456789abcdef01234567/deliveries"):
            assert server.request("GET", path, None, headers).status == 403
        broadcast(server, "T", key=add_key(server, "default", "its-backend", "publish"))
        assert (await client.frame())["title"] == "T"


# -- what is said --------------------------------------------------------------------------------------------
async def test_a_frame_is_title_message_data_and_time(server: RunningServer, acme: str) -> None:
    """Nothing else in it; `data` as it was published, {} if there was none."""
    data = {"type": "alert", "priority": "high", "deep": [1, None, {"a.b": "é"}]}
    async with listening(server, tenant_path(acme)) as client:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        broadcast(server, "New Message", "You have é", acme, data=data)
        for none in ({}, {"data": None}):
            broadcast(server, "", "", acme, **none)
        broadcast(server, "list", "m", acme, data=[1])
        first, second, third, fourth = await client.frames(4)
    assert first.keys() == {"title", "message", "data", "created_at"}
    assert (first["title"], first["message"], first["data"]) == ("New Message", "You have é", data)
    assert before <= datetime.fromisoformat(first["created_at"]) <= datetime.now(UTC)
    assert [each["data"] for each in (second, third, fourth)] == [{}, {}, [1]]


async def test_every_client_of_the_tenant_is_told_and_no_other(
    server: RunningServer, acme: str, globex: str
) -> None:
    """All of them, in order; those of another tenant hear their own only."""
    async with (
        listening(server, tenant_path(acme)) as first,
        listening(server, tenant_path(acme)) as second,
        listening(server, tenant_path(globex)) as other,
    ):
        for n in range(20):
            broadcast(server, str(n), key=acme)
        broadcast(server, "theirs", key=globex)
        for client in (first, second):
            assert [frame["title"] for frame in await client.frames(20)] == [str(n) for n in range(20)]
        assert (await other.frame())["title"] == "theirs"


async def test_what_is_for_single_users_is_not_told(server: RunningServer) -> None:
    """These clients have no user: they are told what is for everybody. Nor what came before they did."""
    key = add_tenant(server, f"t-{uuid4().hex[:8]}")
    broadcast(server, "before", key=key)
    async with listening(server, tenant_path(key)) as client:
        send(server, "alice", {"n": 1}, key)
        broadcast(server, "for all", key=key)
        assert (await client.frame())["title"] == "for all"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=50), max_size=5))
def test_no_text_of_a_client_hurts(server: RunningServer, acme: str, texts: list[str]) -> None:
    """Whatever is said is passed over."""

    async def run() -> None:
        async with listening(server, tenant_path(acme)) as client:
            for text in texts:
                await client.say(text)
            broadcast(server, "T", key=acme)
            assert (await client.frame())["title"] == "T"

    asyncio.run(run())


# -- until when ----------------------------------------------------------------------------------------------
async def test_a_revoked_key_ends_its_connections(server: RunningServer) -> None:
    """3500; those of another key of the tenant live on."""
    name = f"t-{uuid4().hex[:8]}"
    kept = add_tenant(server, name)
    revoked = add_key(server, name, "other", "listen")
    async with (
        listening(server, tenant_path(kept)) as stays,
        listening(server, tenant_path(revoked)) as goes,
    ):
        server.must_run("key", "revoke", name, "other")
        assert await goes.closed() == (3500, "revoked")
        broadcast(server, "T", key=kept)
        assert (await stays.frame())["title"] == "T"
    assert await refused(server, tenant_path(revoked)) == REFUSED


async def test_a_key_that_expires_ends_its_connections(server: RunningServer) -> None:
    """3005, at its own moment and without anybody's doing."""
    at = (datetime.now(UTC) + timedelta(seconds=4)).isoformat(timespec="seconds")
    key = add_key(server, "default", f"k-{uuid4().hex[:8]}", "listen", expires=at)
    async with listening(server, tenant_path(key)) as client:
        assert await client.closed() in ((3005, "token_expired"), (3500, "revoked"))


async def test_removing_a_tenant_ends_its_connections(server: RunningServer, acme: str) -> None:
    """3500, of those without a user as of those with one; other tenants notice nothing."""
    name = f"t-{uuid4().hex[:8]}"
    key = add_tenant(server, name)
    async with listening(server, tenant_path(key)) as client, listening(server, tenant_path(acme)) as other:
        server.must_run("tenant", "remove", name, "--yes")
        assert await client.closed() == (3500, "revoked")
        broadcast(server, "T", key=acme)
        assert (await other.frame())["title"] == "T"
    assert await refused(server, tenant_path(key)) == REFUSED


async def test_the_stop_of_the_server_says_goodbye(tmp_path: Path) -> None:
    """1001: come back soon."""
    with RunningServer(tmp_path) as server:
        key = add_tenant(server, "acme")
        async with listening(server, tenant_path(key)) as client:
            server.stop()
            assert (await client.closed())[0] == 1001


# -- what it is to the others --------------------------------------------------------------------------------
async def test_who_listens_without_a_user_is_no_user(server: RunningServer) -> None:
    """Counted as a connection, and neither as a user online nor a known one; nobody is told as their inbox."""
    name = f"t-{uuid4().hex[:8]}"
    key = add_tenant(server, name)
    async with listening(server, tenant_path(key)) as client, SocketClient(server):
        broadcast(server, key=key)
        await client.frame()
        figures = server.request(
            "GET", "/metrics", headers={"Accept": "text/plain", "Authorization": f"Api-Key {key}"}
        )
        text = figures.body.decode()
        assert not re.search(rf'users_online\{{tenant="{name}"\}} [1-9]', text)
    assert server.must_run("user", "known", "--tenant", name) == []
