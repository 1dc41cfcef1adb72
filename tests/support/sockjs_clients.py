"""Clients of the classic socket dialect over SockJS: its framed WebSocket, and polling."""

from __future__ import annotations

import asyncio
import json
import uuid
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Self

from websockets.asyncio.client import connect

from tests.support.client import SocketClient
from tests.support.running_server import RunningServer

_TIMEOUT_S = 15.0


class _SockJSClient(SocketClient, ABC):
    """As SocketClient, in SockJS's frames (protocol 0.3.3): `o` open, `a[…]` messages (here objects), `h` heartbeat,
    `c[…]` close."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__(server)
        self._server = server
        self._path = f"/notification/000/{uuid.uuid4().hex}"
        self._messages: deque[Any] = deque()
        self._end: tuple[int, str] | None = None

    @abstractmethod
    async def _pass_on(self, messages: str) -> None:
        """Send a JSON array of messages."""

    @abstractmethod
    async def _receive(self) -> str:
        """The next frame of SockJS."""

    async def send(self, name: str, data: Any = None) -> None:
        await self._pass_on(json.dumps([json.dumps({"name": name, "data": data})]))

    async def frame(self) -> tuple[str, Any]:
        while not self._messages:
            await self._take()
            assert self._end is None, self._end
        message = self._messages.popleft()
        data = message["data"]
        return message["name"], json.loads(data) if isinstance(data, str) else data

    async def closed(self, within_s: float = _TIMEOUT_S) -> tuple[int, str]:
        async with asyncio.timeout(within_s):
            while self._end is None:
                await self._take()
        return self._end

    async def _take(self) -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            frame = await self._receive()
        if frame[0] == "a":
            self._messages.extend(json.loads(frame[1:]))
        elif frame[0] == "c":
            code, reason = json.loads(frame[1:])
            self._end = code, reason
        else:
            assert frame in ("o", "h"), frame


class FramedClient(_SockJSClient):
    """Over SockJS's WebSocket."""

    async def __aenter__(self) -> Self:
        url = f"ws://127.0.0.1:{self._server.port}{self._path}/websocket"
        self._socket = await connect(url, max_size=None)
        await self._take()
        return self

    async def _pass_on(self, messages: str) -> None:
        await self.socket.send(messages)

    async def _receive(self) -> str:
        return str(await self.socket.recv())


class PollingClient(_SockJSClient):
    """Over SockJS's `xhr`, each request on a connection of its own. Ends by polling no more."""

    async def __aenter__(self) -> Self:
        await self._take()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    async def _pass_on(self, messages: str) -> None:
        answer = await asyncio.to_thread(
            self._server.request, "POST", f"{self._path}/xhr_send", messages.encode()
        )
        assert answer.status == 204, answer

    async def _receive(self) -> str:
        answer = await asyncio.to_thread(self._server.request, "POST", f"{self._path}/xhr", b"")
        assert answer.status == 200, answer
        return answer.body.decode().removesuffix("\n")


DOORS: dict[str, type[SocketClient]] = {
    "websocket": SocketClient,
    "sockjs": FramedClient,
    "xhr": PollingClient,
}
"""A client for each kind of listening door."""
