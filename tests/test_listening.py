"""Tests of server/listening.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydispatch import dispatcher

from server import listening
from server.bus import THROTTLED
from server.errors import StartupError
from server.listening import (
    MAIN,
    PUBLISHING,
    RESERVED_FILES,
    Peers,
    TCPListener,
    bind_shared,
    max_connection_files,
)


@pytest.fixture
async def listener() -> AsyncIterator[TCPListener]:
    listener = TCPListener("127.0.0.1", 0, anybody())
    yield listener
    await listener.close()


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket() as client:
        client.setblocking(False)
        yield client


def anybody() -> Peers:
    """Addresses are not counted."""
    return Peers(lambda: 0, lambda address: True)


class Served:
    """Who was let in."""

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, connection: socket.socket, address: Any, left: Callable[[], None]) -> None:
        connection.close()
        left()
        self.peers.put_nowait(address)


async def connect(client: socket.socket, listener: TCPListener) -> None:
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", listener.port))


class Full:
    """`accept` fails as it does when there is no file left, until there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        self.refused_often = asyncio.Event()
        self.has_room = False
        accept = socket.socket.accept

        def accept_or_fail(listening: socket.socket) -> Any:
            if self.has_room:
                return accept(listening)
            self.refused += 1
            if self.refused == 10:
                self.refused_often.set()
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(socket.socket, "accept", accept_or_fail)


# -- binding -------------------------------------------------------------------------------------------------


async def test_clients_are_refused_until_it_starts(listener: TCPListener, client: socket.socket) -> None:
    """Bound is not listening: nobody is let in to wait for a server that is not ready."""
    with pytest.raises(ConnectionRefusedError):
        await connect(client, listener)


async def test_clients_are_served_with_their_address(listener: TCPListener, client: socket.socket) -> None:
    """From its start on."""
    served = Served()
    listener.start(served)
    await connect(client, listener)
    assert await asyncio.wait_for(served.peers.get(), 30) == client.getsockname()


async def test_clients_are_refused_after_its_end(listener: TCPListener, client: socket.socket) -> None:
    """It may be ended twice."""
    listener.start(Served())
    port = listener.port
    await listener.close()
    await listener.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))


async def test_a_host_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv4 and IPv6 on one port; what this machine does not have is left out."""
    known = [
        (family, socket.SOCK_STREAM, 6, "", address)
        for family, address in [
            (socket.AF_INET6, ("::1", 0, 0, 0)),
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_INET, ("127.0.0.1", 0)),
        ]
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: known)
    listener = TCPListener("localhost", 0, anybody())
    ports = {each.getsockname()[1] for each in listener._sockets}
    families = [each.family for each in listener._sockets]
    await listener.close()
    assert len(ports) == 1
    assert families in ([socket.AF_INET, socket.AF_INET6], [socket.AF_INET])


async def test_every_interface(client: socket.socket) -> None:
    """An empty host is all of them, on both protocols without one keeping the other out."""
    listener = TCPListener("", 0, anybody())
    served = Served()
    listener.start(served)
    await connect(client, listener)
    assert (await asyncio.wait_for(served.peers.get(), 30))[:2] == client.getsockname()
    await listener.close()


async def test_a_port_that_somebody_listens_on() -> None:
    """Is told at once, with what to do: the key that names it is the one to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = rf"^port {port} on 127\.0\.0\.1 is in use .* set another {{}} under \[APPLICATION\]$"
        with pytest.raises(StartupError, match=in_use.format("port")):
            TCPListener("127.0.0.1", port, anybody())
        with pytest.raises(StartupError, match=in_use.format("also_listen")):
            TCPListener("127.0.0.1", 0, anybody(), also=[port])
        with pytest.raises(StartupError, match=in_use.format("publish_port")):
            TCPListener("127.0.0.1", port, anybody(), keys=PUBLISHING)


async def test_a_port_that_somebody_took_meanwhile(listener: TCPListener) -> None:
    """Both were bound before either listened: the second is told then."""
    second = TCPListener("127.0.0.1", listener.port, anybody())
    third = TCPListener("127.0.0.1", 0, anybody(), also=[listener.port])
    listener.start(Served())
    with pytest.raises(StartupError, match="is in use .* another port under"):
        second.start(Served())
    with pytest.raises(StartupError, match="is in use .* another also_listen under"):
        third.start(Served())
    await second.close()
    await third.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_is_not_ours(host: str) -> None:
    """One sentence that names it, and where it is from."""
    for keys, names in ((MAIN, "port and address"), (PUBLISHING, "publish_port and publish_address")):
        why = rf"^cannot listen on port 0 on {host} \({names} of \[APPLICATION\]\): "
        with pytest.raises(StartupError, match=why):
            TCPListener(host, 0, anybody(), keys=keys)


