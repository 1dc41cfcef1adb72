"""Tests of server/guessing.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from pydispatch import dispatcher

from server import guessing as module
from server.bus import THROTTLED
from server.errors import AuthUnavailable, Busy, RateLimited
from server.guessing import (
    FREE_AT_ONCE,
    FREE_AT_PLACE,
    FREE_OF_LOGIN,
    FREE_OF_PAIR,
    FREE_UNANSWERED,
    HALF_LIFE_S,
    IDLE_PER_CHECK,
    KNOWN_S,
    MAX_DELAY_S,
    MAX_HELD_AT_PLACE,
    MAX_OF_PAIR,
    STRANGERS_AT_ONCE,
    Brake,
)
from tests.support.clock import Clock

HOME = "198.51.100.7"
CAFE = "203.0.113.9"
RIGHT = "right"


class Guard:
    """A brake before one password: that of every login is `RIGHT`."""

    def __init__(self, max_waiting: int = 1000) -> None:
        self.clock = Clock()
        self.brake = Brake(max_waiting, self.clock, self.clock.sleep)
        self.checked: list[tuple[str, str, str]] = []
        """Login, address and password of each check, in this order."""
        self.held: asyncio.Event | None = None
        """What checks wait for; None: nothing."""
        self.throttled: list[str] = []
        dispatcher.connect(self._throttled, THROTTLED, sender=self.brake)

    def _throttled(self, limit: str) -> None:
        self.throttled.append(limit)

    def start(self, login: str, address: str, password: str = "wrong") -> asyncio.Task[str | None]:  # noqa: S107
        """Somebody tries."""

        async def check() -> str | None:
            self.checked.append((login, address, password))
            if self.held is not None:
                await self.held.wait()
            return login if password == RIGHT else None

        return asyncio.create_task(self.brake.guard(login, address, check))

    async def now(self, login: str, address: str, password: str = "wrong") -> str | None:  # noqa: S107
        """Somebody tries, and is answered without time passing."""
        attempt = self.start(login, address, password)
        await self.clock.settle()
        assert attempt.done(), "was held up"
        return attempt.result()

    async def waits(self, login: str, address: str, password: str = "wrong") -> float:  # noqa: S107
        """For how long somebody who tries is held up; they are answered then."""
        attempt, began = self.start(login, address, password), self.clock.now
        await self.clock.settle()
        if attempt.done():
            return 0.0
        [(until, _)] = self.clock.sleepers
        assert not attempt.done()
        await self.clock.turn(until - began)
        assert attempt.done()
        return until - began

    async def fail(self, times: int, login: str, address: str) -> None:
        for _ in range(times):
            await self.waits(login, address)


@pytest.fixture
def guard() -> Iterator[Guard]:
    yield Guard()


# -- what is slowed ------------------------------------------------------------------------------------------
async def test_slowed_guesses_of_a_place_leave_most_of_the_time_to_others(guard: Guard) -> None:
    """They are checked one after the other, and after each that was wrong there is a pause, as checks are dear."""
    await guard.fail(FREE_AT_PLACE + 8, "anybody", CAFE)
    guard.checked.clear()
    guard.held = asyncio.Event()
    first, second = guard.start("carol", CAFE), guard.start("dave", CAFE)
    await guard.clock.turn(MAX_DELAY_S)
    assert len(guard.checked) == 1
    guard.clock.now += 2  # which the check takes
    guard.held.set()
    await guard.clock.settle()
    assert first.done() != second.done()
    assert len(guard.checked) == 1
    await guard.clock.turn(IDLE_PER_CHECK * (2 + MAX_DELAY_S))
    assert first.done() and second.done()
    assert len(guard.checked) == 2


async def test_attempts_of_a_place_with_some_failures_are_checked_one_by_one(guard: Guard) -> None:
    """Before any of them has to wait for something else: there is not much guessed until then."""
    guard.held = asyncio.Event()
    guard.held.set()
    for number in range(FREE_AT_ONCE):
        assert await guard.now(f"user{number}", CAFE) is None
    guard.held.clear()
    guard.checked.clear()
    attempts = [guard.start(f"new{number}", CAFE, RIGHT) for number in range(3)]
    elsewhere = [guard.start(f"other{number}", HOME) for number in range(3)]
    await guard.clock.settle()
    assert [address for _, address, _ in guard.checked].count(CAFE) == 1
    assert [address for _, address, _ in guard.checked].count(HOME) == 3
    guard.held.set()
    await asyncio.gather(*attempts, *elsewhere)


async def test_a_slowed_login_that_was_right_keeps_nobody_waiting(guard: Guard) -> None:
    """Only guesses are paid for."""
    await guard.fail(FREE_AT_PLACE + 8, "anybody", CAFE)
    guard.held = asyncio.Event()
    first, second = guard.start("carol", CAFE, RIGHT), guard.start("dave", CAFE, RIGHT)
    await guard.clock.turn(MAX_DELAY_S)
    guard.clock.now += 2
    guard.held.set()
    await guard.clock.settle()
    assert first.done() and second.done()


async def test_a_few_mistakes_cost_nothing(guard: Guard) -> None:
    """Who mistypes now and then is never held up, and gets in; that clears it."""
    for _ in range(3):
        for _ in range(FREE_OF_PAIR - 1):
            assert await guard.now("carol", HOME) is None
        assert await guard.now("carol", HOME, RIGHT) == "carol"
    assert not guard.throttled


async def test_each_failure_more_waits_longer_up_to_some_seconds(guard: Guard) -> None:
    """Before the check, so that a guess that is not waited for learns nothing; and never refused."""
    await guard.fail(FREE_OF_PAIR, "carol", HOME)
    waits = [await guard.waits("carol", HOME) for _ in range(20)]
    assert 0 < waits[0] <= module.FIRST_DELAY_S
    assert all(MAX_DELAY_S / 2 <= wait <= MAX_DELAY_S for wait in waits[6:])
    assert len(set(waits[6:])) > 1, "they would all come at once again"
    assert guard.throttled == ["guessing"] * 20
    checked = len(guard.checked)
    attempt = guard.start("carol", HOME, RIGHT)
    await guard.clock.settle()
    assert len(guard.checked) == checked
    await guard.clock.turn(MAX_DELAY_S)
    assert await attempt == "carol"


async def test_a_login_is_slowed_from_wherever_it_is_guessed_at(guard: Guard) -> None:
    """Many addresses, each with a few guesses at one login, wait as one would."""
    for number in range(FREE_OF_LOGIN):
        assert await guard.now("carol", f"192.0.2.{number}") is None
    assert await guard.waits("carol", "192.0.2.200") > 0
    assert await guard.now("dave", "192.0.2.200") is None


async def test_a_place_is_slowed_whichever_logins_it_guesses_at(guard: Guard) -> None:
    """Each a few times, as with a list of stolen passwords; other places are not."""
    for number in range(FREE_AT_PLACE):
        assert await guard.now(f"user{number}", HOME) is None
    assert await guard.waits("another", HOME) > 0
    assert await guard.now("another", CAFE) is None


@pytest.mark.parametrize(
    ("addresses", "is_one_place"),
    [
        (("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"), True),
        (("2001:db8:1:2::1", "2001:db8:1:3::1"), False),
        (("192.0.2.1", "::ffff:192.0.2.1"), True),
        (("192.0.2.1", "192.0.2.2"), False),
        (("::ffff:192.0.2.1", "::ffff:192.0.2.2"), False),
        (("fe80::1%eth0", "fe80::2%eth0"), True),
        (("unknown", "unknown"), True),
        (("unknown", "_hidden"), False),
    ],
)
async def test_a_place_is_what_one_host_can_choose_from(
    guard: Guard, addresses: tuple[str, str], is_one_place: bool
) -> None:
    """An IPv6 network of 64 bits; an IPv4 address, however it is written; a proxy's word for it as it is."""
    await guard.fail(FREE_OF_PAIR, "carol", addresses[0])
    assert (await guard.waits("carol", addresses[1]) > 0) == is_one_place


