"""Idempotency keys in the embedded store: a row of `once` is written in the transaction that has the effect, so one is
there if and only if the other is. Knows no threads and no clock.
"""

# ruff: noqa: S608  # a statement is put together from texts of these modules only

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta

from server.errors import KeyReused
from server.messages import Document, Notification, altered
from server.store import Once
from server.store import sqlite_reading as reading
from server.store.sqlite_schema import from_ms, to_ms

FORGET_AT_A_TIME = 20
"""Rows that have had their time and go when another is written: more than come, so that they become fewer."""

EXPIRED = "SELECT tenant, key FROM once WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"

# Without statistics SQLite would go through all documents of each user.
_DOCUMENTS = f"""
    SELECT u.user_id, {reading.DOCUMENT}
    FROM notifications n CROSS JOIN documents d INDEXED BY of_notification CROSS JOIN users u
    ON d.notification = n.key AND u.key = d.user WHERE n.nid = ? AND n.tenant = ?
"""


def repeated(
    connection: sqlite3.Connection, notification: Notification, once: Once, now: datetime
) -> Notification | None:
    """The notification as it is, if this request has had its effect; None: this is the first time, and written down as
    that. Raises `KeyReused`."""
    tenant, now_ms = notification.tenant, to_ms(now)
    found = connection.execute(
        "SELECT fingerprint, nid, created_at FROM once WHERE tenant = ? AND key = ? AND expires_at > ?",
        (tenant, once.key, now_ms),
    ).fetchone()
    if found is None:
        _forget_some(connection, now_ms, FORGET_AT_A_TIME)
        connection.execute(
            "INSERT OR REPLACE INTO once (tenant, key, fingerprint, nid, created_at, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                tenant,
                once.key,
                once.fingerprint,
                bytes.fromhex(notification.nid),
                to_ms(notification.created_at),
                to_ms(now + timedelta(seconds=once.keep_s)),
            ),
        )
        return None
    fingerprint, nid, created_at = found
    if fingerprint != once.fingerprint:
        raise KeyReused
    return altered(notification, nid=nid.hex(), created_at=from_ms(created_at))


def documents(
    connection: sqlite3.Connection, notification: Notification, user_ids: Sequence[str]
) -> list[Document]:
    """Those of a notification, tombstones too, in the order of these users."""
    rows = connection.execute(_DOCUMENTS, (bytes.fromhex(notification.nid), notification.tenant))
    ms = to_ms(notification.created_at)
    found = {user_id: reading.read_document(user_id, notification, ms, *row) for user_id, *row in rows}
    return [found[each] for each in user_ids if each in found]


def erase(connection: sqlite3.Connection, tenant: str, limit: int) -> int:
    """Forget up to so many keys of a tenant; how many those were."""
    return connection.execute(
        "DELETE FROM once WHERE (tenant, key) IN (SELECT tenant, key FROM once WHERE tenant = ? LIMIT ?)",
        (tenant, limit),
    ).rowcount


def forget(connection: sqlite3.Connection, now: datetime, limit: int) -> int:
    """Forget up to so many keys that have had their time; how many those were."""
    return _forget_some(connection, to_ms(now), limit)


def _forget_some(connection: sqlite3.Connection, now_ms: int, limit: int) -> int:
    expired = connection.execute(EXPIRED, (now_ms, limit)).fetchall()
    connection.executemany("DELETE FROM once WHERE tenant = ? AND key = ?", expired)
    return len(expired)
