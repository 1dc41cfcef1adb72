"""What all doors for backends have in common: who is calling, what they may do and how often, and how a refusal is
answered (RFC 9457)."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.iostream import SSLIOStream, StreamClosedError
from tornado.web import RequestHandler, stream_request_body

from server import idempotency, request_id
from server.callers import Caller
from server.certificates import Subject, subject_of
from server.errors import InvalidInput, NotFound, ServerError, TooLarge
from server.grants import Grant, Scope
from server.ingest.visits import (
    BASE_HEADERS,
    JSON,
    PROBLEM,
    Answer,
    Gate,
    Incoming,
    Visit,
    brings_body,
    check_coding,
    json_object,
    problem_of,
    refusal,
)
from server.methods import methods_of
from server.publishers import Presented
from server.rates import Allowance

__all__ = ["DoorHandler", "Gate", "UnknownHandler", "presented"]

logger = logging.getLogger(__name__)

MAX_LENGTH_DIGITS = 18
"""Of a Content-Length that is looked at; more is too much in any case."""

UNWANTED_BYTES = 16 * 1024 * 1024
"""Of a body that are read after its request has been refused, so that the answer arrives; then the connection ends."""

NOTHING_HERE = "there is nothing at this address; what there is says /api/schema/"


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
        self.visit = Visit(gate, _incoming(self.request), self.door, self.set_header)

    def set_default_headers(self) -> None:
        for name, value in BASE_HEADERS.items():
            self.set_header(name, value)

    async def prepare(self) -> None:
        self.set_header(request_id.HEADER, request_id.begin(self.request.headers.get(request_id.HEADER)))
        if self.request.method == "OPTIONS":
            return
        try:
            # Tornado answers 400 to what is over its own limit; we count ourselves, and answer 413.
            self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]  # HTTP/1 always has it
            self._check_size(_declared_bytes(self.request))
            check_coding(self.request.headers)
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
        return self.visit.caller

    def presented(self, apikey: str | None = None) -> Presented:
        """All credentials of this request, with what the door found in the field `apikey`."""
        return self.visit.presented(apikey)

    async def admit(self, presented: Presented) -> Grant:
        """Who is calling, if they may, and have not been too often. Raises `ServerError`."""
        return await self.visit.admit(presented, self.scope)

    async def keep_to(self, check: Callable[[], Allowance]) -> Allowance:
        """What is left by this check of a limit. Raises `OverRate`, after a while."""
        return await self.visit.keep_to(check)

    def on_connection_close(self) -> None:
        super().on_connection_close()  # ends the wait for a body of which nothing more will come
        self.visit.left()

    # -- reading ---------------------------------------------------------------------------------------------
    def json_fields(self, error: type[InvalidInput]) -> dict[str, Any]:
        """The JSON object in the body. Raises `error`."""
        return json_object(self._body, error)

    # -- answering -------------------------------------------------------------------------------------------
    def answer(self, fields: Mapping[str, Any], status: int = 200) -> None:
        """Answer with JSON."""
        self.give(Answer(status, json.dumps(fields).encode(), JSON))

    def refuse(self, error: ServerError) -> None:
        """Answer with what is wrong, as RFC 9457 has it."""
        self.visit.note_refusal(error)
        self.give(refusal(error, self.status_of(error), self.problem(error)))

    def give(self, answer: Answer) -> None:
        """Answer with this."""
        self.set_status(answer.status)
        self.set_header("Content-Type", answer.media_type)
        for name, value in answer.headers.items():
            self.set_header(name, value)
        self._finish(answer.body)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What Tornado refuses by itself, such as a method that there is not, and what fails here."""
        # What was set so far is gone by now.
        self.set_header(request_id.HEADER, request_id.current() or request_id.begin(None))
        self.set_header("Content-Type", PROBLEM)
        if status_code == 405:
            self.set_header("Allow", methods_of(type(self)))  # RFC 9110 section 15.5.6
        title = "internal" if status_code >= 500 else self._reason.lower().replace(" ", "_")
        problem = {"type": "about:blank", "title": title, "status": status_code, "detail": self._reason}
        self._finish(json.dumps(problem).encode())

    def problem(self, error: ServerError) -> dict[str, Any]:
        """The body that says what is wrong. A door whose contract has another one puts that beside it."""
        return problem_of(error, self.status_of(error))

    def status_of(self, error: ServerError) -> int:
        """The HTTP status that this door answers the error with."""
        return error.http_status

    def _refuse_early(self, error: ServerError) -> None:
        """Refuse while the body may be on its way. If the connection were closed now, it would be reset, and whoever is
        still sending, as proxies are, might never see the answer (RFC 9112 section 9.6)."""
        # Who asks first will not send it.
        if brings_body(self.request.headers) and "Expect" not in self.request.headers:
            self._unwanted = UNWANTED_BYTES
        self.refuse(error)

    def _finish(self, body: bytes) -> None:
        try:
            if self._unwanted is None:
                self.finish(body)
            else:
                self._answer_ahead(body)
        except StreamClosedError:
            logger.debug("the caller did not wait for the answer")

    def _answer_ahead(self, body: bytes) -> None:
        """Answer completely; the request ends when its body has been read."""
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        self.flush()
        # What Tornado calls then has nothing left to do.
        setattr(self, (self.request.method or "").lower(), lambda *_: None)


def _incoming(request: HTTPServerRequest) -> Incoming:
    return Incoming(
        method=request.method or "",
        headers=request.headers,
        remote_ip=request.remote_ip or "",
        query=request.query_arguments,
        keys=request.headers.get_list(idempotency.HEADER),
        certificate=_certificate(request),
        received_at=time.monotonic(),
    )


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
        raise NotFound(NOTHING_HERE)

    def options(self) -> None:
        """As any other method; of this one nothing is checked early."""
        self.refuse(NotFound(NOTHING_HERE))


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
