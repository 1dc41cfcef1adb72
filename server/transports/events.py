"""`/events`: Server-Sent Events (HTML Living Standard, 9.2), for pages and for whoever can read lines.

The stream is written past Tornado, straight to the socket, as frames of a WebSocket are (`connections`). To HTTP/1.1 it
goes in chunks, whose length is part of the bytes that are encoded once for all clients; to HTTP/1.0, which is what
nginx speaks unless told otherwise, it goes bare until the connection closes. Either way the TCP connection ends with
the stream: what a client sends behind its request is for nobody.

A client that uses `fetch` sends its token in the header `Authorization`. No token is taken from the query, because
queries end up in logs and histories. The browser's own `EventSource` cannot set headers, so it comes with a ticket
(`tickets`), which is good for one connection. So it cannot come back by itself: its page asks for the next ticket, and
says in the query what is in the header `Last-Event-ID` otherwise.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from tornado.iostream import IOStream

from server.auth import Identity, sign_in_of
from server.callers import Caller
from server.dialects import StreamDialect
from server.errors import BadCredentials, InvalidInput, ServerError, TokenExpired
from server.inbox_feed import InboxFeed
from server.messages import now
from server.revs import from_wire
from server.rooms import Connection
from server.stream_feed import StreamFeed
from server.transports import connections
from server.transports.connections import ClientSession, StreamedConnection, tune_socket
from server.transports.feeds import FeedDoors
from server.transports.registry import Connections
from server.transports.tickets import LIFETIME_S, Tickets
from server.transports.user_requests import UserRequest
from server.wire import CloseReason, Frame

RETRY_MS = (2_000, 6_000)
"""Between what a client waits before it comes back: not all at the same time after a restart."""

GOODBYE_S = 5.0
"""How long what is queued, and the goodbye behind it, may take to leave."""

HEARTBEAT = Frame(":\n\n")
"""A comment, which no client tells its page of."""


# -- the connection ------------------------------------------------------------------------------------------


def chunk_bytes(text: str) -> bytes:
    """A chunk (RFC 9112 section 7.1)."""
    data = text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def bare_bytes(text: str) -> bytes:
    return text.encode()


class EventsConnection(StreamedConnection):
    """A client that reads a response without an end, over HTTP/1.1."""

    __slots__ = ()

    encode = staticmethod(chunk_bytes)
    end_bytes = b"0\r\n\r\n"

    def __init__(self, registry: Connections, transport: str, caller: Caller, stream: IOStream) -> None:
        super().__init__(registry, transport, caller, stream)
        stream.set_close_callback(self.lost)
        # Reading is how the end is seen. There is nothing to read: with the first byte the connection is over.
        asyncio.ensure_future(stream.read_bytes(1, partial=True)).add_done_callback(self._on_read)

    def _on_read(self, future: asyncio.Future[bytes]) -> None:
        if future.cancelled() or future.exception() is None:
            self._stream.close()

    def heartbeat(self, now: float) -> None:
        # The client has no words. What its kernel has confirmed, or that of a proxy, is all the life it shows.
        if connections.is_acknowledged(self._stream):
            self.last_alive_at = now
        super().heartbeat(now)

    def _send_heartbeat(self) -> None:
        self._write(HEARTBEAT.encoded(self.encode))

    def close(self, reason: CloseReason) -> None:
        if not self._end(reason) or self._stream.closed():
            return
        goodbye = StreamDialect.goodbye(reason.code, reason.reason)
        left = self._stream.write(goodbye.encoded(self.encode) + self.end_bytes)
        deadline = asyncio.get_running_loop().call_later(GOODBYE_S, self._stream.close)

        def end(_: asyncio.Future[None]) -> None:
            deadline.cancel()
            self._stream.close()

        left.add_done_callback(end)


class BareEventsConnection(EventsConnection):
    """The same over HTTP/1.0."""

    __slots__ = ()

    encode = staticmethod(bare_bytes)
    end_bytes = b""


# -- the requests --------------------------------------------------------------------------------------------


class EventsRequest(UserRequest):
    """A request to this door."""

    door = "events"
    allowed_headers = "Authorization, Last-Event-ID, Cache-Control, Content-Type"

    def initialize(self, doors: FeedDoors, tickets: Tickets) -> None:  # type: ignore[override]  # what its routes give it
        super().initialize(doors)
        self._tickets = tickets


class EventsHandler(EventsRequest):
    """The stream."""

    async def who(self) -> Identity:
        token, ticket = self._bearer(), self.query_text("ticket")
        if token is None and ticket is not None:
            identity = self._tickets.redeem(ticket)
        else:
            identity = await self._of_token(token, "a token is needed: Authorization: Bearer …, or ?ticket=…")
        self._check_place(identity)
        return identity

    def _check_place(self, identity: Identity) -> None:
        """Refuse now whom the feed would send away at once: an answer says it better than a stream that ends."""
        services, room = self.doors.services, (identity.tenant, identity.user_id)
        if identity.expires_at is not None and identity.expires_at <= now():
            raise TokenExpired
        if services.tenants.why_over(room, sign_in_of(identity)) is not None:
            raise BadCredentials("the token does not count any more; get a new one")
        services.limits.join_user(room)
        services.limits.leave_user(room)

    def _open_feed(self) -> Callable[[Connection], ClientSession]:
        """The session of a client that speaks the dialect which the query names. Raises `InvalidInput`."""
        services, identity = self.doors.services, self.identity
        said = self.request.headers.get("Last-Event-ID") or self._field("last_event_id")
        version = self._field("v") or "1"
        if version == "1":
            since = from_wire(said or "")
            return lambda opened: StreamFeed(opened, services, identity, since)
        if version != "2":
            raise InvalidInput("v", "known are 1 and 2")
        # What a browser says that comes back by itself is newer than the address that its page made.
        place = said or self._field("since")
        return lambda opened: InboxFeed(opened, services, identity, place)

    def _field(self, name: str) -> str | None:
        """As `query_text`, of what is no credential: another one would not help. Raises `InvalidInput`."""
        try:
            return self.query_text(name)
        except BadCredentials:
            raise InvalidInput(name, "not UTF-8") from None

    def get(self) -> None:
        try:
            open_feed = self._open_feed()
        except ServerError as error:
            self.refuse(error)
            return
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("Connection", "close")
        self.write(f"retry: {random.randint(*RETRY_MS)}\n\n")  # noqa: S311  # apart from others, no secret
        self.flush()
        self.application.log_request(self)
        stream = self.detach()
        if stream.closed():
            return
        tune_socket(stream, self.connections.give_up_after_s)
        is_chunked = self.request.version == "HTTP/1.1"
        connection_class = EventsConnection if is_chunked else BareEventsConnection
        connection = connection_class(self.connections, self.door, self.caller, stream)
        connection.open(open_feed)


class TicketHandler(EventsRequest):
    """A ticket for who shows a token."""

    methods = ("POST",)

    async def who(self) -> Identity:
        return await self._of_bearer()

    def post(self) -> None:
        try:
            ticket = self._tickets.make(self.identity)
        except ServerError as error:
            self.refuse(error)
            return
        self.answer(200, {"ticket": ticket, "expires_in": round(LIFETIME_S)})


def routes(doors: FeedDoors) -> list[tuple[Any, ...]]:
    given = {"doors": doors, "tickets": Tickets(doors.affinity)}
    return [(r"/events", EventsHandler, given), (r"/events/ticket", TicketHandler, given)]


def session_in(uri: str) -> str | None:
    """The ticket in a request for a stream."""
    path, _, query = uri.partition("?")
    return parse_qs(query).get("ticket", [""])[-1].strip() or None if path == "/events" else None
