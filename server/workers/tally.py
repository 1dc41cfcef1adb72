"""The figures of all workers, for the one that is asked for them: also of those that have ended, so that no sum goes
back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from server.figures import Packed, added_up, counted, pack
from server.workers.channel import line
from server.workers.child import Child
from server.workers.handoff import outcomes

WAIT_S = 1.0
"""For each worker to say what it has. Of who does not, what it said last counts."""


class Tally:
    def __init__(self) -> None:
        self._ended: Packed = []
        self._asked: dict[Child, asyncio.Event] = {}
        self._outcomes = outcomes()

    def closed(self, count: int) -> None:
        """So many connections that were handed over had waited for too long."""
        self._outcomes.labels("closed").value += count

    def heard(self, child: Child) -> None:
        """It has told its figures."""
        if (answered := self._asked.pop(child, None)) is not None:
            answered.set()

    def ended(self, child: Child) -> None:
        """What it has counted stays counted: since it was last asked, if it could not say so at its end."""
        self.heard(child)
        self._ended = added_up([self._ended, counted(child.figures)])

    async def answer(self, asker: Child, children: Collection[Child]) -> None:
        """Tell the asker the figures of all these but itself."""
        others = [child for child in children if child is not asker]
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(
                    *(self._ask(child).wait() for child in others if child.is_ready.is_set())
                )
        # What those have counted that have ended meanwhile is in the other sum.
        others = [child for child in others if not child.has_ended.is_set()]
        figures = [self._ended, pack(self._outcomes.collect()), *(child.figures for child in others)]
        asker.say(line("all", packed=added_up(figures)))

    def _ask(self, child: Child) -> asyncio.Event:
        """Nobody is asked again who has not answered yet: so little waits for one that hangs."""
        if child not in self._asked:
            self._asked[child] = asyncio.Event()
            child.say(line("ask"))
        return self._asked[child]
