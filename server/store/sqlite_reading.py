"""Reading the documents of the embedded store: what each verb of the port does on a connection. Knows no threads and no
clock.
"""

# ruff: noqa: S608  # statements are put together from texts of this module and question marks only

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from server.messages import Document, Notification
from server.store import MAX_TYPES, NO_COUNTS, WAYS, Counts, TypeCounts, Welcome
from server.store.sqlite_access import known_since
from server.store.sqlite_errors import as_store_error
from server.store.sqlite_schema import from_ms, id_bytes, to_ms
from server.store.sqlite_values import id_list, portions, question_marks
from server.wire import MAX_CHARS_PER_FRAME, overflow

MAX_REV = (1 << 63) - 1
"""What SQLite takes for an integer."""

USER = "(SELECT key FROM users WHERE tenant = ? AND user_id = ?)"

NOTIFICATION = "n.nid, n.created_at, n.type, n.title, n.content, n.url, n.icon, n.image, n.data"
"""What `read_notification` reads."""

DOCUMENT = "d.id, d.created_at, d.updated_at, d.rev, d.seen, d.deleted_at"
"""What `read_document` reads."""

# CROSS JOIN keeps the order: the documents by their index, then each one's notification.
_SELECT = f"""
    SELECT {DOCUMENT}, {NOTIFICATION} FROM documents d CROSS JOIN notifications n ON n.key = d.notification
"""

NEWEST = f"""{_SELECT}
    WHERE d.user = {USER} AND d.deleted_at IS NULL AND (d.created_at, d.id) < (?, ?)
    ORDER BY d.created_at DESC, d.id DESC LIMIT ?
"""

# Entries of other types, and of what was seen or was not, are passed over in the index alone.
NEWEST_OF = f"""{_SELECT}
    WHERE d.user = :user AND d.id IN (
        SELECT id FROM documents INDEXED BY inbox_with_types
        WHERE user = :user AND deleted_at IS NULL AND (created_at, id) < (:created_at, :id)
        AND (:type IS NULL OR type = :type) AND (:seen IS NULL OR seen = :seen)
        ORDER BY created_at DESC, id DESC LIMIT :limit
    )
    ORDER BY d.created_at DESC, d.id DESC
"""

# The offset is counted in the index alone.
PAGE = f"""{_SELECT}
    WHERE d.user = {USER} AND d.id IN (
        SELECT id FROM documents WHERE user = {USER} AND deleted_at IS NULL
        ORDER BY created_at, id LIMIT ? OFFSET ?
    )
    ORDER BY d.created_at, d.id
"""


def _oldest_unseen(marks: Iterable[int], only: str = "") -> str:
    """The statement for the positions of the oldest unseen documents of a user that have one of these marks."""
    series = (
        f"SELECT created_at, id FROM documents WHERE user = :user AND marks = {each}"
        f" AND seen = 0 AND deleted_at IS NULL AND (created_at, id) > (:created_at, :id){only}"
        for each in marks
    )
    return f"{' UNION ALL '.join(series)} ORDER BY created_at, id LIMIT :limit"


_ALL_MARKS = range(1 << len(WAYS))

OLDEST_UNSEEN = _oldest_unseen(_ALL_MARKS)
"""Of all: their positions."""

OLDEST_UNSEEN_UP_TO = _oldest_unseen(_ALL_MARKS, " AND rev <= :up_to")


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

FIND = f"{_SELECT} WHERE d.user = {USER} AND d.id"

# Of each type, if there are not too many.
FEW_COUNTS = f"""
    SELECT type, sum(NOT seen), count(*)
    FROM documents INDEXED BY inbox_with_types WHERE user = {USER} AND deleted_at IS NULL
    GROUP BY type LIMIT {MAX_TYPES + 1}
"""

# The same; in each row, too, the sums over all types, of which there may be more.
COUNTS = f"""
    SELECT type, sum(NOT seen), count(*), sum(sum(NOT seen)) OVER (), sum(count(*)) OVER ()
    FROM documents INDEXED BY inbox_with_types WHERE user = {USER} AND deleted_at IS NULL
    GROUP BY type ORDER BY count(*) DESC, type LIMIT {MAX_TYPES}
"""

