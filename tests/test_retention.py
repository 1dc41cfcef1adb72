"""What has had its time goes, on one node, and clients are told the truth of it, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from pydispatch import dispatcher

from server import retention
from server.bus import DOCUMENTS_REMOVED, INBOX_CHANGED
from server.checks import Trouble
from server.config import Retention as Rules
from server.errors import StoreUnavailable
from server.grants import DEFAULT_TENANT, FOREVER, Keep
from server.messages import Document, EmailDuty, Mail, MailRecipient, Recipient, now
from server.retention import LEASE, Retention
from server.revs import COUNTER_BITS
from server.store import Horizon, Store
from server.sync import Chunk, Sync
from server.tasks import Tasks
from server.tenants import Tenants
from tests.support.stores import Place, make_notification, put, put_many, whole_inbox

DAY = timedelta(days=1)
DAY_S = 86_400

ALICE = (DEFAULT_TENANT, "alice")


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return now() + self.ahead


class Node:
    """What of a node has to do with it, on a store."""

    def __init__(self, store: Store, rules: Rules) -> None:
        self.store = store
        self.clock = Clock()
        self.tenants = Tenants(lambda: store.directory)
        self.retention = Retention(store, self.tenants, rules, lambda: 60.0, self.clock)
        self.sync = Sync(store, self.retention)

    async def open(self) -> None:
        await self.tenants.open()
        await self.retention.look()

    async def work(self) -> None:
        """As after an hour."""
        await self.tenants.open()
        await self.retention.look()
        await self.retention.work()

    async def read(self, since: str) -> Chunk:
        return await self.sync.read(ALICE, since)


@dataclass(frozen=True)
class Rounds:
    """What a node does by itself: each look, and the first removing."""

    looked: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    removed: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Rounds]:
    rounds = Rounds()
    look = node.retention.look

    async def noted_look() -> None:
        await look()
        rounds.looked.put_nowait(None)

    def note_removed(**_: object) -> None:
        rounds.removed.set()

    node.retention.look = noted_look  # type: ignore[method-assign]
    dispatcher.connect(note_removed, DOCUMENTS_REMOVED, sender=node.retention)
    tasks = Tasks()
    tasks.start(node.retention.run(), "retention")
    try:
        async with asyncio.timeout(30):
            yield rounds
    finally:
        await tasks.cancel()


RULES = Rules(documents_s=30 * DAY_S, tombstones_s=10 * DAY_S)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node has heard of everything."""
    monkeypatch.setattr(retention, "HEARD_S", 0.0)
    monkeypatch.setattr(retention, "LOOK_S", 0.01)
    monkeypatch.setattr(retention, "PASS_S", 0.01)
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)


@pytest.fixture
async def node(store: Store) -> AsyncIterator[Node]:
    node = Node(store, RULES)
    await node.open()
    yield node


async def add(store: Store, count: int, **fields: object) -> list[Document]:
    return await put_many(store, count, "alice", tenant=DEFAULT_TENANT, **fields)


async def known(store: Store) -> list[Document]:
    """All documents and tombstones."""
    return await store.changes(*ALICE, after=(0, ""), limit=1000)


# -- documents -----------------------------------------------------------------------------------------------


async def test_documents_go_and_then_the_floor_is_raised(node: Node) -> None:
    """Clients drop what was created before it."""
    old = await add(node.store, 3, created_at=now() - 31 * DAY)
    young = await add(node.store, 2, created_at=now() - 29 * DAY)
    since = str(await node.sync.now())
    assert (await node.read(since)).floor is None
    await node.work()
    chunk = await node.read(since)
    assert not chunk.reset
    assert chunk.floor is not None
    assert old[-1].created_at < chunk.floor < young[0].created_at
    assert await whole_inbox(node.store, *ALICE[::-1]) == young[::-1]


async def test_the_floor_waits_for_mail(node: Node) -> None:
    """What is there is never below it."""
    at = now() - 40 * DAY
    duty = EmailDuty(Mail("s", "c"), (MailRecipient("alice", "alice@example.test", at),))
    await node.store.add(make_notification(DEFAULT_TENANT, created_at=at), [Recipient("alice")], duty)
    await add(node.store, 2, created_at=at - DAY)
    await add(node.store, 2, created_at=at + DAY)
    await node.work()
    assert node.retention.floor(DEFAULT_TENANT) == at
    assert len(await known(node.store)) == 1


async def test_who_is_online_is_told_the_counts(node: Node) -> None:
    """Of those only who have lost documents."""
    await add(node.store, 3, created_at=now() - 31 * DAY)
    await put(node.store, "bob", DEFAULT_TENANT)
    heard: list[object] = []
    figures: list[tuple[str, int, int]] = []

    def hear(**what: object) -> None:
        heard.append(what["rooms"])

    def count(tenant: str, documents: int, tombstones: int) -> None:
        figures.append((tenant, documents, tombstones))

    dispatcher.connect(hear, INBOX_CHANGED, sender=node.retention)
    dispatcher.connect(count, DOCUMENTS_REMOVED, sender=node.retention)
    await node.work()
    assert heard == [[ALICE]]
    assert figures == [(DEFAULT_TENANT, 3, 0)]


