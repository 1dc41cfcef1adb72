"""Questions to the other nodes: which users have shown a sign of life. Few are asked, and only when a mail depends on
it; so nobody has to tell anybody of each sign."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Collection, Iterator

from server.cluster.codec import Answered, Asked, encode
from server.cluster.link import LinkDown, Message
from server.rooms import Rooms

WAIT_S = 1.0
"""For all answers to a question. Who has not answered by then knows nothing: a mail too many beats one too few."""

PORTION = 500
"""Users asked about in one message."""


class _Question:
    def __init__(self, nodes: Collection[str]) -> None:
        self.open = set(nodes)
        self.found: set[str] = set()
        self.is_answered = asyncio.Event()


class Asking:
    """One for each node. `send`: sends a message; raises `LinkDown`."""

    def __init__(self, node: str, rooms: Rooms, send: Callable[[Message], Awaitable[None]]) -> None:
        self._node = node
        self._rooms = rooms
        self._send = send
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}

    async def alive(
        self, nodes: Collection[str], tenant: str, user_ids: Collection[str], silent_for_s: float
    ) -> set[str]:
        """Those of these users of whom one of these nodes had a sign of life within the last so many seconds, as far as
        they answer. Raises `LinkDown`."""
        found: set[str] = set()
        for some in _portions(list(user_ids)):
            found |= await self._ask(nodes, tenant, some, silent_for_s)
        return found

    async def _ask(
        self, nodes: Collection[str], tenant: str, user_ids: list[str], silent_for_s: float
    ) -> set[str]:
        number, question = next(self._numbers), _Question(nodes)
        self._questions[number] = question
        try:
            asked = Asked(self._node, number, tenant, user_ids, silent_for_s)
            await self._send(Message(None, encode(asked)))
            async with asyncio.timeout(WAIT_S):
                await question.is_answered.wait()
        except TimeoutError:
            pass  # what has been answered counts
        finally:
            del self._questions[number]
        return question.found & set(user_ids)

    async def answer(self, asked: Asked) -> None:
        """To the node that asks; an answer that cannot be sent is none."""
        if not math.isfinite(asked.silent_for_s):
            return
        alive = self._rooms.alive_since(asked.tenant, asked.user_ids, asked.silent_for_s)
        try:
            answer = Answered(self._node, asked.number, sorted(alive))
            await self._send(Message(asked.node, encode(answer)))
        except LinkDown:
            return

    def note(self, answered: Answered) -> None:
        """An answer has come, or what looks like one."""
        question = self._questions.get(answered.number)
        if question is not None and answered.node in question.open:
            question.open.discard(answered.node)
            question.found.update(answered.user_ids)
            if not question.open:
                question.is_answered.set()


def _portions(user_ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(user_ids), PORTION):
        yield user_ids[start : start + PORTION]
