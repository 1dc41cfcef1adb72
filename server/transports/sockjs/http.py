"""Sessions over plain HTTP: a queue that outlives the requests which, one at a time, take from it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from server.callers import Caller
from server.transports.connections import ClientConnection
from server.transports.sockjs.frames import HEARTBEAT, OPEN, Encode, array_frame, close_frame
from server.wire import CloseReason, Frame

if TYPE_CHECKING:
    from server.transports.sockjs.door import SockJSDoor

STILL_OPEN = CloseReason(2010, "Another connection still open")
OTHER_CLIENT = CloseReason(2010, "Another client has this session")
INTERRUPTED = CloseReason(1002, "Connection interrupted")


class Receiver(ABC):
    """A request in whose response frames travel."""

    encode: Encode | None = None
    """From a message to the bytes that carry it, the same for all clients; None: use `send_frame`."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether a frame sent now would leave now."""

    @property
    @abstractmethod
    def is_answered(self) -> bool:
        """Whether the response is complete and has left."""

    @property
    @abstractmethod
    def is_acknowledged(self) -> bool:
        """Whether the client is known to have got all that was sent in this response."""

    @property
    @abstractmethod
    def unsent_bytes(self) -> int: ...

    @property
    @abstractmethod
    def written_bytes(self) -> int: ...

    @abstractmethod
    def send_frame(self, frame: str) -> None: ...

    @abstractmethod
    def send_bytes(self, data: bytes) -> None:
        """Send what `encode` made."""

    @abstractmethod
    def end(self) -> None:
        """Complete the response."""

    @abstractmethod
    def drop(self) -> None:
        """Cut the connection, with what is still unsent."""


class HttpConnection(ClientConnection):
    """A client over one of the streaming or polling transports.

    It is over when nobody came to receive for `disconnect_delay_s`. A closed one says so for as long.
    """

    __slots__ = (
        "_door",
        "_drained",
        "_end_frame",
        "_receiver",
        "_texts",
        "_texts_bytes",
        "receiving",
        "session_id",
    )

    def __init__(self, door: SockJSDoor, transport: str, caller: Caller, session_id: str) -> None:
        super().__init__(door.connections, transport, caller)
        self._door = door
        self.session_id = session_id
        self.receiving = asyncio.Lock()
        """Held while messages of this client are handled: its requests may overtake each other."""
        self._receiver: Receiver | None = None
        self._texts: list[str] = []
        self._texts_bytes = 0
        self._drained: asyncio.Event | None = None
        self._end_frame = ""

    def is_of(self, caller: Caller) -> bool:
        """Whether a request of this caller may be part of the session. A foreign page can open one by a script, which
        hides where it comes from; what it sends shows it."""
        is_as_near = caller.is_loopback or not self.caller.is_loopback
        return is_as_near and caller.address == self.caller.address

    # -- receivers -------------------------------------------------------------------------------------------
    def attach(self, receiver: Receiver, caller: Caller) -> bool:
        """Let a request receive what is sent to this client. False if it was only told why it cannot."""
        refusal = self._why_not(caller)
        if refusal:
            receiver.send_frame(refusal)
            receiver.end()
            return False
        is_new = self._session is None
        self._receiver = receiver
        self._begin_window()
        self._door.keep(self)
        self.last_alive_at = time.monotonic()
        if is_new:
            receiver.send_frame(OPEN)
            self.open(self._door.open_session)
        self.flush()
        return True

    def _why_not(self, caller: Caller) -> str | None:
        if not self.is_of(caller):
            return close_frame(OTHER_CLIENT)
        if self.is_closed:
            return self._end_frame
        if self._receiver is not None and self._receiver.is_answered:
            self.detach(self._receiver)  # its client was faster than the news that it has got everything
        return close_frame(STILL_OPEN) if self._receiver is not None else None

    def detach(self, receiver: Receiver) -> None:
        """The receiver has done its work, and the client is expected to send another one."""
        if self._receiver is receiver:
            self._receiver = None
            self._begin_window()
            self._door.expect(self)
            self._note_drained()

    def interrupted(self, receiver: Receiver) -> None:
        """The client cut a response short: what it missed is not known, so the session is over."""
        if self._receiver is receiver:
            self._receiver = None
            self._finish(INTERRUPTED, reported=None)

    # -- out -------------------------------------------------------------------------------------------------
    def send(self, frame: Frame) -> None:
        if self.is_closed:
            return
        receiver = self._receiver
        if not self._admit(len(frame.text)):
            return
        if receiver is None or self._texts or not receiver.is_ready:
            self._texts.append(frame.text)
            self._texts_bytes += len(frame.text)
        elif receiver.encode is not None:
            receiver.send_bytes(frame.encoded(receiver.encode))
        else:
            receiver.send_frame(array_frame([frame.text]))

    def flush(self) -> None:
        """Give what is queued to the receiver, if it can take it."""
        receiver = self._receiver
        if self._texts and receiver is not None and receiver.is_ready:
            frame = array_frame(self._texts)
            self._texts, self._texts_bytes = [], 0
            self._begin_queue(len(frame))
            receiver.send_frame(frame)
        self._note_drained()

    def _queued_bytes(self) -> int:
        return self._texts_bytes + (0 if self._receiver is None else self._receiver.unsent_bytes)

    def _written_bytes(self) -> int:
        return 0 if self._receiver is None else self._receiver.written_bytes

    async def drained(self) -> None:
        while not self.is_closed and self._queued_bytes():
            if self._drained is None:
                self._drained = asyncio.Event()
            await self._drained.wait()

    def _note_drained(self) -> None:
        if self._drained is not None and (self.is_closed or not self._queued_bytes()):
            self._drained.set()
            self._drained = None

    def heartbeat(self, now: float) -> None:
        if self._receiver is None:
            return
        if self._receiver.is_acknowledged:
            self.last_alive_at = now
        super().heartbeat(now)

    def _send_heartbeat(self) -> None:
        if self._receiver is not None and self._receiver.is_ready:
            self._receiver.send_frame(HEARTBEAT)

    # -- end -------------------------------------------------------------------------------------------------
    def close(self, reason: CloseReason) -> None:
        receiver, self._receiver = self._receiver, None
        if not self._finish(reason, reported=reason) or receiver is None:
            return
        if receiver.is_ready:
            receiver.send_frame(self._end_frame)
            receiver.end()
        elif not receiver.is_answered:
            receiver.drop()

    def expire(self) -> None:
        """Nobody came to receive: the client is gone."""
        self._finish(INTERRUPTED, reported=None)

    def _finish(self, reason: CloseReason, *, reported: CloseReason | None) -> bool:
        if self.is_closed:
            return False
        self._end_frame = close_frame(reason)
        self._texts, self._texts_bytes = [], 0
        self._end(reported)
        self._note_drained()
        self._door.expect(self)
        return True
