"""Backup and restore of the embedded store. Blocks; for the command line.

A backup is a copy of the file as of one moment, which SQLite makes while the server reads and writes. What is restored
gets a new epoch: to clients it is another inbox, which they read anew, as the server has forgotten what it told them
after the backup.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from server.errors import StartupError
from server.folder_lock import FolderLock
from server.ids import new_id
from server.store import backup
from server.store.sqlite_errors import opening
from server.store.sqlite_schema import check, open_reader

NAME = "notifications.sqlite3"

KIND = "embedded"

BUSY_TIMEOUT_S = 10.0

_COUNTED = {
    "documents": "SELECT count(*) FROM documents WHERE deleted_at IS NULL",
    "deleted": "SELECT count(*) FROM documents WHERE deleted_at IS NOT NULL",
    "users": "SELECT count(*) FROM users",
    "mails": "SELECT count(*) FROM mail_recipients",
}


def take(path: Path, folder: Path) -> dict[str, int]:
    """Copy the store in the file `path` into an empty folder; how many there are of what. Raises `StartupError`,
    `StoreUnavailable`, `OSError`."""
    if not path.exists():
        raise StartupError(f"{path}: there is no store to be backed up")
    copy = folder / NAME
    with closing(_open(path)) as source:
        backup.create(copy).close()
        try:
            counts = _copy(source, path, copy)
        except sqlite3.Error as exc:
            raise StartupError(f"{path} cannot be copied to {copy}: {exc}") from exc
    with copy.open("rb+") as file:
        backup.sync(file)
    return counts


def _open(path: Path) -> sqlite3.Connection:
    with opening(path):
        source = open_reader(path, BUSY_TIMEOUT_S)
        try:
            check(source, path)
        except BaseException:
            source.close()
            raise
        return source


def _copy(source: sqlite3.Connection, path: Path, copy: Path) -> dict[str, int]:
    with closing(sqlite3.connect(copy, isolation_level=None)) as target:
        source.backup(target)  # in one step: a read transaction, which holds up nobody
        # One file, without a log beside it, however it is opened.
        target.execute("PRAGMA journal_mode = DELETE")
        found = [text for (text,) in target.execute("PRAGMA quick_check")]
        if found != ["ok"]:
            raise StartupError(f"{path} is damaged: {found[0]}")
        return {what: target.execute(text).fetchone()[0] for what, text in _COUNTED.items()}


def restore(folder: Path, path: Path) -> None:
    """Put a backup to the file `path`, where there is none, with a new epoch. Raises `StartupError`, `OSError`."""
    with _held(path):
        _refuse_used(path)
        new = path.with_name(f"{path.name}.restoring")
        new.unlink(missing_ok=True)  # of one that was killed
        try:
            with backup.create(new) as target, (folder / NAME).open("rb") as source:
                shutil.copyfileobj(source, target, 1024 * 1024)
                backup.sync(target)
            with opening(new):
                _renew(new)
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        backup.sync_folder(path.parent)


def renew_epoch(path: Path) -> None:
    """For a file that was put back by other means. Raises `StartupError`, `StoreUnavailable`."""
    if not path.exists():
        raise StartupError(f"{path}: there is no store")
    with _held(path), opening(path):
        _renew(path)


def _renew(path: Path) -> None:
    with closing(sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None)) as connection:
        check(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        changed = connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (new_id(),))
        if changed.rowcount != 1:
            raise StartupError(f"{path} is damaged: it has no epoch")


def _refuse_used(path: Path) -> None:
    for used in (path, path.with_name(f"{path.name}-wal")):
        if used.exists():
            raise StartupError(
                f"{used} is there already; a backup is not restored over a store: move it away first"
            )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """No server has the folder meanwhile."""
    lock = FolderLock(path.parent)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
