"""Tests of server/limits.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydispatch import dispatcher

from server.bus import THROTTLED
from server.callers import Caller
from server.config.schema import Limits as LimitSettings
from server.grants import Grant, Scope
from server.limits import (
    BYTES_PER_COMMAND,
    MAX_REFUSAL_DELAY_S,
    REFUSALS_PER_ADDRESS,
    Limits,
    OverRate,
    TooManyConnections,
    address_key,
    headers,
    refusal_headers,
)
from server.rates import Rate, TokenBucket
from tests.support.clock import Clock

HERE = Caller("127.0.0.1")
THERE = Caller("192.0.2.1", "the address 192.0.2.1 is not loopback", is_loopback=False)
ELSEWHERE = Caller("192.0.2.2", "the address 192.0.2.2 is not loopback", is_loopback=False)
ROOM = ("tenant", "ada")

SETTINGS = LimitSettings(
    requests_per_key=Rate(3, 30.0),
    requests_per_address=Rate(2, 20.0),
    sign_outs_per_tenant=Rate(2, 40.0),
    connects_per_address=Rate(5, 10.0),
    commands_per_user=Rate(6, 6.0),
    commands_per_address=Rate(5, 10.0),
    commands_per_connection=Rate(4, 8.0),
    connections_per_user=2,
    connections_per_address=3,
)
OFF = replace(
    SETTINGS,
    requests_per_key=None,
    requests_per_address=None,
    sign_outs_per_tenant=None,
    connects_per_address=None,
    commands_per_user=None,
    commands_per_address=None,
    commands_per_connection=None,
)


class Throttled:
    """The limits that the bus told of."""

    def __init__(self) -> None:
        self.limits: list[str] = []

    def __call__(self, limit: str) -> None:
        self.limits.append(limit)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> Limits:
    return Limits(SETTINGS, clock)


@pytest.fixture
def throttled(limits: Limits) -> Iterator[Throttled]:
    throttled = Throttled()
    dispatcher.connect(throttled, THROTTLED, sender=limits)
    yield throttled
    dispatcher.disconnect(throttled, THROTTLED, sender=limits)


def grant(label: str = "key ci", key_id: str | None = None, tenant: str = "tenant") -> Grant:
    return Grant(tenant, frozenset({Scope.PUBLISH}), label, key_id)


def requests(limits: Limits, who: Grant | None, caller: Caller, times: int = 10) -> int:
    """How many of so many are let through."""
    count = 0
    for _ in range(times):
        try:
            limits.check_request(who, caller)
            count += 1
        except OverRate:
            pass
    return count


# -- requests ------------------------------------------------------------------------------------------------


def test_a_key_is_counted_wherever_it_comes_from(limits: Limits, throttled: Throttled) -> None:
    """A backend may have many machines; each refusal is told of."""
    key = grant(key_id="1")
    assert requests(limits, key, THERE, 2) == 2
    assert requests(limits, key, ELSEWHERE, 4) == 1
    assert throttled.limits == ["requests_per_key"] * 3


def test_keys_are_counted_apart(limits: Limits) -> None:
    """Also those that are called the same."""
    assert requests(limits, grant(key_id="1"), THERE) == 3
    assert requests(limits, grant(key_id="2"), THERE) == 3


def test_a_credential_that_is_no_key_is_counted_by_its_name(limits: Limits) -> None:
    """In its tenant."""
    assert requests(limits, grant("service billing"), THERE) == 3
    assert requests(limits, grant("service billing"), ELSEWHERE) == 0
    assert requests(limits, grant("service other"), THERE) == 3
    assert requests(limits, grant("service billing", tenant="other"), THERE) == 3


def test_a_local_caller_with_a_key_is_counted_by_it(limits: Limits) -> None:
    """A runaway loop is one wherever it runs."""
    assert requests(limits, grant(key_id="1"), HERE) == 3


def test_without_a_key_the_address_is_counted(limits: Limits, throttled: Throttled) -> None:
    """Guessing keys is slowed, and costs neither other addresses nor a key that is used from the same one."""
    assert requests(limits, None, THERE, 3) == 2
    assert throttled.limits == ["requests_per_address"]
    assert requests(limits, None, ELSEWHERE, 1) == 1
    assert requests(limits, grant(key_id="1"), THERE, 1) == 1


def test_sign_outs_are_counted_by_tenant(limits: Limits, throttled: Throttled) -> None:
    """Each refusal is told of; other tenants have their own."""
    assert [limits.check_sign_out("tenant").remaining for _ in range(2)] == [1, 0]
    with pytest.raises(OverRate, match="too many sign-outs of this tenant") as refused:
        limits.check_sign_out("tenant")
    assert throttled.limits == ["sign_outs_per_tenant"]
    assert refusal_headers(refused.value) == {
        "Retry-After": "20",
        "RateLimit-Policy": '"sign_outs_per_tenant";q=2;w=40',
        "RateLimit": '"sign_outs_per_tenant";r=0;t=40',
    }
    assert limits.check_sign_out("other").allowed


def test_callers_on_this_machine_are_not_counted_by_address(limits: Limits) -> None:
    """Unless they came through a proxy that names nobody."""
    assert requests(limits, None, HERE) == 10
    hidden = replace(HERE, why_not_local="the header via says that a proxy passed the request on")
    assert requests(limits, None, hidden) == 2


def test_an_attacker_cannot_choose_new_ipv6_addresses(limits: Limits) -> None:
    """All of a network count as one."""
    network = [replace(THERE, address=f"2001:db8:1:2::{number:x}") for number in range(10)]
    assert sum(requests(limits, None, caller, 1) for caller in network) == 2
    assert requests(limits, None, replace(THERE, address="2001:db8:1:3::1"), 1) == 1


def test_a_refusal_says_when_to_come_back(limits: Limits, clock: Clock) -> None:
    """Then it is let through."""
    assert requests(limits, None, THERE, 2) == 2
    with pytest.raises(OverRate) as refused:
        limits.check_request(None, THERE)
    assert (refused.value.code, refused.value.http_status) == ("rate_limited", 429)
    assert refusal_headers(refused.value)["Retry-After"] == "10"
    clock.now += 10
    assert requests(limits, None, THERE, 2) == 1


# -- headers -------------------------------------------------------------------------------------------------

STRING = r'"[\x20\x21\x23-\x5b\x5d-\x7e]*"'
"""Of RFC 9651 section 3.3.3, without escapes."""


def test_headers_are_structured_fields(limits: Limits) -> None:
    """A list with one string, and integers as its parameters (RFC 9651); the same name in both."""
    fields = headers(limits.check_request(grant(key_id="1"), THERE))
    assert fields == {
        "RateLimit-Policy": '"requests_per_key";q=3;w=30',
        "RateLimit": '"requests_per_key";r=2;t=10',
    }
    for value in fields.values():
        assert re.fullmatch(rf"{STRING}(;[a-z]+=[0-9]{{1,15}})+", value)


def test_a_refusal_carries_the_headers_too(limits: Limits) -> None:
    """With nothing left."""
    requests(limits, None, THERE)
    with pytest.raises(OverRate) as refused:
        limits.check_request(None, THERE)
    assert refusal_headers(refused.value) == {
        "Retry-After": "10",
        "RateLimit-Policy": '"requests_per_address";q=2;w=20',
        "RateLimit": '"requests_per_address";r=0;t=20',
    }


def test_who_has_too_many_connections_is_told_how_many_there_may_be(limits: Limits) -> None:
    """A quota of what there is at once, not within a window."""
    for _ in range(3):
        limits.opened(THERE)
    with pytest.raises(TooManyConnections) as refused:
        limits.may_connect(THERE)
    fields = refusal_headers(refused.value)
    assert fields == {
        "Retry-After": "10",
        "RateLimit-Policy": '"connections_per_address";q=3;qu="concurrent-requests"',
        "RateLimit": '"connections_per_address";r=0;t=10',
    }


def test_refusals_of_an_address_wait_for_each_other(limits: Limits, clock: Clock) -> None:
    """However many connections it asks over, it gets so many answers a second; nobody waits for it."""
    quota = REFUSALS_PER_ADDRESS.quota
    assert [limits.refusal_delay_s(THERE, 0.0) for _ in range(quota)] == [0.0] * quota
    assert [limits.refusal_delay_s(THERE, 0.0) for _ in range(2)] == pytest.approx([1 / quota, 2 / quota])
    assert limits.refusal_delay_s(ELSEWHERE, 0.0) == limits.refusal_delay_s(HERE, 0.0) == 0
    assert max(limits.refusal_delay_s(THERE, 1.0) for _ in range(10_000)) == MAX_REFUSAL_DELAY_S
    clock.now += 1000
    assert 0.5 <= limits.refusal_delay_s(THERE, 1.0) <= 1.5


def test_where_there_is_no_limit_there_are_no_headers(limits: Limits, clock: Clock) -> None:
    """Local callers, and limits that are off."""
    assert headers(limits.check_request(None, HERE)) == {}
    assert headers(Limits(OFF, clock).check_request(None, THERE)) == {}


def test_a_window_is_never_called_zero(clock: Clock) -> None:
    """The draft knows whole seconds from 1 on."""
    limits = Limits(replace(SETTINGS, requests_per_key=Rate(1000, 0.5)), clock)
    fields = headers(limits.check_request(grant(), THERE))
    assert fields["RateLimit-Policy"].endswith(";q=1000;w=1")
    assert fields["RateLimit"].endswith(";r=999;t=1")


# -- commands ------------------------------------------------------------------------------------------------


def test_commands_of_a_connection_wait(limits: Limits, throttled: Throttled) -> None:
    """Beyond the burst each waits for its turn; the first that waits is told of, and each after it."""
    bucket = TokenBucket()
    assert [limits.pace(bucket, HERE, None) for _ in range(6)] == pytest.approx([0, 0, 0, 0, 2, 4])
    assert throttled.limits == ["commands_per_connection"] * 2


def test_commands_of_a_user_wait(limits: Limits, throttled: Throttled) -> None:
    """Over all their connections, and nobody else's."""
    first, second = TokenBucket(), TokenBucket()
    assert [limits.pace(first, HERE, ROOM) for _ in range(4)] == [0] * 4
    assert [limits.pace(second, HERE, ROOM) for _ in range(3)] == pytest.approx([0, 0, 1])
    assert throttled.limits == ["commands_per_user"]
    assert limits.pace(TokenBucket(), HERE, ("tenant", "bob")) == 0
    assert limits.pace(TokenBucket(), HERE, ("other", "ada")) == 0


