"""What tests of the doors that fetch have in common: a real store behind them, what they say on the bus, a lease."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from pydispatch import dispatcher

from server.backplane import LocalBackplane
from server.bus import CONSUMER_CHANGED, MESSAGE_RECEIVED, NOTIFICATION_STORED, REFUSED
from server.errors import StoreUnavailable
from server.grants import DEFAULT_TENANT
from server.ingest.consumer import Backoff, Consumer
from server.messages import Document
from server.notifier import Notifier
from server.parsers import FieldLimits
from server.presence import Presence
from server.rooms import Room, Rooms
from server.store import Store
from server.store.sqlite import SQLiteStore
from tests.support.core import FragileStore

_TIMEOUT_S = 60.0
"""The guard against a hang: RabbitMQ takes a while to start again on a busy machine."""

STOP_S = 30.0

LIMITS = FieldLimits(content_bytes=1000, field_bytes=200, data_bytes=2000)
MAX_MESSAGE_BYTES = 5000


def quickly() -> Backoff:
    """Delays that no test has to wait for."""
    return Backoff(0.02, 0.2)


@dataclass
class Behind:
    """What is behind a door: `store` may be told to fail, whoever is in `online` is, and so are the `tenants`."""

    store: FragileStore
    notifier: Notifier
    online: set[str]
    tenants: set[str]

    async def who_is_online(self, rooms: Collection[Room]) -> set[Room]:
        return {room for room in rooms if room[0] == DEFAULT_TENANT and room[1] in self.online}

    async def inbox(self, user_id: str) -> list[Document]:
        """Newest first."""
        documents: list[Document] = await self.store.newest(
            DEFAULT_TENANT, user_id, before=None, limit=10_000
        )
        return documents


@asynccontextmanager
async def open_behind(folder: Path) -> AsyncIterator[Behind]:
    """With an embedded store in this folder."""
    sqlite = SQLiteStore(folder / "notifications.sqlite3")
    await sqlite.open()
    try:
        store, rooms = FragileStore(cast("Store", sqlite)), Rooms()
        backplane = LocalBackplane(rooms)
        presence, tenants = Presence(rooms, backplane, heartbeat_s=25), {DEFAULT_TENANT}
        notifier = Notifier(cast("Store", store), backplane, presence, tenants.__contains__)
        yield Behind(store, notifier, set(), tenants)
    finally:
        await sqlite.close()


class MemoryLeases:
    """`store.Leases` of one process. `is_away`: every verb raises `StoreUnavailable`."""

    def __init__(self) -> None:
        self.is_away = False
        self.held: dict[str, tuple[str, float]] = {}
        """By name: the holder, and until when (`time.monotonic`)."""

    async def take(self, name: str, holder: str, lease_s: float) -> bool:
        self._check()
        other, until = self.held.get(name, ("", 0.0))
        if other != holder and until > time.monotonic():
            return False
        self.held[name] = holder, time.monotonic() + lease_s
        return True

    async def give_back(self, name: str, holder: str) -> None:
        self._check()
        if self.held.get(name, ("", 0.0))[0] == holder:
            del self.held[name]

    def give_to(self, name: str, holder: str) -> None:
        """Somebody else has it now, and for a long time."""
        self.held[name] = holder, time.monotonic() + 3600

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable


class Heard:
    """What a door and the notifier behind it say on the bus."""

    def __init__(self, behind: Behind, door: Consumer) -> None:
        self.received = 0
        self.refused: list[str] = []
        """The codes."""
        self.contents: list[str] = []
        """Of the notifications stored, in their order."""
        self.users: list[str] = []
        self.data: list[Any] = []
        self.is_up = False
        self.ups: list[bool] = []
        self._changed = asyncio.Event()
        self._receivers = [
            (MESSAGE_RECEIVED, self._note_received, door),
            (REFUSED, self._note_refused, door),
            (CONSUMER_CHANGED, self._note_consumer, door),
            (NOTIFICATION_STORED, self._note_stored, behind.notifier),
        ]
        self._door = door
        for signal, receiver, sender in self._receivers:
            dispatcher.connect(receiver, signal, sender=sender)

    def close(self) -> None:
        for signal, receiver, sender in self._receivers:
            dispatcher.disconnect(receiver, signal, sender=sender)

    def _note_received(self, door: str) -> None:
        assert door == self._door.door
        self.received += 1
        self._changed.set()

    def _note_refused(self, door: str, code: str, tenant: str | None) -> None:
        assert (door, tenant) == (self._door.door, "default")
        self.refused.append(code)
        self._changed.set()

    def _note_consumer(self, door: str, is_up: bool) -> None:
        assert door == self._door.door
        self.is_up = is_up
        self.ups.append(is_up)
        self._changed.set()

    def _note_stored(self, publication: Any, documents: list[Any]) -> None:
        if publication.door == self._door.door:
            self.contents.append(publication.notification.content)
            self.data.append(publication.notification.data)
            self.users += [document.user_id for document in documents]
            self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` is true; looked at after each thing said."""
        async with asyncio.timeout(_TIMEOUT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def up(self) -> None:
        await self.until(lambda: self.is_up)

    async def down(self) -> None:
        await self.until(lambda: not self.is_up)

    async def stored(self, count: int) -> None:
        await self.until(lambda: len(self.contents) >= count)

    async def refusals(self, count: int) -> None:
        await self.until(lambda: len(self.refused) >= count)

    async def got(self, count: int) -> None:
        await self.until(lambda: self.received >= count)


@asynccontextmanager
async def running(behind: Behind, door: Consumer, *, is_awaited: bool = True) -> AsyncIterator[Heard]:
    """The door consumes (or, if not awaited, tries to); stopped in order at the end."""
    heard = Heard(behind, door)
    task = asyncio.create_task(door.run())
    try:
        if is_awaited:
            await heard.up()
        yield heard
        await door.stop(STOP_S)
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        heard.close()


async def until_said(caplog: pytest.LogCaptureFixture, text: str = "") -> None:
    """Return when the door has logged this, or anything."""
    while not any(text in line for line in said(caplog)):  # noqa: ASYNC110  # a log cannot be awaited
        await asyncio.sleep(0.01)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the door has logged, at info and above."""
    return [
        record.message
        for record in caplog.records
        if record.name.startswith("server.ingest") and record.levelno >= logging.INFO
    ]
