"""From the fields of a publishing dialect to a valid `Publication`: one parser each, the only place that checks.

Every refusal names the field as the caller wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidNotification, TooLarge
from server.ids import new_id
from server.messages import Mail, Notification, Publication, Recipient, now

TRUE_TEXTS = ("1", "true", "True", "yes", "Yes")

MAX_EMAIL_BYTES = 320
"""64 for the local part, @, 255 for the domain (RFC 5321 section 4.5.3.1)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_IN_ADDRESS = re.compile(r"[\x00-\x20\x7f-\xa0<>(),;:\"\\\u2028\u2029]")
_TEXT_TYPE = re.compile(r"text/([a-z0-9][a-z0-9.+-]{0,63})\s*(?:;|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FieldLimits:
    """`content_bytes`: of `content` and `email_content`, `field_bytes`: of every other text, both in UTF-8;
    `users`: in one request."""

    content_bytes: int = 64 * 1024
    field_bytes: int = 2 * 1024
    users: int = 10_000


def parse_notify(fields: Mapping[str, Any], tenant: str, limits: FieldLimits) -> Publication:
    """The publication in the fields of `POST /notify` (CONTRACT C1).

    Values are texts as a form has them, or JSON values: `users` as a list, booleans as booleans. Texts are
    stripped. Unknown fields are ignored, as the original did. Raises `InvalidNotification` or `TooLarge`.
    """
    if fields.get("content") is None:
        raise InvalidNotification("content", "missing")
    notification = Notification(
        nid=new_id(tenant),
        tenant=tenant,
        created_at=now(),
        content=_text(fields, "content", limits.content_bytes),
        **{
            name: _text(fields, name, limits.field_bytes)
            for name in ("type", "title", "url", "icon", "image")
        },
    )
    mail = _mail(fields, notification, limits)
    return Publication(notification, _recipients(fields.get("users"), limits), mail)


def _text(fields: Mapping[str, Any], name: str, max_bytes: int) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidNotification(name, "not a text")
    return _checked(value.strip(), name, max_bytes)


def _checked(text: str, name: str, max_bytes: int) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise InvalidNotification(name, "not valid Unicode (a lone surrogate)") from exc
    if size > max_bytes:
        limit = "content_bytes" if name in ("content", "email_content") else "field_bytes"
        raise TooLarge(name, f"{size} bytes are more than the {max_bytes} allowed", limit)
    return text


def _boolean(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str | int):
        return str(value).strip() in TRUE_TEXTS
    raise InvalidNotification(name, "neither a boolean nor a text")


# -- recipients ----------------------------------------------------------------------------------------------


def _recipients(value: Any, limits: FieldLimits) -> tuple[Recipient, ...]:
    """The distinct users, in order of appearance; of one named twice, the first email given counts."""
    recipients: dict[str, Recipient] = {}
    for index, user in enumerate(_user_list(value, limits.users)):
        recipient = _recipient(user, f"users[{index}]", limits.field_bytes)
        known = recipients.get(recipient.user_id)
        if known is None or known.email is None:
            recipients[recipient.user_id] = recipient
    return tuple(recipients.values())


def _user_list(value: Any, max_users: int) -> Sequence[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value.strip() or "[]")
        except (ValueError, RecursionError) as exc:
            raise InvalidNotification("users", "not JSON") from exc
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidNotification("users", 'not a list of {"id": …, "email": …}')
    if len(value) > max_users:
        reason = f"{len(value)} users are more than the {max_users} allowed in one request"
        raise TooLarge("users", reason, "users_per_request")
    return value


def _recipient(user: Any, path: str, max_bytes: int) -> Recipient:
    if not isinstance(user, dict):
        raise InvalidNotification(path, 'not an object {"id": …, "email": …}')
    id_ = user.get("id")
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    if id_ is None or id_ == "":
        raise InvalidNotification(f"{path}.id", "missing")
    if not isinstance(id_, str):
        raise InvalidNotification(f"{path}.id", "neither a text nor an integer")
    return Recipient(_checked(id_, f"{path}.id", max_bytes), _email(user.get("email"), f"{path}.email"))


def _email(value: Any, path: str) -> str | None:
    """Whether anybody reads mail at an address, its mail server knows; here it has to be fit for an envelope."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidNotification(path, "not a text")
    address = _checked(value.strip(), path, MAX_EMAIL_BYTES)
    if not address:
        return None
    local_part, at, domain = address.rpartition("@")
    if not (local_part and at and domain) or "@" in local_part or _NOT_IN_ADDRESS.search(address):
        raise InvalidNotification(path, "not an e-mail address")
    return address


# -- mail ----------------------------------------------------------------------------------------------------


def _mail(fields: Mapping[str, Any], notification: Notification, limits: FieldLimits) -> Mail | None:
    """Mail fields are checked even where no mail is asked for: a mistake should not wait for the day it matters."""
    subject = _header(fields, "email_subject", limits.field_bytes)
    content = _text(fields, "email_content", limits.content_bytes)
    _header(fields, "email_mime", limits.field_bytes)  # there is but one MIME version: the mail says 1.0
    subtype = _text_subtype(_header(fields, "email_type", limits.field_bytes) or "text/html")
    forced = _boolean(fields, "email_force")
    if not (_boolean(fields, "email_send") or forced):
        return None
    # A title may hold line breaks; the header made of it may not.
    return Mail(
        subject=subject or _CONTROL.sub(" ", notification.title).strip(),
        content=content or notification.content,
        subtype=subtype,
        forced=forced,
    )


def _header(fields: Mapping[str, Any], name: str, max_bytes: int) -> str:
    """A text for a mail header (RFC 5322 section 2.2): a line break in it would begin another header."""
    raw = fields.get(name)
    text = _text(fields, name, max_bytes)
    # Looked for before stripping: what begins or ends with a line break was an attack, too.
    if isinstance(raw, str) and _CONTROL.search(raw):
        raise InvalidNotification(name, "control characters are not allowed in a mail header")
    return text


def _text_subtype(content_type: str) -> str:
    """The subtype of `text/…`. Parameters are ignored: the mail is always UTF-8."""
    match = _TEXT_TYPE.match(content_type)
    if match is None:
        raise InvalidNotification("email_type", "not a text type such as text/html or text/plain")
    return match[1].lower()
