"""A user's inbox as a session uses it: reading, and changes that all of the user's screens hear of."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

from server.backplane import Backplane
from server.bus import INBOX_CHANGED, tell
from server.errors import StoreUnavailable
from server.messages import AllSeen, Counts, Deleted, Document, Event, Missed, Restored, Seen, Unseen
from server.revs import span_of
from server.rooms import Room
from server.store import ACKNOWLEDGED, Change, Store, Welcome
from server.wire import are_all

CHANGES_PER_BATCH = 500
"""Documents changed, and told of in one frame, at a time (some 15 KB): no batch holds up the store or fills a
queue."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change really changed: these documents, whose new rev is `rev` (None: there are none)."""

    ids: tuple[str, ...]
    rev: int | None


@dataclass(frozen=True, slots=True)
class AllMarked:
    """How many documents became seen, of those with a rev up to `upto`."""

    upto: int
    changed: int


class Inbox:
    """All verbs raise `StoreUnavailable`."""

    def __init__(self, store: Store, backplane: Backplane) -> None:
        self._store = store
        self._backplane = backplane

    # -- reading ---------------------------------------------------------------------------------------------
    async def unseen(self, room: Room, *, after: Document | None, limit: int) -> list[Document]:
        """Unseen documents, oldest first, those behind `after` (None: all)."""
        return await self._store.unseen(*room, after=after, limit=limit)

    async def page(self, room: Room, *, page: int, limit: int) -> list[Document]:
        """A numbered page, oldest first."""
        return await self._store.page(*room, page=page, limit=limit)

    async def newest(
        self, room: Room, *, before: str | None, limit: int, type: str | None = None, seen: bool | None = None
    ) -> list[Document]:
        """Newest first, those older than the document `before` (None: all); only of this type and this `seen` (None:
        any)."""
        if type is None and seen is None:
            return await self._store.newest(*room, before=before, limit=limit)
        return await self._store.newest(*room, before=before, limit=limit, type=type, seen=seen)

    async def count_unseen(self, room: Room) -> int:
        """How many unseen documents the user has."""
        tenant, user_id = room
        return (await self._store.count_unseen(tenant, [user_id]))[user_id]

    async def counts(self, room: Room) -> Counts:
        """How many documents the user has."""
        tenant, user_id = room
        return (await self._store.counts(tenant, [user_id]))[user_id]

    async def welcome(
        self,
        room: Room,
        *,
        unseen: int = 0,
        counts: bool = False,
        changes: int = 0,
        after: tuple[int, str] = (0, ""),
    ) -> Welcome:
        """What a user who joins is told first: see `Store.welcome`."""
        return await self._store.welcome(*room, unseen=unseen, counts=counts, changes=changes, after=after)

    # -- changing --------------------------------------------------------------------------------------------
    async def mark_seen(self, room: Room, ids: tuple[str, ...]) -> Change:
        """Mark documents as seen, and tell all screens if that changed any. At most `CHANGES_PER_BATCH`
        ids."""
        change, _ = await self._mark_seen(room, ids)
        return change

    async def see(self, room: Room, ids: tuple[str, ...]) -> Changed:
        """The same, but what it really changed."""
        change, changed = await self._mark_seen(room, ids)
        return Changed(changed, change.rev)

    async def _mark_seen(self, room: Room, ids: tuple[str, ...]) -> tuple[Change, tuple[str, ...]]:
        change = await self._carry_out(room, self._store.mark_seen(*room, ids))
        changed = await self._really_changed(room, change)
        if change.rev is not None:
            await self._publish(room, [Seen(change.ids, change.rev, changed)])
        return change, changed

    async def mark_all_seen(self, room: Room) -> Change:
        """Mark the oldest `CHANGES_PER_BATCH` unseen documents as seen, and tell all screens. Call again
        until `changed` is less than that."""
        change = await self._carry_out(room, self._store.mark_all_seen(*room, limit=CHANGES_PER_BATCH))
        if change.rev is not None:
            await self._publish(room, [Seen(change.ids, change.rev)])
        return change

    async def mark_seen_up_to(self, room: Room, upto: int | None) -> AllMarked:
        """Mark all documents seen whose rev is not above `upto` (None: all there are now), batch by batch.

        Screens are told in one event of all documents up to a rev below which nothing can become visible any more, and
        of the latest ones, where that may happen, by their ids."""
        position = await self._store.position()
        overlap = span_of(self._store.changes_overlap_s)
        ahead = await self._ahead(room, position, upto) if overlap else []
        upto = position if upto is None else min(upto, position)
        settled = min(upto, position - overlap)
        changed = await self._mark_batches(room, settled, is_part=True)
        if changed:
            await self._publish(room, [AllSeen(settled)])
        if settled < upto:
            changed += await self._mark_batches(room, upto, is_part=False)
        for start in range(0, len(ahead), CHANGES_PER_BATCH):
            some = ahead[start : start + CHANGES_PER_BATCH]
            change = await self.mark_seen(room, tuple(document.id for document in some))
            changed += change.changed
        return AllMarked(max([upto, *(document.rev for document in ahead)]), changed)

    async def _ahead(self, room: Room, position: int, upto: int | None) -> list[Document]:
        """The unseen documents with a rev up to `upto` (None: any) that other nodes have stored before now, though it
        is above this node's position."""
        place, ahead = (position + 1, ""), list[Document]()
        while True:
            found = await self._store.changes(*room, after=place, limit=CHANGES_PER_BATCH)
            ahead += [document for document in found if not document.seen and not document.deleted]
            if are_all(found, CHANGES_PER_BATCH):
                return [document for document in ahead if upto is None or document.rev <= upto]
            place = (found[-1].rev, found[-1].id)

    async def _mark_batches(self, room: Room, up_to: int, *, is_part: bool) -> int:
        count = 0
        while True:
            change = await self._carry_out(
                room, self._store.mark_all_seen(*room, limit=CHANGES_PER_BATCH, up_to=up_to)
            )
            if change.rev is not None:
                await self._publish(room, [Seen(change.ids, change.rev, is_part=is_part)])
            count += change.changed
            if change.changed < CHANGES_PER_BATCH:
                return count

    async def mark_unseen(self, room: Room, ids: tuple[str, ...]) -> Changed:
        """Mark documents as unseen, and tell all screens. At most `CHANGES_PER_BATCH` ids."""
        change = await self._carry_out(room, self._store.mark_unseen(*room, ids))
        changed = await self._really_changed(room, change)
        if change.rev is not None:
            await self._publish(room, [Unseen(changed, change.rev)])
        return Changed(changed, change.rev)

    async def delete(self, room: Room, ids: tuple[str, ...]) -> Change:
        """Delete documents, and tell all screens if that changed any. At most `CHANGES_PER_BATCH` ids."""
        change, _ = await self._delete(room, ids)
        return change

    async def remove(self, room: Room, ids: tuple[str, ...]) -> Changed:
        """The same, but what it really changed."""
        change, changed = await self._delete(room, ids)
        return Changed(changed, change.rev)

    async def _delete(self, room: Room, ids: tuple[str, ...]) -> tuple[Change, tuple[str, ...]]:
        change = await self._carry_out(room, self._store.delete(*room, ids))
        changed = await self._really_changed(room, change)
        if change.rev is not None:
            await self._publish(room, [Deleted(changed, change.rev)])
        return change, changed

    async def restore(self, room: Room, ids: tuple[str, ...]) -> Changed:
        """Take back that documents were deleted, and tell all screens. At most `CHANGES_PER_BATCH` ids."""
        change = await self._carry_out(room, self._store.restore(*room, ids))
        if change.rev is None:
            return Changed((), None)
        try:
            documents = await self._store.find(*room, change.ids)
        except StoreUnavailable:
            await self._publish(room, [Missed()])
        else:
            await self._publish(room, [Restored(each) for each in documents if not each.deleted])
        return Changed(await self._really_changed(room, change), change.rev)

    async def acknowledge(self, room: Room, ids: tuple[str, ...]) -> None:
        """Remember that a client has got these documents. To the inbox nothing happens."""
        await self._store.deliveries.mark(ACKNOWLEDGED, {room: ids})

    # -- telling ---------------------------------------------------------------------------------------------
    async def _carry_out(self, room: Room, changing: Awaitable[Change]) -> Change:
        try:
            return await changing
        except StoreUnavailable:
            # It may have come through all the same, or still do: who can be told to look is told, the others are
            # told the count when the store is back.
            await self._publish(room, [Missed()])
            raise

    async def _publish(self, room: Room, events: list[Event]) -> None:
        """Tell of a change; return when this node's screens have been told: to the asker that is the answer, and it
        comes before the answer to what is asked next."""
        self._backplane.publish([(room, event) for event in events])
        tell(INBOX_CHANGED, self, rooms=[room])
        await self._backplane.delivered(room)

    async def _really_changed(self, room: Room, change: Change) -> tuple[str, ...]:
        """Which of the documents of a change got its rev. Of the others nobody may be told that rev: a later change of
        one of them, made by a node whose clock is behind, could have a lower one."""
        if change.changed in (0, len(change.ids)):
            return change.ids if change.changed else ()
        try:
            found = await self._store.find(*room, change.ids)
        except StoreUnavailable:
            await self._publish(room, [Missed()])  # the change is made
            return ()
        return tuple(document.id for document in found if document.rev == change.rev)
