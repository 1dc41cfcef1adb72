"""A server's process as one of several: takes sockets and orders from the supervisor, tells it how it is and what it
has counted, and ends when the supervisor is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress

from server.affinity import Affinity
from server.config import Config
from server.figures import Families, added_up, counted, pack, unpack
from server.metrics import Metrics
from server.tasks import Tasks
from server.workers.channel import Channel, Given, Message, line
from server.workers.handoff import Handoff, Take
from server.workers.seat import Orders, Seat

logger = logging.getLogger(__name__)

WAIT_S = 2.0
"""For the figures of the others; the supervisor waits for none of them half as long."""

HAND_OVER_S = 3.0
"""Callers that keep a connection open send something over it within this time, mostly; it goes to the successor, or,
where that cannot be (TLS), the answer says that it was the last one there."""

LEAVE_S = 1.0
"""For the last figures to be handed over."""


class WorkerSeat(Seat):
    """To be made early: until then the process may be ended by a signal that is meant for the supervisor."""

    def __init__(self, given: Given) -> None:
        self.number = given.number
        self.main = _sockets(given.main)
        self.publishing = _sockets(given.publishing)
        self.listens_early = given.is_early
        self.lease_holder = given.lease_holder
        self.handoff = _handoff(given)
        self._lifeline = given.lifeline
        self._connected = socket.socket(fileno=given.channel)
        self._channel: Channel | None = None
        self._metrics: Metrics | None = None
        self._said_when_ready: Message = {}
        self._tasks = Tasks()
        self._asking = asyncio.Lock()
        self._answer: asyncio.Future[Message] | None = None
        # It says "replace the workers", to a whole group of processes perhaps.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})

    # -- orders ----------------------------------------------------------------------------------------------
    async def take(self, orders: Orders) -> None:
        self._channel = await Channel.open(self._connected)
        self._channel.say(line("hello", signs=True))
        self._tasks.start(self._obey(self._channel, orders), "orders")
        watch = threading.Thread(target=self._watch, args=(orders,), name="lifeline", daemon=True)
        watch.start()

    async def _obey(self, channel: Channel, orders: Orders) -> None:
        while (message := await channel.hear()) is not None:
            match message:
                case {"is": "end", "replaced": replaced}:
                    self._end(orders, is_replaced=replaced)
                case {"is": "reload"}:
                    orders.reload()
                case {"is": "sign"}:
                    channel.say(line("sign"))
                case {"is": "ask"}:
                    self._tasks.start(self._tell_figures(channel), "figures")
                case {"is": "all"} if self._answer is not None and not self._answer.done():
                    self._answer.set_result(message)
        logger.warning("the supervisor is gone, so this worker ends, too")
        self.drains = False
        orders.end()

    def _end(self, orders: Orders, *, is_replaced: bool) -> None:
        """It may be told twice: the one that has replaced it may have to end as well, before this one has."""
        self.hand_over_s = HAND_OVER_S if is_replaced else 0.0
        if self.handoff is not None and is_replaced:
            self.handoff.give_way()
        elif self.handoff is not None:
            self.handoff.has_successor = False
        orders.end()

    def _watch(self, orders: Orders) -> None:
        """In a thread, since it is for the case that the loop hangs: nobody else would end this process."""
        os.read(self._lifeline, 1)
        time.sleep(orders.last_resort_s)
        orders.leave("the supervisor is gone")

    # -- what is told ----------------------------------------------------------------------------------------
    def announce(self, config: Config, port: int, store: str, mail: str, publish_port: int | None) -> None:
        self._said_when_ready = {"store": store, "mail": mail, "drain_s": config.application.drain_s}

    def ready(self) -> None:
        if self._channel is not None:
            self._channel.say(line("ready", **self._said_when_ready))

    def take_in(self, take: Take) -> None:
        if self.handoff is not None:
            self.handoff.start(take)

    def closed(self) -> None:
        if self.handoff is not None:
            self.handoff.stop()
        if self._channel is not None:
            self._channel.say(line("closed"))

    def watch(self, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.others = self._with_others
        if self.handoff is not None:
            metrics.registry.register(self.handoff.figures)

    async def _tell_figures(self, channel: Channel) -> None:
        if self._metrics is not None:
            families = await self._metrics.collected()
            channel.say(await asyncio.to_thread(lambda: line("figures", packed=pack(families))))

    async def _with_others(self, own: Families) -> Families:
        channel = self._channel
        if channel is None:
            return own
        async with self._asking:
            packed = await asyncio.to_thread(pack, own)
            self._answer = asyncio.get_running_loop().create_future()
            channel.say(await asyncio.to_thread(lambda: line("ask", packed=packed)))
            try:
                async with asyncio.timeout(WAIT_S):
                    message = await self._answer
                return await asyncio.to_thread(lambda: unpack(added_up([packed, message["packed"]])))
            except (TimeoutError, LookupError, TypeError, ValueError) as exc:
                logger.warning("the figures are those of this worker only: %r", exc)
                return own
            finally:
                self._answer = None

    async def leave(self) -> None:
        channel = self._channel
        if channel is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                if self.handoff is not None:
                    await self.handoff.close()
                if self._metrics is not None:
                    # Without a `refresh`: there is nobody left to be asked.
                    channel.say(line("last", packed=counted(pack(self._metrics.registry.collect()))))
                await self._tasks.cancel()
                await channel.close()


def _handoff(given: Given) -> Handoff | None:
    if given.inbox is None:
        return None
    [inbox, *posts] = _sockets([given.inbox, *given.posts])
    return Handoff(Affinity(given.number - 1, len(posts)), inbox, posts)


def _sockets(files: list[int]) -> list[socket.socket]:
    sockets = [socket.socket(fileno=number) for number in files]
    for each in sockets:
        each.setblocking(False)  # of those that listen Python does not know that they do not
    return sockets
