"""The way to MongoDB: client, collections, indexes, time limits, and what pymongo's errors mean to the server."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pymongo
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, IndexModel, ReadPreference
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    InvalidName,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from server.checks import Trouble
from server.errors import StartupError, StoreUnavailable
from server.messages import now
from server.store.mongo_documents import Raw

logger = logging.getLogger(__name__)

Collection = AsyncCollection[Raw]

MIN_WIRE_VERSION = 13
"""MongoDB 5.0: the first in which `$expr` uses indexes, and `$$NOW` with it."""

INDEX_BUILD_LIMIT_S = 3600.0
"""Building indexes on a large collection takes minutes, and a time-out would start it anew each time."""

MAX_CLOCK_DIFFERENCE_S = 10.0
"""A third of `MongoStore.changes_overlap_s`. A node whose clock is off by more is not ready: revs go by the clock of
MongoDB, but much else does not."""

CODEC_OPTIONS: CodecOptions[Raw] = CodecOptions(tz_aware=True)
"""Of commands, which do not take those of the client."""

AUTHENTICATION_CODES = frozenset({13, 18})  # Unauthorized, AuthenticationFailed

# What a mongos answers when it is there but the shard is not: HostUnreachable, HostNotFound, NetworkTimeout,
# FailedToSatisfyReadPreference, ExceededTimeLimit, NetworkInterfaceExceededTimeLimit, SocketException. What a server
# cannot do yet, or under its load: ReadConcernMajorityNotAvailableYet, TemporarilyUnavailable (its cache is full).
# And IllegalOperation: when a standalone server comes back, pymongo 4.20 may retry a write in the way of replica sets,
# which the server does not do.
# What was broken off and says nothing of the request, by an operator's killOp, say: LockTimeout, Interrupted, and of a
# cursor CursorNotFound, QueryPlanKilled, CursorKilled (the categories Interruption and CursorInvalidatedError of
# MongoDB's error_codes.yml).
# And of a single document in a batch: MaxTimeMSExpired, ShutdownInProgress, PrimarySteppedDown, NotWritablePrimary,
# InterruptedAtShutdown, InterruptedDueToReplStateChange, OutOfDiskSpace.
_UNAVAILABLE_CODES = frozenset(
    {6, 7, 89, 133, 262, 202, 9001, 134, 365, 20}
    | {24, 11601, 43, 175, 237}
    | {50, 91, 189, 10107, 11600, 11602, 14031}
)


_DUPLICATE_KEY = 11000

PARALLEL_ARRAYS_CODE = 171
"""A document has lists in two fields of an index."""


def _is_news(record: logging.LogRecord) -> bool:
    """pymongo logs what fails of its own housekeeping with a traceback; that MongoDB is away says who waits for it."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ConnectionFailure)


logging.getLogger("pymongo.client").addFilter(_is_news)


