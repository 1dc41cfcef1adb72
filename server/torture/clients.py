"""Clients with an inbox: of dialect 2, over every way there is, which also change documents; and of the classic one.

Each comes back when its connection ends, whatever ended it, and knows at the end what its dialect lets it know."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from server.conformance.model import InboxModel
from server.torture.judging import View
from server.torture.lines import Line, LineEnded
from server.torture.node import JWT_SECRET
from server.torture.nodes import Entrance

GREETED_WITHIN_S = 20.0
"""A join waits for a store that is away."""

BACK_S = (0.05, 0.6)
"""Until a client that was cut off comes back."""

PAGE = 100

OpenLine = Callable[[], Awaitable[Line]]


def token_of(user: str) -> str:
    """As a backend of the user's would sign it (RFC 7519, HS256)."""
    said = ({"alg": "HS256", "typ": "JWT"}, {"sub": user, "exp": int(time.time()) + 86_400})
    head = ".".join(_base64(json.dumps(each).encode()) for each in said)
    return f"{head}.{_base64(hmac.digest(JWT_SECRET.encode(), head.encode(), hashlib.sha256))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Client(ABC):
    """One client of a user, over whichever line `open_line` opens. `may_be_cut`: whether its dialect survives that what
    has arrived at its machine is not read."""

    may_be_cut = True

    def __init__(self, name: str, user: str, open_line: OpenLine, seed: str) -> None:
        self.name = f"{name} of {user}"
        self.user = user
        self.rng = random.Random(f"{seed} {self.name}")  # noqa: S311  # repeats a run, keeps no secret
        self.is_here = asyncio.Event()
        """It is connected, and has what it missed."""
        self.connected = 0
        self.trouble: str | None = None
        self._open_line = open_line
        self._line: Line | None = None
        self._may_read = asyncio.Event()
        self._may_read.set()

    # -- life ------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with contextlib.suppress(LineEnded):
                    await self._connect()
                self.is_here.clear()
                await asyncio.sleep(self.rng.uniform(*BACK_S))
        finally:
            if self._line is not None:
                self._line.close()

    async def _connect(self) -> None:
        line = self._line = await self._open_line()
        self.connected += 1
        greeting = asyncio.create_task(self._greet_in_time(line), name=f"greeting of {self.name}")
        try:
            await self._read(line)
        finally:
            line.close()
            greeting.cancel()
            await asyncio.wait([greeting])
            self.lost()

    async def _greet_in_time(self, line: Line) -> None:
        try:
            async with asyncio.timeout(GREETED_WITHIN_S):
                await self.greet(line)
            self.is_here.set()
        except (LineEnded, TimeoutError):
            line.close()

    async def _read(self, line: Line) -> None:
        while True:
            await self._may_read.wait()
            self.hear(json.loads(await line.receive()))

    # -- what a dialect says ---------------------------------------------------------------------------------
    async def greet(self, line: Line) -> None:  # noqa: B027  # some are told nothing
        """Return when the client has all that it missed; `hear` goes on meanwhile."""

    @abstractmethod
    def hear(self, message: Any) -> None:
        """A message."""

    def lost(self) -> None:  # noqa: B027  # most wait for nothing
        """The connection is over."""

    async def finish(self) -> None:  # noqa: B027  # pushes are all that some have
        """Bring it up to date by its own rules, now that nothing changes any more. Raises `LineEnded`,
        `TimeoutError`."""

    @abstractmethod
    def view(self) -> View:
        """What it knows."""

    # -- rude things -----------------------------------------------------------------------------------------
    def cut(self) -> None:
        """End its connection in the middle of a frame."""
        if self._line is not None:
            self._line.cut()

    def stop_reading(self) -> None:
        self._may_read.clear()

    def read_on(self) -> None:
        self._may_read.set()


