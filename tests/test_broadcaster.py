"""Tests of server/broadcaster.py, on both stores; and broadcasts of a server that is killed amid them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from pydispatch import dispatcher

from server import broadcaster as module
from server import tasks as tasks_module
from server.backplane import LocalBackplane
from server.broadcaster import Broadcaster
from server.bus import NOTIFICATION_FAILED, NOTIFICATION_PUSHED, NOTIFICATION_STORED
from server.dialects import Dialect
from server.errors import StoreUnavailable, TenantGone
from server.grants import DEFAULT_TENANT
from server.messages import (
    Added,
    Broadcasted,
    Document,
    Event,
    Notification,
    Publication,
    Recipient,
    altered,
    now,
)
from server.parsers import FieldLimits, parse_broadcast
from server.rooms import NOBODY, Push, Room, Rooms
from server.store import Accepted, Broadcast, Store
from server.tasks import Tasks
from server.tenants import Tenants
from server.wire import Frame
from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.core import FragileStore
from tests.support.feeds import SETTINGS, add_tenant, broadcast, hub_path, internal, listening, must
from tests.support.processes import wait_until
from tests.support.recording import RecordingConnection
from tests.support.running_server import RunningServer
from tests.support.stores import fresh_place, make_notification, put, whole_inbox
from tests.test_tenants import add_tenant as add_tenant_to

ACME = "acme"


class Everything:
    """A dialect that tells of every event."""

    def frame(self, event: Event) -> Frame:
        return Frame(type(event).__name__)


class Told:
    """A member of a room that tells its rooms what it is told."""

    dialect: Dialect = Everything()
    sign_in = None

    def __init__(self, rooms: Recorder, room: Room) -> None:
        self.connection = RecordingConnection()
        self._rooms = rooms
        self._room = room

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        self._rooms.told += [(self._room, event) for event, _ in pushes]

    def missed(self, since: datetime) -> None:
        """Nothing is, here."""


class Recorder(Rooms):
    """Rooms that keep whom they told what, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Room, Event]] = []

    def comes(self, user: str, tenant: str = ACME) -> None:
        self.join((tenant, user), Told(self, (tenant, user)))

    @property
    def users_told(self) -> list[str]:
        """Who was told of a document, in order."""
        return [room[1] for room, event in self.told if isinstance(event, Added)]


@dataclasses.dataclass
class Node:
    """A broadcaster with what it needs, on a store that may be told to fail."""

    store: FragileStore
    rooms: Recorder
    tenants: Tenants
    backplane: LocalBackplane
    broadcaster: Broadcaster
    tasks: Tasks

    def runs(self) -> None:
        self.broadcaster.start(self.tasks)

    async def joins(self, user: str, tenant: str = ACME) -> None:
        """As a session does it: the room first, then what is open."""
        self.tenants.note_user(tenant, user)
        self.rooms.comes(user, tenant)
        await self.broadcaster.catch_up((tenant, user))
        await self.backplane.flushed()

    async def broadcast(self, **fields: str) -> Notification:
        notification = parse_broadcast({"title": "T", "message": "M", **fields}, ACME, FieldLimits())
        return (await self.broadcaster.broadcast(notification)).notification

    async def is_done(self) -> None:
        """Return when no broadcast is open, and everybody has been told."""
        async with asyncio.timeout(60):
            while await self.store.broadcasts.count_open():  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
        await self.backplane.flushed()

    async def having(self, notification: Notification, *users: str, tenant: str = ACME) -> list[int]:
        """How many documents of it each of these has."""
        return [
            sum(
                document.notification.nid == notification.nid
                for document in await whole_inbox(self.store, user, tenant)  # type: ignore[arg-type]  # stands for one
            )
            for user in users
        ]


def node_on(store: Store) -> Node:
    fragile, rooms = FragileStore(store), Recorder()
    backplane = LocalBackplane(rooms)
    tenants = Tenants(lambda: store.directory)
    broadcaster = Broadcaster(fragile, backplane, rooms, tenants)  # type: ignore[arg-type]  # stands for a store
    return Node(fragile, rooms, tenants, backplane, broadcaster, Tasks())


