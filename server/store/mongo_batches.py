"""Group commit: single writes of concurrent requests go to MongoDB together, one round trip at a time."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, PyMongoError

from server.errors import Busy, StoreUnavailable
from server.store.mongo_connection import Connection, document_error
from server.store.mongo_users import KnownUsers, UserKey

T = TypeVar("T")
R = TypeVar("R")

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends with the document that reaches this, so the largest document goes too."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""What may wait for its batch, all requests together, before new ones are refused."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    size: int
    answer: asyncio.Future[R]


class Batches(ABC, Generic[T, R]):
    """Writes that arrive while a batch is under way make up the next one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _write(self, items: Sequence[T]) -> Sequence[R | Exception]:
        """Write these, and return when they are durable: what becomes of each. Raises what becomes of all."""

    async def put(self, item: T, size: int) -> R:
        """What became of this write. Raises its own error, `Busy` (nothing was sent) or `StoreUnavailable` (it may
        still be made)."""
        if self._waiting_bytes > MAX_WAITING_BYTES:
            raise Busy("too many notifications wait to be stored; try again")
        waiting: _Waiting[T, R] = _Waiting(item, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_bytes += size
        if self._task is None or self._task.done():
            # In a context of its own: the first caller's deadline is not that of those who come later.
            self._task = asyncio.create_task(self._run(), name="mongo-batches", context=contextvars.Context())
        try:
            async with asyncio.timeout(self._connection.timeout_s):
                return await waiting.answer
        except TimeoutError as exc:
            raise StoreUnavailable() from exc

    async def close(self) -> None:
        """Return when nothing is under way any more."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while batch := self._next_batch():
            answers: Sequence[R | Exception]
            try:
                with self._connection.bounded():
                    answers = await self._write([waiting.item for waiting in batch])
            except (StoreUnavailable, PyMongoError) as exc:
                answers = [exc] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                _settle(waiting.answer, answer)

    def _next_batch(self) -> list[_Waiting[T, R]]:
        """Of those waiting, leaving out whose request has given up, so that a 503 mostly means: not stored."""
        batch: list[_Waiting[T, R]] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_DOCUMENTS and size < MAX_BATCH_BYTES:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size
            if not waiting.answer.done():
                batch.append(waiting)
                size += waiting.size
        return batch


@dataclass(frozen=True, slots=True, eq=False)
class _Insert:
    document: RawBSONDocument
    user: UserKey
    created_at: datetime


class Batcher(Batches[_Insert, None]):
    """Of new documents."""

    def __init__(self, connection: Connection, users: KnownUsers) -> None:
        super().__init__(connection)
        self._users = users

    async def insert(self, document: RawBSONDocument, user: UserKey, created_at: datetime) -> None:
        """Return when the document is durable, and its user known. Raises as `put`."""
        await self.put(_Insert(document, user, created_at), len(document.raw))

    async def _write(self, items: Sequence[_Insert]) -> Sequence[None | Exception]:
        await self._users.register({insert.user: insert.created_at for insert in reversed(items)})
        answers: list[None | Exception] = [None] * len(items)
        try:
            await self._connection.documents.insert_many([insert.document for insert in items], ordered=False)
        except BulkWriteError as exc:
            if exc.details["writeConcernErrors"]:
                raise StoreUnavailable() from exc
            for error in exc.details["writeErrors"]:
                answers[error["index"]] = document_error(error)
        return answers


def _settle(future: asyncio.Future[R], answer: R | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
