"""Files of the embedded store as version 1 of its schema left them: with the text of that version, not today's."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from server.ids import new_id

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;

CREATE TABLE users (
    key INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user_id TEXT NOT NULL, UNIQUE (tenant, user_id)
);

CREATE TABLE notifications (
    key INTEGER PRIMARY KEY, nid BLOB NOT NULL UNIQUE, tenant TEXT NOT NULL, created_at INTEGER NOT NULL,
    type TEXT NOT NULL, title TEXT NOT NULL, content TEXT NOT NULL,
    url TEXT NOT NULL, icon TEXT NOT NULL, image TEXT NOT NULL, data TEXT
);

CREATE TABLE documents (
    user INTEGER NOT NULL, id BLOB NOT NULL, notification INTEGER NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, rev INTEGER NOT NULL,
    seen INTEGER NOT NULL DEFAULT 0, deleted_at INTEGER,
    PRIMARY KEY (user, id)
) WITHOUT ROWID;
CREATE INDEX inbox ON documents (user, created_at, id, deleted_at) WHERE deleted_at IS NULL;
CREATE INDEX unseen ON documents (user, created_at, id, seen, deleted_at) WHERE seen = 0 AND deleted_at IS NULL;
CREATE UNIQUE INDEX changes ON documents (user, rev, id);

CREATE TABLE mails (
    notification INTEGER PRIMARY KEY, subject TEXT NOT NULL, content TEXT NOT NULL, subtype TEXT NOT NULL,
    forced INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_at INTEGER, leased_until INTEGER
);
CREATE INDEX mails_due ON mails (due_at);
CREATE INDEX mails_leased ON mails (leased_until);

CREATE TABLE mail_recipients (
    notification INTEGER NOT NULL, user_id TEXT NOT NULL, email TEXT NOT NULL,
    due_at INTEGER NOT NULL, accepted_online INTEGER NOT NULL, lease TEXT, leased_until INTEGER,
    PRIMARY KEY (notification, user_id)
) WITHOUT ROWID;

CREATE TABLE refused_mail (
    notification INTEGER NOT NULL, user_id TEXT NOT NULL, email TEXT NOT NULL,
    code INTEGER NOT NULL, reason TEXT NOT NULL, refused_at INTEGER NOT NULL,
    PRIMARY KEY (notification, user_id)
) WITHOUT ROWID;
"""

FIRST_MS = 1_700_000_000_000


def user_id(number: int) -> str:
    return f"user-{number:06}"


def first_ms(number: int) -> int:
    """When the earliest document of this user was made."""
    return FIRST_MS + 1000 * number


def make_v1(path: Path, users: int, documents_each: int = 3) -> None:
    """A file with users of the tenant `default`. Of the documents of each the earliest is deleted, the next seen, and
    by their ids they are in the opposite order. The first user is owed a mail for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; BEGIN;" + TABLES)
        connection.execute(
            "INSERT INTO meta VALUES ('epoch', ?), ('last_rev', 99), ('pings', 0)", (new_id(),)
        )
        connection.executemany(
            "INSERT INTO users VALUES (?, 'default', ?)",
            ((number + 1, user_id(number)) for number in range(users)),
        )
        connection.executemany(
            "INSERT INTO notifications VALUES (?, ?, 'default', ?, '', '', ?, '', '', '', NULL)",
            (
                (key, key.to_bytes(12, "big"), first_ms(number) + each, f"{number}/{each}")
                for number, each, key in _documents(users, documents_each)
            ),
        )
        connection.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    number + 1,
                    (2**90 - key).to_bytes(12, "big"),
                    key,
                    at,
                    at,
                    key,
                    each == 1,
                    1 if each == 0 else None,
                )
                for number, each, key in _documents(users, documents_each)
                for at in [first_ms(number) + each]
            ),
        )
        for key in range(1, documents_each + 1):
            connection.execute("INSERT INTO mails VALUES (?, 's', 'c', 'html', 0, 0, 1, NULL)", (key,))
            connection.execute(
                "INSERT INTO mail_recipients VALUES (?, ?, 'a@example.test', 1, 0, NULL, NULL)",
                (key, user_id(0)),
            )
        connection.execute(f"PRAGMA application_id = {0x4E4F5449}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("COMMIT")


def _documents(users: int, documents_each: int) -> list[tuple[int, int, int]]:
    """(number of the user, number of the document of the user, key of the notification)"""
    return [
        (number, each, 1 + number * documents_each + each)
        for number in range(users)
        for each in range(documents_each)
    ]
