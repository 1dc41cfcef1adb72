"""Every limit of the configuration, reached at a running server: it is counted under its own name."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

import argon2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.config.schema import Connections, Limits
from tests.support.backends import add_key, known
from tests.support.client import SocketClient
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer

AFAR = {"Via": "1.1 proxy"}
ALICE = json.dumps({"name": "join", "data": {"login": "alice", "password": "alice"}})
WAIT_S = 20.0


class CountingServer(RunningServer):
    """`metric`: the counter that is looked at, with its labels."""

    metric = ""

    def count(self) -> float:
        text = self.request("GET", "/metrics", headers={"Accept": "text/plain"}).body.decode()
        counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(counts.get(self.metric, 0))

    async def counts(self) -> None:
        """Return when it has counted something."""
        await asyncio.to_thread(wait_until, lambda: self.count() > 0, f"{self.metric} counting", WAIT_S)


async def notify(server: CountingServer, headers: dict[str, str] | None = None, **fields: object) -> Response:
    body = json.dumps({"content": "hi", "users": [{"id": "alice"}], **fields}).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    return await asyncio.to_thread(server.request, "POST", "/notify", body, sent)


async def is_refused(answer: Awaitable[Response], status: int) -> None:
    assert (await answer).status == status


async def body_bytes(server: CountingServer) -> None:
    await is_refused(notify(server, filler="x" * 70_000), 413)


async def users_per_request(server: CountingServer) -> None:
    await is_refused(notify(server, users=[{"id": 1}, {"id": 2}]), 413)


async def content_bytes(server: CountingServer) -> None:
    await is_refused(notify(server, content="xx"), 413)


async def field_bytes(server: CountingServer) -> None:
    await is_refused(notify(server, title="x" * 6), 413)


async def data_bytes(server: CountingServer) -> None:
    body = json.dumps({"user_id": "alice", "payload": {"title": "ten bytes"}}).encode()
    sent = {"Content-Type": "application/json"}
    path = "/api/notifications/send/"
    await is_refused(asyncio.to_thread(server.request, "POST", path, body, sent), 413)


async def requests_per_key(server: CountingServer) -> None:
    answers = [await notify(server, {"Authorization": "Api-Key secret"}) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert_rate_is_told(answers[1].headers, "requests_per_key")


async def requests_per_address(server: CountingServer) -> None:
    answers = [await notify(server, AFAR) for _ in range(2)]
    assert [answer.status for answer in answers] == [403, 429]
    assert_rate_is_told(answers[1].headers, "requests_per_address")


async def sign_outs_per_tenant(server: CountingServer) -> None:
    """Over all keys of the tenant, of whoever may be a user of it."""
    keys = [await asyncio.to_thread(add_key, server, "default", name, "admin") for name in ("one", "two")]
    backends = [await asyncio.to_thread(known, key) for key in keys]
    assert (await asyncio.to_thread(backends[0].sign_out, "nobody")).status == 204
    answer = await asyncio.to_thread(backends[1].sign_out, "somebody")
    assert answer.status == 429
    assert_rate_is_told(answer.headers, "sign_outs_per_tenant")


def assert_rate_is_told(headers: Mapping[str, str], limit: str) -> None:
    told = {name.lower(): value for name, value in headers.items()}
    assert int(told["retry-after"]) > 0
    assert told["ratelimit"].startswith(f'"{limit}";r=0;t=')
    assert told["ratelimit-policy"].startswith(f'"{limit}";q=1;')


async def connect_twice(server: CountingServer, limit: str) -> None:
    async with connect(server.websocket_url, additional_headers=AFAR):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(server.websocket_url, additional_headers=AFAR):
                pass
    assert refused.value.response.status_code == 429
    assert_rate_is_told(refused.value.response.headers, limit)


async def connects_per_address(server: CountingServer) -> None:
    await connect_twice(server, "connects_per_address")


async def connections_per_address(server: CountingServer) -> None:
    await connect_twice(server, "connections_per_address")


async def connections_per_user(server: CountingServer) -> None:
    async with SocketClient(server) as first, SocketClient(server) as second:
        await first.join("alice")
        error = await second.refusal("join", {"login": "alice", "password": "alice"})
        assert error["code"] == "too_many_connections"


async def commands(server: CountingServer, headers: Mapping[str, str] = MappingProxyType({})) -> None:
    """One too many: it waits, and nobody waits for it here."""
    async with connect(server.websocket_url, additional_headers=headers) as client:
        for _ in range(2):
            await client.send(ALICE)
        await server.counts()
        await abort(client)


async def abort(client: ClientConnection) -> None:
    """Go away without a word: an orderly end would wait with all else."""
    client.transport.abort()
    await client.wait_closed()


async def commands_from_afar(server: CountingServer) -> None:
    await commands(server, AFAR)


async def pending_commands(server: CountingServer) -> None:
    # What came in one frame is not held up between its messages.
    url = server.websocket_url.replace("/websocket", "/000/a/websocket")
    async with connect(url) as client:
        await client.send(json.dumps([json.dumps({"name": "unseen"})] * 100))
        await server.counts()
        await abort(client)


async def join_within_s(server: CountingServer) -> None:
    assert await end_of(server) == (3006, "not_joined")


async def message_bytes(server: CountingServer) -> None:
    assert await end_of(server, "x" * 2000) == (1009, "message too big")


async def end_of(server: CountingServer, message: str = "") -> tuple[int, str]:
    async with connect(server.websocket_url) as client:
        if message:
            await client.send(message)
        return await closed(client)


async def closed(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as error:
        async with asyncio.timeout(WAIT_S):
            while True:
                await client.recv()
    assert error.value.rcvd is not None
    return error.value.rcvd.code, error.value.rcvd.reason


async def does_not_read(server: CountingServer) -> None:
    """Asks for much and takes nothing."""
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect(("127.0.0.1", server.port))
        async with connect(server.websocket_url, sock=small, max_queue=1) as client:
            await client.send(ALICE)
            for _ in range(30):
                await notify(server, content="x" * 60_000)
            await server.counts()
            await abort(client)


async def says_nothing(server: CountingServer) -> None:
    """Answers no ping."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET /notification/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    await server.counts()
    writer.close()


