"""What one connection is shown, in the right order: answers to what it asked, and pushes from its user's room.

Pushes that arrive while an answer is being made wait behind it. A push that tells of a state older than what an answer
has shown is dropped. So a stale read never overtakes a fresh push, nor a stale push a fresh read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from server.dialects import Dialect
from server.messages import Added, Deleted, Document, Event, Restored, Seen, Unseen, now
from server.revs import COUNTER_BITS
from server.rooms import REORDER_WINDOW_S, Connection, Push, SignIn
from server.wire import SLOW, Frame

REMEMBERED_S = REORDER_WINDOW_S + 15.0
"""How long a changed document that an answer has shown is known: a push could be behind that answer, and what may have
been missed is read from some seconds earlier, by clocks that differ a little."""


class Owner(Protocol):
    """The session, as its screen sees it."""

    def missed(self, since: datetime) -> None:
        """As `rooms.Listener.missed`."""


class Screen:
    """The member of a room (`rooms.Listener`) behind one connection. `max_held_bytes`: of pushes that wait."""

    __slots__ = (
        "__weakref__",
        "_answered",
        "_forgetting",
        "_held",
        "_held_bytes",
        "_listed_to",
        "_max_held_bytes",
        "connection",
        "dialect",
        "joined_at",
        "owner",
        "sign_in",
    )

    def __init__(self, connection: Connection, dialect: Dialect, max_held_bytes: int, owner: Owner) -> None:
        self.connection = connection
        self.owner = owner
        self.dialect = dialect
        self.sign_in: SignIn | None = None
        # what was there before, the answers to the join have shown, or will
        self.joined_at = now()
        self._max_held_bytes = max_held_bytes
        # pushes waiting behind an answer; None while no answer is being made
        self._held: list[Push] | None = None
        self._held_bytes = 0
        # while a listing of unseen documents waits to be read on: the last document it has shown
        self._listed_to: Document | None = None
        # revs of recently changed documents that answers have shown; None if there are none
        self._answered: dict[str, int] | None = None
        self._forgetting: asyncio.TimerHandle | None = None

    # -- pushes ----------------------------------------------------------------------------------------------
    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        """Send what these pushes tell, behind the answer that is being made if there is one. More waiting than may
        wait closes the connection as slow."""
        if self._held is not None:
            self._hold(self._held, pushes)
        elif self._answered is None:
            self.connection.send(burst)
        else:
            self._send_news(pushes)

    def _hold(self, held: list[Push], pushes: Sequence[Push]) -> None:
        kept = [push for push in pushes if not self._is_yet_to_be_listed(push[0])]
        held.extend(kept)
        self._held_bytes += sum(len(frame.text) for _, frame in kept)
        if self._held_bytes > self._max_held_bytes and len(held) > 1:
            self.connection.close(SLOW)

    def _is_yet_to_be_listed(self, event: Event) -> bool:
        """Whether the listing of unseen documents under way is sure to come to the document that `event` brings."""
        after = self._listed_to
        if after is None or not isinstance(event, Added) or event.document.seen:
            return False
        return event.document.place > after.place

    def _send_news(self, pushes: Sequence[Push]) -> Sequence[Push]:
        """Those that are sent."""
        news = self._news(pushes)
        for _, frame in news:
            self.connection.send(frame)
        return news

    def _news(self, pushes: Sequence[Push]) -> Sequence[Push]:
        """Of these what answers have not shown already, nor something later."""
        if self._answered is None:
            return pushes
        news = []
        for push in pushes:
            event, _ = push
            left = _without(event, self._answered)
            if left is event:
                news.append(push)
            elif left is not None and (frame := self.dialect.frame(left)) is not None:
                news.append((left, frame))
        return news

    def missed(self, since: datetime) -> None:
        """Events since then may not have come; the owner reads what there is. What was stored before the join, which
        may have taken a while, was there. If the clock has stepped back since, nobody knows when that was."""
        if self.joined_at < now():
            since = max(since, self.joined_at - timedelta(seconds=REORDER_WINDOW_S))
        self.owner.missed(since)

    # -- answers ---------------------------------------------------------------------------------------------
    def begin_answer(self) -> None:
        """From now on pushes wait: call it before joining a room, and before reading. Those that wait already go on."""
        if self._held is None:
            self._held = []

    def end_answer(self) -> None:
        """Send the pushes that waited, without those that the answer has made old."""
        held, self._held, self._held_bytes = self._held, None, 0
        self._send_news(held or ())

    def answer(self, frame: Frame, documents: Sequence[Document] = ()) -> None:
        """Send a frame that answers, and shows these documents."""
        self.connection.send(frame)
        self._remember({document.id: document.rev for document in documents})

    def unshown(self, documents: Sequence[Document]) -> Sequence[Document]:
        """Those of these changed documents that no answer has shown as they are now."""
        shown = self._answered or {}
        return [document for document in documents if shown.get(document.id, -1) < document.rev]

    @contextlib.contextmanager
    def listing_waits(self, after: Document | None) -> Iterator[None]:
        """While the listing of unseen documents waits before it reads on, pushes of documents beyond `after` (the last
        one shown; None: nothing is left) are dropped, since the listing will come to them. Otherwise a client on a slow
        line would be closed as slow for what it could not have been sent yet. The listing must read on afterwards,
        however often that fails."""
        self._listed_to = after
        held, self._held, self._held_bytes = self._held or [], [], 0
        self._hold(self._held, held)
        try:
            yield
        finally:
            self._listed_to = None

    def forget(self) -> None:
        """What was shown was another user's."""
        self._answered = None

    def _remember(self, revs: Mapping[str, int]) -> None:
        """Keep the revs (by id) that a push still under way could be behind: those of the last seconds."""
        oldest = int((time.time() - REMEMBERED_S) * 1000) << COUNTER_BITS
        recent = {id_: rev for id_, rev in revs.items() if rev > oldest}
        if not recent:
            return
        self._answered = recent if self._answered is None else self._answered | recent
        if self._forgetting is None:
            self._forgetting = asyncio.get_running_loop().call_later(REMEMBERED_S, self._prune)

    def _prune(self) -> None:
        answered, self._answered, self._forgetting = self._answered, None, None
        self._remember(answered or {})


def _without(event: Event, revs: Mapping[str, int]) -> Event | None:
    """What `event` tells of documents that are not known with its rev or a later one; None: nothing. A client whose
    dialect has no revs would take the rest for news, too."""
    if isinstance(event, Added | Restored):
        return None if revs.get(event.document.id, -1) >= event.rev else event
    if not isinstance(event, Seen | Unseen | Deleted):
        return event
    known = {id_ for id_ in event.changed_ids if revs.get(id_, -1) >= event.rev}
    if not known:
        return event
    left = tuple(id_ for id_ in event.ids if id_ not in known)
    if not left:
        return None
    if isinstance(event, Seen):
        return replace(event, ids=left, changed=tuple(id_ for id_ in event.changed_ids if id_ not in known))
    return replace(event, ids=left)
