"""All open connections of a process: what one timer does for them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.config.schema import Limits as LimitSettings
from server.limits import Limits
from server.rooms import Connection
from server.transports.connections import ClientConnection
from server.transports.registry import ConnectionOptions, Connections
from server.wire import NOT_JOINED, SLOW, CloseReason
from tests.support.recording import ELSEWHERE


async def test_heartbeats_go_on_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go by a clock that never does."""
    connections = Connections(ConnectionOptions(heartbeat_s=0.4), Limits(LimitSettings()))
    ticks: asyncio.Queue[float] = asyncio.Queue()
    connections.on_tick.append(ticks.put_nowait)
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() - 3600)
    async with asyncio.timeout(30):
        for _ in range(5):
            await ticks.get()
    connections.stop()


async def test_a_failure_ends_no_heartbeats(caplog: pytest.LogCaptureFixture) -> None:
    """The next tick comes all the same."""
    connections = Connections(ConnectionOptions(heartbeat_s=0.4), Limits(LimitSettings()))
    ticks: asyncio.Queue[float] = asyncio.Queue()

    def fail(at: float) -> None:
        ticks.put_nowait(at)
        raise RuntimeError("broken")

    connections.on_tick.append(fail)
    async with asyncio.timeout(30):
        await ticks.get()
        await ticks.get()
    connections.stop()
    assert "broken" in caplog.text


class Client(ClientConnection):
    """One with which nothing is wrong."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections, "test", ELSEWHERE)
        self.ended: asyncio.Future[CloseReason] = asyncio.get_running_loop().create_future()
        self.queued = 0

    def _queued_bytes(self) -> int:
        return self.queued

    def _written_bytes(self) -> int:
        return 0

    def close(self, reason: CloseReason) -> None:
        if self._end(reason):
            self.ended.set_result(reason)

    def heartbeat(self, now: float) -> None:
        """It answers."""


async def test_who_has_left_is_to_join_again_before_long() -> None:
    """As who has not joined yet; nobody else is sent away."""
    limits = Limits(LimitSettings(join_within_s=0.1))
    connections = Connections(ConnectionOptions(heartbeat_s=0.4), limits)
    ticks: asyncio.Queue[float] = asyncio.Queue()
    connections.on_tick.append(ticks.put_nowait)
    client, session = Client(connections), SimpleNamespace(is_joined=True, closed=lambda: None)
    client.open(lambda _: cast("Any", session))
    for _ in range(16):
        await ticks.get()
    assert not client.is_closed
    session.is_joined = False
    async with asyncio.timeout(30):
        assert await client.ended == NOT_JOINED
    connections.stop()


async def test_a_session_that_closes_its_connection_while_it_is_made_is_told_of_the_end() -> None:
    """It may have joined a room before."""
    connections = Connections(ConnectionOptions(), Limits(LimitSettings()))
    client, told = Client(connections), []
    session = SimpleNamespace(is_joined=True, closed=lambda: told.append("closed"))

    def open_session(connection: Connection) -> Any:
        connection.close(NOT_JOINED)
        return session

    client.open(open_session)
    assert (told, client.is_joined, connections.count) == (["closed"], False, 0)
    connections.stop()


async def test_a_large_frame_that_has_left_makes_no_room_for_others() -> None:
    """What is queued next may be none that the bound is reckoned from, as a pong."""
    options = ConnectionOptions()
    connections = Connections(options, Limits(LimitSettings()))
    client = Client(connections)
    client.open(lambda _: cast("Any", SimpleNamespace(is_joined=True, closed=lambda: None)))
    assert client._admit(10 * options.max_queue_bytes)
    client.check_progress(time.monotonic())
    client.queued = 100
    client._admit(options.max_queue_bytes)
    async with asyncio.timeout(30):
        assert await client.ended == SLOW
    connections.stop()
