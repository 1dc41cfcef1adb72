"""Idempotency keys: how a request says that it may come again (draft-ietf-httpapi-idempotency-key-header-07), and what
makes two requests the same. No I/O.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidNotification
from server.messages import Publication

HEADER = "Idempotency-Key"
FIELD = "idempotency_key"

REPLAYED_HEADER = "Idempotent-Replayed"
"""Says `true` in the answer to a request that was carried out before."""

MAX_KEY_CHARS = 255

KEY_PATTERN = f"^[!-~]{{1,{MAX_KEY_CHARS}}}$"
"""Visible ASCII."""

# A String of RFC 9651 section 3.3.3, which the draft wants, or the bare key, which most clients send.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_ESCAPED = re.compile(r'\\(["\\])')

_KEY = re.compile(r"[!-~]+")


def key_of(headers: Sequence[str], fields: Any) -> str | None:
    """The key of a request: `headers` are its headers of that name, `fields` what was in its body (and query). None:
    it has none. Raises `InvalidNotification`."""
    if len(headers) > 1:
        raise InvalidNotification(HEADER, "given more than once")
    in_header = _checked(_unquoted(headers[0]), HEADER) if headers else None
    in_fields = field_key(fields)
    if None not in (in_header, in_fields) and in_header != in_fields:
        raise InvalidNotification(FIELD, f"not the same as in the header {HEADER}")
    return in_header or in_fields


def field_key(fields: Any) -> str | None:
    """The key in a field of that name; None: there is none, or it is null. Raises `InvalidNotification`."""
    value = fields.get(FIELD) if isinstance(fields, (dict, Mapping)) else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidNotification(FIELD, "not a text")
    return _checked(value, FIELD)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    match = _QUOTED.fullmatch(value)
    if match is None:
        raise InvalidNotification(HEADER, "begins with a quotation mark, but is no quoted text")
    return _ESCAPED.sub(r"\1", match[1])


def _checked(key: str, name: str) -> str:
    if not key:
        raise InvalidNotification(name, "empty")
    if len(key) > MAX_KEY_CHARS:
        raise InvalidNotification(name, f"longer than {MAX_KEY_CHARS} characters")
    if not _KEY.fullmatch(key):
        raise InvalidNotification(name, "has other characters than visible ASCII")
    return key


def fingerprint_of(publication: Publication) -> bytes:
    """What is the same of two requests that ask for the same, whichever door and form they come in by, and (but for
    chance) of no others."""
    notification, mail = publication.notification, publication.mail
    asked = [
        notification.tenant,
        notification.type,
        notification.title,
        notification.content,
        notification.url,
        notification.icon,
        notification.image,
        notification.data,
        # Nobody stands for everybody. The order of recipients has no effect.
        sorted((each.user_id, each.email or "") for each in publication.recipients),
        None if mail is None else [mail.subject, mail.content, mail.subtype, mail.forced],
    ]
    # The fields of a JSON object have no order (RFC 8259 section 4).
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).digest()
