"""`POST /notify`: the door of the original (CONTRACT C1). Form, query, multipart or JSON in; 200 and an empty body out.

Keys are refused with C1's 400 and HTML body; everything else that is wrong is answered as `application/problem+json`
(RFC 9457) with the field.
"""

from __future__ import annotations

import hmac
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tornado.httputil import HTTPInputError, parse_body_arguments
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler, stream_request_body

from server.auth import DEFAULT_TENANT
from server.callers import CallerPolicy
from server.errors import BadCredentials, InvalidInput, InvalidNotification, Refused, ServerError, TooLarge
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_notify

logger = logging.getLogger(__name__)

KEY_REFUSED = "<html><body>API Key refused</body></html>"

RETRY_AFTER_S = 2
"""What a publisher is told to wait before it tries again."""

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "origin, content-type, accept, authorization",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS, HEAD",
    "Access-Control-Max-Age": "1209600",
}


@dataclass(frozen=True, slots=True)
class NotifyDoor:
    """What the handler needs. `apikey` "": none is configured, and only local callers may publish, if
    `publish_without_key`. `max_body_bytes`: of a request."""

    notifier: Notifier
    callers: CallerPolicy
    apikey: str
    publish_without_key: bool
    max_body_bytes: int
    limits: FieldLimits


@stream_request_body
class NotifyHandler(RequestHandler):
    """Reads the body itself: one that is too large, or from a caller who may not publish, is not read at all."""

    def initialize(self, door: NotifyDoor) -> None:
        self._door = door
        self._body = bytearray()

    def set_default_headers(self) -> None:
        for name, value in CORS_HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        if self.request.method != "POST":
            return
        try:
            if not self._door.apikey:
                self._check_is_local()
            # Tornado answers 400 to what is over its own limit; we count ourselves, and answer 413.
            self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]  # HTTP/1 always has it
            declared = self.request.headers.get("Content-Length", "0")
            self._check_size(int(declared) if declared.isascii() and declared.isdigit() else 0)
        except ServerError as error:
            self._refuse(error)

    def data_received(self, chunk: bytes) -> None:
        if self._finished:
            return
        self._body += chunk
        try:
            self._check_size(len(self._body))
        except TooLarge as error:
            self._refuse(error)

    async def post(self) -> None:
        """Publish. The answer means: stored, and the mail that is owed with it."""
        try:
            publication = parse_notify(self._authorized_fields(), DEFAULT_TENANT, self._door.limits)
            await self._door.notifier.notify(publication)
        except BadCredentials:
            self.set_status(400)
            self.finish(KEY_REFUSED)
        except ServerError as error:
            self._refuse(error)

    def options(self) -> None:
        """The preflight of a page of another origin."""
        self.set_status(204)

    # -- who may publish -------------------------------------------------------------------------------------
    def _check_is_local(self) -> None:
        if not self._door.publish_without_key:
            raise Refused(
                "publishing without a key is off: set apikey (or publish_without_key) in [APPLICATION]"
            )
        caller = self._door.callers.identify(self.request.remote_ip or "", self.request.headers)
        if not caller.is_local:
            raise Refused(
                "without a key only callers on this machine may publish: set apikey in [APPLICATION] and send it; "
                + caller.why_not_local
            )

    def _check_key(self, fields: Mapping[str, Any]) -> None:
        expected = self._door.apikey
        if not expected:
            return
        key = fields.get("apikey", b"")
        if isinstance(key, str):
            key = key.encode(errors="replace")
        if not isinstance(key, bytes) or not hmac.compare_digest(key.strip(), expected.encode()):
            raise BadCredentials("API key refused")

    # -- reading the fields ----------------------------------------------------------------------------------
    def _check_size(self, size: int) -> None:
        if size > self._door.max_body_bytes:
            raise TooLarge("", f"the body is over the {self._door.max_body_bytes} bytes allowed")

    def _authorized_fields(self) -> dict[str, Any]:
        """The fields of query and body; of several values the last one wins, the body's over the query's. Who has no
        key learns nothing but that, whatever else is wrong."""
        fields: dict[str, Any] = {name: values[-1] for name, values in self.request.query_arguments.items()}
        try:
            fields |= self._body_fields()
        except InvalidNotification:
            self._check_key(fields)
            raise
        self._check_key(fields)
        return {name: _decoded(value, name) for name, value in fields.items()}

    def _body_fields(self) -> dict[str, Any]:
        """As bytes from a form, as JSON values from JSON."""
        media_type, semicolon, parameters = self.request.headers.get("Content-Type", "").partition(";")
        media_type = media_type.strip().lower()  # RFC 9110 section 8.3.1
        if media_type == "application/json":
            return self._json_fields()
        try:
            arguments: dict[str, list[bytes]] = {}
            content_type = media_type + semicolon + parameters
            parse_body_arguments(content_type, bytes(self._body), arguments, {}, self.request.headers)
        except (HTTPInputError, ValueError) as exc:
            raise InvalidNotification("", "the body is not what its Content-Type says") from exc
        return {name: values[-1] for name, values in arguments.items()}

    def _json_fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self._body)
        except (ValueError, RecursionError) as exc:
            raise InvalidNotification("", "the body is not JSON") from exc
        if not isinstance(fields, dict):
            raise InvalidNotification("", "the body is not a JSON object")
        return fields

    # -- answering -------------------------------------------------------------------------------------------
    def _refuse(self, error: ServerError) -> None:
        """Answer with what is wrong, as RFC 9457 has it."""
        logger.info("refused POST /notify: %s", error.code)
        problem = {
            "type": "about:blank",
            "title": error.code,
            "status": error.http_status,
            "detail": str(error),
        }
        if isinstance(error, InvalidInput):
            problem["field"] = error.field
        self.set_status(error.http_status)
        self.set_header("Content-Type", "application/problem+json")
        if error.retryable:
            self.set_header("Retry-After", str(RETRY_AFTER_S))
        try:
            self.finish(json.dumps(problem))
        except StreamClosedError:
            logger.debug("the caller did not wait for the answer")


def _decoded(value: Any, name: str) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidNotification(name, "not UTF-8") from exc
