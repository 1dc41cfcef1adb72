"""Files of the embedded store as version 3 of its schema left them: with the text of that version, not today's."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from tests.support.sqlite_v2 import make_v2

# As that version brought up files of version 2.
_NEW = """
ALTER TABLE documents ADD COLUMN marks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE documents ADD COLUMN acked_at INTEGER;

CREATE TABLE ways (
    tenant TEXT NOT NULL, user_id TEXT NOT NULL, way TEXT NOT NULL, begun_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, user_id, way)
) WITHOUT ROWID;

CREATE TABLE broadcasts (
    notification INTEGER PRIMARY KEY, tenant TEXT NOT NULL, created_at INTEGER NOT NULL,
    after TEXT, lease TEXT, leased_until INTEGER
);
CREATE INDEX broadcasts_by_age ON broadcasts (created_at);
CREATE INDEX broadcasts_of_tenant ON broadcasts (tenant, created_at);

CREATE INDEX unseen_by_marks ON documents (user, marks, created_at, id, seen, deleted_at)
WHERE seen = 0 AND deleted_at IS NULL
;
CREATE INDEX of_notification ON documents (notification, user);
DROP INDEX unseen;
PRAGMA user_version = 3;

CREATE TABLE sign_out_log (
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user_id TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE INDEX sign_outs_at ON sign_outs (at);
INSERT INTO meta VALUES ('sign_out_sequence', 0);
"""


def make_v3(path: Path, users: int, documents_each: int = 3) -> None:
    """The file of `make_v2`, brought up to version 3."""
    make_v2(path, users, documents_each)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(f"BEGIN; {_NEW} COMMIT")
