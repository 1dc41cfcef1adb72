"""Clients of the other systems, which only listen and know payloads: of the Redis hub (CONTRACT C2), of the Django
service (C3, with acknowledgements) and of Socket.IO (C4). Each is to be sent, at least once, all that is unseen.

In C2 and C4 nobody acknowledges: what has arrived at a client's machine counts as sent. So these two are never cut off
with something unread; in C3 they are."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from server.torture.clients import Client, token_of
from server.torture.judging import View
from server.torture.lines import Line, LineEnded, SocketLine
from server.torture.nodes import Entrance
from server.wire import instant

ACKNOWLEDGED = 0.7
"""How much of what it is sent a client of C3 acknowledges: the rest comes again."""


class _Feed(Client):
    def __init__(self, name: str, user: str, nodes: Entrance, seed: str) -> None:
        super().__init__(name, user, self._open, seed)
        self._nodes = nodes
        self._keys: set[str] = set()

    async def _open(self) -> Line:
        raise NotImplementedError

    def _note(self, payload: Any) -> None:
        self._keys.add(str(payload.get("title")))

    def view(self) -> View:
        return View(self.name, self.user, keys=self._keys)


class HubFeed(_Feed):
    """CONTRACT C2."""

    may_be_cut = False

    async def _open(self) -> Line:
        return await SocketLine.open(self._nodes, f"/ws?token={token_of(self.user)}")

    def hear(self, message: Any) -> None:
        self._note(message["payload"])


class ServiceFeed(_Feed):
    """CONTRACT C3: nothing from before its user first used it; what is stored while the clock is back by more than that
    counts as such."""

    def __init__(self, name: str, user: str, nodes: Entrance, seed: str) -> None:
        super().__init__(name, user, nodes, seed)
        self._since = ""

    def view(self) -> View:
        return replace(super().view(), since=self._since)

    async def _open(self) -> Line:
        path = f"/ws/notifications/{self.user}/?token={token_of(self.user)}"
        line = await SocketLine.open(self._nodes, path)
        self._since = self._since or instant(datetime.now(UTC)) or ""
        return line

    def hear(self, message: Any) -> None:
        if message["type"] != "server_notification":
            return
        self._note(message["value"])
        if self.rng.random() < ACKNOWLEDGED and self._line is not None:
            said = {"type": "message_ack", "key": message["key"]}
            self._say(self._line.send(json.dumps(said)))

    def _say(self, sending: Any) -> None:
        """What does not arrive is sent again."""

        def look(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and not isinstance(task.exception(), LineEnded | None):
                self.trouble = repr(task.exception())

        asyncio.ensure_future(sending).add_done_callback(look)


class _PacketLine(SocketLine):
    """Engine.IO 4 and Socket.IO 5 over WebSocket: a message is the JSON of an event."""

    async def join(self, token: str) -> None:
        """Raises `LineEnded`."""
        if not (await super().receive()).startswith("0"):
            raise LineEnded("no handshake")
        await self.send("40" + json.dumps({"token": token}))
        if not (await super().receive()).startswith("40"):
            raise LineEnded("not let in")

    async def receive(self) -> str:
        while not (packet := await super().receive()).startswith("42"):
            if packet == "2":
                await self.send("3")
            elif packet.startswith(("1", "41", "44")):
                raise LineEnded(packet)
        return packet[2:]


class RealtimeFeed(_Feed):
    """CONTRACT C4."""

    may_be_cut = False

    async def _open(self) -> Line:
        line = await _PacketLine.open(self._nodes, "/socket.io/?EIO=4&transport=websocket")
        try:
            async with asyncio.timeout(5.0):
                await line.join(token_of(self.user))
        except BaseException as error:
            line.close()
            if isinstance(error, TimeoutError):
                raise LineEnded("no answer") from error
            raise
        return line

    def hear(self, message: Any) -> None:
        name, payload = message
        if name == "notification:new":
            self._note(payload)
