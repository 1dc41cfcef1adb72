"""Admits clients that join or connect one by one: after a restart or an outage all of them come within a moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Arrivals:
    """Lets them in one by one, in the order in which they came, each in a turn of the loop of its own. So a crowd costs
    those who are there already a moment per turn, and the first of it are served before the last are begun with."""

    def __init__(self) -> None:
        # what to call when it is their turn; False: nobody waits for it any more
        self._joining: deque[Callable[[], bool]] = deque()
        self._connecting: deque[Callable[[], bool]] = deque()
        self._is_taken = False

    async def to_connect(self) -> None:
        """Return when it is the turn of a client that connects: at once, if nobody has had this one."""
        await self._turn(self._connecting)

    async def to_join(self) -> None:
        """The same for one that has connected, and joins: before all that connect."""
        await self._turn(self._joining)

    def connect(self, go: Callable[[], None]) -> None:
        """Call this when it is the turn of a client that connects: as `to_connect`."""

        def in_turn() -> bool:
            go()
            return True

        if self._take():
            go()
        else:
            self._connecting.append(in_turn)

    async def _turn(self, waiting: deque[Callable[[], bool]]) -> None:
        if self._take():
            return
        future = asyncio.get_running_loop().create_future()

        def in_turn() -> bool:
            if future.done():  # its task was cancelled
                return False
            future.set_result(None)
            return True

        waiting.append(in_turn)
        await future

    def _take(self) -> bool:
        """Take this turn, if nobody has had it."""
        if self._is_taken:
            return False
        self._is_taken = True
        asyncio.get_running_loop().call_soon(self._next)
        return True

    def _next(self) -> None:
        while self._joining or self._connecting:
            is_used = True
            try:
                is_used = (self._joining or self._connecting).popleft()()
            finally:  # if it failed, the others have their turn all the same
                if is_used:
                    # Behind what it has set going: who has connected may join next.
                    asyncio.get_running_loop().call_soon(self._next)
            if is_used:
                return
        self._is_taken = False
