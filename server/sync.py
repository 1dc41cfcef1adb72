"""What a client has missed: the changes of its user's inbox since it was last up to date, in bounded chunks.

The rules are those of docs/protocol.md, "Catching up".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.messages import Document
from server.revs import span_of
from server.rooms import Room
from server.since import Since, parse_since
from server.store import Store
from server.wire import MAX_DOCUMENTS_PER_FRAME, portions

LAST_ID = "f" * 24
"""Comes after all ids."""


class Retention(Protocol):
    """What is kept of a tenant's inboxes, and for how long. Answers from memory."""

    def floor(self, tenant: str) -> datetime | None:
        """Documents created before this are kept no longer; None: all are kept."""

    def oldest_since(self, tenant: str) -> int | None:
        """Of changes with a lower rev the tombstones may be gone; None: all are kept."""


class KeepsAll:
    """Nothing is ever dropped."""

    def floor(self, tenant: str) -> datetime | None:
        return None

    def oldest_since(self, tenant: str) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of what a client missed: documents as they are now, tombstones too, in the order of their changes. `upto`:
    the token to go on by, at once if there is `more`. `floor`: documents created before are gone. `reset`: what the
    client has is worth nothing; it is to drop all and to read anew, and `upto` is where it goes on from afterwards.
    `next_limit`: with which the next chunk is best read; little more than fits into one, as the rest is read again."""

    documents: Sequence[Document]
    more: bool
    upto: str
    floor: datetime | None
    reset: bool = False
    next_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a chunk begins. `after`: the place among the changes (see `Store.changes`); None: what the client has is
    worth nothing. `upto`: the rev that the sync leads up to."""

    after: tuple[int, str] | None
    upto: int


class Sync:
    """All verbs raise `StoreUnavailable`."""

    def __init__(self, store: Store, retention: Retention) -> None:
        self.chunk_documents = MAX_DOCUMENTS_PER_FRAME
        """At most so many are in a chunk, if nobody asks for fewer."""
        self._store = store
        self._retention = retention

    def floor(self, tenant: str) -> datetime | None:
        """As `Retention.floor`."""
        return self._retention.floor(tenant)

    async def now(self) -> Since:
        """A client that reads all of its inbox after this call has missed nothing up to what this returns."""
        return Since(self._store.epoch, await self._store.position())

    def as_of(self, instant: datetime) -> str:
        """The `since` of a client that has missed nothing until then (aware UTC)."""
        return str(Since(self._store.epoch, self._store.position_at(instant)))

    async def read(self, room: Room, since: str, limit: int | None = None, *, goes_on: bool = False) -> Chunk:
        """The next chunk for a client that is as far as `since`, of at most `limit` documents (None:
        `chunk_documents`). `goes_on`: `since` is the `upto` of the chunk before in this same sync, which leads as far
        as that one was to. Otherwise the sync leads up to now."""
        limit = self.chunk_documents if limit is None else limit
        beginning = self.begin(room[0], since, await self.now(), goes_on=goes_on)
        if beginning.after is None:
            return self.chunk(room[0], beginning, (), limit)
        documents = await self._store.changes(*room, after=beginning.after, limit=limit)
        return self.chunk(room[0], beginning, documents, limit)

    def begin(self, tenant: str, since: str, present: Since, *, goes_on: bool = False) -> Beginning:
        """Where the changes begin that `read` reads of a user of this tenant, for whoever reads them together with
        something else. `present`: what `now` has returned before."""
        known = parse_since(since)
        if known is None or not self._is_good(tenant, known, present):
            return Beginning(None, present.rev)
        return Beginning(self._after(known, goes_on), known.upto if known.id and goes_on else present.rev)

    def chunk(self, tenant: str, beginning: Beginning, documents: Sequence[Document], limit: int) -> Chunk:
        """The chunk of these changes: the first ones after its beginning, at most `limit`, all there are if fewer."""
        epoch, upto, floor = self._store.epoch, beginning.upto, self._retention.floor(tenant)
        if beginning.after is None:
            return Chunk((), False, str(Since(epoch, upto)), floor, reset=True)
        some = next(portions(documents))
        # What has changed since this began is told by pushes, and by the next sync: there is an end to each. Other
        # nodes may have issued higher revs before it began, but not that much higher.
        is_last = len(some) == len(documents) < limit or some[-1].rev > upto + self._overlap
        to = Since(epoch, upto) if is_last else Since(epoch, some[-1].rev, some[-1].id, upto)
        next_limit = min(2 * len(some), self.chunk_documents)
        return Chunk(some, not is_last, str(to), floor, next_limit=next_limit)

    async def is_unchanged(self, room: Room, since: str) -> bool:
        """Whether a client that is so far has missed nothing; False also if that cannot be known."""
        known = parse_since(since)
        if known is None or known.id or not self._is_good(room[0], known, await self.now()):
            return False
        return not await self._store.changes(*room, after=self._after(known), limit=1)

    def _is_good(self, tenant: str, known: Since, present: Since) -> bool:
        oldest = self._retention.oldest_since(tenant)
        return (
            known.epoch == present.epoch
            # Ahead of the clock: of a database that has been put back to an earlier state since.
            and max(known.rev, known.upto) <= present.rev + self._overlap
            and (oldest is None or known.rev >= oldest)
        )

    def _after(self, known: Since, goes_on: bool = False) -> tuple[int, str]:
        """The place among the changes after which reading begins."""
        if known.id:
            exact = (known.rev, known.id)
            if goes_on or not self._overlap:
                return exact
            # Cut off since: what became visible late in between is before the place where it was.
            return min(exact, (max(known.upto - self._overlap, 0), ""))
        return max(known.rev - self._overlap, 0), "" if self._overlap else LAST_ID

    @property
    def _overlap(self) -> int:
        return span_of(self._store.changes_overlap_s)
