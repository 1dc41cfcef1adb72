"""`/api/v2/inbox`: a user's inbox for those who poll, and for those who listen by a way that takes no commands. What it
says, and what it does, are those of dialect 2 (docs/protocol.md)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from tornado.web import stream_request_body

from server.auth import Identity, sign_in_of
from server.commands_v2 import Content, content_of, ids_of, upto_of
from server.conversations.v2 import chunk_fields
from server.errors import BadCredentials, InvalidCommand, RateLimited, ServerError, TooLarge
from server.inbox import CHANGES_PER_BATCH, Changed
from server.rates import TokenBucket
from server.revs import to_wire
from server.rooms import Room
from server.since import MAX_CHARS
from server.transports.feeds import FeedDoors
from server.transports.user_requests import UserRequest
from server.wire import instant, portions
from server.wire_v2 import changed_fields, counts_fields, documents_fields

PAGE_LIMIT = 40
"""Documents of a page, if nothing else is asked for."""

MAX_BODY_BYTES = 64 * 1024
"""Of a request: as many ids as one may name take a quarter of that."""

UNWANTED_BYTES = 16 * 1024 * 1024
"""Of a body that is too large are read and dropped, so that the answer arrives; beyond that the connection ends."""

MAX_WAIT_S = 5.0
"""How long a request waits for its turn if its user asks for much; longer, and it is refused."""

_BOOLEANS = {"true": True, "false": False}

_ETAG = re.compile(r'(?:W/)?"([0-9a-f]{16})\.([^"]+)"')


@stream_request_body
class InboxHandler(UserRequest):
    """Reads its body itself, and keeps no more of it than is allowed. Who comes in is decided afterwards: an answer
    before would end the connection."""

    door = "inbox"
    methods = ("GET", "PATCH", "DELETE")
    allowed_headers = "Authorization, Cache-Control, Content-Type, If-None-Match"

    async def prepare(self) -> None:
        self._body = bytearray()
        self._is_too_large = False
        # Tornado answers 400 to what is over its own limit; we count ourselves, and answer 413.
        self.request.connection.set_max_body_size(UNWANTED_BYTES)  # type: ignore[union-attr]  # HTTP/1 always has it

    def data_received(self, chunk: bytes) -> None:
        self._is_too_large = self._is_too_large or len(self._body) + len(chunk) > MAX_BODY_BYTES
        if self._is_too_large:
            self._body.clear()
        else:
            self._body += chunk

    async def _is_let_in(self) -> bool:
        """Whether this request is to be carried out; if not, it has been answered."""
        await super().prepare()
        return not self._finished

    async def who(self) -> Identity:
        identity = await self._of_bearer()
        services, room = self.doors.services, (identity.tenant, identity.user_id)
        sign_in = sign_in_of(identity)
        await self._wait_for_turn(room)
        # Not before: what is revoked while it waits is not carried out.
        if services.tenants.why_over(room, sign_in) is not None:
            raise BadCredentials("the token does not count any more; get a new one")
        services.tenants.note_user(*room)
        return identity

    async def _wait_for_turn(self, room: Room) -> None:
        """As the commands of a connection do."""
        wait_s = self.doors.services.limits.pace(TokenBucket(), self.caller, room, len(self._body))
        if wait_s > MAX_WAIT_S:
            raise RateLimited("too many requests of this user; slow down", wait_s)
        await asyncio.sleep(wait_s)

    @property
    def _room(self) -> Room:
        return self.identity.tenant, self.identity.user_id

    # -- reading ---------------------------------------------------------------------------------------------
    async def get(self) -> None:
        """Documents, newest first; with `since`: what has changed since."""
        if not await self._is_let_in():
            return
        services, room = self.doors.services, self._room
        try:
            await services.broadcaster.catch_up(room)
            since = self._query("since")
            wanted = self._wanted()
            if await self._is_known():
                self.set_status(304)
                self._be_private()
                self.finish()
                return
            present = str(await services.sync.now())
            self.set_header("ETag", f'W/"{_digest(room)}.{present}"')
            self._answer(
                await (self._page(wanted, present) if since is None else self._changes(since, wanted))
            )
        except ServerError as error:
            self.clear_header("ETag")
            self.refuse(error)

    async def _is_known(self) -> bool:
        """Whether the client has what it asks for: nothing has changed since it was answered last."""
        for digest, since in _ETAG.findall(self.request.headers.get("If-None-Match", "")[: 4 * MAX_CHARS]):
            if digest == _digest(self._room) and await self.doors.services.sync.is_unchanged(
                self._room, since
            ):
                self.set_header("ETag", f'W/"{digest}.{since}"')
                return True
        return False

    async def _page(self, wanted: Content, present: str) -> dict[str, Any]:
        services, room = self.doors.services, self._room
        limit = wanted.limit or PAGE_LIMIT
        documents = await services.inbox.newest(
            room, before=wanted.before, limit=limit + 1, type=wanted.type, seen=wanted.seen
        )
        some = next(portions(documents[:limit]))
        page = {"documents": documents_fields(some), "older": len(some) < len(documents)}
        if wanted.before is not None:
            return page
        counts = counts_fields(await services.inbox.counts(room))
        return page | {"since": present, "counts": counts, "floor": instant(services.sync.floor(room[0]))}

    async def _changes(self, since: str, wanted: Content) -> dict[str, Any]:
        limit = wanted.limit or PAGE_LIMIT
        # Each request goes on from the one before; what changes meanwhile comes with the next poll.
        return chunk_fields(await self.doors.services.sync.read(self._room, since, limit, goes_on=True))

    def _wanted(self) -> Content:
        limit, seen = self._query("limit"), self._query("seen")
        if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) <= 10):
            raise InvalidCommand("limit", "not an integer above 0")
        if seen is not None and seen not in _BOOLEANS:
            raise InvalidCommand("seen", "neither true nor false")
        return content_of(
            {
                "before": self._query("before"),
                "limit": None if limit is None else int(limit),
                "type": self._query("type"),
                "seen": None if seen is None else _BOOLEANS[seen],
            }
        )

    def _query(self, name: str) -> str | None:
        values = self.request.query_arguments.get(name)
        if not values:
            return None
        try:
            return values[-1].decode()
        except UnicodeDecodeError:
            raise InvalidCommand(name, "not UTF-8") from None

    # -- changing --------------------------------------------------------------------------------------------
    async def patch(self) -> None:
        """Mark documents seen or unseen, delete or restore them; or mark all seen."""
        await self._carry_out({})

    async def delete(self) -> None:
        """Delete documents."""
        await self._carry_out({"deleted": True})

    async def _carry_out(self, implied: Mapping[str, Any]) -> None:
        """The change that the body asks for, with what goes without saying."""
        if not await self._is_let_in():
            return
        try:
            self._answer(await self._change(self._fields() | dict(implied)))
        except ServerError as error:
            self.refuse(error)

    async def _change(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        inbox = self.doors.services.inbox
        said = [name for name in ("seen", "deleted") if name in fields]
        if len(said) != 1:
            raise InvalidCommand("", "one of seen and deleted is needed, and only one")
        [name] = said
        if not isinstance(fields[name], bool):
            raise InvalidCommand(name, "neither true nor false")
        if "all" in fields:
            if fields["all"] is not True or "ids" in fields or fields.get("seen") is not True:
                raise InvalidCommand("all", "must be true, without ids, and with seen: true")
            marked = await inbox.mark_seen_up_to(self._room, upto_of(fields))
            return {"all": True, "upto": to_wire(marked.upto), "changed": marked.changed}
        ids = ids_of(fields)
        if len(ids) > CHANGES_PER_BATCH:
            raise TooLarge("ids", f"more than {CHANGES_PER_BATCH}")
        changed: Changed = await {
            ("seen", True): inbox.see,
            ("seen", False): inbox.mark_unseen,
            ("deleted", True): inbox.remove,
            ("deleted", False): inbox.restore,
        }[name, fields[name]](self._room, ids)
        return changed_fields(changed.ids, changed.rev)

    def _fields(self) -> dict[str, Any]:
        if self._is_too_large:
            raise TooLarge("", f"the body is over the {MAX_BODY_BYTES} bytes allowed")
        try:
            fields = json.loads(self._body)
        except (ValueError, RecursionError) as exc:
            raise InvalidCommand("", "the body is not JSON") from exc
        if not isinstance(fields, dict):
            raise InvalidCommand("", "the body is not a JSON object")
        return fields

    def _answer(self, fields: Mapping[str, Any]) -> None:
        self._be_private()
        self.set_header("Content-Type", "application/json")
        text = json.dumps(fields, separators=(",", ":"))
        self.doors.services.limits.charge(TokenBucket(), self.caller, self._room, len(text))
        self.finish(text)

    def _be_private(self) -> None:
        """The answer is for this user alone, and to be asked about again each time."""
        self.set_header("Cache-Control", "private, no-cache")
        self.add_header("Vary", "Authorization")


def _digest(room: Room) -> str:
    """What tells users apart in an ETag."""
    return hashlib.sha256("\0".join(room).encode()).hexdigest()[:16]


def routes(doors: FeedDoors) -> list[tuple[Any, ...]]:
    return [(r"/api/v2/inbox", InboxHandler, {"doors": doors})]
