"""What a server is given by whoever started its process: sockets, an audience, and whether it is one of several."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.config import Config
from server.greeting import announce
from server.metrics import Metrics
from server.service_manager import tell_manager


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

    async def take(self, orders: Orders) -> None:
        """Obey from now on."""

    def watch(self, metrics: Metrics) -> None:
        """These are the figures of the process."""

    def announce(self, config: Config, port: int, store: str, mail: str, publish_port: int | None) -> None:
        """It serves; see `greeting.announce`."""
        announce(config, port, store, mail, publish_port)

    def ready(self) -> None:
        """All is up."""
        tell_manager("READY=1")

    async def leave(self) -> None:
        """The server has ended. Does not raise."""
