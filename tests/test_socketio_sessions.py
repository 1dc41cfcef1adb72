"""Clients of the Socket.IO door over HTTP, until they are over: what becomes of their requests, of what waits for them,
and of the server's memory of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.affinity import ALONE
from server.limits import Limits
from server.transports import polling
from server.transports.feeds import FeedDoors
from server.transports.origins import Origins
from server.transports.registry import Connections
from server.transports.socketio import SocketIODoor, routes, websocket
from server.transports.socketio.connection import SocketIOConnection
from server.transports.socketio.packets import PING, SEPARATOR
from server.wire import CloseReason, Frame
from tests.support.sockjs_door import CONNECTION_OPTIONS, NO_LIMITS, WAIT_S, RawClient
from tests.support.sockjs_services import identify

GO_AWAY = CloseReason(3000, "Go away!")


class Door:
    """One that is being served, whose clients are strangers: what they are told is sent by the test."""

    def __init__(self, **options: Any) -> None:
        self._connections = Connections(replace(CONNECTION_OPTIONS, **options), Limits(NO_LIMITS))
        nothing = cast(Any, None)  # nobody joins
        doors = FeedDoors(self._connections, nothing, nothing, nothing, identify, Origins(("*",)), ALONE)
        self._door = SocketIODoor(doors)
        self._server = HTTPServer(Application(routes(self._door)))
        [listening] = bind_sockets(0, "127.0.0.1")
        self._server.add_sockets([listening])
        self.port: int = listening.getsockname()[1]

    async def stop(self) -> None:
        self._connections.stop()
        self._server.stop()
        await self._server.close_all_connections()

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[RawClient]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield RawClient(reader, writer, "/socket.io/")
        finally:
            writer.close()

    async def request(self, method: str, query: str, body: bytes = b"") -> tuple[int, str]:
        async with self.raw() as client:
            await client.write_request(method, f"?EIO=4&transport=polling{query}", body)
            status, _, answer = await client.read_answer()
            return status, answer.decode()

    async def come(self) -> SocketIOConnection:
        """A client that has just come over HTTP."""
        status, packet = await self.request("GET", "")
        assert status == 200
        client = self._door.find(json.loads(packet[1:])["sid"])
        assert client is not None
        return client

    async def poll(self, client: SocketIOConnection) -> str:
        status, answer = await self.request("GET", f"&sid={client.sid}")
        assert status == 200
        return answer

    @contextlib.asynccontextmanager
    async def waiting(self, client: SocketIOConnection) -> AsyncIterator[asyncio.Task[str]]:
        """A request that waits."""
        task = asyncio.create_task(self.poll(client))
        while client._poll is None:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.01)
        try:
            yield task
        finally:
            task.cancel()

    def websocket(
        self, client: SocketIOConnection
    ) -> contextlib.AbstractAsyncContextManager[ClientConnection]:
        """One by which the client would like to go on."""
        return connect(f"ws://127.0.0.1:{self.port}/socket.io/?EIO=4&transport=websocket&sid={client.sid}")

    async def gone(self, client: SocketIOConnection) -> None:
        """Return when the server has forgotten this client."""
        async with asyncio.timeout(WAIT_S):
            while self._door.find(client.sid) is not None:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Door]:
    door = Door(**options)
    try:
        yield door
    finally:
        await door.stop()


async def go_over(socket: ClientConnection) -> None:
    await socket.send("2probe")
    assert await asyncio.wait_for(socket.recv(), WAIT_S) == "3probe"
    await socket.send("5")


async def told(socket: ClientConnection) -> str:
    return str(await asyncio.wait_for(socket.recv(), WAIT_S))


# -- going over to WebSocket ---------------------------------------------------------------------------------
async def test_a_request_that_waits_ends_when_a_websocket_is_tried_out() -> None:
    """And so does each that comes meanwhile: the client goes over when none is open any more."""
    async with serving() as door:
        client = await door.come()
        async with door.waiting(client) as waiting, door.websocket(client) as socket:
            await socket.send("2probe")
            assert await told(socket) == "3probe"
            assert await asyncio.wait_for(waiting, WAIT_S) == "6"
            assert await door.poll(client) == "6"


async def test_a_request_that_waits_ends_when_its_client_goes_over_untried() -> None:
    """Nobody would ever answer it."""
    async with serving() as door:
        client = await door.come()
        async with door.waiting(client) as waiting, door.websocket(client) as socket:
            await socket.send("5")
            assert await asyncio.wait_for(waiting, WAIT_S) == "6"
            client.send(Frame('["n",1]'))
            assert await told(socket) == '42["n",1]'


async def test_a_websocket_that_is_tried_out_is_a_sign_of_life() -> None:
    """So that a client is not given up in the moment in which it goes over; a binary message is one, too."""
    async with serving() as door:
        client = await door.come()
        async with door.websocket(client) as socket:
            for packet, answer in (("2probe", "3probe"), ("5", None), (b"binary", None)):
                before = client.last_alive_at
                await socket.send(packet)
                if answer is not None:
                    assert await told(socket) == answer
                async with asyncio.timeout(WAIT_S):
                    while client.last_alive_at == before:  # noqa: ASYNC110  # nobody is told
                        await asyncio.sleep(0.01)


async def test_a_websocket_is_not_tried_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the client goes on over HTTP; one that has gone over is not meant."""
    monkeypatch.setattr(websocket, "PROBE_WITHIN_S", 0.2)
    async with serving() as door:
        client = await door.come()
        async with door.websocket(client) as tried:
            with pytest.raises(ConnectionClosed):
                await told(tried)
        async with door.waiting(client) as waiting:
            client.send(Frame('["n",1]'))
            assert await waiting == '42["n",1]'
        async with door.websocket(client) as used:
            await go_over(used)
            await asyncio.sleep(0.6)
            client.send(Frame('["n",2]'))
            assert await told(used) == '42["n",2]'


