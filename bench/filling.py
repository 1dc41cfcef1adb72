"""Stores with as many documents as wanted, for benchmarks: filled by their own schema, but in bulk, and kept for the
next run under .cache/bench/.

What is in them follows from three numbers, so that whoever reads knows what must be there. Each user has 100 documents:
half of notifications of their own, half of such as went to 1000 users (or to all, if there are fewer); every tenth is
deleted, the older 70 are seen. A notification is about 300 bytes. Users of one notification and notifications of one
user lie as far apart as in a store that has grown over the years.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import bson
import pymongo
from bson.raw_bson import RawBSONDocument
from harness import BUILD, LOAD_CORE, free_port, running
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect, BulkWriteError

from server.revs import COUNTER_BITS
from server.store import sqlite_schema
from server.store.mongo import MongoStore
from server.store.mongo_documents import INDEXES
from server.store.sqlite import SQLiteStore
from tests.support.mongod import mongod_binary

TENANT = "default"
PER_USER = 100
SEEN = 70
SHARED_BY = 1000
TYPES = ("order", "invoice", "mention", "system")
CONTENT = "Your order has been handed over to the parcel service. " * 5
STEP_MS = 6 * 3600 * 1000
CHANGED_AFTER_MS = 3600 * 1000
FIRST_MS = 1_700_000_000_000
VERSION = 1
"""Of what is in the stores: one of another version is filled anew."""

BATCH = 20_000
TIMEOUT_S = 600.0
DATABASE = "bench"
DUPLICATE_KEY = 11000


@dataclass(frozen=True)
class Entry:
    """A document: its notification's number, and what follows from where it stands in the inbox."""

    user: int
    number: int
    notification: int
    created_ms: int
    changed_ms: int
    seen: bool
    deleted: bool

    @property
    def rev(self) -> int:
        return self.changed_ms << COUNTER_BITS | (self.number & 0xFFFF)


