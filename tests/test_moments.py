"""Tests of server/moments.py."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from server.messages import now
from server.moments import Moments


class Clocks:
    """Both clocks of a machine, that of the wall set anew by a test."""

    def __init__(self) -> None:
        self.moment = time.monotonic()
        self.wall = now()

    def pass_(self, seconds: float) -> None:
        self.moment += seconds
        self.wall += timedelta(seconds=seconds)

    def set(self, by: timedelta) -> None:
        self.wall += by

    def moments(self) -> Moments:
        return Moments(lambda: self.wall, lambda: self.moment)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_an_instant_is_found_though_the_clock_was_set(clocks: Clocks) -> None:
    """Before and after each time, ahead and back."""
    moments, known = clocks.moments(), []
    for hours in (0, 1, -3, 24, -22):
        clocks.set(timedelta(hours=hours))
        moments.note()
        clocks.pass_(10)
        known.append((clocks.wall, clocks.moment))
        clocks.pass_(10)
        moments.note()
    assert [moments.of(wall) for wall, _ in known] == pytest.approx([moment for _, moment in known])


def test_of_an_hour_that_the_clock_repeats_the_later_one_counts(clocks: Clocks) -> None:
    """A mail too many beats one too few."""
    moments, repeated = clocks.moments(), clocks.wall
    clocks.pass_(10)
    clocks.set(repeated - clocks.wall)
    assert moments.of(repeated) == pytest.approx(clocks.moment)


def test_where_it_is_not_known_when_the_clock_was_set_the_later_moment_counts(clocks: Clocks) -> None:
    """A mail too many beats one too few."""
    moments = clocks.moments()
    clocks.pass_(50)
    wall, moment = clocks.wall, clocks.moment
    clocks.pass_(5)
    clocks.set(timedelta(seconds=30))
    clocks.pass_(5)
    assert moments.of(wall) == pytest.approx(moment)


def test_what_the_clock_never_showed_is_now(clocks: Clocks) -> None:
    """Nothing came after it: a mail too many beats one too few."""
    moments = clocks.moments()
    skipped = clocks.wall + timedelta(minutes=30)
    clocks.set(timedelta(hours=1))
    assert moments.of(skipped) == clocks.moment
