"""What the server carries: notifications, recipients, documents, the duty to mail. Pure records, made valid
once.

A record that exists is valid: doors make records through the parsers of this module (see `parse_notify`), and
nothing past them checks again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

R = TypeVar("R", bound=Struct)


def now() -> datetime:
    """The present instant as every store keeps it: aware UTC, whole milliseconds."""
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)


def to_milliseconds(instant: datetime) -> datetime:
    """`instant` (aware) in UTC, truncated to whole milliseconds."""
    instant = instant.astimezone(UTC)
    return instant - timedelta(microseconds=instant.microsecond % 1000)


class Record(Struct, frozen=True, gc=False):
    """What there are many of. One is made in a tenth of the time of a frozen dataclass. Nothing in it refers back to
    it, so the garbage collector need not look."""


def altered(record: R, **fields: Any) -> R:
    """A copy with other values in these fields."""
    return replace(record, **fields)


class Notification(Record, frozen=True, gc=False):
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


class Recipient(Record, frozen=True, gc=False):
    """One user of a notification. `email` is None where none was given: stored and pushed, never mailed."""

    user_id: str
    email: str | None = None


@dataclass(frozen=True, slots=True)
class MailRecipient:
    """Somebody a mail is owed to, not before `due_at` (aware UTC).

    `accepted_online` is True where the user had an open connection when the notification was accepted: such a
    mail is due later, and falls away if one of the connections gave a sign of life after `created_at` of the
    notification. `attempts`: how often the mail server was asked in vain so far. For how long it has put this recipient
    off is from `failing_since` (None: it has not) to `due_at`: what the mail waits beyond that, for this server or for
    the mail server to be there, moves `failing_since` along.
    """

    user_id: str
    email: str
    due_at: datetime
    accepted_online: bool = False
    attempts: int = 0
    failing_since: datetime | None = None


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


class Publication(Record, frozen=True, gc=False):
    """What a publishing door read: a notification, its distinct recipients (possibly none), and the mail to
    those who are away (None: nobody is to be mailed). `idempotency_key`: that of its tenant by which the same request
    is known when it comes again (None: each time it comes is another). For figures: `door`, the name of the
    door, and `received_at`, when the request came in (`time.monotonic`; 0: not known)."""

    notification: Notification
    recipients: tuple[Recipient, ...]
    mail: Mail | None = None
    door: str = "notify"
    received_at: float = 0.0
    idempotency_key: str | None = None


class Document(Record, frozen=True, gc=False):
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

    @property
    def place(self) -> tuple[datetime, str]:
        """By which listings are in order, oldest first."""
        return self.created_at, self.id


@dataclass(frozen=True, slots=True)
class TypeCounts:
    """Of the documents of one type."""

    unseen: int
    total: int


MAX_TYPES = 100
"""Types that are counted one by one, of a user."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many documents a user has; tombstones are none. `types`: of each type, those with the most documents first,
    up to `MAX_TYPES` of them."""

    unseen: int
    total: int
    types: Mapping[str, TypeCounts]


# -- events: what connections are told -----------------------------------------------------------------------


class Added(Record, frozen=True, gc=False):
    """A document came into a user's inbox."""

    document: Document

    @property
    def rev(self) -> int:
        return self.document.rev


class Restored(Record, frozen=True, gc=False):
    """A tombstone became this document again."""

    document: Document

    @property
    def rev(self) -> int:
        return self.document.rev


@dataclass(frozen=True, slots=True)
class Seen:
    """Documents of one user were marked as seen. `changed`: those that were not seen before, whose new rev is `rev`;
    None: all of `ids`. `is_part`: of what a later `AllSeen` tells of as a whole."""

    ids: tuple[str, ...]
    rev: int
    changed: tuple[str, ...] | None = None
    is_part: bool = False

    @property
    def changed_ids(self) -> tuple[str, ...]:
        return self.ids if self.changed is None else self.changed


@dataclass(frozen=True, slots=True)
class AllSeen:
    """All documents of a user with a rev up to `upto` were marked as seen, by several changes."""

    upto: int


@dataclass(frozen=True, slots=True)
class Unseen:
    """Documents of one user were marked as unseen; `rev` is their new rev."""

    ids: tuple[str, ...]
    rev: int

    @property
    def changed_ids(self) -> tuple[str, ...]:
        return self.ids


@dataclass(frozen=True, slots=True)
class Deleted:
    """Documents of one user were turned into tombstones; `rev` is their new rev."""

    ids: tuple[str, ...]
    rev: int

    @property
    def changed_ids(self) -> tuple[str, ...]:
        return self.ids


@dataclass(frozen=True, slots=True)
class UnseenCount:
    """How many unseen documents a user has now."""

    count: int


@dataclass(frozen=True, slots=True)
class Counted:
    """How many documents a user has now, by their types, too."""

    counts: Counts


@dataclass(frozen=True, slots=True)
class Missed:
    """Something has changed that cannot be told: what it was is to be read."""


@dataclass(frozen=True, slots=True)
class Broadcasted:
    """A notification for everybody of a tenant was accepted. Told to those who have no user; the users' documents
    follow, each as `Added`."""

    notification: Notification


Event = Added | Restored | Seen | AllSeen | Unseen | Deleted | UnseenCount | Counted | Missed | Broadcasted
"""What connections are told."""
