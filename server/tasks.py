"""An owner for tasks that come and go: keeps them, names them, logs their failure, and awaits their end; tasks that
belong together; and, for an orderly end, what is in flight, and bounds for each step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any

from server.errors import Busy

logger = logging.getLogger(__name__)

CANCEL_AGAIN_S = 1.0
"""A cancellation can get lost: in Python 3.11 `asyncio.wait_for`, by which pymongo and aiormq wait, drops one that
comes in the same turn as the answer. So who cancels asks again, which an `asyncio.TaskGroup` does not."""


class Tasks:
    """The event loop holds tasks only weakly; this holds them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many there are now."""
        return len(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this owner."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task %s failed", task.get_name(), exc_info=error)

    async def cancel(self) -> None:
        """Cancel all tasks and await their end, which is when they have cleaned up; those, too, that one of them starts
        meanwhile. Who takes longer than `CANCEL_AGAIN_S` is cancelled again."""
        while self._tasks:
            await _cancel(self._tasks)

    async def finish(self, deadline_s: float) -> None:
        """Let the tasks end by themselves for so long, then cancel what is left."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=deadline_s)
        await self.cancel()


class InFlight:
    """Counts what is being carried out for callers: once closed nothing more begins, and what has begun is awaited."""

    def __init__(self) -> None:
        self._count = 0
        self._is_open = True
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def begin(self) -> None:
        """Raises `Busy` once closed; else `end` has to follow."""
        if not self._is_open:
            raise Busy("the server is stopping; try again")
        if not self._count:
            self._is_idle.clear()
        self._count += 1

    def end(self) -> None:
        """After `begin`, whatever came of it."""
        self._count -= 1
        if not self._count:
            self._is_idle.set()

    async def close(self) -> None:
        """Refuse what comes from now on; return when what has begun has ended."""
        self._is_open = False
        await self._is_idle.wait()


async def first_of(*parts: Coroutine[Any, Any, object]) -> None:
    """Run these until the first one ends; then end the others, and raise what it raised, or else what another raised as
    it was ended. When this is cancelled, all of them are; either way none is left when it returns."""
    tasks = [asyncio.create_task(part) for part in parts]
    ended: set[asyncio.Task[Any]] = set()
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        errors = await _end(tasks)
    if errors:
        raise errors[min(errors, key=lambda task: task not in ended)]


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> dict[asyncio.Task[Any], BaseException]:
    """What they have raised. Whoever cancels this meanwhile has to wait, too: it is their owner, and there is no
    other."""
    is_cancelled = False
    while pending := [task for task in tasks if not task.done()]:
        try:
            await _cancel(pending)
        except asyncio.CancelledError:
            is_cancelled = True
    # Of all of them: what nobody asks for is logged as a mistake.
    errors = {
        task: error for task in tasks if not task.cancelled() and (error := task.exception()) is not None
    }
    if is_cancelled:
        raise asyncio.CancelledError
    return errors


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel these, and wait for them, but no longer than until they are to be cancelled again."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)


async def step(what: str, end: Callable[[], Awaitable[None] | None], until: float) -> None:
    """One step of an orderly end, until then (of the loop's time) at the latest; does not raise."""
    try:
        async with asyncio.timeout_at(until):
            ending = end()
            if ending is not None:
                await ending
    except TimeoutError:
        logger.warning("%s: not ended in time", what)
    except Exception:
        logger.exception("%s: could not be ended", what)
