"""A WebSocket (RFC 6455) on a plain socket: its messages as they come, control frames answered, closed in order.

By the same rules as `websocket.PacedProtocol`, which is for those that came in through Tornado: under TLS, or with a
head that is looked at more closely. This one needs neither a task nor a request for as long as it is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from tornado.iostream import StreamClosedError

from server.tasks import Tasks
from server.transports.connections import LOG
from server.transports.frame_reader import (
    BINARY,
    CLOSE,
    PART,
    PING,
    PONG,
    TEXT,
    FrameReader,
    MalformedFrame,
    OverLimit,
)
from server.transports.sockets import SocketStream
from server.wire import TOO_BIG

if TYPE_CHECKING:
    from server.transports.websocket import WebSocketConnection

READ_BYTES = 64 * 1024

GOODBYE_S = 5.0
"""For the client to answer a close frame; then the socket is closed all the same."""


class UpgradedSocket:
    """Reads no faster than messages are handled, and frames may come: meanwhile the rest waits at the client."""

    __slots__ = (
        "_close_timer",
        "_connection",
        "_frames",
        "_handlings",
        "_is_reading",
        "_is_server_done",
        "_loop",
        "_next_pong",
        "_pong",
        "is_client_done",
        "stream",
    )

    def __init__(self, stream: SocketStream, handlings: Tasks) -> None:
        """`handlings`: the owner of what the handling of a message takes, where that takes a while."""
        self._loop = asyncio.get_running_loop()
        self._connection: WebSocketConnection
        self._frames = FrameReader()
        self._is_reading = False
        self._handlings = handlings
        self._close_timer: asyncio.TimerHandle | None = None
        self._is_server_done = False
        # the pong that is on its way, and what the one after it answers
        self._pong: asyncio.Future[None] | None = None
        self._next_pong: bytes | None = None
        self.is_client_done = False
        """Whether the client has said goodbye."""
        self.stream = stream

    @property
    def is_amid_fragments(self) -> bool:
        """Whether a part of a message has come, and not all."""
        return self._frames.is_amid_message

    def start(self, connection: WebSocketConnection) -> None:
        """Read from now on, for this connection."""
        self._connection = connection
        self.stream.set_close_callback(self._ended)
        if self.stream.closed():
            self._loop.call_soon(self._ended)
        else:
            self._read_on()

    # -- in --------------------------------------------------------------------------------------------------
    def _read_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            # By its number: asyncio describes a socket it does not know yet, which takes two system calls, in an error
            # that nobody sees.
            self._loop.add_reader(self.stream.fileno(), self._on_readable)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            # One that was closed while it was handled is read no more anyway, and has no number.
            if not self.stream.closed():
                self._loop.remove_reader(self.stream.socket)

    def _on_readable(self) -> None:
        try:
            data = self.stream.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.stream.close()
            return
        self._frames.feed(data)
        self._go_on()

    def _go_on(self) -> None:
        """Take frame after frame of what is here, until one has to wait."""
        while not (self.is_client_done or self.stream.closed()):
            try:
                message = self._frames.next(self._connection.max_message_bytes)
            except MalformedFrame:
                self.stream.close()
                return
            except OverLimit:
                self._connection.end_too_big()
                self.close(TOO_BIG.code, TOO_BIG.reason)
                self.stream.close()
                return
            if message is None:
                self._read_on()
                return
            handling = self._handle(*message)
            if handling is not None:
                self._pause()
                self._handlings.start(self._finish(handling), "message")
                return
            pause_s = self._connection.note_frame()
            if pause_s is not None:
                self._pause()
                # 0: others have their turn first
                self._loop.call_later(pause_s, self._go_on) if pause_s else self._loop.call_soon(self._go_on)
                return

    async def _finish(self, handling: Awaitable[None]) -> None:
        """Go on when a message has been handled."""
        try:
            await handling
        except Exception:
            LOG.exception("a message from %s could not be handled", self._connection.caller.address)
            self.stream.close()
        pause_s = self._connection.note_frame()
        if pause_s is not None:
            await asyncio.sleep(pause_s)
        self._go_on()

    def _handle(self, opcode: int, payload: bytes) -> Awaitable[None] | None:
        if opcode == TEXT:
            return self._take(payload)
        if opcode == BINARY:
            self._connection.refuse_binary()
        elif opcode == CLOSE:
            self._on_close(payload)
        elif opcode == PING:
            self._answer_ping(payload)
        elif opcode == PONG:
            self._connection.note_pong()
        elif opcode != PART:
            self.stream.close()
        return None

    def _take(self, payload: bytes) -> Awaitable[None] | None:
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            self.stream.close()
            return None
        try:
            return self._connection.take(text)
        except Exception:
            LOG.exception("a message from %s could not be handled", self._connection.caller.address)
            self.stream.close()
            return None

    # -- control frames --------------------------------------------------------------------------------------
    def _answer_ping(self, payload: bytes) -> None:
        """The latest ping only, while the pong to an earlier one has not left (section 5.5.3)."""
        if self._pong is not None and not self._pong.done():
            self._next_pong = payload
            return
        self._next_pong = None
        if self._is_server_done:
            return
        with contextlib.suppress(StreamClosedError):
            self._pong = self.stream.write(_control_frame(PONG, payload))
            if self._pong.done():
                self._pong = None
            else:
                self._pong.add_done_callback(self._pong_left)

    def _pong_left(self, pong: asyncio.Future[None]) -> None:
        self._pong, payload = None, self._next_pong
        if payload is not None and not pong.cancelled() and pong.exception() is None:
            self._answer_ping(payload)

    def _on_close(self, payload: bytes) -> None:
        self.is_client_done = True
        self._connection.note_goodbye()
        self.close(struct.unpack_from("!H", payload)[0] if len(payload) >= 2 else None)

    # -- the end ---------------------------------------------------------------------------------------------
    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Say goodbye, with this code and this reason; the socket is closed when the client has said so, too."""
        if not self._is_server_done:
            self._is_server_done = True
            said = b"" if code is None else struct.pack("!H", code)
            with contextlib.suppress(StreamClosedError):
                self.stream.write(_control_frame(CLOSE, said + (reason or "").encode()))
        if self.is_client_done:
            self.stream.close()
        elif self._close_timer is None and not self.stream.closed():
            self._close_timer = self._loop.call_later(GOODBYE_S, self.stream.close)

    def _ended(self) -> None:
        """The socket is closed."""
        self._is_server_done = self.is_client_done = True
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._connection.lost()


def _control_frame(opcode: int, payload: bytes) -> bytes:
    return struct.pack("!BB", 0x80 | opcode, len(payload)) + payload
