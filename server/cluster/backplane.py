"""The backplane of one node among several: hands events to its own connections at once, as if it were alone, then tells
the other nodes; and passes on what those tell.

A message that comes twice is told once (`repeats`), and an event that comes behind a later one of the same document
does no harm: its rev says what it is. What may not have come at all is read from the store (`gaps`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from server.backplane import Backplane, LocalBackplane
from server.bus import BROADCAST_HEARD, INBOX_CHANGED, REFUSED, tell
from server.checks import Probe
from server.cluster.asking import Asking
from server.cluster.codec import (
    Answered,
    AnyMessage,
    Asked,
    Garbled,
    Left,
    Lost,
    Reader,
    Told,
    decode,
    encode,
    from_ms,
)
from server.cluster.gaps import Gaps
from server.cluster.link import LIFE_S, Link, LinkDown, Message
from server.cluster.outgoing import MAX_AGE_S, Outgoing
from server.cluster.repeats import Repeats
from server.messages import Broadcasted, Counted, Event, UnseenCount, now
from server.rooms import NOBODY, Room, Rooms
from server.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Nodes send less: see `outgoing.NOTIFICATION_BYTES`."""

MARGIN = timedelta(seconds=LIFE_S + 2)
"""A gap is taken to have begun so much earlier: between a change and its being told there is some time; and a node may
have died just before, unnoticed."""

MAX_GAP = timedelta(days=1)
"""Of what another node says that it has told nobody of."""

LATE_S = 5.0
"""What was on its way for longer may be older than what somebody who has come meanwhile has read, since they had the
time to change it elsewhere. Less counts for nothing: clocks differ."""

MAX_ANSWERING = 100
"""Questions of other nodes that are being answered."""

FINISH_S = 5.0
"""For what is under way to end by itself at the end."""

REPORT_EVERY_S = 60.0
"""Messages that cannot be read are logged at most so often."""


def new_node_id() -> str:
    """For one process."""
    return secrets.token_hex(8)


