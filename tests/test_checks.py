"""Tests of server/checks.py."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.checks import Checks, NotYet, State, Trouble
from server.errors import StoreUnavailable
from tests.support.clock import Clock

SECRET = "mongodb://admin:hunter2@10.0.0.7:27017"  # noqa: S105  # a made-up one, that must not come out


class Dependency:
    """Counts how often it is asked; fails, or hangs, on command."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.asked = 0
        self.reached = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def probe(self) -> None:
        self.asked += 1
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def checks(clock: Clock) -> Checks:
    made = Checks(clock=clock, kept_s=1.0)
    made.state = State.SERVING
    return made


async def test_each_dependency_is_asked_and_shown_in_order(checks: Checks) -> None:
    """With whether it is vital, and how long it took."""
    store, mail = Dependency(), Dependency()
    mail.failure = Trouble("mail does not go out")
    checks.add("store", store.probe, is_vital=True)
    checks.add("mail", mail.probe)
    found = await checks.look()
    assert [(each.name, each.is_vital, each.is_up, each.reason) for each in found] == [
        ("store", True, True, ""),
        ("mail", False, False, "mail does not go out"),
    ]
    assert all(each.latency_ms >= 0 for each in found)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (StoreUnavailable(f"cannot connect to {SECRET}"), "store_unavailable"),
        (OSError(f"connect to {SECRET}: refused"), "failed; the log says why"),
        (ValueError(""), "failed; the log says why"),
        (TimeoutError(), "no answer within 2 s"),
    ],
)
async def test_a_reason_names_no_address(checks: Checks, failure: Exception, reason: str) -> None:
    """Anybody may ask; what exactly is wrong stands in the log."""
    store = Dependency()
    store.failure = failure
    checks.add("store", store.probe)
    [found] = await checks.look()
    assert (found.is_up, found.reason) == (False, reason)


async def test_who_hangs_is_down_when_the_time_is_over(clock: Clock) -> None:
    """And holds up nobody else's answer for longer."""
    checks, store, mail = Checks(clock=clock, timeout_s=0.01), Dependency(), Dependency()
    checks.state = State.SERVING
    store.gate = asyncio.Event()
    checks.add("store", store.probe)
    checks.add("mail", mail.probe)
    assert [each.reason for each in await checks.look()] == ["no answer within 0.01 s", ""]


async def test_who_hangs_is_not_cut_off(clock: Clock) -> None:
    """Cut off in the middle, the client of a store may never work again. Nor is it asked a second time meanwhile."""
    asked, go_on = 0, asyncio.Event()

    async def probe() -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()

    checks = Checks(timeout_s=0.01, kept_s=0.0, clock=clock)
    checks.state = State.SERVING
    checks.add("store", probe)
    for _ in range(2):
        [finding] = await checks.look()
        assert not finding.is_up
    assert asked == 1
    go_on.set()
    while not finding.is_up:
        [finding] = await checks.look()


async def test_at_the_end_nothing_is_left_that_was_asked(clock: Clock) -> None:
    """What is answered in time comes to its end by itself, the rest is given up; who waits for it gets an answer."""
    checks, store, mail = Checks(clock=clock), Dependency(), Dependency()
    checks.state = State.SERVING
    before = asyncio.all_tasks()
    store.gate, mail.gate = asyncio.Event(), asyncio.Event()
    checks.add("store", store.probe)
    checks.add("mail", mail.probe)
    looking = asyncio.create_task(checks.look())
    await store.reached.wait()
    await mail.reached.wait()
    checks.state = State.STOPPING
    store.gate.set()
    await checks.close(0.1)
    assert [each.is_up for each in await looking] == [True, False]
    assert asyncio.all_tasks() <= before


async def test_a_flood_of_questions_is_one_question(checks: Checks, clock: Clock) -> None:
    """Those that come while it is being asked share the answer, and so do those of the next second."""
    store = Dependency()
    store.gate = asyncio.Event()
    checks.add("store", store.probe)
    asking = [asyncio.ensure_future(checks.look()) for _ in range(100)]
    await store.reached.wait()
    store.gate.set()
    answers = await asyncio.gather(*asking)
    clock.now += 0.9
    answers.append(await checks.look())
    assert store.asked == 1
    assert all(answer == answers[0] for answer in answers)
    clock.now += 0.2
    await checks.look()
    assert store.asked == 2


@pytest.mark.parametrize("state", [State.STARTING, State.STOPPING])
async def test_nothing_is_asked_before_and_after_serving(checks: Checks, state: State) -> None:
    """The store is not open then."""
    store = Dependency()
    checks.add("store", store.probe)
    await checks.look()
    checks.state = state
    assert await checks.look() == ()
    assert store.asked == 1


async def test_somebody_is_told_of_each_question(clock: Clock) -> None:
    """The figures: name, outcome, seconds."""
    heard: list[tuple[str, bool]] = []

    def note(name: str, is_up: bool, took_s: float) -> None:
        assert took_s >= 0
        heard.append((name, is_up))

    checks, store = Checks(note, clock=clock), Dependency()
    checks.state = State.SERVING
    checks.add("store", store.probe)
    await checks.look()
    store.failure = StoreUnavailable()
    clock.now += 2
    await checks.look()
    assert heard == [("store", True), ("store", False)]


async def test_the_log_says_once_what_is_wrong_and_once_that_it_is_over(
    checks: Checks, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """However often somebody asks."""
    caplog.set_level(logging.INFO, "server.checks")
    store = Dependency()
    checks.add("store", store.probe)
    for failure in (None, OSError("disk is full"), OSError("disk is full"), None, None):
        store.failure = failure
        await checks.look()
        clock.now += 2
    assert [record.getMessage() for record in caplog.records] == ["store: disk is full", "store: well again"]


async def test_what_is_just_beginning_is_no_news(
    checks: Checks, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asks is told that it is not there yet; the log is not told that it is well again."""
    caplog.set_level(logging.INFO, "server.checks")
    link = Dependency()
    checks.add("backplane", link.probe)
    link.failure = NotYet("not connected")
    [finding] = await checks.look()
    assert (finding.is_up, finding.reason) == (False, "not connected")
    clock.now += 2
    link.failure = None
    [finding] = await checks.look()
    assert finding.is_up and caplog.records == []