class DocumentRefused(OperationFailure):
    """MongoDB will never take this document. What it says beside the code may hold what the document holds, so it is
    left out. `is_there`: it has one with this `_id`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"MongoDB refuses the document (error {code})", code)
        self.is_there = code == _DUPLICATE_KEY


class Connection:
    """One client for one database, with its collections, all from `open` on: `documents` (one for each user of a
    notification), `intents` (notifications for several users: open, or with mail still owed), `broadcasts` (for all
    users of a tenant: open), `once` (idempotency keys), `tenants` with their keys, the known `users`, their `ways` of
    listening, `sign_outs`, `leases`, and `meta`."""

    documents: Collection
    intents: Collection
    broadcasts: Collection
    once: Collection
    tenants: Collection
    users: Collection
    ways: Collection
    sign_outs: Collection
    leases: Collection
    meta: Collection

    is_router: bool
    """Whether it is a mongos, behind which collections may be sharded."""

    def __init__(self, url: str, db: str, collection: str | None, timeout_s: float) -> None:
        self._url = url
        self._db_name = db
        self._collection_name = collection
        self._client: AsyncMongoClient[Raw] | None = None
        self._is_open = False
        self._in_hand = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.timeout_s = timeout_s
        # Everything up to the last @ may be a password, even in an address that is none.
        hosts = url.partition("://")[2].rpartition("@")[2].partition("/")[0].partition("?")[0]
        self.name = f"MongoDB ({hosts}, db {db})"
        self._make_client()  # connects to nobody; an address that is none is found out before anything is opened

    async def open(self) -> None:
        """Connect. Raises as `Store.open`."""
        client = self._make_client()
        try:
            with self.opening(), self.bounded():
                await self._check_server(client)
                await self._choose_collections(client)
        except BaseException:
            await client.close()
            raise
        self._client = client
        self._is_open = True

    async def make_indexes(self, indexes: Mapping[str, Sequence[IndexModel]]) -> None:
        """Those that are missing, by the attribute of the collection."""
        with pymongo.timeout(INDEX_BUILD_LIMIT_S):
            for attribute, wanted in indexes.items():
                await _make_indexes(getattr(self, attribute), wanted)

    async def drain(self) -> None:
        """Let no verb begin any more; return when those in hand have ended."""
        self._is_open = False
        await self._is_idle.wait()

    async def disconnect(self) -> None:
        """Let go of the server. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def ping(self) -> None:
        """Return if there is a primary that takes writes. Raises `Trouble` if its clock and that of this node differ by
        more than `MAX_CLOCK_DIFFERENCE_S`."""
        with self.operation() as client:
            began_at = now()
            hello = await client.admin.command("hello", codec_options=CODEC_OPTIONS)
            if not hello["isWritablePrimary"]:
                raise StoreUnavailable()
            local = hello["localTime"]
            difference_s = max((began_at - local).total_seconds(), (local - now()).total_seconds())
            if difference_s > MAX_CLOCK_DIFFERENCE_S:
                raise Trouble(f"the clocks of this node and of MongoDB differ by {difference_s:.0f} s")

    @contextmanager
    def operation(self) -> Iterator[AsyncMongoClient[Raw]]:
        """Around each verb: refuses if not open, holds up `close`, and bounds and translates as `bounded`."""
        client = self.begin()
        try:
            with self.bounded():
                yield client
        finally:
            self.end()

    def begin(self) -> AsyncMongoClient[Raw]:
        """Of a verb that is no `operation` as it waits for others to write: refuses if not open, and holds up `close`
        until `end`."""
        if self._client is None or not self._is_open:
            raise StoreUnavailable("the store is not open")
        self._in_hand += 1
        self._is_idle.clear()
        return self._client

    def end(self) -> None:
        """After `begin`."""
        self._in_hand -= 1
        if not self._in_hand:
            self._is_idle.set()

    @contextmanager
    def bounded(self, limit_s: float | None = None) -> Iterator[None]:
        """Give all calls within so many seconds together (None: `timeout_s`); what means "not there" or "not in time"
        becomes `StoreUnavailable`."""
        try:
            with pymongo.timeout(self.timeout_s if limit_s is None else limit_s):
                yield
        except PyMongoError as exc:
            if _means_unavailable(exc):
                raise StoreUnavailable() from exc
            raise

    def _make_client(self) -> AsyncMongoClient[Raw]:
        timeout_ms = round(self.timeout_s * 1000)
        try:
            with warnings.catch_warnings():
                # pymongo goes on without an option that it does not know: without TLS, say, for want of a letter.
                warnings.simplefilter("error", UserWarning)
                # What it says of hosts of CosmosDB and DocumentDB where its log is silent is no complaint.
                warnings.filterwarnings("ignore", "You appear to be connected to")
                return AsyncMongoClient(
                    self._url,
                    tz_aware=True,
                    appname="notification-server",
                    connectTimeoutMS=timeout_ms,
                    serverSelectionTimeoutMS=timeout_ms,
                )
        except (PyMongoError, ValueError, TypeError, OSError, UserWarning):
            # Neither its text nor the chain: both may hold pieces of the password.
            raise StartupError(
                "[MONGODB] url is not a MongoDB address, or an option of it is unknown or cannot be used; it has the"
                " form mongodb://[user:password@]host[:port]/[?options], special characters of the password as %xx"
            ) from None

    @contextmanager
    def opening(self) -> Iterator[None]:
        """What fails within becomes what `Store.open` raises."""
        try:
            yield
        except (StoreUnavailable, PyMongoError) as exc:
            raise self._open_error(exc) from exc

    def _open_error(self, exc: Exception) -> Exception:
        if isinstance(exc, StoreUnavailable) or (isinstance(exc, PyMongoError) and _means_unavailable(exc)):
            return StoreUnavailable(f"{self.name} does not answer or has no primary")
        if isinstance(exc, OperationFailure) and exc.code in AUTHENTICATION_CODES:
            return StartupError(f"{self.name} refuses the login, or the user may not use this database")
        if isinstance(exc, InvalidName):
            return StartupError(f"{self.name}: [MONGODB] db or collection is not a name that MongoDB takes")
        reason = (exc.details or {}).get("errmsg", "") if isinstance(exc, OperationFailure) else str(exc)
        return StartupError(f"{self.name} cannot be used: {reason}")

    async def _check_server(self, client: AsyncMongoClient[Raw]) -> None:
        hello = await client.admin.command("hello")
        if hello["maxWireVersion"] < MIN_WIRE_VERSION:
            version = (await client.admin.command("buildInfo"))["version"]
            raise StartupError(f"{self.name} is version {version}; MongoDB 5.0 or later is needed")
        if not hello["isWritablePrimary"]:
            raise StoreUnavailable("the MongoDB server is not the primary")
        self.is_router = hello.get("msg") == "isdbgrid"

    async def _choose_collections(self, client: AsyncMongoClient[Raw]) -> None:
        database: AsyncDatabase[Raw] = client.get_database(
            self._db_name,
            read_preference=ReadPreference.PRIMARY,
            # A screen must not show what a failover could take back.
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", j=True),
        )
        name = self._collection_name
        if name is None:
            # The original kept its documents in a collection named like its database.
            existing = await database.list_collection_names(filter={"name": self._db_name})
            name = self._db_name if existing else "notifications"
        self.documents: Collection = database[name]
        self.intents: Collection = database[f"{name}_intents"]
        self.broadcasts: Collection = database[f"{name}_broadcasts"]
        self.once: Collection = database[f"{name}_once"]
        self.tenants: Collection = database[f"{name}_tenants"]
        self.users: Collection = database[f"{name}_users"]
        self.ways: Collection = database[f"{name}_ways"]
        self.sign_outs: Collection = database[f"{name}_sign_outs"]
        self.leases: Collection = database[f"{name}_leases"]
        self.meta: Collection = database[f"{name}_meta"]


