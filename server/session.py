"""One connected client: its commands in, its frames out. Knows no transport, and no store but through the
inbox.

Order, per connection: commands are carried out one after the other, and answered in that order, each answer
when the one before has left. The room is joined before anything is read; what pushes and answers have to do
with each other is the business of the `screen`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from server.auth import Authenticator
from server.broadcaster import Broadcaster
from server.bus import THROTTLED, tell
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
    parse_command,
)
from server.dialects import Dialect
from server.errors import BadCredentials, Busy, NotJoined, ServerError, StoreUnavailable
from server.inbox import CHANGES_PER_BATCH, Inbox
from server.limits import Limits
from server.messages import Document, now
from server.rates import TokenBucket
from server.rooms import Connection, Room, Rooms, SignIn, close_at
from server.screen import Screen
from server.store import Change
from server.tasks import Tasks
from server.tenants import Tenants
from server.wire import (
    FAILED,
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

logger = logging.getLogger(__name__)

STRANGER_PENDING_BYTES = 64 * 1024
"""Of commands that may wait on a connection that has no user: a join and some more."""

JOIN_RETRY_FIRST_S = 0.5
JOIN_RETRY_MAX_S = 10.0
"""Until the next try to read the inbox of a user who joined while the store was away. The client waits for
nothing else."""


@dataclass(frozen=True, slots=True)
class SessionServices:
    """What all sessions share. `dialect`: the classic one, of `wire`; `page_limit`: documents a page;
    `max_queue_bytes`: of pushes waiting behind an answer; `max_pending`, `max_pending_bytes`: of commands waiting for
    their turn."""

    authenticator: Authenticator
    tenants: Tenants
    limits: Limits
    inbox: Inbox
    broadcaster: Broadcaster
    rooms: Rooms
    tasks: Tasks
    dialect: Dialect
    page_limit: int
    max_queue_bytes: int
    max_pending: int
    max_pending_bytes: int


class Session:
    """One client. Made by a door when a client connects; told of its messages and of its end."""

    __slots__ = (
        "__weakref__",
        "_bucket",
        "_end",
        "_expiry",
        "_is_closed",
        "_pending",
        "_pending_bytes",
        "_room",
        "_screen",
        "_services",
        "_space",
        "_task",
        "connection",
    )

    def __init__(self, connection: Connection, services: SessionServices) -> None:
        self.connection = connection
        self._services = services
        self._screen = Screen(connection, services.dialect, services.max_queue_bytes)
        self._room: Room | None = None
        # how many commands it has carried out lately; None before the first
        self._bucket: TokenBucket | None = None
        # closes the connection when the token of the join ends
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False
        # what a pause of ours watches; None if there was none
        self._end: asyncio.Event | None = None
        # commands waiting for their turn; allocated while there are any
        self._pending: deque[str] | None = None
        self._pending_bytes = 0
        self._space: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    # -- the transport's side --------------------------------------------------------------------------------
    def receive(self, text: str) -> Awaitable[None] | None:
        """Take a message; its command is carried out when its turn comes. Returns None, or an awaitable when
        enough is waiting: the door reads on after it. Beyond twice the bounds messages are refused with
        `busy`."""
        if self._is_closed:
            return None
        if self._pending is None:
            self._pending = deque()
        if not self._has_space(2):
            self._tell_throttled()
            self.connection.send(error_frame(Busy("too many commands at once; this one was not carried out")))
            return None
        self._pending.append(text)
        self._pending_bytes += len(text)
        if self._task is None:
            self._task = self._services.tasks.start(self._work(), "session")
        if self._has_space():
            return None
        self._tell_throttled()
        if self._space is None:
            self._space = asyncio.Event()
        return self._wait_for_space(self._space)

    def closed(self) -> None:
        """The connection is over. Changes that it asked for before are still made: people click and close."""
        self._is_closed = True
        if self._end is not None:
            self._end.set()
        if self._room is not None:
            room, sign_in = self._room, self._screen.sign_in
            self._leave_room(room)
            if sign_in is not None and self._services.tenants.why_over(room, sign_in) is not None:
                # Put out: what waits is not done for them any more.
                self._room = None

    @property
    def is_joined(self) -> bool:
        """Whether the connection has a user."""
        return self._room is not None

    def _tell_throttled(self) -> None:
        tell(THROTTLED, self._services.limits, limit="pending_commands")

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

    # -- carrying out commands -------------------------------------------------------------------------------
    async def _work(self) -> None:
        try:
            while self._pending:
                text = self._pending.popleft()
                self._pending_bytes -= len(text)
                await self._pace(len(text))
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

    async def _pace(self, size: int) -> None:
        """Who sends commands faster than they may waits; what they send meanwhile waits with them, then their door."""
        if self._bucket is None:
            self._bucket = TokenBucket()
        wait_s = self._services.limits.pace(self._bucket, self.connection.caller, self._room, size)
        if wait_s and not self._is_closed:
            await self._pause(wait_s)

    async def _carry_out(self, text: str) -> None:
        try:
            await self._perform(parse_command(text))
        except ServerError as error:
            self.connection.send(error_frame(error))
        except Exception:
            logger.exception("a command failed")
            self.connection.close(FAILED)
        finally:
            self._screen.end_answer()

    async def _perform(self, command: Command) -> None:
        if self._is_closed and not isinstance(command, MarkSeen | Delete):
            # What follows a join or a leave may not be done for the user before it.
            if isinstance(command, Join | JoinByToken | Leave):
                self._room = None
            return
        if isinstance(command, Join | JoinByToken):
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
            self._screen.begin_answer()
            await self._list(self._room, command)

    async def _join(self, command: Join | JoinByToken) -> None:
        """A join that fails changes nothing; one as somebody else leaves the first user's room; one as the same user
        is a fresh welcome, and counts for as long as its own proof."""
        services = self._services
        identity = await services.authenticator.authenticate(command, self.connection.caller)
        room = (identity.tenant, identity.user_id)
        is_ours = identity.by_own_clock or identity.issued_at is None
        sign_in = SignIn(identity.issued_at or now(), identity.key_id, identity.secret_id, is_ours)
        wait_s = services.limits.pace_join(room)
        if wait_s and not self._is_closed:
            await self._pause(wait_s)
        # No await between these checks and the join: a close in between would leave us in the room for ever, and a
        # sign-out would miss us.
        if self._is_closed:
            self._room = None
            return
        if services.tenants.why_over(room, sign_in) is not None:
            raise BadCredentials
        services.limits.join_user(room, has_place=room == self._room)
        self._leave()
        self._room = room
        self._screen.sign_in = sign_in
        self._expiry = close_at(self.connection, identity.expires_at)
        services.tenants.note_user(*room)
        self._screen.begin_answer()
        services.rooms.join(room, self._screen)
        await self._welcome(room)

    async def _welcome(self, room: Room) -> None:
        """All unseen documents and their count; when the store is away, as soon as it is back."""
        await self._patiently(lambda: self._services.broadcaster.catch_up(room))
        await self._list_unseen(room, is_patient=True)
        count = await self._patiently(lambda: self._services.inbox.count_unseen(room))
        if count is not None:
            self.connection.send(count_frame(count))

    async def _patiently(self, read: Callable[[], Awaitable[T]], after: Document | None = None) -> T | None:
        """What `read` returns, when the store is away as soon as it is back; None if the connection ended before.
        `after`: as `Screen.listing_waits` has it."""
        delay_s = JOIN_RETRY_FIRST_S
        while not self._is_closed:
            try:
                return await read()
            except StoreUnavailable as error:
                self.connection.send(error_frame(error))
            with self._screen.listing_waits(after):
                await self._pause(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # apart from others, no secret
            delay_s = min(2 * delay_s, JOIN_RETRY_MAX_S)
        return None

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
                self._answer(room, notification_frame(some), some)
        else:
            await self._list_newest(room, command.before, command.limit or services.page_limit)

    def _answer(self, room: Room, frame: Frame, shown: Sequence[Document]) -> None:
        if self._bucket is not None:
            self._services.limits.charge(self._bucket, self.connection.caller, room, len(frame.text))
        self._screen.answer(frame, shown)

    async def _list_newest(self, room: Room, before: str | None, limit: int) -> None:
        """In one frame, with fewer documents than asked for if they are long."""
        documents = await self._services.inbox.newest(room, before=before, limit=limit + 1)
        some = next(portions(documents[:limit]))
        self._answer(room, newest_frame(some, before, len(some) < len(documents)), some)

    async def _list_unseen(self, room: Room, *, is_patient: bool = False) -> None:
        """In as many frames as it takes, each made when the one before has left; a single empty one if there are
        none. Once it has begun it is brought to its end, even if the store goes away meanwhile: pushes have been left
        to it."""
        after: Document | None = None
        limit = MAX_DOCUMENTS_PER_FRAME
        while not self._is_closed:
            read = functools.partial(self._services.inbox.unseen, room, after=after, limit=limit)
            documents = await (self._patiently(read, after) if is_patient or after else read())
            if documents is None:
                return
            some = next(portions(documents))
            if some or after is None:
                self._answer(room, notification_frame(some), some)
            if len(some) == len(documents) < limit:
                return
            after = some[-1]
            # Read little more than fits into a frame; the rest would be read again.
            limit = min(2 * len(some), MAX_DOCUMENTS_PER_FRAME)
            with self._screen.listing_waits(after):
                await self.connection.drained()

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
            self._leave_room(self._room)
            self._room = None
            self._screen.forget()

    def _leave_room(self, room: Room) -> None:
        self._services.rooms.leave(room, self._screen)
        self._services.limits.leave_user(room)
        self._screen.sign_in = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _answer_unchanged(self, frame_of: Callable[[tuple[str, ...]], Frame], change: Change) -> None:
        if change.rev is None:
            self.connection.send(frame_of(change.ids))


def _batches(ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    """`ids` in batches; a single empty one if there are none."""
    return [ids[start : start + CHANGES_PER_BATCH] for start in range(0, max(len(ids), 1), CHANGES_PER_BATCH)]
