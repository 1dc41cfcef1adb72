"""A user's inbox as a session uses it: reading, and changes that all of the user's screens hear of."""

from __future__ import annotations

from collections.abc import Awaitable

from server.backplane import LocalBackplane
from server.bus import INBOX_CHANGED, tell
from server.errors import StoreUnavailable
from server.messages import Deleted, Document, Seen
from server.rooms import Room
from server.store import Change, Store

CHANGES_PER_BATCH = 500
"""Documents changed, and told of in one frame, at a time (some 15 KB): no batch holds up the store or fills a
queue."""


class Inbox:
    """All verbs raise `StoreUnavailable`."""

    def __init__(self, store: Store, backplane: LocalBackplane) -> None:
        self._store = store
        self._backplane = backplane

    async def unseen(self, room: Room, *, after: Document | None, limit: int) -> list[Document]:
        """Unseen documents, oldest first, from after that one."""
        return await self._store.unseen(*room, after=after, limit=limit)

    async def page(self, room: Room, *, page: int, limit: int) -> list[Document]:
        """A numbered page, oldest first."""
        return await self._store.page(*room, page=page, limit=limit)

    async def newest(self, room: Room, *, before: str | None, limit: int) -> list[Document]:
        """Newest first, from before that id."""
        return await self._store.newest(*room, before=before, limit=limit)

    async def count_unseen(self, room: Room) -> int:
        """How many unseen documents the user has."""
        tenant, user_id = room
        return (await self._store.count_unseen(tenant, [user_id]))[user_id]

    async def mark_seen(self, room: Room, ids: tuple[str, ...]) -> Change:
        """Mark documents as seen, and tell all screens if that changed any. At most `CHANGES_PER_BATCH`
        ids."""
        return await self._change(room, Seen, self._store.mark_seen(*room, ids))

    async def mark_all_seen(self, room: Room) -> Change:
        """Mark the oldest `CHANGES_PER_BATCH` unseen documents as seen, and tell all screens. Call again
        until `changed` is less than that."""
        return await self._change(room, Seen, self._store.mark_all_seen(*room, limit=CHANGES_PER_BATCH))

    async def delete(self, room: Room, ids: tuple[str, ...]) -> Change:
        """Delete documents, and tell all screens if that changed any. At most `CHANGES_PER_BATCH` ids."""
        return await self._change(room, Deleted, self._store.delete(*room, ids))

    async def _change(
        self, room: Room, event: type[Seen] | type[Deleted], changing: Awaitable[Change]
    ) -> Change:
        """The change, when this node's screens have been told of it: to the asker that is the answer, and it
        comes before the answer to what is asked next."""
        try:
            change = await changing
        except StoreUnavailable:
            # It may have come through all the same, or still do: count, when the store is back.
            tell(INBOX_CHANGED, self, rooms=[room])
            raise
        if change.rev is not None:
            self._backplane.publish([(room, event(change.ids, change.rev))])
            tell(INBOX_CHANGED, self, rooms=[room])
            await self._backplane.delivered(room)
        return change
