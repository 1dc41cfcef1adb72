"""The threads that own the embedded store's connections: one writes, in group commits; a few read.

The loop hands in functions of a connection and awaits what they return. Both kinds are bounded, and turn SQLite's
complaints about the disk into `StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from server.errors import StoreUnavailable
from server.store.sqlite_errors import as_store_error, is_busy

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MAX_WAITING = 5000
"""Works accepted and not done yet, of the writer and of the readers each. More are refused at once: at several thousand
a second those would wait for a second or more."""

MAX_TRANSACTION_S = 0.05
"""A transaction takes in what arrives while it runs, but no longer than this, so that its first work is not kept
waiting by its last."""

_BUSY_POLL_S = 0.001
"""Between two tries to begin a transaction while another process writes. SQLite's own waiting grows to 0.1 s a try and
may never hit upon the short moments between the transactions of somebody who writes all the time."""


class _Job:
    """A work and its answer. The answers of one transaction are given together, after its commit."""

    __slots__ = ("answer", "error", "is_left_out", "result", "unheard", "work")

    def __init__(
        self, work: Work[Any], answer: asyncio.Future[Any], unheard: Callable[[Any], None] | None
    ) -> None:
        self.work = work
        self.answer = answer
        self.unheard = unheard
        self.result: Any = None  # of whatever type the work returns
        self.error: Exception | None = None
        self.is_left_out = False

    def run(self, connection: sqlite3.Connection) -> None:
        """Do the work and keep what becomes of it."""
        self.error = None
        try:
            self.result = self.work(connection)
        except Exception as exc:
            self.error = as_store_error(exc)

    def leave_out(self) -> None:
        """Nobody waits for it any more."""
        self.is_left_out = True
        self.error = StoreUnavailable()

    def give(self) -> None:
        """To be called on the loop."""
        if not self.answer.done():
            if self.error is None:
                self.answer.set_result(self.result)
            else:
                self.answer.set_exception(self.error)
        elif self.error is None and self.unheard is not None:
            self.unheard(self.result)


class Writer:
    """Runs works on one connection, in the order given, several to a transaction."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        before_commit: Callable[[sqlite3.Connection], None],
        patience_s: float = 0.0,
        after_commit: Callable[[], None] = lambda: None,
        after_begin: Callable[[sqlite3.Connection], None] = lambda _: None,
        after_failure: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """Takes over `connection`. `after_begin` is called at the beginning of each transaction, and again when it has
        to begin anew, `before_commit` at its end, `after_commit` when readers see it, before any answer is given,
        `after_failure` with what a work raised, or what the whole transaction was lost by, all in the writer's thread.
        `patience_s`: how long to wait while another process writes. Made, used and closed on one loop."""
        connection.execute("PRAGMA busy_timeout = 0")
        self._connection = connection
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._after_begin = after_begin
        self._after_failure = after_failure
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closing = False
        self._has_ended = False  # the thread's own
        self._ended = asyncio.Event()
        _start_thread(self._run, "sqlite-writer")

    def submit(self, work: Work[T], unheard: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Queue a work; its result is there when it is durable. What the work raises is undone and comes back, to its
        own caller only; if the transaction fails as a whole, all get `StoreUnavailable`. When one of several fails, all
        are undone and done again: a work leaves no trace but in the database. A work whose answer was cancelled before
        it began is left out; if it was cancelled later, `unheard` gets the durable result."""
        if self._is_closing:
            raise StoreUnavailable("the store is closed")
        if self._jobs.qsize() >= MAX_WAITING:
            raise StoreUnavailable("the store has too much to do; try again")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, answer, unheard))
        return answer

    async def close(self) -> None:
        """Return when all that was queued is done and the connection closed."""
        if not self._is_closing:
            self._is_closing = True
            self._jobs.put(None)
        await self._ended.wait()

    # -- in the thread ---------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._has_ended:
            _call_soon(self._loop, _give_answers, self._transact())
        self._connection.close()  # the last connection to close copies the log into the main file
        _call_soon(self._loop, self._ended.set)

    def _transact(self) -> list[_Job]:
        """Wait for jobs and do all that there are in one transaction."""
        jobs: list[_Job] = []
        try:
            for job in self._arriving():
                jobs.append(job)
                if len(jobs) == 1:
                    self._begin()
                self._do(job)
                if job.error is not None and not job.is_left_out:
                    self._after_failure(job.error)
                    self._do_again(jobs)
                    break
            if jobs:
                self._before_commit(self._connection)
                self._connection.execute("COMMIT")
                self._after_commit()
        except Exception as exc:
            self._after_failure(exc)
            for job in jobs:
                job.error = job.error or as_store_error(exc)
            with contextlib.suppress(sqlite3.Error):  # tried again before the next transaction
                self._roll_back()
        return jobs

    def _arriving(self) -> Iterator[_Job]:
        """The next job, as soon as there is one, then those that wait already or come while the earlier are done."""
        job = self._jobs.get()
        until = time.monotonic() + MAX_TRANSACTION_S
        while job is not None:
            yield job
            if time.monotonic() > until or self._jobs.empty():
                return
            job = self._jobs.get()
        self._has_ended = True

    def _begin(self) -> None:
        self._roll_back()
        until = time.monotonic() + self._patience_s
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as exc:
                if not is_busy(exc) or time.monotonic() >= until:
                    raise
                time.sleep(_BUSY_POLL_S)
        self._after_begin(self._connection)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _do(self, job: _Job) -> None:
        if job.answer.cancelled():
            job.leave_out()
        else:
            job.run(self._connection)

    def _do_again(self, jobs: Sequence[_Job]) -> None:
        """One of these jobs has failed, which is rare: begin again, with each in a savepoint, so that only its own is
        undone. Savepoints for all from the start would double the cost of most: SQLite keeps a copy of each page that
        changes in one. Raises only if the whole transaction is lost."""
        self._begin()
        for job in jobs:
            self._connection.execute("SAVEPOINT job")
            self._do(job)
            if job.error is not None:
                if not self._connection.in_transaction:  # as after some errors of the disk
                    raise job.error
                self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")


def _give_answers(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.give()


class Readers:
    """Runs works on connections that only read, one thread to a connection."""

    def __init__(self, connections: Sequence[sqlite3.Connection], timeout_s: float) -> None:
        """Takes over the connections. `timeout_s` bounds each work. Made, used and closed on one loop."""
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._timeout_s = timeout_s
        # with the loop's time at which each has taken too long, in order
        self._unfinished: dict[_Job, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_closing = False
        self._running = len(connections)
        self._ended = asyncio.Event()
        self._done: deque[_Job] = deque()
        self._is_told = False  # whether the loop is going to look there
        for connection in connections:
            _start_thread(self._run, "sqlite-reader", connection)

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        """Queue a work, for the answer that it returns or raises, or `StoreUnavailable` if that takes too long. One
        whose answer is there or was cancelled before it began is left out."""
        if self.is_closing:
            raise StoreUnavailable("the store is closed")
        if len(self._unfinished) >= MAX_WAITING:
            raise StoreUnavailable("the store has too much to do; try again")
        answer: asyncio.Future[T] = self._loop.create_future()
        job = _Job(work, answer, None)
        until = self._unfinished[job] = self._loop.time() + self._timeout_s
        # One timer for all of them: one for each would cost more than the rest of this.
        if self._timer is None:
            self._timer = self._loop.call_at(until, self._time_out)
        self._jobs.put(job)
        return answer

    async def close(self) -> None:
        """Return when all that was queued is done and the connections are closed."""
        if not self.is_closing:
            self.is_closing = True
            for _ in range(self._running):
                self._jobs.put(None)
        await self._ended.wait()

    def _give_all(self) -> None:
        self._is_told = False  # before looking: what is done from now on is told anew
        while self._done:
            job = self._done.popleft()
            del self._unfinished[job]
            job.give()

    def _time_out(self) -> None:
        """Nobody waits any longer for what has taken too long, which is unfinished until a thread has had it."""
        self._timer = None
        now = self._loop.time()
        for job, until in self._unfinished.items():
            if until > now:
                self._timer = self._loop.call_at(until, self._time_out)
                return
            if not job.answer.done():
                job.answer.set_exception(StoreUnavailable())

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            if self._timer is not None:
                self._timer.cancel()
            self._ended.set()

    # -- in the threads --------------------------------------------------------------------------------------
    def _run(self, connection: sqlite3.Connection) -> None:
        while self._do_next(connection):
            pass
        connection.close()
        _call_soon(self._loop, self._end)

    def _do_next(self, connection: sqlite3.Connection) -> bool:
        """False if there is no more to come."""
        job = self._jobs.get()
        if job is None:
            return False
        if not job.answer.done():
            job.run(connection)
        self._done.append(job)
        # To wake the loop costs as much as many a read: once for all that are done before it has looked.
        if not self._is_told:
            self._is_told = True
            _call_soon(self._loop, self._give_all)
        return True


async def within(timeout_s: float, answer: asyncio.Future[T]) -> T:
    """The answer, or `StoreUnavailable` if it takes longer."""
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError as exc:
        raise StoreUnavailable() from exc


# -- threads and their loop ----------------------------------------------------------------------------------


def _start_thread(run: Callable[..., None], name: str, *arguments: Any) -> None:
    # A daemon: a disk that hangs must not keep the process from ending.
    threading.Thread(target=run, name=name, args=arguments, daemon=True).start()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(
        RuntimeError
    ):  # the loop was closed: its process ends, and nobody waits any more
        loop.call_soon_threadsafe(callback, *arguments)
