"""From the fields of a publishing dialect to a valid `Publication`: one parser each, the only place that checks.

Every refusal names the field as the caller wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.claims import MAX_USER_ID_BYTES
from server.errors import InvalidInput, InvalidNotification, TooLarge
from server.idempotency import field_key
from server.ids import new_id
from server.messages import Mail, Notification, Publication, Recipient, now
from server.payloads import LIFTED, lifted
from server.requests import BroadcastRequest, InternalRequest, ServiceRequest, read
from server.requests_plain import PlainNotification

DEFAULT_TYPE = "notification"
"""Of what comes from dialects that know no types, or in which it is not named."""

MAX_NESTING = 64
"""Levels of a payload or `data`. What is nested as deeply as Python can read it, Python could not write inside a
frame."""

TRUE_TEXTS = ("1", "true", "True", "yes", "Yes")

MAX_EMAIL_BYTES = 320
"""64 for the local part, @, 255 for the domain (RFC 5321 section 4.5.3.1)."""

_MAIL_FIELDS = frozenset(
    ("email_subject", "email_content", "email_mime", "email_type", "email_send", "email_force")
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_IN_ADDRESS = re.compile(r"[\x00-\x20\x7f-\xa0<>(),;:\"\\\u2028\u2029]")
_NOT_IN_LOCAL_PART = re.compile(r"[@\[\]]")
_TEXT_TYPE = re.compile(r"text/([a-z0-9][a-z0-9.+-]{0,63})\s*(?:;|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FieldLimits:
    """`content_bytes`: of `content` and `email_content`, `field_bytes`: of every other text but ids of users, both in
    UTF-8; `users`: in one request; `data_bytes`: of a payload or `data`, as compact JSON."""

    content_bytes: int = 64 * 1024
    field_bytes: int = 2 * 1024
    users: int = 10_000
    data_bytes: int = 64 * 1024


def parse_notify(fields: Mapping[str, Any], tenant: str, limits: FieldLimits) -> Publication:
    """The publication in the fields of `POST /notify` (CONTRACT C1).

    Values are texts as a form has them, or JSON values: `users` as a list, booleans as booleans. Texts are
    stripped. Unknown fields are ignored, as the original did. Raises `InvalidNotification` or `TooLarge`.
    """
    notification = _notification(fields, tenant, limits)
    mail = _mail(fields, notification, limits)
    return Publication(notification, _recipients(fields.get("users"), limits), mail)


def parse_item(
    fields: Any, tenant: str, limits: FieldLimits, door: str = "batch", received_at: float = 0.0
) -> Publication:
    """The publication in an item of `POST /api/v2/notifications`: the fields of `parse_notify` as JSON, `data` (any
    JSON value) and `idempotency_key`; at least one user. Raises `InvalidNotification` or `TooLarge`."""
    if not isinstance(fields, dict):
        raise InvalidNotification("", "not a JSON object")
    key = field_key(fields)
    data = fields.get("data")
    if data is not None:
        data = _json_value(data, "data", limits.data_bytes)
    notification = _notification(fields, tenant, limits, data)
    recipients = _recipients(fields.get("users"), limits)
    if not recipients:
        raise InvalidNotification("users", "missing")
    mail = _mail(fields, notification, limits)
    return Publication(notification, recipients, mail, door, received_at, key)


def parse_plain(
    plain: PlainNotification,
    tenant: str,
    limits: FieldLimits,
    door: str,
    received_at: float,
    key: str | None,
) -> Publication:
    """What `parse_notify` makes of the same fields, with all that belongs to a publication. Raises
    `InvalidNotification` or `TooLarge`."""
    small = limits.field_bytes
    notification = Notification(
        new_id(tenant),
        tenant,
        now(),
        _checked(plain.content.strip(), "content", limits.content_bytes),
        plain.type and _checked(plain.type.strip(), "type", small),
        plain.title and _checked(plain.title.strip(), "title", small),
        plain.url and _checked(plain.url.strip(), "url", small),
        plain.icon and _checked(plain.icon.strip(), "icon", small),
        plain.image and _checked(plain.image.strip(), "image", small),
    )
    return Publication(notification, _plain_recipients(plain, limits), None, door, received_at, key)


def _plain_recipients(plain: PlainNotification, limits: FieldLimits) -> tuple[Recipient, ...]:
    ids = [user.id for user in plain.users]
    is_simple = (
        len(ids) <= limits.users
        and all(ids)
        and all(map(str.isascii, ids))
        and max(map(len, ids), default=0) <= MAX_USER_ID_BYTES
        and (len(ids) == 1 or len(set(ids)) == len(ids))
    )
    return tuple(map(Recipient, ids)) if is_simple else _recipients([{"id": id_} for id_ in ids], limits)


def _notification(
    fields: Mapping[str, Any], tenant: str, limits: FieldLimits, data: Any = None
) -> Notification:
    if fields.get("content") is None:
        raise InvalidNotification("content", "missing")
    return Notification(
        nid=new_id(tenant),
        tenant=tenant,
        created_at=now(),
        content=_text(fields, "content", limits.content_bytes),
        type=_text(fields, "type", limits.field_bytes),
        title=_text(fields, "title", limits.field_bytes),
        url=_text(fields, "url", limits.field_bytes),
        icon=_text(fields, "icon", limits.field_bytes),
        image=_text(fields, "image", limits.field_bytes),
        data=data,
    )


def parse_hub(user_id: str, message: Any, tenant: str, limits: FieldLimits) -> Publication:
    """The publication in a message to a user's channel (CONTRACT C2): `{"type": text, "payload": any}`, of which
    either may be missing. Raises `InvalidNotification` or `TooLarge`."""
    if not isinstance(message, dict):
        raise InvalidNotification("", 'not an object {"type": …, "payload": …}')
    recipient = Recipient(_user_id(user_id, "user_id"))
    type_ = _text(message, "type", limits.field_bytes)
    return Publication(_of_payload(tenant, type_, message.get("payload"), limits), (recipient,))


def parse_service(fields: Any, tenant: str, limits: FieldLimits) -> Publication:
    """The publication in a request of CONTRACT C3, a `ServiceRequest`. Raises `InvalidNotification` or `TooLarge`."""
    request = read(fields, ServiceRequest, InvalidNotification)
    recipient = Recipient(_user_id(request.user_id, "user_id"))
    if request.payload is None:
        raise InvalidNotification("payload", "null")
    return Publication(_of_payload(tenant, DEFAULT_TYPE, request.payload, limits), (recipient,))


def parse_internal(fields: Any, tenant: str, limits: FieldLimits) -> Publication:
    """The publication in a request of CONTRACT C4, an `InternalRequest`. Raises `InvalidNotification` or `TooLarge`."""
    request = read(fields, InternalRequest, InvalidNotification)
    count, payload = len(request.userIds), request.payload
    if count > limits.users:
        reason = f"{count} users are more than the {limits.users} allowed in one request"
        raise TooLarge("userIds", reason, "users_per_request")
    user_ids = dict.fromkeys(
        _user_id(value, f"userIds[{index}]") for index, value in enumerate(request.userIds)
    )
    type_ = _type_in(payload, limits) or DEFAULT_TYPE
    return Publication(_of_payload(tenant, type_, payload, limits), tuple(map(Recipient, user_ids)))


def parse_broadcast(fields: Any, tenant: str, limits: FieldLimits) -> Notification:
    """The notification for everybody in a request of CONTRACT C5, a `BroadcastRequest`. Raises `InvalidNotification` or
    `TooLarge`."""
    request = read(fields, BroadcastRequest, InvalidNotification)
    return Notification(
        nid=new_id(tenant),
        tenant=tenant,
        created_at=now(),
        content=_checked(request.message.strip(), "message", limits.content_bytes, "content_bytes"),
        title=_checked(request.title.strip(), "title", limits.field_bytes),
        type=_type_in(request.data, limits),
        data=_json_value(request.data, "data", limits.data_bytes),
    )


def _of_payload(tenant: str, type_: str, payload: Any, limits: FieldLimits) -> Notification:
    data = _json_value(payload, "payload", limits.data_bytes)
    max_bytes = dict.fromkeys(LIFTED, limits.field_bytes) | {"content": limits.content_bytes}
    return Notification(
        nid=new_id(tenant), tenant=tenant, created_at=now(), type=type_, data=data, **lifted(data, max_bytes)
    )


def _type_in(data: Any, limits: FieldLimits) -> str:
    """The type that an object names, if that is a text that fits."""
    type_ = data.get("type") if isinstance(data, dict) else None
    if not isinstance(type_, str):
        return ""
    try:
        return _checked(type_.strip(), "type", limits.field_bytes)
    except InvalidInput:
        return ""


def _json_value(value: Any, name: str, max_bytes: int) -> Any:
    """`value`, which is JSON, if it can be stored and sent on as it is."""
    try:
        size = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError as exc:
        raise InvalidNotification(name, "not valid Unicode (a lone surrogate)") from exc
    except RecursionError as exc:
        raise InvalidNotification(name, "nested too deeply") from exc
    except ValueError as exc:
        raise InvalidNotification(name, "NaN and Infinity are not JSON") from exc
    if size > max_bytes:
        raise TooLarge(name, f"{size} bytes are more than the {max_bytes} allowed", "data_bytes")
    if _is_nested_deeper(value, MAX_NESTING):
        raise InvalidNotification(name, f"nested more than {MAX_NESTING} levels deep")
    return value


def _is_nested_deeper(value: Any, levels: int) -> bool:
    """Whether there are more than so many lists and objects inside each other."""
    inside = [value]
    for _ in range(levels + 1):
        boxes = [each for each in inside if isinstance(each, list | dict)]
        if not boxes:
            return False
        inside = [each for box in boxes for each in (box.values() if isinstance(box, dict) else box)]
    return True


def _user_id(value: Any, path: str) -> str:
    """A user's id: a text, or an integer, which is the same as its digits; no longer than one that can join."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        raise InvalidNotification(path, "missing")
    if not isinstance(value, str):
        raise InvalidNotification(path, "neither a text nor an integer")
    return _checked(value, path, MAX_USER_ID_BYTES, "")


