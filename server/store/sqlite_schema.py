"""The tables of the embedded store, and how a connection to them is made. Older files: see `sqlite_upgrade`.

Instants are integers: milliseconds since 1970 (UTC). Ids are the 12 bytes of the ObjectId. Users and notifications have
a small integer `key` of their own, because each of the trees of `documents` repeats them, and a notification is stored
once for all of its users.
"""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.errors import StartupError
from server.grants import DEFAULT_TENANT, new_secret
from server.ids import is_id, new_id
from server.store import WAYS

VERSION = 4
"""Kept in `PRAGMA user_version`. A file of a newer version is not touched."""

_APPLICATION_ID = 0x4E4F5449  # "NOTI": tells our files from anybody else's SQLite files

_WRITER_CACHE_KIB = 32 * 1024
"""Enough for the inner pages of the trees of some ten million documents; a write then reads leaves only."""
_READER_CACHE_KIB = 4 * 1024

_CHECKPOINT_PAGES = 4000
"""Write-ahead log before it is copied into the main file: 16 MiB. Copying costs a sync of its own, and the longer the
log, the more often a page in it is written over before it must be copied."""
_LOG_KEPT_BYTES = 64 * 1024 * 1024
"""A log that grew further, because of a huge transaction, is cut back to this."""

# The primary key of `documents` finds a user's documents by id and, since ids rise with time, keeps those of one page
# of the inbox side by side. `changes` orders a user's changes. No foreign keys: one function writes each group of rows,
# and every insert would search once more. `marks`: a bit for each of `store.WAYS` in which the document was sent (see
# `mark_of`). `acked_at`: when a client acknowledged it, or it was first seen or deleted; null where that was before
# version 3, too. `type`: that of the notification; null only in a file that is being brought up to version 4.
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;

