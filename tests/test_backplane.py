"""Tests of server/backplane.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from server import backplane as module
from server import scan
from server.backplane import LocalBackplane
from server.messages import UnseenCount
from server.rooms import Push, Room, Rooms
from server.wire import FAILED, Frame
from tests.support.recording import Member

ALICE: Room = ("acme", "alice")
BOB: Room = ("acme", "bob")
CAROL: Room = ("acme", "carol")


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
def alice(rooms: Rooms) -> Member:
    member = Member()
    rooms.join(ALICE, member)
    return member


async def test_events_go_out_in_the_order_in_which_they_were_published(rooms: Rooms, alice: Member) -> None:
    """All of them, after the publisher had its turn; then the backplane is flushed."""
    backplane = LocalBackplane(rooms)
    backplane.publish((ALICE, UnseenCount(number)) for number in range(3))
    backplane.publish([(ALICE, UnseenCount(3))])
    assert alice.events == []
    await backplane.flushed()
    assert alice.events == [UnseenCount(number) for number in range(4)]


async def test_nothing_published_is_flushed_at_once(rooms: Rooms) -> None:
    """Neither an empty list nor events for nobody leave anything to wait for."""
    backplane = LocalBackplane(rooms)
    await backplane.flushed()
    backplane.publish([])
    backplane.publish([(BOB, UnseenCount(1))])
    await backplane.flushed()


async def test_who_comes_after_the_publishing_is_not_told(rooms: Rooms) -> None:
    """The change was stored before: it is in what the user reads when joining."""
    backplane, bob = LocalBackplane(rooms), Member()
    backplane.publish([(BOB, UnseenCount(1))])
    rooms.join(BOB, bob)
    await backplane.flushed()
    assert bob.events == []


async def test_nobody_is_elsewhere(rooms: Rooms, alice: Member) -> None:
    """One node has no others, and nothing to start, to ask or to end."""
    backplane = LocalBackplane(rooms)
    backplane.start()
    assert await backplane.online_elsewhere([ALICE, BOB]) == set()
    assert await backplane.alive_elsewhere("acme", ["alice"], 3600) == set()
    assert backplane.probes == {}
    await backplane.close()
    assert backplane.queues == {}


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One user in each turn of the loop."""
    monkeypatch.setattr(module, "MAX_SLICE_S", 0.0)


@pytest.mark.usefixtures("short_slices")
async def test_a_long_fan_out_leaves_the_loop_to_others_in_between(rooms: Rooms, alice: Member) -> None:
    """After each slice everybody else gets a turn; a user who was told comes behind the others again."""
    backplane, bob = LocalBackplane(rooms), Member()
    rooms.join(BOB, bob)
    backplane.publish([(ALICE, UnseenCount(0)), (BOB, UnseenCount(1)), (ALICE, UnseenCount(2))])
    await asyncio.sleep(0)
    assert (alice.events, bob.events) == ([UnseenCount(0), UnseenCount(2)], [])
    backplane.publish([(ALICE, UnseenCount(3)), (BOB, UnseenCount(4))])
    await asyncio.sleep(0)
    assert (alice.events, bob.events) == ([UnseenCount(0), UnseenCount(2)], [UnseenCount(1), UnseenCount(4)])
    await backplane.flushed()
    assert alice.events == [UnseenCount(0), UnseenCount(2), UnseenCount(3)]


