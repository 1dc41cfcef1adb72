"""The mail that is owed, in the embedded store: claims, leases and what became of them. Knows no threads and no clock.

Functions that write run inside a transaction of the caller. Only those who are still owed a mail have a row in
`mail_recipients`; those whose mail was refused for good are kept in `refused_mail`, and the text in `mails` with both.
"""

# ruff: noqa: S608  # statements are put together from texts of this module and question marks only

from __future__ import annotations

import secrets
import sqlite3
from datetime import datetime, timedelta

from server.messages import EmailDuty, Mail, MailRecipient
from server.store import MailCounts, MailJob, MailOutcome
from server.store.sqlite_schema import from_ms, to_ms

# Of a tenant that is removed no mail goes out. `hold` takes what it is owed out of the indexes; this leaves out the few
# that come later, from a server that has not heard of it yet or whose mail was on its way. CROSS JOIN: in the order of
# the index.
_OWED = """
    mails m CROSS JOIN notifications n ON n.key = m.notification
    AND n.tenant NOT IN (SELECT name FROM tenants WHERE removed_at IS NOT NULL)
"""

DUE = f"SELECT m.notification FROM {_OWED} WHERE m.due_at <= ? ORDER BY m.due_at, m.notification LIMIT ?"

NEXT_DUE = f"SELECT m.due_at FROM {_OWED} WHERE m.due_at IS NOT NULL ORDER BY m.due_at LIMIT 1"

NEXT_LAPSE = f"""
    SELECT m.leased_until FROM {_OWED} WHERE m.leased_until IS NOT NULL ORDER BY m.leased_until LIMIT 1
"""


def add(connection: sqlite3.Connection, key: int, duty: EmailDuty) -> None:
    """Owe these mails for the notification with this key."""
    mail = duty.mail
    connection.execute(
        "INSERT INTO mails (notification, subject, content, subtype, forced, due_at) VALUES (?, ?, ?, ?, ?, ?)",
        (
            key,
            mail.subject,
            mail.content,
            mail.subtype,
            mail.forced,
            min(to_ms(recipient.due_at) for recipient in duty.recipients),
        ),
    )
    connection.executemany(
        "INSERT INTO mail_recipients (notification, user_id, email, due_at, accepted_online)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            (key, each.user_id, each.email, to_ms(each.due_at), each.accepted_online)
            for each in duty.recipients
        ),
    )


def claim(
    connection: sqlite3.Connection, now: datetime, lease_s: float, limit: int, recipients: int
) -> list[MailJob]:
    """See `Store.claim_mail`."""
    now_ms, until_ms = to_ms(now), to_ms(now + timedelta(seconds=lease_s))
    lapsed = connection.execute(
        "SELECT notification FROM mails WHERE leased_until <= ?", (now_ms,)
    ).fetchall()
    for (key,) in lapsed:
        reschedule(connection, key, now_ms)
    due = connection.execute(DUE, (now_ms, limit)).fetchall()
    return [_claim(connection, key, now_ms, until_ms, recipients) for (key,) in due]


def settle(connection: sqlite3.Connection, job: MailJob, outcome: MailOutcome, now: datetime) -> bool:
    """See `Store.settle_mail`."""
    held = connection.execute(
        "SELECT notification FROM mail_recipients WHERE lease = ? AND notification ="
        " (SELECT key FROM notifications WHERE nid = ?) LIMIT 1",
        (job.lease, bytes.fromhex(job.nid)),
    ).fetchone()
    if held is None:
        return False
    key, now_ms = held[0], to_ms(now)
    connection.executemany(
        "INSERT INTO refused_mail (notification, user_id, email, code, reason, refused_at, attempts)"
        f" SELECT notification, user_id, email, ?, ?, ?, attempts + 1 FROM mail_recipients WHERE {_IS_HELD}",
        ((each.code, each.reason, now_ms, key, each.user_id, job.lease) for each in outcome.refused),
    )
    connection.executemany(
        f"DELETE FROM mail_recipients WHERE {_IS_HELD}",
        ((key, user_id, job.lease) for user_id in _done(outcome)),
    )
    connection.executemany(
        # What it waited for anything but the mail server's will does not count (see `MailRecipient`).
        "UPDATE mail_recipients SET attempts = attempts + :tried,"
        " failing_since = coalesce(failing_since + :until - due_at, CASE WHEN :tried THEN :now END),"
        " due_at = :due_at, lease = NULL, leased_until = NULL, failed_at = :now, code = :code, reason = :reason"
        " WHERE notification = :key AND user_id = :user_id AND lease = :lease",
        (
            {
                "tried": not each.is_untried,
                "until": to_ms(each.retry_at) if each.is_untried else now_ms,
                "now": now_ms,
                "due_at": to_ms(each.retry_at),
                "code": each.code,
                "reason": each.reason,
                "key": key,
                "user_id": each.user_id,
                "lease": job.lease,
            }
            for each in outcome.retry
        ),
    )
    reschedule(connection, key, now_ms)
    return True


