"""Tests of server/streams.py, and of what a request may take until it is complete."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler
from websockets.asyncio.client import connect

from server.listening import Peers, TCPListener
from server.streams import open_stream
from tests.support.smtp_sink import CertificateAuthority

WAIT_S = 20.0
"""How long something may take that is to come: no measure, only the end of a hang."""

TIMEOUT_S = 0.3


class Echo(RequestHandler):
    def post(self) -> None:
        self.finish(self.request.body)


class Socket(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


class Service:
    """A server behind a listener, as the real one is wired, with short times. `peers` counts its sockets."""

    def __init__(self, tls: ssl.SSLContext | None, idle_timeout_s: float) -> None:
        self.peers = Peers(lambda: 100, lambda address: False)
        self.ended = asyncio.Event()
        """Set when a socket was closed."""
        self._tls = tls
        self._listener = TCPListener("127.0.0.1", 0, self.peers)
        self.port = self._listener.port
        self._http = HTTPServer(
            Application([("/", Echo), ("/socket", Socket)]),
            idle_connection_timeout=idle_timeout_s,
            body_timeout=TIMEOUT_S,
        )
        self._listener.start(self._serve)

    def _serve(self, connection: Any, address: Any, left: Callable[[], None]) -> None:
        def on_close() -> None:
            left()
            self.ended.set()

        stream = open_stream(connection, on_close, self._tls, handshake_timeout_s=TIMEOUT_S)
        if stream is not None:
            self._http.handle_stream(stream, address)

    async def stop(self) -> None:
        await self._listener.close()
        await self._http.close_all_connections()

    async def all_gone(self) -> None:
        """Return when no socket is counted any more."""
        async with asyncio.timeout(WAIT_S):
            while len(self.peers):
                self.ended.clear()
                await self.ended.wait()

    @contextlib.asynccontextmanager
    async def client(
        self, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        try:
            yield reader, writer
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None = None, idle_timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Service]:
    service = Service(tls, idle_timeout_s)
    try:
        yield service
    finally:
        await service.stop()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Send a byte now and then until the server has had enough; what it said."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(TIMEOUT_S / 20)

    sending = asyncio.create_task(send())
    try:
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionError:
        return b""
    finally:
        sending.cancel()


# -- the end is told -----------------------------------------------------------------------------------------


async def test_a_connection_counts_until_its_client_ends_it() -> None:
    """Also while nothing is sent on it."""
    async with serving() as service:
        async with service.client() as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi")
            await asyncio.wait_for(reader.readuntil(b"hi"), WAIT_S)
            assert len(service.peers) == 1
        await service.all_gone()


async def test_a_connection_counts_until_the_server_ends_it() -> None:
    """As it does after `Connection: close`."""
    async with serving() as service, service.client() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        assert (await asyncio.wait_for(reader.read(), WAIT_S)).endswith(b"hi")
        await service.all_gone()


@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_websocket_counts_for_as_long_as_it_lives(is_secure: bool, tmp_path: Path) -> None:
    """Though its HTTP connection is over for Tornado, and no time limit of a request ends it."""
    authority = CertificateAuthority(tmp_path)
    context = ssl.create_default_context(cafile=str(authority.ca_file)) if is_secure else None
    async with serving(authority.server_context() if is_secure else None) as service:
        url = f"{'wss' if is_secure else 'ws'}://127.0.0.1:{service.port}/socket"
        async with connect(url, ssl=context) as client:
            await asyncio.sleep(2 * TIMEOUT_S)
            await client.send("hi")
            assert await asyncio.wait_for(client.recv(), WAIT_S) == "hi"
            assert len(service.peers) == 1
        await service.all_gone()


# -- nothing takes for ever ----------------------------------------------------------------------------------


async def test_headers_that_drip_in_are_given_up() -> None:
    """The time is that of all headers together, not that between two bytes."""
    async with serving() as service, service.client() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nX-Drip: ")
        assert await drip(reader, writer) == b""
        await service.all_gone()


async def test_a_body_that_drips_in_is_given_up() -> None:
    """As are headers."""
    async with serving() as service, service.client() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n")
        assert await drip(reader, writer) == b""
        await service.all_gone()


async def test_whoever_sends_nothing_is_given_up() -> None:
    """From the first byte on there is a time limit."""
    async with serving() as service, service.client() as (reader, _):
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        await service.all_gone()


# -- TLS -----------------------------------------------------------------------------------------------------


async def test_a_handshake_that_does_not_come_to_its_end_is_given_up(tmp_path: Path) -> None:
    """Whether nothing comes, or a byte of it now and then."""
    async with serving(CertificateAuthority(tmp_path).server_context(), 10 * WAIT_S) as service:
        async with service.client() as (reader, _):
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        await service.all_gone()
        async with service.client() as (reader, writer):
            writer.write(b"\x16\x03\x01\x40\x00\x01")  # a record of 16 KiB begins (RFC 8446 section 5.1)
            assert await drip(reader, writer) == b""
        await service.all_gone()


async def test_a_handshake_in_time_is_over(tmp_path: Path) -> None:
    """Its time limit does not end the connection later."""
    authority = CertificateAuthority(tmp_path)
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    async with (
        serving(authority.server_context(), 10 * WAIT_S) as service,
        service.client(context) as (reader, writer),
    ):
        for _ in range(10):
            writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi")
            await asyncio.wait_for(reader.readuntil(b"hi"), WAIT_S)
            await asyncio.sleep(TIMEOUT_S / 4)
        assert len(service.peers) == 1


async def test_a_client_that_is_gone_before_its_handshake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Does not count, and is no news."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    theirs.send(b"x")  # without it, Python leaves it to the garbage collector to close the socket
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()  # with a reset
    ended: list[str] = []
    tls = CertificateAuthority(tmp_path).server_context()
    assert open_stream(ours, lambda: ended.append("closed"), tls) is None
    assert ours.fileno() == -1
    assert ended == ["closed"]
    assert not caplog.records
