"""Rooms: which sessions on this node belong to a user, and what has become of the documents that they were told of.

A room exists while it has a session.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from server.callers import Caller
from server.dialects import Dialect, Farewell
from server.messages import Added, Deleted, Event, Restored, Seen, Unseen, altered, now
from server.revs import instant_of
from server.wire import TOKEN_EXPIRED, CloseReason, Frame

REORDER_WINDOW_S = 30.0
"""How long a push may be overtaken by a later change of the same document: above any store time-out."""

SLICE_S = 0.005
"""How long closing many may hold the loop before others get a turn."""

RESTART_MS = 500
"""Before that nobody need come back after the end of the server."""

RETURNING_PER_S = 500
"""How many clients are to come back in a second, on average."""

MIN_RETURN_S = 1.0
MAX_RETURN_S = 30.0
"""Over how long they are spread at least, and at most."""


class Connection(Protocol):
    """A transport's side of one client, as a session sees it. Made by a door of `transports`."""

    caller: Caller
    """Where the client calls from."""

    def send(self, frame: Frame) -> None:
        """Queue a frame; never blocks, never raises, does nothing on a closed connection. An empty queue
        takes any one frame; one that would take a queue over its bound closes the connection as slow and is
        dropped."""

    async def drained(self) -> None:
        """Return when all that was sent has left the queue, or the connection is closed."""

    @property
    def in_flight_bytes(self) -> int:
        """How much of what was sent has not arrived at the client's machine, as far as that can be known; of a
        connection that was cut off: all."""

    def close(self, reason: CloseReason) -> None:
        """End the connection with this code and reason, once; what is queued may be lost. Idempotent."""

    @property
    def is_closed(self) -> bool: ...

    @property
    def last_alive_at(self) -> float:
        """When the client last gave a sign of life (anything it sent, a pong, an acknowledged heartbeat);
        `time.monotonic`."""


def close_at(connection: Connection, expires_at: datetime | None) -> asyncio.TimerHandle | None:
    """Close the connection when the token by which it joined ends, unless the timer is cancelled before. None: it does
    not end."""
    if expires_at is None:
        return None
    delay_s = max(0.0, (expires_at - now()).total_seconds())
    return asyncio.get_running_loop().call_later(delay_s, connection.close, TOKEN_EXPIRED)


@dataclass(frozen=True, slots=True)
class SignIn:
    """By what somebody is in a room. `proved_at`: when they proved who they are, or when their token was made (aware
    UTC); `by_own_clock`: by the clock of this node. `key_id`: the API key, or the password of config.ini, that it was
    made with; `secret_id`: the secret of ours that signed it; None: none."""

    proved_at: datetime
    key_id: str | None = None
    secret_id: str | None = None
    by_own_clock: bool = False


Push = tuple[Event, Frame]
"""An event, and the frame that tells of it."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a document is since the change with this rev; `noted_at`: when that was heard of."""

    rev: int
    seen: bool
    deleted: bool
    noted_at: float


class Listener(Protocol):
    """What a room asks of its members (sessions)."""

    connection: Connection

    dialect: Dialect
    """In which it is told."""

    sign_in: SignIn | None
    """By what the member is in the room; None: nothing ends that."""

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        """Pass on some pushes in their order. `burst` is all of them as one frame, for who wants all. Never blocks,
        never raises, publishes nothing."""

    def missed(self, since: datetime) -> None:
        """Events since then (aware UTC) may not have come: see to it that the client is told what there is. Never
        blocks, never raises."""


class Follower(Protocol):
    """Who has to know at once who is in a room."""

    def joined(self, listener: Listener) -> None:
        """It was not in the room before."""

    def left(self, listener: Listener) -> None:
        """It was in the room."""


Room = tuple[str, str]
"""Its name: (tenant, user id)."""

NOBODY = ""
"""In the place of a user id: the room of those who listen to a tenant and have no user."""
Why = Callable[[Room, Listener], CloseReason | None]
"""Why this member of a room is to be put out; None: it is not."""


