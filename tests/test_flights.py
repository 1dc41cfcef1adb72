"""Tests of server/flights.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from server import flights as flights_module
from server.errors import BadCredentials, Busy, InProgress
from server.flights import GATHERED_AT_ONCE, QUIET_TURNS, Gathering, Lull, SingleFlight, Turns


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


# -- those who come at the same moment -----------------------------------------------------------------------
class Guests:
    """They come to a lull, and are away again when they have `left`; `went_on`: how many have, each time."""

    def __init__(self) -> None:
        self.went_on: list[int] = []
        self._came = self._unfinished = 0
        self._lull = Lull(self._go_on)

    def come(self) -> None:
        self._came += 1
        self._unfinished += 1
        self._lull.note(self._unfinished)

    def leave(self, count: int) -> None:
        self._unfinished -= count

    def _go_on(self) -> None:
        self.went_on.append(self._came)
        self._came = 0


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> Guests:
    monkeypatch.setattr(flights_module, "GATHER_S", 60.0)
    return Guests()


async def test_nobody_waits_longer_than_for_those_who_came_before(guests: Guests) -> None:
    """Those who are answered together come back one after the other, and go on together as soon as all are back."""
    for _ in range(3):
        guests.come()
        await _turns(2)
    await _turns(QUIET_TURNS)
    assert guests.went_on == [3]
    guests.leave(3)
    for _ in range(3):
        assert guests.went_on == [3]
        guests.come()
        await _turns(2)
    assert guests.went_on == [3, 3]


async def test_who_is_alone_waits_for_nobody(guests: Guests) -> None:
    guests.come()
    await _turns(2 * QUIET_TURNS)
    guests.leave(1)
    guests.come()
    await _turns(1)
    assert guests.went_on == [1, 1]


async def test_those_who_are_still_under_way_are_not_waited_for(guests: Guests) -> None:
    for _ in range(3):
        guests.come()
    await _turns(2 * QUIET_TURNS)
    guests.leave(1)
    guests.come()
    await _turns(1)
    assert guests.went_on == [3, 1]


async def test_who_does_not_come_back_is_not_waited_for(guests: Guests) -> None:
    """But for some turns, and once."""
    for _ in range(3):
        guests.come()
    await _turns(2 * QUIET_TURNS)
    guests.leave(3)
    guests.come()
    await _turns(QUIET_TURNS - 1)
    assert guests.went_on == [3]
    await _turns(2)
    assert guests.went_on == [3, 1]
    guests.leave(1)
    guests.come()
    await _turns(1)
    assert guests.went_on == [3, 1, 1]


async def test_of_a_crowd_not_all_are_waited_for(guests: Guests) -> None:
    """As soon as enough are unfinished they go on, though there were more of them before."""
    for _ in range(2 * GATHERED_AT_ONCE):
        guests.come()
    await _turns(2 * QUIET_TURNS)
    guests.leave(2 * GATHERED_AT_ONCE)
    for _ in range(GATHERED_AT_ONCE):
        guests.come()
    await _turns(1)
    assert guests.went_on == [2 * GATHERED_AT_ONCE, GATHERED_AT_ONCE]


# -- questions that go on together ---------------------------------------------------------------------------
class Asked:
    """Answers with the double, when it is let; keeps what it was asked."""

    def __init__(self) -> None:
        self.questions: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, questions: Sequence[int]) -> list[int | Exception]:
        self.questions.append(list(questions))
        await self.may_answer.wait()
        if 13 in questions:
            raise BadCredentials
        return [KeyError(question) if question < 0 else 2 * question for question in questions]


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def gathering(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Gathering[int, int]:
    """One in which it makes no difference how fast this machine is."""
    monkeypatch.setattr(flights_module, "GATHER_S", 60.0)
    return Gathering("test", asked)


async def test_questions_of_the_same_moment_are_one(gathering: Gathering[int, int], asked: Asked) -> None:
    """Also of the turns that follow, as long as more come. Each gets its own answer."""
    answers = []
    for question in range(1, 6):
        answers.append(gathering.put(question))
        for _ in range(QUIET_TURNS - 1):
            await asyncio.sleep(0)
    assert len(gathering) == 5
    assert await asyncio.gather(*answers) == [2, 4, 6, 8, 10]
    assert await gathering.put(6) == 12
    assert asked.questions == [[1, 2, 3, 4, 5], [6]]
    assert len(gathering) == 0


async def test_nobody_waits_for_one_that_is_under_way(gathering: Gathering[int, int], asked: Asked) -> None:
    asked.may_answer.clear()
    first = gathering.put(1)
    await _turns(2 * QUIET_TURNS)
    second = gathering.put(2)
    await _turns(2 * QUIET_TURNS)
    assert asked.questions == [[1], [2]]
    asked.may_answer.set()
    assert await asyncio.gather(first, second) == [2, 4]


async def test_a_crowd_goes_on_in_portions(gathering: Gathering[int, int], asked: Asked) -> None:
    """Though one comes in every turn: the first of them do not wait for the last."""
    answers = []
    for question in range(2 * GATHERED_AT_ONCE):
        answers.append(gathering.put(question + 100))
        await asyncio.sleep(0)
    await asyncio.gather(*answers)
    assert [len(portion) for portion in asked.questions] == [GATHERED_AT_ONCE] * 2


async def test_a_crowd_of_one_turn_goes_on_in_portions(gathering: Gathering[int, int], asked: Asked) -> None:
    """As after a moment in which the loop was held up; those who are left wait for others as ever."""
    count = 2 * GATHERED_AT_ONCE + 1
    answers = [gathering.put(question + 100) for question in range(count)]
    await asyncio.sleep(0)
    answers.append(gathering.put(100 + count))
    assert await asyncio.gather(*answers) == [2 * (question + 100) for question in range(count + 1)]
    assert [len(portion) for portion in asked.questions] == [GATHERED_AT_ONCE, GATHERED_AT_ONCE, 2]


async def test_nobody_waits_long_for_others(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many still come."""
    monkeypatch.setattr(flights_module, "GATHER_S", 0.0)
    gathering = Gathering("test", asked)
    answers = []
    for question in (1, 2):
        answers.append(gathering.put(question))
        await _turns(2)
    assert await asyncio.gather(*answers) == [2, 4]
    assert asked.questions == [[1], [2]]


