"""Attackers, against the server as people run it: while they are at it, an honest user joins and is notified.

The attackers seem to come through a proxy, so that they are not taken for this machine, which is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import argon2
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


async def test_who_asks_and_never_reads_the_answers(start: Start) -> None:
    """Is cut off, whatever was asked for; who reads them gets all."""
    server = start({"NOTIFY_CONNECTIONS_SLOW_AFTER_S": "0.5"})
    request = b"GET /client/notifications.js HTTP/1.1\r\nHost: here\r\nVia: proxy\r\n\r\n"
    async with honest_user(server) as honest:
        with contextlib.ExitStack() as stack:
            poll = select.poll()
            for _ in range(10):
                deaf = stack.enter_context(socket.socket())
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf.connect(("127.0.0.1", server.port))
                deaf.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        deaf.sendall(request * 100)
                poll.register(deaf, 0)  # that the connection has ended is always told
            async with asyncio.timeout(WAIT_S):
                while len(poll.poll(0)) < 10:
                    await honest.is_served()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            for _ in range(3):
                connection.request("GET", "/client/notifications.js")
                answer = connection.getresponse()
                assert answer.status == 200
                await asyncio.sleep(1.5)  # longer than it may take
                assert len(answer.read()) == int(answer.headers["Content-Length"])


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


async def test_a_flood_of_requests_without_a_key(start: Start) -> None:
    """Is held back over however many connections it comes: all wait, and nobody waits for them."""
    server = start(requests_per_address="1/h")
    async with honest_user(server) as honest:

        async def knock() -> tuple[int, bytes]:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /notify HTTP/1.1\r\nHost: here\r\nVia: proxy\r\nContent-Length: 0\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
            writer.close()
            return int(head.split()[1]), head

        assert (await knock())[0] == 403
        knocking = [asyncio.create_task(knock()) for _ in range(200)]
        await honest.is_served()
        assert not all(task.done() for task in knocking)
        answers = await asyncio.gather(*knocking)
        assert {status for status, _ in answers} == {429}
        assert all(b"Retry-After" in head and b"Ratelimit-Policy" in head for _, head in answers)


async def test_the_log_is_not_filled(start: Start) -> None:
    """Whatever is refused how often, some lines say it; the last one says how many do not stand there."""
    server = start(requests_per_address="off")

    def knock() -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            for _ in range(1000):
                connection.request("POST", "/notify", b"", AFAR)
                connection.getresponse().read()

    await asyncio.to_thread(knock)
    lines = server.log.splitlines()
    assert 1 <= len([line for line in lines if "refused POST at notify" in line]) < 150
    assert len(lines) < 400


async def test_guesses_at_passwords(start: Start) -> None:
    """Many at once, over many connections, at an honest user's login, too: they go on, and so does who joins now."""
    hashed = argon2.PasswordHasher().hash("alice")
    server = start({"NOTIFY_USERS_alice": hashed})
    async with honest_user(server) as honest, contextlib.AsyncExitStack() as stack:
        guessers = [await attacker(server, stack) for _ in range(20)]
        for number, guesser in enumerate(guessers):
            for count in range(100):
                login = "alice" if count % 2 else f"nobody{number}"
                data = {"login": login, "password": f"guess {count}"}
                await guesser.send(json.dumps({"name": "join", "data": data}))
        await honest.is_served()
        for guesser in guessers:
            guesser.transport.abort()


async def test_who_reads_nothing(start: Start) -> None:
    """Asks for all there is, again and again: is closed as slow, or waits, and holds up nobody."""
    server = start()
    async with honest_user(server) as honest, contextlib.AsyncExitStack() as stack:
        for _ in range(30):
            await asyncio.to_thread(server.must_notify, "bob", content="x" * 60_000)
        ask = [{"name": "join", "data": {"login": "bob", "password": "bob"}}, *[{"name": "unseen"}] * 50]
        for _ in range(10):
            greedy = socket.socket()
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            greedy.connect(("127.0.0.1", server.port))
            client = await stack.enter_async_context(connect(server.websocket_url, sock=greedy, max_queue=1))
            stack.callback(client.transport.abort)
            for command in ask:
                await client.send(json.dumps(command))
        for _ in range(3):
            await honest.is_served()


async def test_messages_that_are_too_big(start: Start) -> None:
    """End their connection, and nothing else."""
    server = start()
    async with honest_user(server) as honest, contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            client = await attacker(server, stack)
            with contextlib.suppress(ConnectionClosed):
                await client.send("x" * (2 << 20))
            assert (await end_of(client))[0] == 1009
        await honest.is_served()
