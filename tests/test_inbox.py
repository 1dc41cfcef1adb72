"""Tests of server/inbox.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydispatch import dispatcher

from server import inbox as module
from server.bus import INBOX_CHANGED
from server.errors import StoreUnavailable
from server.inbox import CHANGES_PER_BATCH
from server.rooms import Room
from server.store import Change
from tests.support.core import ALICE, BOB, Core, open_core

NOBODYS = "0123456789abcdef01234567"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


@pytest.fixture
def changes() -> Iterator[list[Room]]:
    """Whose inbox is said to have changed, over the bus."""
    heard: list[Room] = []

    def hear(rooms: list[Room]) -> None:
        heard.extend(rooms)

    dispatcher.connect(hear, INBOX_CHANGED)
    yield heard
    dispatcher.disconnect(hear, INBOX_CHANGED)


async def test_reading_is_the_stores(core: Core) -> None:
    """Unseen and pages oldest first, newest the other way round, and the count; another user's stay out."""
    documents = await core.fill("alice", 5)
    await core.fill("bob", 1)
    assert await core.inbox.unseen(ALICE, after=None, limit=3) == documents[:3]
    assert await core.inbox.unseen(ALICE, after=documents[2], limit=3) == documents[3:]
    assert await core.inbox.page(ALICE, page=1, limit=2) == documents[2:4]
    assert await core.inbox.newest(ALICE, before=None, limit=2) == documents[:2:-1]
    assert await core.inbox.newest(ALICE, before=documents[1].id, limit=9) == [documents[0]]
    assert await core.inbox.count_unseen(ALICE) == 5
    assert await core.inbox.count_unseen(("default", "nobody")) == 0


async def test_a_change_is_told_to_all_screens_of_the_user_alone(core: Core, changes: list[Room]) -> None:
    """With the ids that really were the user's, in the order given; and over the bus."""
    alice, again, bob = await core.join("alice"), await core.join("alice"), await core.join("bob")
    first, second = await core.fill("alice", 2)
    [bobs] = await core.fill("bob", 1)
    asked = (second.id, NOBODYS, bobs.id, first.id)

    change = await core.inbox.mark_seen(ALICE, asked)
    assert (change.ids, change.changed) == ((second.id, first.id), 2)
    change = await core.inbox.delete(ALICE, asked)
    assert (change.ids, change.changed) == ((second.id, first.id), 2)
    await core.backplane.flushed()

    for connection in (alice, again):
        told = connection.received()
        assert [(message.name, message.data) for message in told] == [
            ("seen", [second.id, first.id]),
            ("delete", [second.id, first.id]),
        ]
    assert not bob.received()
    assert changes == [ALICE, ALICE]
    assert await core.inbox.count_unseen(BOB) == 1


@pytest.mark.parametrize("ids", [(), (NOBODYS,)])
async def test_what_changes_nothing_is_told_to_nobody(
    core: Core, changes: list[Room], ids: tuple[str, ...]
) -> None:
    """Neither screens nor the bus hear of it."""
    alice = await core.join("alice")
    verbs: list[Callable[..., Any]] = [core.inbox.mark_seen, core.inbox.delete]
    for verb in verbs:
        change = await verb(ALICE, ids)
        assert (change.ids, change.changed, change.rev) == ((), 0, None)
    assert (await core.inbox.mark_all_seen(ALICE)).rev is None
    await core.backplane.flushed()
    assert not alice.received()
    assert changes == []


async def test_who_restores_is_answered_with_what_they_restored(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with what another device was quicker to restore, which has another rev."""
    ids = tuple(document.id for document in await core.fill("alice", 2))
    await core.inbox.delete(ALICE, ids)
    restore = core.store.restore

    async def restore_second(tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        # As on MongoDB, where both have been found before another node restores one.
        await restore(tenant, user_id, ids[:1])
        change = await restore(tenant, user_id, ids[1:])
        return replace(change, ids=tuple(ids))

    monkeypatch.setattr(core.store, "restore", restore_second, raising=False)
    changed = await core.inbox.restore(ALICE, ids)
    assert changed.ids == ids[1:]
    [second, first] = await core.inbox.newest(ALICE, before=None, limit=2)
    assert (second.rev, first.deleted) == (changed.rev, False)


async def test_all_are_marked_seen_a_batch_at_a_time(
    core: Core, changes: list[Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first; the last batch is the one that is not full."""
    monkeypatch.setattr(module, "CHANGES_PER_BATCH", 3)
    alice = await core.join("alice")
    ids = [document.id for document in await core.fill("alice", 5)]
    assert [(await core.inbox.mark_all_seen(ALICE)).changed for _ in range(3)] == [3, 2, 0]
    await core.backplane.flushed()
    assert [message.data for message in alice.received()] == [ids[:3], ids[3:]]
    assert changes == [ALICE, ALICE]


def test_a_batch_fits_any_queue() -> None:
    """The ids of one frame take some 15 KB, far below what a connection's queue holds."""
    assert CHANGES_PER_BATCH * len(f'\\"{NOBODYS}\\",') < 16_000


async def test_a_store_that_is_away_is_said_and_no_change_told(core: Core, changes: list[Room]) -> None:
    """All verbs raise StoreUnavailable. Changes may have come through all the same, so they are counted anew."""
    alice = await core.join("alice")
    [document] = await core.fill("alice", 1)
    core.store.goes_away()
    inbox, ids = core.inbox, (document.id,)
    for attempt in (
        inbox.unseen(ALICE, after=None, limit=1),
        inbox.page(ALICE, page=0, limit=1),
        inbox.newest(ALICE, before=None, limit=1),
        inbox.count_unseen(ALICE),
        inbox.mark_seen(ALICE, ids),
        inbox.mark_all_seen(ALICE),
        inbox.delete(ALICE, ids),
    ):
        with pytest.raises(StoreUnavailable):
            await attempt
    await core.backplane.flushed()
    assert not alice.received()
    assert changes == [ALICE] * 3
