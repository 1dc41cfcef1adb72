"""The classic dialect (CONTRACT C1): its commands, carried out. They are in `commands`, its frames in `wire`."""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from server.commands import (
    Command,
    Delete,
    Join,
    JoinByToken,
    Leave,
    ListNewest,
    ListPage,
    ListUnseen,
    MarkSeen,
    command_of,
)
from server.conversations import Conversation
from server.dialects import Dialect
from server.errors import NotJoined, ServerError, StoreUnavailable
from server.inbox import CHANGES_PER_BATCH
from server.messages import Document
from server.rooms import Room
from server.store import Change
from server.wire import (
    MAX_DOCUMENTS_PER_FRAME,
    Frame,
    count_frame,
    delete_frame,
    error_frame,
    newest_frame,
    notification_frame,
    portions,
    seen_frame,
)

T = TypeVar("T")

JOIN_RETRY_FIRST_S = 0.5
JOIN_RETRY_MAX_S = 10.0
"""Until the next try to read the inbox of a user who joined while the store was away. The client waits for
nothing else."""


class ClassicConversation(Conversation):
    """What the client has not seen follows its join."""

    __slots__ = ()

    @property
    def dialect(self) -> Dialect:
        return self.line.services.dialect

    def error(self, error: ServerError, message: Mapping[str, Any] | None) -> Frame:
        return error_frame(error)

    def ended(self) -> None:
        pass

    async def carry_out(self, message: Mapping[str, Any]) -> None:
        line, command = self.line, command_of(message)
        if line.is_closed and not isinstance(command, MarkSeen | Delete):
            # What follows a join or a leave may not be done for the user before it.
            if isinstance(command, Join | JoinByToken | Leave):
                line.forget()
            return
        if isinstance(command, Join | JoinByToken):
            await self._join(command)
        elif isinstance(command, Leave):
            line.leave()
        elif line.room is None:
            raise NotJoined
        elif isinstance(command, MarkSeen):
            await self._mark_seen(line.room, command.ids)
        elif isinstance(command, Delete):
            await self._delete(line.room, command.ids)
        else:
            line.screen.begin_answer()
            await self._list(line.room, command)

    # -- joining ---------------------------------------------------------------------------------------------
    async def _join(self, command: Join | JoinByToken) -> None:
        """All unseen documents and their count; when the store is away, as soon as it is back."""
        services = self.line.services
        await services.arrivals.to_join()
        identity = await services.authenticator.authenticate(command, self.line.connection.caller)
        room = await self.line.become(identity, self)
        if room is None:
            return
        read = functools.partial(services.inbox.welcome, room, unseen=MAX_DOCUMENTS_PER_FRAME)
        welcome = await self._patiently(lambda: services.broadcaster.welcome(room, read))
        if welcome is None:
            return
        count = await self._list_unseen(room, is_patient=True, first=welcome.unseen)
        if count is None:
            count = await self._patiently(lambda: services.inbox.count_unseen(room))
        if count is not None:
            self.line.connection.send(count_frame(count))

    async def _patiently(self, read: Callable[[], Awaitable[T]], after: Document | None = None) -> T | None:
        """What `read` returns, when the store is away as soon as it is back; None if the connection ended before.
        `after`: as `Screen.listing_waits` has it."""
        delay_s = JOIN_RETRY_FIRST_S
        while not self.line.is_closed:
            try:
                return await read()
            except StoreUnavailable as error:
                self.line.connection.send(error_frame(error))
            with self.line.screen.listing_waits(after):
                await self.line.pause(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # apart from others, no secret
            delay_s = min(2 * delay_s, JOIN_RETRY_MAX_S)
        return None

    # -- reading ---------------------------------------------------------------------------------------------
    async def _list(self, room: Room, command: Command) -> None:
        services = self.line.services
        if isinstance(command, ListUnseen):
            await self._list_unseen(room)
        elif isinstance(command, ListPage):
            await self._list_page(room, command.page)
        elif isinstance(command, ListNewest):
            await self._list_newest(room, command.before, command.limit or services.page_limit)

    def _answer(self, room: Room, frame: Frame, shown: Sequence[Document]) -> None:
        self.line.charge(room, len(frame.text))
        self.line.screen.answer(frame, shown)

    async def _list_page(self, room: Room, page: int) -> None:
        """In as many frames as it takes if its documents are long, each made when the one before has left."""
        services, connection = self.line.services, self.line.connection
        for some in portions(await services.inbox.page(room, page=page, limit=services.page_limit)):
            if self.line.is_closed:
                return
            self._answer(room, notification_frame(some), some)
            await connection.drained()

    async def _list_newest(self, room: Room, before: str | None, limit: int) -> None:
        """In one frame, with fewer documents than asked for if they are long."""
        documents = await self.line.services.inbox.newest(room, before=before, limit=limit + 1)
        some = next(portions(documents[:limit]))
        self._answer(room, newest_frame(some, before, len(some) < len(documents)), some)

    async def _list_unseen(
        self, room: Room, *, is_patient: bool = False, first: Sequence[Document] | None = None
    ) -> int | None:
        """In as many frames as it takes, each made when the one before has left; a single empty one if there are
        none. Once it has begun it is brought to its end, even if the store goes away meanwhile: pushes have been left
        to it. `first`: the oldest ones, if they have been read already, as many as go into a frame. Returns how many
        there are, if one reading has found them all."""
        line = self.line
        after: Document | None = None
        limit = MAX_DOCUMENTS_PER_FRAME
        while not line.is_closed:
            read = functools.partial(line.services.inbox.unseen, room, after=after, limit=limit)
            documents, first = first, None
            if documents is None:
                documents = await (self._patiently(read, after) if is_patient or after else read())
            if documents is None:
                return None
            some = next(portions(documents))
            if some or after is None:
                self._answer(room, notification_frame(some), some)
            if len(some) == len(documents) < limit:
                return len(some) if after is None else None
            after = some[-1]
            # Read little more than fits into a frame; the rest would be read again.
            limit = min(2 * len(some), MAX_DOCUMENTS_PER_FRAME)
            with line.screen.listing_waits(after):
                await line.connection.drained()
        return None

    # -- what was missed ---------------------------------------------------------------------------------------
    def missed(self, since: datetime) -> None:
        self.line.do_soon(functools.partial(self._tell_missed, since))

    async def _tell_missed(self, since: datetime) -> None:
        """What has changed since then and was not shown as it is now, and how many are unseen; while the store is away,
        when it is back."""
        line, services = self.line, self.line.services
        room, token, goes_on, limit = line.room, services.sync.as_of(since), False, None
        while room is not None and not line.is_closed:
            line.screen.begin_answer()
            read = functools.partial(services.sync.read, room, token, limit, goes_on=goes_on)
            chunk = await self._patiently(read)
            if chunk is None:
                return
            if chunk.reset:  # too long ago to know what was deleted
                await self._list_unseen(room, is_patient=True)
            # What was listed since the gap began would look like something new.
            self._answer_changes(room, line.screen.unshown(chunk.documents))
            if not chunk.more:
                # Before the pushes that wait: their counts may be later than this one.
                count = await self._patiently(lambda: services.inbox.count_unseen(room))
                if count is not None:
                    line.connection.send(count_frame(count))
            line.screen.end_answer()
            if not chunk.more:
                return
            await line.connection.drained()
            token, goes_on, limit = chunk.upto, True, chunk.next_limit

    def _answer_changes(self, room: Room, documents: Sequence[Document]) -> None:
        unseen = [document for document in documents if not document.deleted and not document.seen]
        seen = [document for document in documents if not document.deleted and document.seen]
        deleted = [document for document in documents if document.deleted]
        if unseen:
            self._answer(room, notification_frame(unseen), unseen)
        if seen:
            self._answer(room, seen_frame([document.id for document in seen]), seen)
        if deleted:
            self._answer(room, delete_frame([document.id for document in deleted]), deleted)

    # -- changing --------------------------------------------------------------------------------------------
    async def _mark_seen(self, room: Room, ids: tuple[str, ...] | None) -> None:
        """The answer is what all screens of the user are told; if nothing changed, the asker alone is
        answered."""
        inbox, connection = self.line.services.inbox, self.line.connection
        if ids is not None:
            for batch in batches(ids):
                self._answer_unchanged(seen_frame, await inbox.mark_seen(room, batch))
                await connection.drained()
            return
        has_changed = False
        while (change := await inbox.mark_all_seen(room)).changed:
            has_changed = True
            if change.changed < CHANGES_PER_BATCH:
                return
            await connection.drained()
        if not has_changed:
            connection.send(seen_frame(()))

    async def _delete(self, room: Room, ids: tuple[str, ...]) -> None:
        for batch in batches(ids):
            self._answer_unchanged(delete_frame, await self.line.services.inbox.delete(room, batch))
            await self.line.connection.drained()

    def _answer_unchanged(self, frame_of: Callable[[tuple[str, ...]], Frame], change: Change) -> None:
        if change.rev is None:
            self.line.connection.send(frame_of(change.ids))


def batches(ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    """`ids` in batches; a single empty one if there are none."""
    return [ids[start : start + CHANGES_PER_BATCH] for start in range(0, max(len(ids), 1), CHANGES_PER_BATCH)]