def test_commands_of_an_address_wait(limits: Limits, throttled: Throttled) -> None:
    """Over all its connections, of users and of nobody; those of this machine do not."""
    assert [limits.pace(TokenBucket(), THERE, None) for _ in range(6)] == pytest.approx([0] * 5 + [2])
    assert throttled.limits == ["commands_per_address"]
    assert limits.pace(TokenBucket(), ELSEWHERE, None) == 0
    assert [limits.pace(TokenBucket(), HERE, None) for _ in range(6)] == [0] * 6


def test_a_join_is_a_command_of_the_user_it_makes(limits: Limits, throttled: Throttled) -> None:
    """Else who joins again and again, each time on a new connection, would not be held up."""
    assert [limits.pace_join(ROOM) for _ in range(7)] == pytest.approx([0] * 6 + [1])
    assert throttled.limits == ["commands_per_user"]


def test_large_messages_count_as_several_commands(limits: Limits) -> None:
    """One more for each full portion."""
    bucket = TokenBucket()
    assert limits.pace(bucket, HERE, None, BYTES_PER_COMMAND - 1) == 0
    assert limits.pace(bucket, HERE, None, 2 * BYTES_PER_COMMAND) == 0
    assert limits.pace(bucket, HERE, None, 2 * BYTES_PER_COMMAND) == pytest.approx(6)


