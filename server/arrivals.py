"""Those who come: clients that join or connect, all of them within a moment after a restart or an outage."""

from __future__ import annotations

import asyncio
from collections import deque


class Arrivals:
    """Lets them in one by one, in the order in which they came, each in a turn of the loop of its own. So a crowd costs
    those who are there already a moment per turn, and the first of it are served before the last are begun with."""

    def __init__(self) -> None:
        self._joining: deque[asyncio.Future[None]] = deque()
        self._connecting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def to_connect(self) -> None:
        """Return when it is the turn of a client that connects: at once, if nobody has had this one."""
        await self._turn(self._connecting)

    async def to_join(self) -> None:
        """The same for one that has connected, and joins: before all that connect."""
        await self._turn(self._joining)

    async def _turn(self, waiting: deque[asyncio.Future[None]]) -> None:
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._next)
            return
        future = loop.create_future()
        waiting.append(future)
        await future

    def _next(self) -> None:
        while self._joining or self._connecting:
            future = (self._joining or self._connecting).popleft()
            if not future.done():  # else its task was cancelled
                future.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._is_taken = False
