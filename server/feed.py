"""One client that only listens: who it is was proven before its connection was opened, and it has no commands (but a
dialect may let it acknowledge). Knows no transport.

Order, per connection: the room is joined before anything is read; what waited for this client comes first, oldest
first, and pushes meanwhile wait behind it (see `screen`). When the store is away, that is read as soon as it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from server.arrivals import Arrivals
from server.auth import Identity, sign_in_of
from server.broadcaster import Broadcaster
from server.dialects import Dialect, HubDialect, RealtimeDialect, ServiceDialect, TenantDialect
from server.errors import RateLimited, StoreUnavailable
from server.feed_screen import FeedScreen, OnceScreen, Told
from server.ids import is_id
from server.inbox import Inbox
from server.limits import Limits
from server.marks import Marks, Sent
from server.messages import Added, Document, now
from server.rooms import NOBODY, REORDER_WINDOW_S, Connection, Room, Rooms, close_at
from server.store import EVENTS, HUB, SERVICE, Store
from server.sync import Sync
from server.tasks import Tasks
from server.tenants import Tenants
from server.wire import FAILED, TOO_MANY, Frame, are_all

logger = logging.getLogger(__name__)

PORTION = 100
"""Documents read at a time."""

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 10.0
"""Until the next try to read what waits for a client, while the store is away."""

MAX_ACK_CHARS = 4096
"""Of a message of a client of CONTRACT C3; what they have to say takes less than a hundred. Parsing a longer one would
cost more than it is counted for."""

Portion = tuple[Iterable[tuple[Frame, Sequence[Document]]], Document | None]
"""Frames to send, with the documents that each shows, each made when the one before has left; and, if more documents
are surely read after these, the last one of them (see `Screen.listing_waits`)."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FeedServices:
    """What all feeds share. `max_queue_bytes`: of pushes that wait behind what is read; `heartbeat_s`: what clients are
    told of it."""

    tenants: Tenants
    limits: Limits
    rooms: Rooms
    tasks: Tasks
    store: Store
    inbox: Inbox
    marks: Marks
    broadcaster: Broadcaster
    sync: Sync
    max_queue_bytes: int
    heartbeat_s: float
    arrivals: Arrivals


