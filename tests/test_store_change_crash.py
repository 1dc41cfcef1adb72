"""A crash takes back no change that was acknowledged, and who follows the inbox does not miss what came of it.

The crash is SIGKILL of the process that changes, at a moment that differs from round to round; all rounds of a test go
on with the same data.
"""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from server.messages import Document
from server.revs import COUNTER_BITS
from server.store import Store
from tests.support.change_load import USERS
from tests.support.stores import TENANT, Place, whole_inbox

ROOT = Path(__file__).resolve().parents[1]

AFTERWARDS = {
    "mark_seen": {"seen": True, "deleted": False},
    "mark_unseen": {"seen": False, "deleted": False},
    "delete": {"deleted": True},
    "restore": {"deleted": False},
}


async def change_until_killed(place: Place, count: int) -> list[list[str]]:
    """The lines of the load: `count`, and those that came before it died."""
    argv = [sys.executable, "-m", "tests.support.change_load", *place.arguments()]
    load = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=PIPE)
    assert load.stdout is not None
    lines = []
    try:
        while len(lines) < count:
            lines.append((await load.stdout.readline()).decode())
            assert lines[-1], "the load ended by itself"
    finally:
        load.kill()
        lines += (await load.stdout.read()).decode().splitlines(keepends=True)
        await load.wait()
    return [line.split() for line in lines if line.endswith("\n")]


class Follower:
    """Knows what was acknowledged, and follows the inbox of a user."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.since = 0
        self.known: dict[str, Document] = {}

    async def sync(self, store: Store) -> None:
        upto = await store.position()
        after = (self.since - (round(store.changes_overlap_s * 1000) << COUNTER_BITS), "")
        while some := await store.changes(TENANT, self.user_id, after=after, limit=7):
            for each in some:
                if each.id not in self.known or self.known[each.id].rev < each.rev:
                    self.known[each.id] = each
            after = (some[-1].rev, some[-1].id)
        self.since = upto

    async def check(self, store: Store, lines: list[list[str]]) -> None:
        expected = {id_: {"seen": each.seen, "deleted": each.deleted} for id_, each in self.known.items()}
        last_rev = max((each.rev for each in self.known.values()), default=0)
        for verb, rev, ids in (line[1:] + [""] * (4 - len(line)) for line in lines):
            last_rev = max(last_rev, int(rev))
            for id_ in filter(None, ids.split(",")):
                expected.setdefault(id_, {}).update(AFTERWARDS[verb])
        stored = {
            each.id: each for each in await store.changes(TENANT, self.user_id, after=(0, ""), limit=1000)
        }
        assert expected.keys() <= stored.keys()
        for id_, state in expected.items():
            if stored[id_].rev <= last_rev:
                assert all(getattr(stored[id_], name) == value for name, value in state.items())
        # Nobody heard of the last change. (Who has heard of none cannot tell which that is.)
        unheard = {each.rev for each in stored.values() if each.rev > last_rev}
        assert len(unheard) <= 1 or not (lines and last_rev)
        await self.sync(store)
        assert self.known == stored
        inbox = await whole_inbox(store, self.user_id)
        assert {each.id: each for each in inbox} == {
            id_: each for id_, each in stored.items() if not each.deleted
        }
        [counts] = (await store.counts(TENANT, [self.user_id])).values()
        assert (counts.total, counts.unseen) == (len(inbox), sum(not each.seen for each in inbox))
        assert max((each.rev for each in stored.values()), default=0) <= self.since


async def kill_who_changes(place: Place, rounds: int) -> None:
    followers = [Follower(user_id) for user_id in USERS]
    epochs = set()
    for _ in range(rounds):
        lines = await change_until_killed(place, random.randint(20, 300))
        await place.settled()
        store = place.store()
        await store.open()
        for follower in followers:
            mine = [line for line in lines if line[0] == follower.user_id]
            await follower.check(store, mine)
        epochs.add(store.epoch)
        await store.close()
    assert len(epochs) == 1


async def test_killing_who_changes(place: Place) -> None:
    """What was seen, unseen, deleted and restored stays so; what was not acknowledged is done or not; and whoever
    followed before has the inbox after the next sync."""
    await kill_who_changes(place, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killing_who_changes_again_and_again(place: Place) -> None:
    """The same over many rounds."""
    await kill_who_changes(place, 12)