async def polls_no_more(server: CountingServer) -> None:
    opened = await asyncio.to_thread(server.request, "POST", "/notification/000/a/xhr", b"", {})
    assert opened.body == b"o\n"
    await server.counts()


async def passwords(server: CountingServer) -> None:
    """Several at once, of which one may wait."""

    async def guess(number: int) -> None:
        async with SocketClient(server) as client:
            await client.refusal("join", {"login": f"nobody{number}", "password": "x"})

    await asyncio.gather(*map(guess, range(8)))


def ended(reason: str, transport: str = "rawwebsocket") -> str:
    return f'notification_connections_closed_total{{reason="{reason}",transport="{transport}"}}'


Reach = Callable[[CountingServer], Awaitable[None]]
BUSY = 'notification_sign_in_failures_total{code="busy"}'

LIMITS: dict[str, tuple[dict[str, str], Reach, str]] = {
    "body_bytes": ({"body_bytes": "65536"}, body_bytes, ""),
    "users_per_request": ({"users_per_request": "1"}, users_per_request, ""),
    "content_bytes": ({"content_bytes": "1"}, content_bytes, ""),
    "field_bytes": ({"field_bytes": "5"}, field_bytes, ""),
    "data_bytes": ({"data_bytes": "9"}, data_bytes, ""),
    "requests_per_key": ({"requests_per_key": "1/h"}, requests_per_key, ""),
    "requests_per_address": ({"requests_per_address": "1/h"}, requests_per_address, ""),
    "sign_outs_per_tenant": ({"sign_outs_per_tenant": "1/h"}, sign_outs_per_tenant, ""),
    "connects_per_address": ({"connects_per_address": "1/h"}, connects_per_address, ""),
    "commands_per_user": ({"commands_per_user": "1/h"}, commands, ""),
    "commands_per_address": ({"commands_per_address": "1/h"}, commands_from_afar, ""),
    "commands_per_connection": ({"commands_per_connection": "1/h"}, commands, ""),
    "connections_per_user": ({"connections_per_user": "1"}, connections_per_user, ""),
    "connections_per_address": ({"connections_per_address": "1"}, connections_per_address, ""),
    "join_within_s": ({"join_within_s": "0.1"}, join_within_s, ended("not_joined")),
    "password_checks": ({"password_checks": "1", "password_queue": "1"}, passwords, BUSY),
    "password_queue": ({"password_checks": "1", "password_queue": "1"}, passwords, BUSY),
    "heartbeat_s": ({"heartbeat_s": "0.1"}, says_nothing, ended("no_sign_of_life")),
    "disconnect_delay_s": ({"disconnect_delay_s": "0.1"}, polls_no_more, ended("by_client", "xhr")),
    "queue_bytes": ({"queue_bytes": "1024"}, does_not_read, ended("slow")),
    "slow_after_s": ({"slow_after_s": "0.1"}, does_not_read, ended("slow")),
    "message_bytes": ({"message_bytes": "1024"}, message_bytes, ended("message_too_big")),
    "pending_commands": ({"pending_commands": "2"}, pending_commands, ""),
}
"""By its key: settings under which it is easily reached, how, and the metric (`throttled` with its name if "")."""


def test_no_limit_is_left_out() -> None:
    """Whoever adds one says here how it is counted."""
    assert set(LIMITS) == {field.name for record in (Limits, Connections) for field in fields(record)}


@pytest.mark.parametrize("limit", LIMITS)
async def test_each_limit_has_its_metric(limit: str, tmp_path: Path) -> None:
    """Reached, it is counted, and before it was not."""
    settings, reach, metric = LIMITS[limit]
    environment = {f"NOTIFY_{section_of(key)}_{key.upper()}": value for key, value in settings.items()}
    if limit == "requests_per_key":
        environment["NOTIFY_APPLICATION_APIKEY"] = "secret"
    if limit.startswith("password"):
        environment["NOTIFY_USERS_bob"] = argon2.PasswordHasher().hash("bob")
    with CountingServer(tmp_path, **environment) as server:
        server.metric = metric or f'notification_throttled_total{{limit="{limit}"}}'
        assert server.count() == 0
        await reach(server)
        await server.counts()


def section_of(key: str) -> str:
    return "LIMITS" if key in {field.name for field in fields(Limits)} else "CONNECTIONS"
