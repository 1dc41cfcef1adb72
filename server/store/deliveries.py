"""What the core asks of a store about what clients have been sent, and have acknowledged."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.messages import Document
from server.store.mail import RefusedMail

HUB, SERVICE, EVENTS = "hub", "service", "events"
WAYS = (HUB, SERVICE, EVENTS)
"""The ways of listening of which the store remembers what was sent: see `Deliveries`. Each is a bit of what the stores
keep, by its place here: a further one comes last, and needs a new version of the embedded store's schema."""

ACKNOWLEDGED = SERVICE
"""The way whose clients acknowledge: its mark says that they did, and comes with the time. Whoever sees or deletes a
document acknowledges it, too."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a notification got with one of its users. `sent_at`: the `created_at` of the document. `delivered_at`:
    when a client acknowledged it, or the user saw or deleted it, whichever came first; None: not yet. (Of what was seen
    or deleted before this was remembered: its `updated_at`.) `refused`: its mail was refused for good; None: it was
    not. `refused_at`: when that was written down (None also for what earlier versions wrote). Instants: aware UTC,
    whole milliseconds."""

    user_id: str
    sent_at: datetime
    delivered_at: datetime | None
    refused: RefusedMail | None
    refused_at: datetime | None


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
        way: str | None,
        *,
        since: datetime | None,
        after: Document | None,
        limit: int,
    ) -> list[Document]:
        """The unseen documents that are not marked for this way (None: whatever they are marked for), oldest first by
        (created_at, id). `since`: only those created then or later (None: all); `after`: only those after the position
        of this one (None: from the oldest). However many are marked, they cost nothing. Fewer than `limit` also if they
        are long, as of `Store.unseen`."""

    async def mark(self, way: str, documents: Mapping[tuple[str, str], Collection[str]]) -> None:
        """Remember that documents (their ids, by tenant and user id) have been sent in this way; for `ACKNOWLEDGED`:
        that a client has acknowledged them now. Documents that are marked already stay as they are; those that were
        seen or deleted by now are marked as well, as they may come back, but the time of that stays. One write, however
        many users; may be repeated."""

    async def of_notification(
        self, tenant: str, nid: str, *, after: str | None, limit: int
    ) -> list[Delivery]:
        """Of the users who have a document of the notification (a deleted one is one), in the order of their ids, those
        beyond `after` only. Raises `NotFound` if nobody has one, unless it is a broadcast that is still open."""
