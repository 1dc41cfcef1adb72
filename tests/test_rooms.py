"""Tests of server/rooms.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from server import rooms as module
from server.dialects import HubDialect
from server.messages import (
    Added,
    AllSeen,
    Counted,
    Deleted,
    Document,
    Event,
    Notification,
    Restored,
    Seen,
    Unseen,
    UnseenCount,
    altered,
    now,
)
from server.revs import instant_of
from server.rooms import REORDER_WINDOW_S, Listener, Room, Rooms
from server.scan import Publication, Scan
from server.wire import GOING_AWAY, SLOW, CloseReason
from server.wire_v2 import InboxFrames
from tests.support.recording import Member

ALICE: Room = ("acme", "alice")
BOB: Room = ("acme", "bob")
ALICE_OF_ANOTHER_TENANT: Room = ("globex", "alice")


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def deliver(rooms: Rooms, room: Room, events: Iterable[Event]) -> None:
    """To all of the room, without a pause."""
    current = [event for each in events if (event := rooms.brought_up_to_date(each)) is not None]
    if not rooms.members(room):
        return
    scan = Scan(room, rooms.members(room))
    for event in current:
        scan.enter(event, Publication(None))
    while not scan.is_over:
        scan.step()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rooms(clock: Clock) -> Rooms:
    return Rooms(clock)


def _joined(rooms: Rooms, *names: Room) -> list[Member]:
    members = [Member() for _ in names]
    for name, member in zip(names, members, strict=True):
        rooms.join(name, member)
    return members


def _added(id_: str = "d1", rev: int = 10) -> Added:
    at = now()
    return Added(Document(id_, "alice", Notification("n", "acme", at, "content"), at, at, rev))


# -- membership ----------------------------------------------------------------------------------------------
def test_a_room_exists_while_somebody_is_in_it(rooms: Rooms) -> None:
    """Online from the first join to the last leave, however many connections there are between."""
    first, second = _joined(rooms, ALICE, ALICE)
    assert rooms.user_count == 1
    rooms.leave(ALICE, first)
    assert rooms.is_online(ALICE)
    rooms.leave(ALICE, second)
    assert not rooms.is_online(ALICE)
    assert rooms.user_count == 0


def test_whoever_watches_is_told_once_that_a_room_begins_and_once_that_it_ends(rooms: Rooms) -> None:
    """However many connections come and go between: a way to other nodes takes each call for a change."""
    changed: list[Room] = []
    rooms.watch = changed.append
    first, second = _joined(rooms, ALICE, ALICE)
    rooms.join(ALICE, first)
    rooms.leave(ALICE, first)
    assert changed == [ALICE]
    rooms.leave(ALICE, second)
    rooms.leave(ALICE, second)
    assert changed == [ALICE, ALICE]


def test_it_is_known_who_came_after_a_moment(rooms: Rooms, clock: Clock) -> None:
    """By the first connection that the user has had since; who has been here for long came before, and who has gone is
    not here."""
    _joined(rooms, ALICE)
    moment = clock.now_s
    clock.now_s += 1
    _joined(rooms, ALICE)
    [bob] = _joined(rooms, BOB)
    assert [rooms.began_after(room, moment) for room in (ALICE, BOB)] == [False, True]
    rooms.leave(BOB, bob)
    assert not rooms.began_after(BOB, moment)
    clock.now_s += REORDER_WINDOW_S + 1
    _joined(rooms, BOB)
    assert [rooms.began_after(room, clock.now_s - 1) for room in (ALICE, BOB)] == [False, True]


def test_a_user_of_another_tenant_is_somebody_else(rooms: Rooms) -> None:
    """Rooms are named by tenant and user."""
    _joined(rooms, ALICE)
    assert not rooms.is_online(ALICE_OF_ANOTHER_TENANT)
    assert rooms.online([BOB, ALICE, ALICE_OF_ANOTHER_TENANT, ALICE]) == [ALICE, ALICE]


def test_leaving_where_one_is_not_changes_nothing(rooms: Rooms) -> None:
    """Twice, another's room, or one that never was; and no sign of life is taken from it."""
    [alice] = _joined(rooms, ALICE)
    stranger = Member()
    rooms.leave(ALICE, stranger)
    rooms.leave(BOB, stranger)
    assert rooms.is_online(ALICE)
    assert rooms.last_alive_at(BOB) is None
    rooms.leave(ALICE, alice)
    rooms.leave(ALICE, alice)
    assert rooms.user_count == 0


def test_joining_twice_is_being_there_once(rooms: Rooms) -> None:
    """A push comes once."""
    [alice] = _joined(rooms, ALICE)
    rooms.join(ALICE, alice)
    deliver(rooms, ALICE, [UnseenCount(1)])
    assert alice.events == [UnseenCount(1)]


