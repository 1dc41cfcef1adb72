"""Group commit: single writes of concurrent requests go to MongoDB together, in few round trips at a time."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, PyMongoError

from server.errors import Busy, StoreUnavailable
from server.flights import Lull, settle
from server.messages import Document, Notification
from server.store.mongo_connection import Connection, document_error
from server.store.mongo_documents import notification_fields
from server.store.mongo_users import KnownUsers, UserKey

T = TypeVar("T")
R = TypeVar("R")

MAX_FLIGHTS = 2
"""Batches that are under way at once. While one waits for the disk the next is sent; more of them would be smaller, and
each takes as much of the CPU as several documents."""

MAX_BATCH_DOCUMENTS = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends with the document that reaches this, so the largest document goes too."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""What may wait for its batch, all requests together, before new ones are refused."""


def chunks(documents: Sequence[Document], most: int) -> Iterator[Sequence[Document]]:
    """`documents` in their order, at most so many at a time, and of long ones as many as go into a batch."""
    start = size = length = 0
    notification: Notification | None = None
    for index, document in enumerate(documents):
        if document.notification is not notification:
            notification = document.notification
            length = len(bson.encode(notification_fields(notification)))
        if index > start and (index - start == most or size + length > MAX_BATCH_BYTES):
            yield documents[start:index]
            start, size = index, 0
        size += length
    if documents:
        yield documents[start:]


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    size: int
    answer: asyncio.Future[R]
    time_out: asyncio.TimerHandle


class Batches(ABC, Generic[T, R]):
    """What is put in one moment (`Lull`), or while as many batches as may be are under way, makes up the next one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._waiting_bytes = 0
        self._unfinished = 0
        self._flights: set[asyncio.Task[None]] = set()
        self._lull = Lull(self._take_off)

    @abstractmethod
    async def _write(self, items: Sequence[T]) -> Sequence[R | Exception]:
        """Write these, and return when they are durable: what becomes of each. Raises what becomes of all."""

    def put(self, item: T, size: int) -> asyncio.Future[R]:
        """What becomes of this write: its result, its own error, or `StoreUnavailable` (it may still be made), also
        after the time limit of a verb. One that is cancelled before it is sent is left out. Raises `Busy`."""
        if self._waiting_bytes > MAX_WAITING_BYTES:
            raise Busy("too many notifications wait to be stored; try again")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        time_out = loop.call_later(self._connection.timeout_s, settle, answer, StoreUnavailable())
        self._waiting.append(_Waiting(item, size, answer, time_out))
        self._waiting_bytes += size
        self._unfinished += 1
        self._expect_more()
        return answer

    async def close(self) -> None:
        """Return when nothing waits or is under way any more."""
        while self._waiting or self._flights:
            if len(self._flights) < MAX_FLIGHTS:
                self._take_off()
            if self._flights:
                await asyncio.wait(self._flights, return_when=asyncio.FIRST_COMPLETED)

    def _expect_more(self) -> None:
        if self._waiting and len(self._flights) < MAX_FLIGHTS:
            self._lull.note(self._unfinished)

    def _take_off(self) -> None:
        self._lull.end()
        if batch := self._next_batch():
            # In a context of its own: the first caller's deadline is not that of those who come later.
            flight = asyncio.get_running_loop().create_task(
                self._fly(batch), name="mongo-batches", context=contextvars.Context()
            )
            self._flights.add(flight)
        self._expect_more()

    async def _fly(self, batch: Sequence[_Waiting[T, R]]) -> None:
        try:
            await self._send(batch)
        finally:
            self._unfinished -= len(batch)
            # Not in a callback: whoever was answered in this turn may put the next one before that is called.
            self._flights.discard(asyncio.current_task())
            self._expect_more()

    async def _send(self, batch: Sequence[_Waiting[T, R]]) -> None:
        answers: Sequence[R | Exception]
        try:
            with self._connection.bounded():
                answers = await self._write([waiting.item for waiting in batch])
        except (StoreUnavailable, PyMongoError) as exc:
            answers = [exc] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.time_out.cancel()
            settle(waiting.answer, answer)

    def _next_batch(self) -> list[_Waiting[T, R]]:
        """Of those waiting, leaving out whose request has given up, so that a 503 mostly means: not stored."""
        batch: list[_Waiting[T, R]] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_DOCUMENTS and size < MAX_BATCH_BYTES:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size
            if waiting.answer.done():
                waiting.time_out.cancel()
                self._unfinished -= 1
            else:
                batch.append(waiting)
                size += waiting.size
        return batch


@dataclass(slots=True, eq=False)
class _Insert:
    document: RawBSONDocument
    user: UserKey
    created_at: datetime


class Batcher(Batches[_Insert, None]):
    """Of new documents."""

    def __init__(self, connection: Connection, users: KnownUsers) -> None:
        super().__init__(connection)
        self._users = users

    def insert(self, document: RawBSONDocument, user: UserKey, created_at: datetime) -> asyncio.Future[None]:
        """`put` a document; done when it is durable, and its user known."""
        return self.put(_Insert(document, user, created_at), len(document.raw))

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