@dataclass(frozen=True)
class Inboxes:
    """`documents` are a multiple of 100."""

    documents: int

    @property
    def users(self) -> int:
        return self.documents // PER_USER

    @property
    def groups(self) -> int:
        """Of users that get the same notification."""
        return -(-self.users // SHARED_BY)

    @property
    def notifications(self) -> int:
        return PER_USER // 2 * (self.groups + self.users)

    def name(self, user: int) -> str:
        return f"user-{user:06}"

    def notification(self, user: int, place: int) -> int:
        """The number of the notification at this place of a user's inbox; the oldest is at 0."""
        before = place // 2 * (self.groups + self.users)
        return before + (user // SHARED_BY if place % 2 == 0 else self.groups + user)

    def created_ms(self, notification: int) -> int:
        rounds, which = divmod(notification, self.groups + self.users)
        if which < self.groups:
            return FIRST_MS + 2 * rounds * STEP_MS + which
        return FIRST_MS + (2 * rounds + 1) * STEP_MS + which - self.groups

    def kind(self, notification: int) -> str:
        rounds, which = divmod(notification, self.groups + self.users)
        return TYPES[(2 * rounds + (which >= self.groups)) % len(TYPES)]

    def entry(self, user: int, place: int) -> Entry:
        notification = self.notification(user, place)
        created_ms = self.created_ms(notification)
        seen, deleted = place < SEEN, place % 10 == 3
        changed_ms = created_ms + CHANGED_AFTER_MS * (seen or deleted)
        return Entry(user, place * self.users + user, notification, created_ms, changed_ms, seen, deleted)

    def after(self, user: int, changes: int) -> int:
        """The rev behind which a user has so many changes."""
        return self.entry(user, PER_USER - 1 - changes).rev

    @property
    def last_rev(self) -> int:
        return FIRST_MS + (PER_USER + 1) * STEP_MS << COUNTER_BITS


def document_id(entry: Entry) -> bytes:
    return (entry.created_ms // 1000).to_bytes(4) + entry.number.to_bytes(8)


def notification_id(inboxes: Inboxes, number: int) -> bytes:
    return (inboxes.created_ms(number) // 1000).to_bytes(4) + (1 << 63 | number).to_bytes(8)


# -- kept stores ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sqlite_store(documents: int) -> Iterator[tuple[Path, Inboxes]]:
    """The file of a filled store, which may be opened."""
    inboxes = Inboxes(documents)
    folder = _folder("sqlite", documents)
    path = folder / "notifications.sqlite3"
    if not _is_filled(folder):
        started_at = time.monotonic()
        fill_sqlite(path, inboxes)
        _note_filled(folder, documents, started_at)
    yield path, inboxes


@contextlib.contextmanager
def mongo_store(documents: int, cache_gb: float = 4.0) -> Iterator[tuple[str, Inboxes, int]]:
    """The address of a mongod of its own with a filled database `DATABASE`, and the pid of that."""
    inboxes = Inboxes(documents)
    folder = _folder("mongo", documents)
    is_filled = _is_filled(folder)
    with mongod(folder / "db", cache_gb) as (url, pid):
        if not is_filled:
            started_at = time.monotonic()
            fill_mongo(url, inboxes)
            _note_filled(folder, documents, started_at)
        yield url, inboxes, pid


@contextlib.contextmanager
def mongod(data: Path, cache_gb: float) -> Iterator[tuple[str, int]]:
    """A standalone server with its data there: its address and pid."""
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    argv = [mongod_binary(), "--dbpath", data, "--port", port, "--bind_ip", "127.0.0.1", "--nounixsocket"]
    argv += ["--wiredTigerCacheSizeGB", cache_gb, "--setParameter", "diagnosticDataCollectionEnabled=false"]
    with (
        open(data.parent / "mongod.log", "w") as log,
        running([str(each) for each in argv], LOAD_CORE, stdout=log, stderr=subprocess.STDOUT) as child,
    ):
        url = f"mongodb://127.0.0.1:{port}/"
        with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=60_000) as client:
            client.admin.command("ping")
        yield url, child.pid


def folder_of(store: str, documents: int) -> Path:
    """Where the files are of a store that is filled."""
    return BUILD / f"{store}-{documents}"


def _folder(store: str, documents: int) -> Path:
    folder = folder_of(store, documents)
    if not _is_filled(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def _is_filled(folder: Path) -> bool:
    note = folder / "filled.json"
    return note.exists() and json.loads(note.read_text())["version"] == VERSION


def _note_filled(folder: Path, documents: int, started_at: float) -> None:
    took_s = time.monotonic() - started_at
    print(f"{folder.name}: filled in {took_s:,.0f} s, {documents / took_s:,.0f} documents/s", flush=True)
    (folder / "filled.json").write_text(json.dumps({"version": VERSION, "took_s": took_s}))


# -- the embedded store --------------------------------------------------------------------------------------


def fill_sqlite(path: Path, inboxes: Inboxes) -> None:
    """Tables in the order of their keys, indexes afterwards."""
    asyncio.run(_open_and_close(SQLiteStore(path, timeout_s=TIMEOUT_S)))
    connection = sqlite_schema.open_writer(path, TIMEOUT_S)
    with contextlib.closing(connection):
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA cache_size = -500000")
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'documents' AND type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO users (key, tenant, user_id, first_seen_at) VALUES (?, ?, ?, ?)",
            ((user + 1, TENANT, inboxes.name(user), FIRST_MS) for user in range(inboxes.users)),
        )
        connection.executemany(
            "INSERT INTO notifications VALUES (?, ?, ?, ?, ?, ?, ?, '/orders', '', '', NULL)",
            (
                (
                    number + 1,
                    notification_id(inboxes, number),
                    TENANT,
                    inboxes.created_ms(number),
                    inboxes.kind(number),
                    f"Order {number}",
                    CONTENT,
                )
                for number in range(inboxes.notifications)
            ),
        )
        connection.executemany(
            "INSERT INTO documents (user, id, notification, created_at, updated_at, rev, seen, deleted_at, acked_at,"
            " type) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (_row(inboxes, entry) for entry in _by_user(inboxes)),
        )
        connection.execute("UPDATE meta SET value = ? WHERE name = 'last_rev'", (inboxes.last_rev,))
        connection.execute("COMMIT")
        for _, statement in indexes:
            connection.execute(statement)
        connection.execute("PRAGMA journal_mode = WAL")


def _by_user(inboxes: Inboxes) -> Iterator[Entry]:
    return (inboxes.entry(user, place) for user in range(inboxes.users) for place in range(PER_USER))


def _row(inboxes: Inboxes, entry: Entry) -> tuple[Any, ...]:
    is_changed = entry.seen or entry.deleted
    return (
        entry.user + 1,
        document_id(entry),
        entry.notification + 1,
        entry.created_ms,
        entry.changed_ms,
        entry.rev,
        entry.seen,
        entry.changed_ms if entry.deleted else None,
        entry.changed_ms if is_changed else None,
        inboxes.kind(entry.notification),
    )


# -- MongoDB -------------------------------------------------------------------------------------------------


def fill_mongo(url: str, inboxes: Inboxes) -> None:
    """Documents in the order of their creation, indexes afterwards."""
    asyncio.run(_open_and_close(MongoStore(url, DATABASE, timeout_s=TIMEOUT_S)))
    with pymongo.MongoClient[dict[str, Any]](url, w=1) as client:
        database = client[DATABASE]
        documents = database["notifications"]
        documents.drop_indexes()
        database["notifications_users"].insert_many(
            (
                {"_id": {"tenant": TENANT, "userId": inboxes.name(user)}, "firstSeenAt": _instant(FIRST_MS)}
                for user in range(inboxes.users)
            ),
            ordered=False,
        )
        entries = (inboxes.entry(user, place) for place in range(PER_USER) for user in range(inboxes.users))
        while some := list(islice(entries, BATCH)):
            _insert(documents, [_bson(inboxes, entry) for entry in some])
        database["notifications_meta"].update_one(
            {"_id": "rev"}, {"$max": {"ceiling": inboxes.last_rev}}, upsert=True
        )
        documents.create_indexes(list(INDEXES["documents"]))
        client.admin.command("fsync")


def _insert(documents: Collection[dict[str, Any]], some: list[RawBSONDocument]) -> None:
    """Again, if the connection broke meanwhile, as it does when the machine stood still: what is there stays."""
    while True:
        try:
            documents.insert_many(some, ordered=False)
        except AutoReconnect:
            continue
        except BulkWriteError as exc:
            if any(error["code"] != DUPLICATE_KEY for error in exc.details["writeErrors"]):
                raise
        return


def _bson(inboxes: Inboxes, entry: Entry) -> RawBSONDocument:
    created_at, changed_at = _instant(entry.created_ms), _instant(entry.changed_ms)
    fields = {
        "_id": bson.ObjectId(document_id(entry)),
        "tenant": TENANT,
        "nid": bson.ObjectId(notification_id(inboxes, entry.notification)),
        "type": inboxes.kind(entry.notification),
        "title": f"Order {entry.notification}",
        "content": CONTENT,
        "url": "/orders",
        "icon": "",
        "image": "",
        "data": None,
        "createdAt": created_at,
        "_userId": inboxes.name(entry.user),
        "updatedAt": changed_at,
        "deletedAt": changed_at if entry.deleted else None,
        "delete": entry.deleted,
        "seen": entry.seen,
        "rev": entry.rev,
    }
    return RawBSONDocument(bson.encode(fields))


def _instant(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


async def _open_and_close(store: SQLiteStore | MongoStore) -> None:
    """Which makes its tables, or collections and indexes."""
    await store.open()
    await store.close()
