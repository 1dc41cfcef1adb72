"""Whatever happened in between (offline, slow, another device, another dialect, another node), after a sync a client
has exactly what is in the inbox. And who lost nothing has it without one, as zulip's `verify_action` asks."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from server.conformance.model import Fields, InboxModel
from server.grants import DEFAULT_TENANT
from server.messages import Document
from server.store.mongo import MongoStore
from server.store.mongo_revs import StoredRevs
from tests.support.core import Core, core_on, publication
from tests.support.recording import Message, RecordingConnection
from tests.support.stores import Place, whole_inbox

Run = Callable[[Coroutine[Any, Any, Any]], Any]

FINE, LOSSY, LATE = "fine", "lossy", "late"
"""What becomes of the pushes of a client: they are read, they get lost, or they are read some time later."""

AHEAD_MS = 400.0
"""Of the revs of one node to those of the other: more than they differ by, but for the moments after a start."""

client = st.integers(0, 2)
some = st.lists(st.integers(0, 12), max_size=4)


class Device:
    """A client of dialect 2 that comes and goes."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.model = InboxModel()
        self.connection: RecordingConnection | None = None
        self.mood = FINE
        self.late: list[Message] = []
        self.is_whole = False
        """Whether it has been told everything since it was last up to date."""
        self._ids = itertools.count()

    @property
    def is_here(self) -> bool:
        return self.connection is not None

    async def come(self, core: Core) -> None:
        """Join, from where it was."""
        self.connection = core.connect()
        since = {} if self.model.since is None else {"since": self.model.since}
        await self.ask("join", {"v": 2, "token": self.token, **since})
        await self.page()
        self.is_whole = self.mood == FINE and not self.late

    def go(self) -> None:
        assert self.connection is not None
        self.connection.go()
        self.connection = None
        self.is_whole = False

    async def sync(self) -> None:
        await self.ask("sync", {"since": self.model.since})
        await self.page()
        self.is_whole = self.mood == FINE and not self.late

    async def page(self) -> None:
        """Read all there is, if it has to."""
        before: str | None = None
        while self.model.must_page:
            page = await self.ask("content", {"before": before, "limit": 3})
            before = page["documents"][-1]["_id"] if page["documents"] else None

    async def ask(self, name: str, data: Fields) -> Fields:
        """The data of the last frame that answers a command."""
        assert self.connection is not None and self.connection.session is not None
        id_ = next(self._ids)
        waiting = self.connection.session.receive(json.dumps({"name": name, "id": id_, "data": data}))
        assert not inspect.iscoroutine(waiting)
        while True:
            message = await self.connection.next()
            if message.beside.get("id") != id_:
                self.hear(message)
                continue
            assert message.name != "error", message
            self.model.hear(message.name, message.data)
            if not message.data.get("more"):
                fields: Fields = message.data
                return fields

    def pump(self) -> None:
        """Read what has come."""
        if self.connection is not None:
            for message in self.connection.received():
                self.hear(message)

    def hear(self, message: Message) -> None:
        """A push."""
        if self.mood == FINE:
            self.model.hear(message.name, message.data)
            return
        self.is_whole = False
        if self.mood == LATE:
            self.late.append(message)

    def hear_late(self, order: Sequence[int]) -> None:
        """What was late comes now, in any order."""
        for number in order:
            if self.late:
                message = self.late.pop(number % len(self.late))
                self.model.hear(message.name, message.data)


