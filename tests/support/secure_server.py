"""The server behind TLS: its own, or that of a proxy; and clients that reach it there."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import connect

from tests.support.certificates import CertificateAuthority, Pair
from tests.support.client import SocketClient
from tests.support.running_server import Response, RunningServer

WAIT_S = 30.0
"""How long something may take that is to come: no measure, only the end of a hang."""


@dataclass(frozen=True)
class SecurePlace:
    """A port of 127.0.0.1 where TLS is spoken under this name. `source`: the client's own address."""

    port: int
    context: ssl.SSLContext
    name: str = "localhost"
    source: str = "127.0.0.1"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One request on a connection of its own; blocks."""
        connection = _Connection(self)
        try:
            connection.request(method, path, body, {"Host": self.name, **(headers or {})})
            answer = connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def notify(self, *users: str, content: str = "", headers: Mapping[str, str] | None = None) -> Response:
        """POST /notify as JSON for these users."""
        body = json.dumps({"users": [{"id": user} for user in users], "content": content}).encode()
        return self.request("POST", "/notify", body, {"Content-Type": "application/json", **(headers or {})})

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=self.context,
            server_hostname=self.name,
            local_addr=(self.source, 0),
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def client(self, path: str = "/notification/websocket") -> SecureClient:
        return SecureClient(self, path)


class _Connection(http.client.HTTPConnection):
    """As HTTPSConnection, to an address that is not the name."""

    def __init__(self, place: SecurePlace) -> None:
        super().__init__("127.0.0.1", place.port, timeout=WAIT_S, source_address=(place.source, 0))
        self._place = place

    def connect(self) -> None:
        super().connect()
        self.sock = self._place.context.wrap_socket(self.sock, server_hostname=self._place.name)


class SecureClient(SocketClient):
    """As SocketClient, over wss."""

    def __init__(self, place: SecurePlace, path: str) -> None:
        self._place = place
        self._path = path
        self._socket = None

    async def __aenter__(self) -> Self:
        place = self._place
        self._socket = await connect(
            f"wss://{place.name}{self._path}",
            host="127.0.0.1",
            port=place.port,
            ssl=place.context,
            server_hostname=place.name,
            local_addr=(place.source, 0),
            max_size=None,
        )
        return self


class SecureServer(RunningServer):
    """A server with a certificate for localhost in its [TLS]."""

    def __init__(
        self,
        folder: Path,
        authority: CertificateAuthority,
        pair: Pair | None = None,
        *,
        arguments: Sequence[str] = (),
        **settings: str,
    ) -> None:
        self.pair = pair or authority.server_pair()
        tls = {"NOTIFY_TLS_CERT": str(self.pair.cert), "NOTIFY_TLS_KEY": str(self.pair.key)}
        super().__init__(folder, arguments=arguments, **tls, **settings)
        self.authority = authority

    def place(self, pair: Pair | None = None) -> SecurePlace:
        """Where it is for a client with this certificate."""
        return SecurePlace(self.port, self.authority.client_context(pair))

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        return self.place().request(method, path, body, headers)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        raise NotImplementedError("use place().client()")


# -- SockJS over HTTP ----------------------------------------------------------------------------------------


class Streaming:
    """One SockJS session by a transport over HTTP: `xhr_streaming`, `eventsource`, `htmlfile`, `xhr` or `jsonp`."""

    def __init__(self, place: SecurePlace, transport: str, session: str) -> None:
        self._place = place
        self._transport = transport
        self._session = f"/notification/000/{session}"
        self._reader: asyncio.StreamReader | None = None
        self.head = ""

    async def __aenter__(self) -> Self:
        self._opening = self._place.open()
        self._reader, self._writer = await self._opening.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opening.__aexit__(None, None, None)

    @property
    def is_polling(self) -> bool:
        return self._transport in ("xhr", "jsonp")

    async def start(self) -> None:
        """Ask for what there is, or will be; `until` reads it."""
        method = "POST" if self._transport.startswith("xhr") else "GET"
        callback = "?c=call" if self._transport in ("htmlfile", "jsonp") else ""
        lines = [
            f"{method} {self._session}/{self._transport}{callback} HTTP/1.1",
            f"Host: {self._place.name}",
        ]
        self._writer.write("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
        if not self.is_polling:
            self.head = await self.until("\r\n\r\n")

    async def until(self, text: str) -> str:
        """All that comes, to this text."""
        assert self._reader is not None
        async with asyncio.timeout(WAIT_S):
            return (await self._reader.readuntil(text.encode())).decode()

    async def send(self, name: str, data: Any) -> None:
        """By a request of its own, as the client does it."""
        messages = json.dumps([json.dumps({"name": name, "data": data})]).encode()
        path = "jsonp_send" if self._transport == "jsonp" else "xhr_send"
        answer = await asyncio.to_thread(
            self._place.request, "POST", f"{self._session}/{path}", messages, {"Content-Type": "text/plain"}
        )
        assert answer.status in (200, 204), answer

    async def receive(self, text: str) -> None:
        """Read until this text has come; polls as often as it takes."""
        if not self.is_polling:
            await self.until(text)
            return
        while True:
            await self.start()
            head = await self.until("\r\n\r\n")
            [length] = [line for line in head.split("\r\n") if line.lower().startswith("content-length: ")]
            assert self._reader is not None
            async with asyncio.timeout(WAIT_S):
                if text in (await self._reader.readexactly(int(length.split()[1]))).decode():
                    return
