"""What the wall clock showed when: it can be set, and is, by NTP, by people, and when a machine wakes up."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from server.messages import now

STEP_S = 1.0
"""A wall clock that differs by more from what it should show was set."""

MAX_SPANS = 16
"""So many are remembered, from one time that the clock is set to the next."""


@dataclass(slots=True)
class _Span:
    """A time in which the wall clock went evenly, so many seconds ahead of the monotonic one. When exactly it was set
    is not known: spans overlap."""

    ahead_s: float
    begins_at: float
    ends_at: float


class Moments:
    """Which moment (`time.monotonic`) an instant was, also if the wall clock has been set since. That happens when a
    machine was asleep, too: the monotonic clock stood still meanwhile."""

    def __init__(
        self, clock: Callable[[], datetime] = now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        ahead_s, present = self._look()
        self._spans = deque([_Span(ahead_s, -math.inf, present)], MAX_SPANS)

    def note(self) -> float:
        """See whether the wall clock was set since this was called last; by how many seconds. To be called now and
        then."""
        (ahead_s, present), last = self._look(), self._spans[-1]
        step_s = ahead_s - last.ahead_s
        looked_at, last.ends_at = last.ends_at, present
        if abs(step_s) > STEP_S:
            self._spans.append(_Span(ahead_s, looked_at, present))
            return step_s
        last.ahead_s = ahead_s  # it is slewed
        return 0.0

    def of(self, instant: datetime) -> float:
        """Of several moments in which the clock showed `instant` the last one; the present if there was none."""
        self.note()
        found = ((instant.timestamp() - span.ahead_s, span) for span in self._spans)
        # Not the one of the latest span: around the time that the clock was set ahead that is the earlier moment.
        moments = (at for at, span in found if span.begins_at <= at <= span.ends_at + STEP_S)
        return max(moments, default=self._spans[-1].ends_at)

    def _look(self) -> tuple[float, float]:
        moment = self._monotonic()
        return self._clock().timestamp() - moment, moment
