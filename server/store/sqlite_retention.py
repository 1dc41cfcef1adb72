"""Removing what has had its time from the embedded store. Keeps the `Retention` contract.

The functions do on a connection what the verbs are to do; those that write run inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this module only

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial

from server.store import Bounds, Horizon, Removed
from server.store import sqlite_once as keys
from server.store.sqlite_directory import Run
from server.store.sqlite_schema import from_ms, to_ms

USERS_PER_STEP = 200
"""Looked through in one transaction: a millisecond where nothing is to go."""

# A notification stays whole as long as somebody is owed the mail of it.
_NO_MAIL = "NOT EXISTS (SELECT 1 FROM mail_recipients r WHERE r.notification = d.notification)"

_OLD = """
    FROM documents d INDEXED BY inbox_with_types
    WHERE d.user = :user AND d.deleted_at IS NULL AND d.created_at < :created_before
"""
_DEAD = """
    FROM documents d INDEXED BY tombstones
    WHERE d.user = :user AND d.deleted_at IS NOT NULL
    AND (d.created_at < :created_before OR (d.rev < :rev_below AND d.deleted_at < :deleted_before))
"""

OLD = f"SELECT d.id, d.notification {_OLD} AND {_NO_MAIL} LIMIT :limit"
DEAD = f"SELECT d.id, d.notification {_DEAD} AND {_NO_MAIL} LIMIT :limit"
FIRST_LEFT = f"SELECT d.created_at {_OLD} ORDER BY d.created_at LIMIT 1"

USERS = "SELECT key, user_id FROM users WHERE tenant = ? AND user_id > ? ORDER BY user_id LIMIT ?"


class SQLiteRetention:
    """See `Retention`."""

    def __init__(self, write: Run, read: Run, clock: Callable[[], datetime]) -> None:
        self._write = write
        self._read = read
        self._clock = clock

    async def horizons(self) -> Mapping[str, Horizon]:
        """See `Retention.horizons`."""
        return await self._read(horizons)

    async def raise_horizon(self, tenant: str, horizon: Horizon) -> None:
        """See `Retention.raise_horizon`."""
        await self._write(lambda c: raise_horizon(c, tenant, horizon))

    async def remove(self, tenant: str, bounds: Bounds, limit: int) -> AsyncGenerator[Removed, None]:
        """See `Retention.remove`."""
        after: str | None = ""
        while after is not None:
            removed, after = await self._write(
                partial(remove_some, tenant=tenant, bounds=bounds, after=after, limit=limit)
            )
            yield removed

    async def forget_keys(self, limit: int) -> int:
        """See `Retention.forget_keys`."""
        return await self._write(lambda c: keys.forget(c, self._clock(), limit))


def horizons(connection: sqlite3.Connection) -> dict[str, Horizon]:
    """See `Retention.horizons`."""
    rows = connection.execute("SELECT tenant, floor, oldest_rev FROM retention")
    return {
        tenant: Horizon(None if floor is None else from_ms(floor), oldest_rev)
        for tenant, floor, oldest_rev in rows
    }


def raise_horizon(connection: sqlite3.Connection, tenant: str, horizon: Horizon) -> None:
    """See `Retention.raise_horizon`. One of a tenant that was erased meanwhile would be the next one's of its name."""
    connection.execute(
        "INSERT INTO retention (tenant, floor, oldest_rev)"
        " SELECT name, ?2, ?3 FROM tenants WHERE name = ?1 AND removed_at IS NULL ON CONFLICT (tenant) DO UPDATE SET"
        " floor = max(coalesce(floor, excluded.floor), coalesce(excluded.floor, floor)),"
        " oldest_rev = max(oldest_rev, excluded.oldest_rev)",
        (tenant, None if horizon.floor is None else to_ms(horizon.floor), horizon.oldest_rev),
    )


def remove_some(
    connection: sqlite3.Connection, tenant: str, bounds: Bounds, after: str, limit: int
) -> tuple[Removed, str | None]:
    """What was removed of the users beyond `after`, and the last of them who has nothing left that is to go; None: that
    was all."""
    users = connection.execute(USERS, (tenant, after, USERS_PER_STEP)).fetchall()
    documents = tombstones = 0
    changed: list[str] = []
    left: list[int] = []
    notifications: set[int] = set()
    for user, user_id in users:
        values = _values(user, bounds)
        room = limit - documents - tombstones
        old = connection.execute(OLD, {**values, "limit": room}).fetchall()
        dead = connection.execute(DEAD, {**values, "limit": room - len(old)}).fetchall()
        connection.executemany(
            "DELETE FROM documents WHERE user = ? AND id = ?", ((user, id_) for id_, _ in (*old, *dead))
        )
        notifications.update(key for _, key in (*old, *dead))
        documents, tombstones = documents + len(old), tombstones + len(dead)
        changed += [user_id] if old else []
        if documents + tombstones >= limit:
            break  # this user may have more
        left += [at for (at,) in connection.execute(FIRST_LEFT, values)]
        after = user_id
    _tidy(connection, notifications)
    removed = Removed(documents, tombstones, frozenset(changed), from_ms(min(left)) if left else None)
    is_last = len(users) < USERS_PER_STEP and documents + tombstones < limit
    return removed, None if is_last else after


def _values(user: int, bounds: Bounds) -> dict[str, int]:
    """What the statements ask for."""
    before = bounds.created_before
    return {
        "user": user,
        "created_before": -(1 << 63) if before is None else to_ms(before),
        "rev_below": bounds.rev_below,
        "deleted_before": to_ms(bounds.deleted_before),
    }


def _tidy(connection: sqlite3.Connection, notifications: Iterable[int]) -> None:
    """Remove what is left of those of which the last document has gone. Until their broadcast has come to all, they may
    get further ones."""
    for key in notifications:
        gone = connection.execute(
            "DELETE FROM notifications WHERE key = ?1"
            " AND NOT EXISTS (SELECT 1 FROM documents WHERE notification = ?1)"
            " AND NOT EXISTS (SELECT 1 FROM broadcasts WHERE notification = ?1)",
            (key,),
        )
        if gone.rowcount:
            connection.execute("DELETE FROM mails WHERE notification = ?", (key,))
            connection.execute("DELETE FROM refused_mail WHERE notification = ?", (key,))
