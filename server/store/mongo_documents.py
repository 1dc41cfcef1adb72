"""Records as BSON and back, in the field names of the original system (CONTRACT C1). No I/O.

The original wrote neither `data` nor `rev`; what else its documents lacked, `mongo_migration` has given them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, IndexModel

from server.errors import TooLarge
from server.messages import Document, EmailDuty, Mail, MailRecipient, Notification

Raw = dict[str, Any]
"""A document as BSON has it; its values are of many types."""

MAX_BSON_BYTES = 16 * 1024 * 1024 - 16 * 1024
"""MongoDB's limit for a document, less what an update wraps around it."""

SAME_S = 1.0
"""Clocks that differ by less go alike, as for when something is due: by how much they differ is known to milliseconds
only, and what is due at once is not to wait for these."""

WHOLE = {"mail": 0, "legacy": 0}
"""The projection to what is read of a document: all but its mail duty, and what `mongo_migration` has kept."""

ACCESS: Raw = {"_id": "access"}
"""The document of the meta collection with the `secrets`, the oldest first, and the numbers of the last changes:
`sequence`, and `signOuts` (missing before the first)."""

_TEXTS = ("type", "title", "content", "url", "icon", "image")


def _index(name: str, *fields: str, only: Raw | None = None) -> IndexModel:
    options = {} if only is None else {"partialFilterExpression": only}
    return IndexModel([(field, ASCENDING) for field in fields], name=name, **options)


MAIL_INDEXES = (
    _index("mail_due", "mail.due", "mail.leasedUntil", "mail.owed", only={"mail.due": {"$exists": True}}),
    _index("mail_leased", "mail.leasedUntil", only={"mail.leasedUntil": {"$exists": True}}),
    _index("mail_refused", "mail.refusals", only={"mail.refusals": {"$exists": True}}),
    _index("outbox", "tenant", "nid", only={"mail.subject": {"$exists": True}}),
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
    # It has those of a type in their order, and with seen and delete among its fields counting needs no document.
    _index(
        "types", "tenant", "_userId", "type", "seen", "delete", "createdAt", "_id", only={"delete": False}
    ),
    # It keeps apart what was sent in which ways.
    _index(
        "backlog", "tenant", "_userId", "marks", "createdAt", "_id", only={"seen": False, "delete": False}
    ),
    _index("changes", "tenant", "_userId", "rev", "_id"),
    _index("notification", "tenant", "nid", "_userId"),
    _index("tombstones", "tenant", "_userId", "rev", "createdAt", "deletedAt", "_id", only={"delete": True}),
    *MAIL_INDEXES,
)
INTENT_INDEXES = (
    _index("open", "openedAt", only={"openedAt": {"$exists": True}}),
    _index("refused", "tenant", "nid", only={"mail.refusals": {"$exists": True}}),
    *MAIL_INDEXES,
)
INDEXES = {
    "documents": INBOX_INDEXES,
    "intents": INTENT_INDEXES,
    "broadcasts": (
        # What was set aside is apart from what is open.
        _index("oldest", "failedAt", "createdAt", "_id", "tenant"),
        _index("tenant", "tenant", "failedAt", "createdAt", "_id"),
    ),
    "once": (IndexModel([("expiresAt", ASCENDING)], name="expired", expireAfterSeconds=0),),
    "tenants": (_index("keys", "keys.id"), _index("removed", "removedAt")),
    "sign_outs": (_index("at", "at"), _index("written", "writtenAt", "_id")),
}
"""By the attribute of `Connection`."""


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