# -- no room -------------------------------------------------------------------------------------------------


async def test_out_of_files_it_does_not_ask_again_at_once(
    listener: TCPListener, client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits in the backlog makes the socket readable all the time."""
    monkeypatch.setattr(listening, "PAUSE_S", 3600)
    full = Full(monkeypatch)
    listener.start(Served())
    await connect(client, listener)
    for _ in range(100):
        await asyncio.sleep(0)
    assert full.refused == 1


async def test_out_of_files_it_goes_on_by_itself_and_says_so_once(
    listener: TCPListener,
    client: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who waits is served as soon as there is room."""
    monkeypatch.setattr(listening, "PAUSE_S", 0)
    full, served = Full(monkeypatch), Served()
    listener.start(served)
    await connect(client, listener)
    async with asyncio.timeout(30):
        await full.refused_often.wait()
        full.has_room = True
        await served.peers.get()
    [record] = caplog.records
    assert "Too many open files" in record.getMessage()


async def test_above_the_bound_a_connection_is_closed(
    listener: TCPListener,
    client: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not served, and those behind it wait."""
    monkeypatch.setattr(listening, "max_connection_files", lambda: 0)
    served = Served()
    listener.start(served)
    await connect(client, listener)
    async with asyncio.timeout(30):
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    assert served.peers.empty()
    [record] = caplog.records
    assert "ulimit" in record.getMessage()


@pytest.mark.parametrize(
    ("limit", "for_connections"),
    [(1024, 1024 - RESERVED_FILES), (64, 32), (1_000_000, 1_000_000 - RESERVED_FILES)],
)
def test_some_files_are_kept_for_other_things(
    limit: int, for_connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred, or half of them if they are few."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert max_connection_files() == for_connections


def test_without_a_limit_there_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some systems have it."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert max_connection_files() > 1_000_000_000


# -- serving -------------------------------------------------------------------------------------------------


async def test_a_connection_that_cannot_be_served_is_closed_and_the_next_one_served(
    listener: TCPListener, client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged."""
    served = Served()

    def fail_once(connection: socket.socket, address: Any, left: Callable[[], None]) -> None:
        if not caplog.records:
            raise RuntimeError("broken")
        served(connection, address, left)

    with caplog.at_level(logging.ERROR), socket.socket() as second:
        second.setblocking(False)
        listener.start(fail_once)
        await connect(client, listener)
        async with asyncio.timeout(30):
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            await connect(second, listener)
            assert await served.peers.get() == second.getsockname()
    [record] = caplog.records
    assert record.exc_info is not None


# -- too many of one address ---------------------------------------------------------------------------------


class Kept:
    """Who was let in, and stays; and how to end it."""

    def __init__(self) -> None:
        self.connections: list[tuple[socket.socket, Callable[[], None]]] = []
        self.peers: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, connection: socket.socket, address: Any, left: Callable[[], None]) -> None:
        self.connections.append((connection, left))
        self.peers.put_nowait(address[0])

    def end_one(self) -> None:
        connection, left = self.connections.pop()
        connection.close()
        left()


class Clients:
    """Sockets that connect, from any of the loopback addresses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []

    async def connect(self, address: str = "127.0.0.1") -> socket.socket:
        client = socket.socket()
        self._sockets.append(client)
        client.setblocking(False)
        client.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self._port))
        return client

    def close(self) -> None:
        for client in self._sockets:
            client.close()


async def is_cut(client: socket.socket) -> bool:
    """Whether the connection is ended by a reset."""
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 30) != b""
    except ConnectionResetError:
        return True


@contextlib.asynccontextmanager
async def counting(peers: Peers) -> AsyncIterator[tuple[TCPListener, Kept, Clients]]:
    listener, kept = TCPListener("127.0.0.1", 0, peers), Kept()
    clients = Clients(listener.port)
    listener.start(kept)
    try:
        yield listener, kept, clients
    finally:
        await listener.close()
        clients.close()
        while kept.connections:
            kept.end_one()


async def test_an_address_gets_so_many_connections_and_others_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that sends nothing counts, too. Who comes beyond is cut off at once, which is logged once a minute, and each
    time told of."""
    peers, throttled = Peers(lambda: 2, lambda address: False), []

    def note(limit: str) -> None:
        throttled.append(limit)

    with caplog.at_level(logging.WARNING):
        async with counting(peers) as (listener, kept, clients):
            dispatcher.connect(note, THROTTLED, sender=listener)
            for _ in range(2):
                await clients.connect("127.0.0.2")
                assert await asyncio.wait_for(kept.peers.get(), 30) == "127.0.0.2"
            for _ in range(3):
                assert await is_cut(await clients.connect("127.0.0.2"))
            await clients.connect("127.0.0.3")
            assert await asyncio.wait_for(kept.peers.get(), 30) == "127.0.0.3"
            assert kept.peers.empty()
            assert len(peers) == 3
    [record] = caplog.records
    assert "turned away 1 connections" in record.getMessage()
    assert "127.0.0.2" in record.getMessage()
    assert throttled == ["connections_per_address"] * 3
    assert len(peers) == 0


async def test_when_a_connection_ends_the_next_may_come() -> None:
    """And is counted instead; an end that is told twice counts once."""
    peers = Peers(lambda: 1, lambda address: False)
    async with counting(peers) as (_, kept, clients):
        await clients.connect()
        await asyncio.wait_for(kept.peers.get(), 30)
        assert await is_cut(await clients.connect())
        left = kept.connections[0][1]
        kept.end_one()
        left()
        await clients.connect()
        await asyncio.wait_for(kept.peers.get(), 30)
        assert len(peers) == 1


async def test_exempt_addresses_get_any_number() -> None:
    """As a proxy does, behind which are many clients."""
    peers = Peers(lambda: 1, lambda address: address == "127.0.0.9")
    async with counting(peers) as (_, kept, clients):
        for _ in range(5):
            await clients.connect("127.0.0.9")
            assert await asyncio.wait_for(kept.peers.get(), 30) == "127.0.0.9"
        assert len(peers) == 0


async def test_another_number_counts_at_once() -> None:
    """It is asked for each time."""
    most = 1
    peers = Peers(lambda: most, lambda address: False)
    async with counting(peers) as (_, kept, clients):
        await clients.connect()
        await asyncio.wait_for(kept.peers.get(), 30)
        most = 2
        await clients.connect()
        await asyncio.wait_for(kept.peers.get(), 30)


async def test_a_connection_that_cannot_be_served_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    """It is over."""
    peers = Peers(lambda: 1, lambda address: False)

    def fail(connection: socket.socket, address: Any, left: Callable[[], None]) -> None:
        raise RuntimeError("broken")

    listener = TCPListener("127.0.0.1", 0, peers)
    clients = Clients(listener.port)
    with caplog.at_level(logging.ERROR):
        listener.start(fail)
        for _ in range(3):
            client = await clients.connect()
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 30) == b""
    await listener.close()
    clients.close()
    assert [record.getMessage() for record in caplog.records] == ["a connection could not be served"] * 3
    assert len(peers) == 0


