"""A server is restarted (SIGTERM) while backends publish and clients listen: nothing is lost, nothing comes twice, and
everybody has the inbox in the end."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from server.conformance.model import InboxModel
from server.grants import DEFAULT_TENANT
from server.tasks import Tasks
from tests.support.client_v2 import ClientV2, client_v2
from tests.support.feeds import SETTINGS
from tests.support.running_server import RunningServer
from tests.support.stores import MongoPlace, fresh_place, whole_inbox

USERS = ["alice", "bob", "carol"]
PUBLISHERS = 6
BETWEEN = 60
"""Notifications that are acknowledged between two restarts, at least."""


class Publisher:
    """A backend that keeps its connection, and asks again, with the same key, until it is answered 2xx."""

    def __init__(self, server: RunningServer, number: int, acknowledged: threading.Semaphore) -> None:
        self._server = server
        self._number = number
        self._acknowledged = acknowledged
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._connection: http.client.HTTPConnection | None = None
        self.sent: dict[str, list[str]] = {}
        """By content: the users of what was acknowledged."""
        self.refusals: Counter[int] = Counter()

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Return when the last one is acknowledged."""
        self._is_over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for count in itertools.count():
            if self._is_over.is_set():
                self._disconnect()
                return
            content = f"{self._number}/{count}"
            users = USERS if count % 3 == 0 else [USERS[count % 3]]
            key = uuid.uuid4().hex
            while not self._post(content, users, key):
                self._is_over.wait(0.02)
            self.sent[content] = users
            self._acknowledged.release()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, content: str, users: list[str], key: str) -> bool:
        body = json.dumps({"users": [{"id": user} for user in users], "content": content})
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=20)
            self._connection.request("POST", "/notify", body, headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self._disconnect()
            return False
        if answer.status != 200:
            self.refusals[answer.status] += 1
        return answer.status == 200


class Follower:
    """A client that comes back whenever it is disconnected, as early as it is told."""

    def __init__(self, server: RunningServer, user: str) -> None:
        self._server = server
        self.user = user
        self.model = InboxModel()
        self.farewells: list[float] = []
        """What it was told to wait for, in seconds."""

    async def run(self) -> None:
        while True:
            try:
                async with client_v2(self._server, self.user, model=self.model) as client:
                    await self._listen(client)
            except (OSError, InvalidHandshake, TimeoutError):
                await asyncio.sleep(0.02)

    async def _listen(self, client: ClientV2) -> None:
        try:
            while True:
                frame = await client.frame()
                if frame["name"] == "bye":
                    self.farewells.append(frame["data"]["retry_ms"] / 1000)
        except ConnectionClosed:
            pass


@contextmanager
def settings(kind: str, request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, str], object]]:
    with fresh_place(kind, request) as place:
        chosen = dict(SETTINGS)
        if isinstance(place, MongoPlace):
            chosen |= {"NOTIFY_MONGODB_URL": place.url, "NOTIFY_MONGODB_DB": place.db}
        else:
            chosen |= {"NOTIFY_APPLICATION_DATA": str(place.path.parent)}  # type: ignore[attr-defined]
        yield chosen, place


@pytest.mark.parametrize("kind", ["sqlite", "mongo-replica-set"])
async def test_restarted_under_load(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each acknowledged notification is there exactly once, for each of its users; clients that were told to come back
    have the inbox; the server ends with 0, and nothing alarming in its log."""
    with settings(kind, request) as (chosen, place):
        server = RunningServer(tmp_path, **chosen)
        await asyncio.to_thread(server.start)
        acknowledged = threading.Semaphore(0)
        publishers = [Publisher(server, number, acknowledged) for number in range(PUBLISHERS)]
        followers = [Follower(server, user) for user in USERS]
        following = Tasks()
        for follower in followers:
            following.start(follower.run(), follower.user)
        for publisher in publishers:
            publisher.start()
        for _ in range(3):
            await asyncio.to_thread(wait_for, acknowledged, BETWEEN)
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.to_thread(server.start)
        await asyncio.to_thread(wait_for, acknowledged, BETWEEN)
        for publisher in publishers:
            await asyncio.to_thread(publisher.finish)
        await following.cancel()
        for follower in followers:
            async with client_v2(server, follower.user) as fresh:
                async with client_v2(server, follower.user, model=follower.model):
                    assert follower.model.inbox == fresh.model.inbox
                    assert follower.model.counts == fresh.model.counts
            assert follower.farewells
        assert await asyncio.to_thread(server.stop) == 0
        expected = {
            user: Counter(
                content
                for publisher in publishers
                for content, users in publisher.sent.items()
                if user in users
            )
            for user in USERS
        }
        store = place.store()  # type: ignore[attr-defined]
        await store.open()
        for user in USERS:
            found = Counter(
                each.notification.content for each in await whole_inbox(store, user, DEFAULT_TENANT)
            )
            assert found == expected[user]
        await store.close()
        refusals = sum((publisher.refusals for publisher in publishers), Counter[int]())
        assert set(refusals) <= {503}
        assert alarming(server.log) == []


def alarming(log: str) -> list[str]:
    """What an operator would look into. That backends were asked to come again is no such thing."""
    return [
        line
        for line in log.splitlines()
        if any(word in line for word in ("ERROR", "Traceback", "not ended in time", "could not be"))
        and "ERROR tornado.access: 503 POST /notify" not in line
    ]


def wait_for(acknowledged: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert acknowledged.acquire(timeout=60)
