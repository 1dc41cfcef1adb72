"""What the core asks of a store. Two edges keep this contract: `store.sqlite` (embedded) and `store.mongo`.

For every verb: a store that cannot be reached or does not answer within its timeout raises
`StoreUnavailable`; ids that are unknown, malformed, deleted or another user's are silently none of the
user's. Returned lists are new lists. After `StoreUnavailable` the change may still be made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.grants import ApiKey, KnownUser, SigningSecret, SignOut, Tenant
from server.messages import Document, EmailDuty, Mail, MailRecipient, Notification, Recipient

HUB, SERVICE, EVENTS = "hub", "service", "events"
WAYS = (HUB, SERVICE, EVENTS)
"""The ways of listening of which the store remembers what was sent: see `Deliveries`. Each is a bit of what the stores
keep, by its place here: a further one comes last, and needs a new version of the embedded store's schema."""

ACKNOWLEDGED = SERVICE
"""The way whose clients acknowledge: its mark says that they did, and comes with the time. Whoever sees or deletes a
document acknowledges it, too."""

STEP = timedelta(milliseconds=1)
"""Between two sign-outs of a user at least."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a changing verb did. `ids`: the given ids that are documents of the user, in the order given,
    without repetition, whether or not they had to change (for "all": those that changed, oldest first).
    `changed`: how many got a new rev. `rev`: that new rev, one for all of them; None if nothing changed."""

    ids: tuple[str, ...]
    changed: int
    rev: int | None


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


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what, at one moment. `sequence`: the number of that moment. `tenants`: the active ones. `keys`: those
    of active tenants that are not revoked (they may have expired). `secrets`: newest first, those that are still good
    for checking."""

    sequence: int
    tenants: tuple[Tenant, ...]
    keys: tuple[ApiKey, ...]
    secrets: tuple[SigningSecret, ...]


@dataclass(frozen=True, slots=True)
class Sequences:
    """The numbers of the last changes: of what `Directory.access` returns, and of the sign-outs."""

    access: int
    sign_outs: int


class SignOutCursor:
    """A place in the row of sign-outs. What it holds is the business of the store that made it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SignOutPage:
    """Some sign-outs. `cursor`: where the next ones begin. `is_last`: there were no more at that moment."""

    sign_outs: tuple[SignOut, ...]
    cursor: SignOutCursor
    is_last: bool