def _text(fields: Mapping[str, Any], name: str, max_bytes: int) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidNotification(name, "not a text")
    return _checked(value.strip(), name, max_bytes)


def _checked(text: str, name: str, max_bytes: int, limit: str | None = None) -> str:
    """`limit`: the setting that says `max_bytes`, "" if there is none; None: that of a field of this name."""
    if text.isascii() and len(text) <= max_bytes:
        return text
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise InvalidNotification(name, "not valid Unicode (a lone surrogate)") from exc
    if size > max_bytes:
        if limit is None:
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
        recipient = _plain_recipient(user) or _recipient(user, f"users[{index}]")
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


def _plain_recipient(user: Any) -> Recipient | None:
    """What `_recipient` makes of most, in a fifth of the time: there may be thousands in a request. None: of others."""
    if type(user) is not dict or user.get("email") is not None:
        return None
    id_ = user.get("id")
    if type(id_) is str and 0 < len(id_) <= MAX_USER_ID_BYTES and id_.isascii():
        return Recipient(id_)
    return None


def _recipient(user: Any, path: str) -> Recipient:
    if not isinstance(user, dict):
        raise InvalidNotification(path, 'not an object {"id": …, "email": …}')
    return Recipient(_user_id(user.get("id"), f"{path}.id"), _email(user.get("email"), f"{path}.email"))


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
    if (
        not (local_part and at and domain)
        or _NOT_IN_LOCAL_PART.search(local_part)
        or _NOT_IN_ADDRESS.search(address)
    ):
        raise InvalidNotification(path, "not an e-mail address")
    return address


# -- mail ----------------------------------------------------------------------------------------------------


def _mail(fields: Mapping[str, Any], notification: Notification, limits: FieldLimits) -> Mail | None:
    """Mail fields are checked even where no mail is asked for: a mistake should not wait for the day it matters."""
    if _MAIL_FIELDS.isdisjoint(fields):
        return None
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
