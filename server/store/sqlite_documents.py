"""Adding documents to the embedded store, as the verbs of the port do, on a connection. Knows no threads and no clock.
Reading: see `sqlite_reading`; changing: `sqlite_changing`.

All of it runs inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this package and question marks only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from server.ids import new_id
from server.messages import Document, Notification, Recipient
from server.store.sqlite_reading import USER
from server.store.sqlite_schema import to_ms

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
        "INSERT INTO documents (user, id, notification, created_at, updated_at, rev, type)"
        f" VALUES ({USER}, ?, ?, ?, ?, ?, ?)",
        (
            (tenant, each.user_id, bytes.fromhex(each.id), key, ms, ms, rev, notification.type)
            for each in documents
        ),
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
