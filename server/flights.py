"""What is asked for several times at the same moment: one answer for all, or one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.errors import Busy, InProgress, ServerError
from server.tasks import Tasks

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


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
