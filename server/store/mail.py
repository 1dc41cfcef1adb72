"""What the core and a store tell each other about mail that is owed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from server.messages import Mail, MailRecipient


@dataclass(frozen=True, slots=True)
class MailJob:
    """A claimed mail: some due recipients of one notification. `lease` proves the claim when settling.
    `attempts` counts the earlier claims of this notification's mail that ended with recipients to retry."""

    nid: str
    tenant: str
    created_at: datetime
    mail: Mail
    recipients: tuple[MailRecipient, ...]
    lease: str
    attempts: int


@dataclass(frozen=True, slots=True)
class RefusedMail:
    """A recipient that the mail server refused for good, with its answer (`code`, `reason`: the server's
    words)."""

    user_id: str
    email: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class MailOutcome:
    """What became of a claimed job. Every recipient of the job is in exactly one of these; `retry` are those
    to try again at `retry_at` (aware UTC; None only if `retry` is empty). `sent` and `dropped` (seen, deleted
    or alive meanwhile) are done."""

    sent: tuple[MailRecipient, ...] = ()
    dropped: tuple[MailRecipient, ...] = ()
    refused: tuple[RefusedMail, ...] = ()
    retry: tuple[MailRecipient, ...] = ()
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MailCounts:
    """Recipients by state: `due` (owed, whether or not the time has come), `refused` (kept with the
    reason)."""

    due: int
    refused: int
