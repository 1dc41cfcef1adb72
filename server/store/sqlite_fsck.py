"""Looking through a whole file of the embedded store: its parts against each other. Blocks; for the command line. What
can be wrong is in `sqlite_fsck_kinds`.

Looking is done in one read transaction, also while a server runs; mending takes the folder for itself.
"""

# ruff: noqa: S608  # statements are put together from texts of this package only

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from server.errors import StartupError
from server.folder_lock import FolderLock
from server.store.fsck import Finding, Report
from server.store.sqlite_errors import opening
from server.store.sqlite_fsck_kinds import KINDS
from server.store.sqlite_schema import VERSION, check, open_reader, open_writer, version_of

BUSY_TIMEOUT_S = 10.0

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


def look(path: Path) -> Report:
    """Raises `StartupError`, `StoreUnavailable`."""
    with opening(path), closing(_open(path)) as connection:
        return _look(connection)


def mend(path: Path) -> Report:
    """Mend all that can be; what is left then. Raises as `look`."""
    lock = FolderLock(path.parent)
    lock.acquire()
    try:
        with opening(path):
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
