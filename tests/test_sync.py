"""Tests of server/sync.py, and of what server/inbox.py does for dialect 2, where a rev may become visible late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from server import inbox as inbox_module
from server.errors import StoreUnavailable
from server.messages import AllSeen, Deleted, Event, Missed, Restored, Seen, Unseen
from server.revs import span_of
from server.rooms import Push
from server.screen import Screen
from server.since import Since, parse_since
from server.store import Change
from server.sync import Chunk
from server.wire import Frame
from tests.support.core import ALICE, Core, open_core
from tests.support.recording import RecordingConnection

OVERLAP_S = 30.0


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


@pytest.fixture
def late(core: Core) -> Core:
    """A core on a store where a rev may become visible late."""
    core.store.changes_overlap_s = OVERLAP_S
    return core


class Hearer(Screen):
    """A member of a room that keeps what it is told."""

    def __init__(self, core: Core) -> None:
        super().__init__(RecordingConnection(), core.services.dialect_v2, 10_000, owner=self)
        self.events: list[Event] = []

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        self.events += [event for event, _ in pushes]

    def missed(self, since: datetime) -> None:
        """One node misses nothing."""


@pytest.fixture
def heard(core: Core) -> list[Event]:
    """What alice is told in dialect 2."""
    hearer = Hearer(core)
    core.rooms.join(ALICE, hearer)
    return hearer.events


async def _all(core: Core, since: str, limit: int, *, goes_on: bool = False) -> list[Chunk]:
    """The chunks of one sync. `goes_on`: those that are left of it."""
    chunks: list[Chunk] = []
    while not chunks or chunks[-1].more:
        chunks.append(await core.services.sync.read(ALICE, since, limit, goes_on=goes_on))
        since, goes_on = chunks[-1].upto, True
    return chunks


async def test_where_nothing_comes_late_a_sync_begins_exactly_behind_its_since(core: Core) -> None:
    """Nothing comes twice."""
    await core.fill("alice", 3)
    since = str(await core.services.sync.now())
    [new] = await core.fill("alice", 1)
    [chunk] = await _all(core, since, 10)
    assert list(chunk.documents) == [new]
    assert await core.services.sync.is_unchanged(ALICE, chunk.upto)
    assert not await core.services.sync.is_unchanged(ALICE, since)


async def test_where_a_rev_may_come_late_a_sync_begins_that_much_earlier(late: Core) -> None:
    """Its first chunk alone: the others go on exactly where the one before ended, and so there is an end."""
    documents = await late.fill("alice", 7)
    since = str(await late.services.sync.now())
    chunks = await _all(late, since, 3)
    assert [len(chunk.documents) for chunk in chunks] == [3, 3, 1]
    read = [document.id for chunk in chunks for document in chunk.documents]
    assert sorted(read) == sorted(document.id for document in documents)
    known, upto = parse_since(since), parse_since(chunks[-1].upto)
    assert known is not None and upto is not None and upto.rev >= known.rev


async def test_a_sync_ends_where_the_clock_was_when_it_began(core: Core) -> None:
    """Whatever is changed while it goes on: that is told by pushes, and by the next one."""
    since = str(await core.services.sync.now())
    await core.fill("alice", 4)
    first = await core.services.sync.read(ALICE, since, 3)
    later = await core.fill("alice", 9)
    rest = await _all(core, first.upto, 3, goes_on=True)
    assert len(rest) == 1
    again = await _all(core, rest[-1].upto, 100)
    told = {document.id for chunk in [*rest, *again] for document in chunk.documents}
    assert {document.id for document in later} <= told


async def test_who_was_cut_off_in_the_middle_of_a_sync_is_led_up_to_now(core: Core) -> None:
    """No push has told them of what was changed meanwhile."""
    since = str(await core.services.sync.now())
    await core.fill("alice", 4)
    first = await core.services.sync.read(ALICE, since, 3)
    later = await core.fill("alice", 9)
    chunks = await _all(core, first.upto, 3)
    told = {document.id for chunk in chunks for document in chunk.documents}
    assert {document.id for document in later} <= told


@pytest.mark.parametrize("is_long_ago", [False, True])
async def test_who_was_cut_off_in_the_middle_of_a_sync_hears_of_what_came_late(
    late: Core, is_long_ago: bool
) -> None:
    """It may have become visible in between, before the place where they were; and nothing behind that is left out."""
    documents = await late.fill("alice", 5)

    async def position() -> int:
        return documents[-1].rev + (span_of(10 * OVERLAP_S) if is_long_ago else 0)

    late.store.position = position  # type: ignore[method-assign]
    since = str(Since(late.store.epoch, documents[0].rev))
    first = await late.services.sync.read(ALICE, since, 3)
    assert first.more and len(first.documents) == 3
    told = [document for chunk in await _all(late, first.upto, 3) for document in chunk.documents]
    assert told == (documents[3:] if is_long_ago else documents)


async def test_what_is_stored_while_a_sync_is_read_is_told_by_the_next_one(core: Core) -> None:
    """It says how far it is as of before its reading."""
    since = str(await core.services.sync.now())
    gate = core.store.hold("changes")
    reading = asyncio.create_task(core.services.sync.read(ALICE, since))
    await gate.reached()
    late = await core.fill("alice", 1)
    gate.open()
    chunk = await reading
    assert not chunk.documents and not chunk.more
    [again] = await _all(core, chunk.upto, 10)
    assert list(again.documents) == late


async def test_a_sync_leads_to_all_that_other_nodes_stored_before(late: Core) -> None:
    """Also if their revs are a little ahead of those of this one."""
    since = str(await late.services.sync.now())
    documents = await late.fill("alice", 7)
    first = documents[0].rev

    async def behind() -> int:
        return first

    late.store.position = behind  # type: ignore[method-assign]
    chunks = await _all(late, since, 3)
    read = {document.id for chunk in chunks for document in chunk.documents}
    assert read == {document.id for document in documents}


async def test_a_since_from_the_middle_of_a_sync_says_nothing_of_what_is_unchanged(core: Core) -> None:
    """Nor does one that is none."""
    await core.fill("alice", 4)
    since = str(await core.services.sync.now())
    await core.fill("alice", 4)
    chunk = await core.services.sync.read(ALICE, since, 3)
    assert chunk.more
    assert not await core.services.sync.is_unchanged(ALICE, chunk.upto)
    assert not await core.services.sync.is_unchanged(ALICE, "nonsense")


# -- marking all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [500, 1])
@pytest.mark.parametrize("is_named", [False, True])
async def test_all_is_also_what_a_node_has_stored_whose_revs_are_ahead(
    late: Core, is_named: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what the user has just been shown would stay unseen. What comes after is not taken with it."""
    monkeypatch.setattr(inbox_module, "CHANGES_PER_BATCH", batch)
    documents = await late.fill("alice", 4)
    position, shown = documents[0].rev, documents[2].rev

    async def behind() -> int:
        return position

    late.store.position = behind  # type: ignore[method-assign]
    await late.store.delete(*ALICE, [documents[1].id])
    marked = await late.inbox.mark_seen_up_to(ALICE, shown if is_named else None)
    left = [document.id for document in await late.inbox.unseen(ALICE, after=None, limit=9)]
    assert left == ([documents[3].id] if is_named else [])
    assert marked.changed == (2 if is_named else 3)
    assert marked.upto == (shown if is_named else documents[3].rev)


