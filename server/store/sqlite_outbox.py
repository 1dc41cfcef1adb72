"""What operators see and change of the mail in the embedded store. Keeps the `Outbox` contract.

The functions do on a connection what the verbs are to do; those that write run inside a transaction of the caller.
"""

# ruff: noqa: S608  # statements are put together from texts of this module only

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from server.errors import NotFound
from server.messages import Mail
from server.store import Mails, MailState, OutboxMail, OutboxNotification
from server.store.sqlite_directory import Run
from server.store.sqlite_mail import IS_FREE, reschedule
from server.store.sqlite_schema import from_ms, id_bytes, to_ms

# CROSS JOIN: in the order of the tables of mail, which is that of notifications, and of users within.
_ENTRIES = """
    SELECT n.nid, e.notification, e.user_id, e.email, e.attempts, e.code, e.reason, {columns}
    FROM {table} e CROSS JOIN notifications n ON n.key = e.notification
    WHERE (e.notification, e.user_id) > (:key, :user) AND e.notification <= :last AND n.tenant = :tenant AND {condition}
    ORDER BY e.notification, e.user_id LIMIT :limit
"""

_OWED = "e.due_at, CASE WHEN e.leased_until > :now THEN e.leased_until END, e.failed_at"

_CONDITIONS = {
    MailState.DUE: f"due_at <= :now AND {IS_FREE}",
    MailState.LEASED: "leased_until > :now",
    MailState.WAITING: f"due_at > :now AND {IS_FREE}",
}

DEAD = _ENTRIES.format(table="refused_mail", columns="NULL, NULL, e.refused_at", condition="TRUE")

OWED: dict[MailState | None, str] = {
    state: _ENTRIES.format(table="mail_recipients", columns=_OWED, condition=condition)
    for state, condition in ({None: "TRUE"} | _CONDITIONS).items()
}

_LAST_KEY = (1 << 63) - 1


class SQLiteOutbox:
    """See `Outbox`."""

    def __init__(self, write: Run, read: Run, clock: Callable[[], datetime]) -> None:
        self._write = write
        self._read = read
        self._clock = clock

    async def entries(
        self,
        tenant: str,
        *,
        nid: str | None = None,
        state: MailState | None = None,
        after: tuple[str, str] | None = None,
        limit: int,
    ) -> list[OutboxMail]:
        """See `Outbox.entries`."""
        return await self._read(lambda c: entries(c, self._clock(), tenant, nid, state, after, limit))

    async def find(self, tenant: str, nid: str) -> OutboxNotification:
        """See `Outbox.find`."""
        return await self._read(lambda c: find(c, tenant, nid))

    async def retry(self, tenant: str, mails: Mails) -> int:
        """See `Outbox.retry`."""
        return await self._write(lambda c: change(c, self._clock(), tenant, mails, RETRY))

    async def drop(self, tenant: str, mails: Mails) -> int:
        """See `Outbox.drop`."""
        return await self._write(lambda c: change(c, self._clock(), tenant, mails, DROP))


# -- looking -------------------------------------------------------------------------------------------------