# Before each commit it is set to the highest rev issued until then.
POSITION = "SELECT value FROM meta WHERE name = 'last_rev'"

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

WelcomeAsked = tuple[str, str, int, bool, int, tuple[int, str]]
"""What `welcomes` is asked for each: tenant, user id, and how much of what."""

FIRST: Position = (-(1 << 63), b"")
_LAST: Position = ((1 << 63) - 1, b"")
"""Before and after all documents."""


def newest(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    before: str | None,
    limit: int,
    type_: str | None,
    seen: bool | None,
) -> list[Document]:
    """See `Store.newest`."""
    position: Position | None = _LAST
    if before is not None:
        position = connection.execute(
            f"SELECT created_at, id FROM documents WHERE user = {USER} AND id = ?",
            (tenant, user_id, id_bytes(before)),
        ).fetchone()
    if position is None:
        return []
    if type_ is None and seen is None:
        return _documents(
            connection, tenant, user_id, NEWEST, (tenant, user_id, *position, limit), is_for_a_frame=True
        )
    values = beyond(user_key(connection, tenant, user_id), position, limit)
    return _documents(
        connection, tenant, user_id, NEWEST_OF, {**values, "type": type_, "seen": seen}, is_for_a_frame=True
    )


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
    return _documents(connection, tenant, user_id, statement, values, is_for_a_frame=True)


def position_of(document: Document) -> Position:
    return to_ms(document.created_at), bytes.fromhex(document.id)


def changes(
    connection: sqlite3.Connection, tenant: str, user_id: str, after: tuple[int, str], limit: int
) -> list[Document]:
    rev, id_ = after
    values = (tenant, user_id, max(min(rev, MAX_REV), -1), id_bytes(id_) or b"", limit)
    return _documents(connection, tenant, user_id, CHANGES, values, is_for_a_frame=True)


def find(connection: sqlite3.Connection, tenant: str, user_id: str, ids: Sequence[str]) -> list[Document]:
    """See `Store.find`."""
    wanted = id_list(ids)
    found: dict[str, Document] = {}
    for some in portions(wanted):
        statement = f"{FIND} IN ({question_marks(some)})"
        values = (tenant, user_id, *some)
        found.update((each.id, each) for each in _documents(connection, tenant, user_id, statement, values))
    return [found[id_.hex()] for id_ in wanted if id_.hex() in found]


def position(connection: sqlite3.Connection) -> int:
    """The last rev that was issued."""
    return int(connection.execute(POSITION).fetchone()[0])


def epoch(connection: sqlite3.Connection) -> str:
    """See `Store.epoch`."""
    return str(connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0])


def counts(connection: sqlite3.Connection, tenant: str, user_ids: Collection[str]) -> dict[str, Counts]:
    """See `Store.counts`."""
    return {user_id: _counts(connection, tenant, user_id) for user_id in user_ids}


def _counts(connection: sqlite3.Connection, tenant: str, user_id: str) -> Counts:
    few = connection.execute(FEW_COUNTS, (tenant, user_id)).fetchall()
    if len(few) <= MAX_TYPES:
        # The sums and the order cost SQLite as much again as counting does.
        few.sort(key=lambda row: (-row[2], row[0]))
        unseen, total = sum(row[1] for row in few), sum(row[2] for row in few)
        return Counts(unseen, total, {type_: TypeCounts(*of_type) for type_, *of_type in few})
    rows = connection.execute(COUNTS, (tenant, user_id)).fetchall()
    [*_, unseen, total] = rows[0] if rows else (0, 0)
    return Counts(unseen, total, {type_: TypeCounts(*of_type) for type_, *of_type, _, _ in rows})


def welcomes(connection: sqlite3.Connection, asked: Sequence[WelcomeAsked]) -> list[Welcome | Exception]:
    """What becomes of each. In one transaction: to begin and end one takes a third of a reading."""
    connection.execute("BEGIN")
    try:
        return [_outcome(connection, each) for each in asked]
    finally:
        if connection.in_transaction:  # some errors of the disk end it
            connection.execute("COMMIT")


