"""What clients ask in dialect 2 of the socket protocol (docs/protocol.md), without any I/O: message -> Request. What
they are told is in `wire_v2`.

A message is a JSON object `{"name": …, "id"?: …, "data"?: {…}}`. `id` is the client's own; the answer comes with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.commands import (
    MAX_PAGE_SIZE,
    MAX_TOKEN_CHARS,
    Join,
    JoinByToken,
    Leave,
    MarkSeen,
    credential,
    distinct_ids,
    is_unicode,
    name_of,
    parse_proof,
)
from server.errors import InvalidCommand
from server.ids import is_id
from server.since import MAX_CHARS

VERSION = 2

MAX_REQUEST_ID_CHARS = 64

MAX_SAFE_INTEGER = 2**53 - 1
"""Beyond, JavaScript does not tell neighbours apart."""

MAX_TYPE_CHARS = 2048

RequestId = str | int | None
"""None: the client gave none."""


@dataclass(frozen=True, slots=True)
class JoinByTicket:
    """Become the user again who was given this ticket."""

    ticket: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Enter:
    """Join. `since`: how far the client was (None: it has nothing); what has changed since follows the answer."""

    proof: Join | JoinByToken | JoinByTicket
    since: str | None = None


@dataclass(frozen=True, slots=True)
class Sync:
    """Send what has changed since."""

    since: str


@dataclass(frozen=True, slots=True)
class Content:
    """Send documents, newest first, from before document `before` (None: from the newest), of this type and with this
    `seen` only (None: any). `limit` None: as configured."""

    before: str | None = None
    limit: int | None = None
    type: str | None = None
    seen: bool | None = None


@dataclass(frozen=True, slots=True)
class MarkAllSeen:
    """Mark all documents seen whose rev is not above `upto` (None: all there are)."""

    upto: int | None


@dataclass(frozen=True, slots=True)
class MarkUnseen:
    """Mark documents as unseen."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete documents."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """Take back that documents were deleted."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Documents have arrived with whoever they are for; that is no `seen`."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """Send how many documents there are."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer: a page cannot send a ping of WebSocket, nor hear of one."""


Command = (
    Enter
    | Sync
    | Content
    | MarkSeen
    | MarkAllSeen
    | MarkUnseen
    | Remove
    | Restore
    | Acknowledge
    | Count
    | Ping
    | Leave
)

CHANGES = (MarkSeen, MarkAllSeen, MarkUnseen, Remove, Restore, Acknowledge)
"""Those that are carried out also for a client that has just gone."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command, and the id by which its answer is known."""

    id: RequestId
    name: str
    command: Command


def parse_request(message: Mapping[str, Any]) -> Request:
    """Raises `InvalidCommand`, whose `field` is a path into the message."""
    id_ = message.get("id")
    if request_id(message) is None and id_ is not None:
        raise InvalidCommand(
            "id",
            f"neither an integer that JavaScript can hold nor a text of 1 to {MAX_REQUEST_ID_CHARS} characters",
        )
    name = name_of(message)
    parse = COMMANDS.get(name)
    if parse is None:
        raise InvalidCommand("name", f"unknown command; known are {', '.join(COMMANDS)}")
    data = message.get("data")
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InvalidCommand("data", "not an object")
    return Request(id_, name, parse(data))


def request_id(message: Mapping[str, Any]) -> RequestId:
    """The id of a message, whatever else is wrong with it; None: it has none, or none that could be given back."""
    id_ = message.get("id")
    if isinstance(id_, str) and 0 < len(id_) <= MAX_REQUEST_ID_CHARS:
        return id_
    if isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) <= MAX_SAFE_INTEGER:
        return id_
    return None


def _parse_join(data: dict[str, Any]) -> Enter:
    since = data.get("since")
    if "ticket" not in data:
        return Enter(parse_proof(data), None if since is None else _since(since))
    if {"token", "login", "password"} & set(data):
        raise InvalidCommand("data.ticket", "comes alone: a ticket, a token, or login and password")
    ticket = JoinByTicket(credential(data, "ticket", MAX_TOKEN_CHARS))
    return Enter(ticket, None if since is None else _since(since))


def _since(value: Any) -> str:
    """What of it is not ours is found out later, and is answered by `reset`."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CHARS:
        raise InvalidCommand("data.since", "not a token that this server has given")
    return value


def _parse_content(data: dict[str, Any]) -> Content:
    return content_of(data, "data.")


def content_of(fields: Mapping[str, Any], path: str = "") -> Content:
    """What is asked for in these fields. Raises `InvalidCommand` with the path of a field below `path`."""
    before, limit, type_, seen = (fields.get(name) for name in ("before", "limit", "type", "seen"))
    if before is not None and not is_id(before):
        raise InvalidCommand(f"{path}before", "neither null nor the _id of a notification")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidCommand(f"{path}limit", "neither null nor an integer above 0")
    if type_ is not None and not (
        isinstance(type_, str) and len(type_) <= MAX_TYPE_CHARS and is_unicode(type_)
    ):
        raise InvalidCommand(f"{path}type", f"neither null nor a text of up to {MAX_TYPE_CHARS} characters")
    if seen is not None and not isinstance(seen, bool):
        raise InvalidCommand(f"{path}seen", "neither null, true nor false")
    return Content(before and before.lower(), limit and min(limit, MAX_PAGE_SIZE), type_, seen)


def _parse_seen(data: dict[str, Any]) -> MarkSeen | MarkAllSeen:
    if "all" not in data:
        return MarkSeen(ids_of(data, "data."))
    if data["all"] is not True or "ids" in data:
        raise InvalidCommand("data.all", "must be true, and without ids")
    return MarkAllSeen(upto_of(data, "data."))


_REV = re.compile(r"[0-9a-f]{16}")


def upto_of(fields: Mapping[str, Any], path: str = "") -> int | None:
    """The rev in the field `upto`; None: there is none. Raises `InvalidCommand`."""
    upto = fields.get("upto")
    if upto is None:
        return None
    if not isinstance(upto, str) or not _REV.fullmatch(upto):
        raise InvalidCommand(f"{path}upto", "not the rev of a notification")
    return int(upto, 16)


def ids_of(fields: Mapping[str, Any], path: str = "") -> tuple[str, ...]:
    """Those in the field `ids`, once each. Texts that are no ids are dropped: they are nobody's. Raises
    `InvalidCommand`."""
    return distinct_ids(fields.get("ids"), f"{path}ids")


COMMANDS: dict[str, Callable[[dict[str, Any]], Command]] = {
    "join": _parse_join,
    "sync": lambda data: Sync(_since(data.get("since"))),
    "content": _parse_content,
    "seen": _parse_seen,
    "unseen": lambda data: MarkUnseen(ids_of(data, "data.")),
    "delete": lambda data: Remove(ids_of(data, "data.")),
    "restore": lambda data: Restore(ids_of(data, "data.")),
    "ack": lambda data: Acknowledge(ids_of(data, "data.")),
    "counts": lambda data: Count(),
    "ping": lambda data: Ping(),
    "leave": lambda data: Leave(),
}
