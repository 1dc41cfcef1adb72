"""The ways to a running server: WebSockets, plain and in SockJS's frames, and a stream of events. Each waits for no
longer than it is told to."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

MAX_MESSAGE_BYTES = 64 * 2**20


class Closed(Exception):
    """The connection is over. `code` and `reason`: as the server has it; None: it did not say."""

    def __init__(self, code: int | None = None, reason: str | None = None) -> None:
        super().__init__(f"the connection was closed: {code} {reason or ''}".rstrip())
        self.code = code
        self.reason = reason or ""


class Unreachable(Exception):
    """There is no server, or it does not let anybody in; in words."""


class Line(ABC):
    """A WebSocket on which messages are exchanged."""

    path = ""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, url: str, within_s: float) -> Self:
        """To the server at `url`. Raises `Unreachable`."""
        address = url.replace("http", "ws", 1) + cls.path.format(session=secrets.token_hex(8))
        request = HTTPRequest(address, connect_timeout=within_s, request_timeout=0)
        try:
            async with asyncio.timeout(within_s):
                line = cls(await websocket_connect(request, max_message_size=MAX_MESSAGE_BYTES))
                await line._begin()
        except (OSError, HTTPClientError, StreamClosedError, Closed) as exc:  # a TimeoutError, too
            raise Unreachable(f"{address}: {exc or type(exc).__name__}") from exc
        return line

    async def _begin(self) -> None:  # noqa: B027  # most say nothing
        """What the server says first."""

    @abstractmethod
    async def receive(self) -> str:
        """The next message. Raises `Closed`."""

    @abstractmethod
    async def send(self, text: str) -> None:
        """Raises `Closed`."""

    async def send_bytes(self, data: bytes) -> None:
        """Of which the protocol knows nothing. Raises `Closed`."""
        await self._write(data)

    async def _read(self) -> str:
        message = await self._socket.read_message()
        if message is None:
            raise Closed(self._socket.close_code, self._socket.close_reason)
        return message if isinstance(message, str) else message.decode()

    async def _write(self, data: str | bytes) -> None:
        try:
            await self._socket.write_message(data, binary=isinstance(data, bytes))
        except (WebSocketClosedError, StreamClosedError) as exc:
            raise Closed(self._socket.close_code, self._socket.close_reason) from exc

    def close(self) -> None:
        """Say goodbye. Idempotent."""
        self._socket.close()

    async def gone(self, within_s: float) -> None:
        """Return when the server has taken the goodbye, or never does."""
        try:
            async with asyncio.timeout(within_s):
                while await self._socket.read_message() is not None:
                    pass
        except TimeoutError:
            pass


class PlainLine(Line):
    """`/ws/v2`: a message is a text frame."""

    path = "/ws/v2"

    async def receive(self) -> str:
        return await self._read()

    async def send(self, text: str) -> None:
        await self._write(text)


class SockJSLine(Line):
    """SockJS's WebSocket (protocol 0.3.3): `o`, `h`, `a[…]` with the messages, `c[code, reason]`."""

    path = "/notification/000/{session}/websocket"

    def __init__(self, socket: WebSocketClientConnection) -> None:
        super().__init__(socket)
        self._messages: deque[str] = deque()

    async def _begin(self) -> None:
        if await self._read() != "o":
            raise Closed(None, "no open frame of SockJS")

    async def receive(self) -> str:
        while not self._messages:
            frame = await self._read()
            if frame.startswith("a"):
                # Objects: SockJS carries any JSON, and deployed clients were written for that.
                self._messages.extend(json.dumps(each) for each in json.loads(frame[1:]))
            elif frame.startswith("c"):
                raise Closed(*json.loads(frame[1:]))
        return self._messages.popleft()

    async def send(self, text: str) -> None:
        await self._write(json.dumps([text]))


LINES: Mapping[str, type[Line]] = {"sockjs": SockJSLine, "ws_v2": PlainLine}
"""By the names of their doors."""


@dataclass(frozen=True, slots=True)
class Event:
    """One of Server-Sent Events: `data` parsed; None: the server gave none."""

    id: str | None
    data: Any
    name: str = "message"
    retry_ms: int | None = None


class Stream:
    """A response that is a stream of events (HTML Living Standard, 9.2)."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self.status = 0
        self.headers: dict[str, str] = {}
        self._text = ""

    @classmethod
    async def open(
        cls,
        url: str,
        path: str,
        headers: Mapping[str, str],
        within_s: float,
    ) -> Self:
        """The answer to GET, whatever it is. Raises `Unreachable`."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        options = ssl.create_default_context() if is_tls else None
        # HTTP/1.0: the answer comes as it is, up to the end of the connection.
        head = [f"GET {parts.path}{path} HTTP/1.0", f"Host: {parts.netloc}"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        try:
            async with asyncio.timeout(within_s):
                stream = cls(await TCPClient().connect(parts.hostname or "", port, ssl_options=options))
                await stream._stream.write("\r\n".join([*head, "", ""]).encode())
                await stream._read_head()
        except (OSError, StreamClosedError, ValueError) as exc:  # a TimeoutError, too
            raise Unreachable(f"{url}{path.partition('?')[0]}: {exc or type(exc).__name__}") from exc
        return stream

    async def _read_head(self) -> None:
        head = (await self._stream.read_until(b"\r\n\r\n", max_bytes=64 * 1024)).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)
        }

    async def event(self) -> Event:
        """The next one that has data. Raises `Closed`."""
        while True:
            while "\n\n" not in self._text:
                try:
                    self._text += (await self._stream.read_until(b"\n\n")).decode()
                except StreamClosedError as exc:
                    raise Closed from exc
            block, _, self._text = self._text.partition("\n\n")
            fields = {
                name: value.removeprefix(" ")
                for name, _, value in (each.partition(":") for each in block.split("\n"))
            }
            if "data" in fields:
                retry = fields.get("retry")
                return Event(
                    fields.get("id"),
                    json.loads(fields["data"]),
                    fields.get("event", "message"),
                    None if retry is None else int(retry),
                )

    def close(self) -> None:
        self._stream.close()
