"""Tests of server/presence.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from server.backplane import LocalBackplane
from server.dialects import Dialect
from server.messages import now
from server.presence import Presence
from server.rooms import Push, Room, Rooms, SignIn
from server.wire import EventFrames, Frame
from tests.support.recording import RecordingConnection
from tests.test_moments import Clocks

ALICE: Room = ("acme", "alice")
BOB: Room = ("acme", "bob")

CLASSIC = EventFrames()


class Member:
    def __init__(self) -> None:
        self.connection = RecordingConnection()
        self.dialect: Dialect = CLASSIC
        self.sign_in: SignIn | None = None

    def push(self, pushes: Sequence[Push], burst: Frame) -> None: ...


async def is_alive(presence: Presence, instant: datetime) -> bool:
    """Whether alice gave a sign of life since; bob, who was never here, gave none."""
    alive = await presence.alive_since("acme", ["bob", "alice"], instant)
    assert alive <= {"alice"}
    return bool(alive)


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
async def presence(rooms: Rooms) -> Presence:
    return Presence(rooms, LocalBackplane(rooms), heartbeat_s=25)


@pytest.fixture
def alice(rooms: Rooms) -> Member:
    member = Member()
    rooms.join(ALICE, member)
    return member


def test_two_heartbeats_of_silence_are_away(presence: Presence) -> None:
    """An open socket is not a reader: after so long the mail is due."""
    assert presence.away_after_s == 50


async def test_online_is_who_has_a_connection(presence: Presence, rooms: Rooms, alice: Member) -> None:
    """However long that has been silent."""
    assert await presence.online([ALICE, BOB]) == {ALICE}
    rooms.leave(ALICE, alice)
    assert await presence.online([ALICE, BOB]) == set()


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_sign_of_life_counts_if_it_came_after_the_instant(
    presence: Presence, rooms: Rooms, alice: Member, has_left: bool
) -> None:
    """Also if the connection has closed since."""
    alice.connection.last_alive_at = time.monotonic() - 100
    if has_left:
        rooms.leave(ALICE, alice)
    assert await is_alive(presence, now() - timedelta(seconds=110))
    assert not await is_alive(presence, now() - timedelta(seconds=90))


async def test_an_instant_ahead_of_our_clock_is_no_proof_of_life(presence: Presence, alice: Member) -> None:
    """Another node's clock may be ahead: a mail too many beats one too few."""
    alice.connection.last_alive_at = time.monotonic()
    assert not await is_alive(presence, now() + timedelta(seconds=5))


async def test_how_long_ago_it_was_counts_where_the_instant_is_earlier(
    presence: Presence, alice: Member
) -> None:
    """The clock of the node that accepted it may be behind ours: what came before is no sign of life."""
    alice.connection.last_alive_at = time.monotonic() - 3
    accepted_at = now() - timedelta(seconds=8)
    assert await presence.alive_since("acme", ["alice"], accepted_at) == {"alice"}
    assert await presence.alive_since("acme", ["alice"], accepted_at, 1) == set()
    assert await presence.alive_since("acme", ["alice"], accepted_at, 5) == {"alice"}


async def test_nobody_knows_of_is_away(presence: Presence) -> None:
    """Who was never here gave no sign of life."""
    assert not await is_alive(presence, now() - timedelta(days=1))


async def test_signs_of_life_are_kept_until_no_mail_depends_on_them(
    presence: Presence, rooms: Rooms, alice: Member
) -> None:
    """Mail is decided one silence after the push; twice that is kept."""
    alice.connection.last_alive_at = time.monotonic() - 95
    rooms.leave(ALICE, alice)
    presence.sweep()
    assert await is_alive(presence, now() - timedelta(seconds=105))
    alice.connection.last_alive_at = time.monotonic() - 101
    rooms.forget_signs_of_life(time.monotonic())
    rooms.join(ALICE, alice)
    rooms.leave(ALICE, alice)
    presence.sweep()
    assert not await is_alive(presence, now() - timedelta(seconds=105))


@pytest.mark.parametrize("ago_s", [None, 3600.0], ids=["by the clock of the node", "by one that nodes share"])
async def test_a_clock_that_is_set_ahead_makes_nobody_alive(
    presence: Presence, alice: Member, monkeypatch: pytest.MonkeyPatch, ago_s: float | None
) -> None:
    """Nor does a machine that was asleep. The last sign of life came before the notification, however long ago that
    looks to be now: whoever is not there is mailed."""
    alice.connection.last_alive_at = time.monotonic() - 10
    accepted_at, showed_ns = now(), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: showed_ns() + 3600 * 10**9)
    assert not await presence.alive_since("acme", ["alice"], accepted_at, ago_s)
    alice.connection.last_alive_at = time.monotonic() + 10
    assert await presence.alive_since("acme", ["alice"], accepted_at, ago_s)


async def test_that_the_clock_was_set_is_noted_though_nobody_is_mailed(rooms: Rooms, alice: Member) -> None:
    """What was accepted until it was set back is from then, and not from the future."""
    clocks = Clocks()
    presence = Presence(rooms, LocalBackplane(rooms), heartbeat_s=25, moments=clocks.moments())
    clocks.set(timedelta(hours=1))
    presence.sweep()
    clocks.pass_(10)
    accepted_at, moment = clocks.wall, clocks.moment
    clocks.pass_(10)
    presence.sweep()
    clocks.set(timedelta(hours=-1))
    alice.connection.last_alive_at = moment + 5
    assert await is_alive(presence, accepted_at)
    alice.connection.last_alive_at = moment - 5
    assert not await is_alive(presence, accepted_at)
