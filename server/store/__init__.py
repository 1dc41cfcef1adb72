"""What the core asks of a store. Two edges keep this contract: `store.sqlite` (embedded) and `store.mongo`.
Its parts are in the modules beside this one; import them from here.

For every verb: a store that cannot be reached or does not answer within its timeout raises
`StoreUnavailable`; ids that are unknown, malformed, deleted or another user's are silently none of the
user's. Returned lists are new lists. After `StoreUnavailable` the change may still be made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.messages import (
    MAX_TYPES,
    Counts,
    Document,
    EmailDuty,
    Notification,
    Recipient,
    Record,
    TypeCounts,
)
from server.store.broadcasts import Accepted, Broadcast, BroadcastRefused, Broadcasts, Leases, Once
from server.store.deliveries import ACKNOWLEDGED, EVENTS, HUB, SERVICE, WAYS, Deliveries, Delivery
from server.store.directory import STEP, Access, Directory, Sequences, SignOutCursor, SignOutPage
from server.store.mail import (
    MAX_JOB_RECIPIENTS,
    MailCounts,
    MailJob,
    MailOutcome,
    Mails,
    MailState,
    Outbox,
    OutboxMail,
    OutboxNotification,
    PostponedMail,
    RefusedMail,
)
from server.store.retention import Bounds, Horizon, Removed, Retention

__all__ = [
    "ACKNOWLEDGED",
    "Accepted",
    "Access",
    "Addition",
    "Bounds",
    "Broadcast",
    "BroadcastRefused",
    "Broadcasts",
    "Change",
    "Counts",
    "Deliveries",
    "Delivery",
    "Directory",
    "EVENTS",
    "HUB",
    "Horizon",
    "Leases",
    "MAX_JOB_RECIPIENTS",
    "MAX_TYPES",
    "MailCounts",
    "MailJob",
    "MailOutcome",
    "MailState",
    "Mails",
    "Once",
    "Outbox",
    "OutboxMail",
    "OutboxNotification",
    "PostponedMail",
    "RefusedMail",
    "Removed",
    "Retention",
    "SERVICE",
    "STEP",
    "Sequences",
    "SignOutCursor",
    "SignOutPage",
    "Store",
    "Stored",
    "TypeCounts",
    "WAYS",
    "Welcome",
]


@dataclass(frozen=True, slots=True)
class Change:
    """What a changing verb did. `ids`: the given ids that are documents of the user, in the order given,
    without repetition, whether or not they had to change (for "all": those that changed, oldest first).
    `changed`: how many got a new rev. `rev`: that new rev, one for all of them; None if nothing changed."""

    ids: tuple[str, ...]
    changed: int
    rev: int | None


class Stored(Record, frozen=True, gc=False):
    """What `Store.add` made, now or (`is_repeat`) when the same request came first: the notification with the `nid` and
    `created_at` that it has, and its documents in the order of the recipients (of a repeat: as they are now, tombstones
    too; those that are kept no longer are missing). `new`: the documents of which nobody has been told yet."""

    notification: Notification
    documents: list[Document]
    new: list[Document]
    is_repeat: bool = False


class Addition(Record, frozen=True, gc=False):
    """What `Store.add` is given."""

    notification: Notification
    recipients: Sequence[Recipient]
    duty: EmailDuty | None = None
    once: Once | None = None


NO_COUNTS = Counts(0, 0, {})


class Welcome(Record, frozen=True, gc=False):
    """What `Store.welcome` finds. `known_since`: as `Directory.known_since` has it. What was not asked for is
    empty."""

    known_since: datetime | None
    unseen: Sequence[Document] = ()
    counts: Counts = NO_COUNTS
    changes: Sequence[Document] = ()


class Store(Protocol):
    """The inbox of all users. Durable before a verb returns: a crash of the process or the machine loses
    nothing returned."""

    name: str
    """For people: `embedded (data/notifications.sqlite3)`, `MongoDB (db ws_notification)`; never a
    password."""

    directory: Directory
    """To be used while the store is open. After the first `open` it holds the tenant `default` and one signing secret.
    """

    deliveries: Deliveries
    broadcasts: Broadcasts
    leases: Leases
    outbox: Outbox
    retention: Retention
    """To be used while the store is open, as all of these."""

    epoch: str
    """Which inbox this is: revs of another one mean nothing here. Known after the first `open`."""

    changes_overlap_s: float
    """How much later than a higher one a rev may become visible: see `changes`. 0: never later."""

    async def open(self) -> None:
        """Connect, make indexes, bring what an earlier version (or the original system) left up to this one. That goes
        on where it was interrupted, may be done by several nodes at once, and says in the log how far it is. Raises
        `StartupError` (wrong or locked folder, bad address syntax) or `StoreUnavailable` (not there yet; may be called
        again)."""

    async def close(self) -> None:
        """Finish what was accepted, then let go. Idempotent."""

    async def ping(self) -> None:
        """Return if the store would take a write now. Raises `checks.Trouble` if it would, but something else about it
        is wrong."""

    # -- storing ---------------------------------------------------------------------------------------------
    async def add(
        self,
        notification: Notification,
        recipients: Sequence[Recipient],
        duty: EmailDuty | None,
        once: Once | None = None,
    ) -> Stored:
        """Store one document for each recipient (distinct users, at least one), and the duty to mail, as a
        whole: after a crash at any point either nothing is there or `complete_intents` completes it. After
        `StoreUnavailable` the documents may still appear, then all of them.

        With `once` the same request has its effect once, also if it comes from several nodes at the same time, or again
        after a crash at any point: each recipient has one document, and one mail is owed. Ids do not follow from the
        key, which may come again when it is no longer remembered. Raises `KeyReused` if the key was used for something
        else; `InProgress` if the same request is still being stored when the store's time limit is over."""

    async def add_many(self, additions: Sequence[Addition]) -> Sequence[Stored | Exception]:
        """`add` each of these, as if in their order, for little more than the time of one: what it returns or raises of
        each. They stand or fall alone; one that comes twice, with the same `once`, is a repeat the second time. Raises
        `StoreUnavailable`: as `add`, of all of them."""

    async def complete_intents(self) -> list[Document]:
        """Complete what a crash or a time-out left half done, longer ago than any store timeout. Returns the
        documents completed by this call, [] if there was nothing. Several nodes may call it at once."""

    # -- reading (never returns deleted documents) -----------------------------------------------------------
    # `newest`, `unseen`, `changes` and `welcome` return at most `limit` documents, and fewer if there are no more, or
    # if they are long: then two at least, and no more than one beyond `wire.MAX_CHARS_PER_FRAME` (`wire.are_all`).
    async def newest(
        self,
        tenant: str,
        user_id: str,
        *,
        before: str | None,
        limit: int,
        type: str | None = None,
        seen: bool | None = None,
    ) -> list[Document]:
        """Newest first by (created_at, id). `before`: only documents older than that of this id (which may be
        deleted); None: from the newest. An id that is not the user's: []. `type`, `seen`: only such documents (None:
        any)."""

    async def page(self, tenant: str, user_id: str, *, page: int, limit: int) -> list[Document]:
        """The `page`-th (from 0) `limit` documents, oldest first: the paging of the old dialect."""

    async def unseen(
        self, tenant: str, user_id: str, *, after: Document | None, limit: int
    ) -> list[Document]:
        """Unseen documents, oldest first by (created_at, id), those after the position of `after` only (None:
        from the oldest)."""

    async def changes(
        self, tenant: str, user_id: str, *, after: tuple[int, str], limit: int
    ) -> list[Document]:
        """Documents of the user whose (rev, id) lies beyond `after`, in that order, tombstones included. `after`: a
        rev, and an id ("" comes before all). A rev may become visible up to `changes_overlap_s` after a higher one:
        begin that much before what you have (see `revs`), and drop what you know; then go on from the last one
        returned."""

    async def position(self) -> int:
        """The rev clock now: whatever is changed after this returns has a higher rev, or (where `changes_overlap_s` is
        not 0) one that is at most so much lower."""

    def position_at(self, instant: datetime) -> int:
        """A position before which nothing was changed after `instant` (aware UTC, by the clock of a node); earlier than
        then by as much as this node's clock is ahead of the store's."""

    async def present(self, tenant: str) -> datetime:
        """A time (aware UTC) that is not before any since which a user of the tenant is known by now (see
        `Directory`)."""

    async def counts(self, tenant: str, user_ids: Collection[str]) -> dict[str, Counts]:
        """Exact, of each of these users; every given user is in the answer."""

    async def count_unseen(self, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
        """The exact number of unseen documents of each user; every given user is in the answer."""

    async def welcome(
        self,
        tenant: str,
        user_id: str,
        *,
        unseen: int = 0,
        counts: bool = False,
        changes: int = 0,
        after: tuple[int, str] = (0, ""),
    ) -> Welcome:
        """What a user who joins is told first, for the price of one question: since when they are known, and of what
        `unseen`, `counts` and `changes` find what is asked for: so many documents from the oldest unseen one, so many
        changes beyond `after`. Each is as of some moment of its own after the call."""

    # -- changing --------------------------------------------------------------------------------------------
    async def mark_seen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """Mark these documents seen, all that are the user's and not deleted."""

    async def mark_all_seen(
        self, tenant: str, user_id: str, *, limit: int, up_to: int | None = None
    ) -> Change:
        """Mark up to `limit` unseen documents seen, oldest first; `up_to`: only those whose rev is not higher (None:
        all). Call again until `changed` is less than `limit`."""

    async def mark_unseen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """Mark these documents unseen, all that are the user's and not deleted. Owes nobody a mail."""

    async def delete(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """Turn these documents into tombstones."""

    async def restore(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """Turn these tombstones into documents again, seen or unseen as they were; those that are none are none of the
        user's."""

    async def find(self, tenant: str, user_id: str, ids: Sequence[str]) -> list[Document]:
        """Those of these documents that are the user's, tombstones too, in the order given."""

    # -- mail ------------------------------------------------------------------------------------------------
    async def claim_mail(
        self, lease_s: float, limit: int, recipients: int = MAX_JOB_RECIPIENTS
    ) -> list[MailJob]:
        """Lease up to `limit` jobs that have due recipients, earliest due first; a job holds up to so many `recipients`
        that are due, earliest first. The others of its notification may have to wait until it is settled. Due and
        lease times go by the store's clock. A job not settled within `lease_s` seconds may be claimed again, by any
        node; where only one process can have the store open, also as soon as it is opened again. So a crash delays or
        repeats mail, never loses it."""

    async def settle_mail(self, job: MailJob, outcome: MailOutcome) -> bool:
        """Write down what became of a job: of `retry` one more attempt with its answer, `refused` as dead letters.
        False if the lease had run out and somebody else has claimed it since: then nothing is changed. Who is no longer
        owed it, because an operator has dropped that, stays so."""

    async def next_mail_due(self) -> datetime | None:
        """When the next mail becomes due (may be past); None if none is owed."""

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        """Those of the users who have the document of notification `nid` neither seen nor deleted."""

    async def mail_counts(self) -> MailCounts:
        """For health and metrics."""
