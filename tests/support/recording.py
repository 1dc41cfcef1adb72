"""A connection without a transport: keeps what it is sent, and reads only when told to if it is slow."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.callers import Caller
from server.dialects import Dialect
from server.messages import Event, UnseenCount
from server.rooms import Push, SignIn
from server.wire import CloseReason, EventFrames, Frame

if TYPE_CHECKING:
    from server.session import Session

CLASSIC = EventFrames()

LOCAL = Caller("127.0.0.1")
ELSEWHERE = Caller("192.0.2.1", "the address 192.0.2.1 is not loopback", is_loopback=False)

_MESSAGE_TIMEOUT_S = 30.0
"""The guard against a hang: messages of this process come at once."""


@dataclass(frozen=True)
class Message:
    """A frame as a client reads it; `data` is parsed, also where it is JSON in a string. `beside`: its other keys."""

    name: str
    data: Any
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Of the documents of a `notification`."""
        return [document["_id"] for document in self.data]


class RecordingConnection:
    """`rooms.Connection` for tests. Its queue has no bound: that is the transports' business.

    Frames are read as they come; with `is_slow` they stay in the queue until `read` takes them.
    """

    def __init__(self, caller: Caller = LOCAL, *, is_slow: bool = False) -> None:
        self.caller = caller
        self.last_alive_at = time.monotonic()
        self.is_slow = is_slow
        self.queue: deque[Frame] = deque()
        self.most_queued = 0
        self.reasons: list[CloseReason] = []
        """Of all calls of `close`."""
        self.is_closed = False
        self.session: Session | None = None
        self._read: asyncio.Queue[Message] = asyncio.Queue()
        self._changed = asyncio.Event()

    # -- the server's side -----------------------------------------------------------------------------------
    def send(self, frame: Frame) -> None:
        if self.is_closed:
            return
        self.queue.append(frame)
        self.most_queued = max(self.most_queued, len(self.queue))
        if not self.is_slow:
            self._take()
        self._wake()

    async def drained(self) -> None:
        while self.queue and not self.is_closed:
            await self._changed.wait()

    @property
    def in_flight_bytes(self) -> int:
        return sum(len(frame.text) for frame in self.queue)

    def close(self, reason: CloseReason) -> None:
        self.reasons.append(reason)
        self.go()

    # -- the client's side -----------------------------------------------------------------------------------
    def go(self) -> None:
        """End the connection, as a client does that closes its page."""
        if not self.is_closed:
            self.is_closed = True
            self._wake()
            if self.session is not None:
                self.session.closed()

    async def queued(self) -> None:
        """Return when something is in the queue."""
        async with asyncio.timeout(_MESSAGE_TIMEOUT_S):
            while not self.queue:
                await self._changed.wait()

    async def read(self) -> list[Message]:
        """Wait until something is in the queue, and take all of it."""
        await self.queued()
        self._take()
        self._wake()
        return self.received()

    async def next(self) -> Message:
        """The next message, as soon as there is one."""
        async with asyncio.timeout(_MESSAGE_TIMEOUT_S):
            return await self._read.get()

    def received(self) -> list[Message]:
        """All messages that were read and not asked for yet."""
        return [self._read.get_nowait() for _ in range(self._read.qsize())]

    def _take(self) -> None:
        while self.queue:
            for message in messages_of(self.queue.popleft()):
                self._read.put_nowait(message)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def messages_of(frame: Frame) -> list[Message]:
    """What a client makes of a frame: one message, or those of a burst."""
    return [
        Message(
            message["name"],
            json.loads(message["data"]) if isinstance(message["data"], str) else message["data"],
            {key: value for key, value in message.items() if key not in ("name", "data")},
        )
        for message in json.loads(f"[{frame.text}]")
    ]


@dataclass(eq=False)
class Member:
    """A `rooms.Listener` that keeps what it is told. `failure`: what it raises instead."""

    connection: RecordingConnection = field(default_factory=RecordingConnection)
    told: list[Push] = field(default_factory=list)
    bursts: list[Frame] = field(default_factory=list)
    dialect: Dialect = CLASSIC
    sign_in: SignIn | None = None
    failure: Exception | None = None

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.extend(pushes)
        self.bursts.append(burst)

    @property
    def events(self) -> list[Event]:
        return [event for event, _ in self.told]

    @property
    def counts(self) -> list[int]:
        """The numbers of the counts it was told."""
        return [event.count for event in self.events if isinstance(event, UnseenCount)]

    @property
    def messages(self) -> list[Message]:
        return [message for burst in self.bursts for message in messages_of(burst)]
