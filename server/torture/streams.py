"""Clients over Server-Sent Events: of dialect 2, and of the classic one."""

from __future__ import annotations

import asyncio
from typing import Any

from server.conformance.model import InboxModel
from server.torture.clients import GREETED_WITHIN_S, Client, read_pages, token_of
from server.torture.judging import View
from server.torture.lines import Line, LineEnded, StreamLine
from server.torture.nodes import Entrance


class StreamV2(Client):
    """Of dialect 2, over Server-Sent Events: it cannot ask, and where it is told to read anew it begins anew."""

    def __init__(self, name: str, user: str, nodes: Entrance, seed: str) -> None:
        super().__init__(name, user, self._open, seed)
        self._nodes = nodes
        self.model = InboxModel()
        self._is_told = asyncio.Event()

    async def _open(self) -> Line:
        self._is_told.clear()
        since = None if self.model.must_page else self.model.since
        return await StreamLine.open(self._nodes, "/events?v=2", token_of(self.user), since)

    async def greet(self, line: Line) -> None:
        await self._is_told.wait()
        if self.model.must_page:
            await self._page()

    async def _page(self) -> None:
        try:
            documents = await read_pages(self._nodes, self.user)
        except (OSError, ValueError) as error:
            raise LineEnded(str(error)) from error
        self.model.hear("content", {"documents": documents, "older": False})

    def hear(self, message: Any) -> None:
        frame = message["data"]
        name, data = frame.get("name"), frame.get("data", {})
        if name is None:
            return  # why the stream ends
        self.model.hear(name, data)
        if name in ("joined", "sync") and not data.get("more"):
            self._is_told.set()

    async def finish(self) -> None:
        """Come back, which says what has changed."""
        self.is_here.clear()
        if self._line is not None:
            self._line.cut()
        async with asyncio.timeout(GREETED_WITHIN_S):
            await self.is_here.wait()

    def view(self) -> View:
        return View(self.name, self.user, states=self.model.inbox)


class ClassicStream(Client):
    """Server-Sent Events in the classic dialect, which go on from the last id."""

    def __init__(self, name: str, user: str, nodes: Entrance, seed: str) -> None:
        super().__init__(name, user, self._open, seed)
        self._nodes = nodes
        self._last_id: str | None = None
        self._unseen: set[str] = set()
        self._count: int | None = None
        self._is_told = asyncio.Event()

    async def _open(self) -> Line:
        self._is_told.clear()
        if self._last_id is None:
            self._unseen.clear()
        return await StreamLine.open(self._nodes, "/events", token_of(self.user), self._last_id)

    async def greet(self, line: Line) -> None:
        await self._is_told.wait()

    def hear(self, message: Any) -> None:
        name, data = message.get("name"), message["data"]
        self._last_id = message.get("id", self._last_id)
        if name == "notification":
            is_unseen = not data["seen"] and not data["delete"]
            (self._unseen.add if is_unseen else self._unseen.discard)(data["_id"])
        elif name in ("seen", "delete"):
            self._unseen -= set(data["ids"])
        elif name == "count":
            self._count = data["unseen"]
            self._is_told.set()

    def view(self) -> View:
        return View(self.name, self.user, unseen=self._unseen, count=self._count)
