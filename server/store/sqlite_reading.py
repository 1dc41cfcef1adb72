"""Reading the documents of the embedded store: what each verb of the port does on a connection. Knows no threads and no
clock.
"""

# ruff: noqa: S608  # statements are put together from texts of this module and question marks only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from server.messages import Document, Notification
from server.store import WAYS
from server.store.sqlite_schema import from_ms, id_bytes, to_ms

IDS_PER_STATEMENT = 500
"""SQLite takes 999 variables in a statement by default before 3.32, and more gain nothing."""

MAX_REV = (1 << 63) - 1
"""What SQLite takes for an integer."""

USER = "(SELECT key FROM users WHERE tenant = ? AND user_id = ?)"

NOTIFICATION = "n.nid, n.created_at, n.type, n.title, n.content, n.url, n.icon, n.image, n.data"
"""What `read_notification` reads."""

# CROSS JOIN keeps the order: the documents by their index, then each one's notification.
_SELECT = f"""
    SELECT d.id, d.created_at, d.updated_at, d.rev, d.seen, d.deleted_at, {NOTIFICATION}
    FROM documents d CROSS JOIN notifications n ON n.key = d.notification
"""

NEWEST = f"""{_SELECT}
    WHERE d.user = {USER} AND d.deleted_at IS NULL AND (d.created_at, d.id) < (?, ?)
    ORDER BY d.created_at DESC, d.id DESC LIMIT ?
"""

# The offset is counted in the index alone.
PAGE = f"""{_SELECT}
    WHERE d.user = {USER} AND d.id IN (
        SELECT id FROM documents WHERE user = {USER} AND deleted_at IS NULL
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
"""Of all: their positions."""


def oldest_unseen(without: int = 0) -> str:
    """The statement for the oldest unseen documents of a user that have none of these marks."""
    marks = [each for each in _ALL_MARKS if not each & without]
    return f"""{_SELECT}
        WHERE d.user = :user AND d.id IN (SELECT id FROM ({_oldest_unseen(marks)}))
        ORDER BY d.created_at, d.id
    """


UNSEEN = oldest_unseen()

CHANGES = f"""{_SELECT}
    WHERE d.user = {USER} AND (d.rev, d.id) > (?, ?) ORDER BY d.rev, d.id LIMIT ?
"""

COUNT = """
    SELECT user_id,
        (SELECT count(*) FROM documents d WHERE d.user = u.key AND d.seen = 0 AND d.deleted_at IS NULL)
    FROM users u
"""

# Without statistics SQLite would go through all documents of each user.
STILL_UNSEEN = """
    SELECT u.user_id
    FROM notifications n CROSS JOIN users u CROSS JOIN documents d INDEXED BY of_notification
    ON d.notification = n.key AND d.user = u.key AND d.seen = 0 AND d.deleted_at IS NULL
    WHERE n.nid = ? AND n.tenant = ? AND u.tenant = ? AND u.user_id
"""

Position = tuple[int, bytes]
"""Of a document in its inbox: (created_at, id)."""

FIRST: Position = (-(1 << 63), b"")
_LAST: Position = ((1 << 63) - 1, b"")
"""Before and after all documents."""


def newest(
    connection: sqlite3.Connection, tenant: str, user_id: str, before: str | None, limit: int
) -> list[Document]:
    position: Position | None = _LAST
    if before is not None:
        position = connection.execute(
            f"SELECT created_at, id FROM documents WHERE user = {USER} AND id = ?",
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
    values = beyond(user_key(connection, tenant, user_id), after, limit)
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
        rows = connection.execute(
            f"{STILL_UNSEEN} IN ({question_marks(some)})", (id_bytes(nid), tenant, tenant, *some)
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


# -- what the statements need --------------------------------------------------------------------------------


def user_key(connection: sqlite3.Connection, tenant: str, user_id: str) -> int | None:
    """The key of a user; None if nothing was ever stored for them."""
    row = connection.execute(f"SELECT {USER}", (tenant, user_id)).fetchone()
    return None if row[0] is None else int(row[0])


def beyond(user: int | None, after: Position, limit: int) -> dict[str, Any]:
    """What the statements for the oldest unseen ask for."""
    created_at, id_ = after
    return {"user": user, "created_at": created_at, "id": id_, "limit": limit}


def portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many of them at a time as go into one statement."""
    for start in range(0, len(values), IDS_PER_STATEMENT):
        yield values[start : start + IDS_PER_STATEMENT]


def question_marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
