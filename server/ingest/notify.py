"""`POST /notify`: the door of the original (CONTRACT C1). Form, query, multipart or JSON in; 200 and an empty body out.

Keys are refused with C1's 400 and HTML body; everything else that is wrong is answered as `application/problem+json`
(RFC 9457) with the field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tornado.httputil import HTTPInputError, parse_body_arguments

from server.errors import BadCredentials, InvalidNotification, NoCredentials, ServerError
from server.ingest.base import DoorHandler, Gate
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_notify

KEY_REFUSED = "<html><body>API Key refused</body></html>"

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "origin, content-type, accept, authorization",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS, HEAD",
    "Access-Control-Max-Age": "1209600",
}


@dataclass(slots=True)
class NotifyDoor:
    """What the handler needs beside the gate. `max_body_bytes`: of a request. May be changed while the server runs."""

    notifier: Notifier
    max_body_bytes: int
    limits: FieldLimits


class NotifyHandler(DoorHandler):
    door = "notify"

    def initialize(self, gate: Gate, door: NotifyDoor) -> None:  # type: ignore[override]  # what the route holds
        super().initialize(gate)
        self._door = door
        self.max_body_bytes = door.max_body_bytes

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name, value in CORS_HEADERS.items():
            self.set_header(name, value)

    async def check_early(self) -> None:
        # A key may stand in the body, if there is any; else it is not worth reading.
        if not self._gate.publishers.takes_fields:
            await self.identify(self.presented(self._query_key()))

    async def post(self) -> None:
        """Publish. The answer means: stored, and the mail that is owed with it."""
        try:
            fields = await self._admitted_fields()
            key = self.idempotency_key(fields)
            publication = parse_notify(fields, self._tenant or "", self._door.limits)
            stored = await self._door.notifier.notify(
                replace(publication, door=self.door, received_at=self.received_at, idempotency_key=key)
            )
            self.note_repeat(stored.is_repeat)
        except ServerError as error:
            self.refuse(error)

    def options(self) -> None:
        """The preflight of a page of another origin."""
        self.set_status(204)

    def refuse(self, error: ServerError) -> None:
        """A key that is wrong is refused in C1's words, and so is a missing one where config.ini has one."""
        has_key = bool(self._gate.publishers.rules.apikey)
        if isinstance(error, BadCredentials) or (has_key and isinstance(error, NoCredentials)):
            self.set_status(400)
            self.note_refusal(error)
            self._finish(KEY_REFUSED)
        else:
            super().refuse(error)

    def status_of(self, error: ServerError) -> int:
        return 403 if isinstance(error, NoCredentials) else super().status_of(error)

    # -- reading the fields ----------------------------------------------------------------------------------
    async def _admitted_fields(self) -> dict[str, Any]:
        """The fields of query and body; of several values the last one wins, the body's over the query's. Who has no
        key learns nothing but that, whatever else is wrong."""
        fields: dict[str, Any] = {name: values[-1] for name, values in self.request.query_arguments.items()}
        try:
            fields |= self._body_fields()
        except InvalidNotification:
            await self.admit(self.presented(_key(fields)))
            raise
        await self.admit(self.presented(_key(fields)))
        return {name: _decoded(value, name) for name, value in fields.items()}

    def _query_key(self) -> str | None:
        return _key({name: values[-1] for name, values in self.request.query_arguments.items()})

    def _body_fields(self) -> dict[str, Any]:
        """As bytes from a form, as JSON values from JSON."""
        media_type, semicolon, parameters = self.request.headers.get("Content-Type", "").partition(";")
        media_type = media_type.strip().lower()  # RFC 9110 section 8.3.1
        if media_type == "application/json":
            return self.json_fields(InvalidNotification)
        try:
            arguments: dict[str, list[bytes]] = {}
            content_type = media_type + semicolon + parameters
            parse_body_arguments(content_type, bytes(self._body), arguments, {}, self.request.headers)
        except (HTTPInputError, ValueError) as exc:
            raise InvalidNotification("", "the body is not what its Content-Type says") from exc
        return {name: values[-1] for name, values in arguments.items()}


def _key(fields: dict[str, Any]) -> str | None:
    """The field `apikey`; None: not there, or empty."""
    key = fields.get("apikey")
    if isinstance(key, bytes):
        key = key.decode(errors="replace")
    if key is None or (isinstance(key, str) and not key.strip()):
        return None
    # What is no text is no key, and yet something was sent.
    return key.strip() if isinstance(key, str) else "\0"


def _decoded(value: Any, name: str) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidNotification(name, "not UTF-8") from exc
