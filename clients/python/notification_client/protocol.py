"""All that is not I/O: what a call sends, what its answer means, and whether and when it is sent again."""

from __future__ import annotations

import json
import math
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, NotRequired, Required, TypedDict, TypeVar
from urllib.parse import quote, urlsplit

from notification_client.errors import (
    Invalid,
    NotFound,
    NotificationError,
    RateLimited,
    Refused,
    TooLarge,
    Unavailable,
    UnexpectedAnswer,
)

VERSION = "0.1.0"

T = TypeVar("T")

KEY_REFUSED = b"<html><body>API Key refused</body></html>"
"""What `POST /notify` answers, with 400, to a wrong key."""

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 5.0
"""Of the pause before an attempt, which doubles with each one; the server may ask for more."""

MAX_KEY_CHARS = 255
"""Of an idempotency key."""

NOTHING_DONE = ("busy", "auth_unavailable", "starting")
"""The codes of a 503 that come before anything is stored. After `store_unavailable` all of it may be stored yet."""


class Recipient(TypedDict):
    """A user by id, with the address for mail; without one they are never mailed."""

    id: Required[str | int]
    email: NotRequired[str | None]


class Fields(TypedDict, total=False):
    """What `notify` takes beside content and users; docs/api.md describes each."""

    title: str
    type: str
    url: str
    icon: str
    image: str
    email_send: bool
    email_force: bool
    email_subject: str
    email_content: str
    email_type: str


