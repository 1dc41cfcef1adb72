"""What the core asks of a store about what is for everybody, and about who of many does what only one may do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.messages import Document, Notification


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
    Those of a removed tenant rest until they are erased with it. Lease times go by the store's clock."""

    async def add(self, notification: Notification, once: Once | None = None) -> Accepted:
        """Durable when this returns: every user will get it. Its `nid` must be new. `once`: as of `Store.add`, with the
        same errors."""

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