def end_leases(connection: sqlite3.Connection, now: datetime) -> None:
    """Make everything leased due at once: whoever held the leases has ended."""
    now_ms = to_ms(now)
    leased = connection.execute("SELECT notification FROM mails WHERE leased_until IS NOT NULL").fetchall()
    connection.execute("UPDATE mail_recipients SET lease = NULL, leased_until = NULL WHERE lease IS NOT NULL")
    for (key,) in leased:
        reschedule(connection, key, now_ms)


def follow_clock(connection: sqlite3.Connection, now: datetime, set_by_s: float) -> None:
    """Let all that is to come be as far away as it was before the clock was set."""
    now_ms, step_ms = to_ms(now), round(set_by_s * 1000)
    values = {"step": step_ms, "past": min(now_ms, now_ms - step_ms)}
    # As far before `due_at` as it was: see `MailRecipient`.
    connection.execute(
        "UPDATE mail_recipients SET failing_since = failing_since + max(due_at + :step, :past) - due_at"
        " WHERE due_at > :past",
        values,
    )
    for table in ("mails", "mail_recipients"):
        for column in ("due_at", "leased_until"):
            # What had come already has come all the same.
            connection.execute(
                f"UPDATE {table} SET {column} = max({column} + :step, :past) WHERE {column} > :past", values
            )


def hold(connection: sqlite3.Connection, tenant: str) -> None:
    """Let none of this tenant's mail become due, as it was removed."""
    connection.execute(
        "UPDATE mails SET due_at = NULL, leased_until = NULL WHERE notification IN"
        " (SELECT m.notification FROM mails m CROSS JOIN notifications n ON n.key = m.notification"
        " WHERE n.tenant = ?)",
        (tenant,),
    )


def next_due(connection: sqlite3.Connection) -> datetime | None:
    """See `Store.next_mail_due`. What a lease holds becomes due when the lease ends."""
    found = [connection.execute(statement).fetchone() for statement in (NEXT_DUE, NEXT_LAPSE)]
    return min((from_ms(row[0]) for row in found if row is not None), default=None)


def counts(connection: sqlite3.Connection) -> MailCounts:
    """See `Store.mail_counts`."""
    return MailCounts(
        *connection.execute(
            "SELECT (SELECT count(*) FROM mail_recipients), (SELECT count(*) FROM refused_mail)"
        ).fetchone()
    )


IS_FREE = "(leased_until IS NULL OR leased_until <= :now)"

# Others may have been dropped, or claimed by somebody else, since.
_IS_HELD = "notification = ? AND user_id = ? AND lease = ?"


def _claim(connection: sqlite3.Connection, key: int, now_ms: int, until_ms: int, limit: int) -> MailJob:
    lease = secrets.token_hex(12)
    recipients = connection.execute(
        "SELECT user_id, email, due_at, accepted_online, attempts, failing_since FROM mail_recipients"
        f" WHERE notification = :key AND due_at <= :now AND {IS_FREE} ORDER BY due_at, user_id LIMIT :limit",
        {"key": key, "now": now_ms, "limit": limit},
    ).fetchall()
    connection.executemany(
        "UPDATE mail_recipients SET lease = ?, leased_until = ? WHERE notification = ? AND user_id = ?",
        ((lease, until_ms, key, user_id) for user_id, *_ in recipients),
    )
    nid, tenant, created_at, subject, content, subtype, forced = connection.execute(
        "SELECT nid, tenant, created_at, subject, m.content, subtype, forced"
        " FROM mails m JOIN notifications n ON n.key = m.notification WHERE m.notification = ?",
        (key,),
    ).fetchone()
    reschedule(connection, key, now_ms)
    return MailJob(
        nid=nid.hex(),
        tenant=tenant,
        created_at=from_ms(created_at),
        mail=Mail(subject, content, subtype, bool(forced)),
        recipients=tuple(
            MailRecipient(
                user_id,
                email,
                from_ms(due_at),
                bool(accepted_online),
                attempts,
                None if failing_since is None else from_ms(failing_since),
            )
            for user_id, email, due_at, accepted_online, attempts, failing_since in recipients
        ),
        lease=lease,
    )


def _done(outcome: MailOutcome) -> list[str]:
    """The users who are no longer owed the mail."""
    done = [recipient.user_id for recipient in (*outcome.sent, *outcome.dropped)]
    return done + [refused.user_id for refused in outcome.refused]


def reschedule(connection: sqlite3.Connection, key: int, now_ms: int) -> None:
    """Work out anew when the mail is due and leased until; forget it if nobody is owed it, nor was refused it."""
    values = {"key": key, "now": now_ms}
    connection.execute(
        f"""
        UPDATE mails SET
            due_at = (SELECT min(due_at) FROM mail_recipients WHERE notification = :key AND {IS_FREE}),
            leased_until =
                (SELECT min(leased_until) FROM mail_recipients WHERE notification = :key AND leased_until > :now)
        WHERE notification = :key
        """,
        values,
    )
    connection.execute(
        "DELETE FROM mails WHERE notification = :key AND due_at IS NULL AND leased_until IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM refused_mail WHERE notification = :key)",
        values,
    )