async def test_the_log_says_how_many(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing where nothing went."""
    await add(node.store, 3, created_at=now() - 31 * DAY)
    with caplog.at_level(logging.INFO, "server.retention"):
        await node.work()
        await node.work()
    assert caplog.messages == [
        "removed what has had its time: 3 documents, 0 that were deleted; tenant=default"
    ]


async def test_unless_told_otherwise_all_documents_are_kept(node: Node) -> None:
    """Tombstones are not."""
    node.retention.rules = Rules()
    await add(node.store, 3, created_at=now() - 10_000 * DAY)
    await node.work()
    assert len(await known(node.store)) == 3
    assert node.retention.floor(DEFAULT_TENANT) is None
    assert node.retention.oldest_since(DEFAULT_TENANT) is not None


async def test_a_tenant_of_its_own_rules(node: Node) -> None:
    """They count at once, and before those of the configuration."""
    await add(node.store, 2, created_at=now() - 31 * DAY)
    await node.store.directory.set_keep(DEFAULT_TENANT, Keep(FOREVER, FOREVER))
    await node.work()
    assert len(await known(node.store)) == 2
    assert node.retention.oldest_since(DEFAULT_TENANT) is None
    node.retention.rules = Rules(documents_s=None)
    await node.store.directory.set_keep(DEFAULT_TENANT, Keep(DAY_S))
    await node.work()
    assert await known(node.store) == []


async def test_nothing_goes_before_the_keys_of_its_requests(store: Store) -> None:
    """By the documents a repeat knows that it is one."""
    node = Node(store, Rules(documents_s=DAY_S, tombstones_s=DAY_S))
    node.retention._keep_keys_s = lambda: 7.0 * DAY_S
    await add(store, 2, created_at=now() - 6 * DAY)
    await add(store, 1, created_at=now() - 8 * DAY)
    await node.work()
    assert len(await known(store)) == 2


# -- tombstones ----------------------------------------------------------------------------------------------


async def test_tombstones_go_after_their_time_and_an_older_since_is_answered_by_reset(node: Node) -> None:
    """The pass that says so comes before the one that removes them."""
    documents = await add(node.store, 3)
    before = str(await node.sync.now())
    await node.store.delete(*ALICE, [documents[0].id])
    after = str(await node.sync.now())
    node.clock.ahead = 10 * DAY + timedelta(seconds=1 + node.store.changes_overlap_s)
    await node.work()
    assert len(await known(node.store)) == 3
    assert (await node.read(before)).reset
    assert (await node.read(after)).reset
    await node.work()
    assert len(await known(node.store)) == 2
    assert (await node.read(before)).reset


async def test_whoever_is_not_told_to_reset_hears_of_each_delete(node: Node) -> None:
    """As time passes, in steps of hours, and passes come and go: a since is good, and brings the tombstones, or it is
    answered by reset."""
    documents = await add(node.store, 6)
    sinces = []
    for document in documents:
        sinces.append((str(await node.sync.now()), document.id))
        await node.store.delete(*ALICE, [document.id])
    outcomes = set()
    for hours in range(236, 246):
        node.clock.ahead = hours * timedelta(hours=1)
        await node.work()
        for since, id_ in sinces:
            chunk = await node.read(since)
            outcomes.add(chunk.reset)
            assert chunk.reset or id_ in {each.id for each in chunk.documents}
    assert outcomes == {True, False}
    assert await known(node.store) == []


async def test_a_tombstone_stays_until_all_nodes_have_heard(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a horizon beyond it: until then one of them could take an old since for good."""
    documents = await add(node.store, 1)
    await node.store.delete(*ALICE, [documents[0].id])
    node.clock.ahead = 11 * DAY
    monkeypatch.setattr(retention, "HEARD_S", 3600.0)
    await node.work()
    await node.work()
    assert len(await known(node.store)) == 1
    monkeypatch.setattr(retention, "HEARD_S", 0.0)
    await node.work()
    assert await known(node.store) == []


async def test_of_each_horizon_all_nodes_have_to_hear_anew(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That they have heard of the one before says nothing."""
    monkeypatch.setattr(retention, "HEARD_S", 3600.0)
    [document] = await add(node.store, 1)
    node.clock.ahead = 10 * DAY
    await node.work()
    await node.retention.look()
    [(tenant, (rev, _))] = node.retention._heard.items()
    node.retention._heard[tenant] = rev, -math.inf  # all have heard of it
    await node.store.delete(*ALICE, [document.id])
    node.clock.ahead += timedelta(seconds=60)
    for _ in range(2):
        await node.work()
    assert len(await known(node.store)) == 1


async def test_a_tombstone_stays_for_as_long_as_its_rev_may_become_visible_late(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a since that is a little later than its rev need not have heard of it."""
    monkeypatch.setattr(node.store, "changes_overlap_s", 30.0)
    [document] = await add(node.store, 1)
    await node.store.delete(*ALICE, [document.id])
    node.clock.ahead = 10 * DAY + timedelta(seconds=1)
    for _ in range(2):
        await node.work()
    assert len(await known(node.store)) == 1
    node.clock.ahead += timedelta(seconds=30)
    for _ in range(2):
        await node.work()
    assert await known(node.store) == []


async def test_keeping_for_longer_brings_nothing_back(node: Node) -> None:
    """What was said to be gone stays so, for clients that have not heard of it yet."""
    node.clock.ahead = 40 * DAY
    await add(node.store, 1)
    await node.work()
    floor, oldest = node.retention.floor(DEFAULT_TENANT), node.retention.oldest_since(DEFAULT_TENANT)
    assert floor is not None and oldest is not None
    node.retention.rules = Rules(documents_s=None, tombstones_s=None)
    await node.work()
    assert node.retention.floor(DEFAULT_TENANT) == floor
    assert node.retention.oldest_since(DEFAULT_TENANT) == oldest
    assert oldest >> COUNTER_BITS == pytest.approx((now() + 30 * DAY).timestamp() * 1000, abs=60_000)


# -- nodes ---------------------------------------------------------------------------------------------------


async def test_it_goes_on_by_itself(node: Node) -> None:
    """And after the store was away."""
    horizons = node.store.retention.horizons
    is_away = asyncio.Event()

    async def away() -> dict[str, Horizon]:
        is_away.set()
        raise StoreUnavailable

    node.store.retention.horizons = away  # type: ignore[method-assign]
    await add(node.store, 2, created_at=now() - 31 * DAY)
    async with running(node) as rounds:
        await is_away.wait()
        node.store.retention.horizons = horizons  # type: ignore[method-assign]
        await rounds.removed.wait()


async def test_a_clock_that_was_just_set_is_not_believed(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be set back: what is removed would not come back. If it stays as it is, it counts."""
    await add(node.store, 2)
    monkeypatch.setattr(retention, "PASS_S", 3600.0)
    node.clock.ahead = 60 * DAY
    async with running(node) as rounds:
        for _ in range(5):
            await rounds.looked.get()
        assert not rounds.removed.is_set()
        assert "the clock was set by +5184000 s" in caplog.text
    monkeypatch.setattr(retention, "PASS_S", 0.01)
    async with running(node) as rounds:
        await rounds.removed.wait()


async def test_a_clock_that_is_not_the_stores_is_not_believed(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if it was set before the node started."""
    await add(node.store, 2, created_at=now() - 31 * DAY)

    async def differ() -> None:
        raise Trouble("the clocks differ")

    with monkeypatch.context() as wrong:
        wrong.setattr(node.store, "ping", differ)
        async with running(node) as rounds:
            for _ in range(5):
                await rounds.looked.get()
            assert not rounds.removed.is_set()
            # It leaves that to others.
            assert await node.store.leases.take(LEASE, "another", 3600)
            await node.store.leases.give_back(LEASE, "another")
    assert caplog.text.count("nothing is removed by this node") >= 1 and "the clocks differ" in caplog.text
    async with running(node) as rounds:
        await rounds.removed.wait()


async def test_one_node_works(node: Node) -> None:
    """Who has not the lease only reads what the other has done."""
    assert await node.store.leases.take(LEASE, "another", 3600)
    await add(node.store, 2, created_at=now() - 31 * DAY)
    await node.store.retention.raise_horizon(DEFAULT_TENANT, Horizon(None, 7))
    async with running(node) as rounds:
        for _ in range(5):
            await rounds.looked.get()
        assert node.retention.oldest_since(DEFAULT_TENANT) == 7
        assert len(await known(node.store)) == 2
        await node.store.leases.give_back(LEASE, "another")
        await rounds.removed.wait()


async def test_who_loses_the_lease_stops(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next step, and says of nothing that it is gone."""
    monkeypatch.setattr(retention, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(retention, "LEASE_S", 0.0)
    assert await node.retention._hold()
    await add(node.store, 5, created_at=now() - 31 * DAY)
    taken = False

    async def lose(name: str, holder: str, lease_s: float) -> bool:
        nonlocal taken
        taken = True
        return False

    monkeypatch.setattr(node.store.leases, "take", lose)
    await node.work()
    assert taken
    assert len(await known(node.store)) == 3
    assert node.retention.floor(DEFAULT_TENANT) is None


async def test_two_nodes_know_the_same(place: Place) -> None:
    """What one has done the other reads; and so does the next one that starts."""
    stores = [place.store() for _ in range(2 if place.is_shared else 1)]
    for store in stores:
        await store.open()
    first, *others = [Node(store, RULES) for store in stores]
    await first.open()
    await first.work()
    for other in [*others, Node(stores[0], RULES)]:
        await other.open()
        assert other.retention.floor(DEFAULT_TENANT) == first.retention.floor(DEFAULT_TENANT)
        assert other.retention.oldest_since(DEFAULT_TENANT) == first.retention.oldest_since(DEFAULT_TENANT)
    for store in stores:
        await store.close()