@pytest.mark.parametrize("spelling", ["CAROL", "cárol", "carol ", "car\u200bol", "ｃａｒｏｌ"])
async def test_spellings_that_a_database_takes_for_one_login_are_one(guard: Guard, spelling: str) -> None:
    """Else each would have its own few free guesses at the same user."""
    await guard.fail(FREE_OF_PAIR, "carol", HOME)
    assert await guard.waits(spelling, HOME) > 0


async def test_failures_fade(guard: Guard) -> None:
    """Some minutes after the guessing, however long it was, nobody is held up."""
    await guard.fail(200, "carol", HOME)
    guard.clock.now += 3 * HALF_LIFE_S
    assert await guard.waits("carol", HOME) == 0


async def test_an_attempt_that_is_cut_off_while_it_waits_was_none(guard: Guard) -> None:
    """It frees its place, at the pair and among those that wait."""
    await guard.fail(FREE_OF_PAIR, "carol", HOME)
    checked = len(guard.checked)
    for _ in range(MAX_HELD_AT_PLACE + MAX_OF_PAIR):
        attempt = guard.start("carol", HOME)
        await guard.clock.settle()
        attempt.cancel()
        await guard.clock.settle()
    assert len(guard.checked) == checked
    assert await guard.waits("carol", HOME) > 0
    assert not guard.brake._queues
    assert not guard.brake._held