def test_users_and_connections_are_counted_by_tenant(rooms: Rooms) -> None:
    """A user with two connections is one; joining or leaving twice counts once."""
    assert (len(rooms.members(ALICE)), rooms.users_by_tenant) == (0, {})
    alice, again, _, other = _joined(rooms, ALICE, ALICE, BOB, ALICE_OF_ANOTHER_TENANT)
    rooms.join(ALICE, alice)
    assert (len(rooms.members(ALICE)), len(rooms.members(BOB))) == (2, 1)
    assert rooms.users_by_tenant == {"acme": 2, "globex": 1}
    assert rooms.joined_by_tenant == {"acme": 3, "globex": 1}
    rooms.leave(ALICE, alice)
    rooms.leave(ALICE, alice)
    assert (rooms.users_by_tenant["acme"], rooms.joined_by_tenant["acme"]) == (2, 2)
    rooms.leave(ALICE, again)
    rooms.leave(ALICE_OF_ANOTHER_TENANT, other)
    assert rooms.users_by_tenant == {"acme": 1, "globex": 0}
    assert rooms.joined_by_tenant == {"acme": 1, "globex": 0}


# -- signs of life -------------------------------------------------------------------------------------------
def test_the_last_sign_of_life_is_that_of_any_connection(rooms: Rooms) -> None:
    """Of those that are there and of those that were; unknown if there was none."""
    assert rooms.last_alive_at(ALICE) is None
    first, second = _joined(rooms, ALICE, ALICE)
    first.connection.last_alive_at, second.connection.last_alive_at = 50.0, 70.0
    assert rooms.last_alive_at(ALICE) == 70.0
    rooms.leave(ALICE, second)
    assert rooms.last_alive_at(ALICE) == 70.0
    rooms.leave(ALICE, first)
    assert rooms.last_alive_at(ALICE) == 70.0


def test_old_signs_of_life_are_forgotten(rooms: Rooms) -> None:
    """Of users who are gone; those who are there still count."""
    alice, bob, other = _joined(rooms, ALICE, BOB, ALICE_OF_ANOTHER_TENANT)
    alice.connection.last_alive_at, bob.connection.last_alive_at = 10.0, 20.0
    other.connection.last_alive_at = 5.0
    rooms.leave(ALICE, alice)
    rooms.leave(BOB, bob)
    rooms.forget_signs_of_life(before=20.0)
    assert rooms.last_alive_at(ALICE) is None
    assert rooms.last_alive_at(BOB) == 20.0
    assert rooms.last_alive_at(ALICE_OF_ANOTHER_TENANT) == 5.0
    rooms.forget_signs_of_life(before=100.0)
    assert rooms.last_alive_at(BOB) is None
    rooms.forget_signs_of_life(before=200.0)


def test_who_follows_a_room_hears_who_joins_and_leaves_it(rooms: Rooms) -> None:
    """Once each, and of nobody else's room."""
    heard: list[tuple[str, Listener]] = []

    class Follower:
        def joined(self, listener: Listener) -> None:
            heard.append(("joined", listener))

        def left(self, listener: Listener) -> None:
            heard.append(("left", listener))

    rooms.followers = {ALICE: Follower()}
    [alice, _] = _joined(rooms, ALICE, BOB)
    rooms.join(ALICE, alice)
    rooms.leave(ALICE, alice)
    rooms.leave(ALICE, alice)
    assert heard == [("joined", alice), ("left", alice)]


# -- what has become of documents ----------------------------------------------------------------------------
def test_an_arrival_overtaken_by_its_deletion_is_dropped(rooms: Rooms) -> None:
    """No screen goes back in time; other documents, and what is newer, go out."""
    [alice] = _joined(rooms, ALICE)
    change, newer, another = Deleted(("d0", "d1"), 20), _added("d1", rev=21), _added("d2", rev=1)
    deliver(rooms, ALICE, [change])
    deliver(rooms, ALICE, [_added("d1", rev=19), newer, another])
    assert alice.events == [change, newer, another]


def test_an_arrival_overtaken_by_its_being_seen_arrives_as_seen(rooms: Rooms) -> None:
    """Marking all as seen may hit what is being stored just then: no screen misses it, and none shows it as new."""
    [alice] = _joined(rooms, ALICE)
    change, late, newer = Seen(("d0", "d1"), 20), _added("d1", rev=19), _added("d1", rev=20)
    deliver(rooms, ALICE, [change])
    deliver(rooms, ALICE, [late, newer])
    seen = altered(late.document, seen=True, rev=20, updated_at=instant_of(20))
    assert alice.events == [change, Added(seen), newer]
    assert alice.messages[1].data[0]["seen"] is True


