"""Clients that only listen, by the WebSockets of CONTRACT C2, C3 and C5, and what publishes to them: requests, and
messages to the brokers. Independent of the server's code."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import pika
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer

WAIT_S = 30.0
"""How long something may take that is to come: no measure, only the end of a hang."""

SECRET = "5f" * 32
"""Signs the tokens of users."""

SETTINGS = {"NOTIFY_JWT_SECRET": SECRET}
"""Of a server that takes them."""


def user_token(user: str, *, lifetime_s: float = 600, secret: str = SECRET, **claims: Any) -> str:
    """As the backends of these systems make them: HS256, `sub` and `exp`."""
    return jwt.encode({"sub": user, "exp": time.time() + lifetime_s, **claims}, secret, "HS256")


def hub_path(user: str, **claims: Any) -> str:
    return "/ws?" + urlencode({"token": user_token(user, **claims)})


def service_path(user: str, **claims: Any) -> str:
    return f"/ws/notifications/{quote(user, safe='')}/?" + urlencode({"token": user_token(user, **claims)})


def tenant_path(key: str) -> str:
    return "/ws/notify/?" + urlencode({"api_key": key})


class Listener:
    """One connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def frame(self) -> Any:
        """The next frame, parsed."""
        return json.loads(await asyncio.wait_for(self.socket.recv(), WAIT_S))

    async def frames(self, count: int) -> list[Any]:
        return [await self.frame() for _ in range(count)]

    async def say(self, message: Any) -> None:
        await self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def asked(self, message: Any) -> Any:
        """What the next frame answers."""
        await self.say(message)
        return await self.frame()

    async def closed(self) -> tuple[int | None, str | None]:
        """Code and reason, when the server has closed the connection; what came before is passed over."""
        async with asyncio.timeout(WAIT_S):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def listening(server: RunningServer, path: str, **headers: str) -> AsyncIterator[Listener]:
    """A client of one of these doors; says goodbye at the end."""
    url = f"ws://127.0.0.1:{server.port_of(path)}{path}"
    async with connect(url, additional_headers=headers, max_size=None, ping_interval=None) as socket:
        yield Listener(socket)


async def refused(server: RunningServer, path: str, **headers: str) -> tuple[int, Any]:
    """Status and body with which the upgrade is refused."""
    try:
        async with listening(server, path, **headers):
            raise AssertionError(f"let in at {path.partition('?')[0]}")
    except InvalidStatus as refusal:
        return refusal.response.status_code, json.loads(refusal.response.body or b"null")


# -- publishing ----------------------------------------------------------------------------------------------


def post(server: RunningServer, path: str, fields: Any, key: str | None = None) -> Response:
    """POST JSON, with this key."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Api-Key {key}"
    return server.request("POST", path, json.dumps(fields).encode(), headers)


def must(answer: Response) -> Any:
    """What a request that has to go well was answered."""
    if answer.status not in (200, 202):
        raise RuntimeError(f"{answer.status}: {answer.body.decode()}")
    return answer.json()


def submit(server: RunningServer, user: str, fields: Mapping[str, str]) -> None:
    """CONTRACT C1, as a form."""
    form = urlencode({"users": json.dumps([{"id": user}]), **fields}).encode()
    answer = server.request("POST", "/notify", form, {"Content-Type": "application/x-www-form-urlencoded"})
    if (answer.status, answer.body) != (200, b""):
        raise RuntimeError(f"{answer.status}: {answer.body.decode()}")


def publish_to_rabbitmq(url: str, user: str | int, payload: Any) -> None:
    """CONTRACT C3; blocks until the server has answered with the echo."""
    message = {"user_id": user, "payload": payload}
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("notifications_exchange", "direct")
        results = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(results, "notifications_exchange", "notifications.result")
        channel.confirm_delivery()
        body = json.dumps(message).encode()
        channel.basic_publish("notifications_exchange", "notifications.send", body, mandatory=True)
        _, _, result = next(channel.consume(results, auto_ack=True, inactivity_timeout=WAIT_S))
        channel.cancel()
    if result is None or json.loads(result) != message:
        raise RuntimeError(f"the result is {result!r}")


def send(server: RunningServer, user: str | int, payload: Any, key: str | None = None) -> None:
    """CONTRACT C3."""
    must(post(server, "/api/notifications/send/", {"user_id": user, "payload": payload}, key))


def internal(
    server: RunningServer, users: list[str], payload: Mapping[str, Any], key: str | None = None
) -> str:
    """CONTRACT C4; the id."""
    fields = {"userIds": users, "payload": payload}
    id_: str = must(post(server, "/api/realtime/internal/notify", fields, key))["id"]
    return id_


def broadcast(
    server: RunningServer, title: str = "T", message: str = "M", key: str | None = None, **more: Any
) -> str:
    """CONTRACT C5; the id."""
    fields = {"title": title, "message": message, **more}
    id_: str = must(post(server, "/api/notifications/send/", fields, key))["id"]
    return id_


# -- figures -------------------------------------------------------------------------------------------------


def metrics(server: RunningServer) -> str:
    """All figures, as Prometheus reads them."""
    answer = server.request("GET", "/metrics", headers={"Accept": "text/plain"})
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.body.decode()}")
    return answer.body.decode()


async def remembered(server: RunningServer) -> None:
    """Return when no mark waits to be written, and then once more: the last ones may be on their way."""

    def is_idle() -> bool:
        return 'notification_queue_depth{queue="marks"} 0.0' in metrics(server)

    for _ in range(2):
        await asyncio.sleep(0.6)
        await asyncio.to_thread(wait_until, is_idle, "all marks being written")


# -- tenants and keys ----------------------------------------------------------------------------------------


def add_tenant(server: RunningServer, name: str) -> str:
    """The first key of a new tenant, which allows everything. The running server knows it when this returns."""
    return _known(server, server.must_run("tenant", "add", name)["key"]["secret"])


def add_key(server: RunningServer, tenant: str, name: str, *scopes: str, expires: str = "") -> str:
    """A new key with these scopes, known to the running server."""
    arguments = [argument for scope in scopes for argument in ("--scope", scope)]
    arguments += ["--expires", expires] if expires else []
    return _known(server, server.must_run("key", "add", tenant, name, *arguments)["secret"])


def _known(server: RunningServer, secret: str) -> str:
    """Its refusals say what is missing: first the key, then something else."""
    ends_at = time.monotonic() + WAIT_S
    while server.is_running and time.monotonic() < ends_at:
        headers = {"Authorization": f"Api-Key {secret}"}
        answer = server.request("POST", "/api/realtime/internal/notify", b"", headers)
        if "the key is wrong" not in answer.body.decode():
            break
        time.sleep(0.02)
    return secret
