"""Changing the documents of the embedded store, as the verbs of the port do, on a connection. Knows no threads and no
clock. Adding: see `sqlite_documents`; reading: `sqlite_reading`.

All of it runs inside a transaction of the caller, and nobody else writes meanwhile: what is found is what is changed.
A change leaves `marks` as they are, so that nobody is sent again what comes back; and where `acked_at` was not written
down, as before version 3, it keeps the time of the change before, which was the acknowledgement.
"""

# ruff: noqa: S608  # statements are put together from texts of this package and question marks only

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from server.store import Change
from server.store.sqlite_reading import (
    FIRST,
    MAX_REV,
    OLDEST_UNSEEN,
    OLDEST_UNSEEN_UP_TO,
    beyond,
    user_key,
)
from server.store.sqlite_schema import to_ms
from server.store.sqlite_values import id_list, portions, question_marks

NextRev = Callable[[], int]

_SEE = "seen = 1, acked_at = coalesce(acked_at, :now)"
_UNSEE = "seen = 0, acked_at = coalesce(acked_at, updated_at)"
_DELETE = """
    deleted_at = :now, acked_at = coalesce(acked_at, CASE WHEN seen THEN updated_at ELSE :now END)
"""
_RESTORE = "deleted_at = NULL, acked_at = coalesce(acked_at, updated_at)"

_KEPT = "deleted_at IS NULL"
_TOMBSTONE = "deleted_at IS NOT NULL"


def mark_seen(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    ids: Sequence[str],
    now: datetime,
    next_rev: NextRev,
) -> Change:
    """See `Store.mark_seen`."""
    user, found = _find(connection, tenant, user_id, ids, _KEPT)
    unseen = [id_ for id_, seen in found.items() if not seen]
    return _change(connection, user, found, unseen, _SEE, now, next_rev)


def mark_all_seen(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    limit: int,
    up_to: int | None,
    now: datetime,
    next_rev: NextRev,
) -> Change:
    """See `Store.mark_all_seen`."""
    user = user_key(connection, tenant, user_id)
    values = beyond(user, FIRST, limit)
    if up_to is None:
        rows = connection.execute(OLDEST_UNSEEN, values)
    else:
        # No document has a rev of less than 1.
        rows = connection.execute(OLDEST_UNSEEN_UP_TO, {**values, "up_to": max(min(up_to, MAX_REV), 0)})
    ids = [id_ for _, id_ in rows.fetchall()]
    return _change(connection, user, ids, ids, _SEE, now, next_rev)


def mark_unseen(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    ids: Sequence[str],
    now: datetime,
    next_rev: NextRev,
) -> Change:
    """See `Store.mark_unseen`."""
    user, found = _find(connection, tenant, user_id, ids, _KEPT)
    seen = [id_ for id_, is_seen in found.items() if is_seen]
    return _change(connection, user, found, seen, _UNSEE, now, next_rev)


def delete(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    ids: Sequence[str],
    now: datetime,
    next_rev: NextRev,
) -> Change:
    """See `Store.delete`."""
    user, found = _find(connection, tenant, user_id, ids, _KEPT)
    return _change(connection, user, found, list(found), _DELETE, now, next_rev)


def restore(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    ids: Sequence[str],
    now: datetime,
    next_rev: NextRev,
) -> Change:
    """See `Store.restore`."""
    user, found = _find(connection, tenant, user_id, ids, _TOMBSTONE)
    return _change(connection, user, found, list(found), _RESTORE, now, next_rev)


def _change(
    connection: sqlite3.Connection,
    user: int | None,
    found: Iterable[bytes],
    to_change: Sequence[bytes],
    change: str,
    now: datetime,
    next_rev: NextRev,
) -> Change:
    """Of the documents found change these; their new rev is one for all."""
    rev = next_rev() if to_change else None
    common = {"user": user, "now": to_ms(now), "rev": rev}
    connection.executemany(
        f"UPDATE documents SET {change}, updated_at = :now, rev = :rev WHERE user = :user AND id = :id",
        ({**common, "id": id_} for id_ in to_change),
    )
    return Change(tuple(id_.hex() for id_ in found), len(to_change), rev)


def _find(
    connection: sqlite3.Connection, tenant: str, user_id: str, ids: Sequence[str], which: str
) -> tuple[int | None, dict[bytes, bool]]:
    """The user's key, and those of the ids that are `which` documents of the user, in the order given -> whether
    seen."""
    user = user_key(connection, tenant, user_id)
    wanted = id_list(ids)
    states: dict[bytes, bool] = {}
    for some in portions(wanted):
        states.update(
            connection.execute(
                f"SELECT id, seen FROM documents WHERE user = ? AND {which} AND id IN ({question_marks(some)})",
                (user, *some),
            ).fetchall()
        )
    return user, {raw: states[raw] for raw in wanted if raw in states}