@pytest.mark.parametrize("is_in_order", [True, False])
def test_of_several_changes_the_latest_counts(rooms: Rooms, is_in_order: bool) -> None:
    """By its rev, not by when it was heard of."""
    [alice] = _joined(rooms, ALICE)
    changes: list[Event] = [Seen(("d1",), 20), Deleted(("d1",), 30)]
    deliver(rooms, ALICE, changes if is_in_order else changes[::-1])
    deliver(rooms, ALICE, [_added("d1", rev=10)])
    assert [type(event) for event in alice.events] == ([Seen, Deleted] if is_in_order else [Deleted, Seen])


@pytest.mark.parametrize(
    ("late", "told"),
    [
        (Deleted(("d1", "d2"), 20), Deleted(("d2",), 20)),
        (Unseen(("d1", "d2"), 20), Unseen(("d2",), 20)),
        (Seen(("d1", "d2"), 20), Seen(("d1", "d2"), 20, changed=("d2",))),
        (Deleted(("d1",), 20), None),
        (Unseen(("d1",), 20), None),
    ],
    ids=["deleted", "unseen", "seen", "deleted alone", "unseen alone"],
)
def test_a_change_overtaken_by_a_later_one_is_told_of_the_others_only(
    rooms: Rooms, late: Event, told: Event | None
) -> None:
    """Whoever speaks of no revs would take what comes last for what is."""
    [alice] = _joined(rooms, ALICE)
    alice.dialect = InboxFrames()
    later = Restored(_added("d1", rev=30).document)
    deliver(rooms, ALICE, [later])
    deliver(rooms, ALICE, [late])
    assert alice.events == [later] + ([] if told is None else [told])


def test_what_was_marked_unseen_and_then_all_seen_stays_seen(rooms: Rooms) -> None:
    """Also for a screen that is told late of the first, after the second as a whole."""
    [alice] = _joined(rooms, ALICE)
    alice.dialect = InboxFrames()
    deliver(rooms, ALICE, [Seen(("d1",), 30, is_part=True), AllSeen(25)])
    deliver(rooms, ALICE, [Unseen(("d1",), 20)])
    assert alice.events == [AllSeen(25)]


def test_a_change_overtakes_also_where_nobody_was_to_hear_of_it(rooms: Rooms) -> None:
    """The user joins between the change and the late push."""
    deliver(rooms, ALICE, [Deleted(("d1",), 20)])
    [alice] = _joined(rooms, ALICE)
    deliver(rooms, ALICE, [_added("d1", rev=19)])
    assert alice.events == []


def test_changes_are_remembered_only_while_a_push_may_be_late(rooms: Rooms, clock: Clock) -> None:
    """Memory does not grow with the changes ever made; one that is repeated counts from its last time."""
    [alice] = _joined(rooms, ALICE)
    deliver(rooms, ALICE, [Deleted(("d1", "d2"), 20)])
    clock.now_s += REORDER_WINDOW_S
    deliver(rooms, ALICE, [Deleted(("d2",), 30)])
    clock.now_s += 1
    deliver(rooms, ALICE, [Deleted(("d3",), 40)])
    alice.told.clear()
    for id_ in ("d1", "d2", "d3"):
        deliver(rooms, ALICE, [_added(id_, rev=15)])
    assert [event.document.id for event in alice.events if isinstance(event, Added)] == ["d1"]


def test_a_count_is_never_too_late(rooms: Rooms) -> None:
    """It has no rev: the last one told is the one that counts."""
    [alice] = _joined(rooms, ALICE)
    deliver(rooms, ALICE, [UnseenCount(2), UnseenCount(1)])
    assert alice.events == [UnseenCount(2), UnseenCount(1)]


def test_what_is_overtaken_within_one_delivery_is_dropped_too(rooms: Rooms) -> None:
    """A change counts from where it stands in the order; if nothing is left, nothing is pushed."""
    [alice] = _joined(rooms, ALICE)
    deliver(rooms, ALICE, [_added("d1", rev=10), Deleted(("d1",), 20), _added("d1", rev=10)])
    assert [message.name for message in alice.messages] == ["notification", "delete"]
    deliver(rooms, ALICE, [_added("d1", rev=10)])
    assert len(alice.bursts) == 1


async def test_connections_are_closed_for_a_reason(rooms: Rooms) -> None:
    """Those for which there is one; also where each of them leaves its room at that."""
    members = _joined(rooms, ALICE, ALICE, BOB)
    for name, member in zip((ALICE, ALICE, BOB), members, strict=True):

        class Leaving:
            def closed(self, name: Room = name, member: Member = member) -> None:
                rooms.leave(name, member)

        member.connection.session = Leaving()  # type: ignore[assignment]
    assert await rooms.close_where(lambda room, _: GOING_AWAY if room == ALICE else None) == 2
    assert [member.connection.reasons for member in members] == [[GOING_AWAY], [GOING_AWAY], []]
    assert await rooms.close_where(lambda _, member: SLOW) == 1
    assert [member.connection.reasons for member in members] == [[GOING_AWAY], [GOING_AWAY], [SLOW]]
    assert rooms.user_count == 0