def raise_but_for_duplicates(failed: BulkWriteError) -> None:
    """Return if all that failed in a batch is there already. `failed` holds the documents, so it is not to be
    logged."""
    if failed.details["writeConcernErrors"]:
        raise StoreUnavailable() from failed
    errors = [
        document_error(each) for each in failed.details["writeErrors"] if each["code"] != _DUPLICATE_KEY
    ]
    if errors:
        # As long as some may be stored later, so may all.
        raise min(errors, key=lambda error: isinstance(error, DocumentRefused)) from None


def document_error(error: Raw) -> StoreUnavailable | DocumentRefused:
    """What one of the `writeErrors` of a batch means to its document."""
    return StoreUnavailable() if error["code"] in _UNAVAILABLE_CODES else DocumentRefused(error["code"])


async def _make_indexes(collection: Collection, indexes: Sequence[IndexModel]) -> None:
    """Make those that are missing. Several nodes may do so at once: MongoDB builds each index once."""
    existing = await collection.index_information()
    missing = [index for index in indexes if index.document["name"] not in existing]
    if not missing:
        return
    size = await collection.estimated_document_count()
    if size:
        logger.info("making %d indexes over %d documents of %s", len(missing), size, collection.full_name)
    await collection.create_indexes(missing)


def _means_unavailable(exc: PyMongoError) -> bool:
    if isinstance(exc, ConfigurationError):
        return False
    if isinstance(exc, BulkWriteError):
        failed = exc.details.get("writeErrors", ())
        return bool(exc.details.get("writeConcernErrors")) or any(
            each["code"] in _UNAVAILABLE_CODES for each in failed
        )
    return (
        exc.timeout
        or isinstance(exc, ConnectionFailure | WriteConcernError)
        or (isinstance(exc, OperationFailure) and exc.code in _UNAVAILABLE_CODES)
    )
