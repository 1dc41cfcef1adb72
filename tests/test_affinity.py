"""Sessions over several requests, and tickets, at a server of several workers: each request is a connection of its own,
which the kernel gives to any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from server.affinity import Affinity
from server.transports.events import session_in as events_session_in
from server.transports.socketio import session_in as socketio_session_in
from server.workers import handoff
from server.workers.handoff import Handoff
from tests.support.certificates import CertificateAuthority
from tests.support.event_streams import event_stream
from tests.support.feeds import SETTINGS, internal, user_token
from tests.support.mongod import MongoDatabase
from tests.support.processes import wait_until
from tests.support.realtime import PollingClient, connect_packet, figure, socket_client, stock_client
from tests.support.secure_server import SecureServer
from tests.support.sockjs_clients import PollingClient as XhrClient
from tests.support.workers import WorkersServer, connections, listens

SLOW_TO_GO = """
from server.workers import supervisor, worker
worker.HAND_OVER_S, supervisor.END_S = 60.0, 120.0
"""
"""So that a slow machine has the time for what a test does meanwhile."""

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def running(folder: Path, database: MongoDatabase, *, fault: str = "") -> Iterator[WorkersServer]:
    settings = SETTINGS | {"NOTIFY_MONGODB_URL": database.url, "NOTIFY_MONGODB_DB": database.name}
    with WorkersServer(folder, fault=fault, **settings) as server:
        server.wait_for("backplane: connected to", 2)
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mongo_url: str) -> Iterator[WorkersServer]:
    database = MongoDatabase(mongo_url, f"test_{secrets.token_hex(8)}")
    with running(tmp_path_factory.mktemp("workers"), database) as server:
        yield server
    client: MongoClient[dict[str, Any]]
    with MongoClient(database.url) as client:
        client.drop_database(database.name)


@pytest.fixture
def own_server(tmp_path: Path, mongo_database: MongoDatabase) -> Iterator[WorkersServer]:
    """For what no other test is to notice."""
    with running(tmp_path, mongo_database) as server:
        yield server


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.01)


# -- from outside --------------------------------------------------------------------------------------------


async def test_polling_over_sockjs(server: WorkersServer, user: str) -> None:
    """Several clients, of which no session could live on one worker by chance."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(XhrClient(server)) for _ in range(6)]
        for client in clients:
            await client.join_by_token(user_token(user))
        for number in range(4):
            server.must_notify(user, content=str(number))
            for client in clients:
                [document] = await client.next("notification")
                assert document["content"] == str(number)


async def test_polling_over_socketio_and_going_on_over_websocket(server: WorkersServer, user: str) -> None:
    clients = [PollingClient(server) for _ in range(4)]
    for client in clients:
        await client.join(user)
    for number in range(4):
        internal(server, [user], {"n": number})
        for client in clients:
            assert await client.poll() == [f'42["notification:new",{{"n":{number}}}]']
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(socket_client(server, sid=each.sid)) for each in clients]
        for upgraded in sockets:
            await upgraded.socket.send("2probe")
            assert await upgraded.packet() == "3probe"
            await upgraded.socket.send("5")
        internal(server, [user], {"n": "all"})
        for upgraded in sockets:
            assert await upgraded.packet() == '42["notification:new",{"n":"all"}]'