def test_the_next_command_waits_for_a_large_answer(limits: Limits, throttled: Throttled) -> None:
    """At its connection, its address and its user; a small one is part of its command."""
    bucket = TokenBucket()
    limits.charge(bucket, THERE, ROOM, 100 * (BYTES_PER_COMMAND - 1))
    assert limits.pace(bucket, HERE, None) > 0
    assert limits.pace(TokenBucket(), THERE, None) > 0
    assert limits.pace(TokenBucket(), HERE, ROOM) > 0
    assert throttled.limits == ["commands_per_connection", "commands_per_address", "commands_per_user"]
    other, user = TokenBucket(), ("tenant", "bob")
    for _ in range(100):
        limits.charge(other, ELSEWHERE, user, BYTES_PER_COMMAND - 1)
    assert limits.pace(other, ELSEWHERE, user) == 0


def test_a_user_is_remembered_only_while_something_is_used_up(limits: Limits, clock: Clock) -> None:
    """A user who sends a command now and then costs no memory in between."""
    for number in range(100):
        limits.pace(TokenBucket(), HERE, ("tenant", f"user {number}"))
    clock.now += 100
    limits.pace(TokenBucket(), HERE, ROOM)
    assert len(limits._user_commands) == 1


def test_frames_wait_where_they_are_too_many_for_commands(limits: Limits, throttled: Throttled) -> None:
    """Pings are no commands, and not free."""
    bucket = TokenBucket()
    assert [limits.pace_frame(bucket, HERE) for _ in range(9)] == pytest.approx([0] * 8 + [1])
    assert [limits.pace_frame(TokenBucket(), THERE) for _ in range(11)] == pytest.approx([0] * 10 + [1])
    assert throttled.limits == ["commands_per_connection", "commands_per_address"]


def test_limits_that_are_off_hold_nobody_up(clock: Clock) -> None:
    """Each of them can be."""
    limits, bucket = Limits(OFF, clock), TokenBucket()
    assert {limits.pace(bucket, THERE, ROOM) for _ in range(1000)} == {0}
    assert {limits.pace_frame(bucket, HERE) for _ in range(1000)} == {0}
    assert requests(limits, grant(), THERE, 1000) == requests(limits, None, THERE, 1000) == 1000
    for _ in range(1000):
        limits.may_connect(THERE)


# -- connections ---------------------------------------------------------------------------------------------


