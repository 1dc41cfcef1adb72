"""Tests of server/flights.py."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.errors import BadCredentials, Busy
from server.flights import SingleFlight


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
