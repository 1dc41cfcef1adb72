"""What the server carries: notifications, recipients, documents, the duty to mail. Pure records, made valid
once.

A record that exists is valid: doors make records through the parsers of this module (see `parse_notify`), and
nothing past them checks again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any


def now() -> datetime:
    """The present instant as every store keeps it: aware UTC, whole milliseconds."""
    return to_milliseconds(datetime.now(UTC))


def to_milliseconds(instant: datetime) -> datetime:
    """`instant` (aware) in UTC, truncated to whole milliseconds."""
    instant = instant.astimezone(UTC)
    return instant - timedelta(microseconds=instant.microsecond % 1000)


@dataclass(frozen=True, slots=True)
class Notification:
    """What a backend published, once for all of its recipients.

    `nid` is its id, shared by its documents. All texts may be empty. `data` is any JSON value, None if there
    is none. `created_at` is the instant of acceptance: aware UTC, whole milliseconds.
    """

    nid: str
    tenant: str
    created_at: datetime
    content: str
    type: str = ""
    title: str = ""
    url: str = ""
    icon: str = ""
    image: str = ""
    data: Any = None


@dataclass(frozen=True, slots=True)
class Recipient:
    """One user of a notification. `email` is None where none was given: stored and pushed, never mailed."""

    user_id: str
    email: str | None = None


@dataclass(frozen=True, slots=True)
class MailRecipient:
    """Somebody a mail is owed to, not before `due_at` (aware UTC).

    `accepted_online` is True where the user had an open connection when the notification was accepted: such a
    mail is due later, and falls away if one of the connections gave a sign of life after `created_at` of the
    notification.
    """

    user_id: str
    email: str
    due_at: datetime
    accepted_online: bool = False


@dataclass(frozen=True, slots=True)
class Mail:
    """The text of the mail for a notification. `subtype` is that of `text/…`; the charset is always UTF-8.

    `forced` means: to everybody, online or not, seen or not.
    """

    subject: str
    content: str
    subtype: str = "html"
    forced: bool = False


@dataclass(frozen=True, slots=True)
class EmailDuty:
    """The duty to mail a notification; stored together with it, before the publisher is answered. Never
    empty."""

    mail: Mail
    recipients: tuple[MailRecipient, ...]


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publishing door read: a notification, its distinct recipients (possibly none), and the mail to
    those who are away (None: nobody is to be mailed). For figures: `door`, the name of the
    door, and `received_at`, when the request came in (`time.monotonic`; 0: not known)."""

    notification: Notification
    recipients: tuple[Recipient, ...]
    mail: Mail | None = None
    door: str = "notify"
    received_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Document:
    """A notification in one user's inbox.

    All documents of a notification share the `notification` record. `rev` orders the changes of this document
    (64 bits, see `revs`; 0 only for a document of the original system that was never changed since).
    `deleted` documents are tombstones: no reading verb but sync returns them. Instants: aware UTC, whole
    milliseconds.
    """

    id: str
    user_id: str
    notification: Notification
    created_at: datetime
    updated_at: datetime
    rev: int
    seen: bool = False
    deleted: bool = False
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """A document came into a user's inbox."""

    document: Document

    @property
    def rev(self) -> int:
        return self.document.rev


@dataclass(frozen=True, slots=True)
class Seen:
    """Documents of one user were marked as seen; `rev` is their new rev."""

    ids: tuple[str, ...]
    rev: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """Documents of one user were turned into tombstones; `rev` is their new rev."""

    ids: tuple[str, ...]
    rev: int


@dataclass(frozen=True, slots=True)
class Unseen:
    """How many unseen documents a user has now."""

    count: int


@dataclass(frozen=True, slots=True)
class Broadcasted:
    """A notification for everybody of a tenant was accepted. Told to those who have no user; the users' documents
    follow, each as `Added`."""

    notification: Notification


Event = Added | Seen | Deleted | Unseen | Broadcasted
"""What connections are told."""
