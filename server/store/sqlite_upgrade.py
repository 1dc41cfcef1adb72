"""Brings a file of the embedded store up to this version: one that is empty, or that an earlier version wrote.

For whoever holds the folder. Each step is a transaction, or a row of them that skips what is done already, and the
version is raised after the last one: so it can be interrupted anywhere, and goes on when the file is opened again.
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
    DIRECTORY_TABLES,
    VERSION,
    complete,
    fill_directory,
    has_table,
    make,
    open_writer,
    to_ms,
    version_of,
)

logger = logging.getLogger(__name__)

USERS_PER_STEP = 1000
REPORT_EVERY_S = 3.0


def open_upgraded(
    path: Path, busy_timeout_s: float, now: datetime, is_given_up: Callable[[], bool]
) -> sqlite3.Connection:
    """The connection that writes, to a file of this version. Raises what `open_writer` raises, and `StoreUnavailable`
    if `is_given_up` says so before the end."""
    connection = open_writer(path, busy_timeout_s)
    try:
        if version_of(connection) == 0:
            make(connection, now)
        if version_of(connection) == 1:
            _upgrade_to_2(connection, path, now, is_given_up)
        complete(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def is_being_upgraded(connection: sqlite3.Connection) -> bool:
    """Whether somebody of this version has begun with this file, but not ended."""
    return version_of(connection) < VERSION and (
        version_of(connection) == 0 or has_table(connection, "tenants")
    )


def _upgrade_to_2(
    connection: sqlite3.Connection, path: Path, now: datetime, is_given_up: Callable[[], bool]
) -> None:
    """Tenants, keys and known users. All that there is belongs to the tenant `default` already."""
    if not has_table(connection, "tenants"):
        connection.executescript(
            "BEGIN IMMEDIATE;"
            "ALTER TABLE users ADD COLUMN first_seen_at INTEGER NOT NULL DEFAULT 0;"
            "ALTER TABLE users ADD COLUMN last_seen_at INTEGER;" + DIRECTORY_TABLES
        )
        fill_directory(connection, now)
        connection.execute("COMMIT")
    _find_first_seen(connection, path, now, is_given_up)
    connection.execute("PRAGMA user_version = 2")


def _find_first_seen(
    connection: sqlite3.Connection, path: Path, now: datetime, is_given_up: Callable[[], bool]
) -> None:
    """Users were first seen when their earliest document was made. 0: not found out yet."""
    last = connection.execute("SELECT coalesce(max(key), 0) FROM users").fetchone()[0]
    logger.info("bringing %s up to date: %d users", path, last)
    reported_at = time.monotonic()
    for key in range(0, last, USERS_PER_STEP):
        if is_given_up():
            raise StoreUnavailable(
                f"bringing {path} up to date was interrupted; it goes on at the next start"
            )
        if time.monotonic() - reported_at >= REPORT_EVERY_S:
            reported_at = time.monotonic()
            logger.info("bringing %s up to date: %d of %d users (%d %%)", path, key, last, 100 * key // last)
        connection.execute(
            "UPDATE users SET first_seen_at ="
            " coalesce((SELECT min(created_at) FROM documents WHERE user = users.key), ?)"
            " WHERE key > ? AND key <= ? AND first_seen_at = 0",
            (to_ms(now), key, key + USERS_PER_STEP),
        )
    logger.info("brought %s up to date", path)
