"""Records what a client of dialect 2 is told by a real session, and what it has to have made of it after each step.

The clock is turned by the scenarios, and ids are replaced in their order: the same frames come of it each time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from server.conformance.model import InboxModel
from server.counts import UnseenCounts
from server.errors import StoreUnavailable
from server.messages import Document, Notification, Publication, Recipient
from server.store.sqlite import SQLiteStore
from server.wire_v2 import InboxFrames, delayed_frame
from tests.support.core import ALICE, Core, core_on
from tests.support.recording import Message, RecordingConnection
from tests.support.stores import whole_inbox

FIRST_AT = datetime(2099, 1, 15, 9, 0, 0, tzinfo=UTC)
"""In the future, so that all that happens is recent to the server."""

CHUNK = 3
"""Documents in a chunk, so that there are several."""

ID = re.compile(r"\b(?!0{20})[0-9a-f]{24}\b")


class Clock:
    def __init__(self) -> None:
        self.now = FIRST_AT

    def __call__(self) -> datetime:
        return self.now


class Kept:
    """A retention that a scenario moves."""

    def __init__(self) -> None:
        self.from_: datetime | None = None
        self.oldest: int | None = None

    def floor(self, tenant: str) -> datetime | None:
        return self.from_

    def oldest_since(self, tenant: str) -> int | None:
        return self.oldest


class Recorder:
    """One scenario: a client of alice, what others do meanwhile, and the steps."""

    def __init__(self, core: Core, clock: Clock, kept: Kept, name: str, about: str) -> None:
        self.core, self.clock, self.kept = core, clock, kept
        self.name, self.about = name, about
        self.steps: list[dict[str, Any]] = []
        self.model = InboxModel()
        self.connection: RecordingConnection | None = None
        self._is_new = True
        self.ticket = ""
        self._id = 0
        self._pushed: list[dict[str, Any]] = []
        # Later than the tenant, which began by the clock of the store.
        voided_at = core.tenants.voided_at("default", "alice")
        self._token, _ = core.tokens.make("default", "alice", "", 3600, voided_at)
        self._documents: list[Document] = []
        self._counting = UnseenCounts(core.store, core.rooms, core.backplane)  # type: ignore[arg-type]  # as in `core_on`

    # -- what happens elsewhere ------------------------------------------------------------------------------
    def tick(self) -> None:
        self.clock.now += timedelta(seconds=1)

    async def notify(self, title: str, **fields: Any) -> str:
        """Something new; its `_id`."""
        self.tick()
        number = len(self._documents)
        notification = Notification(
            f"{0x67F0 + number:024x}", "default", self.clock(), f"Text of {title}", title=title, **fields
        )
        stored = await self.core.notifier.notify(Publication(notification, (Recipient("alice"),)))
        await self.core.backplane.flushed()
        self._documents += stored.documents
        return stored.documents[0].id

    async def change(self, verb: str, *ids: str) -> None:
        """By another device."""
        self.tick()
        await getattr(self.core.inbox, verb)(ALICE, ids)
        await self.core.backplane.flushed()

    async def see_all(self, upto: int | None = None) -> None:
        self.tick()
        await self.core.inbox.mark_seen_up_to(ALICE, upto)
        await self.core.backplane.flushed()

    async def see_all_in_part(self) -> None:
        """The store goes away after the first document of several, and comes back."""
        self.tick()
        with mock.patch("server.inbox.CHANGES_PER_BATCH", 1):
            gate = self.core.store.hold("mark_all_seen")
            marking = asyncio.create_task(self.core.inbox.mark_seen_up_to(ALICE, None))
            await gate.reached()
            self.core.store.goes_away()
            gate.open()
            with contextlib.suppress(StoreUnavailable):
                await marking
        self.core.store.is_back()
        await self.core.backplane.flushed()

    async def count(self) -> None:
        """The counts are told."""
        await self._counting.tell(ALICE[0], [ALICE[1]])
        await self.core.backplane.flushed()

    def instant_of(self, document: dict[str, Any]) -> datetime:
        return datetime.fromisoformat(document["createdAt"])

    def rev_of(self, id_: str) -> int:
        return int(self.model.documents[id_]["rev"], 16)

    # -- the client ------------------------------------------------------------------------------------------
    def connect(self, *, is_slow: bool = False) -> None:
        """A new connection; the one before is lost with all that was under way."""
        if self.connection is not None:
            self.disconnect()
        self.connection = self.core.connect(RecordingConnection(is_slow=is_slow))
        self._pushed.clear()

    def disconnect(self) -> None:
        """The connection is lost."""
        assert self.connection is not None
        self.connection.go()
        self._is_new = True

    @property
    def connected(self) -> RecordingConnection:
        assert self.connection is not None
        return self.connection

    def bye(self) -> dict[str, Any]:
        """What a server says that ends."""
        frame: dict[str, Any] = json.loads(InboxFrames.bye(1500).text)
        return frame

    def delayed(self) -> dict[str, Any]:
        """What a join is told that waits for the store."""
        frame: dict[str, Any] = json.loads(delayed_frame().text)
        return frame

    def say_by(self, connection: RecordingConnection, name: str, data: Any) -> None:
        """Another device of alice joins."""
        assert connection.session is not None
        message = {"name": name, "id": "w", "data": {**data, "token": self._token}}
        connection.session.receive(json.dumps(message))

    @staticmethod
    def frames_of(connection: RecordingConnection) -> list[dict[str, Any]]:
        """What another device was told."""
        return [_frame(message) for message in connection.received()]

    def say(self, name: str, data: Any) -> dict[str, Any]:
        """Send a command; it, as it stands in the script."""
        assert self.connection is not None and self.connection.session is not None
        self._id += 1
        shown = {"name": name, "id": self._id, "data": data}
        real = {**data, "token": self._token} if name == "join" and "ticket" not in data else data
        self.connection.session.receive(json.dumps({**shown, "data": real}))
        return {**shown, "data": {**data, "token": "a-token"}} if real is not data else shown

    async def ask(self, note: str, name: str, data: Any, *, is_quiet: bool = True) -> None:
        """A step: a command, with all frames up to the last one that answers it."""
        self.tick()
        sent = self.say(name, data)
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1].get("id") != self._id or frames[-1]["data"].get("more"):
            frames.append(await self._next())
        await self.step(note, frames, sent=sent, is_quiet=is_quiet)

    async def join(self, note: str, *, is_quiet: bool = True) -> None:
        """From where the client is."""
        since = {} if self.model.since is None else {"since": self.model.since}
        await self.ask(note, "join", {"v": 2, **since}, is_quiet=is_quiet)

    async def hear(self, note: str, *, is_quiet: bool = True) -> None:
        """A step: all that was pushed."""
        await self.step(note, await self.pushes(), is_quiet=is_quiet)

    async def pushes(self) -> list[dict[str, Any]]:
        """What was pushed, for later."""
        assert self.connection is not None
        return self.frames_of(self.connection)

    async def read(self) -> list[dict[str, Any]]:
        """What a slow client finds when it reads next."""
        assert self.connection is not None
        return [_frame(message) for message in await self.connection.read()]

    async def _next(self) -> dict[str, Any]:
        assert self.connection is not None
        return _frame(await self.connection.next())

    async def step(
        self,
        note: str,
        frames: Sequence[dict[str, Any]],
        *,
        sent: dict[str, Any] | None = None,
        is_quiet: bool = True,
    ) -> None:
        """`is_quiet`: the client has been told all, and has to have what is in the inbox."""
        for frame in frames:
            self.model.hear(frame["name"], frame["data"])
            self.ticket = frame["data"].get("ticket") or self.ticket
        if is_quiet:
            await self._check_truth(note)
        step: dict[str, Any] = {"scenario": self.name, "step": len(self.steps) + 1, "note": note}
        if not self.steps:
            step["about"] = self.about
        if self._is_new:
            step["connection"] = "new"
            self._is_new = False
        if sent is not None:
            step["sent"] = sent
        self.steps.append(step | {"frames": list(frames), "state": self._state()})

    async def _check_truth(self, note: str) -> None:
        truth = await whole_inbox(self.core.store, "alice", "default")  # type: ignore[arg-type]
        floor = self.kept.from_
        expected = {each.id: each.seen for each in truth if floor is None or each.created_at >= floor}
        if self.model.inbox != expected:
            raise AssertionError(f"{self.name}, {note}: {self.model.inbox} is not {expected}")

    def _state(self) -> dict[str, Any]:
        model = self.model
        must = [name for name, must in (("page", model.must_page), ("sync", model.must_sync)) if must]
        return {
            "inbox": [[id_, seen] for id_, seen in model.inbox.items()],
            "since": model.since,
            "counts": model.counts,
            "must": must,
        }

    def close(self) -> None:
        if self.connection is not None:
            self.connection.go()
        self._counting.close()


def _frame(message: Message) -> dict[str, Any]:
    return {"name": message.name, **message.beside, "data": message.data}


# -- the same each time --------------------------------------------------------------------------------------


def replaced(lines: list[str], epoch: str) -> list[str]:
    """With ids that follow from their order (that of their making), one epoch, and no tickets."""
    lines = [line.replace(epoch, "inbox-1") for line in lines]
    found = sorted(set(ID.findall("\n".join(lines))))
    ids = {each: f"{0x6750_0000_0000_0000_0000_0001 + number:024x}" for number, each in enumerate(found)}

    def replace(line: str) -> str:
        line = ID.sub(lambda match: ids[match[0]], line)
        return re.sub(r'"ticket":"[^"]+"', '"ticket":"a-ticket"', line)

    return [replace(line) for line in lines]


@asynccontextmanager
async def recorder(name: str, about: str) -> AsyncIterator[Recorder]:
    """With a store of its own."""
    clock, kept = Clock(), Kept()
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder) / "notifications.sqlite3", clock=clock)
        await store.open()
        try:
            async with core_on(store) as core:
                sync = core.services.sync
                sync._retention = kept
                sync.chunk_documents = CHUNK
                recorder = Recorder(core, clock, kept, name, about)
                try:
                    yield recorder
                finally:
                    recorder.close()
        finally:
            await store.close()
