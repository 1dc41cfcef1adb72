"""Tests of server/arrivals.py: one comes in a turn of the loop, those first who have been begun with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from server.arrivals import Arrivals

Turn = Callable[[], Awaitable[None]]


class Turns:
    """Counts the turns of the loop, and notes in which of them somebody came in."""

    def __init__(self) -> None:
        self.came: list[tuple[int, str]] = []
        self._number = 0
        self._count()

    def _count(self) -> None:
        self._number += 1
        self._handle = asyncio.get_running_loop().call_soon(self._count)

    async def come(self, name: str, turn: Turn) -> None:
        await turn()
        self.came.append((self._number, name))

    def end(self) -> None:
        self._handle.cancel()


async def test_who_comes_alone_does_not_wait() -> None:
    """Not even a turn."""
    arrivals, turns = Arrivals(), Turns()
    for _ in range(3):
        coming = turns.come("a", arrivals.to_connect)
        try:
            coming.send(None)  # type: ignore[attr-defined]  # a coroutine
        except StopIteration:
            pass
        else:
            raise AssertionError("it waits")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    turns.end()


async def test_a_crowd_comes_in_one_by_one() -> None:
    """In its order, each in a turn of its own."""
    arrivals, turns = Arrivals(), Turns()
    await asyncio.gather(*(turns.come(str(number), arrivals.to_connect) for number in range(50)))
    turns.end()
    assert [name for _, name in turns.came] == [str(number) for number in range(50)]
    numbers = [number for number, _ in turns.came]
    assert len(set(numbers)) == len(numbers)
    assert numbers[-1] - numbers[0] < 2 * len(numbers)


async def test_who_joins_comes_before_those_who_connect() -> None:
    """Else a crowd would all be connected before the first of it is served."""
    arrivals, turns = Arrivals(), Turns()

    async def come(name: str) -> None:
        await turns.come(f"{name} connects", arrivals.to_connect)
        await turns.come(f"{name} joins", arrivals.to_join)

    await asyncio.gather(*map(come, "abc"))
    turns.end()
    assert [name for _, name in turns.came] == [
        f"{name} {does}" for name in "abc" for does in ("connects", "joins")
    ]


async def test_who_goes_away_while_waiting_holds_up_nobody() -> None:
    """Its turn is the next one's."""
    arrivals, turns = Arrivals(), Turns()
    tasks = [asyncio.create_task(turns.come(name, arrivals.to_connect)) for name in "abcde"]
    await asyncio.sleep(0)
    for each in tasks[1:4]:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.wait_for(turns.come("f", arrivals.to_connect), 10)
    turns.end()
    assert [name for _, name in turns.came] == ["a", "e", "f"]