class SyncMachine(RuleBasedStateMachine):
    """Three devices of dialect 2 and a classic one, of one user, on the nodes of a cluster."""

    def __init__(self, cores: Sequence[Core], run: Run) -> None:
        super().__init__()
        self.cores, self.run = cores, run

    @initialize()
    def start(self) -> None:
        self.user = f"user-{uuid4().hex}"
        self.room = (DEFAULT_TENANT, self.user)
        token, _ = self.cores[0].tokens.make(DEFAULT_TENANT, self.user, "", 3600)
        self.devices = [Device(token) for _ in range(3)]
        self.classic = self.cores[0].connect()
        self.run(self._welcome_classic(token))
        self.made: list[Document] = []

    async def _welcome_classic(self, token: str) -> None:
        self._classic_says("join", {"token": token})
        while (await self.classic.next()).name != "count":
            pass

    def _classic_says(self, name: str, data: Any) -> None:
        assert self.classic.session is not None
        self.classic.session.receive(json.dumps({"name": name, "data": data}))

    def core_of(self, number: int) -> Core:
        return self.cores[number % len(self.cores)]

    def some_ids(self, numbers: Sequence[int]) -> list[str]:
        return [self.made[number % len(self.made)].id for number in numbers] if self.made else []

    def deleted_ids(self, numbers: Sequence[int]) -> list[str]:
        kept = {each.id for each in self.inbox()}
        deleted = [each.id for each in self.made if each.id not in kept]
        return [deleted[number % len(deleted)] for number in numbers] if deleted else []

    def inbox(self) -> list[Document]:
        """All of it, newest first."""
        found: list[Document] = self.run(whole_inbox(self.cores[0].store, self.user, DEFAULT_TENANT))  # type: ignore[arg-type]
        return found

    async def _settle(self) -> None:
        """Return when every push has been handed over."""
        for core in self.cores:
            await core.backplane.flushed()
        for device in self.devices:
            device.pump()

    def is_told(self, core: Core) -> None:
        """Something was changed by way of this node: the others' clients hear nothing of it."""
        self.run(self._settle())
        for number, device in enumerate(self.devices):
            if self.core_of(number) is not core:
                device.is_whole = False

    def check(self, device: Device) -> None:
        """What it has is what there is."""
        inbox = self.inbox()
        assert device.model.inbox == {each.id: each.seen for each in inbox}
        revs = {id_: each["rev"] for id_, each in device.model.documents.items() if not each["delete"]}
        assert all(revs[each.id] <= f"{each.rev:016x}" for each in inbox)

    # -- what happens ----------------------------------------------------------------------------------------
    @rule(number=client, type_=st.sampled_from(["", "x"]))
    def notify(self, number: int, type_: str) -> None:
        core = self.core_of(number)
        stored = self.run(core.notifier.notify(publication(self.user, type=type_)))
        self.made += stored.documents
        self.is_told(core)

    @rule(count=st.integers(1, 4))
    def store_untold(self, count: int) -> None:
        """By a node that ends before it has told anybody."""
        self.made += self.run(self.cores[-1].fill(self.user, count))
        for device in self.devices:
            device.is_whole = False

    @rule(number=client, name=st.sampled_from(["seen", "unseen", "delete", "restore"]), numbers=some)
    def change(self, number: int, name: str, numbers: list[int]) -> None:
        device = self.devices[number]
        if device.is_here:
            ids = self.deleted_ids(numbers) if name == "restore" else self.some_ids(numbers)
            answer = self.run(device.ask(name, {"ids": ids}))
            assert (answer["rev"] is None) == (not answer["ids"])
            self.is_told(self.core_of(number))

    @rule(number=client, upto=st.none() | st.integers(0, 12))
    def see_all(self, number: int, upto: int | None) -> None:
        device = self.devices[number]
        if not device.is_here:
            return
        data: Fields = {"all": True}
        if upto is not None and self.made:
            data["upto"] = f"{self.made[upto % len(self.made)].rev:016x}"
        answer = self.run(device.ask("seen", data))
        unseen = [each for each in self.inbox() if not each.seen]
        assert not [each for each in unseen if upto is None or f"{each.rev:016x}" <= answer["upto"]]
        self.is_told(self.core_of(number))

    @rule(name=st.sampled_from(["seen", "delete"]), numbers=some)
    def change_classic(self, name: str, numbers: list[int]) -> None:
        """By a client of the classic dialect, which says what it sees then."""
        self.run(self._ask_classic(name, {"ids": self.some_ids(numbers)}))
        self.is_told(self.cores[0])

    @rule()
    def see_all_classic(self) -> None:
        self.run(self._ask_classic("seen", {"all": True}))
        self.is_told(self.cores[0])

    async def _ask_classic(self, name: str, data: Any) -> None:
        """Return when that is carried out."""
        self._classic_says(name, data)
        self._classic_says("no such command", None)
        while (message := await self.classic.next()).name != "error":
            pass
        assert message.data["field"] == "name"

    @rule(number=client)
    def come_or_go(self, number: int) -> None:
        device = self.devices[number]
        if device.is_here:
            device.go()
        else:
            self.run(device.come(self.core_of(number)))
            self.check_if_quiet(device)

    @rule(number=client, mood=st.sampled_from([FINE, LOSSY, LATE]))
    def turn(self, number: int, mood: str) -> None:
        self.devices[number].mood = mood

    @rule(number=client, order=st.lists(st.integers(0, 5), max_size=5))
    def hear_late(self, number: int, order: list[int]) -> None:
        self.devices[number].hear_late(order)

    @rule(number=client)
    def sync(self, number: int) -> None:
        device = self.devices[number]
        if device.is_here:
            self.run(device.sync())
            self.check_if_quiet(device)

    @rule(number=client)
    def refresh(self, number: int) -> None:
        """The server tells unasked how far the client is."""
        device = self.devices[number]
        if device.connection is None:
            return
        conversation: Any = device.connection.session._conversation  # type: ignore[union-attr]
        mood, device.mood = device.mood, FINE
        self.run(self._refresh(device, conversation))
        self.check_if_quiet(device)
        device.mood = mood

    async def _refresh(self, device: Device, conversation: Any) -> None:
        conversation.line.do_soon(conversation.refresh)
        await device.ask("counts", {})

    def check_if_quiet(self, device: Device) -> None:
        """Nothing is under way: it is to have everything."""
        self.check(device)
        counts = self.run(device.ask("counts", {}))
        inbox = self.inbox()
        assert (counts["unseen"], counts["total"]) == (sum(not each.seen for each in inbox), len(inbox))

    @invariant()
    def who_lost_nothing_has_everything(self) -> None:
        for device in getattr(self, "devices", []):
            if device.is_here and device.is_whole:
                self.check(device)

    def teardown(self) -> None:
        for device in getattr(self, "devices", []):
            if not device.is_here:
                self.run(device.come(self.cores[0]))
            self.run(device.sync())
            self.check(device)
            device.go()
        if hasattr(self, "classic"):
            self.classic.go()