def test_a_network_counts_as_one_address() -> None:
    """The addresses of an IPv6 network of 64 bits."""
    peers = Peers(lambda: 2, lambda address: False)
    ends = [peers.enter(f"2001:db8::{number:x}") for number in range(3)]
    assert [end is None for end in ends] == [False, False, True]


async def test_who_comes_in_the_moment_of_the_end(
    listener: TCPListener, client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """Is turned away, and the log has no error."""
    listener.start(Served())
    await asyncio.sleep(0)
    client.connect_ex(("127.0.0.1", listener.port))
    # Behind this, in the same turn of the loop, the listener hears of the connection.
    await asyncio.sleep(0)
    await listener.close()
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_who_was_accepted_before_the_end_is_served(client: socket.socket) -> None:
    """Another process may go on with the same socket, and would not hear of them any more."""
    [bound] = bind_shared([(socket.AF_INET, ("127.0.0.1", 0))])
    with bound.dup() as others:
        listener = TCPListener("", 0, Peers(lambda: 10, lambda address: True), bound=[bound])
        served = Served()
        listener.start(served)
        await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        closing: list[asyncio.Task[None]] = []

        def arrive() -> None:
            client.connect_ex(others.getsockname())
            # Behind the acceptance, in the turn in which that happens.
            loop.call_soon(lambda: closing.append(loop.create_task(listener.close())))

        loop.call_soon(arrive)
        await asyncio.sleep(0.05)
        await closing[0]
        others.setblocking(False)
        waiting = 0
        with contextlib.suppress(BlockingIOError):
            others.accept()[0].close()
            waiting = 1
        assert served.peers.qsize() + waiting == 1
