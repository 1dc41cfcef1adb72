"""The documents of the embedded store: what each verb of the port does on a connection. Knows no threads and no clock.

Functions that write run inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this module and question marks only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from server.ids import new_id
from server.messages import Document, Notification, Recipient
from server.store import WAYS, Change
from server.store.sqlite_schema import from_ms, id_bytes, to_ms

IDS_PER_STATEMENT = 500
"""SQLite takes 999 variables in a statement by default before 3.32, and more gain nothing."""

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

MAX_REV = (1 << 63) - 1
"""What SQLite takes for an integer."""

_USER = "(SELECT key FROM users WHERE tenant = ? AND user_id = ?)"

NOTIFICATION = "n.nid, n.created_at, n.type, n.title, n.content, n.url, n.icon, n.image, n.data"
"""What `read_notification` reads."""

# CROSS JOIN keeps the order: the documents by their index, then each one's notification.
_SELECT = f"""
    SELECT d.id, d.created_at, d.updated_at, d.rev, d.seen, d.deleted_at, {NOTIFICATION}
    FROM documents d CROSS JOIN notifications n ON n.key = d.notification
"""

NEWEST = f"""{_SELECT}
    WHERE d.user = {_USER} AND d.deleted_at IS NULL AND (d.created_at, d.id) < (?, ?)
    ORDER BY d.created_at DESC, d.id DESC LIMIT ?
"""

# The offset is counted in the index alone.
PAGE = f"""{_SELECT}
    WHERE d.user = {_USER} AND d.id IN (
        SELECT id FROM documents WHERE user = {_USER} AND deleted_at IS NULL
        ORDER BY created_at, id LIMIT ? OFFSET ?
    )
    ORDER BY d.created_at, d.id
"""


def _oldest_unseen(marks: Iterable[int]) -> str:
    """The statement for the positions of the oldest unseen documents of a user that have one of these marks."""
    series = (
        f"SELECT created_at, id FROM documents WHERE user = :user AND marks = {each}"
        " AND seen = 0 AND deleted_at IS NULL AND (created_at, id) > (:created_at, :id)"
        for each in marks
    )
    return f"{' UNION ALL '.join(series)} ORDER BY created_at, id LIMIT :limit"


_ALL_MARKS = range(1 << len(WAYS))

OLDEST_UNSEEN = _oldest_unseen(_ALL_MARKS)


def oldest_unseen(without: int = 0) -> str:
    """The statement for the oldest unseen documents of a user that have none of these marks."""
    marks = [each for each in _ALL_MARKS if not each & without]
    return f"""{_SELECT}
        WHERE d.user = :user AND d.id IN (SELECT id FROM ({_oldest_unseen(marks)}))
        ORDER BY d.created_at, d.id
    """


UNSEEN = oldest_unseen()

CHANGES = f"""{_SELECT}
    WHERE d.user = {_USER} AND (d.rev, d.id) > (?, ?) ORDER BY d.rev, d.id LIMIT ?
"""

COUNT = """
    SELECT user_id,
        (SELECT count(*) FROM documents d WHERE d.user = u.key AND d.seen = 0 AND d.deleted_at IS NULL)
    FROM users u
