"""One client: over HTTP at first, where a request waits for what is to be sent, and over WebSocket as soon as that has
been tried out; or over WebSocket at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tornado.iostream import StreamClosedError

from server.callers import Caller
from server.rates import TokenBucket
from server.transports.connections import ClientConnection
from server.transports.socketio.packets import (
    BINARY,
    CLOSE,
    MESSAGE,
    NOOP,
    PING,
    PONG,
    SEPARATOR,
    goodbye,
    polling_bytes,
    websocket_bytes,
)
from server.transports.socketio.session import MALFORMED
from server.transports.websocket import PacedProtocol, WebSocketConnection, text_frame_bytes
from server.wire import CloseReason, Frame

if TYPE_CHECKING:
    from server.transports.socketio.door import SocketIODoor

PING_BYTES = text_frame_bytes(PING)
PING_IN_ANSWER = (SEPARATOR + PING).encode()

LEFT = CloseReason(1000, "left")
OVERLAPPING = CloseReason(1002, "another request is open")


class Poll(ABC):
    """A request that waits for packets."""

    @abstractmethod
    def answer(self, body: bytes) -> None:
        """Complete the response."""

    @property
    @abstractmethod
    def unsent_bytes(self) -> int:
        """How much of the response has not reached the kernel."""

    @property
    @abstractmethod
    def written_bytes(self) -> int:
        """How much has, since the TCP connection began."""

    @property
    @abstractmethod
    def in_flight_bytes(self) -> int:
        """How much has not arrived at the client's machine, as far as that can be known."""

    @abstractmethod
    def drop(self) -> None:
        """Cut the TCP connection."""


