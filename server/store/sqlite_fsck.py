"""Looking through a whole file of the embedded store: its parts against each other. Blocks; for the command line.

Looking is done in one read transaction, also while a server runs; mending takes the folder for itself.
"""

# ruff: noqa: S608  # statements are put together from texts of this module only

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.errors import StartupError
from server.folder_lock import FolderLock
from server.store.fsck import Finding, Report
from server.store.sqlite_schema import VERSION, cannot_open, check, open_reader, open_writer, version_of

BUSY_TIMEOUT_S = 10.0

_NOW = "CAST(1000 * (julianday('now') - 2440587.5) AS INTEGER)"

_NEVER = (1 << 63) - 1

_COUNTS = {
    "documents": "SELECT count(*) FROM documents WHERE deleted_at IS NULL",
    "unseen": "SELECT count(*) FROM documents WHERE deleted_at IS NULL AND seen = 0",
    "tombstones": "SELECT count(*) FROM documents WHERE deleted_at IS NOT NULL",
    "notifications": "SELECT count(*) FROM notifications",
    "users": "SELECT count(*) FROM users",
    "tenants": "SELECT count(*) FROM tenants WHERE removed_at IS NULL",
    "mails_owed": "SELECT count(*) FROM mail_recipients",
    "mails_refused": "SELECT count(*) FROM refused_mail",
    "broadcasts": "SELECT count(*) FROM broadcasts",
    "idempotency_keys": "SELECT count(*) FROM once",
}

