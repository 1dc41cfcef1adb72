"""One connected client: its commands in, its frames out. Knows no transport, and no store but through the
inbox.

Order, per connection: commands are carried out one after the other, and answered in that order, each answer
when the one before has left. The room is joined before anything is read, and pushes that arrive during a read
wait behind its answer. A push that tells of a state older than what was answered is dropped. So a stale read
never overtakes a fresh push, nor a stale push a fresh read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from server.auth import Authenticator
from server.errors import Busy, NotJoined, ServerError, StoreUnavailable
from server.inbox import CHANGES_PER_BATCH, Inbox
from server.messages import Added, Deleted, Document, Event, Seen
from server.revs import COUNTER_BITS
from server.rooms import REORDER_WINDOW_S, Connection, Push, Room, Rooms
from server.store import Change
from server.tasks import Tasks
from server.wire import (
    FAILED,
    MAX_DOCUMENTS_PER_FRAME,
    SLOW,
    Command,
    Delete,
    Frame,
    Join,
    Leave,
    ListNewest,
    ListPage,
    ListUnseen,
    MarkSeen,
    count_frame,
    delete_frame,
    error_frame,
    newest_frame,
    notification_frame,
    parse_command,
    portions,
    seen_frame,
)

logger = logging.getLogger(__name__)

STRANGER_PENDING_BYTES = 64 * 1024
"""Of commands that may wait on a connection that has no user: a join and some more."""

JOIN_RETRY_FIRST_S = 0.5
JOIN_RETRY_MAX_S = 10.0
"""Until the next try to read the inbox of a user who joined while the store was away. The client waits for
nothing else."""


@dataclass(frozen=True, slots=True)
class SessionServices:
    """What all sessions share. `page_limit`: documents a page; `max_queue_bytes`: of pushes waiting behind an
    answer; `max_pending`, `max_pending_bytes`: of commands waiting for their turn."""

    authenticator: Authenticator
    inbox: Inbox
    rooms: Rooms
    tasks: Tasks
    page_limit: int
    max_queue_bytes: int
    max_pending: int
    max_pending_bytes: int


class Session:
    """One client. Made by a door when a client connects; told of its messages and of its end."""

    __slots__ = (
        "__weakref__",
        "_answered",
        "_end",
        "_forgetting",
        "_held",
        "_held_bytes",
        "_is_closed",
        "_listed_to",
        "_pending",
        "_pending_bytes",
        "_room",
        "_services",
        "_space",
        "_task",
        "connection",
    )

    def __init__(self, connection: Connection, services: SessionServices) -> None:
        self.connection = connection
        self._services = services
        self._room: Room | None = None
        self._is_closed = False
        # what a pause of ours watches; None if there was none
        self._end: asyncio.Event | None = None
        # commands waiting for their turn; allocated while there are any
        self._pending: deque[str] | None = None
        self._pending_bytes = 0
        self._space: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        # pushes waiting behind an answer; None while no answer is being made
        self._held: list[Push] | None = None
        self._held_bytes = 0
        # while a listing of unseen documents waits to be read on: the last document it has shown
        self._listed_to: Document | None = None
        # revs of recently changed documents that answers have shown; None if there are none
        self._answered: dict[str, int] | None = None
        self._forgetting: asyncio.TimerHandle | None = None

    # -- the transport's side ----------------------------------------------------------------------
    def receive(self, text: str) -> Awaitable[None] | None:
        """Take a message; its command is carried out when its turn comes. Returns None, or an awaitable when
        enough is waiting: the door reads on after it. Beyond twice the bounds messages are refused with
        `busy`."""
        if self._is_closed:
            return None
        if self._pending is None:
            self._pending = deque()
        if not self._has_space(2):
            self.connection.send(error_frame(Busy("too many commands at once; this one was not carried out")))
            return None
        self._pending.append(text)
        self._pending_bytes += len(text)
        if self._task is None:
            self._task = self._services.tasks.start(self._work(), "session")
        if self._has_space():
            return None
        if self._space is None:
            self._space = asyncio.Event()
        return self._wait_for_space(self._space)

    def closed(self) -> None:
        """The connection is over. Changes that it asked for before are still made: people click and close."""
        self._is_closed = True
        if self._end is not None:
            self._end.set()
        if self._room is not None:
            self._services.rooms.leave(self._room, self)

    def _has_space(self, times: int = 1) -> bool:
        """Whether fewer commands wait than so many times the bounds."""
        if self._pending is None:
            return True
        services = self._services
        max_bytes = (
            services.max_pending_bytes
            if self._room
            else min(STRANGER_PENDING_BYTES, services.max_pending_bytes)
        )
        return len(self._pending) < times * services.max_pending and self._pending_bytes < times * max_bytes

    @staticmethod
    async def _wait_for_space(space: asyncio.Event) -> None:
        await space.wait()

    # -- the room's side ---------------------------------------------------------------------------
    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        """Send what these pushes tell, behind the answer that is being made if there is one."""
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
        if self._held_bytes > self._services.max_queue_bytes and len(held) > 1:
            self.connection.close(SLOW)

    def _is_yet_to_be_listed(self, event: Event) -> bool:
        """Whether the listing of unseen documents under way is sure to come to the document that `event` brings."""
        after = self._listed_to
        if after is None or not isinstance(event, Added) or event.document.seen:
            return False
        document = event.document
        return (document.created_at, document.id) > (after.created_at, after.id)

    def _send_news(self, pushes: Sequence[Push]) -> None:
        for event, frame in pushes:
            if not self._is_answered(event):
                self.connection.send(frame)

    def _is_answered(self, event: Event) -> bool:
        """Whether answers have already shown what `event` tells, or something later."""
        if self._answered is None:
            return False
        if isinstance(event, Added):
            return self._answered.get(event.document.id, -1) >= event.rev
        if isinstance(event, Seen | Deleted):
            return all(self._answered.get(id_, -1) >= event.rev for id_ in event.ids)
        return False

    # -- carrying out commands ---------------------------------------------------------------------
    async def _work(self) -> None:
        try:
            while self._pending:
                text = self._pending.popleft()
                self._pending_bytes -= len(text)
                await self._carry_out(text)
                # What was asked for next finds an empty queue, however large the answer was.
                await self.connection.drained()
                if self._space is not None and self._has_space():
                    self._space.set()
                    self._space = None
        finally:
            self._task = self._pending = None
            self._pending_bytes = 0
            if self._space is not None:
                self._space.set()
                self._space = None

    async def _carry_out(self, text: str) -> None:
        try:
            await self._perform(parse_command(text))
        except ServerError as error:
            self.connection.send(error_frame(error))
        except Exception:
            logger.exception("a command failed")
            self.connection.close(FAILED)
        finally:
            self._release_held()

    async def _perform(self, command: Command) -> None:
        if self._is_closed and not isinstance(command, MarkSeen | Delete):
            # What follows a join or a leave may not be done for the user before it.
            if isinstance(command, Join | Leave):
                self._room = None
            return
        if isinstance(command, Join):
            await self._join(command)
        elif isinstance(command, Leave):
            self._leave()
        elif self._room is None:
            raise NotJoined
        elif isinstance(command, MarkSeen):
            await self._mark_seen(self._room, command.ids)
        elif isinstance(command, Delete):
            await self._delete(self._room, command.ids)
        else:
            self._hold_pushes()
            await self._list(self._room, command)

    async def _join(self, command: Join) -> None:
        """A join that fails changes nothing; one as somebody else leaves the first user's room."""
        services = self._services
        identity = await services.authenticator.authenticate(
            command.login, command.password, self.connection.caller
        )
        # No await between this check and the join: a close in between would leave us in the room for ever.
        if self._is_closed:
            self._room = None
            return
        self._leave()
        self._room = (identity.tenant, identity.user_id)
        self._hold_pushes()
        services.rooms.join(self._room, self)
        await self._welcome(self._room)

    async def _welcome(self, room: Room) -> None:
        """All unseen documents and their count; when the store is away, as soon as it is back."""
        delay_s = JOIN_RETRY_FIRST_S
        while not self._is_closed:
            try:
                await self._list_unseen(room)
                self.connection.send(count_frame(await self._services.inbox.count_unseen(room)))
                return
            except StoreUnavailable as error:
                self.connection.send(error_frame(error))
            await self._pause(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # apart from the others, no secret
            delay_s = min(2 * delay_s, JOIN_RETRY_MAX_S)

    async def _pause(self, delay_s: float) -> None:
        """Return after a while, or at the end of the connection."""
        self._end = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._end.wait()

    async def _list(self, room: Room, command: ListUnseen | ListPage | ListNewest) -> None:
        services = self._services
        if isinstance(command, ListUnseen):
            await self._list_unseen(room)
        elif isinstance(command, ListPage):
            for some in portions(
                await services.inbox.page(room, page=command.page, limit=services.page_limit)
            ):
                self._answer(notification_frame(some), some)
        else:
            await self._list_newest(room, command.before, command.limit or services.page_limit)

    async def _list_newest(self, room: Room, before: str | None, limit: int) -> None:
        """In one frame, with fewer documents than asked for if they are long."""
        documents = await self._services.inbox.newest(room, before=before, limit=limit + 1)
        some = next(portions(documents[:limit]))
        self._answer(newest_frame(some, before, len(some) < len(documents)), some)

    async def _list_unseen(self, room: Room) -> None:
        """In as many frames as it takes, each made when the one before has left; a single empty one if there are none.

        What is pushed between two reads and lies beyond the first is left to the second: a client on a slow line would
        else be closed as slow for what it could not have been sent yet.
        """
        after: Document | None = None
        limit = MAX_DOCUMENTS_PER_FRAME
        while not self._is_closed:
            documents = await self._services.inbox.unseen(room, after=after, limit=limit)
            some = next(portions(documents))
            if some or after is None:
                self._answer(notification_frame(some), some)
            if len(some) == len(documents) < limit:
                return
            after = some[-1]
            # Read little more than fits into a frame; the rest would be read again.
            limit = min(2 * len(some), MAX_DOCUMENTS_PER_FRAME)
            await self._drain_up_to(after)

    async def _drain_up_to(self, after: Document) -> None:
        self._listed_to = after
        held, self._held, self._held_bytes = self._held or [], [], 0
        self._hold(self._held, held)
        try:
            await self.connection.drained()
        finally:
            self._listed_to = None

    async def _mark_seen(self, room: Room, ids: tuple[str, ...] | None) -> None:
        """The answer is what all screens of the user are told; if nothing changed, the asker alone is
        answered."""
        inbox = self._services.inbox
        if ids is not None:
            for batch in _batches(ids):
                self._answer_unchanged(seen_frame, await inbox.mark_seen(room, batch))
                await self.connection.drained()
            return
        has_changed = False
        while (change := await inbox.mark_all_seen(room)).changed:
            has_changed = True
            if change.changed < CHANGES_PER_BATCH:
                return
            await self.connection.drained()
        if not has_changed:
            self.connection.send(seen_frame(()))

    async def _delete(self, room: Room, ids: tuple[str, ...]) -> None:
        for batch in _batches(ids):
            self._answer_unchanged(delete_frame, await self._services.inbox.delete(room, batch))
            await self.connection.drained()

    def _leave(self) -> None:
        if self._room is not None:
            self._services.rooms.leave(self._room, self)
            self._room = self._answered = None

    # -- answers and the pushes behind them --------------------------------------------------------
    def _answer(self, frame: Frame, documents: Sequence[Document]) -> None:
        self.connection.send(frame)
        self._remember({document.id: document.rev for document in documents})

    def _answer_unchanged(self, frame_of: Callable[[tuple[str, ...]], Frame], change: Change) -> None:
        if change.rev is None:
            self.connection.send(frame_of(change.ids))

    def _hold_pushes(self) -> None:
        self._held = []

    def _release_held(self) -> None:
        held, self._held, self._held_bytes = self._held, None, 0
        self._send_news(held or ())

    def _remember(self, revs: Mapping[str, int]) -> None:
        """Keep the revs (by id) that a push still under way could be behind: those of the last seconds."""
        oldest = int((time.time() - REORDER_WINDOW_S) * 1000) << COUNTER_BITS
        recent = {id_: rev for id_, rev in revs.items() if rev > oldest}
        if not recent:
            return
        self._answered = recent if self._answered is None else self._answered | recent
        if self._forgetting is None:
            self._forgetting = asyncio.get_running_loop().call_later(REORDER_WINDOW_S, self._forget)

    def _forget(self) -> None:
        answered, self._answered, self._forgetting = self._answered, None, None
        self._remember(answered or {})


def _batches(ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    """`ids` in batches; a single empty one if there are none."""
    return [ids[start : start + CHANGES_PER_BATCH] for start in range(0, max(len(ids), 1), CHANGES_PER_BATCH)]
