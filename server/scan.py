"""A circular scan of one room: from connection to connection, round and round, while there is something to tell.

What is published enters wherever the scan is, and has been told to all when the scan comes round to there again. A
connection gets all that has entered since it was visited last as one write. So an event takes one lap at most, joins
those that are under way already, and the more there is to tell, the less each costs.

Who joins takes the last place, the one that the scan comes to after all others. So what has entered concerns as many
visits as there were places at that moment, and none after them: who is visited then has been told, or has read the
inbox, which has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

from server.dialects import Dialect
from server.messages import Event
from server.rooms import Listener, Push, Room
from server.wire import FAILED, Burst, Frame

logger = logging.getLogger(__name__)

VISITS_PER_STEP = 32
"""Connections that are told at a time."""

MAX_BURST_CHARS = 32 * 1024
"""How much is joined into one write: enough to save most of the calls, little enough for any queue."""

Told = list[tuple[list[Push], Frame]]
"""What is told at a visit, in order, in portions; each as single frames and as one."""


class Publication:
    """Events that were published together, and how many of them have not been told to all yet."""

    __slots__ = ("frames", "handed_over", "under_way")

    def __init__(self, handed_over: Callable[[int], None] | None) -> None:
        """`handed_over`: as `Backplane.publish` has it."""
        self.handed_over = handed_over
        self.frames = 0
        """How many they make: one for each connection of each of their users."""
        self.under_way = 0


class _Entry:
    """An event that has entered. `end`: the number of the visit before which all have been told."""

    __slots__ = ("_frames", "end", "event", "publication")

    def __init__(self, event: Event, end: int, publication: Publication) -> None:
        self.event = event
        self.end = end
        self.publication = publication
        self._frames: dict[Dialect, Frame | None] | None = None

    def frame(self, dialect: Dialect) -> Frame | None:
        """Of the event; made once."""
        if self._frames is None:
            self._frames = {}
        if dialect not in self._frames:
            self._frames[dialect] = dialect.frame(self.event)
        return self._frames[dialect]


class Scan:
    """One for each room that is being told."""

    __slots__ = ("_circle", "_gone", "_place", "_told", "_visits", "_window", "room")

    def __init__(self, room: Room, members: Iterable[Listener]) -> None:
        """`members`: who is in the room; of the others it is to be told (`joined`, `left`)."""
        self.room = room
        self._circle = list(members)
        # in the circle: who is next
        self._place = 0
        # that were, those to somebody who had gone included
        self._visits = 0
        # what the next to be visited is told
        self._window: list[_Entry] = []
        # the window as it is told in a dialect, until it changes
        self._told: dict[Dialect, Told] | None = None
        # who has left, and still has so many places in the circle; who joins again has one more
        self._gone: dict[Listener, int] | None = None

    # -- who is to be told -----------------------------------------------------------------------------------
    def joined(self, listener: Listener) -> None:
        """As `rooms.Follower`. They are told what is published from now on."""
        self._circle.insert(self._place, listener)
        self._place += 1

    def left(self, listener: Listener) -> None:
        """As `rooms.Follower`. They are told nothing more."""
        if self._gone is None:
            self._gone = {}
        self._gone[listener] = self._gone.get(listener, 0) + 1

    # -- what they are told ----------------------------------------------------------------------------------
    def enter(self, event: Event, publication: Publication) -> None:
        """Tell of an event all who are in the room now, behind what they are still to be told."""
        self._window.append(_Entry(event, self._visits + len(self._circle), publication))
        self._told = None

    @property
    def end(self) -> int:
        """The number of the visit before which all that has entered has been told to all. Not for one that is over."""
        return self._window[-1].end

    def has_come_to(self, end: int) -> bool:
        """Whether what had this `end` has been told to all."""
        return self._visits >= end

    def step(self) -> list[Publication]:
        """Visit some connections; to be called until it `is_over`. Returns the publications of the events that have now
        been told to all. Who fails at being told, which nobody should, is closed, comes back and reads the inbox."""
        for listener in self._next():
            try:
                for pushes, frame in self._told_in(listener.dialect):
                    listener.push(pushes, frame)
            except Exception:
                logger.exception("could not deliver events to tenant=%s user=%s", *self.room)
                asyncio.get_running_loop().call_soon(listener.connection.close, FAILED)
        count = 0
        while count < len(self._window) and self.has_come_to(self._window[count].end):
            count += 1
        if not count:
            return []
        done = [entry.publication for entry in self._window[:count]]
        del self._window[:count]
        self._told = None
        return done

    @property
    def is_over(self) -> bool:
        """Whether everything has been told to all."""
        return not self._window

    def _next(self) -> list[Listener]:
        """Who is to be told the same, and now. They count as visited at once: a push may close its connection, which
        leaves the room."""
        start = self._place
        end = min(start + VISITS_PER_STEP, start + self._window[0].end - self._visits, len(self._circle))
        listeners = self._circle[start:end]
        self._visits += len(listeners)
        if self._gone:
            listeners = [listener for listener in listeners if not _is_gone(self._gone, listener)]
            self._circle[start:end] = listeners
        self._place = start + len(listeners)
        if self._place == len(self._circle):
            self._place = 0
        return listeners

    def _told_in(self, dialect: Dialect) -> Told:
        if self._told is None:
            self._told = {}
        told = self._told.get(dialect)
        if told is None:
            pushes = [
                (entry.event, frame) for entry in self._window if (frame := entry.frame(dialect)) is not None
            ]
            told = self._told[dialect] = [(some, _as_one(some)) for some in _portions(pushes)]
        return told


def _is_gone(gone: dict[Listener, int], listener: Listener) -> bool:
    """Whether this place in the circle is none any more. Of several, the first ones are those that were left."""
    places = gone.pop(listener, 0)
    if places > 1:
        gone[listener] = places - 1
    return places > 0


def _as_one(pushes: list[Push]) -> Frame:
    return pushes[0][1] if len(pushes) == 1 else Burst([frame for _, frame in pushes])


def _portions(pushes: list[Push]) -> Iterator[list[Push]]:
    """Of at most `MAX_BURST_CHARS`, or of one."""
    some: list[Push] = []
    size = 0
    for push in pushes:
        size += len(push[1].text)
        if some and size > MAX_BURST_CHARS:
            yield some
            some, size = [], len(push[1].text)
        some.append(push)
    if some:
        yield some
