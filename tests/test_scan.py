"""Tests of server/scan.py."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server import scan as module
from server.messages import (
    Added,
    AllSeen,
    Document,
    Event,
    Notification,
    Seen,
    Unseen,
    UnseenCount,
    altered,
    now,
)
from server.rooms import Push, Room, Rooms
from server.scan import Publication, Scan
from server.wire import FAILED, Frame, count_frame
from server.wire_v2 import InboxFrames
from tests.support.recording import Member, messages_of

ALICE: Room = ("acme", "alice")
BOB: Room = ("acme", "bob")


def _added(id_: str = "d1", rev: int = 10) -> Added:
    at = now()
    return Added(Document(id_, "alice", Notification("n", "acme", at, "content"), at, at, rev))


class Stage:
    """A room with some members, and the scan that tells them."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.rooms = Rooms()
        for member in members:
            self.rooms.join(ALICE, member)
        self.scan = Scan(ALICE, self.rooms.members(ALICE))
        self.rooms.followers = {ALICE: self.scan}

    def enter(self, *events: Event) -> Publication:
        publication = Publication(None)
        for event in events:
            self.scan.enter(event, publication)
        return publication

    def finish(self) -> None:
        while not self.scan.is_over:
            self.scan.step()

    def tell(self, *events: Event) -> None:
        self.enter(*events)
        self.finish()


# -- what a visit tells --------------------------------------------------------------------------------------
def test_all_connections_are_told_with_one_frame() -> None:
    """Made once."""
    first, second = Member(), Member()
    event = _added()
    Stage([first, second]).tell(event)
    assert first.events == second.events == [event]
    assert first.bursts[0] is second.bursts[0] is first.told[0][1]
    assert first.messages[0].ids == ["d1"]


def test_several_events_are_one_burst_in_their_order() -> None:
    """One write for all that the user is told at once, to each connection."""
    first, second = Member(), Member()
    events = [_added("d1"), Seen(("d1",), 20), UnseenCount(0), _added("d2", rev=30)]
    Stage([first, second]).tell(*events)
    assert first.events == second.events == events
    assert first.bursts == second.bursts
    assert [message.name for message in first.messages] == ["notification", "seen", "count", "notification"]
    assert len(first.bursts) == 1


def test_a_burst_is_no_larger_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit begins the next one; one push that is larger goes alone, as itself."""
    size = len(count_frame(1).text)
    monkeypatch.setattr(module, "MAX_BURST_CHARS", 2 * size)
    alice = Member()
    large = _added("large")
    Stage([alice]).tell(*map(UnseenCount, range(5)), large, UnseenCount(5))
    assert [[message.name for message in messages_of(burst)] for burst in alice.bursts] == [
        ["count", "count"],
        ["count", "count"],
        ["count"],
        ["notification"],
        ["count"],
    ]
    assert alice.bursts[3] is alice.told[5][1]


def test_each_is_told_in_the_dialect_they_speak() -> None:
    """Who speaks both is two connections; of what a dialect does not tell nothing is pushed."""
    classic, new = Member(), Member(dialect=InboxFrames())
    stage = Stage([classic, new])
    stage.tell(Unseen(("d1",), 20), AllSeen(30), UnseenCount(1))
    assert [message.name for message in classic.messages] == ["count"]
    assert [message.name for message in new.messages] == ["unseen", "seen"]
    stage.tell(AllSeen(40))
    assert len(classic.bursts) == 1


def test_the_same_notification_for_many_users_keeps_their_ids_apart() -> None:
    """Frames are spliced, never mixed up."""
    alice, bob = Member(), Member()
    document = _added().document
    Stage([alice]).tell(Added(document))
    Stage([bob]).tell(Added(altered(document, id="d2", user_id="bob")))
    told = [member.messages[0].data[0] for member in (alice, bob)]
    assert [(fields["_id"], fields["_userId"]) for fields in told] == [("d1", "alice"), ("d2", "bob")]


# -- the circle ----------------------------------------------------------------------------------------------
@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections a step."""
    monkeypatch.setattr(module, "VISITS_PER_STEP", 2)


