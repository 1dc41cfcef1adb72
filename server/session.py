"""One connected client: whose turn it is, who it is, and until when. Knows no transport, and not what is said: that is
the business of its conversation (`conversations`), which it chooses when it joins.

Order, per connection: commands are carried out one after the other, and answered in that order, each answer
when the one before has left. The room is joined before anything is read; what pushes and answers have to do
with each other is the business of the `screen`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from server.auth import Identity, sign_in_of
from server.bus import THROTTLED, tell
from server.commands import read_message
from server.conversations import Conversation, SessionServices
from server.conversations.classic import ClassicConversation
from server.conversations.v2 import ConversationV2
from server.errors import BadCredentials, Busy, InvalidCommand, ServerError
from server.messages import now
from server.rates import TokenBucket
from server.rooms import Connection, Room, close_at
from server.screen import Screen
from server.wire import FAILED

__all__ = ["Session", "SessionServices"]

logger = logging.getLogger(__name__)

STRANGER_PENDING_BYTES = 64 * 1024
"""Of commands that may wait on a connection that has no user: a join and some more."""

CONVERSATIONS: Mapping[int, type[Conversation]] = {1: ClassicConversation, 2: ConversationV2}
"""By the version that a join names."""

MAX_READ_FOR_ID = 4096
"""Of a command that is refused because there are too many: who sends longer ones is not told which it was."""

Work = Callable[[], Awaitable[None]]


class Session:
    """One client. Made by a door when a client connects; told of its messages and of its end."""

    __slots__ = (
        "__weakref__",
        "_bucket",
        "_conversation",
        "_end",
        "_expiry",
        "_is_closed",
        "_only",
        "_pending",
        "_pending_bytes",
        "_room",
        "_screen",
        "_services",
        "_space",
        "_task",
        "connection",
    )

    def __init__(
        self, connection: Connection, services: SessionServices, only_version: int | None = None
    ) -> None:
        """`only_version`: of the dialect that is spoken at this door; None: a join says it, and says nothing for the
        classic one."""
        self.connection = connection
        self._services = services
        self._only = only_version
        self._conversation = CONVERSATIONS[only_version or 1](self)
        self._screen = Screen(connection, self._conversation.dialect, services.max_queue_bytes, self)
        self._room: Room | None = None
        # how many commands it has carried out lately; None before the first
        self._bucket: TokenBucket | None = None
        # closes the connection when the token of the join ends
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False
        # what a pause of ours watches; None if there was none
        self._end: asyncio.Event | None = None
        # commands waiting for their turn, and work of our own; allocated while there are any
        self._pending: deque[str | Work] | None = None
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
            refusal = Busy("too many commands at once; this one was not carried out")
            self.connection.send(self._conversation.error(refusal, _read_short(text)))
            return None
        self._pending.append(text)
        self._pending_bytes += len(text)
        self._start()
        if self._has_space():
            return None
        self._tell_throttled()
        if self._space is None:
            self._space = asyncio.Event()
        return self._wait_for_space(self._space)

    def _start(self) -> None:
        if self._task is None:
            self._task = self._services.tasks.start(self._work(), "session")

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

    def missed(self, since: datetime) -> None:
        """Events since then may not have come: the client is told what there is, when its turn comes."""
        self._conversation.missed(since)

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
                item = self._pending.popleft()
                if isinstance(item, str):
                    self._pending_bytes -= len(item)
                    await self._pace(len(item))
                    await self._carry_out(item)
                else:
                    await self._do(item)
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
        """A client that sends commands faster than it may has to wait: what it sends meanwhile is queued, and when the
        queue is full its door stops reading."""
        if self._bucket is None:
            self._bucket = TokenBucket()
        wait_s = self._services.limits.pace(self._bucket, self.connection.caller, self._room, size)
        if wait_s and not self._is_closed:
            await self.pause(wait_s)

    async def _carry_out(self, text: str) -> None:
        message: Mapping[str, Any] | None = None
        conversation = self._conversation
        try:
            message = read_message(text)
            conversation = self._conversation_for(message)
            await conversation.carry_out(message)
        except ServerError as error:
            self.connection.send(conversation.error(error, message))
        except Exception:
            logger.exception("a command failed")
            self.connection.close(FAILED)
        finally:
            self._screen.end_answer()

    async def _do(self, work: Work) -> None:
        try:
            await work()
        except Exception:
            logger.exception("what a client is told by the way failed")
            self.connection.close(FAILED)
        finally:
            self._screen.end_answer()

    def _conversation_for(self, message: Mapping[str, Any]) -> Conversation:
        """The conversation that a message belongs to. Each join chooses one; a connection that has a user keeps the one
        it has until another join has succeeded. Raises `InvalidCommand`."""
        if message.get("name") != "join":
            return self._conversation
        data = message.get("data")
        version = data.get("v") if isinstance(data, dict) else None
        version = (self._only or 1) if version is None else version
        is_known = isinstance(version, int) and not isinstance(version, bool) and version in CONVERSATIONS
        if not is_known or self._only not in (None, version):
            known = CONVERSATIONS if self._only is None else (self._only,)
            raise InvalidCommand("data.v", f"known here: {', '.join(map(str, known))}")
        if isinstance(self._conversation, CONVERSATIONS[version]):
            return self._conversation
        conversation = CONVERSATIONS[version](self)
        if self._room is None:
            self._conversation = conversation
        return conversation

    # -- the conversation's side -----------------------------------------------------------------------------
    @property
    def services(self) -> SessionServices:
        return self._services

    @property
    def screen(self) -> Screen:
        return self._screen

    @property
    def room(self) -> Room | None:
        return self._room

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def become(self, identity: Identity, conversation: Conversation) -> Room | None:
        """As `conversations.Line`. Joining as somebody else leaves the first user's room; as the same user it is a
        fresh welcome, and counts for as long as its own proof."""
        services = self._services
        room = (identity.tenant, identity.user_id)
        sign_in = sign_in_of(identity)
        wait_s = services.limits.pace_join(room)
        if wait_s and not self._is_closed:
            await self.pause(wait_s)
        # No await between these checks and the join: a close in between would leave us in the room for ever, and a
        # sign-out would miss us.
        if self._is_closed:
            self._room = None
            return None
        if services.tenants.why_over(room, sign_in) is not None:
            raise BadCredentials
        services.limits.join_user(room, has_place=room == self._room)
        self.leave()
        self._room = room
        self._conversation = conversation
        self._screen.sign_in = sign_in
        self._screen.dialect = conversation.dialect
        self._expiry = close_at(self.connection, identity.expires_at)
        services.tenants.note_user(*room)
        self._screen.joined_at = now()
        self._screen.begin_answer()
        services.rooms.join(room, self._screen)
        return room

    def leave(self) -> None:
        """As `conversations.Line`."""
        if self._room is not None:
            self._leave_room(self._room)
            self._room = None
            self._screen.forget()

    def forget(self) -> None:
        """As `conversations.Line`."""
        self._room = None

    def charge(self, room: Room, size: int) -> None:
        """As `conversations.Line`."""
        if self._bucket is not None:
            self._services.limits.charge(self._bucket, self.connection.caller, room, size)

    def do_soon(self, work: Work) -> None:
        """As `conversations.Line`."""
        if self._is_closed:
            return
        if self._pending is None:
            self._pending = deque()
        self._pending.append(work)
        self._start()

    async def pause(self, delay_s: float) -> None:
        """As `conversations.Line`."""
        self._end = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._end.wait()

    def _leave_room(self, room: Room) -> None:
        self._services.rooms.leave(room, self._screen)
        self._services.limits.leave_user(room)
        self._screen.sign_in = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._conversation.ended()


def _read_short(text: str) -> Mapping[str, Any] | None:
    """A message that is refused unread, but whose id the answer needs; None: it is too long, or no message."""
    if len(text) > MAX_READ_FOR_ID:
        return None
    try:
        return read_message(text)
    except InvalidCommand:
        return None