@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"]], ids=["polling", "upgrading"])
async def test_the_stock_client(server: WorkersServer, user: str, transports: list[str]) -> None:
    """As a browser does it, it keeps connections open, which have been some other session's before."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(stock_client(server, user_token(user), transports=transports))
            for _ in range(3)
        ]
        for client in clients:
            await client.until("connect")
        for number in range(3):
            internal(server, [user], {"n": number})
            for client in clients:
                assert await client.payload() == {"n": number}


async def test_a_ticket_is_good_at_any_worker_and_only_once(server: WorkersServer, user: str) -> None:
    for _ in range(6):
        answer = server.request(
            "POST", "/events/ticket", b"", {"Authorization": f"Bearer {user_token(user)}"}
        )
        path = f"/events?ticket={answer.json()['ticket']}"
        async with event_stream(server, path=path) as stream:
            assert stream.status == 200
        for _ in range(3):
            assert server.get(path).status == 401


@asynccontextmanager
async def raw(server: WorkersServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def posted(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        return int(head.split()[1]), await reader.readexactly(int(fields["content-length"]))


async def test_a_connection_that_is_many_sessions(server: WorkersServer, user: str) -> None:
    """Now of this worker, now of that one: as of a proxy that keeps connections open for all of its clients."""
    clients = [PollingClient(server) for _ in range(8)]
    for client in clients:
        await client.join(user)
    async with raw(server) as (reader, writer):
        for number in range(3):
            internal(server, [user], {"n": number})
            for client in clients:
                request = f"GET /socket.io/?{client.query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                writer.write(request.encode())
                assert await answered(reader) == (200, f'42["notification:new",{{"n":{number}}}]'.encode())
            writer.write(HEALTHZ)
            assert (await answered(reader))[0] == 200


@pytest.mark.parametrize("pieces", [1, 2, 5], ids=["whole", "halves", "pieces"])
async def test_whatever_has_come_of_a_request_goes_with_it(
    server: WorkersServer, user: str, pieces: int
) -> None:
    """And what is sent behind it without waiting."""
    clients = [PollingClient(server) for _ in range(8)]
    for client in clients:
        await client.open()
        padding = " " * 9_000
        path = f"/socket.io/?{client.query}"
        data = posted(path, (connect_packet(user)[:-1] + padding + "}").encode()) + posted(path, b"3")
        async with raw(server) as (reader, writer):
            size = -(-len(data) // pieces)
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                await asyncio.sleep(0.05)
            assert await answered(reader) == (200, b"ok")
            assert await answered(reader) == (200, b"ok")
        assert (await client.poll())[0].startswith('40{"sid":"')


async def test_many_requests_at_once_of_sessions_here_and_there(server: WorkersServer) -> None:
    """Sent without waiting for any answer: each has its answer, in their order."""
    names = [secrets.token_hex(8) for _ in range(200)]
    assert {Affinity(count=2).owner(name) for name in names} == {0, 1}
    padding = "x" * 900
    requests = b"".join(
        f"GET /events?ticket={name}&n={number}&{padding} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for number, name in enumerate(names)
    )
    async with raw(server) as (reader, writer):
        writer.write(requests)
        for _ in names:
            status, body = await answered(reader)
            assert (status, json.loads(body)["title"]) == (401, "bad_credentials")


async def test_who_sends_no_more_behind_a_request_is_answered(server: WorkersServer) -> None:
    """Wherever it came to; and who has gone leaves no word in the log."""
    for _ in range(20):
        request = f"GET /events?ticket={secrets.token_hex(8)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        async with raw(server) as (reader, writer):
            writer.write(request)
            writer.write_eof()
            assert (await answered(reader))[0] == 401
        async with raw(server) as (_, writer):
            writer.write(request)
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.get("/healthz").status == 200
    assert "Traceback" not in server.log
    assert "another worker" not in server.log


async def test_what_waits_for_a_worker_that_dies_is_for_the_next_one(own_server: WorkersServer) -> None:
    """Or is closed; nobody waits for ever."""
    server = own_server

    async def ask() -> int:
        async with raw(server) as (reader, writer):
            path = f"/events?ticket={secrets.token_hex(8)}"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            return (await answered(reader))[0]

    stopped = server.workers[0]
    os.kill(stopped, signal.SIGSTOP)
    asked = [asyncio.create_task(ask()) for _ in range(40)]
    # Of those that came to the other one, some are its own; the rest wait, in one place or another.
    await until(lambda: any(task.done() for task in asked))
    os.kill(stopped, signal.SIGKILL)
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert outcome == 401 or isinstance(outcome, ConnectionError | asyncio.IncompleteReadError)
    for _ in range(4):
        assert server.get(f"/events?ticket={secrets.token_hex(8)}").status == 401
    assert "Traceback" not in server.log


async def test_nobody_waits_for_a_worker_that_does_not_come_up(own_server: WorkersServer) -> None:
    """Their connections are closed, which counts as what it is, so that their clients try again."""
    server = own_server
    server.hold(1)
    first = int(server.said(r"worker 1 \(pid (\d+)\) serves")[0])
    os.kill(first, signal.SIGKILL)
    server.wait_for(rf"worker 1 \(pid {first}\) was ended by SIGKILL")
    names = [secrets.token_hex(8) for _ in range(20)]
    foreign = [name for name in names if Affinity(count=2).owner(name) == 0]
    async with AsyncExitStack() as stack:
        readers = []
        for name in foreign:
            reader, writer = await stack.enter_async_context(raw(server))
            writer.write(f"GET /events?ticket={name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            readers.append(reader)
        async with asyncio.timeout(30):
            assert [await reader.read() for reader in readers] == [b""] * len(foreign)
    assert figure(server, 'notification_handoffs_total{outcome="closed"}') == len(foreign)


async def test_sessions_of_a_worker_that_dies(own_server: WorkersServer, user: str) -> None:
    """They are over, those of the other one go on, and new ones can be had of the one that takes its place."""
    server = own_server
    clients: list[PollingClient] = []
    while len({Affinity(count=2).owner(client.sid) for client in clients}) < 2:
        assert len(clients) < 50, "all of them come to one worker"
        clients.append(PollingClient(server))
        await clients[-1].join(user)
    os.kill(server.workers[0], signal.SIGKILL)
    # Who does not poll for some seconds is over, too.
    polls = [asyncio.create_task(client.request("GET", client.query)) for client in clients]
    await asyncio.to_thread(server.wait_for, "serves$", 3)
    answers = [await client.request("POST", client.query, b"3") for client in clients]
    assert {answer.status for answer in answers} == {200, 400}
    internal(server, [user], {"n": 1})
    await asyncio.gather(*polls, return_exceptions=True)
    again = [PollingClient(server) for _ in range(6)]
    for client in again:
        await client.join(user)


async def test_workers_that_are_replaced(own_server: WorkersServer, user: str) -> None:
    server = own_server
    server.tell(signal.SIGUSR2)
    server.wait_for("all workers are replaced")
    wait_until(lambda: len(server.workers) == 2, "the old ones to end")
    clients = [PollingClient(server) for _ in range(6)]
    for client in clients:
        await client.join(user)
    internal(server, [user], {"n": 1})
    for client in clients:
        assert await client.poll() == ['42["notification:new",{"n":1}]']


async def at_both(
    server: WorkersServer, stack: AsyncExitStack
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connections that are kept open, of which each worker has one at least."""
    kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    while len(kept) < 6 or not all(connections(pid, local=server.port) for pid in server.workers):
        assert len(kept) < 50, "all of them are at one worker"
        reader, writer = await stack.enter_async_context(raw(server))
        writer.write(HEALTHZ)
        assert (await answered(reader))[0] == 200
        kept.append((reader, writer))
    return kept


