"""What one connection that only listens is shown: what waited for it, and pushes, none of which comes twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from server.dialects import Dialect
from server.marks import Sent
from server.messages import Added, Document, Event, now
from server.revs import instant_of
from server.rooms import REORDER_WINDOW_S, Connection, Push
from server.screen import Owner, Screen
from server.wire import Frame

MAX_REMEMBERED = 100
"""Of the documents that a connection was sent."""

INSTANT = timedelta(milliseconds=1)
"""Several documents may be of the same."""

_BEFORE_ALL = datetime.fromtimestamp(0, UTC)


class Told:
    """The last documents that one connection was sent, so that it is not told again of what it has not missed."""

    __slots__ = ("_documents", "complete_since")

    def __init__(self) -> None:
        # with when they were made, by the clock of the node that made them
        self._documents: deque[tuple[str, datetime]] = deque()
        self.complete_since = _BEFORE_ALL
        """Of what was made before, some that was sent is forgotten; of what was made then or later, nothing."""

    def add(self, document: Document) -> None:
        self._documents.append((document.id, document.created_at))
        if len(self._documents) > MAX_REMEMBERED:
            _, created_at = self._documents.popleft()
            self.complete_since = max(self.complete_since, created_at + INSTANT)

    @property
    def ids(self) -> set[str]:
        return {id_ for id_, _ in self._documents}


class FeedScreen(Screen):
    """Keeps account of the documents sent (`sent`: of those that may not have arrived yet; `told`: of the last ones;
    None: nobody asks). What was listed does not come again as a push, however long the listing took."""

    __slots__ = ("sent", "told")

    def __init__(self, connection: Connection, dialect: Dialect, max_held_bytes: int, owner: Owner) -> None:
        super().__init__(connection, dialect, max_held_bytes, owner)
        self.sent: Sent | None = None
        self.told: Told | None = None

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        is_straight = self._held is None and self._answered is None
        super().push(pushes, burst)
        if is_straight:
            self._note_sent(pushes)

    def _send_news(self, pushes: Sequence[Push]) -> Sequence[Push]:
        news = super()._send_news(pushes)
        self._note_sent(news)
        return news

    def answer(self, frame: Frame, documents: Sequence[Document] = ()) -> None:
        super().answer(frame, documents)
        self._drop_held({document.id: document.rev for document in documents})
        self._note_sent([(Added(document), frame) for document in documents])

    def let_pass(self, listed: Document) -> None:
        """Send those waiting pushes whose documents are older than the one that is listed next."""
        held = self._held or []
        older = list(takewhile(lambda push: _is_older(push[0], listed), held))
        if older:
            self._wait_on(held[len(older) :])
            self._send_news(older)

    def _drop_held(self, listed: Mapping[str, int]) -> None:
        held = self._held or []
        kept = [push for push in held if not self._is_shown(push[0], listed)]
        if len(kept) < len(held):
            self._wait_on(kept)

    def _is_shown(self, event: Event, shown: Mapping[str, int]) -> bool:
        """Whether a document is brought that was shown so, or later (`shown`: with which revs)."""
        return isinstance(event, Added) and shown.get(event.document.id, -1) >= event.rev

    def _wait_on(self, held: list[Push]) -> None:
        self._held = held
        self._held_bytes = sum(len(frame.text) for _, frame in held)

    def _note_sent(self, pushes: Sequence[Push]) -> None:
        # A connection that has just been closed as slow has dropped it.
        if (self.sent is None and self.told is None) or self.connection.is_closed:
            return
        for event, frame in pushes:
            if isinstance(event, Added):
                self._note(event.document, len(frame.text))

    def _note(self, document: Document, size: int) -> None:
        if self.sent is not None:
            self.sent.add(document.id, size)
        if self.told is not None:
            self.told.add(document)

    @property
    def known(self) -> set[str]:
        """Of the documents that were sent those that are remembered."""
        ids = set(self._answered or ())
        if self.told is not None:
            ids |= self.told.ids
        return ids if self.sent is None else ids | self.sent.under_way


class OnceScreen(FeedScreen):
    """Of clients that are told of each document once, and of nothing that becomes of it."""

    __slots__ = ()

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        oldest = datetime.fromtimestamp(time.time() - REORDER_WINDOW_S, UTC)
        for event, _ in pushes:  # for each delivery: a loop costs less than what looks better
            if isinstance(event, Added) and _is_late(event.document, oldest):
                self._push_timely(pushes, oldest)
                return
        super().push(pushes, burst)

    def _push_timely(self, pushes: Sequence[Push], oldest: datetime) -> None:
        """Something was stored, and the store did not say so in time. It may have been listed since, and that be
        forgotten; the store knows to whom it is still to be sent."""
        self.missed(now())
        for push in pushes:
            event, frame = push
            if not isinstance(event, Added) or not _is_late(event.document, oldest):
                super().push([push], frame)

    def _news(self, pushes: Sequence[Push]) -> Sequence[Push]:
        return [push for push in pushes if not self._is_shown(push[0], self._answered or {})]

    def _is_shown(self, event: Event, shown: Mapping[str, int]) -> bool:
        # With whatever rev: what comes late is told as what has become of it.
        return isinstance(event, Added) and event.document.id in shown


def _is_late(document: Document, oldest: datetime) -> bool:
    """Whether it may have been stored before then. Its rev tells, until it is changed; a document of a broadcast may be
    stored long after the notification was accepted."""
    created_at = document.created_at
    return created_at < oldest and (document.updated_at != created_at or instant_of(document.rev) < oldest)


def _is_older(event: Event, listed: Document) -> bool:
    return isinstance(event, Added) and event.document.place < listed.place
