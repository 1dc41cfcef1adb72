"""What was sent, and acknowledged, in the embedded store. Keeps the `Deliveries` contract.

The functions do on a connection what the verbs are to do; those that write run inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this module only

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from server.errors import NotFound
from server.messages import Document
from server.store import ACKNOWLEDGED, WAYS, Delivery, RefusedMail
from server.store import sqlite_reading as reading
from server.store.sqlite_directory import Run
from server.store.sqlite_schema import from_ms, id_bytes, mark_of, to_ms

FEW = 1000
"""Of a notification with so many documents all are read and sorted by user; of one with more, the users of the tenant
are gone through in their order: as so many have it, the next one is not far."""

BACKLOG: Mapping[str | None, str] = {
    None: reading.UNSEEN,
    **{way: reading.oldest_unseen(without=mark_of(way)) for way in WAYS},
}

# What was seen or deleted before `acked_at` was written down was acknowledged then.
MARK = (
    "UPDATE documents SET marks = marks | :mark,"
    " acked_at = CASE WHEN seen OR deleted_at IS NOT NULL THEN acked_at ELSE coalesce(acked_at, :acked_at) END"
    " WHERE user = (SELECT key FROM users WHERE tenant = :tenant AND user_id = :user_id) AND id = :id"
    " AND marks & :mark = 0"
)

_DELIVERIES = """
    SELECT u.user_id, d.created_at, d.updated_at, d.seen OR d.deleted_at IS NOT NULL, d.acked_at,
           r.email, r.code, r.reason, r.refused_at
    FROM {} LEFT JOIN refused_mail r ON r.notification = d.notification AND r.user_id = u.user_id
    WHERE d.notification = :key AND u.tenant = :tenant AND u.user_id >= :after AND u.user_id IS NOT :left_out
    ORDER BY u.user_id LIMIT :limit
"""
# CROSS JOIN: in this order. Without statistics SQLite would go through all documents of each user.
OF_FEW = _DELIVERIES.format("documents d CROSS JOIN users u ON u.key = d.user")
OF_MANY = _DELIVERIES.format("users u CROSS JOIN documents d INDEXED BY of_notification ON d.user = u.key")


class SQLiteDeliveries:
    """See `Deliveries`."""

    def __init__(self, write: Run, read: Run, clock: Callable[[], datetime]) -> None:
        self._write = write
        self._read = read
        self._clock = clock

    async def begin(self, tenant: str, user_id: str, way: str, at: datetime) -> datetime:
        """See `Deliveries.begin`."""
        begun_at = await self._read(lambda c: _begun_at(c, tenant, user_id, way))
        if begun_at is None:
            begun_at = await self._write(lambda c: begin(c, tenant, user_id, way, at))
        return begun_at

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
        """See `Deliveries.backlog`."""
        position = reading.FIRST
        if since is not None:
            position = (to_ms(since), b"")
        if after is not None:
            position = max(position, reading.position_of(after))
        return await self._read(
            lambda c: reading.read_oldest(c, tenant, user_id, BACKLOG[way], position, limit)
        )

    async def mark(self, way: str, documents: Mapping[tuple[str, str], Collection[str]]) -> None:
        """See `Deliveries.mark`."""
        if documents:
            await self._write(lambda c: mark(c, way, documents, self._clock()))

    async def of_notification(
        self, tenant: str, nid: str, *, after: str | None, limit: int
    ) -> list[Delivery]:
        """See `Deliveries.of_notification`."""
        return await self._read(lambda c: of_notification(c, tenant, nid, after, limit))


def begin(connection: sqlite3.Connection, tenant: str, user_id: str, way: str, at: datetime) -> datetime:
    """See `Deliveries.begin`."""
    connection.execute(
        "INSERT INTO ways VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (tenant, user_id, way, to_ms(at))
    )
    return _begun_at(connection, tenant, user_id, way) or at


def _begun_at(connection: sqlite3.Connection, tenant: str, user_id: str, way: str) -> datetime | None:
    row = connection.execute(
        "SELECT begun_at FROM ways WHERE tenant = ? AND user_id = ? AND way = ?", (tenant, user_id, way)
    ).fetchone()
    return None if row is None else from_ms(row[0])


def mark(
    connection: sqlite3.Connection,
    way: str,
    documents: Mapping[tuple[str, str], Collection[str]],
    now: datetime,
) -> None:
    """See `Deliveries.mark`."""
    common = {"mark": mark_of(way), "acked_at": to_ms(now) if way == ACKNOWLEDGED else None}
    connection.executemany(
        MARK,
        (
            {**common, "tenant": tenant, "user_id": user_id, "id": id_bytes(id_)}
            for (tenant, user_id), ids in documents.items()
            for id_ in ids
        ),
    )


def of_notification(
    connection: sqlite3.Connection, tenant: str, nid: str, after: str | None, limit: int
) -> list[Delivery]:
    """See `Deliveries.of_notification`."""
    row = connection.execute(
        "SELECT key, EXISTS (SELECT 1 FROM broadcasts WHERE notification = key) FROM notifications"
        " WHERE nid = ? AND tenant = ?",
        (id_bytes(nid), tenant),
    ).fetchone()
    key, is_open = row or (None, False)
    some = "SELECT count(*) FROM (SELECT 1 FROM documents WHERE notification = ? LIMIT ?)"
    [count] = connection.execute(some, (key, FEW + 1)).fetchone()
    if not (count or is_open):
        raise NotFound(f"there is no notification {nid!r}")
    # From the first on, or from behind `after`: user ids may be empty.
    values = {"key": key, "tenant": tenant, "after": after or "", "left_out": after, "limit": limit}
    rows = connection.execute(OF_FEW if count <= FEW else OF_MANY, values)
    return [_delivery(row) for row in rows]


def _delivery(row: Sequence[Any]) -> Delivery:
    user_id, created_at, updated_at, is_done, acked_at, email, code, reason, refused_at = row
    # What was seen or deleted before version 3 has no acked_at.
    delivered_at = updated_at if acked_at is None and is_done else acked_at
    return Delivery(
        user_id=user_id,
        sent_at=from_ms(created_at),
        delivered_at=None if delivered_at is None else from_ms(delivered_at),
        refused=None if email is None else RefusedMail(user_id, email, code, reason),
        refused_at=None if refused_at is None else from_ms(refused_at),
    )
