"""A client of Server-Sent Events, written to the HTML Living Standard (9.2.6): independent of the server's code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.feeds import WAIT_S, user_token
from tests.support.running_server import RunningServer


@dataclass(frozen=True)
class Event:
    name: str
    data: Any
    id: str | None = None


class EventStream:
    """The response to one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0
        self.retry_ms: int | None = None
        self.has_ended = False
        """Whether the response has come to its end, and was not cut off."""
        self._is_chunked = False
        self._text = b""

    async def read_head(self) -> None:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_S)
        first, *lines = head.decode().strip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self._is_chunked = self.headers.get("transfer-encoding") == "chunked"

    async def _more(self) -> bool:
        """Read on; whether there was more."""
        async with asyncio.timeout(WAIT_S):
            if not self._is_chunked:
                some = await self.reader.read(65536)
                self.has_ended = not some
            else:
                some = await self._chunk()
        self._text += some
        return bool(some)

    async def _chunk(self) -> bytes:
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            some = (await self.reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        self.has_ended = not size
        return some

    async def block(self) -> str | None:
        """What stands before the next empty line; None at the end."""
        while b"\n\n" not in self._text:
            if not await self._more():
                return None
        block, _, self._text = self._text.partition(b"\n\n")
        return block.decode()

    async def event(self) -> Event | None:
        """The next event; None: the stream has ended."""
        while (block := await self.block()) is not None:
            fields: dict[str, str] = {}
            for line in block.split("\n"):
                name, _, value = line.partition(":")
                self.comments += not name
                fields[name] = value.removeprefix(" ")
            if "retry" in fields:
                self.retry_ms = int(fields["retry"])
            if "data" in fields:
                return Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
        return None

    async def next(self, name: str) -> Event:
        """The next event, which is one of this name."""
        event = await self.event()
        assert event is not None and event.name == name, event
        return event

    async def caught_up(self) -> list[Event]:
        """What comes first, with the count at its end."""
        events = []
        while True:
            event = await self.event()
            assert event is not None, events
            events.append(event)
            if event.name == "count":
                return events

    async def comment(self) -> None:
        """Return when one more comment has come."""
        before = self.comments
        while self.comments == before:
            block = await self.block()
            assert block is not None
            self.comments += block.startswith(":")


@asynccontextmanager
async def event_stream(
    server: RunningServer,
    user: str | None = None,
    *,
    path: str = "/events",
    headers: Mapping[str, str] | None = None,
    last_id: str | None = None,
    version: str = "1.1",
    receive_buffer_bytes: int | None = None,
    port: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[EventStream]:
    """One that has read the head of the answer, whatever that says. `user`: with a token of theirs. `tls`: to a
    server for localhost."""
    sent = dict(headers or {})
    if user is not None:
        sent["Authorization"] = f"Bearer {user_token(user)}"
    if last_id is not None:
        sent["Last-Event-ID"] = last_id
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port or server.port))
    reader, writer = await asyncio.open_connection(
        sock=connection,
        limit=receive_buffer_bytes or 2**16,
        ssl=tls,
        server_hostname=None if tls is None else "localhost",
    )
    lines = [f"GET {path} HTTP/{version}", f"Host: 127.0.0.1:{port or server.port}"]
    lines += [f"{name}: {value}" for name, value in sent.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    stream = EventStream(reader, writer)
    try:
        await stream.read_head()
        yield stream
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
