"""Published by each way, received by each way: what comes is what CONTRACTS.md's table of the canonical notification
says.

A further way is a line in `PUBLISHERS` or `RECEIVERS`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from notification_client import Client

from tests.support import browser
from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.event_streams import Event, event_stream
from tests.support.feeds import (
    SETTINGS,
    WAIT_S,
    add_key,
    broadcast,
    hub_path,
    internal,
    listening,
    metrics,
    publish_to_rabbitmq,
    send,
    service_path,
    submit,
    tenant_path,
    user_token,
)
from tests.support.processes import wait_until
from tests.support.rabbitmq import RabbitMQServer
from tests.support.realtime import stock_client
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer
from tests.support.sockjs_clients import FramedClient

TEXTS = ("type", "title", "content", "url", "icon", "image")


@dataclass(frozen=True)
class Place:
    """A server, and what others need to reach it. `key`: to listen, of the tenant `default`; `redis` and `amqp_url`:
    from where it fetches."""

    server: RunningServer
    key: str
    redis: RedisServer
    amqp_url: str


@dataclass(frozen=True)
class Canonical:
    """What a notification is, however it was published: its texts that are not empty, and its data."""

    texts: Mapping[str, str]
    data: Any = None

    @property
    def payload(self) -> Any:
        """As the table has it for CONTRACT C2 and C3."""
        return dict(self.texts) if self.data is None else self.data


Publish = Callable[[Place, str], Awaitable[None]]
"""For this user; it is stored when this returns."""


@dataclass(frozen=True)
class Publisher:
    """A way to publish something, and what that is. `is_for_all`: not for a user, but for the whole tenant."""

    publish: Publish
    expected: Canonical
    is_for_all: bool = False


# -- publishing ----------------------------------------------------------------------------------------------

ALL_TEXTS = {
    "type": "order",
    "title": "Títle",
    "content": 'it said "é"\n\u2028\U0001f600',
    "url": "https://example.org/?a=1&b=2",
    "icon": "i.png",
    "image": "p.png",
}
OBJECT = {
    "type": "booking",
    "title": "New Order",
    "message": "You have é",
    "link": "https://example.org/",
    "icon": "i.png",
    "image": "p.png",
    "more": {"n": [1, 2.5, None, True, 10**20], "$ref": "\x00", "a.b": {}},
}
LIFTED = {
    "title": "New Order",
    "content": "You have é",
    "url": "https://example.org/",
    "icon": "i.png",
    "image": "p.png",
}


PREFERENCES = {
    "title": 5,
    "body": "third",
    "message": "second",
    "content": "first",
    "link": "second",
    "url": "first",
}
PREFERRED = {"content": "first", "url": "first"}


async def by_form(place: Place, user: str) -> None:
    submit(place.server, user, ALL_TEXTS)


async def by_json_with_least(place: Place, user: str) -> None:
    place.server.must_notify(user, content="only this")


def by_hub(message: Any) -> Publish:
    async def publish(place: Place, user: str) -> None:
        assert place.redis.publish(f"user_noti:{user}", json.dumps(message)) == 1
        # Redis does not say what becomes of it.
        async with asyncio.timeout(WAIT_S):
            while not await unseen(place, user):
                pass

    return publish


async def unseen(place: Place, user: str) -> list[dict[str, Any]]:
    async with SocketClient(place.server) as client:
        return await client.join_by_token(user_token(user))


def by_service(payload: Any) -> Publish:
    async def publish(place: Place, user: str) -> None:
        send(place.server, user, payload)

    return publish


async def by_queue(place: Place, user: str) -> None:
    await asyncio.to_thread(publish_to_rabbitmq, place.amqp_url, user, OBJECT)


async def by_call(place: Place, user: str) -> None:
    with Client(place.server.url) as client:
        client.notify_user_by_id(user, OBJECT)


def by_internal(payload: Mapping[str, Any]) -> Publish:
    async def publish(place: Place, user: str) -> None:
        internal(place.server, [user], payload)

    return publish


def by_broadcast(**data: Any) -> Publish:
    async def publish(place: Place, user: str) -> None:
        broadcast(place.server, "T", "M", **data)

    return publish


PUBLISHERS: dict[str, Publisher] = {
    "C1": Publisher(by_form, Canonical(ALL_TEXTS)),
    "C1 least": Publisher(by_json_with_least, Canonical({"content": "only this"})),
    "C2": Publisher(
        by_hub({"type": "order", "payload": OBJECT}), Canonical({"type": "order", **LIFTED}, OBJECT)
    ),
    "C2 text": Publisher(by_hub({"type": "order", "payload": "text"}), Canonical({"type": "order"}, "text")),
    "C2 no type": Publisher(by_hub({"payload": PREFERENCES}), Canonical(PREFERRED, PREFERENCES)),
    "C2 no payload": Publisher(by_hub({"type": "order"}), Canonical({"type": "order"})),
    "C3": Publisher(by_service(OBJECT), Canonical({"type": "notification", **LIFTED}, OBJECT)),
    "C3 list": Publisher(
        by_service(["no", {"title": "not lifted"}]),
        Canonical({"type": "notification"}, ["no", {"title": "not lifted"}]),
    ),
    "C3 text": Publisher(by_service("text"), Canonical({"type": "notification"}, "text")),
    "C3 false": Publisher(by_service(False), Canonical({"type": "notification"}, False)),
    "C3 queue": Publisher(by_queue, Canonical({"type": "notification", **LIFTED}, OBJECT)),
    "C3 call": Publisher(by_call, Canonical({"type": "notification", **LIFTED}, OBJECT)),
    "C4": Publisher(by_internal(OBJECT), Canonical({"type": "booking", **LIFTED}, OBJECT)),
    "C4 no type": Publisher(
        by_internal({"body": "B"}), Canonical({"type": "notification", "content": "B"}, {"body": "B"})
    ),
    "C5": Publisher(
        by_broadcast(data={"type": "alert", "title": "not lifted"}),
        Canonical({"type": "alert", "title": "T", "content": "M"}, {"type": "alert", "title": "not lifted"}),
        is_for_all=True,
    ),
    "C5 list": Publisher(
        by_broadcast(data=[{"type": "no"}]),
        Canonical({"title": "T", "content": "M"}, [{"type": "no"}]),
        is_for_all=True,
    ),
    "C5 no data": Publisher(by_broadcast(), Canonical({"title": "T", "content": "M"}), is_for_all=True),
}


# -- receiving -----------------------------------------------------------------------------------------------

Receive = Callable[[], Awaitable[Any]]
"""The next message that brings a notification."""

Open = Callable[[Place, str], AbstractAsyncContextManager[Receive]]
"""A client of this user, while it is connected."""


@dataclass(frozen=True)
class Receiver:
    """A way to listen. `check`: a message against what was published for this user. `is_for_all_only`: hears of nothing
    else. `waits`: what was missed comes at the next connect. `goes_silently`: the server has yet to find out that it is
    gone."""

    open: Open
    check: Callable[[Any, Canonical, str], None]
    is_for_all_only: bool = False
    waits: bool = True
    goes_silently: bool = False


def on_screen(kind: type[SocketClient]) -> Open:
    @asynccontextmanager
    async def listen(place: Place, user: str) -> AsyncIterator[Receive]:
        async with kind(place.server) as client:
            waited = await client.join_by_token(user_token(user))

            async def receive() -> Any:
                if waited:
                    return waited.pop(0)
                [document] = await client.next("notification")
                return document

            yield receive

    return listen


@asynccontextmanager
async def on_hub(place: Place, user: str) -> AsyncIterator[Receive]:
    async with listening(place.server, hub_path(user)) as client:
        yield client.frame


@asynccontextmanager
async def on_service(place: Place, user: str) -> AsyncIterator[Receive]:
    async with listening(place.server, service_path(user)) as client:

        async def receive() -> Any:
            frame = await client.frame()
            await client.say({"type": "message_ack", "key": frame["key"]})
            return frame

        yield receive


@asynccontextmanager
async def on_realtime(place: Place, user: str) -> AsyncIterator[Receive]:
    browser.node_modules()
    async with stock_client(place.server, user_token(user), transports=["websocket"]) as client:
        await client.until("connect")

        async def receive() -> Any:
            return (await client.until("event"))[1:]

        yield receive


@asynccontextmanager
async def on_events(place: Place, user: str) -> AsyncIterator[Receive]:
    async with event_stream(place.server, user) as stream:
        *waited, _ = await stream.caught_up()

        async def receive() -> Any:
            if waited:
                return waited.pop(0)
            while (event := await stream.event()) is not None and event.name == "count":
                pass
            return event

        yield receive


@asynccontextmanager
async def on_tenant(place: Place, user: str) -> AsyncIterator[Receive]:
    async with listening(place.server, tenant_path(place.key)) as client:
        yield client.frame


def is_recent(text: str) -> bool:
    """RFC 3339 in UTC, of a moment ago."""
    at = datetime.fromisoformat(text)
    return text.endswith("Z") and datetime.now(UTC) - timedelta(minutes=5) < at <= datetime.now(UTC)


def check_document(document: Any, expected: Canonical, user: str) -> None:
    """CONTRACT C1: the document; `data` where it is not null."""
    document = dict(document)
    for name in ("_id", "nid", "rev"):
        assert document.pop(name)
    for name in ("createdAt", "updatedAt"):
        assert is_recent(document.pop(name))
    rest = {"_userId": user, "deletedAt": None, "delete": False, "seen": False}
    data = {} if expected.data is None else {"data": expected.data}
    assert document == dict.fromkeys(TEXTS, "") | expected.texts | rest | data


def check_hub(frame: Any, expected: Canonical, user: str) -> None:
    """CONTRACT C2."""
    assert is_recent(frame.pop("timestamp"))
    assert frame == {"type": expected.texts.get("type", "notification"), "payload": expected.payload}


def check_service(frame: Any, expected: Canonical, user: str) -> None:
    """CONTRACT C3."""
    assert len(frame.pop("key")) == 24
    assert frame == {"type": "server_notification", "value": expected.payload}


def check_realtime(message: Any, expected: Canonical, user: str) -> None:
    """CONTRACT C4: always an object."""
    payload = expected.payload
    assert message == [
        "notification:new",
        payload if isinstance(payload, dict) else {"value": payload},
    ]


def check_event(event: Event, expected: Canonical, user: str) -> None:
    """The document of CONTRACT C1; pushed, with its rev to come back with."""
    assert (event.name, event.id) in [("notification", event.data["rev"]), ("notification", None)]
    check_document(event.data, expected, user)


def check_tenant(frame: Any, expected: Canonical, user: str) -> None:
    """CONTRACT C5."""
    assert is_recent(frame.pop("created_at"))
    texts = expected.texts
    data = {} if expected.data is None else expected.data
    assert frame == {"title": texts["title"], "message": texts["content"], "data": data}


RECEIVERS: dict[str, Receiver] = {
    "C1": Receiver(on_screen(FramedClient), check_document),
    "C1 raw": Receiver(on_screen(SocketClient), check_document),
    "C2": Receiver(on_hub, check_hub),
    "C3": Receiver(on_service, check_service),
    "C4": Receiver(on_realtime, check_realtime, goes_silently=True),
    "C5": Receiver(on_tenant, check_tenant, is_for_all_only=True, waits=False),
    "SSE": Receiver(on_events, check_event),
}

MARK = Publisher(by_internal({"type": "mark"}), Canonical({"type": "mark"}, {"type": "mark"}))
MARK_FOR_ALL = PUBLISHERS["C5 no data"]
"""What comes next shows by coming that nothing else came before. Of those that are for all, as few as will do: each is
stored for everybody who was ever here."""


# -- the table -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=STORES)
def place(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    rabbitmq: RabbitMQServer,
) -> Iterator[Place]:
    """With the names in the brokers that the contracts have."""
    with store_settings(request.param, request) as store, virtual_host(rabbitmq) as amqp_url:
        brokers = {"NOTIFY_REDIS_HUB_URL": redis_server.url(), "NOTIFY_RABBITMQ_URL": amqp_url}
        with RunningServer(tmp_path_factory.mktemp("cross"), **SETTINGS, **brokers, **store) as server:
            key = add_key(server, "default", "listening", "listen")
            for broker in ("Redis", "RabbitMQ"):
                said = f"consuming from {broker}"
                wait_until(lambda said=said: said in server.log, said)
            yield Place(server, key, redis_server, amqp_url)


@contextmanager
def virtual_host(rabbitmq: RabbitMQServer) -> Iterator[str]:
    """The address of one of this module's own."""
    name = f"cross-{uuid4().hex[:8]}"
    rabbitmq.control("add_vhost", name)
    rabbitmq.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    yield rabbitmq.url + name
    rabbitmq.control("delete_vhost", name)


