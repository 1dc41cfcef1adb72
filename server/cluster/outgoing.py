"""What waits to be sent to the other nodes: a bounded queue, and the task that empties it.

All that is published while the last messages are on their way, and for a while after, goes out together, in a message
for each shard. What may not have been sent is sent again (see `repeats`). With too much of it, or when it is too old,
all of it is dropped, and the others are told that they have missed something as soon as they can be told anything.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from server.cluster.codec import Entry, Lost, encode, encode_notification, encode_told, notification_of
from server.cluster.link import Link, LinkDown, Message
from server.messages import Broadcasted, Deleted, Event, Notification, Seen, Unseen
from server.rooms import Room

logger = logging.getLogger(__name__)

MAX_EVENTS = 50_000
MAX_BYTES = 64 * 1024 * 1024
"""That wait, with what is on its way; of notifications, each counted once if it comes in a row."""

EVENT_BYTES, ID_BYTES = 300, 50
"""What an event takes beside its notification, and each id in it, about."""

NOTIFICATION_BYTES = 15 * 1024 * 1024
"""Of one that is told to others. Stores may take longer ones, but with what comes around it a message over MongoDB has
to stay below 16 MiB."""

MAX_AGE_S = 20.0
"""What waited longer is worth nothing: whoever gets it reads the inbox instead. Below `rooms.REORDER_WINDOW_S`, with
some room for clocks that differ."""

BATCH_EVENTS = 2000
"""Encoded in one go: some milliseconds."""

MESSAGE_EVENTS = 500
MESSAGE_BYTES = 256 * 1024
"""In one message, if it has more than one event, beside its first notification: many users may get the same."""

REST_PER_SENDING, MAX_REST_S = 2.0, 0.02
"""Sending is followed by so many times that of rest, up to so much. Who sends seldom does not wait for it; where it
takes long, since the way is long or others need the processor, there is less of it, with more in each message."""

RETRY_S = 1.0
"""Until the next try, unless the link says sooner that it is there again."""

LOOK_EVERY_S = 0.05
"""Whether nothing can be sent any more, for who waits until all is."""


class Outgoing:
    """One for each node. `clock`: Unix time in seconds."""

    def __init__(self, link: Link, node: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._node = node
        self._clock = clock
        # with when it was published
        self._queue: deque[tuple[float, int, Entry]] = deque()
        self._bytes = 0
        self._last: tuple[Notification, bytes] | None = None
        self._numbers = itertools.count(1)
        self._on_its_way = 0
        self._lost_since: float | None = None
        self._is_connected = asyncio.Event()
        self._is_stopped = False
        self._wake = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def waiting(self) -> int:
        """How many events wait, or are on their way."""
        return len(self._queue) + self._on_its_way

    def put(self, room: Room, event: Event) -> None:
        """Queue an event. Does not block or raise."""
        try:
            body, size = self._body(event)
        except Exception:
            logger.exception("backplane: an event cannot be sent to other nodes")
            self._note_lost(self._clock())
            return
        if body is not None and len(body) > NOTIFICATION_BYTES:
            logger.warning("backplane: a notification is too long for other nodes, and will be read instead")
            self._note_lost(self._clock())
            return
        if self.waiting >= MAX_EVENTS or self._bytes + size > MAX_BYTES:
            self._drop("too much waits to be sent to other nodes")
        self._queue.append((self._clock(), size, (room, event, body)))
        self._bytes += size
        self._is_idle.clear()
        self._wake.set()

    def _body(self, event: Event) -> tuple[bytes | None, int]:
        notification = notification_of(event)
        if notification is None:
            return None, _size_of(event)
        if self._last is not None and self._last[0] is notification:
            return self._last[1], EVENT_BYTES
        body = encode_notification(notification)
        self._last = notification, body
        return body, EVENT_BYTES + len(body)

    def connected(self) -> None:
        """Messages can be sent from now on."""
        self._is_connected.set()

    async def flushed(self) -> None:
        """Return when all is sent, or when nothing can be."""
        while self._is_connected.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._is_idle.wait()
                    return  # what is put in from now on is not waited for

    def stop(self) -> None:
        """Let `run` end when what is on its way has been sent, or not."""
        self._is_stopped = True
        self._is_connected.set()
        self._wake.set()

    # -- sending ---------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Send until stopped or cancelled."""
        rested_at = 0.0
        while not self._is_stopped:
            await self._wake.wait()
            self._wake.clear()
            while (self._queue or self._lost_since is not None) and not self._is_stopped:
                began_at = time.monotonic()
                if began_at < rested_at:
                    await asyncio.sleep(rested_at - began_at)
                    began_at = time.monotonic()
                await self._send_some()
                sent_at = time.monotonic()
                rested_at = sent_at + min((sent_at - began_at) * REST_PER_SENDING, MAX_REST_S)
            self._last = None
            self._is_idle.set()

    async def _send_some(self) -> None:
        self._drop_what_is_too_old()
        if self._lost_since is not None:
            since, self._lost_since = self._lost_since, None
            if not await self._try([Message(None, encode(Lost(self._node, int(since * 1000))))], since):
                return
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_EVENTS))]
        if taken:
            self._on_its_way = len(taken)
            began_at = taken[0][0]
            try:
                messages = list(self._messages(began_at, [entry for _, _, entry in taken]))
            except Exception:
                logger.exception("backplane: events cannot be sent to other nodes")
                self._note_lost(began_at)
            else:
                await self._try(messages, began_at)
            self._bytes -= sum(size for _, size, _ in taken)
            self._on_its_way = 0

    async def _try(self, messages: Sequence[Message], began_at: float) -> bool:
        """Send them, again and again until they are too old, which is noted."""
        while True:
            try:
                await self._link.send(messages)
                self._is_connected.set()  # the link may never have noticed that it was not
                return True
            except LinkDown:
                self._is_connected.clear()
            except Exception:
                logger.exception("messages to other nodes could not be sent")
                self._note_lost(began_at)
                return False
            await self._until_connected()
            if self._is_stopped or self._clock() - began_at > MAX_AGE_S:
                self._note_lost(began_at)
                return False

    async def _until_connected(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._is_connected.wait()

    def _drop_what_is_too_old(self) -> None:
        if self._queue and self._clock() - self._queue[0][0] > MAX_AGE_S:
            self._drop("other nodes could not be reached for too long")

    def _drop(self, why: str) -> None:
        if self._queue:
            logger.warning(
                "backplane: %s; %d events were dropped, and will be read instead", why, len(self._queue)
            )
            self._note_lost(self._queue[0][0])
            self._bytes -= sum(size for _, size, _ in self._queue)
            self._queue.clear()

    def _note_lost(self, since: float) -> None:
        self._lost_since = since if self._lost_since is None else min(self._lost_since, since)
        self._is_idle.clear()
        self._wake.set()

    # -- messages --------------------------------------------------------------------------------------------
    def _messages(self, sent_at: float, entries: Sequence[Entry]) -> Iterator[Message]:
        """In the order of the events of each user."""
        by_address: dict[int | None, list[Entry]] = {}
        for entry in entries:
            to = None if isinstance(entry[1], Broadcasted) else self._link.shard_of(entry[0])
            by_address.setdefault(to, []).append(entry)
        for to, some in by_address.items():
            for portion in _portions(some):
                yield Message(to, encode_told(self._node, int(sent_at * 1000), portion, next(self._numbers)))

    async def send_now(self, message: Message) -> None:
        """A message beside the queue, once. Raises `LinkDown`."""
        await self._link.send([message])


def _portions(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    some: list[Entry] = []
    bodies: set[bytes] = set()
    size = 0
    for entry in entries:
        _, event, body = entry
        more = _size_of(event)
        if bodies and body is not None and body not in bodies:
            more += len(body)
        if some and (len(some) >= MESSAGE_EVENTS or size + more > MESSAGE_BYTES):
            yield some
            some, bodies, size, more = [], set(), 0, _size_of(event)
        some.append(entry)
        size += more
        if body is not None:
            bodies.add(body)
    if some:
        yield some


def _size_of(event: Event) -> int:
    """Without its notification."""
    return EVENT_BYTES + (ID_BYTES * len(event.ids) if isinstance(event, Seen | Unseen | Deleted) else 0)