# -- nobody is locked out ------------------------------------------------------------------------------------
async def test_guesses_from_elsewhere_do_not_delay_the_owner_at_a_known_place(guard: Guard) -> None:
    """However many there are, from however many places, while they wait and while they are checked."""
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    attack = [guard.start("carol", f"192.0.{third}.{fourth}") for third in range(4) for fourth in range(250)]
    await guard.clock.settle()
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    await guard.clock.turn(MAX_DELAY_S)
    attack += [guard.start("carol", f"2001:db8:{number:x}::1") for number in range(1000)]
    await guard.clock.settle()
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    for attempt in attack:
        attempt.cancel()
    await asyncio.gather(*attack, return_exceptions=True)


async def test_guesses_at_other_logins_do_not_delay_who_is_known_at_the_same_place(guard: Guard) -> None:
    """An attacker in the same office, behind the same address, with any number of logins."""
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    attack = [guard.start(f"user{number}", HOME) for number in range(500)]
    await guard.clock.turn(10)
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    assert await guard.waits("dave", HOME, RIGHT) <= MAX_DELAY_S
    assert await guard.now("dave", HOME, RIGHT) == "dave", "and now they are known, too"
    await asyncio.gather(*attack, return_exceptions=True)


async def test_guesses_at_one_login_keep_no_other_of_the_place_waiting(guard: Guard) -> None:
    """They go one by one, in a short queue of their own; a colleague who was never there before waits seconds."""
    for number in range(FREE_AT_PLACE):
        await guard.now(f"user{number}", HOME)
    attack = [guard.start("carol", HOME) for _ in range(200)]
    await guard.clock.settle()
    assert sum(attempt.done() for attempt in attack) == 200 - MAX_OF_PAIR
    colleague = guard.start("dave", HOME, RIGHT)
    await guard.clock.turn(MAX_DELAY_S)
    assert await colleague == "dave"
    await guard.clock.turn(100)
    outcomes = await asyncio.gather(*attack, return_exceptions=True)
    assert all(each is None or isinstance(each, RateLimited) for each in outcomes)


async def test_an_owner_whose_login_is_guessed_at_in_the_same_place_waits_seconds(guard: Guard) -> None:
    """There is nothing to tell them apart by; but they get in, and are never refused for good."""
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    await guard.fail(50, "carol", HOME)
    owner = guard.start("carol", HOME, RIGHT)
    await guard.clock.turn(MAX_DELAY_S)
    assert await owner == "carol"


async def test_a_known_place_gives_no_more_guesses_than_others(guard: Guard) -> None:
    """Whoever sits there is slowed by the failures made there."""
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    await guard.fail(FREE_OF_PAIR, "carol", HOME)
    assert await guard.waits("carol", HOME) > 0


async def test_who_gets_in_clears_no_failures_but_their_own(guard: Guard) -> None:
    """An account of one's own is no way to guess faster at others', nor is the owner's coming and going."""
    for number in range(FREE_AT_PLACE):
        await guard.now(f"user{number}", HOME)
    for number in range(FREE_OF_LOGIN):
        await guard.now("carol", f"192.0.2.{number}")
    assert await guard.waits("mallory", HOME, RIGHT) > 0
    assert await guard.waits("another", HOME) > 0
    assert await guard.waits("carol", CAFE, RIGHT) > 0
    assert await guard.waits("carol", "192.0.2.100") > 0


