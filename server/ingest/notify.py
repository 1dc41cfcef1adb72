"""`POST /notify`: the door of the original (CONTRACT C1). Form, query, multipart or JSON in; 200 and an empty body out.

Keys are refused with C1's 400 and HTML body; everything else that is wrong is answered as `application/problem+json`
(RFC 9457) with the field.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import unquote_plus

from tornado.httputil import HTTPInputError, parse_body_arguments

from server import idempotency
from server.errors import BadCredentials, InvalidNotification, NoCredentials, Refused, ServerError
from server.ingest.door import Door
from server.ingest.visits import JSON, Answer, Visit, json_object
from server.messages import altered
from server.parsers import parse_notify, parse_plain
from server.requests_plain import read_plain

KEY_REFUSED = b"<html><body>API Key refused</body></html>"

FORM = "application/x-www-form-urlencoded"

LONG_BODY_BYTES = 8 * 1024
"""What takes no more than this is read at once, whoever it is from."""

MAX_KEYS = 16
"""That are tried of a long body."""

MAX_KEY_BYTES = 2048

_NAMES = {JSON: re.compile(rb'"apikey"'), FORM: re.compile(rb"apikey=")}
_VALUES = {JSON: re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*")'), FORM: re.compile(rb"([^&]*)")}

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "origin, content-type, accept, authorization",
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS, HEAD",
    "Access-Control-Max-Age": "1209600",
}


class NotifyDoor(Door):
    name = "notify"
    paths = ("/notify",)
    methods = ("POST", "OPTIONS")
    headers = CORS_HEADERS

    checks_all = True

    async def check_early(self, visit: Visit) -> None:
        """See `Door.check_early`."""
        # A key may stand in the body, if there is any; else it is not worth reading.
        if not visit.gate.publishers.takes_fields:
            await visit.identify(visit.presented(_key(_query_fields(visit))))

    async def carry_out(self, visit: Visit, body: bytes) -> Answer:
        """Publish. The answer means: stored, and the mail that is owed with it."""
        if len(body) > LONG_BODY_BYTES and _content_type(visit)[0] in _NAMES:
            await self._check_key(visit, body)
        received_at, limits = visit.incoming.received_at, self._publishing.limits
        plain = None if visit.incoming.query or not _is_json(visit) else read_plain(body)
        if plain is not None:
            await visit.admit(visit.presented())
            key = visit.idempotency_key({idempotency.FIELD: plain.idempotency_key})
            publication = parse_plain(plain, visit.tenant or "", limits, self.name, received_at, key)
        else:
            fields = await self._admitted_fields(visit, body)
            key = visit.idempotency_key(fields)
            publication = altered(
                parse_notify(fields, visit.tenant or "", limits),
                door=self.name,
                received_at=received_at,
                idempotency_key=key,
            )
        stored = await self._publishing.notifier.notify(publication)
        if stored.is_repeat:
            visit.note_repeat(True)
        return _DONE

    def refuse(self, visit: Visit, error: ServerError) -> Answer:
        """A key that is wrong is refused in C1's words, and so is a missing one where config.ini has one."""
        has_key = bool(visit.gate.publishers.rules.apikey)
        if isinstance(error, BadCredentials) or (has_key and isinstance(error, NoCredentials)):
            visit.note_refusal(error)
            return Answer(400, KEY_REFUSED)
        return super().refuse(visit, error)

    async def _check_key(self, visit: Visit, body: bytes) -> None:
        """Refuse who shows no right key anywhere, before a body is read of which that takes long. Which key counts is
        decided when it has been read."""
        *others, last = dict.fromkeys((_key(_query_fields(visit)), *_keys_in(visit, body)))
        for key in others:
            with contextlib.suppress(Refused):
                await visit.gate.publishers.identify(visit.presented(key), visit.caller)
                return
        await visit.identify(visit.presented(last))

    async def _admitted_fields(self, visit: Visit, body: bytes) -> dict[str, Any]:
        """The fields of query and body; of several values the last one wins, the body's over the query's. Who has no
        key learns nothing but that, whatever else is wrong."""
        # Whom no field could help is told the same, whether the body was waited for or is there.
        await self.check_early(visit)
        fields = _query_fields(visit)
        try:
            fields |= _body_fields(visit, body)
        except InvalidNotification:
            await visit.admit(visit.presented(_key(fields)))
            raise
        await visit.admit(visit.presented(_key(fields)))
        return {name: _decoded(value, name) for name, value in fields.items()}


_DONE = Answer(200)


def _keys_in(visit: Visit, body: bytes) -> Iterator[str | None]:
    """What may be the field `apikey` of a body that is not read yet, by its looks."""
    media_type, _ = _content_type(visit)
    for name in islice(_NAMES[media_type].finditer(body), MAX_KEYS):
        value = _VALUES[media_type].match(body[name.end() : name.end() + MAX_KEY_BYTES])
        with contextlib.suppress(ValueError):
            if value is not None:
                text = value[1].decode()
                yield _key({"apikey": json.loads(text) if media_type == JSON else unquote_plus(text)})


def _query_fields(visit: Visit) -> dict[str, Any]:
    return {name: values[-1] for name, values in visit.incoming.query.items()}


def _content_type(visit: Visit) -> tuple[str, str]:
    """The type of the body, in lower case (RFC 9110 section 8.3.1), and its parameters."""
    media_type, _, parameters = visit.incoming.headers.get("Content-Type", "").partition(";")
    return media_type.strip().lower(), parameters


def _is_json(visit: Visit) -> bool:
    return visit.incoming.headers.get("Content-Type") == "application/json"


def _body_fields(visit: Visit, body: bytes) -> dict[str, Any]:
    """As bytes from a form, as JSON values from JSON."""
    media_type, parameters = _content_type(visit)
    if media_type == JSON:
        return json_object(body, InvalidNotification)
    try:
        arguments: dict[str, list[bytes]] = {}
        parse_body_arguments(f"{media_type};{parameters}", body, arguments, {})
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
