"""Group commit: single documents of concurrent requests go to MongoDB together, one round trip at a time."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass
from datetime import datetime

from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, PyMongoError

from server.errors import Busy, StoreUnavailable
from server.store.mongo_connection import Connection, document_error
from server.store.mongo_users import KnownUsers, UserKey

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends with the document that reaches this, so the largest document goes too."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""What may wait for its batch, all requests together, before new ones are refused."""


@dataclass(frozen=True, slots=True, eq=False)
class _Insert:
    document: RawBSONDocument
    user: UserKey
    created_at: datetime
    is_stored: asyncio.Future[None]


class Batcher:
    """Inserts that arrive while a batch is under way make up the next one."""

    def __init__(self, connection: Connection, users: KnownUsers) -> None:
        self._connection = connection
        self._users = users
        self._waiting: deque[_Insert] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None

    async def insert(self, document: RawBSONDocument, user: UserKey, created_at: datetime) -> None:
        """Return when the document is durable, and its user known. Raises its own error, `Busy` (nothing was sent) or
        `StoreUnavailable` (it may still be stored)."""
        if self._waiting_bytes > MAX_WAITING_BYTES:
            raise Busy("too many notifications wait to be stored; try again")
        insert = _Insert(document, user, created_at, asyncio.get_running_loop().create_future())
        self._waiting.append(insert)
        self._waiting_bytes += len(document.raw)
        if self._task is None or self._task.done():
            # In a context of its own: the first caller's deadline is not that of those who come later.
            self._task = asyncio.create_task(self._run(), name="mongo-batches", context=contextvars.Context())
        try:
            async with asyncio.timeout(self._connection.timeout_s):
                await insert.is_stored
        except TimeoutError as exc:
            raise StoreUnavailable() from exc

    async def close(self) -> None:
        """Return when nothing is under way any more."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while batch := self._next_batch():
            try:
                errors = await self._insert_many(batch)
            except (StoreUnavailable, PyMongoError) as exc:
                errors = dict.fromkeys(range(len(batch)), exc)
            for index, insert in enumerate(batch):
                _settle(insert.is_stored, errors.get(index))

    def _next_batch(self) -> list[_Insert]:
        """Of those waiting, leaving out whose request has given up, so that a 503 mostly means: not stored."""
        batch: list[_Insert] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_DOCUMENTS and size < MAX_BATCH_BYTES:
            insert = self._waiting.popleft()
            self._waiting_bytes -= len(insert.document.raw)
            if not insert.is_stored.done():
                batch.append(insert)
                size += len(insert.document.raw)
        return batch

    async def _insert_many(self, batch: list[_Insert]) -> dict[int, Exception]:
        """The errors of single documents, by their index."""
        documents = [insert.document for insert in batch]
        with self._connection.bounded():
            await self._users.register({insert.user: insert.created_at for insert in reversed(batch)})
            try:
                await self._connection.documents.insert_many(documents, ordered=False)
            except BulkWriteError as exc:
                if exc.details["writeConcernErrors"]:
                    raise StoreUnavailable() from exc
                return {error["index"]: document_error(error) for error in exc.details["writeErrors"]}
        return {}


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