@dataclass(frozen=True, slots=True)
class Token:
    """By `token` the user can join until `expires_at` (aware UTC)."""

    token: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a notification got with one user.

    `status`: "sent" (stored), "delivered" (acknowledged or seen, at `delivered_at`) or "failed" (never seen, and its
    mail was refused for good, at `failed_at`: `reason`). Instants: aware UTC; None: not, or not known.
    """

    user_id: str
    status: str
    sent_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Retries:
    """When a call that failed is sent again, which never does more than once what it is to do.

    `attempts`: at most so many, the first one included (1: never again). `total_s`: none begins later than so many
    seconds after the call did.
    """

    attempts: int = 4
    total_s: float = 15.0


DEFAULT_RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `read` makes the result of the answer's JSON. `idempotency_key`: by which the server knows it when
    it comes again; None: twice does no more than once anyway."""

    method: str
    path: str
    body: bytes | None = field(repr=False)
    read: Callable[[Any], T]
    idempotency_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.body is None else {"Content-Type": "application/json"}
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key
        return headers


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers`: asked for by lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


# -- what is sent --------------------------------------------------------------------------------------------
def base_url(url: str) -> str:
    """The url, if it can be the address of a server. Raises ValueError, which does not repeat it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("url: not an http:// or https:// address")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("url: has a user, a query or a fragment; the key is an argument of its own")
    return url.rstrip("/")


def headers(key: str | None) -> dict[str, str]:
    """What goes with each request. Raises ValueError for what can be no key, and does not repeat it."""
    sent = {"User-Agent": f"notification-client/{VERSION}", "Accept": "application/json"}
    if key is not None:
        if not key or not all("!" <= character <= "~" for character in key):
            raise ValueError("key: empty, or has white space or other characters that no key has")
        sent["Authorization"] = f"Api-Key {key}"
    return sent


def seconds(timeout: float) -> float:
    """The timeout, if it is one: without any, a call could wait for ever. Raises ValueError."""
    if not 0 < timeout < math.inf:
        raise ValueError("timeout: not a positive number of seconds")
    return timeout


def notify(
    content: str, users: Iterable[str | int | Recipient], fields: Fields, key: str | None
) -> Call[None]:
    if unknown := fields.keys() - Fields.__annotations__.keys():
        # The server ignores what it does not know: a slip of the pen would be lost.
        raise TypeError(f"notify() knows no field {', '.join(sorted(unknown))}")
    recipients = [{"id": user} if isinstance(user, str | int) else user for user in _several(users, "users")]
    return _publish("/notify", {"content": content, "users": recipients, **fields}, _nothing, key)


def notify_user_by_id(user_id: str | int, message: Any, key: str | None) -> Call[None]:
    return _publish("/api/notifications/send/", {"user_id": user_id, "payload": message}, _nothing, key)


def send(user_ids: Iterable[str | int], payload: Mapping[str, Any], key: str | None) -> Call[str]:
    body = {"userIds": _several(user_ids, "user_ids"), "payload": dict(payload)}
    return _publish("/api/realtime/internal/notify", body, _id, key)


def broadcast(title: str, message: str, data: Any, key: str | None) -> Call[str]:
    body = {"title": title, "message": message} | ({} if data is None else {"data": data})
    return _publish("/api/notifications/send/", body, _id, key)


def token(user_id: str | int, expires_in: float | None) -> Call[Token]:
    body = {"user_id": user_id, "expires_in": expires_in}
    return Call("POST", "/api/v2/tokens", _json(body), _token)


def sign_out(user_id: str | int) -> Call[None]:
    path = f"/api/v2/users/{_segment(user_id, 'user_id')}/sign-out"
    return Call("POST", path, None, _nothing)


def deliveries(id: str, after: str | None) -> Call[tuple[list[Delivery], str | None]]:
    """A page; with it what to ask for the next one with, None after the last."""
    query = "" if after is None else f"?after={quote(after, safe='')}"
    path = f"/api/notifications/{_segment(id, 'id')}/deliveries{query}"
    return Call("GET", path, None, _page)


def _publish(path: str, body: Any, read: Callable[[Any], T], key: str | None) -> Call[T]:
    """With the caller's idempotency key, or one that no other call has. Raises ValueError."""
    if key is None:
        key = str(uuid.uuid4())
    elif not 1 <= len(key) <= MAX_KEY_CHARS or not all("!" <= character <= "~" for character in key):
        raise ValueError(f"idempotency_key: not 1 to {MAX_KEY_CHARS} characters of visible ASCII")
    return Call("POST", path, _json(body), read, key)


def _json(body: Any) -> bytes:
    return json.dumps(body, allow_nan=False).encode()


def _several(values: Iterable[T], name: str) -> list[T]:
    if isinstance(values, str | Mapping):
        # A text is an iterable, too: of its letters.
        raise TypeError(f"{name}: not a list")
    return list(values)


def _segment(value: str | int, name: str) -> str:
    """One segment of a path, whatever it is made of; dots too, or ".." would be another path."""
    if value == "":
        raise ValueError(f"{name}: empty")
    return quote(str(value), safe="").replace(".", "%2E")


# -- what is answered ----------------------------------------------------------------------------------------
def _nothing(_: Any) -> None:
    return None


def _id(answer: Any) -> str:
    return str(answer["id"])


def _token(answer: Any) -> Token:
    return Token(str(answer["token"]), datetime.fromisoformat(answer["expires_at"]))


def _page(answer: Any) -> tuple[list[Delivery], str | None]:
    return [_delivery(item) for item in answer["deliveries"]], answer["next"]


def _delivery(item: Any) -> Delivery:
    sent_at = datetime.fromisoformat(item["sent_at"])
    delivered_at, failed_at = (_instant(item.get(name)) for name in ("delivered_at", "failed_at"))
    return Delivery(
        str(item["user_id"]), str(item["status"]), sent_at, delivered_at, failed_at, item.get("reason")
    )


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def result(call: Call[T], answer: Answer) -> T:
    """What the answer says. Raises NotificationError."""
    if not 200 <= answer.status < 300:
        raise refusal(answer)
    try:
        return call.read(json.loads(answer.body or b"null"))
    except (ValueError, TypeError, LookupError, RecursionError) as exc:
        message = f"the answer {answer.status} is not that of a notification server"
        raise UnexpectedAnswer(message, status=answer.status, maybe_done=True) from exc


def refusal(answer: Answer) -> NotificationError:
    """The error that an answer other than 2xx stands for."""
    problem = _problem(answer.body)
    code = title if isinstance(title := problem.get("title"), str) else ""
    message = str(problem.get("detail") or f"the server answered {answer.status}, without a reason")
    match answer.status:
        case 400 if answer.body == KEY_REFUSED:
            return Refused("API Key refused", status=400, code="bad_credentials")
        case 400 | 413 | 422:
            return _invalid(answer.status, problem, code, message)
        case 401 | 403:
            return Refused(message, status=answer.status, code=code)
        case 404 if code:
            return NotFound(message, status=404, code=code)
        case 409 if code == "in_progress":
            return _unavailable(Unavailable, answer, code, message, maybe_done=True)
        case 429 | 502 | 503 | 504:
            is_limited = answer.status == 429
            maybe_done = not (is_limited or (answer.status == 503 and code in NOTHING_DONE))
            kind = RateLimited if is_limited else Unavailable
            return _unavailable(kind, answer, code, message, maybe_done=maybe_done)
    return UnexpectedAnswer(message, status=answer.status, code=code, maybe_done=answer.status >= 500)


def _unavailable(
    kind: type[Unavailable], answer: Answer, code: str, message: str, *, maybe_done: bool
) -> Unavailable:
    unavailable = kind(message, status=answer.status, code=code, maybe_done=maybe_done)
    unavailable.retry_after = _retry_after(answer.headers.get("retry-after", ""))
    return unavailable


def _problem(body: bytes) -> dict[str, Any]:
    """The JSON object in the body (RFC 9457), {} if there is none."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _invalid(status: int, problem: Mapping[str, Any], code: str, message: str) -> Invalid:
    field = problem.get("field")
    if field is None:
        # As Django REST framework has it: {"field": ["why", …], …}.
        reasons = ((name, why[0]) for name, why in problem.items() if isinstance(why, list) and why)
        field, reason = next(reasons, ("", message))
        message = f"{field}: {reason}" if field else message
    error = (TooLarge if status == 413 else Invalid)(message, status=status, code=code)
    error.field = str(field)
    return error


def _retry_after(value: str) -> float | None:
    """In how many seconds, from either form of Retry-After (RFC 9110 section 10.2.3); None: it does not say."""
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


# -- sending again -------------------------------------------------------------------------------------------
def exchange(
    call: Call[T], retries: Retries, clock: Callable[[], float] = time.monotonic
) -> Generator[float, Answer | NotificationError, T]:
    """Carry out a call by somebody who can: each time it yields in how many seconds the call is to be sent, it wants
    the answer, or why there is none. Returns the result; raises NotificationError."""
    last_begin = clock() + retries.total_s
    maybe_done = False
    delay_s, attempt = 0.0, 1
    while True:
        outcome = yield delay_s
        try:
            if isinstance(outcome, NotificationError):
                raise outcome
            return result(call, outcome)
        except NotificationError as error:
            error.maybe_done = maybe_done = error.maybe_done or maybe_done
            delay_s = _delay_s(error, attempt)
            is_last = attempt >= retries.attempts or clock() + delay_s > last_begin
            if is_last or not isinstance(error, Unavailable):
                raise
        attempt += 1


def _delay_s(error: NotificationError, attempt: int) -> float:
    """Never shorter than the server asked for, and never the same for all who were refused together."""
    bound_s = min(FIRST_DELAY_S * 2.0 ** min(attempt - 1, 10), LONGEST_DELAY_S)
    asked_s = getattr(error, "retry_after", None) or 0.0
    return asked_s + random.uniform(bound_s / 2, bound_s)  # noqa: S311  # spreads retries, keeps no secret
