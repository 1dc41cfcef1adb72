"""Adding documents to the embedded store, as the verbs of the port do, on a connection. Knows no threads and no clock.
Reading: see `sqlite_reading`; changing: `sqlite_changing`.

All of it runs inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this package and question marks only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from server.ids import new_ids
from server.messages import Document, Notification, Recipient
from server.store.sqlite_reading import USER
from server.store.sqlite_schema import to_ms

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


_INSERT = (
    "INSERT INTO documents (user, id, notification, created_at, updated_at, rev, type)"
    f" VALUES ({USER}, ?, ?, ?, ?, ?, ?)"
)
_INSERT_MISSING = f"{_INSERT} ON CONFLICT (user, id) DO NOTHING"
_INSERT_USER = "INSERT INTO users (tenant, user_id, first_seen_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"

_Row = tuple[str, str, bytes, int, int, int, int, str]
"""What `_INSERT` is given."""


def add_all(
    connection: sqlite3.Connection,
    additions: Sequence[tuple[Notification, Sequence[Recipient]]],
    revs: Sequence[int],
) -> list[tuple[int, list[Document]]]:
    """Store notifications and their documents, each notification with the rev in its place; the key and documents of
    each. Together they cost about half as much as one by one."""
    notifications = [notification for notification, _ in additions]
    instants = [to_ms(notification.created_at) for notification in notifications]
    keys = _add_notifications(connection, notifications, instants)
    added: list[tuple[int, list[Document]]] = []
    rows: list[_Row] = []
    for (notification, recipients), key, ms, rev in zip(additions, keys, instants, revs, strict=True):
        documents = _make(notification, [recipient.user_id for recipient in recipients], rev)
        rows += _rows(key, ms, documents)
        added.append((key, documents))
    _insert(connection, rows)
    return added


def add_documents(
    connection: sqlite3.Connection, key: int, notification: Notification, user_ids: Sequence[str], rev: int
) -> list[Document]:
    """Store the documents of these users of the notification with this key; the users are known then."""
    documents = _make(notification, user_ids, rev)
    _insert(connection, _rows(key, to_ms(notification.created_at), documents))
    return documents


def _make(notification: Notification, user_ids: Sequence[str], rev: int) -> list[Document]:
    at = notification.created_at
    ids = new_ids(len(user_ids), notification.tenant)
    return [
        Document(id_, user_id, notification, at, at, rev) for id_, user_id in zip(ids, user_ids, strict=True)
    ]


def _rows(key: int, ms: int, documents: Sequence[Document]) -> list[_Row]:
    """Of a notification's documents, which was created at `ms`."""
    if not documents:
        return []
    notification, rev = documents[0].notification, documents[0].rev
    type_, tenant = notification.type, notification.tenant
    return [(tenant, each.user_id, bytes.fromhex(each.id), key, ms, ms, rev, type_) for each in documents]


def _insert(connection: sqlite3.Connection, rows: Sequence[_Row]) -> None:
    try:
        connection.executemany(_INSERT, rows)
    except sqlite3.IntegrityError:
        # A user is new. Mostly all are known, and making sure of it first would take half as long as this.
        connection.executemany(
            _INSERT_USER, ((tenant, user_id, ms) for tenant, user_id, *_, ms, _, _ in rows)
        )
        connection.executemany(_INSERT_MISSING, rows)


_INSERT_NOTIFICATION = (
    "INSERT INTO notifications (nid, tenant, created_at, type, title, content, url, icon, image, data)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def add_notification(connection: sqlite3.Connection, notification: Notification) -> int:
    """Store a notification without documents; its key."""
    [key] = _add_notifications(connection, [notification], [to_ms(notification.created_at)])
    return key


def _add_notifications(
    connection: sqlite3.Connection, notifications: Sequence[Notification], instants: Sequence[int]
) -> range:
    """Their keys. `instants`: when they were created, as it is stored."""
    connection.executemany(_INSERT_NOTIFICATION, map(_notification_row, notifications, instants))
    last: int = connection.execute("SELECT last_insert_rowid()").fetchone()[0]
    # SQLite gives each new row the largest key and one.
    return range(last - len(notifications) + 1, last + 1)


def _notification_row(notification: Notification, ms: int) -> tuple[object, ...]:
    return (
        bytes.fromhex(notification.nid),
        notification.tenant,
        ms,
        notification.type,
        notification.title,
        notification.content,
        notification.url,
        notification.icon,
        notification.image,
        None if notification.data is None else _to_json(notification.data),
    )
