"""What the core and a store tell each other about mail that is owed, and what operators ask about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from server.messages import Mail, MailRecipient

MAX_JOB_RECIPIENTS = 1000
"""Recipients in one claim, unless fewer are asked for: a job is handed over and settled as a whole."""


# -- for the worker ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MailJob:
    """A claimed mail: some due recipients of one notification. `lease` proves the claim when settling."""

    nid: str
    tenant: str
    created_at: datetime
    mail: Mail
    recipients: tuple[MailRecipient, ...]
    lease: str
    accepted_s_ago: float | None = None
    """How long before the claim the notification was accepted, by the clock of a store that several nodes share; None:
    `created_at` is by the clock of this node."""


@dataclass(frozen=True, slots=True)
class RefusedMail:
    """A recipient that the mail server refused for good, with its answer (`code`, `reason`: the server's
    words)."""

    user_id: str
    email: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class PostponedMail:
    """A recipient that could not be mailed for now, with the last answer (as of `RefusedMail`): to be tried again at
    `retry_at` (aware UTC). `is_untried`: the mail server was not asked about this one, so no attempt is counted."""

    user_id: str
    email: str
    code: int
    reason: str
    retry_at: datetime
    is_untried: bool = False


@dataclass(frozen=True, slots=True)
class MailOutcome:
    """What became of a claimed job. Every recipient of the job is in exactly one of these. `sent` and `dropped` (seen,
    deleted or alive meanwhile) are done."""

    sent: tuple[MailRecipient, ...] = ()
    dropped: tuple[MailRecipient, ...] = ()
    refused: tuple[RefusedMail, ...] = ()
    retry: tuple[PostponedMail, ...] = ()


@dataclass(frozen=True, slots=True)
class MailCounts:
    """Recipients by state: `due` (owed, whether or not the time has come), `refused` (kept with the
    reason)."""

    due: int
    refused: int


# -- for operators -------------------------------------------------------------------------------------------


class MailState(StrEnum):
    """What may be said of the mail to one recipient; each is in one of these states, by the store's clock."""

    DUE = "due"
    """Owed, and nobody has it in hand: it goes out next."""
    LEASED = "leased"
    """A server has it in hand."""
    WAITING = "waiting"
    """Owed later: it is to be tried again, or its user was online and may see the notification."""
    DEAD = "dead"
    """Refused for good: a dead letter."""


@dataclass(frozen=True, slots=True)
class OutboxMail:
    """The mail of notification `nid` to one recipient. `due_at`: from when on it may be sent (None: it is dead);
    `leased_until`: set while it is leased. `attempts`: how often the mail server was asked in vain. `failed_at`,
    `code`, `reason`: the last answer, temporary or not (all None: there was none yet; the time also of what an earlier
    version wrote down; code 0: the mail server gave none). Instants: aware UTC, whole milliseconds."""

    nid: str
    user_id: str
    email: str
    state: MailState
    due_at: datetime | None
    leased_until: datetime | None
    attempts: int
    failed_at: datetime | None
    code: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class OutboxNotification:
    """A notification with mail in the outbox. `mail`: the text; None where an earlier version has not kept that of dead
    letters: they cannot be retried."""

    nid: str
    created_at: datetime
    mail: Mail | None


Mails = Mapping[str, Collection[str] | None]
"""Mails, by the ids of their notifications, and then of their users; None: all of the notification."""


class Outbox(Protocol):
    """The mail that is owed, and the dead letters, as operators see and change them, also beside running servers. What
    a server has in hand is left to it. Each verb knows one tenant: what is another's is not there."""

    async def entries(
        self,
        tenant: str,
        *,
        nid: str | None = None,
        state: MailState | None = None,
        after: tuple[str, str] | None = None,
        limit: int,
    ) -> list[OutboxMail]:
        """In a fixed order of the notifications, about that in which they were stored, and of each in that of its
        users' ids. `nid`: of this one only; `state`: in this one only; `after`: beyond this notification and user only,
        whose mail may have left the outbox (None: from the first)."""

    async def find(self, tenant: str, nid: str) -> OutboxNotification:
        """Raises `NotFound` if no mail of it is owed or dead."""

    async def retry(self, tenant: str, mails: Mails) -> int:
        """Let those of these mails that wait, or are dead, be due now, as if they had never been tried; how many there
        were. The last answer is kept."""

    async def drop(self, tenant: str, mails: Mails) -> int:
        """Owe those of these mails no longer that are not leased, and forget the dead; how many there were."""
