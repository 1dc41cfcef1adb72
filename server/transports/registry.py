"""The connections of clients that are open on this node, by whatever transport: how many there are, that they live,
that none is too slow, and that each has a user before long. One timer looks after all of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server import bus
from server.arrivals import Arrivals
from server.callers import Caller
from server.rates import TokenBucket
from server.wire import NOT_JOINED, CloseReason

if TYPE_CHECKING:
    from server.transports.connections import ClientConnection


class Admission(Protocol):
    """Who may have how many connections, and how fast they may send."""

    @property
    def join_within_s(self) -> float:
        """How long a connection may be nobody's."""

    def may_connect(self, caller: Caller) -> None:
        """Raises `RateLimited`."""

    def would_admit(self, caller: Caller) -> bool:
        """Whether `may_connect` would let this one in now. Counts nothing."""

    def refusal_delay_s(self, caller: Caller, about_s: float) -> float:
        """How long to hold back the answer to who may not."""

    def opened(self, caller: Caller) -> None:
        """A connection of this caller is open."""

    def closed(self, caller: Caller) -> None:
        """It is over. Called once for each."""

    def pace_frame(self, connection: TokenBucket, caller: Caller) -> float:
        """Count what a client sent; how many seconds to wait before more is read of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The limits of every connection."""

    heartbeat_s: float = 25.0
    disconnect_delay_s: float = 5.0
    """How long a client over HTTP may have no request waiting."""
    max_queue_bytes: int = 256 * 1024
    """How much may wait behind the first frame in a connection's queue; more closes it as slow."""
    slow_after_s: float = 30.0
    """Over how long a queue that is not empty must leave at `MIN_BYTES_PER_S`; slower closes the connection as slow."""
    max_message_bytes: int = 1024 * 1024
    """The size of one message of a client."""


class Connections:
    """All open connections. To be made on a running loop. `admission` is asked about each; `arrivals`: who else comes,
    if not only by these transports."""

    def __init__(
        self, options: ConnectionOptions, admission: Admission, arrivals: Arrivals | None = None
    ) -> None:
        self.options = options
        self.admission = admission
        self.arrivals = arrivals or Arrivals()
        self.backlogged: set[ClientConnection] = set()
        """The connections with something in their queue, and some that had a moment ago."""
        self.on_tick: list[Callable[[float], None]] = []
        """Called several times a heartbeat, with `time.monotonic()`."""
        self._counts: Counter[str] = Counter()
        self._strangers: dict[ClientConnection, float] = {}
        """Connections that had no user when last looked at, and since when; the longest first."""
        tick_s = min(1.0, options.heartbeat_s / 8, options.disconnect_delay_s / 4, options.slow_after_s / 4)
        self.give_up_after_s = 4 * options.heartbeat_s
        """When the kernel ends what heartbeats do not see: a connection that is closed, and whose peer is dead."""
        self._slices: list[set[ClientConnection]] = [
            set() for _ in range(round(options.heartbeat_s / tick_s))
        ]
        self._tick_count = 0
        self._opened_count = 0
        self._loop, self._tick_s = asyncio.get_running_loop(), tick_s
        self._timer = self._loop.call_later(tick_s, self._sweep)

    @property
    def count(self) -> int:
        return self._counts.total()

    @property
    def counts(self) -> dict[str, int]:
        """By transport, those in use."""
        return {transport: count for transport, count in self._counts.items() if count}

    def add(self, connection: ClientConnection) -> None:
        """A connection opens."""
        # Spread over the later half of the round: the first heartbeat is not the second frame already.
        count = len(self._slices)
        connection.slot = (self._tick_count - self._opened_count % max(count // 2, 1)) % count
        self._opened_count += 1
        self._slices[connection.slot].add(connection)
        self._counts[connection.transport] += 1
        self._strangers[connection] = time.monotonic()
        self.admission.opened(connection.caller)
        bus.tell(bus.CONNECTION_OPENED, self, transport=connection.transport)

    def remove(self, connection: ClientConnection, reason: CloseReason | None) -> None:
        """A connection is over, by itself if `reason` is None."""
        self._slices[connection.slot].discard(connection)
        self.backlogged.discard(connection)
        self._counts[connection.transport] -= 1
        self._strangers.pop(connection, None)
        self.admission.closed(connection.caller)
        bus.tell(bus.CONNECTION_CLOSED, self, transport=connection.transport, reason=reason)

    def close_all(self, reason: CloseReason) -> None:
        """Close all connections of clients, whatever their sessions are doing."""
        for part in self._slices:
            for connection in tuple(part):
                connection.close(reason)

    def stop(self) -> None:
        """End the heartbeats. Idempotent."""
        self._timer.cancel()

    # -- heartbeats ------------------------------------------------------------------------------------------
    def _close_strangers(self, now: float) -> None:
        while self._strangers:
            connection, since = next(iter(self._strangers.items()))
            if now - since < self.admission.join_within_s:
                return
            del self._strangers[connection]
            if not connection.is_joined:
                connection.close(NOT_JOINED)

    def _sweep(self) -> None:
        # By the loop's clock. Tornado's PeriodicCallback goes by that of the wall: when it steps back by an hour, there
        # would be no heartbeats for an hour. Armed first, so that a failure ends no heartbeats.
        self._timer = self._loop.call_later(self._tick_s, self._sweep)
        self._tick()

    def _tick(self) -> None:
        """One timer for all connections: each is looked at once per heartbeat, a slice of them at a time."""
        now = time.monotonic()
        for look in self.on_tick:
            look(now)
        self._close_strangers(now)
        for connection in tuple(self.backlogged):
            connection.check_progress(now)
        self._tick_count += 1
        for connection in tuple(self._slices[self._tick_count % len(self._slices)]):
            connection.heartbeat(now)
            if not (connection.is_joined or connection.is_closed):
                self._strangers.setdefault(connection, now)  # has left
