"""Attackers, against the server as people run it: while they are at it, an honest user joins and is notified.

The attackers seem to come through a proxy, so that they are not taken for this machine, which is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.client import SocketClient
from tests.support.running_server import Response, RunningServer

AFAR = {"Via": "1.1 proxy"}
WAIT_S = 30.0
"""How long something may take that is to come: no measure, only the end of a hang."""

Start = Callable[..., RunningServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with these settings of [LIMITS]."""
    with contextlib.ExitStack() as stack:

        def start_server(environment: dict[str, str] | None = None, **limits: str) -> RunningServer:
            settings = {f"NOTIFY_LIMITS_{name.upper()}": value for name, value in limits.items()}
            return stack.enter_context(RunningServer(tmp_path, **settings, **(environment or {})))

        yield start_server


class Honest:
    """A user who is there all the time."""

    def __init__(self, server: RunningServer, client: SocketClient) -> None:
        self._server = server
        self._client = client
        self._count = 0

    async def is_served(self) -> None:
        """They are notified, and get their answers; and so is somebody who joins now."""
        self._count += 1
        content = f"number {self._count}"
        await asyncio.to_thread(self._server.must_notify, "alice", content=content)
        [pushed] = await self._client.next("notification")
        assert pushed["content"] == content
        [newest] = await self._client.content(limit=1)
        assert newest["content"] == content
        async with SocketClient(self._server) as late:
            unseen = await late.join("alice")
            assert [document["content"] for document in unseen][-1] == content


@contextlib.asynccontextmanager
async def honest_user(server: RunningServer) -> AsyncIterator[Honest]:
    async with SocketClient(server) as client:
        await client.join("alice")
        yield Honest(server, client)


async def attacker(server: RunningServer, stack: contextlib.AsyncExitStack) -> ClientConnection:
    """A WebSocket from afar."""
    return await stack.enter_async_context(connect(server.websocket_url, additional_headers=AFAR))


async def end_of(client: ClientConnection) -> tuple[int, str]:
    """The code and the reason with which the server ended the connection."""
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(client.recv(), WAIT_S)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def test_strangers_who_never_join_are_sent_away(start: Start) -> None:
    """All of them, and nobody else."""
    server = start(join_within_s="1")
    async with honest_user(server) as honest, contextlib.AsyncExitStack() as stack:
        strangers = [await attacker(server, stack) for _ in range(100)]
        await honest.is_served()
        ends = await asyncio.gather(*(end_of(stranger) for stranger in strangers))
        assert ends == [(3006, "not_joined")] * 100
        await honest.is_served()


async def test_an_address_that_opens_ever_more_connections(start: Start) -> None:
    """Gets as many as it may; when it gives one up, it may have another."""
    server = start(connections_per_address="20")
    async with honest_user(server) as honest, contextlib.AsyncExitStack() as stack:
        clients = [await attacker(server, stack) for _ in range(20)]
        tries = asyncio.gather(*(attacker(server, stack) for _ in range(50)), return_exceptions=True)
        await honest.is_served()
        for refused in await tries:
            assert isinstance(refused, InvalidStatus)
            assert refused.response.status_code == 429
            assert int(refused.response.headers["Retry-After"]) > 0
        await honest.is_served()
        await clients[0].close()
        await connected_when_there_is_room(server, stack)


async def connected_when_there_is_room(server: RunningServer, stack: contextlib.AsyncExitStack) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(InvalidStatus):
                await attacker(server, stack)
                return


async def test_an_address_that_connects_ever_again(start: Start) -> None:
    """Is let in so often, and then refused."""
    server = start(connects_per_address="20/h")
    async with honest_user(server) as honest:

        async def come_and_go() -> bool:
            try:
                async with connect(server.websocket_url, additional_headers=AFAR):
                    return True
            except InvalidStatus:
                return False

        tries = asyncio.gather(*(come_and_go() for _ in range(50)))
        await honest.is_served()
        assert sum(await tries) == 20
        await honest.is_served()


async def test_bytes_that_drip_in(start: Start) -> None:
    """Half requests, half bodies and half frames hold up nobody."""
    server = start()
    beginnings = [
        b"GET / HTTP/1.1\r\nHost: here\r\nX-Drip: ",
        b"POST /notify HTTP/1.1\r\nHost: here\r\nVia: proxy\r\nContent-Length: 100000\r\n\r\n",
        b"POST /notification/000/a/xhr_send HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n",
        b"GET /notification/websocket HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\xfe\x10\x00\0\0\0\0",
    ]
    async with honest_user(server) as honest, dripping(server, beginnings * 25) as writers:
        for _ in range(3):
            await honest.is_served()
        assert len(writers) == 100


@contextlib.asynccontextmanager
async def dripping(
    server: RunningServer, beginnings: list[bytes]
) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Connections that begin so, and then send a byte now and then."""
    writers = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in beginnings]

    async def drip() -> None:
        for writer, beginning in zip(writers, beginnings, strict=True):
            writer.write(beginning)
        while True:
            for writer in writers:
                writer.write(b"x")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    try:
        yield writers
    finally:
        dripping.cancel()
        for writer in writers:
            writer.close()


async def test_a_flood_of_commands(start: Start) -> None:
    """So many are carried out as may be, in their order; the rest waits, in the end at the attacker."""
    server = start(commands_per_connection="20/h")
    async with honest_user(server) as honest, SocketClient(server) as flooder:
        await flooder.join("bob")
        command = json.dumps(
            {"name": "content", "data": {"limit": 1, "before": "f" * 24, "filler": "x" * 300}}
        )

        async def flood() -> None:
            for _ in range(100_000):
                await flooder.socket.send(command)

        flooding = asyncio.create_task(flood())
        for _ in range(19):
            await flooder.next("notification")
        await honest.is_served()
        await asyncio.to_thread(server.must_notify, "bob", content="pushes are no commands")
        [pushed] = await flooder.next("notification")
        assert pushed["content"] == "pushes are no commands"
        assert not flooding.done()
        flooding.cancel()
        flooder.socket.transport.abort()  # nobody would read its goodbye


async def test_a_flood_of_requests_with_a_wrong_key(start: Start) -> None:
    """Is refused unheard after a while; a backend with the right key, at the same address, is not."""
    server = start({"NOTIFY_APPLICATION_APIKEY": "right"}, requests_per_address="5/h")

    def notify(key: str) -> Response:
        body = json.dumps({"content": "hi", "users": [{"id": "demo"}], "apikey": key}).encode()
        return server.request("POST", "/notify", body, {"Content-Type": "application/json", **AFAR})

    answers = [await asyncio.to_thread(notify, "wrong") for _ in range(10)]
    assert [answer.status for answer in answers] == [400] * 5 + [429] * 5
    assert 600 < int(answers[-1].headers["Retry-After"]) <= 720
    assert (await asyncio.to_thread(notify, "right")).status == 200
