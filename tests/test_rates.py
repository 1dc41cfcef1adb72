"""Tests of server/rates.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rates import FORGET_EVERY_S, FORGET_WHEN_CROWDED_S, UNLIMITED, Buckets, Rate, TokenBucket
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(buckets: Buckets, key: str, times: int) -> int:
    """How many of so many tries were let through."""
    return sum(buckets.take(key).allowed for _ in range(times))


rates = st.builds(
    Rate,
    st.integers(1, 1000),
    st.floats(0.1, 86_400, allow_nan=False, allow_infinity=False),
)
pauses_s = st.lists(st.floats(0, 20_000, allow_nan=False) | st.just(0.0), min_size=1, max_size=200)


# -- the promise ---------------------------------------------------------------------------------------------


@given(rates, pauses_s)
def test_nobody_gets_more_than_the_rate(rate: Rate, pauses: Sequence[float]) -> None:
    """Over any stretch of time: the quota, and what the rate adds in that time."""
    clock = Clock()
    buckets = Buckets("limit", rate, clock)
    taken_at: list[float] = []
    for pause_s in pauses:
        clock.now += pause_s
        if buckets.take("key").allowed:
            taken_at.append(clock.now)
    for first, began_at in enumerate(taken_at):
        for last, ended_at in enumerate(taken_at[first:], first):
            assert last - first + 1 <= rate.quota + (ended_at - began_at) * rate.per_s + 0.01


@given(rates, st.integers(1, 300))
def test_a_full_bucket_gives_its_quota_and_no_more(rate: Rate, tries: int) -> None:
    """All at once."""
    assert taken(Buckets("limit", rate, Clock()), "key", tries) == min(tries, rate.quota)


@given(rates, pauses_s)
def test_whoever_waits_as_told_is_let_through(rate: Rate, pauses: Sequence[float]) -> None:
    """After `retry_after_s`, and not before."""
    clock = Clock()
    buckets = Buckets("limit", rate, clock)
    for pause_s in pauses:
        clock.now += pause_s / 1000
        allowance = buckets.take("key")
        if not allowance.allowed:
            begin_s = clock.now
            clock.now = begin_s + 0.9 * allowance.retry_after_s
            assert not buckets.take("key").allowed or allowance.retry_after_s * rate.per_s < 0.02
            clock.now = begin_s + allowance.retry_after_s
            assert buckets.take("key").allowed


@given(rates, pauses_s)
def test_whoever_waits_for_what_they_reserved_keeps_to_the_rate(rate: Rate, pauses: Sequence[float]) -> None:
    """Each is told a time of its own, in the order in which they asked."""
    clock = Clock()
    bucket, buckets = TokenBucket(), Buckets("limit", rate, clock)
    due: list[float] = []
    for pause_s in pauses:
        clock.now += pause_s / 100
        wait_s = bucket.reserve(rate, clock.now)
        assert buckets.reserve("key") == wait_s
        due.append(clock.now + wait_s)
    assert due == sorted(due)
    for first, began_at in enumerate(due):
        for last, ended_at in enumerate(due[first:], first):
            assert last - first + 1 <= rate.quota + (ended_at - began_at) * rate.per_s + 0.01


# -- what is told --------------------------------------------------------------------------------------------


def test_an_allowance_says_what_is_left(clock: Clock) -> None:
    """How much, until when all is back, and when to come again."""
    rate = Rate(3, 30.0)
    buckets = Buckets("requests_per_key", rate, clock)
    first = buckets.take("key")
    assert (first.allowed, first.rate, first.limit) == (True, rate, "requests_per_key")
    assert (first.remaining, first.reset_s, first.retry_after_s) == (2, pytest.approx(10), 0)
    assert [buckets.take("key").remaining for _ in range(2)] == [1, 0]
    refused = buckets.take("key")
    assert not refused.allowed
    assert (refused.remaining, refused.reset_s) == (0, pytest.approx(30))
    assert refused.retry_after_s == pytest.approx(10)


def test_what_is_dear_takes_several_tokens(clock: Clock) -> None:
    """More than there are is waited for."""
    rate = Rate(4, 8.0)
    bucket, buckets = TokenBucket(), Buckets("limit", rate, clock)
    assert [bucket.reserve(rate, clock.now, tokens) for tokens in (1, 3, 2)] == pytest.approx([0, 0, 4])
    assert [buckets.reserve("key", tokens) for tokens in (1, 3, 2)] == pytest.approx([0, 0, 4])


def test_keys_do_not_share(clock: Clock) -> None:
    """Each has a bucket of its own."""
    buckets = Buckets("limit", Rate(2, 10.0), clock)
    assert taken(buckets, "a", 5) == 2
    assert taken(buckets, "b", 5) == 2


def test_no_rate_is_no_limit(clock: Clock) -> None:
    """And no memory."""
    buckets = Buckets("limit", None, clock)
    assert buckets.take("key") is UNLIMITED
    assert buckets.reserve("key") == 0
    assert len(buckets) == 0


# -- other rates ---------------------------------------------------------------------------------------------


def test_a_new_rate_counts_at_once(clock: Clock) -> None:
    """What was used up stays so."""
    buckets = Buckets("limit", Rate(10, 10.0), clock)
    assert taken(buckets, "key", 10) == 10
    buckets.apply(Rate(20, 10.0))
    assert buckets.rate == Rate(20, 10.0)
    assert not buckets.take("key").allowed
    clock.now += 1
    assert taken(buckets, "key", 9) == 2


def test_a_new_rate_keeps_nobody_waiting_longer_than_its_own_window(clock: Clock) -> None:
    """A day's quota that is used up is no debt towards a rate per second."""
    buckets = Buckets("limit", Rate(10, 86_400.0), clock)
    assert taken(buckets, "key", 10) == 10
    buckets.apply(Rate(10, 1.0))
    clock.now += 1
    assert taken(buckets, "key", 20) == 10