class SocketIOConnection(WebSocketConnection):
    """Over HTTP it is over when no request of the client waits for `disconnect_delay_s`; a closed one says so for as
    long. Its queue is what waits for a request, and what of an answer has not left; over WebSocket, the stream's."""

    __slots__ = (
        "_answering",
        "_door",
        "_drained",
        "_is_ping_due",
        "_last_words",
        "_packets",
        "_packets_bytes",
        "_poll",
        "_told",
        "_told_bytes",
        "is_connected",
        "is_over_websocket",
        "is_posting",
        "is_probed",
        "sid",
    )

    encode = staticmethod(websocket_bytes)

    def __init__(self, door: SocketIODoor, caller: Caller, sid: str) -> None:
        # Past the WebSocket, of which there is none yet.
        ClientConnection.__init__(self, door.connections, "socketio", caller)
        self._bucket = TokenBucket()
        self._frame_count = 0
        self._door = door
        self._poll: Poll | None = None
        self._answering: Poll | None = None
        self._told: Poll | None = None
        """The request whose answer brought packets last."""
        self._told_bytes = 0
        """How much that was, as long as the client has not come back for more."""
        self._packets: list[bytes] = []
        self._packets_bytes = 0
        self._drained: asyncio.Event | None = None
        self._is_ping_due = False
        """Whether the next answer is to bring a ping."""
        self._last_words: Sequence[str] = ()
        self.sid = sid
        self.is_connected = False
        """Whether the client was told that it is connected to the namespace."""
        self.is_over_websocket = False
        self.is_probed = False
        """Whether a WebSocket of this client is being tried out."""
        self.is_posting = False
        """Whether a request of this client is sending."""

    def carry(self, protocol: PacedProtocol) -> None:
        """Use this WebSocket from now on."""
        self._protocol = protocol
        self._unread_bytes = None
        self._use(protocol.stream)
        self.is_over_websocket = True
        self._door.forget(self)
        poll, self._poll, packets = self._poll, None, b"".join(self._packets)
        self._packets, self._packets_bytes = [], 0
        self._begin_window()
        if packets:
            for packet in packets.decode().removeprefix(SEPARATOR).split(SEPARATOR):
                self._write(text_frame_bytes(packet))
        if poll is not None:
            self._answer(poll, NOOP.encode())
        self._note_drained()

    # -- requests that wait ----------------------------------------------------------------------------------
    def attach(self, poll: Poll) -> None:
        """Let a request wait for packets. A second one at the same time ends the session (Engine.IO, "HTTP
        long-polling")."""
        self.last_alive_at = time.monotonic()
        if self._answering is not None and not self._answering.unsent_bytes:
            self.answered(self._answering)  # its client was faster than the news that it has got everything
        if not self.is_closed and (self._poll or self._answering):
            self.close(OVERLAPPING)
        if self.is_closed:
            self._tell_last(poll)
            return
        self._poll, self._told_bytes = poll, 0
        self._door.keep(self)
        self._begin_window()
        if self._is_ping_due:
            self._is_ping_due = False
            self._packets.append(PING_IN_ANSWER)
        self._flush()
        if self.is_probed:
            self.release_poll()

    def release_poll(self) -> None:
        """Let a client that goes over to WebSocket do so: its last request must end first."""
        if self._poll is not None:
            self._answer(self._poll, NOOP.encode())

    def _flush(self) -> None:
        if self._poll is not None and self._packets:
            body = b"".join(self._packets).removeprefix(SEPARATOR.encode())
            self._packets, self._packets_bytes = [], 0
            self._told, self._told_bytes = self._poll, len(body)
            self._answer(self._poll, body)

    def _answer(self, poll: Poll, body: bytes) -> None:
        self._poll, self._answering = None, poll
        self._begin_queue(len(body))
        poll.answer(body)

    def answered(self, poll: Poll) -> None:
        """The whole answer has left, and the client is expected to ask for more."""
        if self._answering is not poll:
            return
        self._answering = None
        if not self.is_over_websocket:
            self._begin_window()
            self._door.expect(self)
            self._note_drained()

    def interrupted(self, poll: Poll) -> None:
        """The client cut a response short: what it missed is not known, so the session is over."""
        if poll in (self._poll, self._answering) and not self.is_over_websocket:
            self._poll = self._answering = None
            self.lost()

    # -- in --------------------------------------------------------------------------------------------------
    async def take(self, packet: str) -> None:
        """An Engine.IO packet of the client."""
        self.last_alive_at = time.monotonic()
        kind = packet[:1]
        if kind == MESSAGE:
            await self.receive([packet[1:]])
        elif kind == CLOSE:
            self.leave()
        elif kind not in (PONG, BINARY):
            self.close(MALFORMED)

    # -- out -------------------------------------------------------------------------------------------------
    def send(self, frame: Frame) -> None:
        if self.is_over_websocket:
            super().send(frame)
        elif not self.is_closed:
            self._put(frame.encoded(polling_bytes))

    def send_packet(self, packet: str) -> None:
        """Send one that is for this client alone."""
        if self.is_closed:
            return
        if self.is_over_websocket:
            self._write(text_frame_bytes(packet))
        else:
            self._put((SEPARATOR + packet).encode())

    def _put(self, data: bytes) -> None:
        if self._admit(len(data)):
            self._packets.append(data)
            self._packets_bytes += len(data)
            self._flush()

    def _queued_bytes(self) -> int:
        if self.is_over_websocket:
            return super()._queued_bytes()
        return self._packets_bytes + (0 if self._answering is None else self._answering.unsent_bytes)

    def _written_bytes(self) -> int:
        if self.is_over_websocket:
            return super()._written_bytes()
        return 0 if self._answering is None else self._answering.written_bytes

    @property
    def in_flight_bytes(self) -> int:
        if self.is_over_websocket:
            return super().in_flight_bytes
        told = 0 if self._told is None else min(self._told_bytes, self._told.in_flight_bytes)
        return self._packets_bytes + told

    async def drained(self) -> None:
        while not (self.is_closed or self.is_over_websocket) and self._queued_bytes():
            if self._drained is None:
                self._drained = asyncio.Event()
            await self._drained.wait()
        if self.is_over_websocket:
            await super().drained()

    def _note_drained(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def heartbeat(self, now: float) -> None:
        """A client to which no ping comes gives up, whatever else it hears: one that cannot be asked now gets it with
        what it is told next."""
        if self.is_over_websocket:
            if self._queued_bytes():
                self._stream.write(PING_BYTES)
        elif self._poll is None:
            self._is_ping_due = True
            return
        super().heartbeat(now)

    def _send_heartbeat(self) -> None:
        if self.is_over_websocket:
            self._write(PING_BYTES)
        else:
            self._put(PING_IN_ANSWER)

    # -- end -------------------------------------------------------------------------------------------------
    def close(self, reason: CloseReason) -> None:
        if self._end(reason):
            self._say_last(goodbye(reason, self.is_connected), reason)

    def leave(self) -> None:
        """The client says goodbye, and needs to hear none: it has read what it was told."""
        self._told_bytes = 0
        self.expire()

    def expire(self) -> None:
        """The client is gone without a word."""
        if self._end(None):
            self._say_last([], LEFT)

    def _end(self, reason: CloseReason | None) -> bool:
        is_first = super()._end(reason)  # whose session looks at what is in flight
        if is_first:
            self._packets, self._packets_bytes = [], 0
            self._note_drained()
        return is_first

    def _say_last(self, words: Sequence[str], reason: CloseReason) -> None:
        if self.is_over_websocket:
            self._close_websocket(words, reason)
            return
        self._last_words = words
        self._door.expect(self)
        poll, self._poll = self._poll, None
        if poll is not None:
            self._tell_last(poll)
        elif self._answering is not None and self._answering.unsent_bytes:
            self._answering.drop()  # the client does not take what it is told

    def _tell_last(self, poll: Poll) -> None:
        """One answer for the last words and one for the end: with the packet that closes, the client's library drops
        what came before it in the same answer."""
        words, self._last_words = self._last_words, ()
        if words:
            poll.answer(SEPARATOR.join(words).encode())
        else:
            poll.answer(CLOSE.encode())
            self._door.forget(self)

    def _close_websocket(self, words: Sequence[str], reason: CloseReason) -> None:
        if self._stream.closed():
            return
        with contextlib.suppress(StreamClosedError):
            for packet in words:
                self._stream.write(text_frame_bytes(packet))
            # Tornado gives the client 5 seconds to answer, then drops what is still queued.
            self._protocol.close(reason.code, reason.reason)

    def end_too_big(self) -> None:
        # A WebSocket that is only being tried out ends alone; the client goes on over HTTP.
        if self.is_over_websocket:
            super().end_too_big()

    def lost(self) -> None:
        """The client is gone."""
        self._door.forget(self)
        super().lost()
