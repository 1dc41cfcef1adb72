"""All open connections of a process: what one timer does for them."""

from __future__ import annotations

import asyncio
import time

import pytest

from server.config.schema import Limits as LimitSettings
from server.limits import Limits
from server.transports.registry import ConnectionOptions, Connections


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
