"""What all doors for backends have in common: who is calling, what they may do and how often, and how a refusal is
answered (RFC 9457)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.iostream import SSLIOStream, StreamClosedError
from tornado.web import RequestHandler, stream_request_body

from server import idempotency, request_id
from server.bus import REFUSED, THROTTLED, tell
from server.callers import Caller
from server.certificates import Subject, subject_of
from server.errors import (
    BadCredentials,
    InvalidInput,
    NoCredentials,
    NotFound,
    RateLimited,
    Refused,
    ServerError,
    TooLarge,
)
from server.grants import Grant, Scope
from server.limits import Limits, OverRate, headers, refusal_headers
from server.methods import methods_of
from server.publishers import Presented, Publishers
from server.rates import Allowance

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2
"""What a caller is told to wait before it tries again, where nothing more exact is known."""


MAX_LENGTH_DIGITS = 18
"""Of a Content-Length that is looked at; more is too much in any case."""

UNWANTED_BYTES = 16 * 1024 * 1024
"""Of a body that are read after its request has been refused, so that the answer arrives; then the connection ends."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What every door needs to know who comes in. `identify`: see `callers.CallerPolicy`."""

    identify: Callable[[str, Mapping[str, str]], Caller]
    publishers: Publishers
    limits: Limits


@stream_request_body
class DoorHandler(RequestHandler):
    """Reads the body itself: one that is too large, or from somebody who may not come in, is not read at all.

    A door derives from it, sets `door` and `scope`, and calls `admit` when it has all that may hold a credential.
    """

    door = ""
    """The name of this door, for figures and logs."""
    scope = Scope.PUBLISH
    """What a caller has to be allowed."""
    max_body_bytes = 64 * 1024

    def initialize(self, gate: Gate) -> None:
        self._gate = gate
        self._body = bytearray()
        # what may still come of the body of a request that has been answered; None: it has not
        self._unwanted: int | None = None
        self._tenant: str | None = None
        # that the caller has gone away, while its refusal is held back
        self._gone: asyncio.Event | None = None
        self.received_at = time.monotonic()

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    async def prepare(self) -> None:
        self.set_header(request_id.HEADER, request_id.begin(self.request.headers.get(request_id.HEADER)))
        if self.request.method == "OPTIONS":
            return
        try:
            # Tornado answers 400 to what is over its own limit; we count ourselves, and answer 413.
            self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]  # HTTP/1 always has it
            self._check_size(_declared_bytes(self.request))
            await self.check_early()
        except ServerError as error:
            self._refuse_early(error)

    async def check_early(self) -> None:
        """Refuse, before the body is read, whom it could not help. Raises `ServerError`."""

    def data_received(self, chunk: bytes) -> None:
        if self._unwanted is not None:
            self._unwanted -= len(chunk)
            if self._unwanted < 0 and not self._finished:
                self.finish()
            return
        self._body += chunk
        try:
            self._check_size(len(self._body))
        except TooLarge as error:
            self._body.clear()
            self._refuse_early(error)

    def _check_size(self, size: int) -> None:
        if size > self.max_body_bytes:
            raise TooLarge("", f"the body is over the {self.max_body_bytes} bytes allowed", "body_bytes")

    # -- who is calling --------------------------------------------------------------------------------------
    @property
    def caller(self) -> Caller:
        return self._gate.identify(self.request.remote_ip or "", self.request.headers)

    def presented(self, apikey: str | None = None) -> Presented:
        """All credentials of this request, with what the door found in the field `apikey`."""
        return presented(self.request, apikey)

    async def admit(self, presented: Presented) -> Grant:
        """Who is calling, if they may, and have not been too often. Raises `ServerError`."""
        grant = await self.identify(presented)
        self._tenant = grant.tenant
        await self._count(grant)
        if not grant.allows(self.scope):
            raise Refused(f"this credential has not the scope {self.scope}")
        return grant

    async def identify(self, presented: Presented) -> Grant:
        """Who is calling. Raises `ServerError`; only who is refused is counted."""
        try:
            return await self._gate.publishers.identify(presented, self.caller)
        except Refused:
            # Guessing keys is hopeless, but not free for us.
            await self._count(None)
            raise

    async def _count(self, grant: Grant | None) -> None:
        self._tell_allowance(await self.keep_to(lambda: self._gate.limits.check_request(grant, self.caller)))

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
            async with asyncio.timeout(self._gate.limits.refusal_delay_s(self.caller)):
                await self._gone.wait()

    def on_connection_close(self) -> None:
        super().on_connection_close()  # ends the wait for a body of which nothing more will come
        if self._gone is not None:
            self._gone.set()

    def _tell_allowance(self, allowance: Allowance) -> None:
        for name, value in headers(allowance).items():
            self.set_header(name, value)

    # -- reading ---------------------------------------------------------------------------------------------
    def json_fields(self, error: type[InvalidInput]) -> dict[str, Any]:
        """The JSON object in the body. Raises `error`."""
        try:
            fields = json.loads(self._body)
        except (ValueError, RecursionError) as exc:
            raise error("", "the body is not JSON") from exc
        if not isinstance(fields, dict):
            raise error("", "the body is not a JSON object")
        return fields

    def idempotency_key(self, fields: Mapping[str, Any]) -> str | None:
        """By which this request is known when it comes again; `fields`: of its body (and query). None: it has none.
        Raises `InvalidNotification`."""
        return idempotency.key_of(self.request.headers.get_list(idempotency.HEADER), fields)

    # -- answering -------------------------------------------------------------------------------------------
    def answer(self, fields: Mapping[str, Any], status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self._finish(json.dumps(fields))

    def note_repeat(self, is_repeat: bool) -> None:
        """Say in the answer whether it is that of a request that came before."""
        if is_repeat:
            self.set_header(idempotency.REPLAYED_HEADER, "true")

    def refuse(self, error: ServerError) -> None:
        """Answer with what is wrong, as RFC 9457 has it."""
        problem = self.problem(error)
        self.set_status(self.status_of(error))
        self.set_header("Content-Type", "application/problem+json")
        if isinstance(error, NoCredentials):
            self.set_header("WWW-Authenticate", "Api-Key")  # RFC 9110 section 11.6.1
        if isinstance(error, RateLimited):
            for name, value in refusal_headers(error).items():
                self.set_header(name, value)
        elif error.retryable:
            self.set_header("Retry-After", str(RETRY_AFTER_S))
        self.note_refusal(error)
        self._finish(json.dumps(problem))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What Tornado refuses by itself, such as a method that there is not, and what fails here."""
        # What was set so far is gone by now.
        self.set_header(request_id.HEADER, request_id.current() or request_id.begin(None))
        self.set_header("Content-Type", "application/problem+json")
        if status_code == 405:
            self.set_header("Allow", methods_of(type(self)))  # RFC 9110 section 15.5.6
        title = "internal" if status_code >= 500 else self._reason.lower().replace(" ", "_")
        problem = {"type": "about:blank", "title": title, "status": status_code, "detail": self._reason}
        self._finish(json.dumps(problem))

    def problem(self, error: ServerError) -> dict[str, Any]:
        """The body that says what is wrong. A door whose contract has another one puts that beside it."""
        problem = {
            "type": "about:blank",
            "title": error.code,
            "status": self.status_of(error),
            "detail": str(error),
        }
        return problem | {"field": error.field} if isinstance(error, InvalidInput) else problem

    def status_of(self, error: ServerError) -> int:
        """The HTTP status that this door answers the error with."""
        return error.http_status

    def note_refusal(self, error: ServerError) -> None:
        """Log and count it."""
        # Which of the things that can be wrong with a credential it is, no client of every door learns.
        why = f"{error.code}: {error}" if isinstance(error, BadCredentials) else error.code
        logger.info("refused %s at %s: %s", self.request.method, self.door, why)
        tell(REFUSED, self._gate, door=self.door, code=error.code, tenant=self._tenant)
        if isinstance(error, TooLarge) and error.limit:
            tell(THROTTLED, self._gate, limit=error.limit)

    def _refuse_early(self, error: ServerError) -> None:
        """Refuse while the body may be on its way. If the connection were closed now, it would be reset, and whoever is
        still sending, as proxies are, might never see the answer (RFC 9112 section 9.6)."""
        has_body = "Content-Length" in self.request.headers or "Transfer-Encoding" in self.request.headers
        # Who asks first will not send it.
        if has_body and "Expect" not in self.request.headers:
            self._unwanted = UNWANTED_BYTES
        self.refuse(error)

    def _finish(self, text: str) -> None:
        try:
            if self._unwanted is None:
                self.finish(text)
            else:
                self._answer_ahead(text)
        except StreamClosedError:
            logger.debug("the caller did not wait for the answer")

    def _answer_ahead(self, text: str) -> None:
        """Answer completely; the request ends when its body has been read."""
        self.set_header("Content-Length", str(len(text.encode())))
        self.write(text)
        self.flush()
        # What Tornado calls then has nothing left to do.
        setattr(self, (self.request.method or "").lower(), lambda *_: None)


def _declared_bytes(request: HTTPServerRequest) -> int:
    """How long the body is to be; 0: the request does not say."""
    declared = request.headers.get("Content-Length", "0").lstrip("0")
    if not (declared.isascii() and declared.isdigit()):
        return 0
    # Python reads no number of thousands of digits.
    return int(declared) if len(declared) < MAX_LENGTH_DIGITS else sys.maxsize


class UnknownHandler(DoorHandler):
    """Where backends may look for a door that there is not."""

    door = "unknown"

    async def check_early(self) -> None:
        raise NotFound("there is nothing at this address; what there is says /api/schema/")


def presented(request: HTTPServerRequest, apikey: str | None = None) -> Presented:
    """All credentials of a request; `apikey`: what was found in the field of that name."""
    headers = request.headers
    return Presented(
        headers.get("Authorization"), headers.get("Internal-Api-Key"), apikey, _certificate(request)
    )


def _certificate(request: HTTPServerRequest) -> Subject | None:
    """The subject of the client's certificate, if the connection is TLS here (and not only at a proxy)."""
    stream = getattr(request.connection, "stream", None)
    if not isinstance(stream, SSLIOStream) or stream.closed():
        return None
    return subject_of(stream.socket.getpeercert())
