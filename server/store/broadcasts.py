"""What the core asks of a store about notifications for everybody, and about leases: which of several processes does
what only one may do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.errors import ServerError
from server.messages import Document, Notification


class BroadcastRefused(ServerError):
    """The store will never take documents of this broadcast, and has set it aside."""

    code = "broadcast_refused"


@dataclass(frozen=True, slots=True)
class Once:
    """A request that may come again, and is to have its effect once. `key`: the caller's own, one of its tenant's;
    `fingerprint`: of what is asked for; `keep_s`: how long the key is remembered."""

    key: str
    fingerprint: bytes
    keep_s: float


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A claimed broadcast: a notification for everybody whom its tenant knew when it was accepted. `after`: the users
    up to this id have their documents, in the order of `Directory.users` (None: nobody yet). `lease` proves the
    claim."""

    notification: Notification
    after: str | None
    lease: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A broadcast that is durable: with the `nid` and `created_at` that it has, also if (`is_repeat`) the same request
    came first."""

    notification: Notification
    is_repeat: bool = False


class Broadcasts(Protocol):
    """Notifications for all users of a tenant, each open until every user has a document. One that is claimed and not
    finished may be claimed again when the lease has run out (in the embedded store also as soon as it is opened again).
    Those of a removed tenant rest until they are erased with it. One whose documents the store refuses for good is set
    aside for the operator: it is not open, and not forgotten. Lease times go by the store's clock."""

    async def add(self, notification: Notification, once: Once | None = None) -> Accepted:
        """Durable when this returns: every user will get it. Its `nid` must be new. `once`: as of `Store.add`, with the
        same errors."""

    async def claim(self, lease_s: float, passing_over: Collection[str] = ()) -> Broadcast | None:
        """Lease, for so long, the oldest one that no lease holds, of a tenant that is not removed nor among those to be
        passed over; None if there is none."""

    async def expand(self, notification: Notification, user_ids: Sequence[str]) -> list[Document]:
        """Store a document for each of these distinct users who has none of this notification yet (a deleted one is
        one), as `Store.add` does; the new documents, in the order of the users. Needs no lease, may be repeated, and
        done by several at once: nobody gets two. The users need not be known; then they are. Documents stored after all
        by a call that raised are no news to the next: `Store.complete_intents` returns them. Raises `BroadcastRefused`
        if the store refuses any of them for good."""

    async def give(self, user_id: str, notifications: Sequence[Notification]) -> list[Document]:
        """Store for one user a document of each of these notifications of one tenant, as `expand` does; the new ones,
        in their order. What the store refuses for good is passed over: `expand` meets it, too."""

    async def advance(self, broadcast: Broadcast, after: str, lease_s: float) -> bool:
        """The users up to this id have their documents; the lease begins anew. False if somebody else has claimed it
        since, or finished it, or its tenant was removed: then nothing is changed, and the caller is to stop."""

    async def finish(self, broadcast: Broadcast) -> bool:
        """Everybody has their document: it is no longer open. False if somebody else has claimed it since, or finished
        it: then nothing is changed."""

    async def open_of(
        self, tenant: str, user_id: str, *, since: datetime, after: Notification | None, limit: int
    ) -> list[Notification]:
        """Of the broadcasts of a tenant that are open, leased or not, those accepted at that time or later of which the
        user has no document, oldest first, beyond `after` only. What the user has already costs little."""

    async def count_open(self) -> int:
        """Those of tenants that are not removed. For health and metrics."""


class Leases(Protocol):
    """One of many processes does what only one may do. Times go by the store's clock."""

    async def take(self, name: str, holder: str, lease_s: float) -> bool:
        """Whether `holder` has the lease of this name for so long from now on: it was free, had run out, or was theirs.
        Otherwise nothing is changed. In the embedded store all are free as soon as it is opened again."""

    async def give_back(self, name: str, holder: str) -> None:
        """Let somebody else have it at once. Nothing happens if it is not theirs."""
