"""Tests of server/flights.py."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.errors import BadCredentials, Busy, InProgress
from server.flights import SingleFlight, Turns


class Slow:
    """What is asked for: answers when it is let."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.calls += 1
        return await asyncio.shield(self.answer)


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
def flights() -> SingleFlight[str, int]:
    return SingleFlight("test")


async def _start(flights: SingleFlight[str, int], slow: Slow, *keys: str) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(flights.do(key, slow)) for key in keys]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_equal_keys_share_one_answer(flights: SingleFlight[str, int], slow: Slow) -> None:
    """Others have their own."""
    tasks = await _start(flights, slow, "a", "a", "b", "a")
    slow.answer.set_result(7)
    assert await asyncio.gather(*tasks) == [7, 7, 7, 7]
    assert slow.calls == 2


async def test_who_comes_after_the_answer_asks_anew(flights: SingleFlight[str, int], slow: Slow) -> None:
    """Nothing is remembered."""
    slow.answer.set_result(7)
    for _ in range(2):
        assert await flights.do("a", slow) == 7
    assert slow.calls == 2


async def test_a_refusal_is_everybodys_and_no_failure_of_a_task(
    flights: SingleFlight[str, int], slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    """It is raised at each who waits, and not logged; the next one asks anew."""
    tasks = await _start(flights, slow, "a", "a")
    slow.answer.set_exception(BadCredentials())
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes] == [BadCredentials, BadCredentials]
    assert not caplog.records
    with pytest.raises(BadCredentials):
        await flights.do("a", slow)
    assert slow.calls == 2


async def test_a_mistake_of_ours_is_raised_and_logged(
    flights: SingleFlight[str, int], slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when nobody waits any more."""
    slow.answer.set_exception(ZeroDivisionError())
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        await flights.do("a", slow)
    assert [record.name for record in caplog.records] == ["server.tasks"]


async def test_it_goes_on_without_those_who_asked(flights: SingleFlight[str, int], slow: Slow) -> None:
    """Who comes later finds it under way."""
    [first] = await _start(flights, slow, "a")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    [second] = await _start(flights, slow, "a")
    slow.answer.set_result(7)
    assert await second == 7
    assert slow.calls == 1


async def test_close_ends_what_is_under_way(flights: SingleFlight[str, int], slow: Slow) -> None:
    """Who waits may try again, with another node. It may be repeated."""
    tasks = await _start(flights, slow, "a", "b")
    await flights.close()
    await flights.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes] == [Busy] * 2


# -- turns ---------------------------------------------------------------------------------------------------
async def test_one_after_the_other() -> None:
    """In the order in which they came, with what is left of their patience; other keys do not wait."""
    turns: Turns[str] = Turns(30)
    order: list[int] = []
    is_let_go = asyncio.Event()

    async def take(number: int) -> float:
        async with turns.take("key") as left_s:
            order.append(number)
            if number == 0:
                await is_let_go.wait()
            return left_s

    tasks = [asyncio.create_task(take(number)) for number in range(5)]
    await asyncio.sleep(0)
    async with turns.take("another"):
        assert order == [0]
    is_let_go.set()
    left = [await task for task in tasks]
    assert order == [0, 1, 2, 3, 4]
    assert all(0 < each < 30 for each in left)
    assert not turns._turns


async def test_who_has_waited_long_enough() -> None:
    """Is told that it is in progress; whoever has the turn keeps it, and hands it on, also if they fail."""
    turns: Turns[str] = Turns(0.02)
    with pytest.raises(ZeroDivisionError):
        async with turns.take("key"):
            for _ in range(2):
                with pytest.raises(InProgress):
                    async with turns.take("key"):
                        pytest.fail("there are two at a time")
            raise ZeroDivisionError
    async with turns.take("key"):
        pass
    assert not turns._turns


async def test_who_is_cancelled_while_waiting_blocks_nobody() -> None:
    """The next one has the turn."""
    turns: Turns[str] = Turns(30)

    async def take() -> None:
        async with turns.take("key"):
            pass

    async with turns.take("key"):
        waiting = [asyncio.create_task(take()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    await waiting[1]
    assert waiting[0].cancelled()
    assert not turns._turns