async def test_a_place_is_known_for_some_time(guard: Guard) -> None:
    """Then it must be proved again."""
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    guard.clock.now += KNOWN_S
    for number in range(FREE_OF_LOGIN):
        await guard.now("carol", f"192.0.2.{number}")
    assert await guard.waits("carol", HOME, RIGHT) > 0


async def test_a_method_that_cannot_be_asked_slows_the_pair_only(guard: Guard) -> None:
    """While a database is away everybody fails: no place and no login is slowed for that. Yet who tries one login over
    and over meanwhile, which another method may know, is."""

    async def away() -> None:
        raise AuthUnavailable("away")

    for number in range(3 * FREE_AT_PLACE):
        with pytest.raises(AuthUnavailable):
            await guard.brake.guard(f"user{number}", HOME, away)
    assert await guard.now("carol", HOME) is None
    for _ in range(FREE_OF_PAIR):
        with pytest.raises(AuthUnavailable):
            await guard.brake.guard("dave", HOME, away)
    assert await guard.waits("dave", HOME) > 0


# -- bounds --------------------------------------------------------------------------------------------------
async def test_attempts_at_one_login_from_one_place_go_one_by_one(guard: Guard) -> None:
    """Else a thousand guesses at once were all checked before the first had failed. A few queue up; more are told to
    come back."""
    guard.held = asyncio.Event()
    attempts = [guard.start("carol", HOME) for _ in range(MAX_OF_PAIR + 1)]
    await guard.clock.settle()
    assert len(guard.checked) == 1
    with pytest.raises(RateLimited) as caught:
        await attempts.pop()
    assert caught.value.retry_after_s > 0
    guard.held.set()
    await guard.clock.turn(MAX_DELAY_S)
    assert await asyncio.gather(*attempts) == [None] * MAX_OF_PAIR


async def test_a_burst_is_slowed_while_it_lasts(guard: Guard) -> None:
    """A place that tries a thousand logins at once gets as many checked as are under way at the same time; then each is
    worked out anew when it is its turn: a few wait, the others are told to come back."""
    guard.held = asyncio.Event()
    attempts = [guard.start(f"user{number}", HOME) for number in range(1000)]
    await guard.clock.settle()
    assert len(guard.checked) == STRANGERS_AT_ONCE
    guard.held.set()
    await guard.clock.settle()
    await guard.clock.settle()
    assert len(guard.checked) < FREE_AT_PLACE + STRANGERS_AT_ONCE
    await guard.clock.turn(MAX_DELAY_S)
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, RateLimited)]
    assert all(each is None for each in outcomes if each not in refused)
    assert len(outcomes) - len(refused) < FREE_AT_PLACE + STRANGERS_AT_ONCE + MAX_HELD_AT_PLACE
    assert all(0 < each.retry_after_s <= MAX_DELAY_S for each in refused)


async def test_an_office_that_comes_back_at_once_is_not_slowed(guard: Guard) -> None:
    """After a restart nobody is known anywhere: five hundred users behind one address get in, with no time passing."""
    attempts = [guard.start(f"user{number}", HOME, RIGHT) for number in range(500)]
    await asyncio.wait_for(asyncio.gather(*attempts), 30)
    assert not guard.throttled


async def test_strangers_who_wait_for_their_turn_are_bounded() -> None:
    """More are told to try again; who is known where they are waits behind none of them."""
    guard = Guard(max_waiting=3)
    assert await guard.now("carol", HOME, RIGHT) == "carol"
    guard.held = asyncio.Event()
    attempts = [guard.start("x", f"192.0.2.{number}") for number in range(STRANGERS_AT_ONCE + 3)]
    await guard.clock.settle()
    with pytest.raises(Busy):
        await guard.now("dave", CAFE)
    carol = guard.start("carol", HOME, RIGHT)
    await guard.clock.settle()
    assert guard.checked[-1] == ("carol", HOME, RIGHT)
    guard.held.set()
    assert await carol == "carol"
    await guard.clock.turn(MAX_DELAY_S)
    await asyncio.gather(*attempts)
    assert not guard.brake._turnstile._waiting


