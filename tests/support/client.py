"""A client of the classic socket dialect over a plain WebSocket, independent of the server's code."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.running_server import RunningServer

_TIMEOUT_S = 15.0


class SocketClient:
    """One connection. Frames are read in order; `notification`, `seen` and `delete` with their data parsed."""

    def __init__(self, server: RunningServer) -> None:
        self._url = server.websocket_url
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        self._socket = await connect(self._url, max_size=None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.socket.close()

    @property
    def socket(self) -> ClientConnection:
        assert self._socket is not None, "use it as a context manager"
        return self._socket

    async def send(self, name: str, data: Any = None) -> None:
        await self.socket.send(json.dumps({"name": name, "data": data}))

    async def frame(self) -> tuple[str, Any]:
        """The next frame: name and data."""
        message = json.loads(await asyncio.wait_for(self.socket.recv(), _TIMEOUT_S))
        data = message["data"]
        return message["name"], json.loads(data) if isinstance(data, str) else data

    async def next(self, name: str) -> Any:
        """The data of the next frame of this name; others are passed over."""
        while True:
            got, data = await self.frame()
            if got == name:
                return data

    async def join(self, user: str, password: str | None = None) -> list[dict[str, Any]]:
        """Join; all that is unseen."""
        await self.send("join", {"login": user, "password": user if password is None else password})
        return await self._welcome()

    async def join_by_token(self, token: str) -> list[dict[str, Any]]:
        """Join by a token; all that is unseen."""
        await self.send("join", {"token": token})
        return await self._welcome()

    async def _welcome(self) -> list[dict[str, Any]]:
        unseen: list[dict[str, Any]] = []
        while True:
            name, data = await self.frame()
            if name == "count":
                return unseen
            assert name == "notification", (name, data)
            unseen += data

    async def refusal(self, name: str, data: Any) -> dict[str, Any]:
        """The error that a command is answered with, as it came."""
        await self.send(name, data)
        error: dict[str, Any] = await self.next("error")
        return error

    async def closed(self, within_s: float = _TIMEOUT_S) -> tuple[int, str]:
        """Code and reason, when the server has closed the connection; what came before is passed over."""
        async with asyncio.timeout(within_s):
            # Who does not read does not get to the end of what came before.
            with suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
        assert self.socket.close_code is not None
        return self.socket.close_code, self.socket.close_reason or ""

    async def content(self, *, before: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest, or those before an id; newest first."""
        await self.send("content", {"before": before, "limit": limit})
        documents: list[dict[str, Any]] = await self.next("notification")
        return documents
