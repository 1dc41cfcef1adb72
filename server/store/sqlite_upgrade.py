"""Brings a file of the embedded store up to this version: one that is empty, or that an earlier version wrote.

For whoever holds the folder. Each step is a transaction, or a row of them that skips what is done already, and the
version is raised by the last one: so it can be interrupted anywhere, and goes on when the file is opened again.
Until then the earlier version can use the file, too.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from server.errors import StoreUnavailable
from server.store.sqlite_schema import (
    BROADCAST_TABLES,
    DIRECTORY_TABLES,
    INDEXES,
    NEW_MAIL_COLUMNS,
    VERSION,
    complete,
    fill_directory,
    has,
    has_attempts,
    has_types,
    make,
    open_writer,
    to_ms,
    version_of,
)

logger = logging.getLogger(__name__)

USERS_PER_STEP = 1000
DOCUMENTS_PER_STEP = 10_000
REPORT_EVERY_S = 3.0
STEPS_BETWEEN_QUESTIONS = 100_000
"""Of SQLite's, while it makes an index: some milliseconds."""

FIND_TYPES = """
    UPDATE documents SET type = coalesce((SELECT n.type FROM notifications n WHERE n.key = notification), '')
    WHERE (user, id) > (?, ?) AND (user, id) <= (?, ?) AND type IS NULL
"""

_BEYOND = ((1 << 63) - 1, b"")
"""All documents."""


def open_upgraded(
    path: Path, busy_timeout_s: float, now: datetime, is_given_up: Callable[[], bool]
) -> sqlite3.Connection:
    """The connection that writes, to a file of this version. Raises what `open_writer` raises, and `StoreUnavailable`
    if `is_given_up` says so before the end."""
    connection = open_writer(path, busy_timeout_s)
    try:
        if version_of(connection) == 0:
            make(connection, now)
        if version_of(connection) < VERSION:
            _upgrade(connection, path, now, is_given_up)
        complete(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def is_being_upgraded(connection: sqlite3.Connection) -> bool:
    """Whether somebody of this version has begun with this file, but not ended."""
    return version_of(connection) < VERSION and (version_of(connection) == 0 or has_types(connection))


def _upgrade(
    connection: sqlite3.Connection, path: Path, now: datetime, is_given_up: Callable[[], bool]
) -> None:
    # What takes no time comes first: by the tables others see that it has begun.
    if not has(connection, "tenants"):
        _add_directory(connection, now)
    if not has(connection, "broadcasts"):
        _add_broadcasts(connection)
    if not has_types(connection):
        connection.execute("ALTER TABLE documents ADD COLUMN type TEXT")
    if version_of(connection) == 1:
        _find_first_seen(connection, path, now, is_given_up)
    _find_types(connection, path, is_given_up)
    for name, statement in INDEXES.items():
        if not has(connection, name):
            _make_index(connection, path, name, statement, is_given_up)
    connection.executescript(
        "BEGIN IMMEDIATE; DROP INDEX IF EXISTS unseen; DROP INDEX IF EXISTS unseen_by_marks;"
        " DROP INDEX IF EXISTS inbox;"
        f"{'' if has_attempts(connection) else NEW_MAIL_COLUMNS} PRAGMA user_version = {VERSION}; COMMIT"
    )
    logger.info("brought %s up to date", path)


def _add_directory(connection: sqlite3.Connection, now: datetime) -> None:
    """New in version 2: tenants, keys and known users. All that there is belongs to the tenant `default` already."""
    connection.executescript(
        "BEGIN IMMEDIATE;"
        "ALTER TABLE users ADD COLUMN first_seen_at INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE users ADD COLUMN last_seen_at INTEGER;" + DIRECTORY_TABLES
    )
    fill_directory(connection, now)
    connection.execute("COMMIT")


def _add_broadcasts(connection: sqlite3.Connection) -> None:
    """New in version 3: marks of what was sent, and broadcasts. The documents need not be touched."""
    connection.executescript(
        "BEGIN IMMEDIATE;"
        "ALTER TABLE documents ADD COLUMN marks INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE documents ADD COLUMN acked_at INTEGER;" + BROADCAST_TABLES + "COMMIT"
    )


def _find_first_seen(
    connection: sqlite3.Connection, path: Path, now: datetime, is_given_up: Callable[[], bool]
) -> None:
    """Users were first seen when their earliest document was made. 0: not found out yet."""
    last = _last_user(connection)
    progress = _Progress(path, "%s users", last, is_given_up)
    for key in range(0, last, USERS_PER_STEP):
        progress.reach(key)
        connection.execute(
            "UPDATE users SET first_seen_at ="
            " coalesce((SELECT min(created_at) FROM documents WHERE user = users.key), ?)"
            " WHERE key > ? AND key <= ? AND first_seen_at = 0",
            (to_ms(now), key, key + USERS_PER_STEP),
        )


def _find_types(connection: sqlite3.Connection, path: Path, is_given_up: Callable[[], bool]) -> None:
    """New in version 4: documents have the type of their notification. Null: not found out yet, as also of what an
    earlier version has added since."""
    progress = _Progress(path, "the documents of %s users", _last_user(connection), is_given_up)
    begin: tuple[int, bytes] | None = (0, b"")
    while begin is not None:
        progress.reach(begin[0])
        end = connection.execute(
            "SELECT user, id FROM documents WHERE (user, id) > (?, ?) ORDER BY user, id LIMIT 1 OFFSET ?",
            (*begin, DOCUMENTS_PER_STEP - 1),
        ).fetchone()
        connection.execute(FIND_TYPES, (*begin, *(end or _BEYOND)))
        begin = end


def _make_index(
    connection: sqlite3.Connection, path: Path, name: str, statement: str, is_given_up: Callable[[], bool]
) -> None:
    """The only step that takes long and cannot be divided: if it is interrupted, it begins anew."""
    logger.info("bringing %s up to date: making the index %s", path, name)
    connection.set_progress_handler(is_given_up, STEPS_BETWEEN_QUESTIONS)
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise _interrupted(path) from exc
        raise
    finally:
        connection.set_progress_handler(None, 0)


def _last_user(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(key), 0) FROM users").fetchone()[0])


class _Progress:
    """Tells the log how far a step is among the users, and ends it when nobody waits for it any more."""

    def __init__(self, path: Path, what: str, last: int, is_given_up: Callable[[], bool]) -> None:
        """`what`: is done with `%s` users; the `last` of them."""
        self._path, self._what, self._last = path, what, last
        self._is_given_up = is_given_up
        self._told_at = time.monotonic()
        logger.info("bringing %s up to date: %s", path, what % last)

    def reach(self, key: int) -> None:
        """Come to the user with this key."""
        if self._is_given_up():
            raise _interrupted(self._path)
        if time.monotonic() - self._told_at >= REPORT_EVERY_S:
            self._told_at = time.monotonic()
            done = self._what % f"{key} of {self._last}"
            percent = 100 * key // max(self._last, 1)
            logger.info("bringing %s up to date: %s (%d %%)", self._path, done, percent)


def _interrupted(path: Path) -> StoreUnavailable:
    return StoreUnavailable(f"bringing {path} up to date was interrupted; it goes on at the next start")