class Directory(Protocol):
    """Tenants, their keys, the users known of each, and who was signed out.

    May be changed by another process while a server runs: each change of what `access` returns, and each sign-out,
    raises its number of `sequences`, in the same transaction where there are any, else right after it, so that servers
    see it by asking (and read in any case now and then). `at` and all instants: aware UTC, whole milliseconds."""

    async def sequences(self) -> Sequences:
        """The numbers of the last changes. Cheap: asked several times a second."""

    async def access(self) -> Access:
        """All of it, as of one number (or later: then asking again finds a higher one)."""

    # -- tenants ---------------------------------------------------------------------------------------------
    async def tenants(self) -> list[Tenant]:
        """Those removed, too; by name."""

    async def add_tenant(self, tenant: Tenant, key: ApiKey) -> None:
        """With its first key, both or none. Raises `Conflict` if one of that name is there, also a removed one whose
        data is not erased."""

    async def remove_tenant(self, name: str, at: datetime) -> None:
        """End its access: it is no longer active, its keys are revoked. Its data stays until `erase_tenant`. Raises
        `NotFound` if there is no active one of that name."""

    async def erase_tenant(self, name: str, limit: int) -> int:
        """Erase up to about `limit` documents of a removed tenant, and what goes with them (notifications, mail that is
        owed); once there are none left, its users, keys and name. How many documents were erased; call again until it
        is 0. Raises `NotFound` if there is no removed tenant of that name."""

    # -- keys ------------------------------------------------------------------------------------------------
    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        """Of one tenant, or of all; the revoked ones, too. By tenant, then oldest first."""

    async def add_key(self, key: ApiKey) -> None:
        """Raises `NotFound` if its tenant is not active, `Conflict` if the tenant has a key of that name that is not
        revoked."""

    async def revoke_key(self, tenant: str, name: str, at: datetime) -> ApiKey:
        """The key of that name that was not revoked, as it is now. Raises `NotFound`."""

    async def note_key_use(self, used_at: Mapping[str, datetime]) -> None:
        """Remember when keys (by id) were last used; a time before the known one changes nothing. No change of
        sequence."""

    # -- users -----------------------------------------------------------------------------------------------
    async def note_users(self, seen_at: Mapping[tuple[str, str], datetime]) -> None:
        """Remember users (tenant, user id) who have joined, and when. No change of sequence. Who is notified is
        remembered by `Store.add` itself."""

    async def users(self, tenant: str, *, after: str | None, limit: int) -> list[KnownUser]:
        """The known users of a tenant, in the order of their ids, those beyond `after` only."""

    async def known_since(self, tenant: str, user_id: str) -> datetime | None:
        """When the user was first notified or joined, as far as that is written down; None: never."""

    # -- signing out -----------------------------------------------------------------------------------------
    async def sign_out(self, tenant: str, user_id: str, at: datetime) -> None:
        """Void all that proved before `at` who this user is; if they were signed out then or later already, before
        `STEP` after that: one that is written down later counts as later. The user need not be known."""

    async def sign_outs(self, after: SignOutCursor | None, limit: int) -> SignOutPage:
        """Up to `limit` of them, in any order: those written down since the page that ended with this cursor; None: the
        last of each user. Who goes on from cursor to cursor gets each at least once; where it is in doubt what is new,
        some come again. What is new costs no more where there are many others."""

    async def forget_sign_outs(self, before: datetime) -> None:
        """Drop those from before this instant. No change of sequence."""

    # -- signing secrets -------------------------------------------------------------------------------------
    async def add_secret(self, secret: SigningSecret, *, retire_others_at: datetime) -> None:
        """Sign with this one from now on; the others are good for checking until then (unless they end earlier)."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a notification got with one of its users. `sent_at`: the `created_at` of the document. `delivered_at`:
    when a client acknowledged it, or the user saw or deleted it, whichever came first; None: not yet. (Of what was seen
    or deleted before this was remembered: its `updated_at`.) `refused`: its mail was refused for good; None: it was
    not. Instants: aware UTC, whole milliseconds."""

    user_id: str
    sent_at: datetime
    delivered_at: datetime | None
    refused: RefusedMail | None


class Deliveries(Protocol):
    """What clients have been sent, and have acknowledged, of the dialects in which that is remembered.

    A way is the name of such a dialect: one of `WAYS`. No verb here changes `rev` or `updated_at` of a document: to the
    inbox nothing happened."""

    async def begin(self, tenant: str, user_id: str, way: str, at: datetime) -> datetime:
        """When this user first used the way, the same at every call: `at` of the first. The user need not be known, and
        is not by this."""

    async def backlog(
        self,
        tenant: str,
        user_id: str,
        way: str,
        *,
        since: datetime | None,
        after: Document | None,
        limit: int,
    ) -> list[Document]:
        """The unseen documents that are not marked for this way, oldest first by (created_at, id). `since`: only those
        created then or later (None: all); `after`: only those after the position of this one (None: from the oldest).
        However many are marked, they cost nothing."""

    async def mark(self, way: str, documents: Mapping[tuple[str, str], Collection[str]]) -> None:
        """Remember that documents (their ids, by tenant and user id) have been sent in this way; for `ACKNOWLEDGED`:
        that a client has acknowledged them now. Documents that are marked, seen or deleted already stay as they are.
        One write, however many users; may be repeated."""

    async def of_notification(
        self, tenant: str, nid: str, *, after: str | None, limit: int
    ) -> list[Delivery]:
        """Of the users who have a document of the notification (a deleted one is one), in the order of their ids, those
        beyond `after` only. Raises `NotFound` if nobody has one, unless it is a broadcast that is still open."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A claimed broadcast: a notification for everybody whom its tenant knew when it was accepted. `after`: the users
    up to this id have their documents, in the order of `Directory.users` (None: nobody yet). `lease` proves the
    claim."""

    notification: Notification
    after: str | None
    lease: str


