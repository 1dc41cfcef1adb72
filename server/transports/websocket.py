"""WebSocket (RFC 6455) for any dialect: a message is a text frame; pings by one timer, frames straight to the socket, a
bounded queue."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from server.callers import Caller
from server.rates import TokenBucket
from server.transports.connections import ClientSession, StreamedConnection, tune_socket
from server.transports.registry import Connections
from server.transports.upgraded import UpgradedSocket
from server.wire import TOO_BIG, CloseReason

if TYPE_CHECKING:
    from server.rooms import Connection


def text_frame_bytes(text: str) -> bytes:
    """A whole text frame, from server to client: not masked (section 5.2)."""
    data = text.encode()
    size = len(data)
    if size < 126:
        return struct.pack("!BB", 0x81, size) + data
    if size < 65536:
        return struct.pack("!BBH", 0x81, 126, size) + data
    return struct.pack("!BBQ", 0x81, 127, size) + data


PING_BYTES = b"\x89\x00"

FRAMES_PER_TURN = 16
"""How many frames of one client are taken before the others get their turn."""


class PacedProtocol(WebSocketProtocol13):
    """Reads no faster than frames may come, of whatever kind: pings and endless fragments cost as much as commands, and
    no session hears of them. The rest waits at the client, for TCP lets it send no more.

    Has no attributes of its own: Tornado's fill what Python keeps for all instances together, and one more would cost
    every connection a KiB."""

    handler: WebSocketEndpoint  # the only one that makes it

    @property
    def is_amid_fragments(self) -> bool:
        """Whether a part of a message has come, and not all. Tornado has no public name for it."""
        return self._fragmented_message_buffer is not None

    def drop_if_gone(self) -> bool:
        """Whether the client has gone. Then no more is taken of what it sent, some of which may still be here."""
        if self.stream.closed():
            self._abort()
        return self.stream.closed()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if code == TOO_BIG.code:
            self.handler.connection.end_too_big()
        # Both are set where a client has gone without a word.
        if self.client_terminated and (self.close_code is not None or not self.server_terminated):
            self.handler.note_goodbye()
        super().close(code, reason)

    async def _read_bytes(self, n: int) -> bytes:
        data: bytes = await super()._read_bytes(n)
        # Of the head of a frame, as it may be: while nothing came the client may have become somebody.
        self.params.max_message_size = self.handler.message_limit
        return data

    async def _receive_frame(self) -> None:
        await super()._receive_frame()
        pause_s = self.handler.connection.note_frame()
        if pause_s is not None:
            await asyncio.sleep(pause_s)


TEXT_ONLY = CloseReason(1003, "text frames only")


class WebSocketConnection(StreamedConnection):
    """A client over WebSocket."""

    __slots__ = ("_bucket", "_frame_count", "_protocol", "_unread_bytes")

    encode = staticmethod(text_frame_bytes)

    def __init__(
        self,
        connections: Connections,
        transport: str,
        caller: Caller,
        protocol: PacedProtocol | UpgradedSocket,
    ) -> None:
        super().__init__(connections, transport, caller, protocol.stream)
        self._protocol = protocol
        self._bucket = TokenBucket()
        self._frame_count = 0
        self._unread_bytes: int | None = None

    # -- in --------------------------------------------------------------------------------------------------
    def note_frame(self) -> float | None:
        """Count a frame of the client; how many seconds not to read on for. 0: until the others had their turn."""
        self._frame_count += 1
        pause_s = self._connections.admission.pace_frame(self._bucket, self.caller)
        return pause_s if pause_s or self._frame_count % FRAMES_PER_TURN == 0 else None

    def take(self, message: str) -> Awaitable[None] | None:
        """What a text frame holds. No more is read until a returned awaitable is done."""
        return self.receive_one(message)

    def refuse_binary(self) -> None:
        """What came was no text."""
        self.close(TEXT_ONLY)

    def note_pong(self) -> None:
        """A pong is a sign of life, but not between the parts of a message, or one without an end would never be given
        up. (Amid a frame there can be none.)"""
        if not self._protocol.is_amid_fragments:
            self.last_alive_at = time.monotonic()

    def note_goodbye(self) -> None:
        """The client has said goodbye, which is not answered yet: it has read all that had arrived by then. What was on
        its way comes to a page that is closing, which looks at it no more. Of one that is gone already nobody can tell:
        mostly it has read all."""
        self._unread_bytes = 0 if self._stream.closed() else super().in_flight_bytes

    def _send_heartbeat(self) -> None:
        self._write(PING_BYTES)

    # -- out -------------------------------------------------------------------------------------------------
    @property
    def in_flight_bytes(self) -> int:
        return super().in_flight_bytes if self._unread_bytes is None else self._unread_bytes

    # -- end -------------------------------------------------------------------------------------------------
    def close(self, reason: CloseReason) -> None:
        if not self._end(reason) or self._stream.closed():
            return
        try:
            self._say_goodbye(reason)
            # Tornado gives the client 5 seconds to answer, then drops what is still queued.
            self._protocol.close(reason.code, reason.reason)
        except StreamClosedError:
            pass

    def abort(self) -> None:
        """End the connection without a word: "the server must abruptly terminate the ws connection"."""
        self._stream.close()

    def end_too_big(self) -> None:
        """The protocol refuses a message, and closes the connection for it."""
        self._end(TOO_BIG)

    def _say_goodbye(self, reason: CloseReason) -> None:
        """Write what comes before the close frame."""


TOO_OLD = "a WebSocket has to be asked for over HTTP/1.1; a proxy in between may speak 1.0"
"""HTTP/1.0 knows no upgrade (RFC 9110 section 7.8): Tornado would begin one, and close the connection at once."""


@dataclass(frozen=True, slots=True)
class NoUpgrade:
    """Why a request does not become a WebSocket."""

    status: int
    code: str
    reason: str


class WebSocketEndpoint(WebSocketHandler):
    """The request that becomes a WebSocket. A door derives from it, decides in `prepare` who may come in, and opens the
    session with `open_session`."""

    transport = ""
    """Its name, for figures."""
    connection_class = WebSocketConnection
    connection: WebSocketConnection
    connections: Connections

    def identify(self, request: HTTPServerRequest) -> Caller:
        raise NotImplementedError

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Become a WebSocket, when it is the client's turn."""
        await self.connections.arrivals.to_connect()
        await super().get(*args, **kwargs)

    def open_session(self, connection: Connection) -> ClientSession:
        """The session of a client that has just connected."""
        raise NotImplementedError

    @property
    def message_limit(self) -> int:
        """How large a message may be that is read now."""
        return self.connection.max_message_bytes

    def why_no_upgrade(self) -> NoUpgrade | None:
        """What is wrong with a request that asks for no upgrade, or not as RFC 6455 section 4.2.1 wants it; None if it
        is right. The headers that belong to the answer are set."""
        headers = self.request.headers
        if headers.get("Upgrade", "").lower() != "websocket" or self.get_websocket_protocol() is None:
            self.set_header("Upgrade", "websocket")
            self.set_header("Connection", "Upgrade")
            self.set_header("Sec-WebSocket-Version", "13")
            return NoUpgrade(
                426, "upgrade_required", "only WebSocket connections are served here, of version 13"
            )
        if self.request.version == "HTTP/1.0":
            return NoUpgrade(400, "bad_request", TOO_OLD)
        options = [option.strip().lower() for option in headers.get("Connection", "").split(",")]
        if "upgrade" not in options or not headers.get("Sec-WebSocket-Key"):
            return NoUpgrade(
                400, "bad_request", "the headers Connection and Sec-WebSocket-Key ask for no upgrade"
            )
        return None

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        stock = super().get_websocket_protocol()
        return PacedProtocol(self, False, stock.params) if isinstance(stock, WebSocketProtocol13) else stock

    @property
    def ping_interval(self) -> float:
        """None by tornado, which takes a task per connection for it: see `ClientConnection.heartbeat`."""
        return 0

    def check_origin(self, origin: str) -> bool:
        """Was decided in `prepare`, if at all."""
        return True

    def open(self, *args: str, **kwargs: str) -> None:
        protocol: PacedProtocol = self.ws_connection  # type: ignore[assignment]  # is there by now
        if protocol.drop_if_gone():
            return
        tune_socket(protocol.stream, self.connections.give_up_after_s)
        caller = self.identify(self.request)
        self.connection = self.connection_class(self.connections, self.transport, caller, protocol)
        self._forget_request()
        self.connection.open(self.open_session)

    def _forget_request(self) -> None:
        """Nobody will look at the request again, and it stays as long as the connection."""
        self.request.headers.clear()
        self.request.body = b""
        self.open_kwargs = {}

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        if isinstance(message, bytes):
            self.connection.refuse_binary()
            return None
        return self.receive(message)

    def receive(self, message: str) -> Awaitable[None] | None:
        """Take what a text frame holds."""
        return self.connection.take(message)

    def on_pong(self, data: bytes) -> None:
        self.connection.note_pong()

    def note_goodbye(self) -> None:
        """The client has said goodbye, which is not answered yet."""
        if hasattr(self, "connection"):  # else it left while it was being looked at
            self.connection.note_goodbye()

    def on_close(self) -> None:
        if hasattr(self, "connection"):
            self.connection.lost()