def entries(
    connection: sqlite3.Connection,
    now: datetime,
    tenant: str,
    nid: str | None,
    state: MailState | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[OutboxMail]:
    """See `Outbox.entries`."""
    now_ms = to_ms(now)
    values: dict[str, Any] = {"tenant": tenant, "now": now_ms, "limit": limit, "key": -1, "user": ""}
    values["last"] = _LAST_KEY
    if after is not None:
        key = _key(connection, tenant, after[0])
        if key is None:
            return []
        values |= {"key": key, "user": after[1]}
    if nid is not None:
        key = _key(connection, tenant, nid)
        if key is None:
            return []
        values |= {"last": key} | ({"key": key} if values["key"] < key else {})
    found: list[Iterable[Sequence[Any]]] = []
    if state is not MailState.DEAD:
        found.append(connection.execute(OWED[state], values))
    if state in (None, MailState.DEAD):
        found.append(connection.execute(DEAD, values))
    merged = heapq.merge(*found, key=lambda row: (row[1], row[2]))
    return [_entry(row, now_ms) for row in islice(merged, limit)]


def find(connection: sqlite3.Connection, tenant: str, nid: str) -> OutboxNotification:
    """See `Outbox.find`."""
    key = _key(connection, tenant, nid)
    has_mail = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM mail_recipients WHERE notification = :key)"
        " OR EXISTS (SELECT 1 FROM refused_mail WHERE notification = :key)",
        {"key": key},
    ).fetchone()[0]
    if not has_mail:
        raise NotFound("there is no mail of such a notification in the outbox")
    created_at, subject, content, subtype, forced = connection.execute(
        "SELECT n.created_at, m.subject, m.content, m.subtype, m.forced"
        " FROM notifications n LEFT JOIN mails m ON m.notification = n.key WHERE n.key = ?",
        (key,),
    ).fetchone()
    mail = None if subject is None else Mail(subject, content, subtype, bool(forced))
    return OutboxNotification(nid, from_ms(created_at), mail)


def _key(connection: sqlite3.Connection, tenant: str, nid: str) -> int | None:
    row = connection.execute(
        "SELECT key FROM notifications WHERE nid = ? AND tenant = ?", (id_bytes(nid), tenant)
    ).fetchone()
    return None if row is None else int(row[0])


def _entry(row: Sequence[Any], now_ms: int) -> OutboxMail:
    nid, _, user_id, email, attempts, code, reason, due_at, leased_until, failed_at = row
    if due_at is None:
        state = MailState.DEAD
    elif leased_until is not None:
        state = MailState.LEASED
    else:
        state = MailState.DUE if due_at <= now_ms else MailState.WAITING
    return OutboxMail(
        nid=nid.hex(),
        user_id=user_id,
        email=email,
        state=state,
        due_at=_instant(due_at),
        leased_until=_instant(leased_until),
        attempts=attempts,
        failed_at=_instant(failed_at),
        code=code,
        reason=reason,
    )


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else from_ms(ms)


# -- changing: statements for the mails of one notification, `{}` stands for the condition that it is to one user ------

# A dead letter of an earlier version may have lost its text: it stays.
RETRY = (
    "UPDATE mail_recipients SET due_at = :now, attempts = 0, failing_since = NULL, lease = NULL, leased_until = NULL"
    f" WHERE notification = :key AND due_at > :now AND {IS_FREE} {{}}",
    "INSERT INTO mail_recipients (notification, user_id, email, due_at, accepted_online, failed_at, code, reason)"
    " SELECT notification, user_id, email, :now, 0, refused_at, code, reason FROM refused_mail"
    " WHERE notification = :key AND EXISTS (SELECT 1 FROM mails WHERE notification = :key) {}",
)
_FORGET_RETRIED = (
    "DELETE FROM refused_mail WHERE notification = :key"
    " AND user_id IN (SELECT user_id FROM mail_recipients WHERE notification = :key)"
)

DROP = (
    f"DELETE FROM mail_recipients WHERE notification = :key AND {IS_FREE} {{}}",
    "DELETE FROM refused_mail WHERE notification = :key {}",
)


def change(
    connection: sqlite3.Connection, now: datetime, tenant: str, mails: Mails, statements: Sequence[str]
) -> int:
    """See `Outbox.retry` and `Outbox.drop`."""
    changed = 0
    for nid, user_ids in mails.items():
        key = _key(connection, tenant, nid)
        if key is None:
            continue
        values = {"key": key, "now": to_ms(now)}
        for statement in statements:
            if user_ids is None:
                changed += connection.execute(statement.format(""), values).rowcount
            else:
                each = ({**values, "user": user_id} for user_id in set(user_ids))
                changed += connection.executemany(statement.format("AND user_id = :user"), each).rowcount
        connection.execute(_FORGET_RETRIED, values)
        reschedule(connection, key, values["now"])
    return changed