class Refused(Exception):
    """A request was answered by an error. `code`: that of the error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ClientV2(Client):
    """Of dialect 2, over a line by which one can ask."""

    def __init__(self, name: str, user: str, open_line: OpenLine, seed: str) -> None:
        super().__init__(name, user, open_line, seed)
        self.model = InboxModel()
        self._ticket: str | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def greet(self, line: Line) -> None:
        since = {} if self.model.since is None else {"since": self.model.since}
        # Not always, so that tokens are checked as well.
        ticket = self._ticket if self.rng.random() < 0.7 else None
        proof = {"ticket": ticket} if ticket else {"token": token_of(self.user)}
        try:
            await self.ask("join", {"v": 2, **proof, **since})
        except Refused as error:
            self._ticket = None
            raise LineEnded(error.code) from error
        await self._catch_up()

    async def _catch_up(self) -> None:
        try:
            await self._page()
            while self.model.must_sync:
                await self.sync()
        except Refused as error:
            raise LineEnded(error.code) from error

    async def _page(self) -> None:
        """Read all there is, if that has to be."""
        before: str | None = None
        while self.model.must_page:
            page = await self.ask("content", {"before": before, "limit": PAGE})
            before = page["documents"][-1]["_id"] if page["documents"] else None

    async def sync(self) -> None:
        """Catch up with what has changed. Raises `Refused`."""
        await self.ask("sync", {"since": self.model.since})
        await self._page()

    async def finish(self) -> None:
        self.model.must_sync = True
        async with asyncio.timeout(GREETED_WITHIN_S):
            await self._catch_up()

    async def ask(self, name: str, data: Any) -> dict[str, Any]:
        """The data of the last frame that answers a request. Raises `Refused`, `LineEnded`."""
        if self._line is None:
            raise LineEnded("not connected")
        id_ = next(self._ids)
        answer = self._asked[id_] = asyncio.get_running_loop().create_future()
        try:
            await self._line.send(json.dumps({"name": name, "id": id_, "data": data}))
            data_: dict[str, Any] = await answer
            return data_
        finally:
            self._asked.pop(id_, None)

    def hear(self, message: Any) -> None:
        name, data = message["name"], message["data"]
        self.model.hear(name, data)
        self._ticket = data.get("ticket") or self._ticket
        answer = self._asked.get(message.get("id"))
        if answer is None or answer.done() or data.get("more"):
            return
        if name == "error":
            answer.set_exception(Refused(data["code"]))
        else:
            answer.set_result(data)

    def lost(self) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LineEnded("closed"))

    def view(self) -> View:
        count = self.model.counts["unseen"] if self.model.counts else None
        return View(self.name, self.user, states=self.model.inbox, count=count)


async def read_pages(nodes: Entrance, user: str) -> list[dict[str, Any]]:
    """All documents of a user's inbox, newest first, over REST. Raises OSError, ValueError."""
    documents: list[dict[str, Any]] = []
    node, before, is_more = nodes.any(), "", True
    while is_more:
        path = f"/api/v2/inbox?limit={PAGE}" + (f"&before={before}" if before else "")
        reply = await node.get(path, token_of(user))
        if reply.status != 200:
            raise OSError(f"GET {path} answered {reply.status}")
        page = json.loads(reply.body)
        documents += page["documents"]
        is_more = page["older"]
        before = documents[-1]["_id"] if documents else ""
    return documents


class ClassicClient(Client):
    """Of the classic dialect: what it has not seen comes with its join, in the order of frames it is told the rest."""

    def __init__(self, name: str, user: str, open_line: OpenLine, seed: str) -> None:
        super().__init__(name, user, open_line, seed)
        self._unseen: set[str] = set()
        self._count: int | None = None
        self._is_told = asyncio.Event()

    async def greet(self, line: Line) -> None:
        self._unseen.clear()
        self._is_told.clear()
        await line.send(json.dumps({"name": "join", "data": {"token": token_of(self.user)}}))
        await self._is_told.wait()

    def hear(self, message: Any) -> None:
        name, data = message["name"], message["data"]
        data = json.loads(data) if isinstance(data, str) else data
        if name == "notification":
            self._unseen |= {each["_id"] for each in data if not each["seen"] and not each["delete"]}
            self._unseen -= {each["_id"] for each in data if each["seen"] or each["delete"]}
        elif name in ("seen", "delete"):
            self._unseen -= set(data)
        elif name == "count":
            self._count = data["unseen"]
            self._is_told.set()

    def view(self) -> View:
        return View(self.name, self.user, unseen=self._unseen, count=self._count)
