"""One request at a door for backends, whatever it came over: who is calling, what they may do and how often, and how a
refusal is answered (RFC 9457). Knows no sockets and no HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from server import idempotency
from server.bus import REFUSED, THROTTLED, tell
from server.callers import Caller
from server.certificates import Subject
from server.errors import (
    BadCredentials,
    InvalidInput,
    NoCredentials,
    RateLimited,
    Refused,
    ServerError,
    TooLarge,
    UnsupportedMediaType,
)
from server.grants import Grant, Scope
from server.limits import Limits, OverRate, headers, refusal_headers
from server.messages import Record
from server.publishers import NOTHING, Presented, Publishers
from server.rates import Allowance

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2
"""What a caller is told to wait before it tries again, where nothing more exact is known."""

HTML = "text/html; charset=UTF-8"
JSON = "application/json"
PROBLEM = "application/problem+json"

BASE_HEADERS = MappingProxyType({"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})
"""Of every answer of a door for backends."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What every door needs to know who comes in. `identify`: see `callers.CallerPolicy`."""

    identify: Callable[[str, Mapping[str, str]], Caller]
    publishers: Publishers
    limits: Limits


class Incoming(Record, frozen=True, kw_only=True):
    """A request without its body. `headers`: by their names, in any letter case. `remote_ip`: of the socket's peer.
    `query`: the values of each argument, in their order. `keys`: the headers `Idempotency-Key`. `certificate`: the
    subject of a verified client certificate. `received_at`: `time.monotonic`."""

    method: str
    headers: Mapping[str, str]
    remote_ip: str
    query: Mapping[str, Sequence[bytes]]
    keys: Sequence[str]
    certificate: Subject | None
    received_at: float


class Answer(Record, frozen=True):
    """What a request is answered, beside the headers that the visit has set."""

    status: int
    body: bytes = b""
    media_type: str = HTML
    headers: Mapping[str, str] = {}


class Visit:
    """A request while a door works on it. `door`: the name of the door, for figures and logs. `set_header`: of the
    answer, whatever that will be."""

    def __init__(
        self, gate: Gate, incoming: Incoming, door: str, set_header: Callable[[str, str], None]
    ) -> None:
        self.incoming = incoming
        self.door = door
        self.tenant: str | None = None
        self.gate = gate
        self._set_header = set_header
        self._caller: Caller | None = None
        # that the caller has gone away, while its refusal is held back
        self._gone: asyncio.Event | None = None

    # -- who is calling --------------------------------------------------------------------------------------
    @property
    def caller(self) -> Caller:
        if self._caller is None:
            self._caller = self.gate.identify(self.incoming.remote_ip, self.incoming.headers)
        return self._caller

    def presented(self, apikey: str | None = None) -> Presented:
        """All credentials of this request, with what the door found in the field `apikey`."""
        found = self.incoming.headers
        authorization, internal = found.get("Authorization"), found.get("Internal-Api-Key")
        if (
            authorization is None
            and internal is None
            and apikey is None
            and self.incoming.certificate is None
        ):
            return NOTHING
        return Presented(authorization, internal, apikey, self.incoming.certificate)

    async def admit(self, presented: Presented, scope: Scope = Scope.PUBLISH) -> Grant:
        """Who is calling, if they may, and have not been too often. Raises `ServerError`."""
        grant = await self.identify(presented)
        self.tenant = grant.tenant
        await self._count(grant)
        if not grant.allows(scope):
            raise Refused(f"this credential has not the scope {scope}")
        return grant

    async def identify(self, presented: Presented) -> Grant:
        """Who is calling. Raises `ServerError`; only who is refused is counted."""
        try:
            return await self.gate.publishers.identify(presented, self.caller)
        except Refused:
            # Guessing keys is hopeless, but not free for us.
            await self._count(None)
            raise

    async def _count(self, grant: Grant | None) -> None:
        try:
            allowance = self.gate.limits.check_request(grant, self.caller)
        except OverRate:
            await self._hold_back()
            raise
        if allowance.rate is not None:
            for name, value in headers(allowance).items():
                self._set_header(name, value)

    async def keep_to(self, check: Callable[[], Allowance]) -> Allowance:
        """What is left by this check of a limit. Raises `OverRate`, after a while."""
        try:
            return check()
        except OverRate:
            await self._hold_back()
            raise

    async def _hold_back(self) -> None:
        """Wait with a refusal, as long as the caller waits for it."""
        self._gone = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.gate.limits.refusal_delay_s(self.caller)):
                await self._gone.wait()

    def left(self) -> None:
        """The caller has gone away."""
        if self._gone is not None:
            self._gone.set()

    # -- what it says ----------------------------------------------------------------------------------------
    def idempotency_key(self, fields: Mapping[str, Any]) -> str | None:
        """By which this request is known when it comes again; `fields`: of its body (and query). None: it has none.
        Raises `InvalidNotification`."""
        return idempotency.key_of(self.incoming.keys, fields)

    def note_repeat(self, is_repeat: bool) -> None:
        """Say in the answer whether it is that of a request that came before."""
        if is_repeat:
            self._set_header(idempotency.REPLAYED_HEADER, "true")

    def note_refusal(self, error: ServerError) -> None:
        """Log and count it."""
        # Which of the things that can be wrong with a credential it is, no client of every door learns.
        why = f"{error.code}: {error}" if isinstance(error, BadCredentials) else error.code
        logger.info("refused %s at %s: %s", self.incoming.method, self.door, why)
        self.count_refusal(error)

    def count_refusal(self, error: ServerError) -> None:
        tell(REFUSED, self.gate, door=self.door, code=error.code, tenant=self.tenant)
        if isinstance(error, TooLarge) and error.limit:
            tell(THROTTLED, self.gate, limit=error.limit)