class Rooms:
    """The local connections of each user."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._members: dict[Room, set[Listener]] = {}
        self._users: Counter[str] = Counter()
        self._joined: Counter[str] = Counter()
        self._clock = clock
        self._last_alive: OrderedDict[Room, float] = OrderedDict()
        self._changed: OrderedDict[str, _State] = OrderedDict()
        # those of the last `REORDER_WINDOW_S`
        self._began_at: OrderedDict[Room, float] = OrderedDict()
        self.watch: Callable[[Room], None] | None = None
        """Is called for each room that begins to exist or ceases to."""
        self.followers: Mapping[Room, Follower] = {}
        """By the room that they follow."""

    # -- membership ------------------------------------------------------------------------------------------
    def join(self, room: Room, listener: Listener) -> None:
        """Add a listener to a user's room; nothing happens if it is in it."""
        members = self._members.setdefault(room, set())
        if listener in members:
            return
        is_new = not members
        self._users[room[0]] += is_new and room[1] != NOBODY
        self._joined[room[0]] += 1
        members.add(listener)
        if room in self.followers:
            self.followers[room].joined(listener)
        if is_new:
            self._note_beginning(room)
            if self.watch is not None:
                self.watch(room)

    def _note_beginning(self, room: Room) -> None:
        at = self._began_at[room] = self._clock()
        while at - next(iter(self._began_at.values())) > REORDER_WINDOW_S:
            self._began_at.popitem(last=False)

    def leave(self, room: Room, listener: Listener) -> None:
        """Take a listener out of a room; nothing happens if it is not in it."""
        members = self._members.get(room)
        if members is None or listener not in members:
            return
        members.discard(listener)
        self._joined[room[0]] -= 1
        if room in self.followers:
            self.followers[room].left(listener)
        self._remember_sign_of_life(room, listener.connection.last_alive_at)
        if not members:
            self._users[room[0]] -= room[1] != NOBODY
            del self._members[room]
            self._began_at.pop(room, None)
            if self.watch is not None:
                self.watch(room)

    def members(self, room: Room) -> Collection[Listener]:
        """The connections that the user has on this node, as long as none joins or leaves."""
        return self._members.get(room, ())

    def is_online(self, room: Room) -> bool:
        """Whether the user has a connection on this node."""
        return room in self._members

    def began_after(self, room: Room, moment: float) -> bool:
        """Whether the user has a connection on this node only since after this moment (`time.monotonic`), which is at
        most `REORDER_WINDOW_S` ago: of what became of documents before nothing was heard here."""
        return room in self._began_at and self._began_at[room] > moment

    def online(self, rooms: Iterable[Room]) -> list[Room]:
        """Those of the rooms that have members, in the order given."""
        return [room for room in rooms if room in self._members]

    def counts_as(self, room: Room) -> Collection[type[Event] | None]:
        """By which events its members are told how many notifications there are (`Dialect.counts_as`)."""
        return {listener.dialect.counts_as for listener in self._members.get(room, ())}

    def users_of(self, tenant: str) -> list[str]:
        """The users of a tenant who have a connection on this node."""
        return [user_id for owner, user_id in self._members if owner == tenant and user_id != NOBODY]

    def all(self) -> list[Room]:
        """Those there are now."""
        return list(self._members)

    @property
    def user_count(self) -> int:
        return len(self._members)

    @property
    def users_by_tenant(self) -> Mapping[str, int]:
        """How many users are online; a tenant stays in it when its last one has gone."""
        return self._users

    @property
    def joined_by_tenant(self) -> Mapping[str, int]:
        """How many connections have a user; a tenant stays in it when its last one has gone."""
        return self._joined

    def last_alive_at(self, room: Room) -> float | None:
        """When any connection of the user last gave a sign of life (`time.monotonic`); None if that is not
        known (never here, or longer ago than `remember_signs_of_life` keeps)."""
        times = [listener.connection.last_alive_at for listener in self._members.get(room, ())]
        if room in self._last_alive:
            times.append(self._last_alive[room])
        return max(times, default=None)

    def alive_since(self, tenant: str, user_ids: Iterable[str], silent_for_s: float) -> set[str]:
        """Those of these users who gave a sign of life within the last so many seconds."""
        since = time.monotonic() - silent_for_s
        return {
            user_id
            for user_id in user_ids
            if (at := self.last_alive_at((tenant, user_id))) is not None and at > since
        }

    def _remember_sign_of_life(self, room: Room, at: float) -> None:
        self._last_alive[room] = max(at, self._last_alive.pop(room, at))

    def forget_signs_of_life(self, before: float) -> None:
        """Drop what is remembered of users who left before this moment (`time.monotonic`)."""
        while self._last_alive:
            room, at = next(iter(self._last_alive.items()))
            if at >= before:
                return
            del self._last_alive[room]

    # -- what has become of documents ------------------------------------------------------------------------
    def brought_up_to_date(self, event: Event) -> Event | None:
        """`event` as it is to be told after all that came here before; None: not at all. To be called for each event,
        in the order in which they are told.

        Events may come late, after a later change of the same document. A late `Added` is told as what the document has
        become, or not at all if it was deleted; any other late change is not told. So no screen goes back in time, and
        none misses a document."""
        self._note_change(event)
        if not isinstance(event, Added | Restored):
            return self._without_overtaken(event) if isinstance(event, Seen | Unseen | Deleted) else event
        state = self._changed.get(event.document.id)
        if state is None or state.rev <= event.rev:
            return event
        if state.deleted:
            return None
        updated_at = instant_of(state.rev)
        document = altered(event.document, seen=state.seen, rev=state.rev, updated_at=updated_at)
        return altered(event, document=document)

    def _without_overtaken(self, event: Seen | Unseen | Deleted) -> Event | None:
        """The same event, for those of its documents of which nothing later was told; None: there are none. Two
        connections, or two nodes, may change the same document, and be heard of in the other order. A client whose
        dialect has no revs would take a late `Deleted` for the end of a document that was restored."""
        kept = tuple(
            id_
            for id_ in event.changed_ids
            if (state := self._changed.get(id_)) is None or state.rev <= event.rev
        )
        if len(kept) == len(event.changed_ids):
            return event
        if isinstance(event, Seen):
            # `ids` stay: in the classic dialect, which knows no `unseen`, they are somebody's answer.
            return replace(event, changed=kept)
        return replace(event, ids=kept) if kept else None

    def _note_change(self, event: Event) -> None:
        """Remember what has become of documents, for those whose `Added` may come behind."""
        if isinstance(event, Added):  # mostly
            return
        at = self._clock()
        if isinstance(event, Seen | Unseen | Deleted):
            state = _State(event.rev, isinstance(event, Seen), isinstance(event, Deleted), at)
            ids = event.changed_ids
        elif isinstance(event, Restored):
            state = _State(event.rev, event.document.seen, False, at)
            ids = (event.document.id,)
        else:
            return
        for id_ in ids:
            known = self._changed.pop(id_, state)
            self._changed[id_] = state if state.rev >= known.rev else replace(known, noted_at=at)
        while self._changed and at - next(iter(self._changed.values())).noted_at > REORDER_WINDOW_S:
            self._changed.popitem(last=False)

    def say_bye(self) -> None:
        """The server ends: tell those who can be told when to come back, not all at the same time."""
        listeners = [listener for members in self._members.values() for listener in members]
        spread_ms = 1000 * min(max(len(listeners) / RETURNING_PER_S, MIN_RETURN_S), MAX_RETURN_S)
        for listener in listeners:
            if isinstance(listener.dialect, Farewell):
                retry_ms = round(RESTART_MS + random.uniform(0, spread_ms))  # noqa: S311  # no secret
                listener.connection.send(listener.dialect.bye(retry_ms))

    def missed(self, room: Room, since: datetime) -> None:
        """Events of this user since then may not have come to this node."""
        for listener in tuple(self._members.get(room, ())):
            listener.missed(since)

    # -- putting out -----------------------------------------------------------------------------------------
    def close_in(self, rooms: Iterable[Room], why: Why) -> int:
        """Close the connections of those members of these rooms for which `why` has a reason; how many those were."""
        found = [
            (listener, reason)
            for room in rooms
            for listener in self._members.get(room, ())
            if (reason := why(room, listener)) is not None
        ]
        for listener, reason in found:
            listener.connection.close(reason)
        return len(found)

    async def close_where(self, why: Why) -> int:
        """As `close_in`, for all rooms there are now, in slices that leave the loop to others in between. Who joins
        meanwhile may not be asked about."""
        closed = 0
        ends_at = time.monotonic() + SLICE_S
        for room in list(self._members):
            closed += self.close_in([room], why)
            if time.monotonic() >= ends_at:
                await asyncio.sleep(0)
                ends_at = time.monotonic() + SLICE_S
        return closed
