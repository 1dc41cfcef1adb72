"""Sign-outs in the embedded store: what each verb of the port does on a connection.

`sign_outs` has the last of each user, `sign_out_log` the latest ones in the order in which they were written down. A
server that asks several times a second finds what is new in the log; whoever comes from further back reads all.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.grants import SignOut
from server.store import STEP, SignOutCursor, SignOutPage
from server.store.sqlite_access import sequences
from server.store.sqlite_schema import from_ms, to_ms

LOGGED = 10_000
"""How many the log has: what is written in seconds."""


@dataclass(frozen=True, slots=True)
class _Place(SignOutCursor):
    """All up to this `number` have been read, or will have been at the end of a reading of all. `user`: how far that
    has come, the last tenant and user id; None: none is under way."""

    number: int
    user: tuple[str, str] | None = None


_BEFORE_ALL = ("", "")


def sign_out(connection: sqlite3.Connection, tenant: str, user_id: str, at: datetime) -> None:
    """See `Directory.sign_out`."""
    user = (tenant, user_id)
    connection.execute(
        "INSERT INTO sign_outs VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = max(at + ?, excluded.at)",
        (*user, to_ms(at), STEP // timedelta(milliseconds=1)),
    )
    row = connection.execute("SELECT * FROM sign_outs WHERE (tenant, user_id) = (?, ?)", user).fetchone()
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'sign_out_sequence'")
    number = sequences(connection).sign_outs
    connection.execute("INSERT INTO sign_out_log VALUES (?, ?, ?, ?)", (number, *row))
    connection.execute("DELETE FROM sign_out_log WHERE number <= ?", (number - LOGGED,))


def page(connection: sqlite3.Connection, after: SignOutCursor | None, limit: int) -> SignOutPage:
    """See `Directory.sign_outs`."""
    connection.execute("SAVEPOINT sign_outs")  # the number and the rows are of one moment
    try:
        last = sequences(connection).sign_outs
        place = after if isinstance(after, _Place) else _Place(last, _BEFORE_ALL)
        if place.user is None and not last - LOGGED <= place.number <= last:
            place = _Place(last, _BEFORE_ALL)  # the log does not reach back so far
        if place.user is None:
            return _some_new(connection, place.number, limit)
        return _some_of_all(connection, place.number, place.user, limit)
    finally:
        connection.execute("RELEASE sign_outs")


def _some_of_all(
    connection: sqlite3.Connection, number: int, after: tuple[str, str], limit: int
) -> SignOutPage:
    rows = connection.execute(
        "SELECT tenant, user_id, at FROM sign_outs WHERE (tenant, user_id) > (?, ?)"
        " ORDER BY tenant, user_id LIMIT ?",
        (*after, limit),
    ).fetchall()
    is_last = len(rows) < limit
    cursor = _Place(number) if is_last else _Place(number, rows[-1][:2])
    return _page(rows, cursor, is_last)


def _some_new(connection: sqlite3.Connection, number: int, limit: int) -> SignOutPage:
    rows = connection.execute(
        "SELECT tenant, user_id, at, number FROM sign_out_log WHERE number > ? ORDER BY number LIMIT ?",
        (number, limit),
    ).fetchall()
    return _page([row[:3] for row in rows], _Place(rows[-1][3] if rows else number), len(rows) < limit)


def _page(rows: list[tuple[str, str, int]], cursor: _Place, is_last: bool) -> SignOutPage:
    found = tuple(SignOut(tenant, user_id, from_ms(at)) for tenant, user_id, at in rows)
    return SignOutPage(found, cursor, is_last)


def forget(connection: sqlite3.Connection, before: datetime, limit: int) -> int:
    """Drop up to `limit` from before this instant; how many those were."""
    return connection.execute(
        "DELETE FROM sign_outs WHERE (tenant, user_id) IN"
        " (SELECT tenant, user_id FROM sign_outs WHERE at < ? LIMIT ?)",
        (to_ms(before), limit),
    ).rowcount


def erase(connection: sqlite3.Connection, tenant: str, limit: int) -> int:
    """Drop up to `limit` of this tenant, and what the log has of it; how many those were."""
    connection.execute("DELETE FROM sign_out_log WHERE tenant = ?", (tenant,))
    return connection.execute(
        "DELETE FROM sign_outs WHERE (tenant, user_id) IN"
        " (SELECT tenant, user_id FROM sign_outs WHERE tenant = ? LIMIT ?)",
        (tenant, limit),
    ).rowcount
