"""Health checks of what the server depends on: each is asked briefly, and not more often than makes sense.

Whoever asks us for the result (load balancers, anybody) gets only words of ours: the text of an error may name
addresses, and is for the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.errors import ServerError
from server.tasks import Tasks

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
"""For one dependency to answer. Load balancers wait about so long themselves."""

KEPT_S = 1.0
"""For how long an answer is given again, however many ask."""

GIVEN_UP_AFTER_S = 60.0
"""A probe that has no limit of its own. Longer than any store waits for a server."""

Probe = Callable[[], Awaitable[None]]
"""Returns if all is well; raises what is wrong (a `Trouble` or a `ServerError` where that can be expected)."""


class Trouble(Exception):
    """What is wrong with a dependency, in words for anybody: no addresses, no names."""


class NotYet(Trouble):
    """It is just beginning, and nothing has failed so far: to be answered to who asks, but no news for the log."""


class State(StrEnum):
    """Where this node is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one dependency is. `reason` "": well. `is_vital`: without it the server cannot serve."""

    name: str
    is_vital: bool
    latency_ms: float
    reason: str = ""

    @property
    def is_up(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class _Dependency:
    name: str
    probe: Probe
    is_vital: bool


class Checks:
    """Of one node. `note`: is told of each dependency that was asked: its name, whether it is well, and the seconds
    that took. The owner keeps `state` up to date."""

    def __init__(
        self,
        note: Callable[[str, bool, float], None] = lambda name, is_up, took_s: None,
        *,
        timeout_s: float = TIMEOUT_S,
        kept_s: float = KEPT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = State.STARTING
        self._note = note
        self._timeout_s = timeout_s
        self._kept_s = kept_s
        self._clock = clock
        self._dependencies: list[_Dependency] = []
        self._findings: tuple[Finding, ...] = ()
        self._found_at = float("-inf")
        self._failing: set[str] = set()
        self._looking = asyncio.Lock()
        self._tasks = Tasks()
        self._asked: dict[str, asyncio.Task[Exception | None]] = {}

    def add(self, name: str, probe: Probe, *, is_vital: bool = False) -> None:
        """From now on ask this one, too. `name` is for people and figures."""
        self._dependencies.append(_Dependency(name, probe, is_vital))

    async def look(self) -> Sequence[Finding]:
        """How each is, in the order in which they were added; at most `kept_s` old. Nothing is asked twice at the same
        time, nor before or after the node serves: then there are no findings. Does not raise."""
        async with self._looking:
            if self.state is not State.SERVING:
                return ()
            if self._clock() - self._found_at >= self._kept_s:
                self._findings = tuple(await asyncio.gather(*map(self._ask, self._dependencies)))
                self._found_at = self._clock()
            return self._findings

    async def close(self, deadline_s: float) -> None:
        """Let what has been asked be answered for so many seconds, then give it up. Nothing is asked any more: the node
        does not serve."""
        await self._tasks.finish(deadline_s)

    async def _ask(self, dependency: _Dependency) -> Finding:
        began_at = time.monotonic()
        # Not cancelled when it is late: a call that is cut off while pymongo waits for a server may leave its client
        # locked for ever (with Python 3.11). It ends by its own limit, and until then is not asked again.
        asked = self._asked.get(dependency.name)
        if asked is None or asked.done():
            asked = self._tasks.start(self._outcome(dependency), f"check of {dependency.name}")
            self._asked[dependency.name] = asked
        await asyncio.wait([asked], timeout=self._timeout_s)
        error: Exception | None = TimeoutError()
        if asked.done():
            del self._asked[dependency.name]
            error = error if asked.cancelled() else asked.result()
        reason = "" if error is None else self._reason(error)
        took_s = time.monotonic() - began_at
        self._note(dependency.name, not reason, took_s)
        self._log(dependency.name, error)
        return Finding(dependency.name, dependency.is_vital, round(took_s * 1000, 3), reason)

    @staticmethod
    async def _outcome(dependency: _Dependency) -> Exception | None:
        """What its probe raised, if anything."""
        try:
            async with asyncio.timeout(GIVEN_UP_AFTER_S):
                await dependency.probe()
        except Exception as error:
            return error
        return None

    def _reason(self, error: Exception) -> str:
        if isinstance(error, Trouble):
            return str(error)
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout_s:g} s"
        return error.code if isinstance(error, ServerError) else "failed; the log says why"

    def _log(self, name: str, error: Exception | None) -> None:
        """Say what is wrong once, and once that it is over."""
        if error is None and name in self._failing:
            self._failing.discard(name)
            logger.info("%s: well again", name)
        elif error is not None and name not in self._failing and not isinstance(error, NotYet):
            self._failing.add(name)
            logger.warning("%s: %s", name, str(error) or self._reason(error))
