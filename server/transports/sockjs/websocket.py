"""The WebSocket transports: `…/websocket` with SockJS framing, and the raw one with none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from server.callers import Caller
from server.errors import RateLimited
from server.rates import TokenBucket
from server.transports.sockjs.connections import (
    LOG,
    ClientConnection,
    pending_writes,
    tune_socket,
    unwritten_bytes,
    written_bytes,
)
from server.transports.sockjs.frames import (
    HEARTBEAT_BYTES,
    OPEN,
    PING_BYTES,
    Encode,
    close_frame,
    parse_messages,
    raw_websocket_bytes,
    sockjs_websocket_bytes,
    text_frame_bytes,
)
from server.transports.sockjs.handlers import RefusingHandler
from server.wire import TOO_BIG, CloseReason, Frame

if TYPE_CHECKING:
    from server.transports.sockjs.door import SockJSDoor


FRAMES_PER_TURN = 16
"""How many frames of one client are taken before the others get their turn."""


class PacedProtocol(WebSocketProtocol13):
    """Reads no faster than frames may come, of whatever kind: pings and endless fragments cost as much as commands, and
    no session hears of them. The rest waits at the client, for TCP lets it send no more.

    Has no attributes of its own: Tornado's fill what Python keeps for all instances together, and one more would cost
    every connection a KiB."""

    handler: WebSocketTransport  # the only one that makes it

    @property
    def is_amid_fragments(self) -> bool:
        """Whether a part of a message has come, and not all. Tornado has no public name for it."""
        return self._fragmented_message_buffer is not None

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if code == TOO_BIG.code:
            self.handler.connection.end_too_big()
        super().close(code, reason)

    async def _receive_frame(self) -> None:
        await super()._receive_frame()
        pause_s = self.handler.connection.note_frame()
        if pause_s is not None:
            await asyncio.sleep(pause_s)


TEXT_ONLY = CloseReason(1003, "text frames only")


class WebSocketConnection(ClientConnection):
    """A client over WebSocket. Its queue is that of its stream."""

    __slots__ = ("_bucket", "_encode", "_frame_count", "_pending", "_protocol", "_send_now", "_stream")

    def __init__(
        self,
        door: SockJSDoor,
        transport: str,
        caller: Caller,
        protocol: PacedProtocol,
        stream: IOStream,
    ) -> None:
        super().__init__(door, transport, caller)
        self._protocol = protocol
        self._stream = stream
        self._bucket = TokenBucket()
        self._frame_count = 0
        self._pending = pending_writes(stream)
        self._encode: Encode = raw_websocket_bytes if self.is_raw else sockjs_websocket_bytes
        # Under TLS what is written is not what is sent.
        self._send_now: Callable[[bytes], int] | None = (
            None if isinstance(stream, SSLIOStream) else stream.socket.send
        )

    @property
    def is_raw(self) -> bool:
        return self.transport == "rawwebsocket"

    def open(self) -> None:
        if not self.is_raw:
            self._write(text_frame_bytes(OPEN))
        super().open()

    # -- out -------------------------------------------------------------------------------------------------
    def send(self, frame: Frame) -> None:
        if not self.is_closed:
            self._write(frame.encoded(self._encode))

    def _write(self, data: bytes) -> None:
        """Straight to the socket while nothing is queued: half the price of a stream's write. Never raises."""
        if self._send_now is not None and not self._pending:
            try:
                sent = self._send_now(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Not now: who sends may be in the middle of a room.
                self._stream.io_loop.add_callback(self._stream.close)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        if self._stream.closed() or not self._admit(len(data)):
            return
        # Cannot raise: the stream is open. What becomes of it is seen by whoever reads from it.
        self._stream.write(data)

    def _queued_bytes(self) -> int:
        return 0 if self._stream.closed() else unwritten_bytes(self._stream)

    def _written_bytes(self) -> int:
        return written_bytes(self._stream)

    # -- in --------------------------------------------------------------------------------------------------
    def fit_message_limit(self) -> None:
        """Let messages be as large as this client may send them from now on."""
        self._protocol.params.max_message_size = self.max_message_bytes

    def note_frame(self) -> float | None:
        """Count a frame of the client; how many seconds not to read on for. 0: until the others had their turn."""
        self._frame_count += 1
        pause_s = self._door.admission.pace_frame(self._bucket, self.caller)
        return pause_s if pause_s or self._frame_count % FRAMES_PER_TURN == 0 else None

    def note_pong(self) -> None:
        """A pong is a sign of life, but not between the parts of a message, or one without an end would never be given
        up. (Amid a frame there can be none.)"""
        if not self._protocol.is_amid_fragments:
            self.last_alive_at = time.monotonic()

    async def drained(self) -> None:
        if self._stream.closed() or not self._stream.writing():
            return
        try:
            await self._stream.write(b"")
        except StreamClosedError:
            pass

    def _send_heartbeat(self) -> None:
        self._write(PING_BYTES if self.is_raw else HEARTBEAT_BYTES)

    # -- end -------------------------------------------------------------------------------------------------
    def close(self, reason: CloseReason) -> None:
        if not self._end(reason) or self._stream.closed():
            return
        try:
            if not self.is_raw:
                self._stream.write(text_frame_bytes(close_frame(reason)))
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

    def lost(self) -> None:
        """The stream is closed, by whomever."""
        self._end(None)


class WebSocketTransport(RefusingHandler, WebSocketHandler):
    """`/<server>/<session>/websocket`. The session lives as long as the socket; the ids are not looked at."""

    transport = "websocket"
    access_methods = "GET"
    connection: WebSocketConnection

    def initialize(self, server: SockJSDoor) -> None:
        self.server = server

    async def prepare(self) -> None:
        super().prepare()
        try:
            self.server.admission.may_connect(self.server.identify(self.request))
        except RateLimited as error:
            await self.refuse(error)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        stock = super().get_websocket_protocol()
        return PacedProtocol(self, False, stock.params) if isinstance(stock, WebSocketProtocol13) else stock

    @property
    def ping_interval(self) -> float:
        """None by tornado, which takes a task per connection for it: see `ClientConnection.heartbeat`."""
        return 0

    def check_origin(self, origin: str) -> bool:
        """Was decided in `prepare`, as for every transport."""
        return True

    def open(self, *args: str, **kwargs: str) -> None:
        protocol: PacedProtocol = self.ws_connection  # type: ignore[assignment]  # is there by now
        stream: IOStream = protocol.stream
        tune_socket(stream, self.server.give_up_after_s)
        caller = self.server.identify(self.request)
        self.connection = WebSocketConnection(self.server, self.transport, caller, protocol, stream)
        self._forget_request()
        self.connection.open()
        self.connection.fit_message_limit()

    def _forget_request(self) -> None:
        """Nobody will look at the request again, and it stays as long as the connection."""
        self.request.headers.clear()
        self.request.body = b""
        self.open_kwargs = {}

    async def on_message(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.connection.close(TEXT_ONLY)
        else:
            await self._receive(message)
            self.connection.fit_message_limit()

    async def _receive(self, message: str) -> None:
        if not message:
            return  # protocol: empty frames are ignored
        try:
            texts = parse_messages(message, may_be_single=True)
        except ValueError:
            LOG.info("broken JSON over WebSocket from %s", self.connection.caller.address)
            self.connection.abort()
            return
        await self.connection.receive(texts or ())

    def on_pong(self, data: bytes) -> None:
        self.connection.note_pong()

    def on_close(self) -> None:
        self.connection.lost()


class RawWebSocketTransport(WebSocketTransport):
    """`/websocket`: a message is a text frame, and nothing else is sent."""

    transport = "rawwebsocket"

    async def _receive(self, message: str) -> None:
        await self.connection.receive([message])
