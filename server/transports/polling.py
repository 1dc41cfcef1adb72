"""Clients over plain HTTP requests: which of them have none waiting, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from server.errors import Busy
from server.transports.registry import Connections

MAX_WITHOUT_REQUEST = 20_000
"""Clients of which no request waits. Each of the others has a TCP connection, which are bounded elsewhere; of these any
number could be opened over one."""


class PollingConnection(Protocol):
    """Whom requests are expected of."""

    def expire(self) -> None:
        """The client is gone without a word."""


C = TypeVar("C", bound=PollingConnection)


class ExpectedRequests(Generic[C]):
    """Of which clients none waits. Who sends none in time has gone: the connection expires, and `forget` is called."""

    def __init__(self, connections: Connections, forget: Callable[[C], None]) -> None:
        self._connections = connections
        self._forget = forget
        # since when; the longest first
        self._since: dict[C, float] = {}
        connections.on_tick.append(self._look)

    def check_space(self) -> None:
        """Raises `Busy` if there are too many to let in another."""
        if len(self._since) >= MAX_WITHOUT_REQUEST:
            raise Busy("too many sessions; try again")

    def expect(self, connection: C) -> None:
        """The client has no request waiting, and is expected to send one soon."""
        self._since.pop(connection, None)
        self._since[connection] = time.monotonic()

    def drop(self, connection: C) -> None:
        """The client has a request waiting, or is none any more."""
        self._since.pop(connection, None)

    def _look(self, now: float) -> None:
        while self._since:
            connection, since = next(iter(self._since.items()))
            if now - since < self._connections.options.disconnect_delay_s:
                return
            connection.expire()
            self._since.pop(connection, None)
            self._forget(connection)