def test_an_address_may_have_so_many_connections(limits: Limits, throttled: Throttled) -> None:
    """When one is over, the next may come."""
    for _ in range(3):
        limits.may_connect(THERE)
        limits.opened(THERE)
    with pytest.raises(TooManyConnections, match="this address has 3 connections") as refused:
        limits.may_connect(THERE)
    assert (refused.value.code, refused.value.http_status) == ("too_many_connections", 429)
    assert throttled.limits == ["connections_per_address"]
    limits.may_connect(ELSEWHERE)
    limits.closed(THERE)
    limits.may_connect(THERE)


def test_an_address_may_connect_so_often(limits: Limits, throttled: Throttled) -> None:
    """Also if it hangs up each time."""
    for _ in range(5):
        limits.may_connect(THERE)
    with pytest.raises(OverRate):
        limits.may_connect(THERE)
    assert throttled.limits == ["connects_per_address"]
    limits.may_connect(ELSEWHERE)


def test_connections_from_this_machine_are_not_counted(limits: Limits) -> None:
    """Neither how often nor how many."""
    for _ in range(100):
        limits.may_connect(HERE)
        limits.opened(HERE)
    limits.closed(HERE)
    assert not limits._by_address


def test_a_user_may_have_so_many_connections(limits: Limits, throttled: Throttled) -> None:
    """The next is refused, and changes nothing."""
    limits.join_user(ROOM)
    limits.join_user(ROOM)
    for _ in range(2):
        with pytest.raises(TooManyConnections, match="this user has 2 connections") as refused:
            limits.join_user(ROOM)
        assert refused.value.code == "too_many_connections"
    assert throttled.limits == ["connections_per_user"] * 2
    limits.join_user(("tenant", "bob"))
    limits.leave_user(ROOM)
    limits.join_user(ROOM)


def test_whoever_joins_again_has_a_place(limits: Limits) -> None:
    """The same user on the same connection, with a new token: it takes the new place before it gives up the old."""
    limits.join_user(ROOM)
    limits.join_user(ROOM)
    limits.join_user(ROOM, has_place=True)
    limits.leave_user(ROOM)
    with pytest.raises(TooManyConnections):
        limits.join_user(ROOM)


def test_who_is_gone_is_forgotten(limits: Limits) -> None:
    """No memory is left of addresses and users without connections."""
    for number in range(100):
        limits.opened(replace(THERE, address=f"192.0.2.{number}"))
        limits.join_user(("tenant", str(number)))
    for number in range(100):
        limits.closed(replace(THERE, address=f"192.0.2.{number}"))
        limits.leave_user(("tenant", str(number)))
    assert not limits._by_address
    assert not limits._by_user


def test_an_address_has_sockets_to_spare(limits: Limits) -> None:
    """More than connections, as a page also loads files."""
    assert limits.sockets_per_address == 5


# -- other settings ------------------------------------------------------------------------------------------


def test_other_settings_count_at_once(limits: Limits) -> None:
    """For each limit; who has more connections than they may now keeps those, and gets no more."""
    limits.opened(THERE)
    limits.join_user(ROOM)
    more = replace(
        SETTINGS,
        requests_per_key=Rate(30, 30.0),
        requests_per_address=Rate(20, 20.0),
        sign_outs_per_tenant=Rate(1, 40.0),
        connects_per_address=Rate(1, 10.0),
        commands_per_user=Rate(1, 6.0),
        commands_per_connection=Rate(2, 8.0),
        connections_per_user=1,
        connections_per_address=2,
        join_within_s=7.0,
    )
    limits.apply(more)
    assert limits.join_within_s == 7
    assert requests(limits, grant(), THERE, 100) == 30
    assert requests(limits, None, THERE, 100) == 20
    limits.check_sign_out("tenant")
    with pytest.raises(OverRate):
        limits.check_sign_out("tenant")
    limits.may_connect(THERE)
    with pytest.raises(OverRate):
        limits.may_connect(THERE)
    bucket = TokenBucket()
    assert [limits.pace(bucket, HERE, None) for _ in range(3)] == pytest.approx([0, 0, 4])
    assert [limits.pace(TokenBucket(), HERE, ROOM) for _ in range(2)] == pytest.approx([0, 6])
    frames = TokenBucket()
    assert [limits.pace_frame(frames, HERE) for _ in range(5)] == pytest.approx([0] * 4 + [2])
    with pytest.raises(TooManyConnections):
        limits.join_user(ROOM)
    limits.opened(ELSEWHERE)
    limits.opened(ELSEWHERE)
    with pytest.raises(TooManyConnections):
        limits.may_connect(ELSEWHERE)


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("unknown", "unknown"),
        ("no:address", "no:address"),
        ("", ""),
    ],
)
def test_what_an_address_is_counted_by(address: str, key: str) -> None:
    """An IPv4 address itself, an IPv6 address with its network."""
    assert address_key(address) == key