async def test_a_failure_is_the_answer_to_all_of_them(
    gathering: Gathering[int, int], asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    """And of no others; it is no failure of a task."""
    answers = [gathering.put(question) for question in (1, 13)]
    for outcome in await asyncio.gather(*answers, return_exceptions=True):
        assert isinstance(outcome, BadCredentials)
    assert await gathering.put(2) == 4
    assert not caplog.records
    assert len(gathering) == 0


async def test_an_error_may_be_the_answer_to_one(gathering: Gathering[int, int], asked: Asked) -> None:
    """The others have theirs."""
    answers = [gathering.put(question) for question in (1, -1, 2)]
    first, error, last = await asyncio.gather(*answers, return_exceptions=True)
    assert (first, last) == (2, 4)
    assert isinstance(error, KeyError)
    assert asked.questions == [[1, -1, 2]]


async def test_a_question_that_was_given_up_is_left_out(gathering: Gathering[int, int], asked: Asked) -> None:
    """If all were, nothing is asked. One that is given up later changes nothing for the others."""
    first, second = gathering.put(1), gathering.put(2)
    first.cancel()
    assert await second == 4
    gathering.put(3).cancel()
    await _turns(2 * QUIET_TURNS)
    asked.may_answer.clear()
    fourth, fifth = gathering.put(4), gathering.put(5)
    await _turns(2 * QUIET_TURNS)
    fourth.cancel()
    asked.may_answer.set()
    assert await fifth == 10
    assert asked.questions == [[2], [4, 5]]
    assert len(gathering) == 0


async def test_at_the_end_all_is_answered(gathering: Gathering[int, int], asked: Asked) -> None:
    """What had not gone on yet, too; what takes too long is cancelled, and so is who waits for it."""
    answer = gathering.put(1)
    await gathering.finish(60)
    assert answer.result() == 2
    asked.may_answer.clear()
    answer = gathering.put(2)
    await gathering.finish(0.01)
    assert answer.cancelled()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
