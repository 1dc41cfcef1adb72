"""What JSON requests hold and what they are answered, as types: they validate what comes in (msgspec), and the OpenAPI
document is made from them. No I/O.

Lengths are bounded elsewhere, by the configuration (`parsers.FieldLimits`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from server.commands import MAX_CREDENTIAL_CHARS, MAX_TOKEN_CHARS
from server.errors import InvalidInput
from server.idempotency import KEY_PATTERN

T = TypeVar("T")

UserId = Annotated[str, Meta(min_length=1, examples=["alice"])] | int
"""A text, or an integer, which is the same as its digits."""

Instant = Annotated[str, Meta(description="UTC, RFC 3339", examples=["2030-01-31T12:00:00.000Z"])]

Payload = Annotated[
    Any,
    Meta(
        description="Any JSON value but null",
        examples=[{"title": "Order shipped", "order": 7}],
        extra_json_schema={"not": {"type": "null"}},  # msgspec knows no such type: `parsers` refuses it
    ),
]

NOT_BLANK = r"\S"

Credential = Annotated[str, Meta(min_length=1, max_length=MAX_CREDENTIAL_CHARS, pattern=NOT_BLANK)]

Token = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_CHARS, pattern=NOT_BLANK)]


IdempotencyKey = Annotated[
    Annotated[str, Meta(pattern=KEY_PATTERN)] | None,
    Meta(description="As the header `Idempotency-Key`", examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"]),
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
    idempotency_key: IdempotencyKey = None


class ServiceRequest(Struct):
    """A payload for one user."""

    user_id: UserId
    payload: Payload
    idempotency_key: IdempotencyKey = None


class ServiceAnswer(Struct):
    """What was asked for, once it is stored."""

    user_id: UserId
    payload: Payload


class BroadcastRequest(Struct):
    """A notification for everybody of the tenant."""

    title: Annotated[str, Meta(examples=["Maintenance"])]
    message: Annotated[str, Meta(examples=["Tonight at ten"])]
    data: Annotated[Any, Meta(description="Any JSON value")] = None
    idempotency_key: IdempotencyKey = None


class BroadcastAnswer(Struct):
    """The broadcast is on disk; documents of its users follow."""

    status: Literal["broadcasted"]
    id: str


class InternalRequest(Struct):
    """A payload for one or many users."""

    userIds: Annotated[list[UserId], Meta(min_length=1, examples=[["alice", 7]])]  # noqa: N815  # the contract's name
    payload: Annotated[dict[str, Any], Meta(examples=[{"type": "booking", "title": "Confirmed"}])]
    idempotency_key: IdempotencyKey = None


class InternalAnswer(Struct):
    """Stored for all users."""

    status: Literal["queued"]
    id: str


class DeliveryState(Struct):
    """How far a notification got with one user: stored in the inbox (`sent`), acknowledged, seen or deleted
    (`delivered`), or its mail refused for good and never seen (`failed`, with the mail server's words). Times are null
    for what has not happened; `failed_at` also for what failed before its time was kept."""

    user_id: str
    status: Literal["sent", "delivered", "failed"]
    sent_at: Instant
    delivered_at: Instant | None
    failed_at: Instant | None
    reason: str | UnsetType = UNSET


class OutboxState(Struct):
    """The mail to one user: owed now (`due`), in hand (`leased`), owed later (`waiting`), or refused for good (`dead`).
    The last answer to it, if there was one: `failed_at`, `code` (0: the mail server gave none), `reason`."""

    id: str
    user_id: str
    email: str
    state: Literal["due", "leased", "waiting", "dead"]
    due_at: Annotated[Instant | None, Meta(description="From when on it may be sent; null: never")]
    leased_until: Instant | None
    attempts: Annotated[int, Meta(ge=0, description="How often the mail server was asked in vain")]
    failed_at: Instant | None
    code: int | None
    reason: str | None


class OutboxAnswer(Struct):
    """A page of mails."""

    mails: list[OutboxState]
    next: Annotated[str | None, Meta(description="What `after` is on the next page; null: this is the last")]


class OutboxNotificationAnswer(OutboxAnswer):
    """A page of the mails of one notification. `subject`, `forced`: null if the text is not kept any more."""

    id: str
    created_at: Instant
    subject: str | None
    forced: bool | None


class RetriedAnswer(Struct):
    """How many mails are due now."""

    retried: Annotated[int, Meta(ge=0)]


class DroppedAnswer(Struct):
    """How many mails are owed no longer."""

    dropped: Annotated[int, Meta(ge=0)]


class DeliveriesAnswer(Struct):
    """A page of users, in the order of their ids."""

    id: str
    deliveries: list[DeliveryState]
    next: Annotated[str | None, Meta(description="What `after` is on the next page; null: this is the last")]


class TokenRequest(Struct):
    """For whom a token is wanted."""

    user_id: UserId
    expires_in: Annotated[
        Annotated[float, Meta(ge=1)] | None, Meta(description="Seconds; at most and by default `max_token_s`")
    ] = None


class TokenAnswer(Struct):
    """A token by which the user joins."""

    token: str
    expires_at: Instant


class LoginRequest(Struct):
    """Who somebody says they are."""

    username: Credential
    password: Credential


class LoginAnswer(Struct):
    """`identity` and `access` let the user listen, for an hour; `refresh` gets new ones, for a day."""

    refresh: str
    access: str
    identity: str


class RefreshRequest(Struct):
    """A refresh token."""

    refresh: Token


class RefreshAnswer(Struct):
    """New tokens."""

    access: str
    identity: str


class VerifyRequest(Struct):
    """A token of whatever kind."""

    token: Token


class Problem(Struct):
    """What is wrong (RFC 9457). `title` is a stable code, `field` the path of the field as the caller wrote it, "" for
    the request as a whole. Doors whose older clients expect other fields have those beside."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    field: str | UnsetType = UNSET


class FeedRefusal(Struct):
    """Why a client may not listen."""

    error: str


class TenantRefusal(Struct):
    """The same in the words of `/ws/notify/`."""

    detail: str


class TicketAnswer(Struct):
    """What gets a page in where it can set no header: once, and within so many seconds."""

    ticket: str
    expires_in: int


# -- what operators ask --------------------------------------------------------------------------------------


class Alive(Struct):
    """The process is alive."""

    status: Literal["ok"]


class Dependency(Struct):
    """How something is that this node depends on."""

    status: Literal["up", "down"]
    latency_ms: float
    reason: str | UnsetType = UNSET


class Readiness(Struct):
    """Whether clients should be sent to this node."""

    status: Literal["ready", "degraded", "unavailable", "starting", "stopping"]
    dependencies: dict[str, Dependency]


class Pinged(Struct):
    """How something answers; `ping_ms` is null where it does not."""

    status: Literal["connected", "disconnected", "unknown", "not_configured"]
    ping_ms: float | None
    reason: str | UnsetType = UNSET


class Clients(Struct):
    """Who is connected to this node; null for callers from outside, unless `public_metrics` lets them know."""

    active_connections: int | None
    total_unique_users: int | None


class Health(Struct):
    """How this node is, in the shape of the Redis hub, with `store` and `mail` beside it."""

    status: Literal["healthy", "degraded"]
    timestamp: Instant
    redis: Pinged
    websocket: Clients
    uptime_seconds: int
    store: Pinged
    mail: Pinged


class Listeners(Struct):
    """Who is connected to this node."""

    active: int
    total_unique_users: int


class Passed(Struct):
    """What went through this node since it started."""

    received_from_redis: int
    sent_to_clients: int
    failed: int


class Figures(Struct):
    """The figures of this node, in the shape of the Redis hub."""

    service: str
    timestamp: Instant
    uptime_seconds: int
    connections: Listeners
    messages: Passed


# -- reading -------------------------------------------------------------------------------------------------


def read(fields: Any, kind: type[T], error: type[InvalidInput] = InvalidInput) -> T:
    """`fields`, a JSON value, as one of these types. Raises `error` with the path of the field that is wrong. Unknown
    fields are ignored."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as exc:
        raise error(*_field_and_reason(str(exc))) from None
    except UnicodeEncodeError:
        # Also in the name of a field that would be ignored.
        raise error("", "the name of a field is not valid Unicode (a lone surrogate)") from None


_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_EXPECTED = re.compile(
    r"Expected `(?P<types>[^`]*)`(?:, got .*| (?P<bound>of length )?(?P<sign>[<>]=) (?P<value>\S+))"
)

_WORDS = {
    "str": "a text",
    "int": "an integer",
    "float": "a number",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _field_and_reason(message: str) -> tuple[str, str]:
    """Both in what msgspec says, such as "Expected `str`, got `int` - at `$.users[2].email`"."""
    match = _MESSAGE.fullmatch(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    missing = _MISSING.fullmatch(what)
    if missing:
        return f"{path}.{missing['name']}" if path else missing["name"], "missing"
    return path, _reason(what)


def _reason(what: str) -> str:
    match = _EXPECTED.fullmatch(what)
    if match is None:
        return what.replace("`", "")
    if match["sign"] is None:
        words = [_WORDS.get(name, name) for name in reversed(match["types"].split(" | "))]
        return f"not {words[0]}" if len(words) == 1 else f"neither {' nor '.join(words)}"
    if not match["bound"]:
        return f"{'less' if match['sign'] == '>=' else 'more'} than {float(match['value']):g}"
    return "empty" if match["sign"] == ">=" else f"longer than {match['value']} characters"