async def test_who_was_replaced_answers_again_when_all_end(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """There is nobody left to whom it could hand over."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running(tmp_path, mongo_database, fault=SLOW_TO_GO))
        kept = await at_both(server, stack)
        old = server.workers[0]
        server.spoil(2)
        stack.callback(os.kill, old, signal.SIGKILL)
        server.tell(signal.SIGUSR2)
        await asyncio.to_thread(server.wait_for, r"worker 1 \(pid \d+\) is replaced by")
        await until(lambda: not listens(old, server.port))
        server.tell(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: server.workers == [old], "the end of all others")
        statuses = []
        for reader, writer in kept:
            writer.write(HEALTHZ)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # it was one of those
                statuses.append((await answered(reader))[0])
        assert statuses and set(statuses) == {200}


async def test_connections_that_are_kept_go_to_who_has_replaced_a_worker(
    tmp_path: Path, mongo_database: MongoDatabase, user: str
) -> None:
    """Whatever comes over them: what the new one has begun is not known to the old one."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running(tmp_path, mongo_database, fault=SLOW_TO_GO))
        kept = await at_both(server, stack)
        old = server.workers[0]
        server.spoil(2)  # one that is replaced is enough
        stack.callback(os.kill, old, signal.SIGKILL)  # or the end would wait for it
        server.tell(signal.SIGUSR2)
        await asyncio.to_thread(server.wait_for, r"worker 1 \(pid \d+\) is replaced by")
        await until(lambda: not listens(old, server.port))
        client = PollingClient(server)
        await client.join(user)
        while Affinity(count=2).owner(client.sid):
            client = PollingClient(server)
            await client.join(user)
        for number, (reader, writer) in enumerate(kept):
            internal(server, [user], {"n": number})
            writer.write(f"GET /socket.io/?{client.query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert await answered(reader) == (200, f'42["notification:new",{{"n":{number}}}]'.encode())
            writer.write(HEALTHZ)
            assert (await answered(reader))[0] == 200
        await until(lambda: not connections(old, local=server.port))
        # Who is slow to say what it has counted is told of as it was before.
        await until(lambda: figure(server, 'notification_handoffs_total{outcome="given"}') >= len(kept))
        await until(lambda: figure(server, 'notification_handoffs_total{outcome="taken"}') > 0)
        assert figure(server, 'notification_queue_depth{queue="handoff"}') == 0


async def test_under_tls_a_request_is_answered_where_it_came_to(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """What the two ends have agreed on cannot be handed over."""
    settings = SETTINGS | {"NOTIFY_MONGODB_URL": mongo_database.url, "NOTIFY_MONGODB_DB": mongo_database.name}
    authority = CertificateAuthority(tmp_path / "authority")
    with SecureServer(tmp_path, authority, arguments=["--workers", "2"], **settings) as server:
        wait_until(lambda: "\n  workers  2\n" in server.log, "all workers")
        for _ in range(16):
            assert server.get(f"/events?ticket={secrets.token_hex(8)}").status == 401
        assert "Traceback" not in server.log


async def test_no_connection_stays_behind(server: WorkersServer, user: str) -> None:
    """Neither with whom it came to, nor with whom it went to, when its client has gone."""
    clients = [PollingClient(server) for _ in range(4)]
    for client in clients:
        await client.join(user)
        for _ in range(5):
            await client.post("3")

    def is_empty() -> bool:
        return all(connections(pid, local=server.port) == 0 for pid in server.workers)

    wait_until(is_empty, "all connections to be closed")


# -- from inside ---------------------------------------------------------------------------------------------


def test_a_name_is_of_one_worker() -> None:
    """Of the same one for all of them; and what is made up is one's own."""
    workers = [Affinity(number, 5) for number in range(5)]
    names = [secrets.token_urlsafe(8) for _ in range(500)]
    for name in names:
        assert len({worker.owner(name) for worker in workers}) == 1
    assert {workers[0].owner(name) for name in names} == set(range(5))
    for worker in workers:
        minted = {worker.mint(lambda: secrets.token_urlsafe(8)) for _ in range(50)}
        assert len(minted) == 50
        assert {worker.owner(name) for name in minted} == {worker.number}


@asynccontextmanager
async def two_workers() -> AsyncIterator[list[Handoff]]:
    """As a supervisor would have made their sockets."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for each in (end for pair in pairs for end in pair):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200 * 1024)
    both = [Handoff(Affinity(number, 2), pairs[number][0], [post for _, post in pairs]) for number in (0, 1)]
    try:
        yield both
    finally:
        for worker in both:
            await worker.close()
        for each in (end for pair in pairs for end in pair):
            each.close()


def outcomes(worker: Handoff) -> dict[str, float]:
    """How many connections, by what became of them."""
    [family] = worker.figures.collect()
    return {sample.labels["outcome"]: sample.value for sample in family.samples}


async def test_what_one_worker_gives_the_other_takes() -> None:
    async with two_workers() as (one, other):
        taken: asyncio.Queue[tuple[socket.socket, bytes]] = asyncio.Queue()
        other.start(lambda connection, request: taken.put_nowait((connection, request)))
        here, there = socket.socketpair()
        with here, there:
            one.give(1, there, b"request")
        connection, request = await asyncio.wait_for(taken.get(), 10)
        assert request == b"request"
        assert not connection.getblocking()
        assert not os.get_inheritable(connection.fileno())
        connection.close()


@pytest.mark.parametrize(
    ("uri", "events", "socket_io"),
    [
        ("/events?ticket=a", "a", None),
        ("/events?ticket=x&ticket=a", "a", None),
        ("/events?v=2&ticket=%20a+", "a", None),
        ("/events?ticket=", None, None),
        ("/events", None, None),
        ("/events/ticket?ticket=a", None, None),
        ("/socket.io/?EIO=4&sid=a", None, "a"),
        ("/socket.io?sid=x&sid=a", None, "a"),
        ("/socket.io/?sid=%20a+", None, "a"),
        ("/socket.io/?EIO=4", None, None),
        ("/socket.io/more?sid=a", None, None),
        ("/ws/v2?sid=a&ticket=a", None, None),
    ],
)
def test_a_request_belongs_where_the_door_will_look(
    uri: str, events: str | None, socket_io: str | None
) -> None:
    """By the last field of its name, without the blanks around it, at its own door only."""
    assert (events_session_in(uri), socketio_session_in(uri)) == (events, socket_io)


async def test_who_has_given_way_has_nothing_that_is_still_to_come() -> None:
    """Neither of a session nor of none; until then it has what is its own, and what is nobody's."""
    async with two_workers() as (one, other):
        names = [secrets.token_urlsafe(8) for _ in range(50)]
        mine = [name for name in names if one.affinity.owner(name) == 0]
        foreign = [name for name in names if one.affinity.owner(name) == 1]
        assert {one.owner_of(name) for name in [None, *mine]} == {None}
        assert {one.owner_of(name) for name in foreign} == {1}
        one.give_way()
        assert {one.owner_of(name) for name in [None, *mine]} == {0}
        assert {one.owner_of(name) for name in foreign} == {1}
        assert other.owner_of(None) is None


async def test_what_waits_is_given_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost while the other one does nothing; and when that takes too long the connections are closed."""
    async with two_workers() as (one, other):
        given = 0
        clients = []
        while not given or one.waiting < 3:
            here, there = socket.socketpair()
            clients.append(here)
            with there:
                one.give(1, there, str(given).encode() + b" " * 50_000)
            given += 1
        taken = []

        def take(connection: socket.socket, request: bytes) -> None:
            connection.close()
            taken.append(int(request))

        other.start(take)
        await until(lambda: len(taken) == given)
        assert taken == list(range(given))
        other.stop()
        monkeypatch.setattr(handoff, "MAX_AGE_S", 0.05)
        while not one.waiting:
            here, there = socket.socketpair()
            clients.append(here)
            with there:
                one.give(1, there, b" " * 50_000)
        await until(lambda: not one.waiting)
        assert clients[-1].recv(1) == b""
        assert outcomes(other) == {"given": 0, "taken": given, "closed": 0}
        assert outcomes(one)["given"] >= given
        assert outcomes(one)["closed"] > 0
        for each in clients:
            each.close()


@pytest.mark.parametrize(("bound", "most"), [("MAX_WAITING", 2), ("MAX_WAITING_BYTES", 110_000)])
async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, most: int) -> None:
    """What is beyond is closed at once; what has been taken makes room for as much."""
    monkeypatch.setattr(handoff, bound, most)
    async with two_workers() as (one, other):
        taken: list[int] = []

        def take(connection: socket.socket, request: bytes) -> None:
            connection.close()
            taken.append(len(request))

        here, there = socket.socketpair()
        with here, there:
            for times in (1, 2):
                taken.clear()
                given = []
                while outcomes(one)["closed"] < times:
                    sizes = [50_000, 5] if one.waiting == 0 else [50_000]
                    for size in sizes:
                        one.give(1, there, b" " * size)
                    given += sizes
                assert 2 <= one.waiting <= 3
                other.start(take)
                await until(lambda given=given: len(taken) == len(given) - 1)
                other.stop()
                assert taken == given[:-1]


async def test_who_comes_when_there_is_room_again_is_behind_those_who_wait() -> None:
    """They have not noticed yet."""
    async with two_workers() as (one, other):
        taken: list[bytes] = []

        def take(connection: socket.socket, request: bytes) -> None:
            connection.close()
            taken.append(request.strip())

        here, there = socket.socketpair()
        with here, there:
            while not one.waiting:
                one.give(1, there, b" " * 50_000)
            other.start(take)
            other._receive()
            one.give(1, there, b"last")
            await until(lambda: b"last" in taken and not one.waiting)
            await until(lambda: outcomes(other)["taken"] == outcomes(one)["given"])
            assert taken.index(b"last") == len(taken) - 1


async def test_only_who_has_waited_for_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_workers() as (one, other):
        assert handoff.close_untaken(other._inbox) == 0
        here, there = socket.socketpair()
        with here:
            with there:
                one.give(1, there, b"request")
            assert handoff.close_untaken(other._inbox) == 0
            monkeypatch.setattr(handoff, "MAX_AGE_S", 0.0)
            assert handoff.close_untaken(other._inbox) == 1
            assert here.recv(1) == b""


async def test_what_waits_at_the_end_is_closed_and_counted() -> None:
    async with two_workers() as (one, _):
        here, there = socket.socketpair()
        with here:
            with there:
                while not one.waiting:
                    one.give(1, there, b" " * 50_000)
            await one.close()
            assert outcomes(one)["closed"] == 1
            assert not one.waiting


async def test_what_cannot_wait_since_no_more_files_can_be_opened_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two_workers() as (one, _):
        here, there = socket.socketpair()
        with here, there:
            while not one.waiting:
                one.give(1, there, b" " * 50_000)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            # All numbers below are taken.
            resource.setrlimit(resource.RLIMIT_NOFILE, (here.fileno(), limits[1]))
            try:
                one.give(1, there, b"")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert outcomes(one)["closed"] == 1
            assert one.waiting == 1
            assert "Too many open files" in caplog.text


async def test_what_comes_when_no_more_files_can_be_opened_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two_workers() as (one, other):
        other.start(lambda connection, request: connection.close())
        here, there = socket.socketpair()
        with here:
            with there:
                one.give(1, there, b"request")
            free = os.dup(here.fileno())
            os.close(free)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                await until(lambda: outcomes(other)["closed"] == 1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert here.recv(1) == b""
        assert outcomes(other)["taken"] == 0
        assert "no more files can be opened" in caplog.text


async def test_what_is_taken_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client has given up by then, or tries again."""
    monkeypatch.setattr(handoff, "MAX_AGE_S", -1.0)
    async with two_workers() as (one, other):
        other.start(lambda connection, request: connection.close())
        here, there = socket.socketpair()
        with here:
            with there:
                one.give(1, there, b"request")
            await until(lambda: outcomes(other)["closed"] == 1)
            assert here.recv(1) == b""
        assert outcomes(other)["taken"] == 0


async def test_what_is_closed_is_said_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With how many there were since."""
    monkeypatch.setattr(handoff, "MAX_WAITING", 0)
    async with two_workers() as (one, _):
        here, there = socket.socketpair()
        with here, there:
            while outcomes(one)["closed"] < 2:
                one.give(1, there, b" " * 50_000)
            monkeypatch.setattr(handoff, "REPORT_EVERY_S", 0.0)
            one.give(1, there, b" " * 50_000)
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" connections")[0] for text in said] == ["closed 1", "closed 2"]


async def test_a_request_too_long_to_be_given_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with two_workers() as (one, _):
        here, there = socket.socketpair()
        with here:
            with there:
                one.give(1, there, b" " * 4_000_000)
            assert here.recv(1) == b""
        assert "closed 1 connections that belong to another worker" in caplog.text
