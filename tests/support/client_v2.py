"""A client of dialect 2, over a WebSocket that carries a message in a text frame; independent of the server's code."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.conformance.model import Fields, InboxModel
from tests.support.feeds import WAIT_S, user_token
from tests.support.running_server import RunningServer

PATHS = ("/ws/v2", "/notification/websocket")
"""Where dialect 2 is spoken over a plain WebSocket."""


class ClientV2:
    """One connection, and what its user knows of the inbox: `model` may be that of a connection before."""

    def __init__(self, socket: ClientConnection, model: InboxModel | None = None) -> None:
        self.socket = socket
        self.model = model or InboxModel()
        self.ticket: str | None = None
        self.pushes: list[tuple[str, Fields]] = []
        """Frames without an id, in their order."""
        self._ids = itertools.count(1)

    async def frame(self) -> Fields:
        """The next frame, which the model has heard of."""
        frame: Fields = json.loads(await asyncio.wait_for(self.socket.recv(), WAIT_S))
        self.model.hear(frame["name"], frame["data"])
        self.ticket = frame["data"].get("ticket") or self.ticket
        if "id" not in frame:
            self.pushes.append((frame["name"], frame["data"]))
        return frame

    async def push(self, name: str) -> Fields:
        """The next push of this name; all else is passed over."""
        while True:
            for number, (found, data) in enumerate(self.pushes):
                if found == name:
                    del self.pushes[: number + 1]
                    return data
            await self.frame()

    async def ask_all(self, name: str, data: Any = None) -> list[Fields]:
        """All frames that answer a command."""
        id_ = next(self._ids)
        await self.socket.send(json.dumps({"name": name, "id": id_, "data": data}))
        answers: list[Fields] = []
        while not answers or answers[-1]["data"].get("more"):
            frame = await self.frame()
            if frame.get("id") == id_:
                answers.append(frame)
        return answers

    async def ask(self, name: str, data: Any = None) -> Fields:
        """The data of the last frame that answers a command, which goes well."""
        last = (await self.ask_all(name, data))[-1]
        if last["name"] == "error":
            raise RuntimeError(last["data"])
        fields: Fields = last["data"]
        return fields

    async def refusal(self, name: str, data: Any = None) -> Fields:
        """The error that a command is answered with."""
        last = (await self.ask_all(name, data))[-1]
        assert last["name"] == "error", last
        fields: Fields = last["data"]
        return fields

    async def join(self, **proof: Any) -> Fields:
        """Join, from where the model is; the answer itself."""
        since = {} if self.model.since is None else {"since": self.model.since}
        answers = await self.ask_all("join", {"v": 2, **proof, **since})
        joined: Fields = answers[0]["data"]
        if answers[0]["name"] == "error":
            raise RuntimeError(joined)
        await self.page()
        return joined

    async def page(self) -> None:
        """Read all there is, if the model has to."""
        before: str | None = None
        while self.model.must_page:
            page = await self.ask("content", {"before": before, "limit": 100})
            before = page["documents"][-1]["_id"] if page["documents"] else None

    async def sync(self) -> None:
        """Catch up."""
        await self.ask("sync", {"since": self.model.since})
        await self.page()

    async def closed(self) -> tuple[int, str]:
        """Code and reason, when the server has closed the connection."""
        async with asyncio.timeout(WAIT_S):
            with suppress(ConnectionClosed):
                while True:
                    await self.frame()
        assert self.socket.close_code is not None
        return self.socket.close_code, self.socket.close_reason or ""


@asynccontextmanager
async def client_v2(
    server: RunningServer,
    user: str | None = None,
    *,
    path: str = "/ws/v2",
    model: InboxModel | None = None,
    **claims: Any,
) -> AsyncIterator[ClientV2]:
    """One that has joined by a token, with `user`."""
    url = f"ws://127.0.0.1:{server.port}{path}"
    async with connect(url, max_size=None, ping_interval=None) as socket:
        client = ClientV2(socket, model)
        if user is not None:
            await client.join(token=user_token(user, **claims))
        yield client
