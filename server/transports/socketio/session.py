"""Who a client is, which it says in its first packet. Of all else that it says comes nothing: it only listens."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from server.auth import Identity
from server.bus import REFUSED, tell
from server.commands import MAX_TOKEN_CHARS, JoinByToken
from server.errors import BadCredentials, NoCredentials, ServerError
from server.feed import RealtimeFeed
from server.transports.feeds import FeedDoors
from server.transports.socketio.packets import (
    CONNECT,
    DISCONNECT,
    NAMESPACE,
    Connect,
    MalformedPacket,
    connected,
    kind_of,
    parse_connect,
    refused,
)
from server.wire import CloseReason

if TYPE_CHECKING:
    from server.transports.socketio.connection import SocketIOConnection

MALFORMED = CloseReason(1002, "malformed packet")
TRY_AGAIN = CloseReason(1013, "try again later")
"""Whether the token is good cannot be said now. A client that is refused stays away; one that is cut off comes back."""


class SocketIOSession:
    """`transports.connections.ClientSession`; a `RealtimeFeed` from the moment in which the token was taken."""

    __slots__ = ("_connection", "_doors", "_feed", "_is_asking")

    def __init__(self, connection: SocketIOConnection, doors: FeedDoors) -> None:
        self._connection = connection
        self._doors = doors
        self._feed: RealtimeFeed | None = None
        # Whether it is being found out who the client is.
        self._is_asking = False

    @property
    def is_joined(self) -> bool:
        return self._feed is not None and self._feed.is_joined

    def closed(self) -> None:
        if self._feed is not None:
            self._feed.closed()

    def receive(self, text: str) -> Awaitable[None] | None:
        """A Socket.IO packet."""
        kind = kind_of(text)
        if kind == CONNECT:
            return self._connect(text)
        if not kind or self._feed is None:
            self._connection.close(MALFORMED)
        elif kind == DISCONNECT:
            self._connection.leave()
        return None

    async def _connect(self, text: str) -> None:
        try:
            connect = parse_connect(text)
        except MalformedPacket:
            self._connection.close(MALFORMED)
            return
        if connect.namespace != NAMESPACE:
            self._connection.send_packet(refused("Invalid namespace", "not_found", connect.namespace))
        elif self._feed is not None or self._is_asking:
            # The second may come while the first is looked at: by the WebSocket that a client has gone over to.
            self._connection.close(MALFORMED)
        else:
            self._is_asking = True
            try:
                await self._join(connect)
            finally:
                self._is_asking = False

    async def _join(self, connect: Connect) -> None:
        try:
            identity = await self._identify(connect)
        except ServerError as error:
            tell(REFUSED, self._doors, door=self._connection.transport, code=error.code, tenant=None)
            if error.retryable:
                self._connection.close(TRY_AGAIN)
            else:
                self._connection.send_packet(refused(str(error), error.code))
            return
        if self._connection.is_closed:
            return
        # No await from here on: the client hears that it is connected before anything else.
        feed = RealtimeFeed(self._connection, self._doors.services, identity)
        if feed.is_joined:
            self._feed = feed
            self._connection.is_connected = True
            self._connection.send_packet(connected(secrets.token_urlsafe(15)))

    async def _identify(self, connect: Connect) -> Identity:
        auth = connect.auth
        token = auth.get("token") if isinstance(auth, dict) else None
        if not token:
            raise NoCredentials("a token is needed: io(url, {auth: {token}})")
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS:
            raise BadCredentials("the token is no text, or too long")
        return await self._doors.authenticator.authenticate(JoinByToken(token), self._connection.caller)