async def test_of_who_has_gone_over_no_request_is_expected() -> None:
    async with serving(disconnect_delay_s=0.2) as door:
        client = await door.come()
        async with door.websocket(client) as socket:
            await go_over(socket)
            await door.gone(client)
            await asyncio.sleep(0.6)
            client.send(Frame('["n",1]'))
            assert await told(socket) == '42["n",1]'


async def test_who_waits_until_all_has_left_goes_on_over_websocket() -> None:
    """What waited for a request comes by it, in its order."""
    async with serving() as door:
        client = await door.come()
        frames = [Frame(f'["n",{number},"{"x" * 1000}"]') for number in range(100)]
        for frame in frames:
            client.send(frame)
        drained = asyncio.create_task(client.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        async with door.websocket(client) as socket:
            await go_over(socket)
            await asyncio.wait_for(drained, WAIT_S)
            assert [await told(socket) for _ in frames] == [f"42{frame.text}" for frame in frames]


async def test_a_client_that_is_closed_while_a_websocket_is_tried_out() -> None:
    """It does not go over any more, and hears over HTTP why."""
    async with serving() as door:
        client = await door.come()
        async with door.websocket(client) as socket:
            await socket.send("2probe")
            assert await told(socket) == "3probe"
            client.close(CloseReason(3500, "no more"))
            await socket.send("5")
            with pytest.raises(ConnectionClosed):
                await told(socket)
        assert json.loads((await door.poll(client))[2:])["message"] == "no more"
        assert await door.poll(client) == "1"
        await door.gone(client)


# -- what waits ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["answered", "closed"])
async def test_who_waits_until_all_has_left_waits_no_longer(end: str) -> None:
    async with serving() as door:
        client = await door.come()
        client.send(Frame('["n",1]'))
        drained = asyncio.create_task(client.drained())
        await asyncio.sleep(0)
        if end == "answered":
            assert await door.poll(client) == '42["n",1]'
        else:
            client.close(GO_AWAY)
        await asyncio.wait_for(drained, WAIT_S)


async def test_a_request_while_an_answer_is_on_its_way_ends_the_session() -> None:
    async with serving() as door, door.raw() as slow:
        client = await door.come()
        client.send(Frame(json.dumps(["n", "x" * 20_000_000])))
        await slow.write_request("GET", f"?EIO=4&transport=polling&sid={client.sid}")
        await slow.read_head()
        assert await door.poll(client) == "1"
        assert client.is_closed


async def test_a_ping_that_could_not_be_asked_comes_once() -> None:
    """With the next answer, and with none after it."""
    async with serving() as door:
        client = await door.come()
        client.heartbeat(time.monotonic())
        client.send(Frame('["n",1]'))
        assert (await door.poll(client)).split(SEPARATOR) == ['42["n",1]', PING]
        client.send(Frame('["n",2]'))
        assert await door.poll(client) == '42["n",2]'


# -- the end -------------------------------------------------------------------------------------------------
AWAY = ("stays-away", "stays-away-later", "never-told", "half-told")
"""Ends that are seen by no request coming."""


@pytest.mark.parametrize("end", [*AWAY, "cut-off", "says-so", "told-so", "told-so-while-it-waits"])
async def test_nothing_is_left_of_a_client(end: str) -> None:
    async with serving(disconnect_delay_s=0.2 if end in AWAY else 10 * WAIT_S) as door:
        client = await door.come()
        if end == "stays-away-later":
            async with door.waiting(client) as waiting:
                client.send(Frame('["n",1]'))
                await waiting
        elif end == "cut-off":
            async with door.raw() as cut:
                await cut.write_request("GET", f"?EIO=4&transport=polling&sid={client.sid}")
                while client._poll is None:  # noqa: ASYNC110  # nobody is told
                    await asyncio.sleep(0.01)
                await cut.reset()
        elif end == "says-so":
            async with door.waiting(client) as waiting:
                assert await door.request("POST", f"&sid={client.sid}", b"1") == (200, "ok")
                assert await asyncio.wait_for(waiting, WAIT_S) == "1"
        elif end == "told-so":
            client.close(GO_AWAY)
            assert await door.poll(client) == "1"
        elif end == "told-so-while-it-waits":
            async with door.waiting(client) as waiting:
                client.close(GO_AWAY)
                assert await waiting == "1"
        elif end == "never-told":
            client.close(GO_AWAY)
        elif end == "half-told":
            async with door.waiting(client) as waiting:
                client.close(CloseReason(3500, "no more"))
                assert "no more" in await waiting
        await door.gone(client)
        assert client.is_closed
        async with asyncio.timeout(WAIT_S):
            while any("RequestHandler._execute" in repr(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.01)


async def test_clients_without_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "MAX_WITHOUT_REQUEST", 2)
    async with serving() as door:
        first, _ = await door.come(), await door.come()
        assert (await door.request("GET", ""))[0] == 503
        async with door.waiting(first):
            await door.come()
