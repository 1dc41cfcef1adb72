"""What JSON requests hold and what they are answered, as types: they validate what comes in (msgspec), and the OpenAPI
document is made from them. No I/O.

Lengths are bounded elsewhere, by the configuration (`parsers.FieldLimits`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from server.errors import InvalidInput

T = TypeVar("T")

UserId = Annotated[str, Meta(min_length=1, examples=["alice"])] | int
"""A text, or an integer, which is the same as its digits."""

Instant = Annotated[str, Meta(description="UTC, RFC 3339", examples=["2030-01-31T12:00:00.000Z"])]

Payload = Annotated[
    Any, Meta(description="Any JSON value but null", examples=[{"title": "Order shipped", "order": 7}])
]


class UserRef(Struct):
    """A user of a notification."""

    id: UserId
    email: Annotated[str | None, Meta(description="Where to mail them; without it they are never mailed")] = (
        None
    )


class NotifyRequest(Struct):
    """A notification for any number of users (`POST /notify`)."""

    content: Annotated[str, Meta(examples=["It arrives tomorrow."])]
    type: str = ""
    title: str = ""
    url: str = ""
    icon: str = ""
    image: str = ""
    users: Annotated[list[UserRef], Meta(examples=[[{"id": "alice", "email": "alice@example.test"}]])] = []
    email_send: Annotated[bool, Meta(description="Mail the users who are away")] = False
    email_force: Annotated[bool, Meta(description="Mail all users, wherever they are")] = False
    email_subject: str = ""
    email_content: str = ""
    email_type: str = "text/html"
    email_mime: str = "1.0"
    apikey: Annotated[str, Meta(description="A key, if it does not come in a header")] = ""


class ServiceRequest(Struct):
    """A payload for one user."""

    user_id: UserId
    payload: Payload


class ServiceAnswer(Struct):
    """What was asked for, once it is stored."""

    user_id: UserId
    payload: Payload


class BroadcastRequest(Struct):
    """A notification for everybody of the tenant."""

    title: Annotated[str, Meta(examples=["Maintenance"])]
    message: Annotated[str, Meta(examples=["Tonight at ten"])]
    data: Annotated[Any, Meta(description="Any JSON value")] = None


class BroadcastAnswer(Struct):
    """The broadcast is on disk; documents of its users follow."""

    status: Literal["broadcasted"]
    id: str


class InternalRequest(Struct):
    """A payload for one or many users."""

    userIds: Annotated[list[UserId], Meta(min_length=1, examples=[["alice", 7]])]  # noqa: N815  # the contract's name
    payload: Annotated[dict[str, Any], Meta(examples=[{"type": "booking", "title": "Confirmed"}])]


class InternalAnswer(Struct):
    """Stored for all users."""

    status: Literal["queued"]
    id: str


class DeliveryState(Struct):
    """How far a notification got with one user: stored in the inbox (`sent`), acknowledged, seen or deleted
    (`delivered`), or its mail refused for good and never seen (`failed`, with the mail server's words)."""

    user_id: str
    status: Literal["sent", "delivered", "failed"]
    sent_at: Instant
    delivered_at: Instant | None
    reason: str | UnsetType = UNSET


class DeliveriesAnswer(Struct):
    """A page of users, in the order of their ids."""

    id: str
    deliveries: list[DeliveryState]
    next: Annotated[str | None, Meta(description="What `after` is on the next page; null: this is the last")]


class TokenRequest(Struct):
    """For whom a token is wanted."""

    user_id: UserId
    expires_in: Annotated[
        float | None, Meta(ge=1, description="Seconds; at most and by default `max_token_s`")
    ] = None


class TokenAnswer(Struct):
    """A token by which the user joins."""

    token: str
    expires_at: Instant


class LoginRequest(Struct):
    """Who somebody says they are."""

    username: Annotated[str, Meta(min_length=1, examples=["alice"])]
    password: Annotated[str, Meta(min_length=1, examples=["alice"])]


class LoginAnswer(Struct):
    """`identity` and `access` let the user listen, for an hour; `refresh` gets new ones, for a day."""

    refresh: str
    access: str
    identity: str


class RefreshRequest(Struct):
    """A refresh token."""

    refresh: Annotated[str, Meta(min_length=1)]


class RefreshAnswer(Struct):
    """New tokens."""

    access: str
    identity: str


class VerifyRequest(Struct):
    """A token of whatever kind."""

    token: Annotated[str, Meta(min_length=1)]


class Problem(Struct):
    """What is wrong (RFC 9457). `title` is a stable code, `field` the path of the field as the caller wrote it. Doors
    whose older clients expect other fields have those beside."""

    type: str
    title: str
    status: int
    detail: str
    field: str | UnsetType = UNSET


def read(fields: Any, kind: type[T], error: type[InvalidInput] = InvalidInput) -> T:
    """`fields`, a JSON value, as one of these types. Raises `error` with the path of the field that is wrong. Unknown
    fields are ignored."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as exc:
        field, reason = _where(str(exc))
        raise error(field, reason) from None


_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


def _where(message: str) -> tuple[str, str]:
    """Field and reason in what msgspec says, such as "Expected `str`, got `int` - at `$.users[2].email`"."""
    match = _AT.match(message)
    what, path = (match["what"], (match["path"] or "").lstrip(".")) if match else (message, "")
    missing = _MISSING.fullmatch(what)
    if missing:
        return f"{path}.{missing['name']}" if path else missing["name"], "missing"
    return path, (what[:1].lower() + what[1:]).replace("`", "")
