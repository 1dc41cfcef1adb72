"""What a server is given by whoever started its process: sockets, an audience, and whether it is one of several."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.config import Config
from server.greeting import announce
from server.metrics import Metrics
from server.service_manager import tell_manager
from server.workers.handoff import Handoff, Take

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a process can be told to do. `end`: in order, and the first time counts; `leave`: at once, with the reason,
    from any thread; `reload`: the configuration. `last_resort_s`: how long `end` may take before it is `leave`."""

    end: Callable[[], None]
    leave: Callable[[str], None]
    reload: Callable[[], None]
    last_resort_s: float


class Seat:
    """Of a process that serves alone: it has to see to everything itself."""

    main: Sequence[socket.socket] | None = None
    """Sockets that are bound already; None: bind as the configuration says."""
    publishing: Sequence[socket.socket] | None = None
    """As `main`; empty: there is no publishing port."""
    listens_early = True
    """Whether to answer (`/healthz`, and 503 to all else) before there is a store; else there is somebody else to."""
    drains = True
    """Whether `drain_s` counts: not where there is nobody left who watches."""
    hand_over_s = 0.0
    """How long to answer those who are connected, when another process has the same sockets; 0: there is none."""
    lease_holder: str | None = None
    """By which name to hold leases, so that who follows after a crash has them at once; None: any of its own."""

    handoff: Handoff | None = None
    """To the other processes on these ports; None: there are none."""

    @property
    def queues(self) -> Mapping[str, Callable[[], int]]:
        """How much waits to be handed to them, by name."""
        return {} if self.handoff is None else self.handoff.queues

    async def take(self, orders: Orders) -> None:
        """Obey from now on."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def tell() -> None:
            logger.warning("SIGUSR2 replaces workers one by one, and there is one process: nothing is done")

        # By itself the signal would end the process, without any order.
        signal.signal(signal.SIGUSR2, lambda *_: loop.call_soon_threadsafe(tell, context=context))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})

    def watch(self, metrics: Metrics) -> None:
        """These are the figures of the process."""

    def announce(self, config: Config, port: int, store: str, mail: str, publish_port: int | None) -> None:
        """It serves; see `greeting.announce`."""
        announce(config, port, store, mail, publish_port)

    def take_in(self, take: Take) -> None:
        """It takes what other processes hand over."""

    def ready(self) -> None:
        """All is up."""
        tell_manager("READY=1")

    def closed(self) -> None:
        """It takes in nobody any more."""

    async def leave(self) -> None:
        """The server has ended. Does not raise."""