async def test_all_are_told_of_as_a_whole(core: Core, heard: list[Event]) -> None:
    """Their ids are for others."""
    documents = await core.fill("alice", 3)
    marked = await core.inbox.mark_seen_up_to(ALICE, None)
    assert marked.changed == 3
    assert heard == [AllSeen(marked.upto)]
    assert marked.upto >= max(document.rev for document in documents)
    assert (await core.inbox.mark_seen_up_to(ALICE, None)).changed == 0
    assert len(heard) == 1


async def test_what_may_not_be_visible_yet_is_told_of_by_its_ids(late: Core, heard: list[Event]) -> None:
    """Somebody could else take what is being stored just then for seen."""
    documents = await late.fill("alice", 3)
    marked = await late.inbox.mark_seen_up_to(ALICE, None)
    assert marked.changed == 3
    [seen] = heard
    assert isinstance(seen, Seen)
    assert sorted(seen.changed_ids) == sorted(document.id for document in documents)


async def test_as_a_whole_are_told_of_those_alone_behind_which_nothing_becomes_visible(
    late: Core, heard: list[Event]
) -> None:
    """The later ones by their ids."""
    old, older, latest = await late.fill("alice", 3)
    settled = max(old.rev, older.rev)

    async def position() -> int:
        return settled + span_of(OVERLAP_S)

    late.store.position = position  # type: ignore[method-assign]
    marked = await late.inbox.mark_seen_up_to(ALICE, None)
    assert marked.changed == 3
    whole, [seen] = [event for event in heard if isinstance(event, AllSeen)], heard[-1:]
    assert whole == [AllSeen(settled)]
    assert isinstance(seen, Seen) and seen.changed_ids == (latest.id,)