# -- reading and answering -----------------------------------------------------------------------------------


def brings_body(headers: Mapping[str, str]) -> bool:
    """Whether a body comes with these, be it an empty one (RFC 9112 section 6)."""
    return "Content-Length" in headers or "Transfer-Encoding" in headers


def check_coding(headers: Mapping[str, str]) -> None:
    """Raises `UnsupportedMediaType` if the body that comes with these is packed: what it would be when unpacked has no
    bound."""
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    is_empty = not brings_body(headers) or headers.get("Content-Length") == "0"
    if coding not in ("", "identity") and not is_empty:
        raise UnsupportedMediaType("no Content-Encoding is understood; send the body as it is")


def json_object(body: bytes | bytearray, error: type[InvalidInput]) -> dict[str, Any]:
    """The JSON object in a body. Raises `error`."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise error("", "the body is not JSON") from exc
    if not isinstance(fields, dict):
        raise error("", "the body is not a JSON object")
    return fields


def problem_of(error: ServerError, status: int) -> dict[str, Any]:
    """What is wrong, as RFC 9457 has it."""
    problem = {"type": "about:blank", "title": error.code, "status": status, "detail": str(error)}
    return problem | {"field": error.field} if isinstance(error, InvalidInput) else problem


def refusal(error: ServerError, status: int, problem: Mapping[str, Any]) -> Answer:
    """The answer that says `problem`, with the headers that belong to the error."""
    fields: dict[str, str] = {}
    if isinstance(error, NoCredentials):
        fields["WWW-Authenticate"] = "Api-Key"  # RFC 9110 section 11.6.1
    if isinstance(error, UnsupportedMediaType):
        fields["Accept-Encoding"] = "identity"  # RFC 9110 section 12.5.3
    if isinstance(error, RateLimited):
        fields |= refusal_headers(error)
    elif error.retryable:
        fields["Retry-After"] = str(RETRY_AFTER_S)
    return Answer(status, json.dumps(problem).encode(), PROBLEM, fields)


def json_answer(fields: Mapping[str, Any], status: int = 200) -> Answer:
    """An answer with JSON."""
    return Answer(status, json.dumps(fields).encode(), JSON)