def test_a_limit_can_be_lifted_and_set_again(clock: Clock) -> None:
    """Nobody has used up anything of the new one."""
    buckets = Buckets("limit", Rate(1, 1000.0), clock)
    assert taken(buckets, "key", 2) == 1
    buckets.apply(None)
    assert taken(buckets, "key", 2) == 2
    buckets.apply(Rate(1, 1000.0))
    assert taken(buckets, "key", 2) == 1


def test_the_same_rate_again_changes_nothing(clock: Clock) -> None:
    """A reload of the same settings gives nobody anything."""
    buckets = Buckets("limit", Rate(1, 1000.0), clock)
    assert taken(buckets, "key", 2) == 1
    buckets.apply(Rate(1, 1000.0))
    assert taken(buckets, "key", 2) == 0


# -- memory --------------------------------------------------------------------------------------------------


def test_a_full_bucket_is_forgotten(clock: Clock) -> None:
    """In time, and only a full one."""
    buckets = Buckets("limit", Rate(100, 1000.0), clock)
    assert taken(buckets, "once", 1) == 1
    assert taken(buckets, "often", 100) == 100
    clock.now += FORGET_EVERY_S
    buckets.take("next")
    assert len(buckets) == 2
    assert taken(buckets, "often", 100) == 6


def test_new_keys_cannot_push_out_old_ones(clock: Clock) -> None:
    """However many come, who has used up their share has used it up, and memory stays as it is."""
    buckets = Buckets("limit", Rate(2, 1000.0), clock, max_keys=10, shared=4)
    assert taken(buckets, "spent", 5) == 2
    for number in range(10_000):
        buckets.take(f"flood {number}")
    assert len(buckets) == 10
    assert taken(buckets, "spent", 5) == 0


def test_beyond_the_bound_keys_share_buckets(clock: Clock) -> None:
    """Together they get no more than those buckets hold."""
    buckets = Buckets("limit", Rate(2, 1000.0), clock, max_keys=10, shared=4)
    allowed = sum(buckets.take(f"flood {number}").allowed for number in range(10_000))
    assert allowed == 10 + 4 * 2


def test_after_the_crowd_each_has_a_bucket_again(clock: Clock) -> None:
    """As soon as there is room; but what was used up of a shared one stays so."""
    buckets = Buckets("limit", Rate(10, 10.0), clock, max_keys=10, shared=1)
    for number in range(10):
        assert taken(buckets, f"crowd {number}", 5) == 5
    assert taken(buckets, "late", 20) == 10
    clock.now += 5 * FORGET_WHEN_CROWDED_S
    assert taken(buckets, "late", 20) == 5
    assert len(buckets) == 1
    clock.now += 10
    assert taken(buckets, "other", 20) == 10


def test_a_new_rate_counts_for_shared_buckets(clock: Clock) -> None:
    """As for the others."""
    buckets = Buckets("limit", Rate(1, 86_400.0), clock, max_keys=1, shared=1)
    assert [taken(buckets, key, 2) for key in ("own", "shared")] == [1, 1]
    buckets.apply(Rate(1, 1.0))
    clock.now += 1
    assert [taken(buckets, key, 2) for key in ("own", "shared")] == [1, 1]