# -- what others change at the same time ---------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["see", "mark_unseen", "remove"])
async def test_a_rev_is_told_of_those_alone_that_got_it(
    core: Core, heard: list[Event], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what another node has just changed the same way it may be above that of the next change."""
    documents = await core.fill("alice", 2)
    ids = tuple(document.id for document in documents)
    if verb == "mark_unseen":
        await core.inbox.see(ALICE, ids)
    store_verb = {"see": "mark_seen", "remove": "delete"}.get(verb, verb)
    carry_out = getattr(core.store, store_verb)

    async def be_overtaken(tenant: str, user_id: str, asked: Sequence[str]) -> Change:
        change = await carry_out(tenant, user_id, asked[:1])
        return Change(tuple(asked), change.changed, change.rev)

    monkeypatch.setattr(core.store, store_verb, be_overtaken, raising=False)
    heard.clear()
    changed = await getattr(core.inbox, verb)(ALICE, ids)
    assert changed.ids == ids[:1]
    [event] = heard
    assert isinstance(event, Seen | Unseen | Deleted)
    assert (event.changed_ids if isinstance(event, Seen) else event.ids) == ids[:1]


async def test_what_was_deleted_again_is_not_told_of_as_restored(core: Core, heard: list[Event]) -> None:
    """It would be on a screen for good."""
    kept, gone = [document.id for document in await core.fill("alice", 2)]
    await core.inbox.delete(ALICE, (kept, gone))
    gate = core.store.hold("restore")
    restoring = asyncio.create_task(core.inbox.restore(ALICE, (kept, gone)))
    await gate.reached()
    await core.inbox.delete(ALICE, (gone,))
    heard.clear()
    gate.open()
    await restoring
    assert [event.document.id for event in heard if isinstance(event, Restored)] == [kept]


# -- what cannot be told -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["see", "mark_unseen", "restore"])
async def test_what_was_changed_and_cannot_be_told_is_to_be_read(
    core: Core, heard: list[Event], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store went away between the change and the look at what it changed."""
    documents = await core.fill("alice", 2)
    ids = tuple(document.id for document in documents)
    await core.inbox.see(ALICE, ids[:1])
    if verb == "mark_unseen":
        pass
    elif verb == "restore":
        await core.inbox.delete(ALICE, ids)
    heard.clear()

    async def away(*_: object) -> Change:
        raise StoreUnavailable

    monkeypatch.setattr(core.store, "find", away, raising=False)
    changed = await getattr(core.inbox, verb)(ALICE, ids)
    assert changed.rev is not None
    assert Missed() in heard
