"""A server that knows the classic dialect only (CONTRACT C1), as those before dialect 2 did: fields that it does not
know it does not heed, and nothing comes with an id."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Fields = dict[str, Any]


class ClassicServer:
    """One user's inbox in memory, and a plain WebSocket to it at any path."""

    def __init__(self) -> None:
        self.documents: list[Fields] = []
        """Oldest first."""
        self.heard: list[Fields] = []
        self._screens: set[ServerConnection] = set()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """As `Notifications` takes it."""
        assert self._server is not None
        return f"http://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}/notification"

    async def notify(self, title: str) -> None:
        number = len(self.documents) + 1
        document = {
            **{name: "" for name in ("content", "type", "url", "icon", "image")},
            **{"_id": f"{number:024x}", "nid": f"{number:024x}", "_userId": "alice", "title": title},
            **{"seen": False, "delete": False, "deletedAt": None, "rev": f"{number:016x}"},
            "createdAt": f"2026-11-21T09:30:{number:02}.000Z",
            "updatedAt": f"2026-11-21T09:30:{number:02}.000Z",
        }
        self.documents.append(document)
        await self._tell("notification", [document])

    async def cut(self) -> None:
        """Close all connections."""
        for screen in list(self._screens):
            await screen.close(1001)

    async def serve_one(self, screen: ServerConnection) -> None:
        try:
            async for text in screen:
                message = json.loads(text)
                self.heard.append(message)
                await self._carry_out(screen, message["name"], message.get("data") or {})
        except ConnectionClosed:
            pass
        finally:
            self._screens.discard(screen)

    async def _carry_out(self, screen: ServerConnection, name: str, data: Fields) -> None:
        if name == "join" and (data.get("login"), data.get("password")) != ("alice", "alice"):
            code, message = (
                ("bad_credentials", "wrong") if "login" in data else ("invalid", "data.login: missing")
            )
            await self._send(screen, "error", {"code": code, "message": message})
        elif name == "join":
            self._screens.add(screen)
            await self._send(screen, "notification", json.dumps([d for d in self.documents if not d["seen"]]))
            await self._send(screen, "count", {"unseen": self._unseen})
        elif screen not in self._screens:
            await self._send(screen, "error", {"code": "not_joined", "message": "join first"})
        elif name == "content":
            await self._list(screen, data["before"], data["limit"])
        elif name in ("seen", "delete"):
            await self._change(name, data)
        else:
            await self._send(
                screen, "error", {"code": "invalid", "message": "unknown command", "field": "name"}
            )

    async def _list(self, screen: ServerConnection, before: str | None, limit: int) -> None:
        older = [
            document for document in reversed(self.documents) if before is None or document["_id"] < before
        ]
        array = json.dumps(older[:limit])
        await self._send(screen, "notification", array, before=before, more=len(older) > limit)

    async def _change(self, name: str, data: Fields) -> None:
        ids = [d["_id"] for d in self.documents if data.get("all") or d["_id"] in data.get("ids", ())]
        for document in self.documents:
            document["seen"] = document["seen"] or (name == "seen" and document["_id"] in ids)
        if name == "delete":
            self.documents = [document for document in self.documents if document["_id"] not in ids]
        await self._tell(name, ids)
        for screen in self._screens:
            await self._send(screen, "count", {"unseen": self._unseen})

    @property
    def _unseen(self) -> int:
        return sum(not document["seen"] for document in self.documents)

    async def _tell(self, name: str, array: list[Any]) -> None:
        for screen in self._screens:
            await self._send(screen, name, json.dumps(array))

    @staticmethod
    async def _send(screen: ServerConnection, name: str, data: Any, **beside: Any) -> None:
        await screen.send(json.dumps({"name": name, "data": data, **beside}))

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[ClassicServer]:
        async with serve(self.serve_one, "127.0.0.1", port) as self._server:
            yield self