"""

Position = tuple[int, bytes]
"""Of a document in its inbox: (created_at, id)."""

FIRST: Position = (-(1 << 63), b"")
_LAST: Position = ((1 << 63) - 1, b"")
"""Before and after all documents."""


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
        f" VALUES ({_USER}, ?, ?, ?, ?, ?)",
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


# -- reading -------------------------------------------------------------------------------------------------


def newest(
    connection: sqlite3.Connection, tenant: str, user_id: str, before: str | None, limit: int
) -> list[Document]:
    position: Position | None = _LAST
    if before is not None:
        position = connection.execute(
            f"SELECT created_at, id FROM documents WHERE user = {_USER} AND id = ?",
            (tenant, user_id, id_bytes(before)),
        ).fetchone()
    if position is None:
        return []
    return _documents(connection, tenant, user_id, NEWEST, (tenant, user_id, *position, limit))


def page(connection: sqlite3.Connection, tenant: str, user_id: str, page: int, limit: int) -> list[Document]:
    return _documents(
        connection, tenant, user_id, PAGE, (tenant, user_id, tenant, user_id, limit, page * limit)
    )


def unseen(
    connection: sqlite3.Connection, tenant: str, user_id: str, after: Document | None, limit: int
) -> list[Document]:
    position = FIRST if after is None else position_of(after)
    return read_oldest(connection, tenant, user_id, UNSEEN, position, limit)


def read_oldest(
    connection: sqlite3.Connection, tenant: str, user_id: str, statement: str, after: Position, limit: int
) -> list[Document]:
    """What a statement of `oldest_unseen` finds beyond this position."""
    values = _beyond(user_key(connection, tenant, user_id), after, limit)
    return _documents(connection, tenant, user_id, statement, values)


def position_of(document: Document) -> Position:
    return to_ms(document.created_at), bytes.fromhex(document.id)


def changes(
    connection: sqlite3.Connection, tenant: str, user_id: str, after: tuple[int, str], limit: int
) -> list[Document]:
    rev, id_ = after
    values = (tenant, user_id, max(min(rev, MAX_REV), -1), id_bytes(id_) or b"", limit)
    return _documents(connection, tenant, user_id, CHANGES, values)


def count_unseen(connection: sqlite3.Connection, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
    counts = dict.fromkeys(user_ids, 0)
    for some in portions(list(counts)):
        counts.update(
            connection.execute(
                f"{COUNT} WHERE tenant = ? AND user_id IN ({question_marks(some)})",
                (tenant, *some),
            ).fetchall()
        )
    return counts


def still_unseen(
    connection: sqlite3.Connection, tenant: str, nid: str, user_ids: Collection[str]
) -> set[str]:
    found: set[str] = set()
    for some in portions(list(user_ids)):
        # A document has the created_at of its notification: that finds it in the index.
        rows = connection.execute(
            "SELECT u.user_id FROM notifications n CROSS JOIN users u CROSS JOIN documents d"
            " ON d.user = u.key AND d.created_at = n.created_at AND d.notification = n.key"
            " AND d.seen = 0 AND d.deleted_at IS NULL"
            f" WHERE n.nid = ? AND n.tenant = ? AND u.tenant = ? AND u.user_id IN ({question_marks(some)})",
            (id_bytes(nid), tenant, tenant, *some),
        )
        found.update(user_id for (user_id,) in rows)
    return found


def _documents(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    statement: str,
    values: Sequence[Any] | dict[str, Any],
) -> list[Document]:
    return [_document(tenant, user_id, row) for row in connection.execute(statement, values).fetchall()]


def _document(tenant: str, user_id: str, row: Sequence[Any]) -> Document:
    """A document of a row of `_SELECT`."""
    id_, created_at, updated_at, rev, seen, deleted_at, *notification = row
    return Document(
        id=id_.hex(),
        user_id=user_id,
        notification=read_notification(tenant, notification),
        created_at=from_ms(created_at),
        updated_at=from_ms(updated_at),
        rev=rev,
        seen=bool(seen),
        deleted=deleted_at is not None,
        deleted_at=None if deleted_at is None else from_ms(deleted_at),
    )


def read_notification(tenant: str, row: Sequence[Any]) -> Notification:
    """The notification in the columns `NOTIFICATION`."""
    nid, created_at, type_, title, content, url, icon, image, data = row
    return Notification(
        nid=nid.hex(),
        tenant=tenant,
        created_at=from_ms(created_at),
        content=content,
        type=type_,
        title=title,
        url=url,
        icon=icon,
        image=image,
        data=None if data is None else json.loads(data),
    )


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
    rows = connection.execute(OLDEST_UNSEEN, _beyond(user, FIRST, limit)).fetchall()
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


def user_key(connection: sqlite3.Connection, tenant: str, user_id: str) -> int | None:
    """The key of a user; None if nothing was ever stored for them."""
    row = connection.execute(f"SELECT {_USER}", (tenant, user_id)).fetchone()
    return None if row[0] is None else int(row[0])


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


def _beyond(user: int | None, after: Position, limit: int) -> dict[str, Any]:
    """What the statements for the oldest unseen ask for."""
    created_at, id_ = after
    return {"user": user, "created_at": created_at, "id": id_, "limit": limit}


def portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many of them at a time as go into one statement."""
    for start in range(0, len(values), IDS_PER_STATEMENT):
        yield values[start : start + IDS_PER_STATEMENT]


def question_marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