@pytest.mark.usefixtures("small_steps")
def test_what_enters_under_way_joins_there_and_is_complete_when_the_scan_is_there_again() -> None:
    """One lap each, and one push to those who are yet to be told of both."""
    members = [Member() for _ in range(6)]
    stage = Stage(members)
    first = stage.enter(UnseenCount(1))
    assert stage.scan.step() == []
    second = stage.enter(UnseenCount(2))
    assert [stage.scan.step() for _ in range(2)] == [[], [first]]
    assert sorted(member.counts for member in members) == [[1], [1], [1, 2], [1, 2], [1, 2], [1, 2]]
    assert stage.scan.step() == [second]
    assert [member.counts for member in members] == [[1, 2]] * 6
    assert sorted(len(member.bursts) for member in members) == [1, 1, 1, 1, 2, 2]
    assert stage.scan.is_over


@pytest.mark.usefixtures("small_steps")
def test_a_step_ends_where_what_is_to_be_told_changes() -> None:
    """Nobody is told in the midst of a step what is complete there."""
    members = [Member() for _ in range(3)]
    stage = Stage(members)
    stage.enter(UnseenCount(1))
    stage.scan.step()
    stage.enter(UnseenCount(2))
    stage.finish()
    assert [member.counts for member in members] == [[1, 2]] * 3


@pytest.mark.usefixtures("small_steps")
def test_who_joins_is_told_what_is_published_from_then_on() -> None:
    """The inbox has what was published before."""
    members, late = [Member() for _ in range(5)], Member()
    stage = Stage(members)
    stage.enter(UnseenCount(1))
    stage.scan.step()
    stage.rooms.join(ALICE, late)
    stage.enter(UnseenCount(2))
    stage.finish()
    assert [member.counts for member in members] == [[1, 2]] * 5
    assert late.counts == [2]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("is_last", [False, True], ids=["others_stay", "nobody_stays"])
def test_who_becomes_somebody_else_is_told_nothing_more(is_last: bool) -> None:
    """A connection that joins as another user is not shown what is the first one's."""
    members = [Member() for _ in range(5)]
    stage = Stage(members)
    stage.enter(UnseenCount(1))
    stage.scan.step()
    untold = [member for member in members if not member.events]
    changing, staying = (members, []) if is_last else (untold[:1], untold[1:])
    for member in changing:
        stage.rooms.leave(ALICE, member)
        stage.rooms.join(BOB, member)
    stage.finish()
    assert [member.counts for member in untold if member in changing] == [[]] * len(
        set(changing) & set(untold)
    )
    assert [member.counts for member in staying] == [[1]] * len(staying)


@pytest.mark.usefixtures("small_steps")
def test_who_leaves_and_comes_back_is_told_what_is_published_from_then_on() -> None:
    """Once, however often they do that."""
    members = [Member() for _ in range(5)]
    stage = Stage(members)
    stage.enter(UnseenCount(1))
    stage.scan.step()
    for member in members:
        for _ in range(3):
            stage.rooms.leave(ALICE, member)
            stage.rooms.join(ALICE, member)
    stage.enter(UnseenCount(2))
    stage.finish()
    assert sorted(member.counts for member in members) == [[1, 2]] * 2 + [[2]] * 3
    stage.tell(UnseenCount(3))
    assert [member.counts[-2:] for member in members] == [[2, 3]] * 5


def test_a_push_may_end_its_connection_and_no_other() -> None:
    """Who leaves during the fan-out disturbs nobody else's push."""

    class Dying(Member):
        def push(self, pushes: Sequence[Push], burst: Frame) -> None:
            super().push(pushes, burst)
            stage.rooms.leave(ALICE, self)

    dying, alive = [Dying() for _ in range(3)], Member()
    stage = Stage([*dying, alive])
    stage.tell(UnseenCount(1))
    stage.tell(UnseenCount(2))
    assert [member.counts for member in dying] == [[1]] * 3
    assert alive.counts == [1, 2]