def test_nobody_is_asked_about_but_the_members_of_the_rooms(rooms: Rooms) -> None:
    """However many others there are; a room without anybody is none."""
    members = _joined(rooms, ALICE, BOB, BOB, ALICE_OF_ANOTHER_TENANT)
    asked: list[tuple[Room, object]] = []

    def why(room: Room, member: object) -> CloseReason | None:
        asked.append((room, member))
        return None if member is members[1] else SLOW

    assert rooms.close_in([BOB, ("acme", "nobody")], why) == 1
    assert [member.connection.reasons for member in members] == [[], [], [SLOW], []]
    assert {room for room, _ in asked} == {BOB}
    assert len(asked) == 2


async def test_closing_very_many_leaves_the_loop_to_others(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between others come and go; nobody who stays is left out."""
    monkeypatch.setattr(module, "SLICE_S", 0.0)
    names = [("acme", str(number)) for number in range(50)]
    members = _joined(rooms, *names)
    closing = asyncio.create_task(rooms.close_where(lambda *_: SLOW))
    while not members[10].connection.reasons:  # noqa: ASYNC110  # the point is that it gets a turn
        await asyncio.sleep(0)
    assert not members[40].connection.reasons
    rooms.leave(names[40], members[40])
    rooms.join(BOB, Member())
    assert await closing == 49
    assert [bool(member.connection.reasons) for member in members] == [True] * 40 + [False] + [True] * 9


# -- dialect 2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "seen"),
    [(Unseen(("d1",), 20), False), (Restored(altered(_added("d1", rev=20).document, seen=True)), True)],
    ids=["unseen", "restored"],
)
def test_an_arrival_overtaken_by_another_change_arrives_as_what_it_is(
    rooms: Rooms, change: Event, seen: bool
) -> None:
    """With the rev of that change, so that no client takes it for news twice."""
    [alice] = _joined(rooms, ALICE)
    deliver(rooms, ALICE, [Deleted(("d1",), 18), change, _added("d1", rev=10)])
    last = alice.events[-1]
    assert isinstance(last, Added)
    assert (last.document.seen, last.rev) == (seen, 20)


def test_what_was_restored_and_deleted_again_is_gone(rooms: Rooms) -> None:
    """Whichever of the two is heard of first."""
    [alice] = _joined(rooms, ALICE)
    deliver(rooms, ALICE, [Deleted(("d1",), 30), Restored(_added("d1", rev=20).document)])
    assert [type(event) for event, _ in alice.told] == [Deleted]


def test_only_what_really_changed_is_remembered(rooms: Rooms) -> None:
    """What had been seen before keeps its rev, and later changes of it may have a lower one than this."""
    [alice] = _joined(rooms, ALICE)
    change, late = Seen(("d1", "d2"), 20, changed=("d2",)), _added("d1", rev=10)
    deliver(rooms, ALICE, [change, late])
    assert alice.events == [change, late]


def test_what_changed_nothing_is_told_as_it_is(rooms: Rooms) -> None:
    """An answer, also where nothing was heard of before."""
    event = Seen(("a",), 5, changed=())
    assert rooms.brought_up_to_date(event) is event


def test_it_is_known_as_what_counts_are_told_in_a_room(rooms: Rooms) -> None:
    """By who is in it."""
    _joined(rooms, ALICE, BOB)
    new = Member(dialect=InboxFrames())
    rooms.join(BOB, new)
    rooms.join(ALICE_OF_ANOTHER_TENANT, Member(dialect=HubDialect()))
    told = [rooms.counts_as(room) for room in (ALICE, BOB, ALICE_OF_ANOTHER_TENANT)]
    assert told == [{UnseenCount}, {UnseenCount, Counted}, {None}]
    rooms.leave(BOB, new)
    assert rooms.counts_as(BOB) == {UnseenCount}


def test_at_the_end_those_who_can_be_told_are_told_when_to_come_back(rooms: Rooms) -> None:
    """Spread over as long as it takes to let them in one after the other."""
    [classic] = _joined(rooms, ALICE)
    new = [Member(dialect=InboxFrames()) for _ in range(3000)]
    for number, member in enumerate(new):
        rooms.join(("acme", f"user {number}"), member)
    rooms.say_bye()
    delays = [member.connection.received()[0].data["retry_ms"] for member in new]
    assert classic.connection.received() == []
    assert min(delays) >= module.RESTART_MS
    spread_ms = 1000 * (1 + len(new)) / module.RETURNING_PER_S
    assert 0.7 * spread_ms < max(delays) - min(delays) <= spread_ms + 1
