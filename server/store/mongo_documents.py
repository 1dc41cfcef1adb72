"""Records as BSON and back, in the field names of the original system (CONTRACT C1). No I/O.

The original wrote neither `tenant` nor `nid`, `data` and `rev`, and its times are local ones without a zone. Its
documents stay as they are: they are read as the default tenant's, each a notification of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, IndexModel

from server.errors import TooLarge
from server.messages import Document, EmailDuty, Mail, MailRecipient, Notification

Raw = dict[str, Any]
"""A document as BSON has it; its values are of many types."""

LEGACY_TENANT = "default"
"""Whose the documents of the original are: it knew no tenants."""

MAX_BSON_BYTES = 16 * 1024 * 1024 - 16 * 1024
"""MongoDB's limit for a document, less what an update wraps around it."""

_TEXTS = ("type", "title", "content", "url", "icon", "image")


def _index(name: str, *fields: str, only: Raw | None = None) -> IndexModel:
    options = {} if only is None else {"partialFilterExpression": only}
    return IndexModel([(field, ASCENDING) for field in fields], name=name, **options)


MAIL_INDEXES = (
    _index("mail_due", "mail.due", "mail.leasedUntil", "mail.owed", only={"mail.due": {"$exists": True}}),
    _index("mail_leased", "mail.leasedUntil", only={"mail.leasedUntil": {"$exists": True}}),
    _index("mail_refused", "mail.refusals", only={"mail.refusals": {"$exists": True}}),
)
INBOX_INDEXES = (
    _index("inbox", "tenant", "_userId", "createdAt", "_id", only={"delete": False}),
    # With seen and delete among its fields a count needs no document.
    _index(
        "unseen",
        "tenant",
        "_userId",
        "seen",
        "delete",
        "createdAt",
        "_id",
        only={"seen": False, "delete": False},
    ),
    _index("changes", "tenant", "_userId", "rev", "_id"),
    _index("notification", "tenant", "nid", "_userId"),
    *MAIL_INDEXES,
)
INTENT_INDEXES = (_index("open", "openedAt", only={"openedAt": {"$exists": True}}), *MAIL_INDEXES)


# -- writing -------------------------------------------------------------------------------------------------


def notification_fields(notification: Notification) -> Raw:
    """What the documents of a notification have in common.

    `data` is kept as JSON text: BSON has no integers above 64 bits and no NUL in keys, and would read an object with
    `$ref` and `$id` back as something else.
    """
    data = None if notification.data is None else json.dumps(notification.data, separators=(",", ":"))
    texts = {name: getattr(notification, name) for name in _TEXTS}
    identity = {"tenant": notification.tenant, "nid": ObjectId(notification.nid)}
    return {**identity, **texts, "data": data, "createdAt": notification.created_at}


def document_fields(document: Document, common: Raw) -> Raw:
    """A new document; `common`: the `notification_fields` of its notification."""
    return {
        "_id": ObjectId(document.id),
        **common,
        "_userId": document.user_id,
        "updatedAt": document.updated_at,
        "deletedAt": None,
        "delete": False,
        "seen": False,
        "rev": document.rev,
    }


def duty_fields(duty: EmailDuty) -> Raw:
    """The subdocument `mail`. `due`, the earliest of its recipients', is set as long as it may be claimed; `owed` is
    the number of `recipients`. A claim adds `lease`, `leasedUntil` and `claimedAt`."""
    mail = duty.mail
    texts = {"subject": mail.subject, "content": mail.content, "subtype": mail.subtype, "forced": mail.forced}
    recipients = [recipient_fields(recipient) for recipient in duty.recipients]
    return {**texts, "attempts": 0, **owed_fields(recipients)}


def owed_fields(recipients: Sequence[Raw]) -> Raw:
    """The fields of `mail` that say who is owed it, at least one."""
    return {
        "recipients": list(recipients),
        "owed": len(recipients),
        "due": min(recipient["due"] for recipient in recipients),
    }


def recipient_fields(recipient: MailRecipient) -> Raw:
    """One of the `recipients` of `mail`."""
    return {
        "_userId": recipient.user_id,
        "email": recipient.email,
        "due": recipient.due_at,
        "online": recipient.accepted_online,
    }