@pytest.fixture(params=["sqlite", "mongo-replica-set"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    with fresh_place(request.param, request) as place:
        store = place.store()
        await store.open()
        await add_tenant_to(store.directory, ACME)
        try:
            yield store
        finally:
            await store.close()


@pytest.fixture
async def node(store: Store) -> AsyncIterator[Node]:
    node = node_on(store)
    await node.tenants.open()
    try:
        yield node
    finally:
        await node.tasks.cancel()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for other nodes."""
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    monkeypatch.setattr(module, "RETRY_S", 0.05)


# -- whom it reaches -----------------------------------------------------------------------------------------
async def test_everybody_known_gets_one_document(store: Store, node: Node) -> None:
    """Who was ever notified, who has joined (a moment ago, too), who is connected; of that tenant only."""
    await put(store, "notified", ACME)
    await node.joins("joined")
    await node.joins("connected")
    await put(store, "notified", DEFAULT_TENANT)
    node.rooms.leave((ACME, "joined"), next(iter(node.rooms._members[ACME, "joined"])))
    node.runs()
    notification = await node.broadcast()
    await node.is_done()
    assert await node.having(notification, "notified", "joined", "connected") == [1, 1, 1]
    assert await node.having(notification, "notified", tenant=DEFAULT_TENANT) == [0]
    assert node.rooms.users_told == ["connected"]


async def test_who_is_known_only_later_gets_nothing(store: Store, node: Node) -> None:
    """Neither while it is under way nor afterwards."""
    await put(store, "known", ACME)
    notification = await node.broadcast()
    await asyncio.sleep(0.002)  # the clocks of stores count milliseconds
    await put(store, "later", ACME)
    await node.joins("even-later")
    await node.tenants.write_down()
    await node.joins("later")
    await node.joins("even-later")
    node.runs()
    await node.is_done()
    await node.joins("last")
    assert await node.having(notification, "known", "later", "even-later", "last") == [1, 0, 0, 0]


async def test_a_clock_that_has_gone_back(store: Store, node: Node) -> None:
    """Since the users were first seen: they are known all the same."""
    await put(store, "alice", ACME)
    node.runs()
    notification = parse_broadcast({"title": "T", "message": "M"}, ACME, FieldLimits())
    notification = altered(notification, created_at=now() - timedelta(hours=1))
    await node.broadcaster.broadcast(notification)
    await node.is_done()
    assert await node.having(notification, "alice") == [1]


@pytest.mark.parametrize("comes", ["is notified", "joins"])
async def test_who_has_come_to_a_node_whose_clock_is_ahead_is_reached(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    """Users are known since a time by the clock of one node, and a broadcast is accepted by that of another."""
    with fresh_place("mongo-replica-set", request) as place:
        store, ahead = place.store(), node_on(place.store())
        await store.open()
        await ahead.store.open()
        await add_tenant_to(store.directory, ACME)
        here = node_on(store)
        try:
            await ahead.tenants.open()
            await here.tenants.open()
            later = now() + timedelta(seconds=5)
            if comes == "joins":
                monkeypatch.setattr(ahead.tenants, "_clock", lambda: later)
                await ahead.joins("alice")
            else:
                notification = altered(make_notification(ACME), created_at=later)
                await ahead.store.add(notification, [Recipient("alice")], None)
            await asyncio.sleep(0.02)  # as far as a node can be sure of MongoDB's clock
            here.runs()
            notification = await here.broadcast()
            await here.is_done()
            assert await here.having(notification, "alice") == [1]
        finally:
            await here.tasks.cancel()
            await ahead.store.close()
            await store.close()


async def test_who_joins_meanwhile_is_not_made_to_wait(store: Store, node: Node) -> None:
    """Their document is there when they have joined; and it comes once, though the batches reach them, too."""
    for user in ("a", "b", "c"):
        await put(store, user, ACME)
    first, second = await node.broadcast(), await node.broadcast()
    await node.joins("b")
    assert await node.having(first, "a", "b") == [0, 1]
    assert node.rooms.users_told == ["b", "b"]
    node.runs()
    await node.is_done()
    for notification in (first, second):
        assert await node.having(notification, "a", "b", "c") == [1, 1, 1]
    assert node.rooms.users_told == ["b", "b"]


async def test_who_joins_before_the_first_look_is_not_forgotten(store: Store, node: Node) -> None:
    """A node that has just started does not know yet what is open: it asks."""
    await put(store, "alice", ACME)
    other = node_on(store)
    await other.tenants.open()
    notification = await other.broadcast()
    await node.joins("alice")
    assert await node.having(notification, "alice") == [1]


async def test_a_count_from_before_does_not_hide_what_was_accepted_since(store: Store, node: Node) -> None:
    """The look of a moment ago knew of none: who joins now has the broadcast all the same."""
    await put(store, "alice", ACME)
    looked = node.store.hold("count_open")
    node.runs()
    await looked.reached()
    notification = await node.broadcast()
    looking, claiming = node.store.hold("count_open"), node.store.hold("claim")
    looked.open()
    following = [asyncio.create_task(gate.reached()) for gate in (looking, claiming)]
    await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
    await node.joins("alice")
    assert await node.having(notification, "alice") == [1]
    looking.open()
    claiming.open()
    await asyncio.gather(*following)
    await node.is_done()


async def test_the_connected_come_first(store: Store, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their ids are; everybody is told once."""
    monkeypatch.setattr(module, "BATCH_USERS", 2)
    for number in range(9):
        await put(store, f"u{number}", ACME)
    for user in ("u8", "u7", "u6"):
        await node.joins(user)
    notification = await node.broadcast()
    gate = node.store.hold("users")
    node.runs()
    await gate.reached()
    await node.backplane.flushed()
    assert sorted(node.rooms.users_told) == ["u6", "u7", "u8"]
    assert await node.having(notification, "u0", "u8") == [0, 1]
    gate.open()
    await node.is_done()
    assert await node.having(notification, *(f"u{number}" for number in range(9))) == [1] * 9
    assert sorted(node.rooms.users_told) == ["u6", "u7", "u8"]


async def test_clients_without_a_user_are_told_at_once(node: Node) -> None:
    """When the record is durable, and nobody's documents are yet; those of the tenant only."""
    node.rooms.comes(NOBODY)
    node.rooms.comes(NOBODY, DEFAULT_TENANT)
    notification = await node.broadcast()
    await node.backplane.flushed()
    assert node.rooms.told == [((ACME, NOBODY), Broadcasted(notification))]


async def test_a_repeat_is_told_to_nobody(node: Node) -> None:
    """Neither while it is open nor when it has reached everybody; it is answered with the first notification."""
    node.rooms.comes(NOBODY)
    await node.joins("alice")
    fields = {"title": "T", "message": "M"}
    first, second, third = (parse_broadcast(fields, ACME, FieldLimits()) for _ in range(3))
    accepted = await node.broadcaster.broadcast(first, idempotency_key="key")
    first = accepted.notification  # the store's clock may have dated it
    assert accepted == Accepted(first)
    assert await node.broadcaster.broadcast(second, idempotency_key="key") == Accepted(first, is_repeat=True)
    node.runs()
    await node.is_done()
    assert await node.broadcaster.broadcast(third, idempotency_key="key") == Accepted(first, is_repeat=True)
    await node.is_done()
    told = [event for room, event in node.rooms.told if room == (ACME, NOBODY)]
    assert told == [Broadcasted(first)]
    assert await node.having(first, "alice") == [1]


async def test_what_is_read_for_a_welcome_holds_the_broadcasts(node: Node) -> None:
    """Of whom nothing is owed to it is read once."""
    room = (ACME, "alice")
    await node.joins("alice")
    await node.broadcaster._look()
    read = partial(node.store.welcome, *room, unseen=10, counts=True)
    node.store.calls.clear()
    assert (await node.broadcaster.welcome(room, read)).counts.total == 0
    notification = await node.broadcast()
    welcomes = [await node.broadcaster.welcome(room, read) for _ in range(2)]
    assert [[each.notification.nid for each in welcome.unseen] for welcome in welcomes] == [
        [notification.nid]
    ] * 2
    assert [welcome.counts.unseen for welcome in welcomes] == [1, 1]
    assert node.store.calls.count("welcome") == 3
    await node.backplane.flushed()
    assert node.rooms.users_told == ["alice"]


async def test_a_welcome_is_read_again_if_a_broadcast_was_accepted_meanwhile(node: Node) -> None:
    """And gave the user something."""
    room = (ACME, "alice")
    await node.joins("alice")
    await node.broadcaster._look()
    gate = node.store.hold("welcome")
    read = partial(node.store.welcome, *room, unseen=10)
    reading = asyncio.create_task(node.broadcaster.welcome(room, read))
    await gate.reached()
    notification = await node.broadcast()
    gate.open()
    assert [each.notification.nid for each in (await reading).unseen] == [notification.nid]


async def test_a_welcome_during_a_broadcast_holds_it(node: Node) -> None:
    """Also if it ends while the welcome is read: it was accepted before the join."""
    room = (ACME, "alice")
    await node.joins("alice")
    await node.broadcaster._look()
    notification = await node.broadcast()
    gate = node.store.hold("known_since")
    read = partial(node.store.welcome, *room, unseen=10)
    reading = asyncio.create_task(node.broadcaster.welcome(room, read))
    await gate.reached()
    node.runs()
    await node.is_done()
    gate.open()
    assert [each.notification.nid for each in (await reading).unseen] == [notification.nid]


async def test_a_welcome_is_not_read_before_the_store_knows_its_user(node: Node) -> None:
    """Who joins for the first time is written down, and asked about once while nothing is open."""
    room = (ACME, "alice")
    node.tenants.note_user(*room)
    await node.broadcaster._look()
    node.store.calls.clear()
    read = partial(node.store.welcome, *room, counts=True)
    assert (await node.broadcaster.welcome(room, read)).known_since is None
    assert node.store.calls == ["welcome"]
    assert (await read()).known_since is not None


async def test_a_tenant_without_users_is_soon_done(node: Node) -> None:
    """There is nothing to do."""
    node.runs()
    await node.broadcast()
    await node.is_done()


async def test_broadcasts_come_in_order(store: Store, node: Node) -> None:
    """Of one tenant, to whoever is connected."""
    await node.joins("alice")
    node.runs()
    sent = [(await node.broadcast()).nid for _ in range(10)]
    await node.is_done()
    told = [event.document.notification.nid for _, event in node.rooms.told if isinstance(event, Added)]
    assert told == sent


async def test_who_joins_is_given_what_is_open_page_by_page(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, however much it is; who joins again, and has it, costs next to nothing."""
    monkeypatch.setattr(module, "CATCH_UP_DOCUMENTS", 4)
    await put(store, "alice", ACME)
    sent = [(await node.broadcast()).nid for _ in range(10)]
    await node.joins("alice")
    told = [event.document.notification.nid for _, event in node.rooms.told if isinstance(event, Added)]
    assert told == sent
    assert node.store.calls.count("give") == 3
    assert len(await whole_inbox(store, "alice", ACME)) == 11
    await node.joins("alice")
    assert node.store.calls.count("give") == 3
    assert node.rooms.users_told == ["alice"] * 10


async def test_who_has_joined_another_node_a_moment_ago_is_reached(store: Store, node: Node) -> None:
    """Though that node has not come to writing down who joined."""
    await put(store, "known", ACME)
    other = node_on(store)
    await other.tenants.open()
    await other.joins("new")
    await asyncio.sleep(0.002)  # the clocks of stores count milliseconds
    node.runs()
    notification = await node.broadcast()
    await node.is_done()
    assert await node.having(notification, "known", "new") == [1, 1]


async def test_first_joins_share_their_writes(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd of new users is written down in a few; who is known already in none."""
    users, writes = [f"u{number:03}" for number in range(100)], 0
    note_users = store.directory.note_users

    async def note(seen_at: Mapping[tuple[str, str], datetime]) -> None:
        nonlocal writes
        writes += 1
        await note_users(seen_at)

    monkeypatch.setattr(store.directory, "note_users", note)
    await asyncio.gather(*map(node.joins, users))
    known = await store.directory.users(ACME, after=None, limit=1000)
    assert [user.user_id for user in known] == users
    assert 1 <= writes < 10
    written = writes
    await asyncio.gather(*map(node.joins, users))
    assert writes == written


# -- several at once -----------------------------------------------------------------------------------------
OTHERS = ("other-1", "other-2", "other-3")


async def broadcast_to(store: Store, node: Node, tenant: str, users: Iterable[str]) -> Notification:
    await add_tenant_to(store.directory, tenant)
    await node.tenants.open()
    for user in users:
        await put(store, user, tenant)
    notification = parse_broadcast({"title": "T", "message": "M"}, tenant, FieldLimits())
    return (await node.broadcaster.broadcast(notification)).notification


async def test_a_huge_one_holds_up_no_other_tenant(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tenants take turns, batch by batch: the small ones are over when the first has hardly begun."""
    monkeypatch.setattr(module, "BATCH_USERS", 1)
    users = [f"u{number:02}" for number in range(60)]
    for user in users:
        await put(store, user, ACME)
    huge = await node.broadcast()
    small = [await broadcast_to(store, node, tenant, ["alice"]) for tenant in OTHERS]
    finished: list[str] = []
    finish = store.broadcasts.finish

    async def note(broadcast: Broadcast) -> bool:
        finished.append(broadcast.notification.tenant)
        return await finish(broadcast)

    monkeypatch.setattr(store.broadcasts, "finish", note)
    gate = node.store.hold("expand")
    node.runs()
    await gate.reached()
    async with asyncio.timeout(30):
        while len(node.broadcaster._in_hand) < 4:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
    gate.open()
    await node.is_done()
    assert sorted(finished[:3]) == sorted(OTHERS)
    assert finished[3:] == [ACME]
    assert await node.having(huge, *users) == [1] * 60
    for notification in small:
        assert await node.having(notification, "alice", tenant=notification.tenant) == [1]


async def test_a_batch_is_stored_when_there_is_room_for_its_pushes(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is stored faster than it is told would fill the memory."""
    asked, room = asyncio.Event(), asyncio.Event()

    async def has_space() -> None:
        asked.set()
        await room.wait()

    monkeypatch.setattr(node.backplane, "has_space", has_space)
    await put(store, "alice", ACME)
    notification = await node.broadcast()
    node.runs()
    await asked.wait()
    assert await node.having(notification, "alice") == [0]
    room.set()
    await node.is_done()
    assert await node.having(notification, "alice") == [1]


async def test_more_tenants_than_are_carried_at_once(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others follow."""
    monkeypatch.setattr(module, "MAX_AT_ONCE", 2)
    notifications = [await broadcast_to(store, node, tenant, ["alice"]) for tenant in OTHERS]
    node.runs()
    await node.is_done()
    for notification in notifications:
        assert await node.having(notification, "alice", tenant=notification.tenant) == [1]


async def test_none_is_accepted_for_a_tenant_that_is_gone(store: Store, node: Node) -> None:
    """The next one of its name would get it."""
    await store.directory.remove_tenant(ACME, now())
    await node.tenants.open()
    with pytest.raises(TenantGone):
        await node.broadcast()
    assert not await store.broadcasts.count_open()


async def test_one_that_fails_holds_up_no_other_tenant(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and tried again when its lease has run out."""
    monkeypatch.setattr(module, "LEASE_S", 0.3)
    await put(store, "alice", ACME)
    bad = await node.broadcast()
    good = await broadcast_to(store, node, OTHERS[0], ["alice"])
    expand, is_broken = store.broadcasts.expand, True

    async def fail(notification: Notification, user_ids: Sequence[str]) -> list[Document]:
        if is_broken and notification.tenant == ACME:
            raise RuntimeError("a bug")
        return await expand(notification, user_ids)

    monkeypatch.setattr(store.broadcasts, "expand", fail)
    node.runs()
    async with asyncio.timeout(30):
        while await node.having(good, "alice", tenant=OTHERS[0]) != [1]:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
    assert await node.having(bad, "alice") == [0]
    is_broken = False
    await node.is_done()
    assert await node.having(bad, "alice") == [1]
    assert "a broadcast could not be carried on" in caplog.text


# -- when something fails ------------------------------------------------------------------------------------
async def test_while_the_store_is_away_nothing_is_accepted(node: Node) -> None:
    """And nobody is told; the figures have it."""
    node.rooms.comes(NOBODY)
    failed: list[tuple[Publication, str]] = []

    def note(publication: Publication, code: str) -> None:
        failed.append((publication, code))

    dispatcher.connect(note, NOTIFICATION_FAILED, sender=node.broadcaster)
    node.store.goes_away()
    with pytest.raises(StoreUnavailable):
        await node.broadcast()
    await node.backplane.flushed()
    assert node.rooms.told == []
    assert [(publication.door, code) for publication, code in failed] == [("broadcast", "store_unavailable")]
    dispatcher.disconnect(note, NOTIFICATION_FAILED, sender=node.broadcaster)


async def test_figures_hear_of_what_was_stored_and_pushed(node: Node) -> None:
    """Once for each broadcast; pushed: where there are clients without a user."""
    heard: list[str] = []

    def stored(publication: Publication) -> None:
        heard.append(f"stored {publication.door}")

    def pushed(publication: Publication, connections: int) -> None:
        heard.append(f"pushed {publication.door} {connections}")

    dispatcher.connect(stored, NOTIFICATION_STORED, sender=node.broadcaster)
    dispatcher.connect(pushed, NOTIFICATION_PUSHED, sender=node.broadcaster)
    await node.broadcast()
    node.rooms.comes(NOBODY)
    await node.broadcast()
    await node.backplane.flushed()
    assert heard == ["stored broadcast", "stored broadcast", "pushed broadcast 1"]


@pytest.mark.parametrize("failure", [StoreUnavailable(), RuntimeError("a bug")])
async def test_a_failure_amid_it_delays_it(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """It goes on when the lease has run out: everybody gets one document, nobody two."""
    monkeypatch.setattr(module, "BATCH_USERS", 2)
    monkeypatch.setattr(module, "LEASE_S", 0.3)
    users = [f"u{number}" for number in range(7)]
    for user in users:
        await put(store, user, ACME)
    notification = await node.broadcast()
    gate = node.store.hold("advance")
    node.runs()
    await gate.reached()
    node.store.failure = failure
    gate.open()
    await asyncio.wait_for(node.store.failed.get(), 30)
    node.store.is_back()
    await node.is_done()
    assert await node.having(notification, *users) == [1] * 7


@pytest.mark.parametrize("held", ["expand", "claim"])
async def test_it_ends_though_a_cancellation_gets_lost(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """While a batch is stored, and before a broadcast is begun that the end knows nothing of."""
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN_S", 0.01)
    await put(store, "alice", ACME)
    await node.broadcast()
    gate = node.store.hold(held, loses_cancellation=True)
    node.store.hold("advance")
    node.runs()
    await gate.reached()
    async with asyncio.timeout(30):
        await node.tasks.cancel()
    assert not node.tasks


async def test_who_has_lost_the_lease_stops(
    store: Store, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node has taken over what this one was too slow for: everybody gets one document, and is told once."""
    monkeypatch.setattr(module, "BATCH_USERS", 2)
    monkeypatch.setattr(module, "LEASE_S", 0.1)
    users = [f"u{number}" for number in range(7)]
    for user in users:
        await put(store, user, ACME)
        await node.joins(user)
    other = node_on(store)
    await other.tenants.open()
    for user in users:
        other.rooms.comes(user)
    notification = await node.broadcast()
    gate = node.store.hold("expand")
    node.runs()
    await gate.reached()
    await asyncio.sleep(0.2)  # the lease runs out
    other.runs()
    try:
        await other.is_done()
        gate.open()
        await node.is_done()
        assert await node.having(notification, *users) == [1] * 7
        assert Counter(node.rooms.users_told + other.rooms.users_told) == Counter(users)
        async with asyncio.timeout(30):
            while node.broadcaster._first:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
    finally:
        await other.tasks.cancel()


async def test_who_comes_first_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory: with more, everybody comes in their turn."""
    monkeypatch.setattr(module, "MAX_FIRST", 3)
    for user in ("a", "b"):
        await node.joins(user)
    notifications = [await node.broadcast() for _ in range(3)]
    assert sum(map(len, node.broadcaster._first.values())) == 2
    node.runs()
    await node.is_done()
    for notification in notifications:
        assert await node.having(notification, "a", "b") == [1, 1]


async def test_a_removed_tenant_gets_nothing_more(store: Store, node: Node) -> None:
    """Its broadcasts rest; others go on."""
    await put(store, "alice", ACME)
    notification = await node.broadcast()
    await store.directory.remove_tenant(ACME, now())
    await put(store, "bob", DEFAULT_TENANT)
    other = parse_broadcast({"title": "T", "message": "M"}, DEFAULT_TENANT, FieldLimits())
    await node.broadcaster.broadcast(other)
    node.runs()
    await node.is_done()
    assert await node.having(notification, "alice") == [0]
    assert await node.having(other, "bob", tenant=DEFAULT_TENANT) == [1]


# -- the server as a whole -----------------------------------------------------------------------------------
@pytest.fixture(params=STORES)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    with store_settings(request.param, request) as settings:
        with RunningServer(tmp_path, **SETTINGS, **settings) as running:
            yield running


def count_having(server: RunningServer, nid: str, key: str | None = None) -> Counter[str]:
    """Who has it, and how often."""
    headers = {} if key is None else {"Authorization": f"Api-Key {key}"}
    found: Counter[str] = Counter()
    after = ""
    while after is not None:
        path = f"/api/notifications/{nid}/deliveries?limit=1000&after={after}"
        page = must(server.request("GET", path, headers=headers))
        found.update(delivery["user_id"] for delivery in page["deliveries"])
        after = page["next"]
    return found


@pytest.mark.timeout(240)
async def test_a_server_that_is_killed_amid_it_goes_on(server: RunningServer) -> None:
    """SIGKILL in the middle, while two tenants' go out: after the next start every user known before has one document,
    who joins has it at once, who is known only later has none."""
    acme = add_tenant(server, "acme")
    users = [f"u{number:05}" for number in range(10_000)]
    internal(server, users, {"n": 1})
    internal(server, users[:5000], {"n": 1}, acme)
    others = broadcast(server, "T", "M", key=acme)
    nid = broadcast(server, "T", "M", data={"n": 2})
    while not 0 < len(count_having(server, nid)) < len(users):
        assert len(count_having(server, nid)) < len(users), "it was over before it could be killed"
    server.kill()
    server.start()
    async with listening(server, hub_path("u09999")) as client:
        assert [frame["payload"] for frame in await client.frames(2)] == [{"n": 1}, {"n": 2}]
    async with listening(server, hub_path("later")) as client:
        internal(server, ["later"], {"n": 3})
        assert (await client.frame())["payload"] == {"n": 3}
    await asyncio.to_thread(
        wait_until, lambda: len(count_having(server, nid)) == len(users), "all having it", 90
    )
    await asyncio.to_thread(
        wait_until,
        lambda: (
            b'queue="broadcasts"} 0.0'
            in server.request("GET", "/metrics", headers={"Accept": "text/plain"}).body
        ),
        "the broadcast being finished",
        60,
    )
    assert count_having(server, nid) == Counter(users)
    assert count_having(server, others, acme) == Counter(users[:5000])


async def test_offline_connected_and_joining_users_have_it_once(server: RunningServer) -> None:
    """On every kind of screen; and other tenants see nothing of it."""
    acme = add_tenant(server, "acme")
    internal(server, ["offline", "bob"], {"n": 0})
    internal(server, ["alice"], {"n": 0}, acme)
    async with SocketClient(server) as screen, listening(server, hub_path("alice", tenant="acme")) as other:
        await screen.join("alice")
        await other.frame()
        broadcast(server, "T", "for all")
        [document] = await screen.next("notification")
        assert document["content"] == "for all"
        async with SocketClient(server) as joining:
            assert [each["content"] for each in await joining.join("bob")][-1:] == ["for all"]
        internal(server, ["alice"], {"n": 1}, acme)
        assert (await other.frame())["payload"] == {"n": 1}
        assert len(await screen.content()) == 1
    async with listening(server, hub_path("offline")) as client:
        assert (await client.frames(2))[1]["payload"] == {"title": "T", "content": "for all"}
        internal(server, ["offline"], {"n": 2})
        assert (await client.frame())["payload"] == {"n": 2}
