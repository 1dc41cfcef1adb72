"""Revisions: a hybrid logical clock that gives every change of a document its place in time.

A rev is a 64-bit integer: 48 bits of milliseconds since 1970 (UTC), 16 bits of counter. On the wire it is an
opaque string of 16 hexadecimal digits, because a JavaScript number ends at 2^53. The idea is that of hybrid
logical clocks (Kulkarni et al., 2014) and of modification sequences in IMAP's CONDSTORE (RFC 7162).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

COUNTER_BITS = 16

_LARGEST = 2**63 - 1
"""Stores keep signed integers."""

_EPOCH = datetime.fromtimestamp(0, UTC)

_WIRE = re.compile(r"[0-9a-f]{16}")


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class RevClock:
    """Issues strictly rising revs, whatever the wall clock does.

    `last` is the highest rev that may have been issued before, by this process or an earlier one: the caller
    stores revs, or a ceiling above them, and hands the highest back after a restart.
    """

    def __init__(self, last: int = 0, wall_clock_ms: Callable[[], int] = _wall_clock_ms) -> None:
        self._last = last
        self._wall_clock_ms = wall_clock_ms

    @property
    def last(self) -> int:
        """The highest rev issued or witnessed so far."""
        return self._last

    def next(self) -> int:
        """A rev above all that were issued or witnessed before."""
        self._last = self._following()
        return self._last

    def next_up_to(self, ceiling: int) -> int | None:
        """As `next`; None, and nothing is issued, if that is above the ceiling."""
        rev = self._following()
        if rev > ceiling:
            return None
        self._last = rev
        return rev

    def take(self, count: int) -> range:
        """So many revs (at least one) in a row, above all that were issued or witnessed before."""
        first = self.next()
        self._last += count - 1
        return range(first, first + count)

    def witness(self, rev: int) -> None:
        """Take note of a rev from elsewhere (a stored document, another node), so that `next` goes above
        it."""
        self._last = max(self._last, rev)

    def _following(self) -> int:
        return max(self._wall_clock_ms() << COUNTER_BITS, self._last + 1)


def span_of(seconds: float) -> int:
    """By how much revs grow in that time."""
    return int(seconds * 1000) << COUNTER_BITS


def instant_of(rev: int) -> datetime:
    """When it was issued (aware UTC), by the clock that issued it."""
    return _EPOCH + timedelta(milliseconds=rev >> COUNTER_BITS)


def to_wire(rev: int) -> str:
    """The opaque form in which clients see a rev. Of two revs the later has the greater string."""
    return f"{rev:016x}"


def from_wire(text: str) -> int | None:
    """The rev that `to_wire` has written so; None: it can have written no such thing."""
    rev = int(text, 16) if _WIRE.fullmatch(text) else None
    return None if rev is None or rev > _LARGEST else rev