def encode(fields: Raw) -> RawBSONDocument:
    """`fields` as they go over the wire, so that one that cannot go fails alone and not with its batch.
    Raises `TooLarge`."""
    encoded = bson.encode(fields)
    if len(encoded) > MAX_BSON_BYTES:
        raise TooLarge("", f"{len(encoded)} bytes are more than the {MAX_BSON_BYTES} that MongoDB takes")
    return RawBSONDocument(encoded)


# -- reading -------------------------------------------------------------------------------------------------


def read_notification(found: Raw, created_at: datetime) -> Notification:
    """The notification in a document or an intent."""
    data = found.get("data")
    return Notification(
        nid=str(found.get("nid", found["_id"])),
        tenant=found.get("tenant") or LEGACY_TENANT,
        created_at=created_at,
        data=None if data is None else json.loads(data),
        **{name: found.get(name) or "" for name in _TEXTS},
    )


def read_mail(mail: Raw) -> Mail:
    """The text of a mail, from the subdocument `mail`."""
    return Mail(mail["subject"], mail["content"], mail["subtype"], mail["forced"])


def read_recipient(found: Raw) -> MailRecipient:
    """One of the `recipients` of `mail`."""
    return MailRecipient(found["_userId"], found["email"], found["due"], found["online"])


def of_tenant(tenant: str) -> Raw:
    """The filter for a tenant's documents; None matches the original's, which have no such field."""
    return {"tenant": {"$in": [tenant, None]} if tenant == LEGACY_TENANT else tenant}


class DocumentReader:
    """Reads documents, the original's too. `legacy_timezone`: that of the machine which the original ran on; None: its
    clock was set to UTC."""

    def __init__(self, legacy_timezone: ZoneInfo | None) -> None:
        self._zone = legacy_timezone

    def read(self, found: Raw) -> Document:
        """The document in `found`, which has all fields but `mail`."""
        created_at = self.position(found)[0]
        # What has a rev was last changed by us.
        instant = self._utc if "rev" not in found else _as_it_is
        deleted_at = found.get("deletedAt")
        return Document(
            id=str(found["_id"]),
            user_id=found["_userId"],
            notification=read_notification(found, created_at),
            created_at=created_at,
            updated_at=instant(found.get("updatedAt") or found["createdAt"]),
            rev=found.get("rev", 0),
            seen=found["seen"],
            deleted=found["delete"],
            deleted_at=None if deleted_at is None else instant(deleted_at),
        )

    def position(self, found: Raw) -> tuple[datetime, ObjectId]:
        """The place of a document in its user's inbox. `found` has `tenant`, `createdAt` and `_id`."""
        created_at = found["createdAt"]
        return (created_at if found.get("tenant") else self._utc(created_at)), found["_id"]

    def parts(self, tenant: str) -> list[Raw]:
        """Filters that together find a tenant's documents, each in an order of time that `createdAt` has by itself.

        Local times and ours cannot be sorted together by MongoDB: readers merge the parts by `position`.
        """
        if tenant == LEGACY_TENANT and self._zone is not None:
            return [{"tenant": tenant}, {"tenant": None}]
        return [of_tenant(tenant)]

    def beyond(self, part: Raw, position: tuple[datetime, ObjectId], order: int) -> Raw:
        """The filter for the documents of a part after (`order` 1) or before (-1) a position."""
        created_at, id_ = position
        if part["tenant"] is None and self._zone is not None:
            created_at = created_at.astimezone(self._zone).replace(tzinfo=UTC)
        than = "$gt" if order > 0 else "$lt"
        # The first condition alone gives the bounds of the index scan; an $or over both would need a sort.
        return {
            "createdAt": {f"{than}e": created_at},
            "$or": [{"createdAt": {than: created_at}}, {"_id": {than: id_}}],
        }

    def _utc(self, local: datetime) -> datetime:
        """The instant that the original meant: it wrote local time, and MongoDB took it for UTC."""
        return local if self._zone is None else local.replace(tzinfo=self._zone).astimezone(UTC)


def _as_it_is(instant: datetime) -> datetime:
    return instant