def _run_ahead(revs: StoredRevs, ahead_ms: float) -> None:
    look_at_clock = revs._look_at_clock

    async def look_ahead() -> None:
        await look_at_clock()
        revs._ahead_ms += ahead_ms

    revs._look_at_clock = look_ahead  # type: ignore[method-assign]


async def _open(place: Place, stack: AsyncExitStack) -> list[Core]:
    """One node; two where a store can be shared, of which one takes MongoDB's clock for ahead of what it shows."""
    cores = []
    for number in range(2 if place.is_shared else 1):
        store = place.store()
        if isinstance(store, MongoStore):
            _run_ahead(store._revs, number * AHEAD_MS)
        await store.open()
        stack.push_async_callback(store.close)
        core = await stack.enter_async_context(core_on(store))
        # Else no run of the machine would be long enough for a second chunk.
        core.services.sync.chunk_documents = 3
        cores.append(core)
    return cores


@pytest.mark.parametrize("examples", [40], ids=["some"])
def test_after_a_sync_a_client_has_exactly_the_inbox(place: Place, examples: int) -> None:
    """Several devices, both dialects, pushes that get lost or come late; over each store."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        cores = runner.run(_open(place, stack))
        try:
            run_state_machine_as_test(
                lambda: SyncMachine(cores, runner.run),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
