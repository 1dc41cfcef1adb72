"""Heartbeats of the SockJS door: who answers stays, who does not is found dead."""

from __future__ import annotations

import asyncio
import time

import pytest

from server.wire import TIMED_OUT
from tests.support.sockjs_door import POLLING, STREAMING, WAIT_S, WEBSOCKETS, frame, serving

HEARTBEAT_S = 0.1


async def test_websocket_has_both_heartbeats() -> None:
    """A SockJS client over WebSocket gets an `h` frame and a ping; a raw one gets pings only."""
    async with serving(heartbeat_s=HEARTBEAT_S) as service:
        async with service.client() as sockjs, service.client() as raw:
            await sockjs.upgrade(WEBSOCKETS["websocket"])
            assert await sockjs.read_until(b"\x89\x00") == b"\x81\x01o\x81\x01h\x89\x00"
            await raw.upgrade(WEBSOCKETS["rawwebsocket"])
            assert await raw.read_until(b"\x89\x00") == b"\x89\x00"


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_a_pong_is_a_sign_of_life(transport: str) -> None:
    """A client that says nothing but answers pings stays."""
    async with serving(heartbeat_s=HEARTBEAT_S) as service, service.websocket(transport):
        session = await service.next_session()
        opened_at = session.connection.last_alive_at
        async with asyncio.timeout(WAIT_S):
            while session.connection.last_alive_at < opened_at + 5 * HEARTBEAT_S:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not session.connection.is_closed


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_a_client_that_answers_no_ping_is_dead(transport: str) -> None:
    """A client that reads everything but answers no ping within two heartbeats is closed as timed out."""
    async with serving(heartbeat_s=HEARTBEAT_S) as service, service.client() as client:
        await client.upgrade(WEBSOCKETS[transport])
        session = await service.next_session()
        assert b"\x89\x00" in await client.read_until(b"\x0b\xc1no sign of life")  # 3009
        assert session.closed_count == 1
        assert service.ends == [(transport, TIMED_OUT)]


@pytest.mark.parametrize("transport", STREAMING)
async def test_an_acknowledged_stream_is_a_sign_of_life(transport: str) -> None:
    """A client whose kernel confirms what was sent stays, though it can say nothing itself."""
    method, suffix = STREAMING[transport]
    async with serving(heartbeat_s=HEARTBEAT_S) as service, service.client() as client:
        await client.write_request(method, service.new_session_path() + suffix)
        session = await service.next_session()
        opened_at = session.connection.last_alive_at
        async with asyncio.timeout(WAIT_S):
            while session.connection.last_alive_at < opened_at + 5 * HEARTBEAT_S:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not session.connection.is_closed


@pytest.mark.parametrize("transport", STREAMING)
async def test_a_stream_that_nobody_acknowledges_is_dead(transport: str) -> None:
    """A client that confirms nothing for two heartbeats is closed as timed out, though nothing waits in its queue."""
    method, suffix = STREAMING[transport]
    async with serving(heartbeat_s=3 * HEARTBEAT_S) as service:
        path = service.new_session_path()
        async with service.client(receive_buffer_bytes=4096) as client:
            await client.write_request(method, path + suffix)
            session = await service.next_session()
            session.connection.send(frame(1, filler=60_000))  # more than fits there, less than fits here
            await session.connection.drained()
            await asyncio.wait_for(session.over.wait(), WAIT_S)
            assert service.ends == [(transport, TIMED_OUT)]
        assert (await service.request("POST", path + "/xhr"))[2] == b'c[3009,"no sign of life"]\n'


@pytest.mark.parametrize("transport", POLLING)
async def test_each_poll_is_a_sign_of_life(transport: str) -> None:
    """A waiting poll is answered by `h`; who polls again stays, who does not is gone."""
    method, suffix = POLLING[transport]
    async with serving(heartbeat_s=HEARTBEAT_S, disconnect_delay_s=2.0) as service:
        path = service.new_session_path()
        await service.request(method, path + suffix)
        session = await service.next_session()
        for _ in range(5):
            before = session.connection.last_alive_at
            assert b"h" in (await service.request(method, path + suffix))[2]
            assert session.connection.last_alive_at > before
            assert not session.connection.is_closed
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert service.ends == [(transport, None)]


async def test_a_server_that_stood_still_kills_nobody() -> None:
    """Who was not asked cannot have failed to answer: after a long standstill of the server its clients live on."""
    async with serving(heartbeat_s=HEARTBEAT_S) as service, service.websocket("websocket") as client:
        session = await service.next_session()
        for _ in range(3):
            time.sleep(5 * HEARTBEAT_S)
            while await asyncio.wait_for(client.recv(), WAIT_S) != "h":
                pass
        assert not session.connection.is_closed


async def test_heartbeats_are_spread() -> None:
    """Connections that come at once are not all looked at in the same moment, nor when they have just come."""
    async with serving(heartbeat_s=25.0) as service:
        for _ in range(48):
            await service.request("POST", service.new_session_path() + "/xhr")
        sizes = [len(part) for part in service.connections._slices]
        assert len(sizes) > 20
        assert sum(sizes) == 48
        assert max(sizes) <= 4
        soon = [(service.connections._tick_count + tick) % len(sizes) for tick in range(1, len(sizes) // 2)]
        assert sum(sizes[number] for number in soon) == 0
