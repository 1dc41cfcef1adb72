"""Our SockJS door on a real port, with sessions that record; and clients that read byte by byte, or never."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from pydispatch import dispatcher
from tornado.httpserver import HTTPServer
from tornado.netutil import add_accept_handler, bind_sockets
from tornado.web import Application
from websockets.asyncio.client import ClientConnection, connect

from server import bus
from server.config.schema import Limits as LimitSettings
from server.limits import Limits
from server.rooms import Connection
from server.security_headers import WITHOUT_CONTENT
from server.streams import open_stream
from server.transports.registry import ConnectionOptions, Connections
from server.transports.sockjs import SockJSDoor, SockJSOptions
from server.transports.upgrades import Upgrades
from server.wire import CloseReason, Frame
from tests.support.sockjs_services import identify

WAIT_S = 20.0
"""How long something may take that is to come: no measure, only the end of a hang."""

STREAMING = {
    "xhr_streaming": ("POST", "/xhr_streaming"),
    "eventsource": ("GET", "/eventsource"),
    "htmlfile": ("GET", "/htmlfile?c=callback"),
}
POLLING = {"xhr": ("POST", "/xhr"), "jsonp": ("GET", "/jsonp?c=callback")}
WEBSOCKETS = {"websocket": "/000/a/websocket", "rawwebsocket": "/websocket"}

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""The headers by which a client asks for a WebSocket."""

OPTIONS = SockJSOptions(client_url="/our/own/sockjs.js", prefix="/socket", refusal_delay_s=0.0)
CONNECTION_OPTIONS = ConnectionOptions(disconnect_delay_s=WAIT_S)

NO_LIMITS = LimitSettings(connects_per_address=None, commands_per_connection=None)


def frame(number: int, filler: int = 0) -> Frame:
    """A message with a number in it, and `filler` bytes."""
    return Frame(json.dumps({"name": "test", "data": "x" * filler, "number": number}))


class RecordingSession:
    """Remembers what it is told; `on_open` and `on_message` stand for what the core does then."""

    def __init__(self, service: DoorService, connection: Connection) -> None:
        self.connection = connection
        self.received: asyncio.Queue[str] = asyncio.Queue()
        self.closed_count = 0
        self.over = asyncio.Event()
        self.is_joined = True
        self._service = service
        service.on_open(self)

    def receive(self, text: str) -> Awaitable[None] | None:
        self.received.put_nowait(text)
        return self._service.on_message(self, text)

    def closed(self) -> None:
        self.closed_count += 1
        self.over.set()