@pytest.mark.parametrize("is_away", [False, True], ids=["connected", "away"])
@pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS.keys())
@pytest.mark.parametrize("publisher", PUBLISHERS.values(), ids=PUBLISHERS.keys())
async def test_published_by_each_way_it_reaches_each_way(
    place: Place, publisher: Publisher, receiver: Receiver, is_away: bool
) -> None:
    """Exactly as the contract of the receiver has it, once, whether the user is connected or comes later; who has no
    user hears of what is for everybody, while connected."""
    user = f"user-{uuid4().hex}"
    comes = receiver.waits if is_away else publisher.is_for_all or not receiver.is_for_all_only
    # Whoever is to get what they missed, or what is for everybody, has been here before.
    async with receiver.open(place, user) as receive:
        if not is_away:
            await publisher.publish(place, user)
            await check_next(place, receive, receiver, publisher if comes else None, user)
    if is_away:
        if receiver.goes_silently:
            await asyncio.to_thread(wait_until, lambda: is_nobody_here(place), "the client being gone")
        await publisher.publish(place, user)
        async with receiver.open(place, user) as receive:
            await check_next(place, receive, receiver, publisher if comes else None, user)


def is_nobody_here(place: Place) -> bool:
    return bool(place.server.get("/health").json()["websocket"]["active_connections"] == 0)


async def check_next(
    place: Place, receive: Receive, receiver: Receiver, publisher: Publisher | None, user: str
) -> None:
    """The next message is of that publisher (None: there is none), and nothing comes with it."""
    if publisher is not None:
        receiver.check(await receive(), publisher.expected, user)
    mark = MARK_FOR_ALL if receiver.is_for_all_only else MARK
    await mark.publish(place, user)
    receiver.check(await receive(), mark.expected, user)


def test_the_figures_name_both_brokers(place: Place) -> None:
    """How much of each waits to be stored, with both of them configured."""
    for broker in ("redis", "rabbitmq"):
        assert f'notification_queue_depth{{queue="{broker}"}} 0.0' in metrics(place.server)
