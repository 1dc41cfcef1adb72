"""Tests of server/tasks.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from functools import partial

import pytest

from server import tasks as module
from server.tasks import Tasks, first_of


async def test_a_task_is_kept_while_it_runs() -> None:
    """The loop holds tasks only weakly: without an owner the collector could take one that waits."""
    tasks, result = Tasks(), asyncio.Event()

    async def wait_for_nobody_else() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(gc.collect)
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await future
        result.set()

    tasks.start(wait_for_nobody_else(), "waits")
    async with asyncio.timeout(30):
        await result.wait()


async def test_a_task_has_its_name_and_its_result() -> None:
    """It is an ordinary task to who started it."""

    async def answer() -> int:
        return 42

    task = Tasks().start(answer(), "answers")
    assert task.get_name() == "answers"
    assert await task == 42


async def test_a_failure_is_logged_with_the_name_and_ends_only_its_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody awaits these tasks: their owner notices."""
    tasks, go_on = Tasks(), asyncio.Event()

    async def fail() -> None:
        raise RuntimeError("broken")

    other = tasks.start(go_on.wait(), "other")
    with caplog.at_level(logging.ERROR):
        failed = tasks.start(fail(), "fails")
        await asyncio.wait([failed])
        await asyncio.sleep(0)
    [record] = caplog.records
    assert record.getMessage() == "task fails failed"
    assert record.exc_info is not None
    assert not other.done()
    go_on.set()
    await other


async def test_cancel_awaits_the_end_of_all(caplog: pytest.LogCaptureFixture) -> None:
    """Their clean-up has run when it returns; being cancelled is no failure."""
    tasks, cleaned = Tasks(), []

    async def run(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    started = [tasks.start(run(number), "runs") for number in range(3)]
    await asyncio.sleep(0)
    await tasks.cancel()
    assert sorted(cleaned) == [0, 1, 2]
    assert all(task.cancelled() for task in started)
    assert not caplog.records
    await tasks.cancel()


async def test_a_task_that_does_not_let_itself_be_cancelled_does_not_hold_up_who_waits_for_it() -> None:
    """Awaiting the end of all can be given up."""
    tasks, go_on = Tasks(), asyncio.Event()

    async def run() -> None:
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    task = tasks.start(run(), "refuses")
    await asyncio.sleep(0)
    cancelling = asyncio.create_task(tasks.cancel())
    await asyncio.sleep(0)
    cancelling.cancel()
    await asyncio.wait([cancelling], timeout=5)
    assert cancelling.cancelled()
    assert not task.done()
    go_on.set()
    await task


async def test_a_cancellation_that_gets_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some libraries lose them: the end comes all the same."""
    monkeypatch.setattr(module, "CANCEL_AGAIN_S", 0.01)
    tasks, lost = Tasks(), asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.set()
        await asyncio.Event().wait()

    task = tasks.start(run(), "loses one")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.cancel()
    assert lost.is_set()
    assert task.cancelled()


async def test_finish_lets_tasks_end_by_themselves() -> None:
    """Within the time given, nothing is cut off."""
    tasks, go_on = Tasks(), asyncio.Event()
    task = tasks.start(go_on.wait(), "runs")
    asyncio.get_running_loop().call_soon(go_on.set)
    await tasks.finish(deadline_s=30)
    assert task.result() is True


async def test_finish_cancels_what_does_not_end() -> None:
    """At the deadline."""
    tasks = Tasks()
    task = tasks.start(asyncio.Event().wait(), "hangs")
    await tasks.finish(deadline_s=0)
    assert task.cancelled()


async def test_nothing_to_finish_takes_no_time() -> None:
    """An owner without tasks is done."""
    async with asyncio.timeout(30):
        await Tasks().finish(deadline_s=1000)


async def test_what_a_task_starts_while_all_are_cancelled_is_cancelled_too() -> None:
    """As one does whose cancellation got lost."""
    tasks, late = Tasks(), []

    async def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        late.append(tasks.start(asyncio.Event().wait(), "late"))

    tasks.start(run(), "loses one")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await tasks.cancel()
    assert [task.cancelled() for task in late] == [True]


# -- parts ---------------------------------------------------------------------------------------------------
async def test_the_first_one_ends_the_others() -> None:
    """As it ended itself; also when all of it is cancelled."""
    cancelled: list[str] = []

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    async def fail() -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await first_of(wait("a"), fail())
    await first_of(wait("b"), asyncio.sleep(0))
    task = asyncio.create_task(first_of(wait("c"), wait("d")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == ["a", "b", "c", "d"]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_when_several_parts_fail_at_once_one_is_raised_and_none_is_forgotten(
    caplog: pytest.LogCaptureFixture, is_cancelled: bool
) -> None:
    """asyncio would log each error that nobody asked for; also when it is cancelled in that moment."""
    go_on = asyncio.Event()

    async def fail() -> None:
        await go_on.wait()
        raise LookupError("gone")

    running = asyncio.create_task(first_of(fail(), fail(), fail()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.sleep(0)
    if is_cancelled:
        running.cancel()
    await asyncio.wait([running])
    assert running.cancelled() if is_cancelled else isinstance(running.exception(), LookupError)
    del running
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("is_stubborn_first", [False, True])
async def test_of_several_errors_that_of_the_first_one_is_raised(is_stubborn_first: bool) -> None:
    """What comes of ending the others is raised only if the first one ended well."""

    async def fail() -> None:
        raise ConnectionError("gone")

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("cut off")

    for first, error in ((fail, ConnectionError), (partial(asyncio.sleep, 0), LookupError)):
        parts = [stay(), first()] if is_stubborn_first else [first(), stay()]
        with pytest.raises(error):
            await first_of(*parts)


async def test_no_error_is_forgotten_when_it_is_cancelled_while_it_ends_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Though nobody hears of it any more."""
    is_ending = asyncio.Event()

    async def fail() -> None:
        raise LookupError("gone")

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            is_ending.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    running = asyncio.create_task(first_of(fail(), stay()))
    await is_ending.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    del running
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("cancelled", [0, 1, 3])
async def test_no_part_is_left_though_cancellations_get_lost(
    monkeypatch: pytest.MonkeyPatch, cancelled: int
) -> None:
    """Those of the parts, and however often it is cancelled itself."""
    monkeypatch.setattr(module, "CANCEL_AGAIN_S", 0.01)
    go_on, ended = asyncio.Event(), 0

    async def stay() -> None:
        nonlocal ended
        try:
            for _ in range(3):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            await asyncio.Event().wait()
        finally:
            ended += 1

    running = asyncio.create_task(first_of(stay(), go_on.wait(), stay()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go_on.set()
    for _ in range(cancelled):
        running.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.wait([running])
    assert ended == 2
    assert running.cancelled() is bool(cancelled)
