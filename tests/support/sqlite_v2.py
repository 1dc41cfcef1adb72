"""Files of the embedded store as version 2 of its schema left them: with the text of that version, not today's."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from server.grants import new_secret
from server.ids import new_id
from tests.support.sqlite_v1 import make_v1

# As that version brought up files of version 1.
_NEW = """
ALTER TABLE users ADD COLUMN first_seen_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN last_seen_at INTEGER;

CREATE TABLE tenants (name TEXT PRIMARY KEY, created_at INTEGER NOT NULL, removed_at INTEGER) WITHOUT ROWID;

CREATE TABLE api_keys (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, name TEXT NOT NULL, hashed TEXT NOT NULL,
    scopes TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER, last_used_at INTEGER, revoked_at INTEGER
);
CREATE UNIQUE INDEX api_keys_named ON api_keys (tenant, name) WHERE revoked_at IS NULL;

CREATE TABLE sign_outs (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (tenant, user_id)
) WITHOUT ROWID;

CREATE TABLE signing_secrets (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, secret TEXT NOT NULL,
    created_at INTEGER NOT NULL, retired_at INTEGER
);

CREATE TABLE orphans (
    tenant TEXT NOT NULL, notification INTEGER NOT NULL, PRIMARY KEY (tenant, notification)
) WITHOUT ROWID;

INSERT INTO meta VALUES ('access_sequence', 1);
INSERT INTO tenants VALUES ('default', 1700000000000, NULL);
UPDATE users SET first_seen_at = (SELECT min(created_at) FROM documents WHERE user = users.key);
PRAGMA user_version = 2;
"""


def make_v2(path: Path, users: int, documents_each: int = 3) -> None:
    """The file of `make_v1`, brought up to version 2."""
    make_v1(path, users, documents_each)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("BEGIN;" + _NEW)
        connection.execute(
            "INSERT INTO signing_secrets (id, secret, created_at) VALUES (?, ?, 1700000000000)",
            (new_id(), new_secret()),
        )
        connection.execute("COMMIT")