class Broadcasts(Protocol):
    """Notifications for all users of a tenant, each open until every user has a document. One that is claimed and not
    finished may be claimed again when the lease has run out (in the embedded store also as soon as it is opened again).
    Those of a removed tenant rest until they are erased with it. Lease times go by the store's clock."""

    async def add(self, notification: Notification) -> None:
        """Durable when this returns: every user will get it. Its `nid` must be new."""

    async def claim(self, lease_s: float) -> Broadcast | None:
        """Lease, for so long, the oldest one that no lease holds, of a tenant that is not removed; None if there is
        none."""

    async def expand(self, notification: Notification, user_ids: Sequence[str]) -> list[Document]:
        """Store a document for each of these distinct users who has none of this notification yet (a deleted one is
        one), as `Store.add` does; the new documents, in the order of the users. Needs no lease, may be repeated, and
        done by several at once: nobody gets two. The users need not be known; then they are. Documents stored after all
        by a call that raised `StoreUnavailable` are no news to the next: `Store.complete_intents` returns them."""

    async def advance(self, broadcast: Broadcast, after: str, lease_s: float) -> bool:
        """The users up to this id have their documents; the lease begins anew. False if somebody else has claimed it
        since, or finished it, or its tenant was removed: then nothing is changed, and the caller is to stop."""

    async def finish(self, broadcast: Broadcast) -> bool:
        """Everybody has their document: it is no longer open. False if somebody else has claimed it since, or finished
        it: then nothing is changed."""

    async def open_of(self, tenant: str) -> list[Notification]:
        """Those of a tenant that are open, leased or not, oldest first: who joins is given their document of each."""

    async def count_open(self) -> int:
        """Those of tenants that are not removed. For health and metrics."""


class Leases(Protocol):
    """One of many processes does what only one may do. Times go by the store's clock."""

    async def take(self, name: str, holder: str, lease_s: float) -> bool:
        """Whether `holder` has the lease of this name for so long from now on: it was free, had run out, or was theirs.
        Otherwise nothing is changed. In the embedded store all are free as soon as it is opened again."""

    async def give_back(self, name: str, holder: str) -> None:
        """Let somebody else have it at once. Nothing happens if it is not theirs."""


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
    """To be used while the store is open, as all of these."""

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
        """Return if the store would take a write now."""

    # -- storing ---------------------------------------------------------------------------------------------
    async def add(
        self, notification: Notification, recipients: Sequence[Recipient], duty: EmailDuty | None
    ) -> list[Document]:
        """Store one document for each recipient (distinct users, at least one), and the duty to mail, as a
        whole: after a crash at any point either nothing is there or `complete_intents` completes it. Returns
        the documents in the order of `recipients`. After `StoreUnavailable` the documents may still appear,
        then all of them."""

    async def complete_intents(self) -> list[Document]:
        """Complete what a crash or a time-out left half done, longer ago than any store timeout. Returns the
        documents completed by this call, [] if there was nothing. Several nodes may call it at once."""

    # -- reading (never returns deleted documents) -----------------------------------------------------------
    async def newest(self, tenant: str, user_id: str, *, before: str | None, limit: int) -> list[Document]:
        """Newest first by (created_at, id). `before`: only documents older than that of this id (which may be
        deleted); None: from the newest. An id that is not the user's: []."""

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

    async def count_unseen(self, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
        """The exact number of unseen documents of each user; every given user is in the answer."""

    # -- changing --------------------------------------------------------------------------------------------
    async def mark_seen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """Mark these documents seen, all that are the user's and not deleted."""

    async def mark_all_seen(self, tenant: str, user_id: str, *, limit: int) -> Change:
        """Mark up to `limit` unseen documents seen, oldest first. Call again until `changed` is less than
        `limit`."""

    async def delete(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """Turn these documents into tombstones."""

    # -- mail ------------------------------------------------------------------------------------------------
    async def claim_mail(self, lease_s: float, limit: int) -> list[MailJob]:
        """Lease up to `limit` jobs that have due recipients, earliest due first; a job holds the due
        recipients only. Due and lease times go by the store's clock. A job not settled within `lease_s`
        seconds may be claimed again, by any node; where only one process can have the store open, also as soon as it is
        opened again. So a crash delays or repeats mail, never loses it."""

    async def settle_mail(self, job: MailJob, outcome: MailOutcome) -> bool:
        """Write down what became of a job. False if the lease had run out and somebody else has claimed it
        since: then nothing is changed."""

    async def next_mail_due(self) -> datetime | None:
        """When the next mail becomes due (may be past); None if none is owed."""

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        """Those of the users who have the document of notification `nid` neither seen nor deleted."""

    async def mail_counts(self) -> MailCounts:
        """For health and metrics."""
