"""What the core asks of a store about removing what is too old."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far back the inboxes of a tenant go. `floor`: all documents created before are gone (None: none are).
    `oldest_rev`: of changes with a lower rev, tombstones may be gone (0: none are)."""

    floor: datetime | None = None
    oldest_rev: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What has had its time: documents created before `created_before`, tombstones too (None: no document), and
    tombstones with a rev below `rev_below`, made before `deleted_before` (documents of the original have no rev)."""

    created_before: datetime | None
    rev_below: int
    deleted_before: datetime


@dataclass(frozen=True, slots=True)
class Removed:
    """What one step has removed. `documents`: how many that were not deleted, of these `users`; `tombstones`: how many
    others. `kept_from`: when the earliest document was created that has had its time, is not deleted, and stays since
    mail is owed for it (None: there is none)."""

    documents: int = 0
    tombstones: int = 0
    users: frozenset[str] = frozenset()
    kept_from: datetime | None = None


class Retention(Protocol):
    """Removing for good what has had its time: no rev changes by it, and nothing has to be told to be consistent."""

    async def horizons(self) -> Mapping[str, Horizon]:
        """By tenant; who is missing has all that was ever stored."""

    async def raise_horizon(self, tenant: str, horizon: Horizon) -> None:
        """Durable when this returns. Neither part of what is there ever goes back."""

    def remove(self, tenant: str, bounds: Bounds, limit: int) -> AsyncGenerator[Removed, None]:
        """Remove what has had its time, user by user, in steps of at most `limit` documents: as many as the caller asks
        for, at its pace. With a document go the marks of it, and with the last one of a notification what is left of
        that: its text, and the mail that was refused. A notification for which mail is owed stays whole. Each step
        stands for itself: after a crash the next call goes on."""

    async def forget_keys(self, limit: int) -> int:
        """Forget up to `limit` idempotency keys that have had their time; how many those were. (Where the database does
        that by itself: 0.)"""
