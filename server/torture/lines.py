"""The ways by which clients are connected: messages in, messages out, and the rude things that happen to connections. A
line that has ended raises `LineEnded`, whatever ended it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from abc import ABC, abstractmethod
from collections import deque
from typing import Self

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from server.http_client import NoReply
from server.torture.node import Node
from server.torture.nodes import Entrance

CONNECT_WITHIN_S = 5.0

RECEIVE_BUFFER_BYTES = 32 * 1024
"""Of a client's kernel: so that one that stops reading is noticed."""

_BEGIN_OF_A_FRAME = bytes([0x81, 0xFE, 0x10, 0x00]) + b"mask" + b"cut off here"
"""Of 4096 bytes (RFC 6455 section 5.2)."""


class LineEnded(Exception):
    """The connection is over, or could not be made."""


class Line(ABC):
    """One connection."""

    @abstractmethod
    async def receive(self) -> str:
        """The next message. Raises `LineEnded`."""

    @abstractmethod
    async def send(self, text: str) -> None:
        """Raises `LineEnded`."""

    @abstractmethod
    def cut(self) -> None:
        """End it in the middle of a frame, without a word."""

    @abstractmethod
    def close(self) -> None:
        """End it. Idempotent."""


class SocketLine(Line):
    """A WebSocket whose text frames are the messages. Who does not receive does not read from the connection."""

    def __init__(self, socket_: WebSocketClientConnection) -> None:
        self._socket = socket_

    @classmethod
    async def open(cls, nodes: Entrance, path: str) -> Self:
        """Raises `LineEnded`."""
        url = f"ws://127.0.0.1:{nodes.any().port}{path}"
        request = HTTPRequest(url, headers=HTTPHeaders(), connect_timeout=CONNECT_WITHIN_S, request_timeout=0)
        connecting = asyncio.ensure_future(websocket_connect(request, max_message_size=2**26))
        line = None
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                line = cls(await asyncio.shield(connecting))
        except (OSError, HTTPClientError, StreamClosedError) as error:  # a TimeoutError, too
            raise LineEnded(str(error)) from error
        finally:
            if line is None:  # it may be there all the same, now or later
                connecting.add_done_callback(_hang_up)
        with contextlib.suppress(AttributeError):  # it is over already
            line._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        return line

    @property
    def _stream(self):  # type: ignore[no-untyped-def]  # Tornado's, which it does not name
        return self._socket.protocol.stream  # type: ignore[union-attr]

    async def receive(self) -> str:
        message = await self._socket.read_message()
        if message is None:
            raise LineEnded(f"{self._socket.close_code} {self._socket.close_reason or ''}")
        return str(message)

    async def send(self, text: str) -> None:
        try:
            await self._socket.write_message(text)
        except WebSocketClosedError as error:
            raise LineEnded("closed") from error

    def cut(self) -> None:
        with contextlib.suppress(AttributeError, OSError, StreamClosedError):
            stream = self._stream
            stream.write(_BEGIN_OF_A_FRAME)
            # Not even the goodbye of TCP: a reset.
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.close()

    def close(self) -> None:
        self._socket.close()


def _hang_up(connecting: asyncio.Future[WebSocketClientConnection]) -> None:
    """It came too late, and nobody waits any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


class SockJSLine(SocketLine):
    """SockJS's framed WebSocket (its protocol 0.3.3)."""

    def __init__(self, socket_: WebSocketClientConnection) -> None:
        super().__init__(socket_)
        self._messages: deque[str] = deque()

    @classmethod
    async def open(cls, nodes: Entrance, path: str = "/notification") -> Self:
        return await super().open(nodes, f"{path}/000/{uuid.uuid4().hex}/websocket")

    async def receive(self) -> str:
        while not self._messages:
            self._messages += messages_of(await super().receive())
        return self._messages.popleft()

    async def send(self, text: str) -> None:
        await super().send(json.dumps([text]))


class PollingLine(Line):
    """SockJS's `xhr-polling`: each message out and each batch in is a request of its own."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._url = f"{node.url}/notification/000/{uuid.uuid4().hex}"
        self._messages: deque[str] = deque()
        self._is_open = self._has_ended = False

    @classmethod
    async def open(cls, nodes: Entrance) -> Self:
        line = cls(nodes.any())
        await line._poll()
        return line

    async def receive(self) -> str:
        while not self._messages:
            await self._poll()
        return self._messages.popleft()

    async def _poll(self) -> None:
        try:
            reply = await self._ask("xhr", b"")
            if reply.startswith("o") and self._is_open:
                raise LineEnded("the server has lost the session, and begun another one")
            self._is_open = True
            self._messages += messages_of(reply.rstrip("\n"))
        except LineEnded:
            self._has_ended = True
            raise

    async def send(self, text: str) -> None:
        await self._ask("xhr_send", json.dumps([text]).encode())

    async def _ask(self, what: str, body: bytes) -> str:
        if self._has_ended:
            raise LineEnded("closed")
        try:
            reply = await self._node.http.post(f"{self._url}/{what}", 30.0, {}, body)
        except NoReply as error:
            raise LineEnded(str(error)) from error
        if reply.status not in (200, 204):
            raise LineEnded(str(reply.status))
        return reply.body.decode()

    def cut(self) -> None:
        self._has_ended = True

    def close(self) -> None:
        self._has_ended = True


def messages_of(frame: str) -> list[str]:
    """The messages in a frame of SockJS; those of this server are objects. Raises `LineEnded` for its close frame."""
    if frame.startswith("a"):
        return [each if isinstance(each, str) else json.dumps(each) for each in json.loads(frame[1:])]
    if frame.startswith("c"):
        raise LineEnded(frame)
    return []


class StreamLine(Line):
    """Server-Sent Events over HTTP/1.1. A message is an event: `{"name", "id", "data"}`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._text = b""

    @classmethod
    async def open(cls, nodes: Entrance, path: str, token: str, last_id: str | None = None) -> Self:
        """Raises `LineEnded`."""
        port = nodes.any().port
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
        lines += [f"Last-Event-ID: {last_id}"] if last_id else []
        line = None
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
                line = cls(reader, writer)
                writer.write("\r\n".join([*lines, "", ""]).encode())
                first, _, _ = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
            if first.split()[1] != b"200":
                raise LineEnded(first.decode())
        except BaseException as error:
            if line is not None:
                line.close()
            if isinstance(error, OSError | EOFError):  # a TimeoutError, too
                raise LineEnded(str(error)) from error
            raise
        return line

    async def receive(self) -> str:
        while True:
            fields = self._fields(await self._block())
            if "data" in fields:
                return json.dumps({**fields, "data": json.loads(fields["data"])})

    @staticmethod
    def _fields(block: str) -> dict[str, str]:
        parts = (line.partition(":") for line in block.split("\n"))
        names = {"event": "name"}
        return {names.get(name, name): value.removeprefix(" ") for name, _, value in parts if name}

    async def _block(self) -> str:
        while b"\n\n" not in self._text:
            try:
                size = int(await self._reader.readuntil(b"\r\n"), 16)
                self._text += (await self._reader.readexactly(size + 2))[:-2]
            except (OSError, EOFError, ValueError) as error:
                raise LineEnded(str(error)) from error
            if not size:
                raise LineEnded("the end of the stream")
        block, _, self._text = self._text.partition(b"\n\n")
        return block.decode()

    async def send(self, text: str) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()
