"""What a worker does with what its supervisor says, and what it says itself (server/workers/worker.py): one of them in
this process, and the ends of its sockets that a supervisor would have."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import Counter

from server.config import Config
from server.figures import pack, unpack
from server.metrics import Metrics
from server.workers import worker
from server.workers.channel import Channel, Given, Message, line
from server.workers.seat import Orders
from server.workers.worker import WorkerSeat

WAIT_S = 20.0
"""How long something may take that is to come: no measure, only the end of a hang."""


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A seat is made once in the life of a process."""
    handler, mask = (
        signal.getsignal(signal.SIGUSR2),
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}),
    )
    yield
    signal.signal(signal.SIGUSR2, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Over:
    """What is over the worker: its supervisor, and the process that obeys."""

    def __init__(self, number: int, *, has_posts: bool = True) -> None:
        self.told: list[str] = []
        self.ended = asyncio.Event()
        self.left = threading.Event()
        self._ours, theirs = socket.socketpair()
        lifeline, self._held_end = os.pipe()
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        self.inboxes = [inbox for inbox, _ in pairs]
        self.posts = [post for _, post in pairs]
        self.given = Given(
            number=number,
            channel=theirs.detach(),
            lifeline=lifeline,
            main=[],
            publishing=[],
            is_early=False,
            lease_holder="a name",
            inbox=os.dup(self.inboxes[number - 1].fileno()) if has_posts else None,
            posts=[os.dup(post.fileno()) for post in self.posts] if has_posts else [],
        )
        self.channel: Channel

    @property
    def orders(self) -> Orders:
        def end() -> None:
            self.told.append("end")
            self.ended.set()

        def leave(why: str) -> None:
            self.told.append(f"leave: {why}")
            self.left.set()

        return Orders(
            end=end,
            leave=leave,
            reload=lambda: self.told.append("reload"),
            last_resort_s=0.0,
        )

    async def open(self) -> None:
        self.channel = await Channel.open(self._ours)

    async def hears(self) -> Message | None:
        return await asyncio.wait_for(self.channel.hear(), WAIT_S)

    async def is_obeyed(self) -> None:
        """All that was said is dealt with."""
        self.channel.say(line("sign"))
        assert await self.hears() == {"is": "sign"}

    def die(self) -> None:
        if self._held_end >= 0:
            os.close(self._held_end)
            self._held_end = -1

    def close(self) -> None:
        self.die()
        for each in (*self.inboxes, *self.posts):
            each.close()


@asynccontextmanager
async def seated(number: int = 2, *, has_posts: bool = True) -> AsyncIterator[tuple[WorkerSeat, Over]]:
    """A worker that takes orders, and who gives them."""
    over = Over(number, has_posts=has_posts)
    seat = WorkerSeat(over.given)
    await over.open()
    try:
        await seat.take(over.orders)
        assert await over.hears() == {"is": "hello", "signs": True}
        yield seat, over
    finally:
        await seat.leave()
        await over.channel.close()
        over.close()
        assert await asyncio.to_thread(over.left.wait, WAIT_S)  # the thread that watches the lifeline
        os.close(over.given.lifeline)
        if seat.handoff is not None:
            for each in (seat.handoff._inbox, *(way.post for way in seat.handoff._ways)):
                each.close()


def figures(count: float) -> Any:
    """Of a process, packed."""
    return [["published", "", "counter", "", [["published_total", {}, count]]], ["up", "", "gauge", "", []]]


async def test_it_is_what_it_was_given() -> None:
    """One that has others beside it need not answer before it serves; leases are those of who was there before."""
    async with seated(2) as (seat, _):
        assert (seat.number, seat.lease_holder, seat.listens_early) == (2, "a name", False)
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
        assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# -- orders --------------------------------------------------------------------------------------------------


async def test_it_gives_signs_of_life_before_it_serves() -> None:
    """While it waits for the store, say. Words that it does not know are ignored."""
    async with seated() as (_, over):
        over.channel.say(line("of a later version"))
        await over.is_obeyed()
        assert over.told == []


async def test_it_does_as_it_is_told() -> None:
    """Who is replaced gives way, and answers for a while; told to end afterwards, it is nobody's predecessor."""
    async with seated() as (seat, over):
        assert seat.handoff is not None
        taken: list[socket.socket] = []
        seat.take_in(lambda connection, request: taken.append(connection))
        over.channel.say(line("reload"))
        over.channel.say(line("end", replaced=True))
        await over.is_obeyed()
        assert over.told == ["reload", "end"]
        assert (seat.hand_over_s, seat.drains) == (worker.HAND_OVER_S, True)
        assert seat.handoff.has_successor
        assert not asyncio.get_running_loop().remove_reader(seat.handoff._inbox)
        over.channel.say(line("end", replaced=False))
        await over.is_obeyed()
        assert over.told == ["reload", "end", "end"]
        assert (seat.hand_over_s, seat.handoff.has_successor) == (0.0, False)


async def test_without_others_it_ends_as_well() -> None:
    """An older supervisor gives it no inbox."""
    async with seated(has_posts=False) as (seat, over):
        assert seat.handoff is None
        seat.take_in(lambda connection, request: None)
        seat.watch(Metrics({}))
        for is_replaced, hand_over_s in ((True, worker.HAND_OVER_S), (False, 0.0)):
            over.channel.say(line("end", replaced=is_replaced))
            await over.is_obeyed()
            assert seat.hand_over_s == hand_over_s
        seat.closed()
        assert await over.hears() == {"is": "closed"}


async def test_it_ends_at_once_with_its_supervisor(caplog: pytest.LogCaptureFixture) -> None:
    """As if told so, without draining."""
    async with seated() as (seat, over):
        await over.channel.close()
        await asyncio.wait_for(over.ended.wait(), WAIT_S)
        assert not seat.drains
    assert [record.getMessage() for record in caplog.records] == [
        "the supervisor is gone, so this worker ends, too"
    ]


async def test_it_leaves_if_it_does_not_end() -> None:
    """When the supervisor is gone, and not before."""
    async with seated() as (_, over):
        await over.is_obeyed()
        assert not over.left.is_set()
        over.die()
        assert over.left.wait(WAIT_S)  # the loop stands still meanwhile
        assert over.told == ["leave: the supervisor is gone"]


# -- what is told --------------------------------------------------------------------------------------------


async def test_it_says_when_it_serves_and_when_it_takes_in_nobody_any_more() -> None:
    """With the names of what it uses; from then on, what is handed over is for its successor."""
    async with seated() as (seat, over):
        assert seat.handoff is not None
        config = Config()
        seat.announce(config, 1, "a store", "a mail", None)
        seat.ready()
        seat.take_in(lambda connection, request: None)
        assert await over.hears() == {
            "is": "ready",
            "store": "a store",
            "mail": "a mail",
            "drain_s": config.application.drain_s,
        }
        seat.closed()
        assert await over.hears() == {"is": "closed"}
        assert not asyncio.get_running_loop().remove_reader(seat.handoff._inbox)


async def test_what_is_thrown_to_others_is_for_those_of_their_numbers() -> None:
    """The first of them is worker 1."""
    async with seated(2) as (seat, over):
        assert seat.handoff is not None and seat.handoff.affinity.number == 1
        here, there = socket.socketpair()
        with here, there:
            seat.handoff.give(0, here, b"request")
        with pytest.raises(BlockingIOError):
            over.inboxes[1].recv(100)
        assert over.inboxes[0].recv(100).endswith(b"request")


async def test_figures_are_told_to_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    """With those of what it has handed over; before there are any, nothing is said."""
    async with seated() as (seat, over):
        over.channel.say(line("ask"))
        await over.is_obeyed()
        metrics = Metrics({})
        seat.watch(metrics)
        over.channel.say(line("ask"))
        message = await over.hears()
        assert message is not None and message["is"] == "figures"
        assert {"notification_uptime_seconds", "notification_handoffs"} <= {
            each[0] for each in message["packed"]
        }
    assert not caplog.records


async def test_the_figures_of_all_are_its_own_and_those_of_the_others() -> None:
    """Who asks at the same time is answered one after the other."""
    async with seated() as (seat, over):
        metrics = Metrics({})
        seat.watch(metrics)
        assert metrics.others is not None
        asking = [asyncio.ensure_future(metrics.others(unpack(figures(number)))) for number in (1, 2)]
        for number in (1, 2):
            assert await over.hears() == {"is": "ask", "packed": figures(number)}
            await over.is_obeyed()
            over.channel.say(line("all", packed=figures(10)) + line("all", packed=figures(20)))
            await over.is_obeyed()
        assert [pack(each)[0] for each in await asyncio.gather(*asking)] == [
            figures(11)[0],
            figures(12)[0],
        ]


@pytest.mark.parametrize("answer", [None, {}, {"packed": 5}, {"packed": [["x"]]}])
async def test_if_nobody_knows_those_of_the_others_its_own_are_told(
    answer: dict[str, Any] | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever, and what comes too late is not taken."""
    if answer is None:
        monkeypatch.setattr(worker, "WAIT_S", 0.01)
    async with seated() as (seat, over):
        own = unpack(figures(1))
        asking = asyncio.create_task(seat._with_others(own))
        assert await over.hears() == {"is": "ask", "packed": figures(1)}
        if answer is not None:
            over.channel.say(line("all", **answer))
        assert await asking is own
        over.channel.say(line("all", packed=figures(10)))
        await over.is_obeyed()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the figures are those of this worker only" in caplog.text


# -- the end -------------------------------------------------------------------------------------------------


async def test_its_last_word_is_what_it_has_counted() -> None:
    """Counters, and nothing that has gone with it; who waited to be handed over is closed."""
    async with seated(1) as (seat, over):
        assert seat.handoff is not None
        metrics = Metrics({})
        Counter("published", "", registry=metrics.registry).inc(5)
        seat.watch(metrics)
        here, there = socket.socketpair()
        seat.handoff.give(1, here, b"")
        while not seat.handoff.waiting:
            seat.handoff.give(1, here, b"x" * 1000)
        here.close()
        await seat.leave()
        message = await over.hears()
        assert message is not None and message["is"] == "last"
        assert {each[2] for each in message["packed"]} <= {"counter", "histogram", "summary"}
        told = {
            sample: value for family in message["packed"] for sample, labels, value in family[4] if not labels
        }
        assert told["published_total"] == 5
        closed = [
            value
            for family in message["packed"]
            for sample, labels, value in family[4]
            if labels == {"outcome": "closed"}
        ]
        assert closed == [1]
        assert await over.hears() is None
        assert (seat.handoff.waiting, len(seat._tasks)) == (0, 0)
        there.close()


async def test_it_does_not_wait_for_a_supervisor_that_does_not_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It hangs, perhaps."""
    monkeypatch.setattr(worker, "LEAVE_S", 0.05)
    async with seated() as (seat, over):
        over.channel._reader._transport.pause_reading()  # type: ignore[attr-defined]  # as one that hangs
        assert seat._channel is not None
        seat._channel.say(b" " * 10_000_000 + b"\n")
        await asyncio.wait_for(seat.leave(), WAIT_S)
        over.channel._reader._transport.resume_reading()  # type: ignore[attr-defined]


async def test_who_was_never_told_anything_just_goes() -> None:
    """As when it could not even begin."""
    over = Over(1, has_posts=False)
    await over.open()
    try:
        seat = WorkerSeat(over.given)
        seat.ready()
        own = unpack(figures(1))
        assert await seat._with_others(own) is own
        seat.closed()
        await seat.leave()
    finally:
        await over.channel.close()
        over.close()
        seat._connected.close()
        os.close(over.given.lifeline)