class ClusterBackplane(Backplane):
    """One for each node; `link` has the same `node` id."""

    def __init__(self, rooms: Rooms, link: Link, node: str) -> None:
        self._rooms = rooms
        self._link = link
        self._node = node
        self._local = LocalBackplane(rooms)
        self._outgoing = Outgoing(link, node)
        self._gaps = Gaps(rooms)
        self._asking = Asking(node, rooms, self._outgoing.send_now)
        self._reader = Reader()
        self._repeats = Repeats()
        self._tasks = Tasks()
        self._answering = Tasks()
        # as they were last heard of
        self._nodes: frozenset[str] = frozenset()
        self._heard_of_at = now()
        self._left: set[str] = set()
        self._garbled = 0
        self._reported_at = -REPORT_EVERY_S
        self._is_closed = False
        self._filling: asyncio.Task[None] | None = None
        rooms.watch = link.note

    # -- publishing ------------------------------------------------------------------------------------------
    def publish(
        self, events: Iterable[tuple[Room, Event]], handed_over: Callable[[int], None] | None = None
    ) -> None:
        all_events = list(events)
        self._local.publish(all_events, handed_over)
        for room, event in all_events:
            # Each node counts for its own users.
            if not isinstance(event, UnseenCount | Counted):
                self._outgoing.put(room, event)

    async def has_space(self) -> None:
        # Never for the other nodes: one that cannot be reached must hold up nobody.
        await self._local.has_space()

    async def flushed(self) -> None:
        await self._local.flushed()
        await self._outgoing.flushed()

    async def delivered(self, room: Room) -> None:
        await self._local.delivered(room)

    @property
    def waiting(self) -> int:
        return self._local.waiting

    @property
    def queues(self) -> Mapping[str, Callable[[], int]]:
        return {"backplane": lambda: self._outgoing.waiting, "gaps": lambda: self._gaps.waiting}

    @property
    def probes(self) -> Mapping[str, Probe]:
        return {"backplane": self._link.probe}

    # -- other nodes -----------------------------------------------------------------------------------------
    @property
    def others(self) -> frozenset[str]:
        """The other nodes that are alive, as far as is known."""
        return self._nodes - {self._node}

    def start(self) -> None:
        self._tasks.start(self._link.run(self), "backplane")
        self._tasks.start(self._outgoing.run(), "backplane sending")
        self._filling = self._tasks.start(self._gaps.run(), "backplane gaps")

    async def close(self) -> None:
        if self._is_closed or self._filling is None:
            return
        self._is_closed = True
        try:
            await self.flushed()
            await self._outgoing.send_now(Message(None, encode(Left(self._node))))
        except LinkDown:
            pass
        finally:
            self._outgoing.stop()
            self._link.stop()
            await self._answering.finish(FINISH_S)
            self._filling.cancel()
            await self._tasks.finish(FINISH_S)
            await self._link.leave()

    async def online_elsewhere(self, rooms: Collection[Room]) -> set[Room]:
        if not self.others:
            return set()
        try:
            return await self._link.online(rooms, self.others)
        except LinkDown:
            return set()

    async def alive_elsewhere(self, tenant: str, user_ids: Collection[str], silent_for_s: float) -> set[str]:
        if not self.others:
            return set()
        try:
            return await self._asking.alive(self.others, tenant, user_ids, silent_for_s)
        except LinkDown:
            return set()

    # -- what the link tells (`link.Ears`) -------------------------------------------------------------------
    def received(self, body: bytes) -> None:
        """As `Ears`. What cannot be read is counted and forgotten: it comes from another version, or from somebody who
        should have no access to the link."""
        try:
            if len(body) > MAX_MESSAGE_BYTES:
                raise Garbled
            message = decode(body)
            if message.node != self._node:
                self._hear(message)
        except Garbled:
            self._note_garbled()
        except Exception:
            logger.exception("backplane: a message failed")

    def _hear(self, message: AnyMessage) -> None:
        match message:
            case Told():
                if not self._repeats.is_one(message.node, message.number):
                    self._pass_on(message)
            case Asked():
                if len(self._answering) < MAX_ANSWERING:
                    self._answering.start(self._asking.answer(message), "backplane answer")
            case Answered():
                self._asking.note(message)
            case Lost():
                since = max(_instant(message.since_ms), now() - MAX_GAP)
                self.missed(self._rooms.all(), since)
            case Left():
                self._left.add(message.node)

    def _pass_on(self, told: Told) -> None:
        age_s = time.time() - told.sent_ms / 1000
        if age_s > MAX_AGE_S:
            # Too late to be put in order: see `rooms.REORDER_WINDOW_S`.
            self.missed(((tenant, user_id) for tenant, user_id, _ in told.events), _instant(told.sent_ms))
            return
        events = list(self._reader.events(told, self._is_wanted))
        broadcasts = [(room, event) for room, event in events if isinstance(event, Broadcasted)]
        changed = {room for room, _ in events if room[1] != NOBODY}
        if age_s > LATE_S:
            # Who came later has read what has become of these documents, of which nothing was heard here.
            told_at = time.monotonic() - age_s
            came_later = {room for room in changed if self._rooms.began_after(room, told_at)}
            self.missed(came_later, _instant(told.sent_ms))
            events = [(room, event) for room, event in events if room not in came_later]
        self._local.publish(events)
        if changed:
            tell(INBOX_CHANGED, self, rooms=changed)
        for _, event in broadcasts:
            tell(BROADCAST_HEARD, self, notification=event.notification)

    def _is_wanted(self, room: Room) -> bool:
        return room[1] == NOBODY or self._rooms.is_online(room)

    async def ready(self) -> None:
        await self._local.has_space()

    def connected(self) -> None:
        """As `Ears`. Nodes may have come and died of which this one has never heard."""
        self._note_deaths_since(self._heard_of_at)
        self._outgoing.connected()

    def missed(self, rooms: Iterable[Room], since: datetime) -> None:
        self._gaps.note(rooms, min(since, datetime.now(UTC)) - MARGIN)

    def heard_of(self, nodes: Collection[str]) -> None:
        """As `Ears`. A node that is gone without a word may have stored what it has told nobody of."""
        before, self._nodes = self._nodes, frozenset(nodes)
        heard_at, self._heard_of_at = self._heard_of_at, now()
        died = before - self._nodes - self._left - {self._node}
        self._left &= self._nodes
        if died:
            logger.warning("backplane: %d nodes are gone without a word", len(died))
            self._note_deaths_since(heard_at)

    def _note_deaths_since(self, heard_of_at: datetime) -> None:
        """Nodes may have died since it was last heard who is alive, and what they stored need not have been told."""
        self.missed(self._rooms.all(), heard_of_at - timedelta(seconds=2 * LIFE_S))

    def _note_garbled(self) -> None:
        self._garbled += 1
        tell(REFUSED, self, door="backplane", code="garbled", tenant=None)
        present = time.monotonic()
        if present - self._reported_at >= REPORT_EVERY_S:
            logger.warning("backplane: %d messages could not be read, and were ignored", self._garbled)
            self._garbled, self._reported_at = 0, present


def _instant(ms: int) -> datetime:
    """Raises `Garbled`."""
    try:
        return from_ms(ms)
    except OverflowError as exc:
        raise Garbled from exc