async def test_one_place_does_not_fill_the_queue() -> None:
    """Half of it is the others'."""
    guard = Guard(max_waiting=10)
    guard.held = asyncio.Event()
    attempts = [guard.start(f"user{number}", HOME) for number in range(STRANGERS_AT_ONCE + 6)]
    await guard.clock.settle()
    with pytest.raises(RateLimited):
        await attempts.pop()
    others = [guard.start("carol", f"192.0.2.{number}", RIGHT) for number in range(5)]
    await guard.clock.settle()
    with pytest.raises(Busy):
        await guard.now("dave", CAFE)
    guard.held.set()
    await guard.clock.turn(MAX_DELAY_S)
    assert await asyncio.gather(*others) == ["carol"] * 5
    await asyncio.gather(*attempts)


async def test_one_place_does_not_take_all_turns_while_nobody_decides(guard: Guard) -> None:
    """While a hook hangs: its attempts go one by one then, until one is decided again."""

    async def hang() -> str:
        await guard.clock.sleep(5)
        raise AuthUnavailable("no answer")

    attempts = [asyncio.create_task(guard.brake.guard(f"user{number}", HOME, hang)) for number in range(40)]
    await guard.clock.settle()
    assert len(guard.clock.sleepers) == STRANGERS_AT_ONCE
    await guard.clock.turn(5)
    assert len(guard.clock.sleepers) <= FREE_UNANSWERED
    assert await guard.now("carol", CAFE, RIGHT) == "carol"
    await guard.clock.turn(5)
    assert len(guard.clock.sleepers) == 1
    for task in attempts:
        task.cancel()
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    hung = [each for each in outcomes if isinstance(each, AuthUnavailable)]
    assert STRANGERS_AT_ONCE < len(hung) <= STRANGERS_AT_ONCE + FREE_UNANSWERED
    assert await guard.now("erin", HOME, RIGHT) == "erin"
    guard.held = asyncio.Event()
    at_once = [guard.start(f"late{number}", HOME, RIGHT) for number in range(3)]
    await guard.clock.settle()
    assert len(guard.checked) == 2 + 3
    guard.held.set()
    await asyncio.gather(*at_once)


async def test_a_quick_word_that_nobody_decides_holds_up_no_place(guard: Guard) -> None:
    """It takes no turn for long: while a database refuses all connections, many may come at once as before."""

    async def away() -> str:
        raise AuthUnavailable("no answer")

    for number in range(3 * FREE_UNANSWERED):
        with pytest.raises(AuthUnavailable):
            await guard.brake.guard(f"user{number}", HOME, away)
    guard.held = asyncio.Event()
    at_once = [guard.start(f"late{number}", HOME, RIGHT) for number in range(3)]
    await guard.clock.settle()
    assert len(guard.checked) == 3
    guard.held.set()
    await asyncio.gather(*at_once)


async def test_those_who_wait_at_all_places_are_bounded(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many places there are."""
    monkeypatch.setattr(module, "MAX_HELD", 3)
    await guard.fail(FREE_OF_LOGIN, "carol", HOME)
    attempts = [guard.start("carol", f"192.0.2.{number}") for number in range(3)]
    await guard.clock.settle()
    with pytest.raises(RateLimited):
        await guard.now("carol", "192.0.2.99")
    await guard.clock.turn(MAX_DELAY_S)
    await asyncio.gather(*attempts)


async def test_what_is_remembered_is_bounded_and_unreadable(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither logins, which may be passwords in the wrong field, nor addresses are kept; the ones idle for longest make
    room."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    for number in range(30):
        await guard.now(f"login{number}", f"192.0.2.{number}")
        await guard.now(f"login{number}", f"192.0.2.{number}", RIGHT)
    brake = guard.brake
    tables: list[Any] = [
        brake._known,
        brake._pairs._counts,
        brake._logins._counts,
        brake._places._counts,
    ]
    assert all(len(table) <= 10 for table in tables)
    assert "login" not in repr(tables)
    assert "192.0.2" not in repr(tables)
    assert not brake._queues
    assert not brake._held
    assert await guard.now("login29", "192.0.2.29", RIGHT) == "login29"