def duty_fields(duty: EmailDuty | None, accepted_at: datetime, ahead_s: float) -> Raw | None:
    """The subdocument `mail` of a notification that was accepted then by the clock of this node; None: nobody is owed
    any. `ahead_s`: how far MongoDB's clock is ahead of this node's. When something is due goes by MongoDB's. `due`, the
    earliest of its recipients', is set as long as it may be claimed; `owed` is the number of `recipients`. A claim adds
    `lease`, `leasedUntil`, `claimedAt`, and how many recipients were `claimed` at most; other changes count up
    `version`. `attempts` is for earlier versions, which have no `acceptedAt`: from the first that is in vain, each
    recipient has its own, with `failingSince`, `failedAt`, `code` and `reason`."""
    if duty is None:
        return None
    mail = duty.mail
    texts = {"subject": mail.subject, "content": mail.content, "subtype": mail.subtype, "forced": mail.forced}
    recipients = [recipient_fields(recipient, ahead_s) for recipient in duty.recipients]
    accepted = {"acceptedAt": accepted_at + timedelta(seconds=ahead_s)}
    return {**texts, **accepted, "attempts": 0, **owed_fields(recipients)}


def owed_fields(recipients: Sequence[Raw]) -> Raw:
    """The fields of `mail` that say who is owed it, at least one."""
    return {
        "recipients": list(recipients),
        "owed": len(recipients),
        "due": min(recipient["due"] for recipient in recipients),
    }


def recipient_fields(recipient: MailRecipient, ahead_s: float) -> Raw:
    """One of the `recipients` of `mail`, as in `duty_fields`."""
    return {
        "_userId": recipient.user_id,
        "email": recipient.email,
        "due": due_by(recipient.due_at, ahead_s),
        "online": recipient.accepted_online,
    }


def due_by(instant: datetime, ahead_s: float) -> datetime:
    """The same by a clock that is so far ahead."""
    return instant if abs(ahead_s) < SAME_S else instant + timedelta(seconds=ahead_s)


def encode(fields: Raw) -> RawBSONDocument:
    """`fields` as they go over the wire, so that one that cannot go fails alone and not with its batch.
    Raises `TooLarge`."""
    encoded = bson.encode(fields)
    if len(encoded) > MAX_BSON_BYTES:
        raise TooLarge("", f"{len(encoded)} bytes are more than the {MAX_BSON_BYTES} that MongoDB takes")
    return RawBSONDocument(encoded)


# -- reading -------------------------------------------------------------------------------------------------


def read_notification(found: Raw) -> Notification:
    """The notification in a document or an intent."""
    get = found.get
    data = get("data")
    # By their places, which takes half as long as by their names: a page of an inbox has many.
    return Notification(
        found["nid"].binary.hex(),
        found["tenant"],
        found["createdAt"],
        get("content") or "",
        get("type") or "",
        get("title") or "",
        get("url") or "",
        get("icon") or "",
        get("image") or "",
        None if data is None else json.loads(data),
    )


def read_mail(mail: Raw) -> Mail:
    """The text of a mail, from the subdocument `mail`."""
    return Mail(mail["subject"], mail["content"], mail["subtype"], mail["forced"])


def read_recipient(found: Raw) -> MailRecipient:
    """One of the `recipients` of `mail`."""
    return MailRecipient(
        found["_userId"],
        found["email"],
        found["due"],
        found["online"],
        found.get("attempts", 0),
        found.get("failingSince"),
    )


def read_document(found: Raw) -> Document:
    """The document in `found`, which has the fields of `WHOLE`."""
    get, created_at = found.get, found["createdAt"]
    return Document(
        found["_id"].binary.hex(),
        found["_userId"],
        read_notification(found),
        created_at,
        get("updatedAt") or created_at,
        int(get("rev", 0)),  # BSON's is of a type that not everything can write
        found["seen"],
        found["delete"],
        get("deletedAt"),
    )


def beyond(position: tuple[datetime, ObjectId], order: int) -> Raw:
    """The filter for the documents after (`order` 1) or before (-1) a position in an inbox."""
    created_at, id_ = position
    than = "$gt" if order > 0 else "$lt"
    # The first condition alone gives the bounds of the index scan; an $or over both would need a sort.
    return {
        "createdAt": {f"{than}e": created_at},
        "$or": [{"createdAt": {than: created_at}}, {"_id": {than: id_}}],
    }