def _outcome(connection: sqlite3.Connection, asked: WelcomeAsked) -> Welcome | Exception:
    try:
        return _welcome(connection, *asked)
    except Exception as exc:
        return as_store_error(exc)  # what cannot be read of one user is no business of the others


def _welcome(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    unseen_limit: int,
    with_counts: bool,
    changes_limit: int,
    after: tuple[int, str],
) -> Welcome:
    """See `Store.welcome`."""
    since = known_since(connection, tenant, user_id)
    if since is None:
        return Welcome(None)  # nothing was ever stored for them
    return Welcome(
        since,
        unseen(connection, tenant, user_id, None, unseen_limit) if unseen_limit else (),
        _counts(connection, tenant, user_id) if with_counts else NO_COUNTS,
        changes(connection, tenant, user_id, after, changes_limit) if changes_limit else (),
    )


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
    is_for_a_frame: bool = False,
) -> list[Document]:
    """Those of the rows of a statement that begins with `_SELECT`. `is_for_a_frame`: of long ones no more than go into
    a frame, and one; the others are not even read."""
    # Closed also if a row cannot be read, or this reader would see nothing new as long as the error is looked at.
    with contextlib.closing(connection.execute(statement, values)) as rows:
        return _read_rows(tenant, user_id, rows, is_for_a_frame)


def _read_rows(tenant: str, user_id: str, rows: sqlite3.Cursor, is_for_a_frame: bool) -> list[Document]:
    # Most of a reading's Python is in this and the two functions below. Columns go by their places, each with a name:
    # to pass on parts of a row takes longer. An instant, which takes as long to make as all the rest, is made once
    # where it is the same.
    documents = []
    size = 0
    for id_, created, updated, rev, seen, gone, nid, at, type_, title, text, url, icon, image, data in rows:
        notification = read_notification(tenant, nid, at, type_, title, text, url, icon, image, data)
        documents.append(read_document(user_id, notification, at, id_, created, updated, rev, seen, gone))
        size += len(text) + (0 if data is None else len(data))
        # `overflow` decides, as whoever reads on goes by it; but it takes longer.
        if is_for_a_frame and size > MAX_CHARS_PER_FRAME and overflow(documents):
            break
    return documents


def read_document(
    user_id: str,
    notification: Notification,
    accepted_ms: int,
    id_: bytes,
    created_ms: int,
    updated_ms: int,
    rev: int,
    seen: int,
    deleted_ms: int | None,
) -> Document:
    """A document of this notification, which was created at `accepted_ms`, in the columns `DOCUMENT`."""
    created_at = notification.created_at if created_ms == accepted_ms else from_ms(created_ms)
    return Document(
        id_.hex(),
        user_id,
        notification,
        created_at,
        created_at if updated_ms == created_ms else from_ms(updated_ms),
        rev,
        seen != 0,
        deleted_ms is not None,
        None if deleted_ms is None else from_ms(deleted_ms),
    )


def read_notification(
    tenant: str,
    nid: bytes,
    accepted_ms: int,
    type_: str,
    title: str,
    content: str,
    url: str,
    icon: str,
    image: str,
    data: str | None,
) -> Notification:
    """The notification in the columns `NOTIFICATION`."""
    value = None if data is None else json.loads(data)
    accepted_at = from_ms(accepted_ms)
    return Notification(nid.hex(), tenant, accepted_at, content, type_, title, url, icon, image, value)


# -- what the statements need --------------------------------------------------------------------------------


def user_key(connection: sqlite3.Connection, tenant: str, user_id: str) -> int | None:
    """The key of a user; None if nothing was ever stored for them."""
    row = connection.execute(f"SELECT {USER}", (tenant, user_id)).fetchone()
    return None if row[0] is None else int(row[0])


def beyond(user: int | None, after: Position, limit: int) -> dict[str, Any]:
    """What the statements for the oldest unseen ask for."""
    created_at, id_ = after
    return {"user": user, "created_at": created_at, "id": id_, "limit": limit}
