"""Callers who come at the same moment: the same question is asked once for all of them (`SingleFlight`), different ones
go on together (`Gathering`), or one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.errors import Busy, InProgress, ServerError
from server.tasks import Tasks

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
T = TypeVar("T")

QUIET_TURNS = 4
"""Of the loop, in which nobody came: then those who were gathered go on. A loop that has nothing else to do is through
them in a moment; in a busy one they take about as long as it pays to wait for others."""

GATHER_S = 0.005
"""However many still come, nobody waits longer for others (but to the end of the turn)."""

GATHERED_AT_ONCE = 32
"""So many do not wait for more, and more do not go on as one: of a crowd that comes in one turn, as after an outage,
the first are not kept waiting by the last, nor do all fail if that takes too long."""


class SingleFlight(Generic[K, T]):
    """`name`: what its tasks are called. What is asked for is in memory for as long as it takes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks = Tasks()
        self._flights: dict[K, asyncio.Task[T | ServerError]] = {}

    async def do(self, key: K, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` returns or raises; it is called once for all who come with an equal `key` until it is done. It is
        carried to its end even if everybody who waits is cancelled."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = self._tasks.start(_outcome(make), self._name)
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        # Not the task itself: who waits may go away without ending it.
        await asyncio.wait({flight})
        if flight.cancelled():
            raise Busy("the server is stopping; try again")
        outcome = flight.result()
        if isinstance(outcome, ServerError):
            raise outcome.with_traceback(None)
        return outcome

    async def close(self) -> None:
        """Cancel what is under way; who waits for it gets `Busy`. Idempotent."""
        await self._tasks.cancel()


async def _outcome(make: Callable[[], Awaitable[T]]) -> T | ServerError:
    # As a value: a refusal is no failure of the task, which its owner would log.
    try:
        return await make()
    except ServerError as error:
        return error


class Lull:
    """Waits for the others of those who come at the same moment, and calls `go_on` when nobody has come for
    `QUIET_TURNS`, when nobody else is expected, or `GATHER_S` after the first."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on
        self._came = 0
        self._unfinished = self._expected = 0
        self._until = 0.0
        self._looking: asyncio.Handle | None = None

    def note(self, unfinished: int = 0) -> None:
        """Somebody has come. `unfinished`: how many there are with whom we are not done, of this moment and before.
        Nobody else is expected when they are as many as when the last went on: those who were answered then are all
        back. 0: others may always come."""
        self._came += 1
        self._unfinished = unfinished
        if self._looking is None:
            loop = asyncio.get_running_loop()
            self._until = loop.time() + GATHER_S
            self._looking = loop.call_soon(self._look, self._came, QUIET_TURNS)

    def end(self) -> None:
        """Who has come goes on now: `go_on` is not called for them."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self, before: int, turns: int) -> None:
        """Whether to wait for more, a turn later: then so many had come, and so many turns might go by."""
        loop = asyncio.get_running_loop()
        turns = QUIET_TURNS if self._came > before else turns - 1
        has_all = 0 < self._expected <= self._unfinished
        if turns and not has_all and loop.time() < self._until:
            self._looking = loop.call_soon(self._look, self._came, turns)
        else:
            self._looking = None
            self._expected = min(self._unfinished, GATHERED_AT_ONCE)
            self._go_on()


class Gathering(Generic[Q, T]):
    """Questions of the same moment go on as one: where an answer costs less than asking for it. `name`: what its tasks
    are called. `ask`: the answers to several questions, in their order, in place of one the error that it is; what it
    raises is the answer to each."""

    def __init__(self, name: str, ask: Callable[[Sequence[Q]], Awaitable[Sequence[T | Exception]]]) -> None:
        self._name = name
        self._ask = ask
        self._tasks = Tasks()
        self._gathered: list[tuple[Q, asyncio.Future[T]]] = []
        self._lull = Lull(self._go_on)
        self._unanswered = 0

    def __len__(self) -> int:
        """How many questions have no answer yet."""
        return self._unanswered

    def put(self, question: Q) -> asyncio.Future[T]:
        """The answer to this question. One that is cancelled before it goes on is left out."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gathered.append((question, answer))
        self._unanswered += 1
        self._lull.note()
        if len(self._gathered) >= GATHERED_AT_ONCE:
            self._go_on()
        return answer

    async def finish(self, deadline_s: float) -> None:
        """Answer what was asked so far; what takes longer is cancelled."""
        self._go_on()
        await self._tasks.finish(deadline_s)

    def _go_on(self) -> None:
        self._lull.end()
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._tasks.start(self._answer(gathered), self._name)

    async def _answer(self, gathered: Sequence[tuple[Q, asyncio.Future[T]]]) -> None:
        waiting = [each for each in gathered if not each[1].done()]
        try:
            answers = await self._ask([question for question, _ in waiting]) if waiting else ()
        except Exception as error:
            answers = [error] * len(waiting)
        except asyncio.CancelledError:
            for _, answer in waiting:
                answer.cancel()
            raise
        finally:
            self._unanswered -= len(gathered)
        for (_, answer), said in zip(waiting, answers, strict=True):
            settle(answer, said)


def settle(future: asyncio.Future[T], answer: T | Exception) -> None:
    """Give this answer, or the error that it is, to whoever waits, unless there is one already."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holders: int = 0
    """Who has it, and who waits for it."""


class Turns(Generic[K]):
    """Of all who come with an equal key, one at a time."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._turns: dict[K, _Turn] = {}

    @asynccontextmanager
    async def take(self, key: K) -> AsyncIterator[float]:
        """Wait until nobody else has the turn; what is left of the patience then, in seconds. Raises `InProgress` when
        there is none left."""
        ends_at = asyncio.get_running_loop().time() + self._patience_s
        turn = self._turns.setdefault(key, _Turn())
        turn.holders += 1
        try:
            try:
                async with asyncio.timeout_at(ends_at):
                    await turn.lock.acquire()
            except TimeoutError:
                raise InProgress() from None
            try:
                yield max(0.0, ends_at - asyncio.get_running_loop().time())
            finally:
                turn.lock.release()
        finally:
            turn.holders -= 1
            if not turn.holders:
                del self._turns[key]
