"""Backup and restore of the store on MongoDB, for the command line, while servers run.

A backup is a file of BSON documents for each collection, as mongodump writes them, all as of one moment: replica sets
and sharded clusters can be read so for some minutes. What is restored gets a new epoch: to clients it is another inbox,
which they read anew, as the servers have forgotten what they told them after the backup.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from bson import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from server.errors import StartupError
from server.ids import new_id
from server.store import backup
from server.store.mongo_connection import Connection

KIND = "mongodb"

COLLECTIONS = (
    "documents",
    "intents",
    "broadcasts",
    "once",
    "users",
    "ways",
    "sign_outs",
    "tenants",
    "meta",
)
"""Attributes of `Connection`, in the order in which they are restored; leases are of processes that run."""

BATCH_DOCUMENTS = 1000
BATCH_LIMIT_S = 60.0

_SNAPSHOT_UNAVAILABLE = frozenset({239, 246})  # SnapshotTooOld, SnapshotUnavailable

_RAW = CodecOptions(document_class=RawBSONDocument)

Raws = AsyncCollection[RawBSONDocument]


async def take(connection: Connection, folder: Path, *, is_offline: bool) -> dict[str, int]:
    """Write all that there is into an empty folder; how many documents each collection has. `is_offline`: nobody writes
    meanwhile, so that no snapshot is needed. Raises `StartupError`, `StoreUnavailable`, `OSError`."""
    counts = {}
    try:
        async with _snapshot(connection, is_offline=is_offline) as session:
            for name in COLLECTIONS:
                with backup.create(folder / f"{name}.bson") as file:
                    counts[name] = await _write(connection, name, session, file)
                    backup.sync(file)
    except OperationFailure as exc:
        if exc.code not in _SNAPSHOT_UNAVAILABLE:
            raise
        raise StartupError(
            f"{connection.name} keeps no moment for as long as the backup takes: raise its"
            " minSnapshotHistoryWindowInSeconds, or use mongodump --oplog"
        ) from exc
    return counts


@asynccontextmanager
async def _snapshot(connection: Connection, *, is_offline: bool) -> AsyncIterator[AsyncClientSession | None]:
    if is_offline:
        yield None
        return
    client = connection.documents.database.client
    with connection.bounded():
        hello = await client.admin.command("hello")
    if "setName" not in hello and not connection.is_router:
        raise StartupError(
            f"{connection.name} is a standalone server, which cannot be read as of one moment: stop the servers that"
            " use it and say --offline, or make it a replica set of one member"
        )
    async with client.start_session(snapshot=True) as session:
        yield session


async def _write(
    connection: Connection, name: str, session: AsyncClientSession | None, file: BinaryIO
) -> int:
    """Write a collection; how many documents it has."""
    count = 0
    # In a session that reads a snapshot none may be named.
    concern = ReadConcern("majority" if session is None else None)
    raws: Raws = getattr(connection, name).with_options(codec_options=_RAW, read_concern=concern)
    cursor = raws.find({}, session=session, batch_size=BATCH_DOCUMENTS)
    while True:
        with connection.bounded(BATCH_LIMIT_S):
            batch = await cursor.to_list(BATCH_DOCUMENTS)
        if not batch:
            return count
        file.writelines(each.raw for each in batch)
        count += len(batch)


async def restore(connection: Connection, folder: Path) -> None:
    """Put a backup into a database that has nothing of the server's, with a new epoch. Raises `StartupError`,
    `StoreUnavailable`, `OSError`."""
    for name in COLLECTIONS:
        collection: Raws = getattr(connection, name)
        with connection.bounded():
            if await collection.find_one({}, {"_id": 1}) is not None:
                raise StartupError(
                    f"{connection.name}: {collection.full_name} is not empty; a backup is not restored over a store:"
                    " choose another [MONGODB] db, or drop that one first"
                )
    for name in COLLECTIONS:
        with (folder / f"{name}.bson").open("rb") as file:
            for batch in _batches(file):
                with connection.bounded(BATCH_LIMIT_S):
                    await getattr(connection, name).insert_many(batch, ordered=False)
    await renew_epoch(connection)


async def renew_epoch(connection: Connection) -> None:
    """For a database that was put back by other means. Raises `StoreUnavailable`."""
    with connection.bounded():
        await connection.meta.update_one({"_id": "epoch"}, {"$set": {"epoch": new_id()}}, upsert=True)


def _batches(file: BinaryIO) -> Iterator[list[RawBSONDocument]]:
    batch = []
    while document := _read(file):
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def _read(file: BinaryIO) -> RawBSONDocument | None:
    """The next one; None: that was the last. A document begins with its length."""
    head = file.read(4)
    if not head:
        return None
    rest = file.read(int.from_bytes(head, "little") - 4) if len(head) == 4 else b""
    try:
        return RawBSONDocument(head + rest)
    except Exception as exc:
        raise StartupError(f"{file.name} is damaged") from exc
