"""The core of the server without its doors, on a real store: what its parts do together, seen from a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, cast

from server.arrivals import Arrivals
from server.auth import Authenticator
from server.backplane import LocalBackplane
from server.broadcaster import Broadcaster
from server.config import Limits as LimitSettings
from server.credentials import CredentialCache
from server.errors import StoreUnavailable
from server.feed import FeedServices
from server.grants import DEFAULT_TENANT
from server.guessing import Brake
from server.ids import new_id
from server.inbox import Inbox
from server.limits import Limits
from server.marks import Marks
from server.messages import Document, Notification, Publication, Recipient, now
from server.notifier import Notifier
from server.passwords import PasswordChecks, hash_password
from server.presence import Presence
from server.rooms import Room, Rooms
from server.session import Session, SessionServices
from server.store import SignOutPage, Store
from server.store.sqlite import SQLiteStore
from server.sync import KeepsAll, Sync
from server.tasks import Tasks
from server.tenants import Tenants
from server.tokens.own import OwnTokens
from server.tokens.resume import ResumeTickets
from server.users import ConfigUsers, DemoUsers
from server.wire import EventFrames
from server.wire_v2 import InboxFrames
from tests.support.recording import RecordingConnection

ALICE: Room = (DEFAULT_TENANT, "alice")
BOB: Room = (DEFAULT_TENANT, "bob")

USERS = {"carol": hash_password("carol's secret")}

UNLIMITED = LimitSettings(commands_per_connection=None, commands_per_user=None)
"""Tests send commands as fast as they can."""

PAGE_LIMIT = 10
MAX_QUEUE_BYTES = 2000
MAX_PENDING = 8
MAX_PENDING_BYTES = 10_000


class Gate:
    """Where answers of a store wait, until it is opened. `loses_cancellation`: the first who is cancelled here goes on,
    as in a library that drops a cancellation which comes in the same turn as an answer."""

    def __init__(self, *, loses_cancellation: bool = False) -> None:
        self._loses_cancellation = loses_cancellation
        self.has_lost = asyncio.Event()
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def reached(self) -> None:
        """Return when an answer waits here."""
        async with asyncio.timeout(30):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self._reached.set()
        try:
            await self._opened.wait()
        except asyncio.CancelledError:
            if not self._loses_cancellation or self.has_lost.is_set():
                raise
            self.has_lost.set()


class FragileStore:
    """A real store whose verbs fail, or answer late, on command."""

    def __init__(self, store: Store) -> None:
        self.failure: Exception | None = None
        """What every verb raises instead of being carried out."""
        self.calls: list[str] = []
        """The verbs asked for, failed ones too."""
        self.rows: list[int] = []
        """How many sign-outs each page had that was read."""
        self.failed: asyncio.Queue[str] = asyncio.Queue()
        """The verbs that failed."""
        self.delay: Callable[[], Awaitable[None]] | None = None
        """Awaited between the carrying out of a verb and its answer."""
        self._store = store
        self._gates: dict[str, Gate] = {}

    def goes_away(self) -> None:
        self.failure = StoreUnavailable()

    def is_back(self) -> None:
        self.failure = None

    def hold(self, verb: str, *, loses_cancellation: bool = False) -> Gate:
        """Let the answers of this verb wait: it is carried out at once, and so its answer grows stale."""
        self._gates[verb] = Gate(loses_cancellation=loses_cancellation)
        return self._gates[verb]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if iscoroutinefunction(found):
            return self._fragile(name, found)
        # What answers from memory does not fail.
        return found if callable(found) or isinstance(found, str | float) else _Part(self, found)

    def _fragile(self, verb: str, carry_out: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(verb)
            if self.failure is not None:
                self.failed.put_nowait(verb)
                raise self.failure
            answer = await carry_out(*arguments, **options)
            if isinstance(answer, SignOutPage):
                self.rows.append(len(answer.sign_outs))
            if verb in self._gates:
                await self._gates[verb].pass_through()
            if self.delay is not None:
                await self.delay()
            return answer

        return call


class _Part:
    """A part of such a store, as `store.deliveries`."""

    def __init__(self, store: FragileStore, part: object) -> None:
        self._store = store
        self._part = part

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        return self._store._fragile(verb, getattr(self._part, verb))


@dataclass
class Core:
    """The parts, wired as app.py wires them. `store` may be told to fail."""

    store: FragileStore
    rooms: Rooms
    backplane: LocalBackplane
    presence: Presence
    notifier: Notifier
    inbox: Inbox
    tenants: Tenants
    tokens: OwnTokens
    limits: Limits
    tasks: Tasks
    services: SessionServices
    broadcaster: Broadcaster
    marks: Marks
    feeds: FeedServices

    def connect(self, connection: RecordingConnection | None = None) -> RecordingConnection:
        """A client has connected: the connection, with its session."""
        connection = connection or RecordingConnection()
        connection.session = Session(connection, self.services)
        return connection

    async def join(self, login: str, connection: RecordingConnection | None = None) -> RecordingConnection:
        """A demo user with nothing unseen has joined, and read the welcome."""
        connection = connection or self.connect()
        command(connection, "join", {"login": login, "password": login})
        while (await connection.next()).name != "count":
            pass
        return connection

    async def notify(self, *users: str, **fields: Any) -> list[Document]:
        """Notify these users, and wait until their connections have heard of it."""
        stored = await self.notifier.notify(publication(*users, **fields))
        await self.backplane.flushed()
        return stored.documents

    async def fill(self, user: str, count: int) -> list[Document]:
        """So many unseen documents, stored one after the other and told to nobody."""
        documents: list[Document] = []
        for start in range(0, count, 1000):
            stored = (
                self.store.add(notification(content=str(number)), [Recipient(user)], None)
                for number in range(start, min(start + 1000, count))
            )
            documents += [document for each in await asyncio.gather(*stored) for document in each.documents]
        return sorted(documents, key=lambda document: (document.created_at, document.id))


@asynccontextmanager
async def open_core(folder: Path, limits: LimitSettings = UNLIMITED) -> AsyncIterator[Core]:
    """A core on an embedded store in this folder."""
    sqlite = SQLiteStore(folder / "notifications.sqlite3")
    await sqlite.open()
    try:
        async with core_on(sqlite, limits) as core:
            yield core
    finally:
        await sqlite.close()


@asynccontextmanager
async def core_on(opened: Store, limits: LimitSettings = UNLIMITED) -> AsyncIterator[Core]:
    """A core on an open store."""
    store = FragileStore(opened)
    port = cast("Store", store)
    tenants, tokens = Tenants(lambda: opened.directory), OwnTokens()
    await tenants.open()
    tokens.use(tenants.secrets)
    cache = CredentialCache(300, 100)
    rooms, tasks, checks = Rooms(), Tasks(), PasswordChecks(workers=2, max_waiting=10, cache=cache)
    users = ConfigUsers(USERS, checks)
    tenants.use_passwords(users.key_ids)
    backplane = LocalBackplane(rooms)
    presence = Presence(rooms, backplane, heartbeat_s=25)
    inbox = Inbox(port, backplane)
    counted = Limits(limits)
    broadcaster = Broadcaster(port, backplane, rooms, tenants)
    marks = Marks(lambda: port.deliveries)
    services = SessionServices(
        authenticator=Authenticator(
            [DemoUsers(users), users],
            [tokens],
            tenants,
            default_tenant=DEFAULT_TENANT,
            cache=cache,
            brake=Brake(100),
        ),
        tickets=ResumeTickets(tokens),
        tenants=tenants,
        limits=counted,
        inbox=inbox,
        sync=Sync(port, KeepsAll()),
        broadcaster=broadcaster,
        rooms=rooms,
        tasks=tasks,
        dialect=EventFrames(),
        dialect_v2=InboxFrames(),
        page_limit=PAGE_LIMIT,
        max_queue_bytes=MAX_QUEUE_BYTES,
        max_pending=MAX_PENDING,
        max_pending_bytes=MAX_PENDING_BYTES,
        heartbeat_s=25.0,
        arrivals=Arrivals(),
    )
    feeds = FeedServices(
        tenants=tenants,
        limits=counted,
        rooms=rooms,
        tasks=tasks,
        store=port,
        inbox=inbox,
        marks=marks,
        broadcaster=broadcaster,
        sync=services.sync,
        max_queue_bytes=MAX_QUEUE_BYTES,
        heartbeat_s=25.0,
        arrivals=services.arrivals,
    )
    try:
        yield Core(
            store=store,
            rooms=rooms,
            backplane=backplane,
            presence=presence,
            notifier=Notifier(port, backplane, presence, lambda tenant: True),
            inbox=inbox,
            tenants=tenants,
            tokens=tokens,
            limits=counted,
            tasks=tasks,
            services=services,
            broadcaster=broadcaster,
            marks=marks,
            feeds=feeds,
        )
    finally:
        await tasks.cancel()
        await services.authenticator.close()
        checks.close()


def notification(content: str = "", **fields: Any) -> Notification:
    return Notification(new_id(), DEFAULT_TENANT, now(), content, **fields)


def publication(*users: str, **fields: Any) -> Publication:
    """For these users, all without an address."""
    return Publication(notification(**fields), tuple(Recipient(user) for user in users))


def command(connection: RecordingConnection, name: str, data: Any = None) -> Awaitable[None] | None:
    """The client sends a command."""
    assert connection.session is not None
    return connection.session.receive(json.dumps({"name": name, "data": data}))
