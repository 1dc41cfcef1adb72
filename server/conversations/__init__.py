"""What is said on a connection that has a session: a conversation for each dialect. A session knows who somebody is and
whose turn it is; its conversation knows what they say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from server.arrivals import Arrivals
from server.auth import Authenticator, Identity, Proof
from server.broadcaster import Broadcaster
from server.dialects import Dialect
from server.errors import ServerError
from server.inbox import Inbox
from server.limits import Limits
from server.rooms import Connection, Room, Rooms
from server.screen import Screen
from server.sync import Sync
from server.tasks import Tasks
from server.tenants import Tenants
from server.wire import Frame
from server.wire_v2 import InboxFrames


class Tickets(Protocol):
    """By which clients come back: see `tokens.resume`."""

    def make(self, proved: Proof, voided_at: Any = None) -> str | None:
        """A ticket for who is here by this proof; None: there can be none. `voided_at`: when the user's last were."""

    def check(self, ticket: str) -> Proof:
        """The proof that a ticket stands for. Raises `BadCredentials`, `TokenExpired`."""


@dataclass(frozen=True, slots=True)
class SessionServices:
    """What all sessions share. `dialect`: the classic one, of `wire`; `dialect_v2`: that of `wire_v2`; `page_limit`:
    documents a page; `max_queue_bytes`: of pushes waiting behind an answer; `max_pending`, `max_pending_bytes`: of
    commands waiting for their turn; `heartbeat_s`: what clients are told of it."""

    authenticator: Authenticator
    tickets: Tickets
    tenants: Tenants
    limits: Limits
    inbox: Inbox
    sync: Sync
    broadcaster: Broadcaster
    rooms: Rooms
    tasks: Tasks
    dialect: Dialect
    dialect_v2: InboxFrames
    page_limit: int
    max_queue_bytes: int
    max_pending: int
    max_pending_bytes: int
    heartbeat_s: float
    arrivals: Arrivals


class Line(Protocol):
    """The session, as its conversation sees it."""

    connection: Connection

    @property
    def services(self) -> SessionServices: ...

    @property
    def screen(self) -> Screen: ...

    @property
    def room(self) -> Room | None:
        """Whose the connection is; None: nobody's."""

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""

    async def become(self, identity: Identity, conversation: Conversation) -> Room | None:
        """Become this user, who speaks so from now on: from then on pushes wait until `Screen.end_answer`. What fails
        changes nothing. None: the connection has ended meanwhile. Raises `ServerError`."""

    def leave(self) -> None:
        """Be nobody's."""

    def forget(self) -> None:
        """The connection is over, and what still waits is not to be done for the user it had."""

    async def pause(self, delay_s: float) -> None:
        """Return after a while, or at the end of the connection."""

    def charge(self, room: Room, size: int) -> None:
        """Count an answer of so many bytes."""

    def do_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this when all commands that have come so far are carried out."""


class Conversation(ABC):
    """One dialect, spoken on one connection."""

    __slots__ = ("line",)

    def __init__(self, line: Line) -> None:
        self.line = line

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """In which events are told."""

    @abstractmethod
    async def carry_out(self, message: Mapping[str, Any]) -> None:
        """Carry out a command, and answer it. Raises `ServerError`: that is to be its answer."""

    @abstractmethod
    def error(self, error: ServerError, message: Mapping[str, Any] | None) -> Frame:
        """The answer to a command that failed; None: it could not be read."""

    @abstractmethod
    def missed(self, since: datetime) -> None:
        """Events since then (aware UTC) may not have come. Does not block."""

    @abstractmethod
    def ended(self) -> None:
        """The user has left, or the connection is over."""
