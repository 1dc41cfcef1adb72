"""How often something may be done: rates, and the token buckets that keep them. Knows no I/O; the clock is handed in.

A bucket holds `quota` tokens and fills evenly within `window_s`. All there is to know about it is one number, the
instant at which it will be full again (the "theoretical arrival time" of the Generic Cell Rate Algorithm, ITU-T I.371):
a full bucket needs no memory at all.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MAX_KEYS = 50_000
"""Buckets of their own at a time: about 10 MiB."""

SHARED_BUCKETS = 4096
"""For the keys beyond: how many buckets they share."""

FORGET_EVERY_S = 60.0
FORGET_WHEN_CROWDED_S = 1.0
"""Between looks for buckets that are full by now; one look at 50,000 takes 3 ms."""


TOLERANCE = 1e-3
"""Of a token: so much may be missing. Sums of fractions are not exact."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`quota` times within `window_s` seconds: that many at once, and then again as time passes, evenly."""

    quota: int
    window_s: float

    @property
    def per_s(self) -> float:
        return self.quota / self.window_s


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether something may be done now, and what is left. `rate` None: there is no limit, and the rest says nothing.
    `remaining`: how often more right now. `reset_s`: until nothing is used up any more. `retry_after_s`: until it may
    be done again, 0 if it may now. `limit`: the name of the limit."""

    allowed: bool
    rate: Rate | None
    remaining: int
    reset_s: float
    retry_after_s: float
    limit: str = ""


UNLIMITED = Allowance(True, None, 0, 0.0, 0.0)


class TokenBucket:
    """The bucket of one thing, whose owner keeps it. The rate is handed in at each use, so that it may change."""

    __slots__ = ("_full_at",)

    def __init__(self) -> None:
        self._full_at = -math.inf

    def reserve(self, rate: Rate, now: float, tokens: int = 1) -> float:
        """Take tokens, if need be of the future; the seconds until they are there. Who waits for so long keeps to the
        rate."""
        self._full_at = _spent(self._full_at, rate, now, tokens)
        return _wait_s(self._full_at, rate, now)

    def available(self, rate: Rate, now: float) -> int:
        """How many tokens there are."""
        used = max(0.0, self._full_at - now) * rate.per_s
        return max(0, int(rate.quota - used + TOLERANCE))

    def until(self, tokens: int, rate: Rate, now: float) -> float:
        """The seconds until there are so many tokens, at most `rate.quota`."""
        return _wait_s(_spent(self._full_at, rate, now, tokens), rate, now)


class Buckets:
    """A bucket for each of many keys, such as addresses.

    Who sends ever new keys wins nothing by it: no bucket with something missing is given up for a new one, and beyond
    `max_keys` of those, new keys share a fixed number of buckets, dealt out by a hash that nobody outside can compute.
    """

    def __init__(
        self,
        limit: str,
        rate: Rate | None,
        clock: Callable[[], float],
        *,
        max_keys: int = MAX_KEYS,
        shared: int = SHARED_BUCKETS,
    ) -> None:
        """`limit`: its name, for `Allowance`. `rate` None: no limit. `clock`: monotonic, in seconds."""
        self.limit = limit
        self._rate = rate
        self._clock = clock
        self._max_keys = max_keys
        self._full_at: dict[Hashable, float] = {}
        self._shared = array("d", [-math.inf]) * shared
        self._forgot_at = clock()

    def __len__(self) -> int:
        """How many keys have a bucket of their own."""
        return len(self._full_at)

    @property
    def rate(self) -> Rate | None:
        return self._rate

    def apply(self, rate: Rate | None) -> None:
        """Go by another rate from now on. What was used up stays so, but for no longer than the new window."""
        if rate == self._rate:
            return
        self._rate = rate
        latest = self._clock() + (rate.window_s if rate else 0.0)
        self._full_at = {key: min(full_at, latest) for key, full_at in self._full_at.items()}
        self._shared = array("d", [min(full_at, latest) for full_at in self._shared])

    def take(self, key: Hashable) -> Allowance:
        """Take a token of this key, if there is one."""
        rate = self._rate
        if rate is None:
            return UNLIMITED
        now = self._clock()
        before = self._get(key)
        after = _spent(before, rate, now)
        wait_s = _wait_s(after, rate, now)
        if wait_s:
            return Allowance(False, rate, 0, before - now, wait_s, self.limit)
        self._set(key, after, now)
        used = (after - now) * rate.per_s
        return Allowance(True, rate, int(rate.quota - used + TOLERANCE), after - now, 0.0, self.limit)

    def would_allow(self, key: Hashable) -> bool:
        """Whether there is a token of this key. None is taken."""
        rate = self._rate
        if rate is None:
            return True
        now = self._clock()
        return not _wait_s(_spent(self._get(key), rate, now), rate, now)

    def reserve(self, key: Hashable, tokens: int = 1) -> float:
        """As `TokenBucket.reserve`."""
        rate = self._rate
        if rate is None:
            return 0.0
        now = self._clock()
        after = _spent(self._get(key), rate, now, tokens)
        self._set(key, after, now)
        return _wait_s(after, rate, now)

    # -- memory ----------------------------------------------------------------------------------------------
    def _get(self, key: Hashable) -> float:
        full_at = self._full_at.get(key)
        # Who gets a bucket of their own after the crowd brings along what the shared one lacks.
        return self._shared[hash(key) % len(self._shared)] if full_at is None else full_at

    def _set(self, key: Hashable, full_at: float, now: float) -> None:
        if key in self._full_at:
            self._full_at[key] = full_at
            return
        self._forget(now)
        if self._is_crowded:
            self._shared[hash(key) % len(self._shared)] = full_at
        else:
            self._full_at[key] = full_at

    @property
    def _is_crowded(self) -> bool:
        return len(self._full_at) >= self._max_keys

    def _forget(self, now: float) -> None:
        """Give up the buckets that are full by now, if it is time to look."""
        if now - self._forgot_at >= (FORGET_WHEN_CROWDED_S if self._is_crowded else FORGET_EVERY_S):
            self._forgot_at = now
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}


def _spent(full_at: float, rate: Rate, now: float, tokens: int = 1) -> float:
    """When a bucket will be full that has so many tokens less than one which will be at `full_at`."""
    return max(full_at, now) + tokens * rate.window_s / rate.quota


def _wait_s(full_at: float, rate: Rate, now: float) -> float:
    """How long a bucket that will be full at `full_at` has been overdrawn: the seconds until it holds 0 again."""
    wait_s = full_at - now - rate.window_s
    return wait_s if wait_s * rate.per_s > TOLERANCE else 0.0
