"""Broadcasts in the embedded store. Keeps the `Broadcasts` contract.

The functions do on a connection what the verbs are to do; those that write run inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this module and question marks only

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta

from server.messages import Document, Notification
from server.store import Accepted, Broadcast, Once
from server.store import sqlite_documents as documents
from server.store import sqlite_once as keys
from server.store import sqlite_reading as reading
from server.store.sqlite_directory import Run
from server.store.sqlite_schema import to_ms
from server.store.sqlite_threads import Work
from server.store.sqlite_values import portions, question_marks

_NOT_REMOVED = "tenant NOT IN (SELECT name FROM tenants WHERE removed_at IS NOT NULL)"

# {}: a question mark for each of the tenants to be passed over.
NEXT = f"""
    SELECT notification, tenant, after FROM broadcasts
    WHERE {_NOT_REMOVED} AND tenant NOT IN ({{}}) AND (leased_until IS NULL OR leased_until <= ?)
    ORDER BY created_at, notification LIMIT 1
"""

# The notification of :after may be gone; of the same millisecond the user has no other one by then.
OPEN_OF = f"""
    SELECT {reading.NOTIFICATION} FROM broadcasts b CROSS JOIN notifications n ON n.key = b.notification
    WHERE b.tenant = :tenant AND (b.created_at, b.notification)
        > (:created_at, coalesce((SELECT key FROM notifications WHERE nid = :after), -1))
    AND NOT EXISTS (
        SELECT 1 FROM documents d INDEXED BY of_notification WHERE d.notification = b.notification
        AND d.user = (SELECT key FROM users WHERE tenant = :tenant AND user_id = :user_id)
    )
    ORDER BY b.created_at, b.notification LIMIT :limit
"""

# Without statistics SQLite would go through all documents of each user.
HAVING = """
    SELECT u.user_id FROM users u CROSS JOIN documents d INDEXED BY of_notification
    ON d.notification = ? AND d.user = u.key WHERE u.tenant = ? AND u.user_id
