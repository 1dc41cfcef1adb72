"""What clients ask in the classic socket protocol (CONTRACT C1), without any I/O: text -> Command. What they are
told is in `wire`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.errors import InvalidCommand
from server.ids import is_id

MAX_PAGE_SIZE = 100
MAX_PAGE = 1_000_000
"""Pages beyond are as empty as this one; keeps the arithmetic of stores within 64 bits."""

MAX_CREDENTIAL_CHARS = 1024
"""Longer logins and passwords are refused unread: hashing has a price per character."""

MAX_TOKEN_CHARS = 8192
"""Longer tokens are refused unread. Those of large identity providers reach a few thousand."""

SHAPE = 'a message is an object {"name": …, "data": …}'

FREE_VALUES, CHARS_PER_VALUE = 16 * 1024, 16
"""How many values a text may have (commas and brackets are counted, wherever they stand): so many, and one more for
each so many characters. An id in a list of them takes 27."""


@dataclass(frozen=True, slots=True)
class Join:
    """Become the user with this login; what the user has not seen follows."""

    login: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class JoinByToken:
    """Become the user whom this token speaks of; what the user has not seen follows."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListUnseen:
    """Send all unseen documents, oldest first."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """Send a page by its number, oldest first. `page` is 0 or more."""

    page: int


@dataclass(frozen=True, slots=True)
class ListNewest:
    """Send documents newest first, from before document `before` (None: from the newest). `limit` None: as
    configured."""

    before: str | None
    limit: int | None


@dataclass(frozen=True, slots=True)
class MarkSeen:
    """Mark documents as seen; `ids` None: all."""

    ids: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete documents."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Be nobody again; the connection stays."""


Command = Join | JoinByToken | ListUnseen | ListPage | ListNewest | MarkSeen | Delete | Leave


def read_json(text: str) -> Any:
    """JSON of a client. Raises ValueError, also for one with more values than any command of its length has: reading a
    long text of nothing else would hold up everybody."""
    if len(text) > FREE_VALUES and sum(map(text.count, ",[{")) > FREE_VALUES + len(text) // CHARS_PER_VALUE:
        raise ValueError("too many values")
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def read_message(text: str) -> dict[str, Any]:
    """A client's message, in whatever dialect: a JSON object, whose `name_of` says more. Raises `InvalidCommand`."""
    try:
        message = read_json(text)
    except ValueError as exc:
        raise InvalidCommand("", "the message is not JSON, or has too many values") from exc
    if not isinstance(message, dict):
        raise InvalidCommand("name", SHAPE)
    return message


def name_of(message: Mapping[str, Any]) -> str:
    """Of the command in a client's message. Raises `InvalidCommand`."""
    name = message.get("name")
    if not isinstance(name, str):
        raise InvalidCommand("name", SHAPE)
    return name


def command_of(message: Mapping[str, Any]) -> Command:
    """The command in a client's message. Raises `InvalidCommand`, whose `field` is a path into the message."""
    parse = _COMMANDS.get(name_of(message))
    if parse is None:
        raise InvalidCommand("name", f"unknown command; known are {', '.join(_COMMANDS)}")
    return parse(message.get("data"))


def _parse_join(data: Any) -> Join | JoinByToken:
    return parse_proof(_object(data))


def parse_proof(fields: Mapping[str, Any]) -> Join | JoinByToken:
    """By what somebody says who they are: a token, or login and password. Raises `InvalidCommand`."""
    if "token" in fields:
        if "login" in fields or "password" in fields:
            raise InvalidCommand("data.token", "comes alone: either a token, or login and password")
        return JoinByToken(credential(fields, "token", MAX_TOKEN_CHARS))
    return Join(credential(fields, "login"), credential(fields, "password"))


def credential(fields: Mapping[str, Any], name: str, max_chars: int = MAX_CREDENTIAL_CHARS) -> str:
    """A text of this name. Raises `InvalidCommand`."""
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # deployed clients send numeric logins as numbers
    if not isinstance(value, str) or not value:
        raise InvalidCommand(f"data.{name}", "missing, or not a text")
    if len(value) > max_chars:
        raise InvalidCommand(f"data.{name}", f"longer than {max_chars} characters")
    if not is_unicode(value):
        raise InvalidCommand(f"data.{name}", "not valid Unicode")
    return value


def _parse_content(data: Any) -> ListPage | ListNewest:
    fields = data if isinstance(data, dict) else {"page": data}
    if "before" not in fields and "limit" not in fields:
        return ListPage(_page_number(fields.get("page")))
    before, limit = fields.get("before"), fields.get("limit")
    if before is not None and not is_id(before):
        raise InvalidCommand("data.before", "neither null nor the _id of a notification")
    if limit is not None:
        limit = min(max(_integer(limit, "data.limit"), 1), MAX_PAGE_SIZE)
    return ListNewest(before and before.lower(), limit)


def _page_number(value: Any) -> int:
    return 0 if value is None else min(max(_integer(value, "data.page"), 0), MAX_PAGE)


def _integer(value: Any, field: str) -> int:
    """Integers, also as numeric strings of a sane length (`int` on long ones is slow)."""
    if isinstance(value, str) and len(value) <= 20:
        try:
            return int(value)
        except ValueError:
            pass
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidCommand(field, "not an integer")


def _parse_seen(data: Any) -> MarkSeen:
    if isinstance(data, dict) and "all" in data:
        if data["all"] is not True or "ids" in data:
            raise InvalidCommand("data.all", "must be true, and alone")
        return MarkSeen(None)
    return MarkSeen(_ids(data))


def _ids(data: Any) -> tuple[str, ...]:
    """`{"ids": […]}` or the bare list. Texts that are no ids are dropped: they are nobody's."""
    return distinct_ids(data.get("ids") if isinstance(data, dict) else data, "data.ids")


def distinct_ids(ids: Any, path: str) -> tuple[str, ...]:
    """Those in a list, once each. Raises `InvalidCommand` with a field at or below `path`."""
    if not isinstance(ids, list):
        raise InvalidCommand(path, "missing, or not a list")
    for index, id_ in enumerate(ids):
        if not isinstance(id_, str):
            raise InvalidCommand(f"{path}[{index}]", "not a text")
    return tuple(dict.fromkeys(id_.lower() for id_ in ids if is_id(id_)))


def _object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidCommand("data", "not an object")
    return data


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded, stored and looked for: JSON can smuggle in lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_COMMANDS: dict[str, Callable[[Any], Command]] = {
    "join": _parse_join,
    "unseen": lambda data: ListUnseen(),
    "content": _parse_content,
    "seen": _parse_seen,
    "delete": lambda data: Delete(_ids(data)),
    "leave": lambda data: Leave(),
}