class DoorService:
    """A door that is being served. Set `on_open` and `on_message` before clients come. `limits`: those of config."""

    def __init__(
        self, tls: ssl.SSLContext | None = None, limits: LimitSettings = NO_LIMITS, **options: Any
    ) -> None:
        self.takes_the_short_way = True
        """Whether WebSockets come in by `Upgrades`, where they may."""
        self.sockets = 0
        """How many accepted ones are open, as far as was told."""
        self.all_sessions: list[RecordingSession] = []
        self._opened: asyncio.Queue[RecordingSession] = asyncio.Queue()
        self.on_open: Callable[[RecordingSession], None] = lambda session: None
        self.on_message: Callable[[RecordingSession, str], Awaitable[None] | None] = lambda session, text: (
            None
        )
        self.ends: list[tuple[str, CloseReason | None]] = []
        """What the bus said of connections that are over: transport, reason."""
        self.limits = Limits(limits)
        known = {field.name for field in fields(ConnectionOptions)}
        ours = {name: value for name, value in options.items() if name in known}
        others = {name: value for name, value in options.items() if name not in known}
        self.connections = Connections(replace(CONNECTION_OPTIONS, **ours), self.limits)
        self.door = SockJSDoor(self._open, identify, self.connections, replace(OPTIONS, **others))
        dispatcher.connect(self._note_end, signal=bus.CONNECTION_CLOSED)
        self._server = HTTPServer(Application(self.door.routes), ssl_options=tls)
        self.upgrades = Upgrades(self.door.ways, self.connections, identify, WITHOUT_CONTENT, lambda *_: None)
        [listening] = bind_sockets(0, "127.0.0.1", socket.AF_INET)
        self._stop_listening = lambda: None
        if tls is not None:
            self._server.add_sockets([listening])
        else:
            stop_accepting = add_accept_handler(listening, self._accept)

            def stop_listening() -> None:
                stop_accepting()
                listening.close()

            self._stop_listening = stop_listening
        self.port: int = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{self.door.options.prefix}"

    def _accept(self, connection: socket.socket, address: Any) -> None:
        """As the server does it."""
        connection.setblocking(False)
        self.sockets += 1
        if self.takes_the_short_way:
            self.upgrades.take(connection, address, self._left, self._serve_requests)
        else:
            self._serve_requests(connection, address, self._left)

    def _left(self) -> None:
        self.sockets -= 1

    def _serve_requests(self, connection: socket.socket, address: Any, left: Callable[[], None]) -> None:
        stream = open_stream(connection, left)
        assert stream is not None
        self._server.handle_stream(stream, address)

    def _open(self, connection: Connection) -> RecordingSession:
        session = RecordingSession(self, connection)
        self.all_sessions.append(session)
        self._opened.put_nowait(session)
        return session

    def _note_end(self, transport: str, reason: CloseReason | None) -> None:
        self.ends.append((transport, reason))

    async def stop(self) -> None:
        self.connections.stop()
        self._stop_listening()
        self.upgrades.close()
        await self.upgrades.cut_off()
        self._server.stop()
        await self._server.close_all_connections()

    async def next_session(self) -> RecordingSession:
        """The session that was opened next."""
        return await asyncio.wait_for(self._opened.get(), WAIT_S)

    def new_session_path(self) -> str:
        return f"/000/{uuid.uuid4()}"

    # -- clients ---------------------------------------------------------------------------------------------
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """A whole request: status, headers (lower case), body."""
        async with self.client() as client:
            await client.write_request(method, path, body, headers)
            return await client.read_answer()

    @contextlib.asynccontextmanager
    async def client(self, receive_buffer_bytes: int | None = None) -> AsyncIterator[RawClient]:
        """A connection of bytes; a small receive buffer makes a client that is soon full."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        limit = receive_buffer_bytes or 2**16
        reader, writer = await asyncio.open_connection(sock=connection, limit=limit)
        try:
            yield RawClient(reader, writer, self.door.options.prefix)
        finally:
            writer.close()

    def websocket(
        self, transport: str, **options: Any
    ) -> contextlib.AbstractAsyncContextManager[ClientConnection]:
        """`options` are those of `websockets.connect`; with `ssl` among them the server is spoken to by TLS."""
        scheme = "wss" if "ssl" in options else "ws"
        url = f"{scheme}://127.0.0.1:{self.port}{self.door.options.prefix}{WEBSOCKETS[transport]}"
        return connect(url, compression=None, max_size=None, **options)


class RawClient:
    """A client that reads only when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prefix: str) -> None:
        self.reader = reader
        self.writer = writer
        self._prefix = prefix

    async def write_request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
    ) -> None:
        lines = [
            f"{method} {self._prefix}{path} HTTP/{version}",
            "Host: 127.0.0.1",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def read_head(self) -> tuple[int, dict[str, str]]:
        head = (await self.read_until(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), {name.lower(): value for name, value in headers.items()}

    async def read_answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.read_head()
        if "chunked" in headers.get("transfer-encoding", ""):
            return status, headers, await self.read_chunks_to_end()
        length = int(headers.get("content-length", 0))
        return status, headers, await asyncio.wait_for(self.reader.readexactly(length), WAIT_S)

    async def read_chunk(self) -> bytes:
        """The next chunk of a response; b"" at its end."""
        size = int(await asyncio.wait_for(self.reader.readline(), WAIT_S), 16)
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), WAIT_S))[:-2]

    async def read_chunks_to_end(self) -> bytes:
        chunks = []
        while chunk := await self.read_chunk():
            chunks.append(chunk)
        return b"".join(chunks)

    async def read_until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), WAIT_S)

    async def read_to_end(self) -> bytes:
        """All that comes until the connection is closed, or reset."""
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := await asyncio.wait_for(self.reader.read(65536), WAIT_S):
                parts.append(part)
        return b"".join(parts)

    async def upgrade(self, path: str, headers: Mapping[str, str] | None = None) -> None:
        """The handshake of a WebSocket that will neither read nor answer pings by itself."""
        await self.ask_for_upgrade(path, headers)
        status, _ = await self.read_head()
        assert status == 101

    async def ask_for_upgrade(self, path: str, headers: Mapping[str, str] | None = None) -> None:
        await self.write_request("GET", path, headers=UPGRADE | dict(headers or {}))

    def write_frame(self, opcode: int, payload: bytes, first_bits: int = 0x80) -> None:
        """A masked WebSocket frame (RFC 6455 section 5.2), the mask being zero."""
        size = len(payload)
        head = (
            struct.pack("!BB", first_bits | opcode, 0x80 | min(size, 126))
            if size < 126
            else (
                struct.pack("!BBH", first_bits | opcode, 0xFE, size)
                if size < 65536
                else struct.pack("!BBQ", first_bits | opcode, 0xFF, size)
            )
        )
        self.writer.write(head + bytes(4) + payload)

    async def reset(self) -> None:
        """Cut the connection as a crash does, with a TCP reset, of which no other task has heard yet."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)  # the turn in which the socket is closed


@contextlib.asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None = None, limits: LimitSettings = NO_LIMITS, **options: Any
) -> AsyncIterator[DoorService]:
    """Serve a door with these options instead of `OPTIONS`."""
    service = DoorService(tls, limits, **options)
    try:
        yield service
    finally:
        await service.stop()