"""

_HELD = "notification = (SELECT key FROM notifications WHERE nid = ?) AND lease = ?"


class SQLiteBroadcasts:
    """See `Broadcasts`."""

    def __init__(
        self,
        write: Run,
        write_documents: Callable[[Work[list[Document]]], Awaitable[list[Document]]],
        read: Run,
        clock: Callable[[], datetime],
        next_rev: Callable[[], int],
    ) -> None:
        """`write_documents`: as `write`, for works that return new documents, of which users are to hear even if the
        caller does not wait any more."""
        self._write = write
        self._write_documents = write_documents
        self._read = read
        self._clock = clock
        self._next_rev = next_rev

    async def add(self, notification: Notification, once: Once | None = None) -> Accepted:
        """See `Broadcasts.add`."""
        # A second one at the same moment waits its turn in the queue of the thread that writes.
        return await self._write(lambda c: add(c, notification, once, self._clock()))

    async def claim(self, lease_s: float, passing_over: Collection[str] = ()) -> Broadcast | None:
        """See `Broadcasts.claim`."""
        others = tuple(passing_over)
        return await self._write(lambda c: claim(c, self._clock(), lease_s, others))

    async def expand(self, notification: Notification, user_ids: Sequence[str]) -> list[Document]:
        """See `Broadcasts.expand`."""
        return await self._write_documents(lambda c: expand(c, notification, user_ids, self._next_rev))

    async def give(self, user_id: str, notifications: Sequence[Notification]) -> list[Document]:
        """See `Broadcasts.give`."""
        return await self._write_documents(lambda c: give(c, user_id, notifications, self._next_rev))

    async def advance(self, broadcast: Broadcast, after: str, lease_s: float) -> bool:
        """See `Broadcasts.advance`."""
        return await self._write(lambda c: advance(c, broadcast, after, self._clock(), lease_s))

    async def finish(self, broadcast: Broadcast) -> bool:
        """See `Broadcasts.finish`."""
        return await self._write(lambda c: finish(c, broadcast))

    async def open_of(
        self, tenant: str, user_id: str, *, since: datetime, after: Notification | None, limit: int
    ) -> list[Notification]:
        """See `Broadcasts.open_of`."""
        return await self._read(lambda c: open_of(c, tenant, user_id, since, after, limit))

    async def count_open(self) -> int:
        """See `Broadcasts.count_open`."""
        return await self._read(count_open)


def add(
    connection: sqlite3.Connection, notification: Notification, once: Once | None, now: datetime
) -> Accepted:
    """See `Broadcasts.add`."""
    repeated = None if once is None else keys.repeated(connection, notification, once, now)
    if repeated is not None:
        return Accepted(repeated, is_repeat=True)
    key = documents.add_notification(connection, notification)
    connection.execute(
        "INSERT INTO broadcasts (notification, tenant, created_at) VALUES (?, ?, ?)",
        (key, notification.tenant, to_ms(notification.created_at)),
    )
    return Accepted(notification)


def claim(
    connection: sqlite3.Connection, now: datetime, lease_s: float, passing_over: Sequence[str]
) -> Broadcast | None:
    """See `Broadcasts.claim`."""
    statement = NEXT.format(question_marks(passing_over))
    found = connection.execute(statement, (*passing_over, to_ms(now))).fetchone()
    if found is None:
        return None
    key, tenant, after = found
    lease = secrets.token_hex(12)
    connection.execute(
        "UPDATE broadcasts SET lease = ?, leased_until = ? WHERE notification = ?",
        (lease, _until(now, lease_s), key),
    )
    row = connection.execute(
        f"SELECT {reading.NOTIFICATION} FROM notifications n WHERE n.key = ?", (key,)
    ).fetchone()
    return Broadcast(reading.read_notification(tenant, *row), after, lease)


def expand(
    connection: sqlite3.Connection,
    notification: Notification,
    user_ids: Sequence[str],
    next_rev: Callable[[], int],
) -> list[Document]:
    """See `Broadcasts.expand`. Nobody else writes between the question who has one and the answer to it."""
    row = connection.execute(
        "SELECT key FROM notifications WHERE nid = ?", (bytes.fromhex(notification.nid),)
    ).fetchone()
    # It may be finished, and gone if nobody had a document.
    key = documents.add_notification(connection, notification) if row is None else row[0]
    having = _having(connection, key, notification.tenant, user_ids)
    lacking = [user_id for user_id in user_ids if user_id not in having]
    if not lacking:
        return []
    return documents.add_documents(connection, key, notification, lacking, next_rev())


def give(
    connection: sqlite3.Connection,
    user_id: str,
    notifications: Sequence[Notification],
    next_rev: Callable[[], int],
) -> list[Document]:
    """See `Broadcasts.give`."""
    return [document for each in notifications for document in expand(connection, each, [user_id], next_rev)]


def _having(connection: sqlite3.Connection, key: int, tenant: str, user_ids: Sequence[str]) -> set[str]:
    """Those of the users who have a document of the notification with this key."""
    found: set[str] = set()
    for some in portions(user_ids):
        rows = connection.execute(
            f"{HAVING} IN ({question_marks(some)})",
            (key, tenant, *some),
        )
        found.update(user_id for (user_id,) in rows)
    return found


def advance(
    connection: sqlite3.Connection, broadcast: Broadcast, after: str, now: datetime, lease_s: float
) -> bool:
    """See `Broadcasts.advance`."""
    advanced = connection.execute(
        f"UPDATE broadcasts SET after = ?, leased_until = ? WHERE {_HELD} AND {_NOT_REMOVED}",
        (after, _until(now, lease_s), *_proof(broadcast)),
    )
    return advanced.rowcount == 1


def finish(connection: sqlite3.Connection, broadcast: Broadcast) -> bool:
    """See `Broadcasts.finish`."""
    if not connection.execute(f"DELETE FROM broadcasts WHERE {_HELD}", _proof(broadcast)).rowcount:
        return False
    # Nothing would ever erase the notification of a tenant without users.
    connection.execute(
        "DELETE FROM notifications WHERE nid = ?"
        " AND NOT EXISTS (SELECT 1 FROM documents WHERE notification = notifications.key)",
        (bytes.fromhex(broadcast.notification.nid),),
    )
    return True


def open_of(
    connection: sqlite3.Connection,
    tenant: str,
    user_id: str,
    since: datetime,
    after: Notification | None,
    limit: int,
) -> list[Notification]:
    """See `Broadcasts.open_of`."""
    values = {
        "tenant": tenant,
        "user_id": user_id,
        "created_at": to_ms(since if after is None else max(since, after.created_at)),
        "after": None if after is None else bytes.fromhex(after.nid),
        "limit": limit,
    }
    return [reading.read_notification(tenant, *row) for row in connection.execute(OPEN_OF, values)]


def count_open(connection: sqlite3.Connection) -> int:
    """See `Broadcasts.count_open`."""
    return int(connection.execute(f"SELECT count(*) FROM broadcasts WHERE {_NOT_REMOVED}").fetchone()[0])


def end_leases(connection: sqlite3.Connection) -> None:
    """Let everything be claimed at once: whoever held the leases has ended."""
    connection.execute("UPDATE broadcasts SET lease = NULL, leased_until = NULL WHERE lease IS NOT NULL")


def _until(now: datetime, lease_s: float) -> int:
    return to_ms(now + timedelta(seconds=lease_s))


def _proof(broadcast: Broadcast) -> tuple[bytes, str]:
    """What `_HELD` asks for."""
    return bytes.fromhex(broadcast.notification.nid), broadcast.lease
