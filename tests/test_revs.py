"""Tests of server/revs.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.revs import COUNTER_BITS, RevClock, from_wire, instant_of, span_of, to_wire

milliseconds = st.integers(0, 2**48 - 1)
revs = st.integers(0, 2**63 - 1)


@given(st.lists(milliseconds, min_size=1), revs)
def test_revs_rise_whatever_the_wall_clock_does(times: list[int], last: int) -> None:
    """A clock that stands still or steps back repeats no rev, nor one from before a restart."""
    readings: Iterator[int] = iter(times)
    clock = RevClock(last, lambda: next(readings))
    issued = [last, *(clock.next() for _ in times)]
    assert all(earlier < later for earlier, later in zip(issued, issued[1:], strict=False))
    assert clock.last == issued[-1]


def test_a_rev_tells_the_milliseconds_of_its_change() -> None:
    """The upper 48 bits are the wall clock, so that revs of several nodes can be compared."""
    clock = RevClock(wall_clock_ms=lambda: 1_700_000_000_123)
    assert clock.next() == 1_700_000_000_123 << COUNTER_BITS
    assert clock.next() == (1_700_000_000_123 << COUNTER_BITS) + 1
    at = datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)
    assert instant_of(clock.last) == at
    assert instant_of(clock.last + span_of(1.5)) == at + timedelta(seconds=1.5)


def test_the_wall_clock_is_that_of_the_machine_unless_given() -> None:
    """Milliseconds since 1970."""
    before = time.time_ns() // 1_000_000
    issued = RevClock().next() >> COUNTER_BITS
    assert before <= issued <= time.time_ns() // 1_000_000


@given(revs, st.integers(1, 1000))
def test_revs_are_taken_in_a_row(last: int, count: int) -> None:
    """Above all before them, and below the next one."""
    clock = RevClock(last, lambda: 0)
    taken = clock.take(count)
    assert list(taken) == list(range(last + 1, last + 1 + count))
    assert clock.next() == last + 1 + count


@given(revs, st.integers(-2, 2), milliseconds)
def test_no_rev_is_issued_above_a_ceiling(last: int, room: int, time_ms: int) -> None:
    """Up to it, as ever; what is refused leaves no gap."""
    clock = RevClock(last, lambda: time_ms)
    following = max(time_ms << COUNTER_BITS, last + 1)
    issued = clock.next_up_to(following + room)
    assert issued == (following if room >= 0 else None)
    assert clock.last == (last if issued is None else issued)


@given(revs, revs)
def test_a_witnessed_rev_is_gone_above(own: int, foreign: int) -> None:
    """After a rev from elsewhere the next one is greater, and an old one from elsewhere changes nothing."""
    clock = RevClock(own, lambda: 0)
    clock.witness(foreign)
    assert clock.last == max(own, foreign)
    assert clock.next() == max(own, foreign) + 1


@given(revs, revs)
def test_on_the_wire_the_later_rev_is_the_greater_string(one: int, other: int) -> None:
    """16 digits always: a client compares strings, and a JavaScript number never comes in."""
    assert len(to_wire(one)) == 16
    assert (one < other) == (to_wire(one) < to_wire(other))
    assert from_wire(to_wire(one)) == one


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0" * 15,
        "0" * 17,
        "-" + "0" * 15,
        "0X" + "0" * 14,
        " " * 16,
        "F" * 16,
        "ｆ" * 16,
        "0" * 16 + "\n",
    ],
    ids=["empty", "short", "one-less", "one-more", "minus", "prefix", "blank", "capitals", "wide", "line"],
)
def test_what_was_never_written_is_no_rev(text: str) -> None:
    assert from_wire(text) is None


def test_a_rev_that_no_store_could_keep_is_none() -> None:
    """They are signed there, of 64 bits."""
    assert from_wire("7" + "f" * 15) == 2**63 - 1
    assert from_wire("8" + "0" * 15) is None
    assert from_wire("f" * 16) is None