CREATE TABLE users (
    key INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user_id TEXT NOT NULL,
    first_seen_at INTEGER NOT NULL DEFAULT 0, last_seen_at INTEGER, UNIQUE (tenant, user_id)
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
    marks INTEGER NOT NULL DEFAULT 0, acked_at INTEGER, type TEXT,
    PRIMARY KEY (user, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX changes ON documents (user, rev, id);

-- One row for each notification that still owes mail. due_at: the earliest of its recipients that no lease holds;
-- leased_until: the earliest end of a lease; null if there is none. Both follow from mail_recipients. When a tenant is
-- removed, both are set to null, which takes its mail out of the indexes. A row stays as long as there are recipients
-- or dead letters. attempts: of versions before 4.
CREATE TABLE mails (
    notification INTEGER PRIMARY KEY, subject TEXT NOT NULL, content TEXT NOT NULL, subtype TEXT NOT NULL,
    forced INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_at INTEGER, leased_until INTEGER
);
CREATE INDEX mails_due ON mails (due_at);
CREATE INDEX mails_leased ON mails (leased_until);

CREATE TABLE mail_recipients (
    notification INTEGER NOT NULL, user_id TEXT NOT NULL, email TEXT NOT NULL,
    due_at INTEGER NOT NULL, accepted_online INTEGER NOT NULL, lease TEXT, leased_until INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0, failing_since INTEGER, failed_at INTEGER, code INTEGER, reason TEXT,
    PRIMARY KEY (notification, user_id)
) WITHOUT ROWID;

CREATE TABLE refused_mail (
    notification INTEGER NOT NULL, user_id TEXT NOT NULL, email TEXT NOT NULL,
    code INTEGER NOT NULL, reason TEXT NOT NULL, refused_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (notification, user_id)
) WITHOUT ROWID;
"""

# `inbox_with_types` leaves out tombstones, so that however much a user has deleted, the newest are found without
# stepping over it; its last columns let counting and filtering do without the documents themselves. To go through the
# entries of one user takes less than to keep a further index up to date at every insert, or counters at every change.
# `unseen_with_revs` leaves out what was seen or deleted, and keeps apart what was sent in which ways, so that the
# oldest unseen, and those that were not sent in some way, are found without stepping over the others: the few series of
# a user are merged. What has a higher rev than is asked for is passed over in it. `of_notification` grows at its end
# only, which costs an insert little; `tombstones` has nothing but those.
INDEXES = {
    "inbox_with_types": """
CREATE INDEX inbox_with_types ON documents (user, created_at, id, type, seen, deleted_at) WHERE deleted_at IS NULL
""",
    "unseen_with_revs": """
CREATE INDEX unseen_with_revs ON documents (user, marks, created_at, id, rev, seen, deleted_at)
WHERE seen = 0 AND deleted_at IS NULL
""",
    "of_notification": "CREATE INDEX of_notification ON documents (notification, user)",
    "tombstones": """
CREATE INDEX tombstones ON documents (user, rev, created_at, deleted_at, id) WHERE deleted_at IS NOT NULL
""",
}
"""Those that versions 3 and 4 brought, by their names."""

# `ways`: when a user first used a way of listening; the user need not have a row in `users`. `broadcasts`: those that
# are open; the users up to `after` have their documents.
BROADCAST_TABLES = """
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
"""

# Beside these, `meta` counts the changes of what `Directory.access` returns, as access_sequence. The rows of `api_keys`
# and `signing_secrets` are in the order in which they were added. `orphans`: notifications of a tenant that is being
# erased which have lost documents; they go when the last document has, because until then no new notification may get
# their key.
DIRECTORY_TABLES = """
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
"""

NEW_MAIL_COLUMNS = """
ALTER TABLE mail_recipients ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE mail_recipients ADD COLUMN failing_since INTEGER;
ALTER TABLE mail_recipients ADD COLUMN failed_at INTEGER;
ALTER TABLE mail_recipients ADD COLUMN code INTEGER;
ALTER TABLE mail_recipients ADD COLUMN reason TEXT;
ALTER TABLE refused_mail ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
"""
"""New in version 4: what each recipient of a mail was answered. Earlier versions cannot write to tables with these."""

# What files of this version may lack, as they were without it at first. `sign_out_log` has the latest sign-outs in the
# order in which they were written down, `meta` the number of the last one of them as sign_out_sequence. `once` has the
# idempotency keys of requests that had their effect, until `expires_at`. `retention`: for how long a tenant's documents
# and tombstones are kept (see `grants.Keep`), and how far back its inboxes go (see `store.Horizon`).
_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS sign_out_log (
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user_id TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS sign_outs_at ON sign_outs (at);
INSERT OR IGNORE INTO meta VALUES ('sign_out_sequence', 0);

CREATE TABLE IF NOT EXISTS once (
    tenant TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, nid BLOB NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS once_by_end ON once (expires_at);

CREATE TABLE IF NOT EXISTS retention (
    tenant TEXT PRIMARY KEY, documents_s INTEGER, tombstones_s INTEGER,
    floor INTEGER, oldest_rev INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_ms(instant: datetime) -> int:
    """An aware instant as it is stored."""
    since = instant - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def from_ms(ms: int) -> datetime:
    """A stored instant: aware UTC."""
    return _EPOCH + timedelta(0, 0, 1000 * ms)  # by names it takes twice as long


def mark_of(way: str) -> int:
    """The bit of a way of listening in `marks`."""
    return 1 << WAYS.index(way)


def id_bytes(text: str) -> bytes | None:
    """An id as it is stored; None if `text` does not have the form of one."""
    return bytes.fromhex(text) if is_id(text) else None


def open_writer(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection that writes, to a file that is made if need be; it may be empty, or of an older version. Raises
    `StartupError` if it is of a newer version or not ours, `sqlite3.Error` or `OSError` if it cannot be read or
    written."""
    # Others on this machine must not read inboxes; SQLite gives its log the rights of the main file.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = _connect(path, busy_timeout_s, _WRITER_CACHE_KIB)
    try:
        check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: the log is synced at each commit, so that a commit outlives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = _connect(path, busy_timeout_s, _READER_CACHE_KIB)
    connection.execute("PRAGMA query_only = ON")
    return connection


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the file; 0: it is empty."""
    return _pragma(connection, "user_version")


def has(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a table or an index of this name."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,))
    return found.fetchone() is not None


def make(connection: sqlite3.Connection, now: datetime) -> None:
    """All that belongs in an empty file, in one transaction."""
    connection.executescript("BEGIN IMMEDIATE;" + _TABLES + DIRECTORY_TABLES + BROADCAST_TABLES)
    for statement in INDEXES.values():
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('epoch', ?), ('last_rev', 0), ('pings', 0)", (new_id(),))
    fill_directory(connection, now)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def has_types(connection: sqlite3.Connection) -> bool:
    """Whether documents have a column for their type."""
    return any(name == "type" for _, name, *_ in connection.execute("PRAGMA table_info(documents)"))


def has_attempts(connection: sqlite3.Connection) -> bool:
    """Whether the tables of mail have what version 4 brought."""
    return any(name == "attempts" for _, name, *_ in connection.execute("PRAGMA table_info(mail_recipients)"))


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
    return found.fetchone() is not None


def complete(connection: sqlite3.Connection) -> None:
    """Give a file of this version the tables that were added to it. An earlier server may go on with it."""
    if not all(has_table(connection, name) for name in ("sign_out_log", "once", "retention")):
        connection.executescript(f"BEGIN IMMEDIATE;{_LATER_TABLES}COMMIT")


def fill_directory(connection: sqlite3.Connection, now: datetime) -> None:
    """What the new tables of the directory hold at first."""
    connection.execute("INSERT INTO meta VALUES ('access_sequence', 1)")
    connection.execute("INSERT INTO tenants VALUES (?, ?, NULL)", (DEFAULT_TENANT, to_ms(now)))
    connection.execute(
        "INSERT INTO signing_secrets (id, secret, created_at) VALUES (?, ?, ?)",
        (new_id(), new_secret(), to_ms(now)),
    )


def _connect(path: Path, busy_timeout_s: float, cache_kib: int) -> sqlite3.Connection:
    # isolation_level None: transactions begin and end where we say so. Each connection is used by one thread at a time,
    # but not always by the one that made it.
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    return connection


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Raises `StartupError` if the file is of a newer version or not ours."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and _pragma(connection, "application_id") != _APPLICATION_ID:
        raise StartupError(f"{path} is a database, but not one of the notification server")
    version = version_of(connection)
    if version > VERSION:
        raise StartupError(
            f"{path} was written by a newer notification server (its schema is {version}, this one knows {VERSION})"
        )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
