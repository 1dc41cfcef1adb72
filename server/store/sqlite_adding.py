"""Storing notifications in the embedded store: those of one moment go to the writer as one work, which costs half as
much as each for itself. What SQL that takes is in `sqlite_documents`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime

from server.errors import KeyReused, StoreUnavailable
from server.flights import Lull
from server.messages import Document
from server.store import Addition, Stored
from server.store import sqlite_documents as documents
from server.store import sqlite_mail as mail
from server.store import sqlite_once as keys
from server.store.sqlite_errors import as_store_error
from server.store.sqlite_threads import MAX_WAITING, Writer

Outcome = Stored | Exception
"""What became of an addition."""


class Adder:
    """Carries out additions on a connection, in its thread. `take_revs`: gives out so many. `clock`: the store's."""

    def __init__(self, take_revs: Callable[[int], Sequence[int]], clock: Callable[[], datetime]) -> None:
        self._take_revs = take_revs
        self._clock = clock

    def add(self, connection: sqlite3.Connection, additions: Sequence[Addition]) -> list[Outcome]:
        """What became of each. Raises, and is to be undone, if one fails but by what it repeats."""
        outcomes: list[Outcome] = []
        fresh: list[Addition] = []
        for addition in additions:
            repeated = None
            if addition.once is not None:
                try:
                    repeated = keys.repeated(connection, addition.notification, addition.once, self._clock())
                except KeyReused as error:
                    outcomes += self._add_fresh(connection, fresh)
                    outcomes.append(error)
                    continue
            if repeated is None:
                fresh.append(addition)
                continue
            # What it repeats may be among them.
            outcomes += self._add_fresh(connection, fresh)
            users = [recipient.user_id for recipient in addition.recipients]
            found = keys.documents(connection, repeated, users)
            outcomes.append(Stored(repeated, found, [], is_repeat=True))
        return outcomes + self._add_fresh(connection, fresh)

    def add_alone(self, connection: sqlite3.Connection, addition: Addition) -> Outcome:
        """What became of it; what failed is undone. Raises only if all of the transaction is lost."""
        connection.execute("SAVEPOINT addition")
        try:
            [outcome] = self.add(connection, [addition])
        except Exception as exc:
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO addition")
            outcome = as_store_error(exc)
        connection.execute("RELEASE addition")
        return outcome

    def _add_fresh(self, connection: sqlite3.Connection, fresh: list[Addition]) -> list[Outcome]:
        """Store these, of which the list is empty then."""
        if not fresh:
            return []
        added = documents.add_all(
            connection,
            [(addition.notification, addition.recipients) for addition in fresh],
            self._take_revs(len(fresh)),
        )
        outcomes: list[Outcome] = []
        for addition, (key, stored) in zip(fresh, added, strict=True):
            if addition.duty is not None:
                mail.add(connection, key, addition.duty)
            outcomes.append(Stored(addition.notification, stored, stored))
        fresh.clear()
        return outcomes


class _Work:
    """Of the writer, which does what has failed once more: one of the additions is to blame then."""

    def __init__(self, adder: Adder) -> None:
        self._adder = adder
        self._has_failed = False

    def __call__(self, connection: sqlite3.Connection, additions: Sequence[Addition]) -> list[Outcome]:
        if self._has_failed:
            return [self._adder.add_alone(connection, addition) for addition in additions]
        try:
            return self._adder.add(connection, additions)
        except Exception:
            self._has_failed = True
            raise


_Waiting = tuple[Addition, asyncio.Future[Stored]]
"""An addition, and what is to have its answer."""


class Additions:
    """Joins the additions of one moment (`Lull`). `unheard`: gets documents that are stored too late for whoever
    waited. `timeout_s`: how long those who `put` one wait."""

    def __init__(
        self,
        writer: Writer,
        adder: Adder,
        unheard: Callable[[Sequence[Document]], None],
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._writer = writer
        self._adder = adder
        self._unheard = unheard
        self._loop = asyncio.get_running_loop()
        self._joined: list[_Waiting] = []
        self._unfinished = 0
        self._lull = Lull(self.send)

    def put(self, addition: Addition) -> asyncio.Future[Stored]:
        """Store it, with others; the answer is there when it is durable, or is `StoreUnavailable` after `timeout_s`.
        One whose answer is there before it began, or was cancelled, is left out. Raises `StoreUnavailable`."""
        if self._unfinished >= MAX_WAITING:
            raise StoreUnavailable("the store has too much to do; try again")
        self._unfinished += 1
        self._lull.note(self._unfinished)
        answer: asyncio.Future[Stored] = self._loop.create_future()
        self._joined.append((addition, answer))
        return answer

    def put_all(self, additions: Sequence[Addition]) -> asyncio.Future[list[Outcome]]:
        """Store these; what became of each is there when they are durable. Raises `StoreUnavailable`."""

        def unheard(outcomes: list[Outcome]) -> None:
            for outcome in outcomes:
                if isinstance(outcome, Stored):
                    self._unheard(outcome.new)

        add = _Work(self._adder)
        return self._writer.submit(lambda connection: add(connection, additions), unheard)

    def send(self) -> None:
        """Hand over what was put so far."""
        self._lull.end()
        if not self._joined:
            return
        joined, self._joined = self._joined, []
        add = _Work(self._adder)

        def work(connection: sqlite3.Connection) -> list[tuple[_Waiting, Outcome]]:
            wanted = [waiting for waiting in joined if not waiting[1].done()]
            outcomes = add(connection, [addition for addition, _ in wanted])
            return list(zip(wanted, outcomes, strict=True))

        try:
            sent = self._writer.submit(work)
        except StoreUnavailable as error:
            self._fail(joined, error)
        else:
            # One timer for all of them: one for each would cost more than the rest of this.
            timer = self._loop.call_later(self._timeout_s, self._time_out, joined)
            sent.add_done_callback(lambda _: self._give(joined, sent, timer))

    def _time_out(self, joined: Sequence[_Waiting]) -> None:
        for _, answer in joined:
            if not answer.done():
                answer.set_exception(StoreUnavailable())

    def _give(
        self,
        joined: Sequence[_Waiting],
        sent: asyncio.Future[list[tuple[_Waiting, Outcome]]],
        timer: asyncio.TimerHandle,
    ) -> None:
        timer.cancel()
        error = sent.exception()
        if error is not None:
            self._fail(joined, error)
            return
        self._unfinished -= len(joined)
        for (_, answer), outcome in sent.result():
            self._settle(answer, outcome)

    def _settle(self, answer: asyncio.Future[Stored], outcome: Outcome) -> None:
        if isinstance(outcome, Stored):
            if answer.done():
                self._unheard(outcome.new)
            else:
                answer.set_result(outcome)
        elif not answer.done():
            answer.set_exception(outcome)

    def _fail(self, joined: Sequence[_Waiting], error: BaseException) -> None:
        self._unfinished -= len(joined)
        for _, answer in joined:
            if not answer.done():
                # Each its own: whoever gets it adds to its traceback.
                own = StoreUnavailable(str(error)) if isinstance(error, StoreUnavailable) else error
                own.__cause__ = error.__cause__
                answer.set_exception(own)