async def test_who_fails_at_being_told_is_closed_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It comes back and reads what it missed."""
    failing, others = Member(failure=RuntimeError("broken")), [Member() for _ in range(3)]
    stage = Stage([others[0], failing, *others[1:]])
    with caplog.at_level(logging.ERROR):
        stage.tell(UnseenCount(1))
    assert [member.counts for member in others] == [[1]] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "could not deliver events to tenant=acme user=alice"
    ]
    await asyncio.sleep(0)
    assert failing.connection.reasons == [FAILED]


# -- any interleaving ----------------------------------------------------------------------------------------
@dataclass(eq=False)
class NumberedMember(Member):
    """One whose place in a set is the same each time, so that a run can be done again."""

    number: int = 0

    def __hash__(self) -> int:
        return self.number


class Interleaving(RuleBasedStateMachine):
    """Publishing, joining, leaving and steps in any order. Each connection has a list of what it is to be told."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms = Rooms()
        self.scans: dict[Room, Scan] = {}
        self.rooms.followers = self.scans
        self.numbers = itertools.count(1)
        self.members = itertools.count(1)
        self.inside: dict[Member, list[int]] = {}
        self.outside: list[tuple[Member, int]] = []
        """Who has left, and how much they had been told then."""
        self.visited: dict[Publication, list[Member]] = {}
        """Since it was published; of those of which not all have been told."""
        self.number_of: dict[Publication, int] = {}

    @rule(count=st.integers(1, 3))
    def join(self, count: int) -> None:
        for _ in range(count):
            self._join(NumberedMember(number=next(self.members)))

    def _join(self, member: Member) -> None:
        self.rooms.join(ALICE, member)
        self.inside[member] = member.counts

    def _leave(self, index: int) -> Member:
        member = list(self.inside)[index % len(self.inside)]
        self.rooms.leave(ALICE, member)
        self.outside.append((member, len(member.counts)))
        del self.inside[member]
        return member

    @precondition(lambda self: self.inside)
    @rule(index=st.integers(0, 20))
    def leave(self, index: int) -> None:
        self._leave(index)

    @precondition(lambda self: self.inside)
    @rule(index=st.integers(0, 20))
    def leave_and_come_back(self, index: int) -> None:
        member = self._leave(index)
        self.outside.pop()
        self._join(member)

    @precondition(lambda self: self.inside)
    @rule()
    def publish(self) -> None:
        if ALICE not in self.scans:
            self.scans[ALICE] = Scan(ALICE, self.rooms.members(ALICE))
        publication, number = Publication(None), next(self.numbers)
        self.scans[ALICE].enter(UnseenCount(number), publication)
        self.visited[publication], self.number_of[publication] = [], number
        for due in self.inside.values():
            due.append(number)

    @precondition(lambda self: self.scans)
    @rule()
    def step(self) -> None:
        before = {member: len(member.bursts) for member in self.inside}
        done = self.scans[ALICE].step()
        told = [member for member, bursts in before.items() if len(member.bursts) > bursts]
        assert all(len(member.bursts) == before[member] + 1 for member in told)
        for publication, visited in self.visited.items():
            visited += told
            # One lap: nobody is visited twice before all have been told.
            assert len(set(visited)) == len(visited), self.number_of[publication]
        for publication in done:
            del self.visited[publication]
            number = self.number_of.pop(publication)
            assert all(number in member.counts for member, due in self.inside.items() if number in due)
        if self.scans[ALICE].is_over:
            assert not self.visited
            del self.scans[ALICE]

    @invariant()
    def each_is_told_all_in_order_and_nothing_twice(self) -> None:
        for member, due in self.inside.items():
            assert member.counts == due[: len(member.counts)]
        for member, told in self.outside:
            assert len(member.counts) == told

    def teardown(self) -> None:
        while self.scans:
            self.step()
        for member, due in self.inside.items():
            assert member.counts == due


@pytest.mark.usefixtures("small_steps")
def test_however_they_interleave_all_are_told_once_in_order_and_within_a_lap() -> None:
    """All that is published after one's join, and nothing after one's leave."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Interleaving, settings=settings(max_examples=200, stateful_step_count=60, deadline=None)
    )
