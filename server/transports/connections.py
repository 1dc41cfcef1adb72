"""What all connections of clients have in common: from open to closed, messages in, a bounded queue out."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Iterable, Sized
from typing import TYPE_CHECKING, Protocol

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from server.callers import Caller
from server.rooms import Connection
from server.transports.sockets import SocketStream
from server.wire import FAILED, SLOW, TIMED_OUT, CloseReason, Frame

if TYPE_CHECKING:
    from server.transports.registry import Connections

LOG = logging.getLogger(__name__)

Stream = IOStream | SocketStream

SEND_BUFFER_BYTES = 64 * 1024
"""What the kernel holds for a client. Left alone it grows to megabytes, and a client that stopped reading would look
well for as long as that takes."""

UNANSWERED_HEARTBEATS = 2
"""After how many a client is dead. Counted, not timed: a server that stood still for a while has asked nobody."""

MIN_BYTES_PER_S = 8 * 1024
"""How fast a queue must leave, on average over `slow_after_s`: one that leaves more slowly is memory held for nothing.
"""

STRANGER_MESSAGE_BYTES = 16 * 1024
"""The longest token or password there may be, every character escaped, and some more. What is not complete yet is
memory held for nobody we know."""

MESSAGES_PER_TURN = 64
"""How many messages of one client are handled before the others get their turn."""


class ClientSession(Protocol):
    """What a transport needs of the core's session."""

    def receive(self, text: str) -> Awaitable[None] | None:
        """Take one message. No more is read of this connection until a returned awaitable is done. What it raises is
        logged, and closes the connection."""

    def closed(self) -> None:
        """The connection is over; called exactly once."""

    @property
    def is_joined(self) -> bool:
        """Whether the client has said who it is."""


class ClientConnection:
    """One client; `server.rooms.Connection` for its session. Transports derive from it.

    The size of its queue is bounded: an empty queue takes any one frame, and `max_queue_bytes` may wait behind it.
    """

    __slots__ = (
        "_asked_at",
        "_connections",
        "_limit_bytes",
        "_session",
        "_unanswered",
        "_window_began_at",
        "_window_mark",
        "caller",
        "is_closed",
        "last_alive_at",
        "slot",
        "transport",
    )

    def __init__(self, connections: Connections, transport: str, caller: Caller) -> None:
        """`transport` is its name, for figures."""
        self._connections = connections
        self._session: ClientSession | None = None
        self._limit_bytes = connections.options.max_queue_bytes
        self._window_began_at = 0.0
        self._window_mark = 0
        self._asked_at = 0.0
        self._unanswered = 0
        self.transport = transport
        self.caller = caller
        self.is_closed = False
        self.last_alive_at = time.monotonic()
        self.slot = 0
        """The slice of the heartbeats that this connection is in."""

    # -- life ------------------------------------------------------------------------------------------------
    def open(self, open_session: Callable[[Connection], ClientSession]) -> None:
        """Open a session for this client; what that raises closes the connection."""
        self._connections.add(self)
        try:
            session = open_session(self)
        except Exception:
            LOG.exception("a session could not be opened for %s", self.caller.address)
            self.close(FAILED)
            return
        self._session = session
        if self.is_closed:  # by the session, while it was opened
            self._close_session()

    def close(self, reason: CloseReason) -> None:
        raise NotImplementedError

    def _end(self, reason: CloseReason | None) -> bool:
        """Tell everybody that the connection is over; False if that was done before. None: it went by itself."""
        if self.is_closed:
            return False
        self.is_closed = True
        self._connections.remove(self, reason)
        self._close_session()
        return True

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.closed()
        except Exception:
            LOG.exception("a session failed when its connection was closed")

    @property
    def is_joined(self) -> bool:
        return self._session is not None and self._session.is_joined

    @property
    def max_message_bytes(self) -> int:
        """How large a message may be that is read now: a stranger's is a join."""
        most = self._connections.options.max_message_bytes
        return most if self.is_joined else min(most, STRANGER_MESSAGE_BYTES)

    # -- in --------------------------------------------------------------------------------------------------
    async def receive(self, texts: Iterable[str]) -> None:
        """Hand messages to the session, one after the other."""
        self.last_alive_at = time.monotonic()
        try:
            for count, text in enumerate(texts, 1):
                if self._session is None:
                    return
                handling = self._session.receive(text)
                if handling is not None:
                    await handling
                if count % MESSAGES_PER_TURN == 0:
                    await asyncio.sleep(0)
        except Exception:
            self._failed()

    def receive_one(self, text: str) -> Awaitable[None] | None:
        """The same for one message, whose session hardly ever wants to be waited for."""
        self.last_alive_at = time.monotonic()
        if self._session is None:
            return None
        try:
            handling = self._session.receive(text)
        except Exception:
            self._failed()
            return None
        return None if handling is None else self._until_handled(handling)

    async def _until_handled(self, handling: Awaitable[None]) -> None:
        try:
            await handling
        except Exception:
            self._failed()

    def _failed(self) -> None:
        LOG.exception("a message from %s could not be handled", self.caller.address)
        self.close(FAILED)

    # -- out -------------------------------------------------------------------------------------------------
    def send(self, frame: Frame) -> None:
        raise NotImplementedError

    async def drained(self) -> None:
        raise NotImplementedError

    @property
    def in_flight_bytes(self) -> int:
        return self._queued_bytes()

    def heartbeat(self, now: float) -> None:
        """Send the client something to answer; close it if it has not answered for too long."""
        if self._queued_bytes():
            self._watch()  # it cannot be asked now: an answer would wait for what is queued
            return
        if self.last_alive_at > self._asked_at:
            self._unanswered = 0
        if self._unanswered == UNANSWERED_HEARTBEATS:
            self.close(TIMED_OUT)
            return
        self._unanswered += 1
        self._asked_at = now
        self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        raise NotImplementedError

    def _queued_bytes(self) -> int:
        """How much waits here, and has not even reached the kernel."""
        raise NotImplementedError

    def _written_bytes(self) -> int:
        """How much has reached the kernel so far. Where the count starts anew, so does the window."""
        raise NotImplementedError

    def _admit(self, size: int) -> bool:
        """Whether `size` more bytes may be queued; if not, the connection was closed as slow."""
        queued = self._queued_bytes()
        if not queued:
            self._begin_queue(size)
        elif queued + size > self._limit_bytes:
            self.close(SLOW)
            return False
        return True

    def _begin_queue(self, size: int) -> None:
        """Note that a frame of this size is the first in an empty queue."""
        self._limit_bytes = size + self._connections.options.max_queue_bytes
        self._connections.backlogged.add(self)
        self._begin_window()

    def _watch(self) -> None:
        """Let `check_progress` see to what was queued past `_admit`: pongs, what surrounds frames."""
        if self not in self._connections.backlogged:
            self._connections.backlogged.add(self)
            self._begin_window()

    def _begin_window(self) -> None:
        """Measure from now on how fast the queue leaves."""
        self._window_began_at = time.monotonic()
        self._window_mark = self._written_bytes()

    def check_progress(self, now: float) -> None:
        """Close the connection as slow if its queue leaves too slowly. No sign of life is taken from that: the kernel,
        which takes it, is not the client."""
        options = self._connections.options
        if not self._queued_bytes():
            self._connections.backlogged.discard(self)
            self._limit_bytes = options.max_queue_bytes
        elif now - self._window_began_at >= options.slow_after_s:
            if self._written_bytes() - self._window_mark < MIN_BYTES_PER_S * options.slow_after_s:
                self.close(SLOW)
            else:
                self._begin_window()