async def test_who_fails_at_an_event_keeps_it_from_nobody_else(
    rooms: Rooms, alice: Member, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged with tenant and user, and fan-out goes on."""
    backplane, bob = LocalBackplane(rooms), Member()
    rooms.join(BOB, bob)
    alice.failure = RuntimeError("broken")
    with caplog.at_level(logging.ERROR):
        backplane.publish([(ALICE, UnseenCount(1)), (BOB, UnseenCount(2))])
        await backplane.flushed()
    assert bob.events == [UnseenCount(2)]
    [record] = caplog.records
    assert record.getMessage() == "could not deliver events to tenant=acme user=alice"
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("turn_s", "turns"),
    [(0.0, module.TURNS_BETWEEN_SLICES), (module.MAX_SLICE_S / 2, 2), (module.MAX_SLICE_S, 1)],
    ids=["short_turns", "long_turns", "very_long_turns"],
)
async def test_others_get_several_turns_between_slices(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, turn_s: float, turns: int
) -> None:
    """An answer takes several; but fan-out does not wait for as many long ones."""
    monkeypatch.setattr(scan, "VISITS_PER_STEP", 1)
    time_s = 1000.0

    class Slow(Member):
        def push(self, pushes: Sequence[Push], burst: Frame) -> None:
            nonlocal time_s
            time_s += module.MAX_SLICE_S
            super().push(pushes, burst)

    screens: list[Member] = [Slow() for _ in range(5)]
    for screen in screens:
        rooms.join(ALICE, screen)
    backplane = LocalBackplane(rooms, lambda: time_s)
    backplane.publish([(ALICE, UnseenCount(0))])
    told: list[int] = []
    while _told(screens) < 5:
        await asyncio.sleep(0)
        time_s += turn_s
        told.append(_told(screens))
    assert [told.count(number) for number in (1, 2, 3, 4)] == [turns] * 4


@pytest.mark.usefixtures("short_slices")
async def test_publishers_wait_while_the_backlog_is_over_its_bound(
    rooms: Rooms, alice: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And go on when it is within the bound again, not only when it is empty."""
    monkeypatch.setattr(module, "MAX_BACKLOG", 2)
    backplane, bob, carol = LocalBackplane(rooms), Member(), Member()
    rooms.join(BOB, bob)
    rooms.join(CAROL, carol)
    backplane.publish([(ALICE, UnseenCount(0)), (ALICE, UnseenCount(1))])
    await backplane.has_space()
    assert alice.events == []
    backplane.publish([(BOB, UnseenCount(2)), (CAROL, UnseenCount(3)), (CAROL, UnseenCount(4))])
    await backplane.has_space()
    assert [len(member.events) for member in (alice, bob, carol)] == [2, 1, 0]
    await backplane.flushed()
    assert len(carol.events) == 2


@pytest.mark.usefixtures("short_slices")
async def test_a_publisher_can_wait_for_one_user_alone(rooms: Rooms, alice: Member) -> None:
    """Until this user has been told, whoever else still waits; at once if there is nothing to tell."""
    backplane, bob, carol = LocalBackplane(rooms), Member(), Member()
    rooms.join(BOB, bob)
    rooms.join(CAROL, carol)
    backplane.publish((room, UnseenCount(1)) for room in (ALICE, BOB, CAROL))
    await backplane.delivered(BOB)
    assert [len(member.events) for member in (alice, bob, carol)] == [1, 1, 0]
    await backplane.delivered(BOB)
    await backplane.flushed()


# -- a user with many connections ----------------------------------------------------------------------------
@pytest.fixture
def screens(rooms: Rooms, short_slices: None, monkeypatch: pytest.MonkeyPatch) -> list[Member]:
    """Three of alice's, told one a turn of the loop; in no order that is known."""
    monkeypatch.setattr(scan, "VISITS_PER_STEP", 1)
    screens = [Member() for _ in range(3)]
    for screen in screens:
        rooms.join(ALICE, screen)
    return screens


async def test_what_comes_while_a_user_is_told_joins_what_is_under_way(
    rooms: Rooms, screens: list[Member]
) -> None:
    """One push for all of it to those who have not been told of the first yet."""
    backplane = LocalBackplane(rooms)
    backplane.publish([(ALICE, UnseenCount(0))])
    await asyncio.sleep(0)
    [told] = [screen for screen in screens if screen.events]
    for number in (1, 2, 3):
        backplane.publish([(ALICE, UnseenCount(number))])
    await backplane.flushed()
    assert [screen.events for screen in screens] == [[UnseenCount(number) for number in range(4)]] * 3
    assert [len(screen.bursts) for screen in screens] == [2 if screen is told else 1 for screen in screens]


async def test_a_user_who_is_told_without_end_holds_up_nobody(rooms: Rooms, screens: list[Member]) -> None:
    """Others have their turn between some of the connections and the next."""
    backplane, bob = LocalBackplane(rooms), Member()
    rooms.join(BOB, bob)
    for number in range(30):
        backplane.publish([(ALICE, UnseenCount(number))])
        if number % 10 == 0:
            backplane.publish([(BOB, UnseenCount(number))])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(bob.events) == 1 + number // 10
    await backplane.flushed()
    assert [len(screen.events) for screen in screens] == [30, 30, 30]


async def test_a_user_is_not_told_before_the_last_of_their_connections_is(
    rooms: Rooms, screens: list[Member]
) -> None:
    """Who waits for the user, and who published, hear of it when their event has gone round."""
    backplane = LocalBackplane(rooms)
    heard: list[tuple[str, int]] = []
    backplane.publish([(ALICE, UnseenCount(0))], lambda _: heard.append(("first", _told(screens))))
    await asyncio.sleep(0)
    backplane.publish([(ALICE, UnseenCount(1))], lambda _: heard.append(("second", _told(screens))))
    await asyncio.sleep(0)
    assert heard == []
    await backplane.delivered(ALICE)
    await backplane.flushed()
    assert heard == [("first", 5), ("second", 6)]
    backplane.publish([(ALICE, UnseenCount(2))])
    await asyncio.sleep(0)
    assert _told(screens) == 7
    await backplane.delivered(ALICE)
    assert _told(screens) == 9


def _told(screens: list[Member]) -> int:
    return sum(len(screen.events) for screen in screens)


async def test_who_waits_for_a_user_does_not_wait_for_what_is_published_later(
    rooms: Rooms, screens: list[Member]
) -> None:
    """Also if there is no end to that."""
    backplane = LocalBackplane(rooms)
    backplane.publish([(ALICE, UnseenCount(0))])
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(backplane.delivered(ALICE))
    for number in range(1, 50):
        backplane.publish([(ALICE, UnseenCount(number))])
        await asyncio.sleep(0)
    assert waiting.done()
    await backplane.flushed()


async def test_who_leaves_or_joins_under_way_is_not_told_of_it(rooms: Rooms, screens: list[Member]) -> None:
    """Who joins reads the inbox, which has it; of what is published then they are told, too."""
    backplane, late = LocalBackplane(rooms), Member()
    backplane.publish([(ALICE, UnseenCount(0))])
    await asyncio.sleep(0)
    gone = next(screen for screen in screens if not screen.events)
    rooms.leave(ALICE, gone)
    rooms.join(ALICE, late)
    backplane.publish([(ALICE, UnseenCount(1))])
    await backplane.flushed()
    assert gone.events == []
    assert late.events == [UnseenCount(1)]
    assert _told(screens) == 4


async def test_nobody_waits_for_ever_for_a_user_whose_connections_fail(
    rooms: Rooms, screens: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    """They are closed; who is still there is told what comes next."""
    backplane = LocalBackplane(rooms)
    for screen in screens:
        screen.failure = RuntimeError("broken")
    with caplog.at_level(logging.ERROR):
        backplane.publish([(ALICE, UnseenCount(0))])
        await backplane.delivered(ALICE)
    assert len(caplog.records) == 3
    await asyncio.sleep(0)
    assert [screen.connection.reasons for screen in screens] == [[FAILED]] * 3
    for screen in screens:
        screen.failure = None
    backplane.publish([(ALICE, UnseenCount(1))])
    await backplane.flushed()
    assert _told(screens) == 3


# -- telling of the end of a fan-out -------------------------------------------------------------------------
async def test_the_publisher_hears_when_all_have_been_told_and_how_many_frames_that_were(
    rooms: Rooms, alice: Member
) -> None:
    """Once, after the last of them: a frame for each connection of each user who is here."""
    backplane, again, bob = LocalBackplane(rooms), Member(), Member()
    rooms.join(ALICE, again)
    rooms.join(BOB, bob)
    heard: list[tuple[int, int]] = []
    backplane.publish(
        ((room, UnseenCount(1)) for room in (ALICE, BOB, CAROL)),
        lambda frames: heard.append((frames, len(bob.events))),
    )
    assert heard == []
    await backplane.flushed()
    assert heard == [(3, 1)]


async def test_who_publishes_to_nobody_hears_nothing(rooms: Rooms, alice: Member) -> None:
    """There is nothing to wait for, also later."""
    backplane = LocalBackplane(rooms)
    heard: list[int] = []
    backplane.publish([(BOB, UnseenCount(1))], heard.append)
    backplane.publish([(ALICE, UnseenCount(1))])
    await backplane.flushed()
    assert heard == []


@pytest.mark.usefixtures("short_slices")
async def test_each_publisher_hears_of_its_own_end(rooms: Rooms, alice: Member) -> None:
    """In slices: the first does not wait for the second, and what was added to a room's turn does not count twice."""
    backplane, bob, carol = LocalBackplane(rooms), Member(), Member()
    rooms.join(BOB, bob)
    rooms.join(CAROL, carol)
    heard: list[str] = []
    backplane.publish(
        [(ALICE, UnseenCount(1)), (BOB, UnseenCount(1))], lambda frames: heard.append(f"first {frames}")
    )
    await asyncio.sleep(0)
    assert (len(alice.events), len(bob.events), heard) == (1, 0, [])
    backplane.publish(
        [(BOB, UnseenCount(2)), (CAROL, UnseenCount(2))], lambda frames: heard.append(f"second {frames}")
    )
    await asyncio.sleep(0)
    assert (len(bob.events), len(carol.events), heard) == (2, 0, ["first 2"])
    await backplane.flushed()
    assert (len(carol.events), heard) == (1, ["first 2", "second 2"])


async def test_what_waits_is_counted(rooms: Rooms, alice: Member) -> None:
    """Events for who is here, until they have been delivered."""
    backplane = LocalBackplane(rooms)
    backplane.publish([(ALICE, UnseenCount(1)), (ALICE, UnseenCount(2)), (BOB, UnseenCount(1))])
    assert backplane.waiting == 2
    await backplane.flushed()
    assert backplane.waiting == 0
