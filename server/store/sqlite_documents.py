"""The documents of the embedded store: adding and changing them, as the verbs of the port do, on a connection. Knows no
threads and no clock. Reading: see `sqlite_reading`.

Functions that write run inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this package and question marks only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime

from server.ids import new_id
from server.messages import Document, Notification, Recipient
from server.store import Change
from server.store.sqlite_reading import (
    FIRST,
    OLDEST_UNSEEN,
    USER,
    beyond,
    portions,
    question_marks,
    user_key,
)
from server.store.sqlite_schema import id_bytes, to_ms

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def add(
    connection: sqlite3.Connection, notification: Notification, recipients: Sequence[Recipient], rev: int
) -> tuple[int, list[Document]]:
    """Store a notification and its documents; its key and they."""
    key = add_notification(connection, notification)
    user_ids = [recipient.user_id for recipient in recipients]
    return key, add_documents(connection, key, notification, user_ids, rev)


def add_documents(
    connection: sqlite3.Connection, key: int, notification: Notification, user_ids: Sequence[str], rev: int
) -> list[Document]:
    """Store the documents of these users of the notification with this key; the users are known then."""
    at = notification.created_at
    tenant, ms = notification.tenant, to_ms(at)
    documents = [Document(new_id(tenant), user_id, notification, at, at, rev) for user_id in user_ids]
    connection.executemany(
        "INSERT INTO users (tenant, user_id, first_seen_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        ((tenant, user_id, ms) for user_id in user_ids),
    )
    connection.executemany(
        "INSERT INTO documents (user, id, notification, created_at, updated_at, rev)"
        f" VALUES ({USER}, ?, ?, ?, ?, ?)",
        ((tenant, each.user_id, bytes.fromhex(each.id), key, ms, ms, rev) for each in documents),
    )
    return documents


def add_notification(connection: sqlite3.Connection, notification: Notification) -> int:
    """Store a notification without documents; its key."""
    cursor = connection.execute(
        "INSERT INTO notifications (nid, tenant, created_at, type, title, content, url, icon, image, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            bytes.fromhex(notification.nid),
            notification.tenant,
            to_ms(notification.created_at),
            notification.type,
            notification.title,
            notification.content,
            notification.url,
            notification.icon,
            notification.image,
            None if notification.data is None else _to_json(notification.data),
        ),
    )
    key = cursor.lastrowid
    assert key is not None  # noqa: S101  # set by every INSERT
    return key


# -- changing ------------------------------------------------------------------------------------------------


def mark_seen(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    ids: Sequence[str],
    now: datetime,
    next_rev: Callable[[], int],
) -> Change:
    user, found = _find(connection, tenant, user_id, ids)
    return _mark_seen(
        connection, user, list(found), [id_ for id_, seen in found.items() if not seen], now, next_rev
    )


def mark_all_seen(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    limit: int,
    now: datetime,
    next_rev: Callable[[], int],
) -> Change:
    user = user_key(connection, tenant, user_id)
    rows = connection.execute(OLDEST_UNSEEN, beyond(user, FIRST, limit)).fetchall()
    ids = [id_ for _, id_ in rows]
    return _mark_seen(connection, user, ids, ids, now, next_rev)


def delete(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    ids: Sequence[str],
    now: datetime,
    next_rev: Callable[[], int],
) -> Change:
    user, found = _find(connection, tenant, user_id, ids)
    if not found:
        return Change((), 0, None)
    rev, ms = next_rev(), to_ms(now)
    connection.executemany(
        # What was seen before version 3 was acknowledged then.
        "UPDATE documents SET deleted_at = ?1, updated_at = ?1, rev = ?2,"
        " acked_at = coalesce(acked_at, CASE WHEN seen THEN updated_at ELSE ?1 END) WHERE user = ?3 AND id = ?4",
        ((ms, rev, user, id_) for id_ in found),
    )
    return Change(tuple(id_.hex() for id_ in found), len(found), rev)


def _mark_seen(
    connection: sqlite3.Connection,
    user: int | None,
    ids: Sequence[bytes],
    to_change: Sequence[bytes],
    now: datetime,
    next_rev: Callable[[], int],
) -> Change:
    rev = None
    if to_change:
        rev, ms = next_rev(), to_ms(now)
        connection.executemany(
            "UPDATE documents SET seen = 1, updated_at = ?1, rev = ?2, acked_at = coalesce(acked_at, ?1)"
            " WHERE user = ?3 AND id = ?4",
            ((ms, rev, user, id_) for id_ in to_change),
        )
    return Change(tuple(id_.hex() for id_ in ids), len(to_change), rev)


def _find(
    connection: sqlite3.Connection, tenant: str, user_id: str, ids: Sequence[str]
) -> tuple[int | None, dict[bytes, bool]]:
    """The user's key, and those of the ids that are the user's and not deleted, in the order given -> whether seen."""
    user = user_key(connection, tenant, user_id)
    wanted = list(dict.fromkeys(raw for raw in map(id_bytes, ids) if raw is not None))
    states: dict[bytes, bool] = {}
    for some in portions(wanted):
        states.update(
            connection.execute(
                "SELECT id, seen FROM documents"
                f" WHERE user = ? AND deleted_at IS NULL AND id IN ({question_marks(some)})",
                (user, *some),
            ).fetchall()
        )
    return user, {raw: states[raw] for raw in wanted if raw in states}