class StreamedConnection(ClientConnection):
    """A client to whom frames go over a stream of its own, whose queue is the connection's."""

    __slots__ = ("_pending", "_send_now", "_stream")

    encode: Callable[[str], bytes]
    """From a message to the bytes that carry it, the same for all connections of a class: a static function."""

    def __init__(self, connections: Connections, transport: str, caller: Caller, stream: Stream) -> None:
        super().__init__(connections, transport, caller)
        self._use(stream)

    def _use(self, stream: Stream) -> None:
        """Write to this stream from now on."""
        self._stream = stream
        self._pending = pending_writes(stream)
        # Under TLS what is written is not what is sent.
        self._send_now: Callable[[bytes], int] | None = (
            None if isinstance(stream, SSLIOStream) else stream.socket.send
        )

    # -- out -------------------------------------------------------------------------------------------------
    def send(self, frame: Frame) -> None:
        if not self.is_closed:
            self._write(frame.encoded(self.encode))

    def _write(self, data: bytes) -> None:
        """Straight to the socket while nothing is queued: half the price of a stream's write. Never raises."""
        if self._send_now is not None and not self._pending:
            try:
                sent = self._send_now(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Not now: who sends may be in the middle of a room.
                asyncio.get_running_loop().call_soon(self._stream.close)
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

    @property
    def in_flight_bytes(self) -> int:
        return unconfirmed_bytes(self._stream)

    async def drained(self) -> None:
        if self._stream.closed() or not self._stream.writing():
            return
        try:
            # Tornado looks at the outcome of each write, and logs an error where it finds that it was cancelled.
            await asyncio.shield(self._stream.write(b""))
        except StreamClosedError:
            pass

    def lost(self) -> None:
        """The stream is closed, by whomever."""
        self._end(None)


# -- what tornado's streams do not say by themselves ---------------------------------------------------------


def tune_socket(stream: Stream, give_up_after_s: float) -> None:
    """Small frames leave at once, the kernel's buffer stays small, a peer that acknowledges nothing is given up."""
    if stream.closed():
        return
    with contextlib.suppress(OSError):  # the peer may be gone already, which is found out by reading
        stream.set_nodelay(True)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if sys.platform == "linux" and stream.socket.family in (socket.AF_INET, socket.AF_INET6):
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(give_up_after_s * 1000))


def pending_writes(stream: Stream) -> Sized:
    """The writes that have not reached the kernel whole, for as long as the stream lives. Asking whether there are any
    is the price of every push: `stream.writing()` asks the same at ten times the cost."""
    return stream._write_futures


def unwritten_bytes(stream: Stream) -> int:
    """How much of what was written to the stream has not reached the kernel; if it is closed: what was lost.

    Tornado has no public name for it."""
    return stream._total_write_index - stream._total_write_done_index


def written_bytes(stream: Stream) -> int:
    """How much of what was written to the stream has reached the kernel. Tornado has no public name for it."""
    return stream._total_write_done_index


def is_acknowledged(stream: Stream) -> bool:
    """Whether the peer's kernel has confirmed all that was ever sent to it. On other systems than Linux: whether our
    kernel has taken it all, which is the most that can be known there."""
    if stream.closed() or stream.writing():
        return False
    return unconfirmed_bytes(stream) == 0


def unconfirmed_bytes(stream: Stream) -> int:
    """How much of what was ever sent the peer's kernel has not confirmed; if the stream is closed nobody knows: all of
    it. On other systems than Linux: how much our kernel has not taken."""
    if stream.closed():
        return sys.maxsize
    if sys.platform != "linux":
        return unwritten_bytes(stream)
    unacknowledged = fcntl.ioctl(stream.fileno(), termios.TIOCOUTQ, bytes(4))  # tcp(7): SIOCOUTQ
    return unwritten_bytes(stream) + int.from_bytes(unacknowledged, sys.byteorder)
