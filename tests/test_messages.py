"""Tests of server/messages.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messages import Added, Document, Notification, Recipient, now, to_milliseconds


def test_now_is_utc_in_whole_milliseconds() -> None:
    """The present as every store can keep it, never ahead of the machine's clock."""
    before = datetime.now(UTC)
    instant = now()
    assert instant.utcoffset() == timedelta(0)
    assert instant.microsecond % 1000 == 0
    assert before - timedelta(milliseconds=1) < instant <= datetime.now(UTC)


def test_an_instant_of_another_zone_becomes_utc_and_is_cut_not_rounded() -> None:
    """Truncated: an instant that was read back is never later than it was written."""
    plus_two = timezone(timedelta(hours=2))
    written = datetime(2026, 1, 1, 1, 30, 0, 999_999, tzinfo=plus_two)
    assert to_milliseconds(written) == datetime(2025, 12, 31, 23, 30, 0, 999_000, tzinfo=UTC)
    assert to_milliseconds(written).tzinfo is UTC


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_cutting_to_milliseconds_once_is_enough(instant: datetime) -> None:
    """An instant in whole milliseconds stays as it is."""
    cut = to_milliseconds(instant)
    assert to_milliseconds(cut) == cut
    assert timedelta(0) <= instant - cut < timedelta(milliseconds=1)


def test_records_do_not_change() -> None:
    """A record that exists is valid, for as long as it exists."""
    recipient = Recipient("1", "a@example.test")
    with pytest.raises(AttributeError):
        recipient.user_id = "2"  # type: ignore[misc]


def test_the_rev_of_an_arrival_is_that_of_its_document() -> None:
    """All events but counts have a rev by which they can be ordered."""
    at = now()
    document = Document("d", "u", Notification("n", "t", at, "c"), at, at, rev=7)
    assert Added(document).rev == 7
