"""Tests of server/presence.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import pytest

from server.backplane import LocalBackplane
from server.dialects import Dialect
from server.messages import now
from server.presence import Presence
from server.rooms import Push, Room, Rooms, SignIn
from server.wire import EventFrames, Frame
from tests.support.recording import RecordingConnection

ALICE: Room = ("acme", "alice")

CLASSIC = EventFrames()


class Member:
    def __init__(self) -> None:
        self.connection = RecordingConnection()
        self.dialect: Dialect = CLASSIC
        self.sign_in: SignIn | None = None

    def push(self, pushes: Sequence[Push], burst: Frame) -> None: ...


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


def test_online_is_who_has_a_connection(presence: Presence, rooms: Rooms, alice: Member) -> None:
    """However long that has been silent."""
    assert presence.is_online(ALICE)
    rooms.leave(ALICE, alice)
    assert not presence.is_online(ALICE)


@pytest.mark.parametrize("has_left", [False, True])
def test_a_sign_of_life_counts_if_it_came_after_the_instant(
    presence: Presence, rooms: Rooms, alice: Member, has_left: bool
) -> None:
    """Also if the connection has closed since."""
    alice.connection.last_alive_at = time.monotonic() - 100
    if has_left:
        rooms.leave(ALICE, alice)
    assert presence.alive_since(*ALICE, now() - timedelta(seconds=110))
    assert not presence.alive_since(*ALICE, now() - timedelta(seconds=90))


def test_an_instant_ahead_of_our_clock_is_no_proof_of_life(presence: Presence, alice: Member) -> None:
    """Another node's clock may be ahead: a mail too many beats one too few."""
    alice.connection.last_alive_at = time.monotonic()
    assert not presence.alive_since(*ALICE, now() + timedelta(seconds=5))


def test_nobody_knows_of_is_away(presence: Presence) -> None:
    """Who was never here gave no sign of life."""
    assert not presence.alive_since(*ALICE, now() - timedelta(days=1))


def test_signs_of_life_are_kept_until_no_mail_depends_on_them(
    presence: Presence, rooms: Rooms, alice: Member
) -> None:
    """Mail is decided one silence after the push; twice that is kept."""
    alice.connection.last_alive_at = time.monotonic() - 95
    rooms.leave(ALICE, alice)
    presence.forget()
    assert presence.alive_since(*ALICE, now() - timedelta(seconds=105))
    alice.connection.last_alive_at = time.monotonic() - 101
    rooms.forget_signs_of_life(time.monotonic())
    rooms.join(ALICE, alice)
    rooms.leave(ALICE, alice)
    presence.forget()
    assert not presence.alive_since(*ALICE, now() - timedelta(seconds=105))
