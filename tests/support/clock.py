"""A clock that a test turns."""

from __future__ import annotations

import asyncio


class Clock:
    """Monotonic seconds. Who sleeps by it wakes when the test has turned it far enough."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleepers: list[tuple[float, asyncio.Event]] = []
        """Until when, and what wakes them."""

    def __call__(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        woken = asyncio.Event()
        sleeper = (self.now + delay_s, woken)
        self.sleepers.append(sleeper)
        try:
            await woken.wait()
        finally:
            self.sleepers.remove(sleeper)

    async def turn(self, delay_s: float) -> None:
        """Let so much time pass, and everybody do what they do by then."""
        until = self.now + delay_s
        await self.settle()
        while due := [each for each in self.sleepers if each[0] <= until]:
            at, woken = min(due, key=lambda each: each[0])
            self.now = max(self.now, at)
            woken.set()
            await self.settle()
        self.now = until

    async def turn_to_next(self) -> None:
        """Let time pass until the next sleeper wakes, if there is any."""
        if self.sleepers:
            self.now, woken = min(self.sleepers, key=lambda each: each[0])
            woken.set()
            await self.settle()

    async def settle(self) -> None:
        """Let everybody do what they can do now, without other threads."""
        for _ in range(20):
            await asyncio.sleep(0)
