"""Dialect 2 of the socket protocol (docs/protocol.md): its commands, carried out. They are in `commands_v2`, its frames
in `wire_v2`.

Each command is answered exactly once, or in chunks of which all but the last have `"more": true`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from server.auth import Identity, Proof, proved_now
from server.bus import SIGNED_IN, tell
from server.commands import Leave, MarkSeen
from server.commands_v2 import (
    CHANGES,
    Acknowledge,
    Command,
    Content,
    Count,
    Enter,
    JoinByTicket,
    MarkAllSeen,
    MarkUnseen,
    Ping,
    Remove,
    Request,
    RequestId,
    Restore,
    Sync,
    parse_request,
    request_id,
)
from server.conversations import Conversation, Line
from server.conversations.classic import batches
from server.dialects import Dialect
from server.errors import NotJoined, ServerError, StoreUnavailable
from server.inbox import Changed
from server.messages import Document
from server.revs import to_wire
from server.rooms import Room
from server.sync import Chunk
from server.wire import Frame, portions
from server.wire_v2 import (
    answer_frame,
    changed_fields,
    counts_fields,
    delayed_frame,
    documents_fields,
    error_frame,
    joined_fields,
    sync_fields,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

JOIN_RETRY_FIRST_S = 0.5
JOIN_RETRY_MAX_S = 10.0
"""Until the next try to read the inbox of a user who joined while the store was away. The client waits for nothing
else."""

DELAYED_AFTER_S, DELAYED_EACH_S = 3.0, 5.0
"""When it is told that it waits, and how often again: a store that hangs fails no sooner than clients lose patience.
"""

REFRESH_S = 300.0
"""About so often a connection is told, unasked, how far it is: what it gives back when it returns is never old, nor is
its ticket; and a change of which nothing was pushed comes to it then."""


class ConversationV2(Conversation):
    """`_upto`: how far the client is; None: it is being told, or has no user."""

    __slots__ = ("_identity", "_refreshing", "_upto")

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self._identity: Identity | None = None
        self._upto: str | None = None
        self._refreshing: asyncio.TimerHandle | None = None

    @property
    def dialect(self) -> Dialect:
        return self.line.services.dialect_v2

    def error(self, error: ServerError, message: Mapping[str, Any] | None) -> Frame:
        return error_frame(error, None if message is None else request_id(message))

    def ended(self) -> None:
        self._identity = self._upto = None
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None

    async def carry_out(self, message: Mapping[str, Any]) -> None:
        line, request = self.line, parse_request(message)
        command = request.command
        if line.is_closed and not isinstance(command, CHANGES):
            # What follows a join or a leave may not be done for the user before it.
            if isinstance(command, Enter | Leave):
                line.forget()
        elif isinstance(command, Enter):
            await self._enter(request, command)
        elif isinstance(command, Leave):
            line.leave()
            self._say(request, {})
        elif isinstance(command, Ping):
            line.connection.send(answer_frame("pong", request.id, {}))
        elif line.room is None:
            raise NotJoined
        elif isinstance(command, CHANGES):
            await self._change(line.room, request, command)
        else:
            line.screen.begin_answer()
            await self._read(line.room, request, command)

    def _say(self, request: Request, data: Mapping[str, Any]) -> None:
        self.line.connection.send(answer_frame(request.name, request.id, data))

    def _answer(
        self, room: Room, name: str, id_: RequestId, data: Mapping[str, Any], shown: Sequence[Document] = ()
    ) -> None:
        frame = answer_frame(name, id_, data)
        self.line.charge(room, len(frame.text))
        self.line.screen.answer(frame, shown)

    # -- joining ---------------------------------------------------------------------------------------------
    async def _enter(self, request: Request, command: Enter) -> None:
        """While the store is away the answer waits for it."""
        await self.line.services.arrivals.to_join()
        identity = await self._identify(command)
        room = await self.line.become(identity, self)
        if room is None:
            return
        self._identity = proved_now(identity)
        self._refresh_later()
        welcome = await self._patiently(partial(self._welcome, room, command.since))
        if welcome is None:
            return
        joined, chunk = welcome
        self._answer(room, "joined", request.id, joined)
        if command.since is None:
            self._upto = joined["since"]
        else:
            await self._sync(room, request.id, command.since, is_patient=True, first=chunk)

    async def _identify(self, command: Enter) -> Identity:
        services, proof = self.line.services, command.proof
        if not isinstance(proof, JoinByTicket):
            return await services.authenticator.authenticate(proof, self.line.connection.caller)
        identity = services.authenticator.still(services.tickets.check(proof.ticket))
        tell(SIGNED_IN, services.authenticator, method="ticket", tenant=identity.tenant, took_s=0.0)
        return identity

    async def _welcome(self, room: Room, since: str | None) -> tuple[dict[str, Any], Chunk | None]:
        """The answer to a join, and the first chunk of what follows it."""
        services, tenant = self.line.services, room[0]
        # Before the reading: what changes during it is not passed over.
        present = await services.sync.now()
        beginning = None if since is None else services.sync.begin(tenant, since, present)
        read = partial(services.inbox.welcome, room, counts=True)
        if beginning is not None and beginning.after is not None:
            read = partial(read, changes=services.sync.chunk_documents, after=beginning.after)
        found = await services.broadcaster.welcome(room, read)
        joined = joined_fields(
            room[1],
            # Who is so far as they say goes on from there, by what follows.
            str(present) if since is None else None,
            found.counts,
            floor=services.sync.floor(tenant),
            ticket=self._ticket(),
            heartbeat_s=services.heartbeat_s,
        )
        if beginning is None:
            return joined, None
        return joined, services.sync.chunk(tenant, beginning, found.changes, services.sync.chunk_documents)

    def _ticket(self) -> str | None:
        """By which this client may come back; None: it cannot be given one."""
        identity, services = self._identity, self.line.services
        if identity is None:
            return None
        proof = Proof(
            identity.user_id,
            identity.tenant,
            identity.issued_at,
            identity.expires_at,
            identity.key_id,
            identity.secret_id,
        )
        return services.tickets.make(proof, services.tenants.voided_at(identity.tenant, identity.user_id))

    async def _patiently(self, read: Callable[[], Awaitable[T]], *, is_asked_for: bool = True) -> T | None:
        """What `read` returns, when the store is away as soon as it is back; None if the connection ended before. Who
        waits for it is told so; who has not asked for it does not wait."""
        delay_s = JOIN_RETRY_FIRST_S
        telling = TellingOfDelay(lambda: self.line.connection.send(delayed_frame()))
        with telling if is_asked_for else contextlib.nullcontext():
            while not self.line.is_closed:
                try:
                    return await read()
                except StoreUnavailable:
                    await self.line.pause(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # apart from others, no secret
                delay_s = min(2 * delay_s, JOIN_RETRY_MAX_S)
        return None

    # -- reading ---------------------------------------------------------------------------------------------
    async def _read(self, room: Room, request: Request, command: Command) -> None:
        if isinstance(command, Sync):
            await self._sync(room, request.id, command.since)
        elif isinstance(command, Content):
            await self._list(room, request, command)
        elif isinstance(command, Count):
            self._answer(
                room, "counts", request.id, counts_fields(await self.line.services.inbox.counts(room))
            )

    async def _list(self, room: Room, request: Request, command: Content) -> None:
        """In one frame, with fewer documents than asked for if they are long."""
        services = self.line.services
        limit = command.limit or services.page_limit
        documents = await services.inbox.newest(
            room, before=command.before, limit=limit + 1, type=command.type, seen=command.seen
        )
        some = next(portions(documents[:limit]))
        data = {"documents": documents_fields(some), "older": len(some) < len(documents)}
        self._answer(room, request.name, request.id, data, some)

    async def _sync(
        self,
        room: Room,
        id_: RequestId,
        since: str,
        *,
        is_patient: bool = False,
        first: Chunk | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        """Each chunk is read when the one before has left; pushes wait behind the one that is being read. `first`: the
        first one, if it has been read already. `beside`: what the last chunk of one that nobody asked for says, too."""
        line = self.line
        self._upto = None  # cut off now, the client has to have it all again
        goes_on, limit = False, None
        while not line.is_closed:
            line.screen.begin_answer()
            read = partial(line.services.sync.read, room, since, limit, goes_on=goes_on)
            chunk, first = first, None
            if chunk is None:
                chunk = await (self._patiently(read, is_asked_for=beside is None) if is_patient else read())
            if chunk is None:
                return
            data = chunk_fields(chunk) | (dict(beside or {}) if not chunk.more else {})
            self._answer(room, "sync", id_, data, chunk.documents)
            line.screen.end_answer()
            if not chunk.more:
                self._upto = chunk.upto
                return
            since, goes_on, limit = chunk.upto, True, chunk.next_limit
            await line.connection.drained()

    # -- changing --------------------------------------------------------------------------------------------
    async def _change(self, room: Room, request: Request, command: Command) -> None:
        inbox = self.line.services.inbox
        if isinstance(command, MarkSeen):
            await self._in_batches(request, command.ids or (), partial(inbox.see, room))
        elif isinstance(command, MarkUnseen):
            await self._in_batches(request, command.ids, partial(inbox.mark_unseen, room))
        elif isinstance(command, Remove):
            await self._in_batches(request, command.ids, partial(inbox.remove, room))
        elif isinstance(command, Restore):
            await self._in_batches(request, command.ids, partial(inbox.restore, room))
        elif isinstance(command, Acknowledge):
            for batch in batches(command.ids):
                await inbox.acknowledge(room, batch)
            self._say(request, {"ids": command.ids})
        elif isinstance(command, MarkAllSeen):
            marked = await inbox.mark_seen_up_to(room, command.upto)
            self._say(request, {"all": True, "upto": to_wire(marked.upto), "changed": marked.changed})

    async def _in_batches(
        self, request: Request, ids: tuple[str, ...], change: Callable[[tuple[str, ...]], Awaitable[Changed]]
    ) -> None:
        """Each batch has a rev, and an answer, of its own."""
        parts = batches(ids)
        for number, batch in enumerate(parts, 1):
            changed = await change(batch)
            self._say(request, changed_fields(changed.ids, changed.rev) | {"more": number < len(parts)})
            await self.line.connection.drained()

    # -- now and then ----------------------------------------------------------------------------------------
    def _refresh_later(self) -> None:
        delay_s = REFRESH_S * random.uniform(0.8, 1.2)  # noqa: S311  # apart from others, no secret
        self._refreshing = asyncio.get_running_loop().call_later(delay_s, self.line.do_soon, self.refresh)

    def missed(self, since: datetime) -> None:
        self.line.do_soon(self._catch_up)

    async def _catch_up(self) -> None:
        """Tell the client what has changed since it was told last; while the store is away, when it is back."""
        room, upto = self.line.room, self._upto
        if room is None or self._identity is None:
            return
        if upto is None:
            self.line.connection.send(answer_frame("missed", None, {}))
        else:
            await self._sync(room, None, upto, is_patient=True, beside={"ticket": self._ticket()})

    async def refresh(self) -> None:
        """Tell the client how far it is, with what has changed since it was told last, and a new ticket."""
        room, upto = self.line.room, self._upto
        if room is None or self._identity is None:
            return
        self._refresh_later()
        if upto is None:
            return
        try:
            await self._sync(room, None, upto, beside={"ticket": self._ticket()})
        except StoreUnavailable:
            self._upto = upto


def chunk_fields(chunk: Chunk) -> dict[str, Any]:
    """A chunk of a sync as JSON has it."""
    return sync_fields(
        chunk.documents, more=chunk.more, upto=chunk.upto, floor=chunk.floor, reset=chunk.reset
    )


class TellingOfDelay:
    """A context in which `tell` is called now and then, if it takes long."""

    # Not a generator with functions that know each other: of each join that would leave something to the garbage
    # collector.
    __slots__ = ("_tell", "_timer")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> None:
        self._wait(DELAYED_AFTER_S)

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def _wait(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tell_again)

    def _tell_again(self) -> None:
        self._wait(DELAYED_EACH_S)
        self._tell()
