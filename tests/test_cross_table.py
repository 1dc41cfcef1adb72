"""Published by each way, received by each way: what comes is what CONTRACTS.md's table of the canonical notification
says.

A further way is a line in `PUBLISHERS` or `RECEIVERS`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.feeds import (
    SETTINGS,
    add_key,
    broadcast,
    hub_path,
    internal,
    listening,
    send,
    service_path,
    tenant_path,
    user_token,
)
from tests.support.running_server import RunningServer

TEXTS = ("type", "title", "content", "url", "icon", "image")


@dataclass(frozen=True)
class Place:
    """A server, and what clients need to come in there. `key`: to listen, of the tenant `default`."""

    server: RunningServer
    key: str


@dataclass(frozen=True)
class Canonical:
    """What a notification is, however it was published: its texts that are not empty, and its data."""

    texts: Mapping[str, str]
    data: Any = None

    @property
    def payload(self) -> Any:
        """As the table has it for CONTRACT C2 and C3."""
        return dict(self.texts) if self.data is None else self.data


@dataclass(frozen=True)
class Publisher:
    """A way to publish, what it is given, and what that is. `is_for_all`: not for a user, but for the whole tenant."""

    publish: Callable[[Place, str], Awaitable[None]]
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


async def by_notify(place: Place, user: str) -> None:
    place.server.must_notify(user, **ALL_TEXTS)


async def by_notify_with_least(place: Place, user: str) -> None:
    place.server.must_notify(user, content="only this")


async def by_service(place: Place, user: str) -> None:
    send(place.server, user, OBJECT)


async def by_service_with_list(place: Place, user: str) -> None:
    send(place.server, user, ["no", {"title": "not lifted"}])


async def by_service_with_text(place: Place, user: str) -> None:
    send(place.server, user, "text")


async def by_internal(place: Place, user: str) -> None:
    internal(place.server, [user], OBJECT)


async def by_internal_without_type(place: Place, user: str) -> None:
    internal(place.server, [user], {"body": "B"})


async def by_broadcast(place: Place, user: str) -> None:
    broadcast(place.server, "T", "M", data={"type": "alert", "priority": "high"})


async def by_broadcast_without_data(place: Place, user: str) -> None:
    broadcast(place.server, "T", "M")


PUBLISHERS: dict[str, Publisher] = {
    "C1": Publisher(by_notify, Canonical(ALL_TEXTS)),
    "C1 least": Publisher(by_notify_with_least, Canonical({"content": "only this"})),
    "C3": Publisher(by_service, Canonical({"type": "notification", **LIFTED}, OBJECT)),
    "C3 list": Publisher(
        by_service_with_list, Canonical({"type": "notification"}, ["no", {"title": "not lifted"}])
    ),
    "C3 text": Publisher(by_service_with_text, Canonical({"type": "notification"}, "text")),
    "C4": Publisher(by_internal, Canonical({"type": "booking", **LIFTED}, OBJECT)),
    "C4 no type": Publisher(
        by_internal_without_type, Canonical({"type": "notification", "content": "B"}, {"body": "B"})
    ),
    "C5": Publisher(
        by_broadcast,
        Canonical({"type": "alert", "title": "T", "content": "M"}, {"type": "alert", "priority": "high"}),
        is_for_all=True,
    ),
    "C5 no data": Publisher(
        by_broadcast_without_data, Canonical({"title": "T", "content": "M"}), is_for_all=True
    ),
}


# -- receiving -----------------------------------------------------------------------------------------------

Receive = Callable[[], Awaitable[Any]]
"""The next message that brings a notification."""


@dataclass(frozen=True)
class Receiver:
    """A way to listen. `check`: a message against what was published for this user. `is_for_all_only`: hears of nothing
    else. `waits`: what was missed comes at the next connect."""

    open: Callable[[Place, str], AbstractAsyncContextManager[Receive]]
    check: Callable[[Any, Canonical, str], None]
    is_for_all_only: bool = False
    waits: bool = True


@asynccontextmanager
async def on_screen(place: Place, user: str) -> AsyncIterator[Receive]:
    async with SocketClient(place.server) as client:
        waited = await client.join_by_token(user_token(user))

        async def receive() -> Any:
            if waited:
                return waited.pop(0)
            [document] = await client.next("notification")
            return document

        yield receive


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


def check_tenant(frame: Any, expected: Canonical, user: str) -> None:
    """CONTRACT C5."""
    assert is_recent(frame.pop("created_at"))
    texts = expected.texts
    data = {} if expected.data is None else expected.data
    assert frame == {"title": texts["title"], "message": texts["content"], "data": data}


RECEIVERS: dict[str, Receiver] = {
    "C1": Receiver(on_screen, check_document),
    "C2": Receiver(on_hub, check_hub),
    "C3": Receiver(on_service, check_service),
    "C5": Receiver(on_tenant, check_tenant, is_for_all_only=True, waits=False),
}

MARK = Publisher(by_broadcast_without_data, Canonical({"title": "T", "content": "M"}), is_for_all=True)
"""What comes to everybody, and so shows that nothing else came before."""


# -- the table -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=STORES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with store_settings(request.param, request) as store:
        with RunningServer(tmp_path_factory.mktemp("cross"), **SETTINGS, **store) as server:
            yield Place(server, add_key(server, "default", "listening", "listen"))


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
        await publisher.publish(place, user)
        async with receiver.open(place, user) as receive:
            await check_next(place, receive, receiver, publisher if comes else None, user)


async def check_next(
    place: Place, receive: Receive, receiver: Receiver, publisher: Publisher | None, user: str
) -> None:
    """The next message is of that publisher (None: there is none), and nothing comes with it."""
    if publisher is not None:
        receiver.check(await receive(), publisher.expected, user)
    await MARK.publish(place, user)
    receiver.check(await receive(), MARK.expected, user)
