"""Server-Sent Events of the documents that a user has, for those who only listen and keep a place to go on from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial

from server.auth import Identity
from server.dialects import StreamDialect
from server.feed import PORTION, Feed, FeedServices, Portion
from server.messages import Document
from server.revs import span_of
from server.rooms import Connection
from server.sync import LAST_ID
from server.wire import Frame, are_all


class StreamFeed(Feed):
    """Server-Sent Events: first all unseen documents, oldest first; or, for a client that comes back, what has changed
    since the rev that it saw last, each document as it is now. Then how many are unseen. The unseen ones come in the
    order in which they were made, which need not be that of their revs: so a client can go on from the end of that
    listing, but not from any one of its documents."""

    __slots__ = ("_gap", "_since", "_upto")
    dialect: StreamDialect = StreamDialect()

    def __init__(
        self, connection: Connection, services: FeedServices, identity: Identity, since: int | None
    ) -> None:
        self._since = since
        # the position where what was missed begins; None: nothing was
        self._gap: int | None = None
        self._upto = 0
        super().__init__(connection, services, identity)

    def missed(self, since: datetime) -> None:
        position = self._services.store.position_at(since)
        self._gap = position if self._gap is None else min(self._gap, position)
        super().missed(since)

    async def _catch_up_again(self) -> None:
        self._since, self._gap = self._gap, None
        await super()._catch_up_again()

    async def _backlog(self) -> AsyncIterator[Portion]:
        listed = self._unseen() if self._since is None else self._changed(self._since)
        async for portion in listed:
            yield portion
        count = await self._patiently(partial(self._services.inbox.count_unseen, self._room))
        yield [(self.dialect.count(count, self._upto or None), ())], None

    async def _unseen(self) -> AsyncIterator[Portion]:
        # What is changed while this is read is told later, and may have lower revs than what is read after it.
        self._upto = await self._patiently(self._services.store.position)
        after: Document | None = None
        while True:
            read = partial(self._services.inbox.unseen, self._room, after=after, limit=PORTION)
            documents = await self._patiently(read)
            after = None if are_all(documents, PORTION) else documents[-1]
            yield ((self.dialect.listed(document), (document,)) for document in documents), after
            if after is None:
                return

    async def _changed(self, since: int) -> AsyncIterator[Portion]:
        store, (tenant, user_id) = self._services.store, self._room
        self._upto = 0  # the documents say how far it is: they come in the order of their revs
        overlap = span_of(store.changes_overlap_s)
        after = (max(since - overlap, 0), "" if overlap else LAST_ID)
        while True:
            documents = await self._patiently(
                partial(store.changes, tenant, user_id, after=after, limit=PORTION)
            )
            # What was listed since the gap began would look like something new.
            news = self._screen.unshown(documents)
            yield ((self._as_it_is(document), (document,)) for document in news), None
            if are_all(documents, PORTION):
                return
            after = (documents[-1].rev, documents[-1].id)

    def _as_it_is(self, document: Document) -> Frame:
        return self.dialect.deleted(document) if document.deleted else self.dialect.added(document)