class Feed:
    """The session of such a client (`transports.connections.ClientSession`). To be made when the connection opens: that
    joins the room, or closes the connection with the reason why it cannot."""

    __slots__ = (
        "_expiry",
        "_is_behind",
        "_is_joined",
        "_room",
        "_screen",
        "_services",
        "_task",
        "connection",
    )

    way: str | None = None
    """The name by which the store remembers what was sent; None: it does not."""
    dialect: Dialect

    def __init__(self, connection: Connection, services: FeedServices, identity: Identity) -> None:
        self.connection = connection
        self._services = services
        self._room: Room = (identity.tenant, identity.user_id)
        screen = FeedScreen if self.way is None else OnceScreen
        self._screen = screen(connection, self.dialect, services.max_queue_bytes, self)
        if self.way is not None:
            self._screen.sent = Sent(services.marks, self.way, self._room, connection)
        self._expiry: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        # whether something was missed that no catching up has begun to make up for
        self._is_behind = False
        self._is_joined = self._join(identity)
        if self._is_joined:
            self._task = services.tasks.start(self._catch_up(), "feed")

    def _join(self, identity: Identity) -> bool:
        services, room = self._services, self._room
        sign_in = sign_in_of(identity)
        why_over = services.tenants.why_over(room, sign_in)
        if why_over is not None:
            self.connection.close(why_over)
            return False
        if room[1] != NOBODY:
            try:
                services.limits.join_user(room)
            except RateLimited:
                self.connection.close(TOO_MANY)
                return False
            services.tenants.note_user(*room)
        self._screen.sign_in = sign_in
        self._expiry = close_at(self.connection, identity.expires_at)
        self._screen.begin_answer()
        services.rooms.join(room, self._screen)
        return True

    # -- the transport's side --------------------------------------------------------------------------------
    @property
    def is_joined(self) -> bool:
        return self._is_joined

    def receive(self, text: str) -> Awaitable[None] | None:
        """What the client says; most dialects give it nothing to say."""
        return None

    def missed(self, since: datetime) -> None:
        """Events since then may not have come: what waits for this client is read again."""
        if self._is_joined and self._room[1] != NOBODY and not self._is_behind:
            self._is_behind = True
            self._task = self._services.tasks.start(self._go_back(self._task), "feed")

    async def _go_back(self, before: asyncio.Task[None] | None) -> None:
        """When that is done, make up for all that was missed until then."""
        if before is not None:
            try:
                await asyncio.wait([before])
            except asyncio.CancelledError:
                before.cancel()
                raise
        self._is_behind = False
        await self._catch_up_again()

    async def _catch_up_again(self) -> None:
        self._screen.begin_answer()
        await self._catch_up()

    def closed(self) -> None:
        """The connection is over."""
        if not self._is_joined:
            return
        self._is_joined = False
        self._services.rooms.leave(self._room, self._screen)
        if self._room[1] != NOBODY:
            self._services.limits.leave_user(self._room)
        if self._screen.sent is not None:
            self._screen.sent.end()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._task is not None:
            self._task.cancel()

    # -- what waited -----------------------------------------------------------------------------------------
    async def _catch_up(self, backlog: AsyncIterator[Portion] | None = None) -> None:
        """`backlog`: in place of `_backlog`."""
        try:
            await self._services.arrivals.to_join()
            if self._room[1] != NOBODY:
                await self._patiently(partial(self._services.broadcaster.catch_up, self._room))
            async for told, last in self._backlog() if backlog is None else backlog:
                for frame, documents in told:
                    self._screen.answer(frame, documents)
                    with self._screen.listing_waits(last):
                        await self.connection.drained()
        except Exception:
            logger.exception("what waited for a client could not be sent")
            self.connection.close(FAILED)
        finally:
            self._screen.end_answer()

    async def _backlog(self) -> AsyncIterator[Portion]:
        """What is to be sent before anything new."""
        return
        yield  # makes it one that yields nothing

    async def _unmarked(
        self, way: str, *, since: datetime | None = None, before: datetime | None = None
    ) -> AsyncIterator[Portion]:
        """The unseen documents that are not marked for this way, oldest first. `since`: only those created then or
        later; `before`: only those created before. Pushes are not left to this listing: what another connection of the
        user is sent meanwhile gets marked, and is not in it; such a push comes in its place among what is listed."""
        after, told = None, self._screen.known
        while True:
            with self._services.marks.noted(way, self._room) as noted:
                documents = await self._read_unseen(way, since, after)
            # Of an earlier listing, or pushed before this one: it need not have arrived yet.
            known = noted | told | self._screen.known
            listed = [each for each in documents if before is None or each.created_at < before]
            yield self._told_of(document for document in listed if document.id not in known), None
            if len(listed) < len(documents) or are_all(documents, PORTION):
                return
            after = documents[-1]

    async def _read_unseen(
        self, way: str | None, since: datetime | None, after: Document | None
    ) -> list[Document]:
        backlog, (tenant, user_id) = self._services.store.deliveries.backlog, self._room
        return await self._patiently(
            partial(backlog, tenant, user_id, way, since=since, after=after, limit=PORTION)
        )

    def _told_of(self, documents: Iterable[Document]) -> Iterator[tuple[Frame, Sequence[Document]]]:
        for document in documents:
            frame = self.dialect.frame(Added(document))
            if frame is not None:
                self._screen.let_pass(document)
                yield frame, (document,)

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` returns, as soon as the store is there."""
        delay_s = RETRY_FIRST_S
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await read()
            if self.connection.is_closed:
                raise asyncio.CancelledError  # the first one may have got lost: see `tasks.CANCEL_AGAIN_S`
            with self._screen.listing_waits(None):
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # apart from others, no secret
            delay_s = min(2 * delay_s, RETRY_MAX_S)


class MarkedFeed(Feed):
    """Where the store remembers for all connections of the user what need not come any more (`marked_as`: by the marks
    of which way). What an open connection has missed comes to it all the same, as every push would have: the mark may
    be by another one, on a node that could tell nobody."""

    __slots__ = ("_gap", "_told")
    marked_as: str

    def __init__(self, connection: Connection, services: FeedServices, identity: Identity) -> None:
        # since when something was missed that no catching up has begun to make up for; None: nothing was
        self._gap: datetime | None = None
        super().__init__(connection, services, identity)
        self._told = self._screen.told = Told()

    def missed(self, since: datetime) -> None:
        self._gap = since if self._gap is None else min(self._gap, since)
        super().missed(since)

    async def _catch_up_again(self) -> None:
        self._screen.begin_answer()
        gap, self._gap = self._gap or now(), None
        # Storing it may have taken so long.
        await self._catch_up(self._made_up_for(gap - timedelta(seconds=REORDER_WINDOW_S)))

    async def _owed_since(self, gap: datetime | None) -> datetime | None:
        """Nothing unmarked from before is for this client, when it connects (None) or after this gap; None: all is."""
        return None

    async def _backlog(self) -> AsyncIterator[Portion]:
        async for portion in self._unmarked(self.marked_as, since=await self._owed_since(None)):
            yield portion

    async def _made_up_for(self, gap: datetime) -> AsyncIterator[Portion]:
        """What was accepted since then, and has not come."""
        # Listed in what follows, others are remembered in their place.
        told = self._screen.known
        owed_since = await self._owed_since(gap)
        # Of what was made before, it is not known whether this connection was told; the marks say whether any was.
        known_since = max(gap, self._screen.joined_at, self._told.complete_since)
        if owed_since is None or owed_since < known_since:
            async for portion in self._unmarked(self.marked_as, since=owed_since, before=known_since):
                yield portion
        after: Document | None = None
        while True:
            documents = await self._read_unseen(None, known_since, after)
            yield self._told_of(document for document in documents if document.id not in told), None
            if are_all(documents, PORTION):
                return
            after = documents[-1]


class HubFeed(MarkedFeed):
    """CONTRACT C2: what has not been sent to this user in this dialect comes once, when they connect."""

    __slots__ = ()
    way = marked_as = HUB
    dialect = HubDialect()


class RealtimeFeed(MarkedFeed):
    """CONTRACT C4: as that of C2."""

    __slots__ = ()
    way = marked_as = EVENTS
    dialect = RealtimeDialect()


class ServiceFeed(MarkedFeed):
    """CONTRACT C3: what this user has not acknowledged comes at each connect until they have; nothing from before they
    first used this dialect."""

    __slots__ = ("_beginning",)
    marked_as = SERVICE
    dialect: ServiceDialect = ServiceDialect()

    def __init__(self, connection: Connection, services: FeedServices, identity: Identity) -> None:
        super().__init__(connection, services, identity)
        if self._is_joined:
            # A task of its own: who goes at once has used this dialect, too. From then on what is pushed is to be
            # acknowledged.
            self._beginning = services.tasks.start(self._begin(), "first use")

    async def _begin(self) -> datetime:
        """When the user first used this dialect."""
        begin = self._services.store.deliveries.begin
        return await self._patiently(partial(begin, *self._room, SERVICE, self._screen.joined_at))

    async def _owed_since(self, gap: datetime | None) -> datetime | None:
        """What was there before a gap has come, and is not marked until it is acknowledged: see `_stored_late`."""
        beginning: datetime = await asyncio.shield(self._beginning)
        return beginning if gap is None else max(beginning, gap)

    async def _made_up_for(self, gap: datetime) -> AsyncIterator[Portion]:
        async for portion in super()._made_up_for(gap):
            yield portion
        async for portion in self._stored_late(gap):
            yield portion

    async def _stored_late(self, gap: datetime) -> AsyncIterator[Portion]:
        """What was accepted before this gap, and stored since: of a long broadcast, say."""
        store, beginning = self._services.store, await asyncio.shield(self._beginning)
        # Of what was stored before this connection came, all that is owed was listed.
        after = (store.position_at(max(gap, self._screen.joined_at)), "")
        while True:
            documents = await self._patiently(partial(store.changes, *self._room, after=after, limit=PORTION))
            known = self._screen.known
            # One that has been changed may have been stored long ago.
            late = [
                each
                for each in documents
                if beginning <= each.created_at < gap
                and each.updated_at == each.created_at
                and each.id not in known
            ]
            yield self._told_of(late), None
            if are_all(documents, PORTION):
                return
            after = (documents[-1].rev, documents[-1].id)

    def receive(self, text: str) -> None:
        """`message_ack` (no answer) and the command `ping`."""
        if len(text) > MAX_ACK_CHARS:
            self.connection.send(self.dialect.error(f"the message is longer than {MAX_ACK_CHARS} characters"))
            return
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            self.connection.send(self.dialect.error("the message is not JSON"))
            return
        kind, key = (message.get("type"), message.get("key")) if isinstance(message, dict) else (None, None)
        if kind == "message_ack" and isinstance(key, str):
            if is_id(key):
                self._services.marks.note(SERVICE, self._room, (key.lower(),))
        elif kind == "command" and key == "ping":
            self.connection.send(self.dialect.pong())
        else:
            self.connection.send(
                self.dialect.error("known are message_ack with a key, and command with the key ping")
            )


class TenantFeed(Feed):
    """CONTRACT C5: what is for everybody of a tenant, for a client without a user (`rooms.NOBODY`). What it missed it
    does not get."""

    __slots__ = ()
    dialect = TenantDialect()
