"""Which messages of other nodes have come before: what may not have been sent is sent again, and in a dialect without
revs a notification that comes twice is shown twice."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.cluster.outgoing import BATCH_EVENTS, MAX_AGE_S

REMEMBERED = 2 * BATCH_EVENTS
"""Messages of a node: more than are ever sent again together."""

KEEP_S = 3 * MAX_AGE_S
"""How long a node that says nothing is remembered: what is that old is not sent again."""


class _Heard:
    __slots__ = ("last_at", "numbers")

    def __init__(self) -> None:
        self.last_at = 0.0
        self.numbers: dict[int, None] = {}


class Repeats:
    """One for each node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, _Heard] = {}

    def is_one(self, node: str, number: int | None) -> bool:
        """Whether a message of that node with this number was asked about before; None: it has none, and is none."""
        if number is None:
            return False
        at = self._clock()
        if node not in self._heard:
            self._forget(at - KEEP_S)
        heard = self._heard.setdefault(node, _Heard())
        heard.last_at = at
        if number in heard.numbers:
            return True
        heard.numbers[number] = None
        if len(heard.numbers) > REMEMBERED:
            del heard.numbers[next(iter(heard.numbers))]
        return False

    def _forget(self, before: float) -> None:
        self._heard = {node: heard for node, heard in self._heard.items() if heard.last_at >= before}