_DAMAGE = Finding(
    "file", "the file is damaged", "indexes are made anew; what else is damaged takes a backup", 0, ""
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """`find`: selects an example of each thing that is wrong, as `example`; `mend`: statements, in order."""

    code: str
    sentence: str
    remedy: str
    find: str
    mend: tuple[str, ...]


_ORPHAN_MAIL = "notification NOT IN (SELECT key FROM notifications)"
_UNUSED = """
    NOT EXISTS (SELECT 1 FROM documents d WHERE d.notification = n.key)
    AND NOT EXISTS (SELECT 1 FROM broadcasts b WHERE b.notification = n.key)
"""
_OTHER_TYPE = """
    documents d JOIN notifications n ON n.key = d.notification
    WHERE d.type IS NOT n.type OR d.created_at <> n.created_at
"""
_TWICE = """
    documents d WHERE d.deleted_at IS NULL AND EXISTS (
        SELECT 1 FROM documents o WHERE o.notification = d.notification AND o.user = d.user AND o.id < d.id
    )
"""
_RECIPIENTS = "FROM mail_recipients r WHERE r.notification = m.notification AND"
_DUE = f"(SELECT min(due_at) {_RECIPIENTS} r.leased_until IS NULL)"
_LEASED = f"(SELECT min(leased_until) {_RECIPIENTS} r.leased_until > {_NOW})"
# Those of removed tenants are held back. A lease that has run out may or may not be looked through already.
_OTHER_TIMES = f"""
    mails m JOIN notifications n ON n.key = m.notification
    WHERE n.tenant NOT IN (SELECT name FROM tenants WHERE removed_at IS NOT NULL)
    AND (coalesce(m.due_at, {_NEVER}) > {_DUE} OR coalesce(m.leased_until, {_NEVER}) > {_LEASED})
"""
_NO_TENANT = """
    SELECT tenant FROM users UNION SELECT tenant FROM notifications UNION SELECT tenant FROM api_keys
    UNION SELECT tenant FROM broadcasts UNION SELECT tenant FROM ways UNION SELECT tenant FROM once
    EXCEPT SELECT name FROM tenants
"""
_NO_EFFECT = f"""
    once o WHERE o.expires_at > {_NOW}
    AND NOT EXISTS (SELECT 1 FROM notifications n WHERE n.nid = o.nid AND n.tenant = o.tenant)
"""

KINDS = (
    _Kind(
        "documents-without-notification",
        "documents without their notification",
        "they are removed: nothing is known of what they said",
        "SELECT hex(id) AS example FROM documents WHERE notification NOT IN (SELECT key FROM notifications)",
        ("DELETE FROM documents WHERE notification NOT IN (SELECT key FROM notifications)",),
    ),
    _Kind(
        "documents-without-user",
        "documents of users that are not there",
        "they are removed: nobody can see them",
        "SELECT hex(id) AS example FROM documents WHERE user NOT IN (SELECT key FROM users)",
        ("DELETE FROM documents WHERE user NOT IN (SELECT key FROM users)",),
    ),
    _Kind(
        "documents-twice",
        "documents of which their users have another one of the same notification",
        "the later ones are deleted, as if by their users",
        f"SELECT hex(d.id) AS example FROM {_TWICE}",
        (
            "UPDATE meta SET value = value + 1 WHERE name = 'last_rev'",
            f"UPDATE documents SET deleted_at = {_NOW}, updated_at = {_NOW},"
            " rev = (SELECT value FROM meta WHERE name = 'last_rev')"
            f" WHERE (user, id) IN (SELECT d.user, d.id FROM {_TWICE})",
        ),
    ),
    _Kind(
        "documents-unlike-notification",
        "documents whose type or time is not that of their notification, by which they are counted and ordered",
        "they get those of the notification",
        f"SELECT hex(d.id) AS example FROM {_OTHER_TYPE}",
        (
            "UPDATE documents SET (type, created_at) ="
            " (SELECT n.type, n.created_at FROM notifications n WHERE n.key = notification)"
            f" WHERE (user, id) IN (SELECT d.user, d.id FROM {_OTHER_TYPE})",
        ),
    ),
    _Kind(
        "revs-beyond-clock",
        "documents with a rev that is not given out yet, and will be given out again",
        "the clock is set forward",
        "SELECT hex(id) AS example FROM documents WHERE rev > (SELECT value FROM meta WHERE name = 'last_rev')",
        ("UPDATE meta SET value = (SELECT max(rev) FROM documents) WHERE name = 'last_rev'",),
    ),
    _Kind(
        "broadcasts-without-notification",
        "open broadcasts without their notification",
        "they are removed",
        f"SELECT notification AS example FROM broadcasts WHERE {_ORPHAN_MAIL}",
        (f"DELETE FROM broadcasts WHERE {_ORPHAN_MAIL}",),
    ),
    _Kind(
        "notifications-without-documents",
        "notifications that nobody has",
        "they are removed, with their mail",
        f"SELECT hex(n.nid) AS example FROM notifications n WHERE {_UNUSED}",
        (f"DELETE FROM notifications AS n WHERE {_UNUSED}",),
    ),
    _Kind(
        "mail-without-notification",
        "mails without their notification",
        "they are removed",
        f"SELECT notification AS example FROM mails WHERE {_ORPHAN_MAIL}"
        f" UNION SELECT notification FROM mail_recipients WHERE {_ORPHAN_MAIL}"
        f" UNION SELECT notification FROM refused_mail WHERE {_ORPHAN_MAIL}",
        (
            f"DELETE FROM mails WHERE {_ORPHAN_MAIL}",
            f"DELETE FROM mail_recipients WHERE {_ORPHAN_MAIL}",
            f"DELETE FROM refused_mail WHERE {_ORPHAN_MAIL}",
        ),
    ),
    _Kind(
        "mail-without-text",
        "recipients of mails whose text is not there",
        "they are owed it no longer",
        "SELECT email AS example FROM mail_recipients"
        " WHERE notification NOT IN (SELECT notification FROM mails)",
        ("DELETE FROM mail_recipients WHERE notification NOT IN (SELECT notification FROM mails)",),
    ),
    _Kind(
        "mail-without-recipients",
        "mails for nobody",
        "they are removed",
        "SELECT notification AS example FROM mails m"
        " WHERE NOT EXISTS (SELECT 1 FROM mail_recipients r WHERE r.notification = m.notification)"
        " AND NOT EXISTS (SELECT 1 FROM refused_mail r WHERE r.notification = m.notification)",
        (
            "DELETE FROM mails WHERE notification NOT IN (SELECT notification FROM mail_recipients)"
            " AND notification NOT IN (SELECT notification FROM refused_mail)",
        ),
    ),
    _Kind(
        "leases-in-part",
        "leases of mail or of a broadcast without an end, or without a holder: nobody else would get it",
        "they end",
        "SELECT email AS example FROM mail_recipients WHERE (lease IS NULL) <> (leased_until IS NULL)"
        " UNION ALL SELECT notification FROM broadcasts WHERE (lease IS NULL) <> (leased_until IS NULL)",
        (
            "UPDATE mail_recipients SET lease = NULL, leased_until = NULL"
            " WHERE (lease IS NULL) <> (leased_until IS NULL)",
            "UPDATE broadcasts SET lease = NULL, leased_until = NULL"
            " WHERE (lease IS NULL) <> (leased_until IS NULL)",
        ),
    ),
    _Kind(
        "mail-at-wrong-times",
        "mails that are due later than their recipients, or never",
        "they get the times of their recipients",
        f"SELECT m.notification AS example FROM {_OTHER_TIMES}",
        (
            # What a lease holds that has run out is due, too.
            f"UPDATE mails AS m SET due_at = (SELECT min(due_at) {_RECIPIENTS} NOT"
            f" coalesce(r.leased_until > {_NOW}, 0)), leased_until = {_LEASED}"
            f" WHERE notification IN (SELECT m.notification FROM {_OTHER_TIMES})",
        ),
    ),
    _Kind(
        "keys-without-effect",
        "idempotency keys of requests whose notification is not there",
        "they are forgotten: the same request is carried out when it comes again",
        f"SELECT o.key AS example FROM {_NO_EFFECT}",
        (f"DELETE FROM once WHERE (tenant, key) IN (SELECT o.tenant, o.key FROM {_NO_EFFECT})",),
    ),
    _Kind(
        "tenants-unknown",
        "tenants that are not there, but have something",
        "they count as removed, and can be erased (tenant remove NAME --erase)",
        f"SELECT tenant AS example FROM ({_NO_TENANT})",
        (
            f"INSERT INTO tenants SELECT tenant, {_NOW}, {_NOW} FROM ({_NO_TENANT})",
            "UPDATE meta SET value = value + 1 WHERE name = 'access_sequence'",
        ),
    ),
    _Kind(
        "horizon-ahead",
        "tenants whose inboxes begin in the future: their clients drop everything, or read anew each time",
        "they begin now",
        f"SELECT tenant AS example FROM retention WHERE floor > {_NOW} + 60000 OR oldest_rev >> 16 > {_NOW} + 60000",
        (
            f"UPDATE retention SET floor = min(floor, {_NOW}) WHERE floor IS NOT NULL",
            f"UPDATE retention SET oldest_rev = min(oldest_rev, {_NOW} << 16)",
        ),
    ),
)


def look(path: Path) -> Report:
    """Raises `StartupError`, `StoreUnavailable`."""
    with _translated(path), closing(_open(path)) as connection:
        return _look(connection)


def mend(path: Path) -> Report:
    """Mend all that can be; what is left then. Raises as `look`."""
    lock = FolderLock(path.parent)
    lock.acquire()
    try:
        with _translated(path):
            _open(path).close()
            with closing(open_writer(path, BUSY_TIMEOUT_S)) as connection:
                _mend(connection)
                return _look(connection)
    finally:
        lock.release()


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise StartupError(f"{path}: there is no store")
    connection = open_reader(path, BUSY_TIMEOUT_S)
    try:
        check(connection, path)
        if version_of(connection) != VERSION:
            raise StartupError(
                f"{path} is of an older version: start the server once, which brings it up to date"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _look(connection: sqlite3.Connection) -> Report:
    connection.execute("BEGIN")  # all of it as of one moment
    try:
        counts = {what: int(connection.execute(text).fetchone()[0]) for what, text in _COUNTS.items()}
        return Report(counts, tuple(_findings(connection)))
    finally:
        connection.execute("ROLLBACK")


def _findings(connection: sqlite3.Connection) -> Iterator[Finding]:
    damages = [text for (text,) in connection.execute("PRAGMA integrity_check(100)")]
    if damages != ["ok"]:
        yield Finding(_DAMAGE.code, _DAMAGE.sentence, _DAMAGE.remedy, len(damages), str(damages[0]))
    for kind in KINDS:
        count, example = connection.execute(f"SELECT count(*), min(example) FROM ({kind.find})").fetchone()
        if count:
            yield Finding(kind.code, kind.sentence, kind.remedy, count, str(example))


def _mend(connection: sqlite3.Connection) -> None:
    """One kind after the other: what one mends may be the next one's damage."""
    if [text for (text,) in connection.execute("PRAGMA integrity_check(1)")] != ["ok"]:
        connection.execute("REINDEX")
    for kind in KINDS:
        if connection.execute(f"SELECT 1 FROM ({kind.find}) LIMIT 1").fetchone() is not None:
            connection.execute("BEGIN IMMEDIATE")
            for statement in kind.mend:
                connection.execute(statement)
            connection.execute("COMMIT")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as exc:
        raise cannot_open(path, exc) from exc
