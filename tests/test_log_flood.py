"""What one kind of event may take of the log."""

from __future__ import annotations

import json
import logging

from server.logs import (
    EVENTS_PER_KIND,
    MAX_KINDS,
    SHARED_BUCKETS,
    FloodFilter,
    JSONFormatter,
    LineFormatter,
)
from tests.support.clock import Clock


def record(message: str, *values: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("server.x", level, "", 0, message, values, None)


def test_a_kind_of_event_is_written_so_often() -> None:
    """Whatever is filled in; other kinds are not touched by it, and what is asked for with DEBUG comes whole."""
    flood = FloodFilter(Clock())
    quota = EVENTS_PER_KIND.quota
    assert sum(flood.filter(record("refused %d", number)) for number in range(3 * quota)) == quota
    assert flood.filter(record("another"))
    assert all(flood.filter(record("asked for", level=logging.DEBUG)) for _ in range(3 * quota))


def test_the_next_one_says_how_many_were_left_out() -> None:
    """Once, in both forms."""
    clock = Clock()
    flood = FloodFilter(clock)
    for number in range(EVENTS_PER_KIND.quota + 7):
        flood.filter(record("refused %d", number))
    clock.now += EVENTS_PER_KIND.window_s
    first, second = record("refused %d", 8), record("refused %d", 9)
    assert flood.filter(first)
    assert LineFormatter().format(first).endswith("refused 8 (7 more like this since the last one)")
    assert json.loads(JSONFormatter().format(first))["left_out"] == 7
    assert flood.filter(second)
    assert LineFormatter().format(second).endswith("refused 9")
    assert "left_out" not in json.loads(JSONFormatter().format(second))


def test_any_number_of_kinds_takes_bounded_memory() -> None:
    """As of a library that fills in its texts itself: together they are held up all the same."""
    flood = FloodFilter(Clock())
    written = sum(flood.filter(record(f"refused {number}")) for number in range(50_000))
    assert written <= MAX_KINDS + SHARED_BUCKETS * EVENTS_PER_KIND.quota
    assert len(flood._left_out) <= MAX_KINDS
