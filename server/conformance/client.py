"""A client of dialect 2 that trusts nothing: whatever it is told is held against the rules that are true of every
frame, and its model goes by docs/protocol.md."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.conformance.lines import Closed, Line
from server.conformance.model import Fields, InboxModel
from server.conformance.shapes import MAX_DOCUMENTS, frame_problem
from server.conformance.target import User

CHANGES = ("seen", "unseen", "delete")


class Broken(Exception):
    """A rule is broken: what should have been, and what was."""

    def __init__(self, expected: str, seen: Any) -> None:
        super().__init__(f"expected {expected}, seen {seen}")
        self.expected = expected
        self.seen = seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False, default=str)


class Refused(Exception):
    """A command was answered by an error."""

    def __init__(self, data: Fields) -> None:
        super().__init__(f"refused: {data}")
        self.data = data


@dataclass(slots=True)
class Request:
    """One that is not wholly answered yet."""

    id: int | str
    name: str
    data: Any
    answers: list[Fields] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        """An error is the last answer; else what says that there is no more."""
        if not self.answers:
            return False
        last = self.answers[-1]
        return last["name"] == "error" or not last["data"].get("more")


class Client:
    """One connection. `model` may be that of an earlier one. `wait_s`: how long something may take that is to come. All
    verbs raise `Broken` for what a server may not do, and `Closed`."""

    def __init__(self, line: Line, wait_s: float, model: InboxModel | None = None) -> None:
        self.model = model or InboxModel()
        self.ticket: str | None = None
        self.pushes: list[Fields] = []
        """Frames without an id, in their order, until they are asked for."""
        self.is_nobodys = True
        self.line = line
        self._wait_s = wait_s
        self._ids = itertools.count(1)
        self._open: deque[Request] = deque()
        self._shown: dict[str, str] = {}
        """The highest rev of each document that an answer has shown."""
        self._told: dict[str, str] = {}
        """The highest rev of each document that anything has told."""

    # -- asking ----------------------------------------------------------------------------------------------
    async def say(self, name: str, data: Any = None, id_: int | str | None = None) -> Request:
        """Send a command, and do not wait."""
        request = Request(next(self._ids) if id_ is None else id_, name, data)
        self._open.append(request)
        await self.line.send(json.dumps({"name": name, "id": request.id, "data": data}))
        return request

    async def answered(self, request: Request) -> list[Fields]:
        """All frames that answer it."""
        while not request.is_answered:
            await self.frame()
        return request.answers

    async def ask_all(self, name: str, data: Any = None) -> list[Fields]:
        """The data of all frames that answer a command. Raises `Refused`."""
        answers = await self.answered(await self.say(name, data))
        if answers[-1]["name"] == "error":
            raise Refused(answers[-1]["data"])
        return [each["data"] for each in answers]

    async def ask(self, name: str, data: Any = None) -> Fields:
        """The data of the last one. Raises `Refused`."""
        return (await self.ask_all(name, data))[-1]

    async def refusal(self, name: str, data: Any = None) -> Fields:
        """The error by which a command is answered."""
        try:
            answer = await self.ask(name, data)
        except Refused as refused:
            return refused.data
        raise Broken(f"{name} being refused", answer)

    async def join(self, user: User | Mapping[str, str], **more: Any) -> Fields:
        """Join, from where the model is, and read what has to be read; the first answer. Raises `Refused`."""
        proof = user.proof if isinstance(user, User) else user
        since = {} if self.model.since is None else {"since": self.model.since}
        data = {"v": 2, **proof, **since, **more}
        joined = (await self.ask_all("join", data))[0]
        await self.read_pages()
        return joined

    async def read_pages(self) -> None:
        """All, if the model has to."""
        before: str | None = None
        while self.model.must_page:
            page = await self.ask("content", {"before": before, "limit": 100})
            if page["older"] and not page["documents"]:
                raise Broken("documents, as there are older ones", page)
            before = page["documents"][-1]["_id"] if page["documents"] else None

    async def sync(self) -> Fields:
        """Catch up; the last answer."""
        answer = await self.ask("sync", {"since": self.model.since})
        await self.read_pages()
        return answer

    # -- listening -------------------------------------------------------------------------------------------
    async def push(self, *names: str) -> Fields:
        """The next push of one of these names, with its name; others before it stay."""
        while True:
            for number, frame in enumerate(self.pushes):
                if frame["name"] in names:
                    return self.pushes.pop(number)
            await self.frame()

    async def heard(self) -> list[Fields]:
        """All pushes but counts that came up to now: what is answered now comes after them."""
        await self.ask("counts")
        heard = [frame for frame in self.pushes if frame["name"] not in ("counts", "sync", "delayed")]
        self.pushes.clear()
        return heard

    async def counted(self, unseen: int, total: int) -> None:
        """Return when so many are told, unasked."""
        counts: Fields = {}
        try:
            async with asyncio.timeout(self._wait_s):
                while (counts.get("unseen"), counts.get("total")) != (unseen, total):
                    counts = (await self.push("counts"))["data"]
        except TimeoutError:
            raise Broken(f"a push of counts: {unseen} of {total} unseen", counts or "none") from None

    async def frame(self) -> Fields:
        """The next frame, which is held against what is true of all frames."""
        try:
            async with asyncio.timeout(self._wait_s):
                text = await self.line.receive()
        except TimeoutError:
            waiting = ", ".join(f"{each.name} {each.id}" for each in self._open) or "nothing"
            raise Broken(f"a frame within {self._wait_s:g} s", f"none; open: {waiting}") from None
        try:
            frame: Fields = json.loads(text)
        except ValueError:
            raise Broken("JSON", text[:200]) from None
        problem = frame_problem(frame)
        if problem is not None:
            raise Broken(f"the fields of {frame.get('name')!r} as documented", f"{problem} in {text:.300}")
        if "id" in frame:
            self._check_answer(frame)
        else:
            self._check_push(frame)
            self.pushes.append(frame)
        self._note(frame)
        return frame

    async def closed(self) -> Closed:
        """How the server has ended the connection; frames before it are taken."""
        try:
            async with asyncio.timeout(self._wait_s):
                while True:
                    await self.frame()
        except Closed as closed:
            return closed
        except TimeoutError:
            raise Broken("the server closing the connection", "it did not") from None

    def close(self) -> None:
        self.line.close()

    # -- what is true of all frames --------------------------------------------------------------------------
    def _check_answer(self, frame: Fields) -> None:
        request = next((each for each in self._open if each.id == frame["id"]), None)
        if request is None:
            raise Broken("each command answered exactly once", f"one more answer: {_short(frame)}")
        if request is not self._open[0]:
            raise Broken(
                f"answers in the order of the commands: first that of {self._open[0].name}", _short(frame)
            )
        named = ["error", "pong" if request.name == "ping" else request.name]
        if request.name == "join":
            named = ["error", "sync" if request.answers else "joined"]
        if frame["name"] not in named:
            raise Broken(f"{request.name} answered by {named[1]!r}", _short(frame))
        if frame["name"] == "sync":
            self._check_chunk(request, frame["data"])
        elif frame["name"] == "content":
            self._check_page(request.data or {}, frame["data"])
        request.answers.append(frame)
        if request.is_answered:
            self._open.popleft()

    @staticmethod
    def _check_chunk(request: Request, data: Fields) -> None:
        before = [
            (each["rev"], each["_id"])
            for answer in request.answers
            if answer["name"] == "sync"
            for each in answer["data"]["documents"]
        ]
        places = [(each["rev"], each["_id"]) for each in data["documents"]]
        if len(places) > MAX_DOCUMENTS:
            raise Broken(f"at most {MAX_DOCUMENTS} documents in a frame", str(len(places)))
        if not _is_rising([*before[-1:], *places]):
            raise Broken("changes of a sync in their order, each once", places)
        if data["reset"] and (data["documents"] or data["more"]):
            raise Broken("a reset without documents, and at the end", _short(data))
        if data["more"] and not data["documents"]:
            raise Broken("documents, as there are more", _short(data))

    @staticmethod
    def _check_page(asked: Mapping[str, Any], data: Fields) -> None:
        documents = data["documents"]
        if len(documents) > min(asked.get("limit") or MAX_DOCUMENTS, MAX_DOCUMENTS):
            raise Broken(f"a page of at most {asked.get('limit')}", str(len(documents)))
        if not _is_rising([(each["createdAt"], each["_id"]) for each in reversed(documents)]):
            raise Broken("a page with the newest first", [each["createdAt"] for each in documents])
        if any(each["delete"] for each in documents):
            raise Broken("no tombstones in a page", _short(data))
        for name in ("type", "seen"):
            if asked.get(name) is not None and any(each[name] != asked[name] for each in documents):
                raise Broken(f"a page with {name} {asked[name]!r} only", [each[name] for each in documents])

    def _check_push(self, frame: Fields) -> None:
        name, data = frame["name"], frame["data"]
        if name == "delayed":
            if not (self._open and self._open[0].name == "join"):
                raise Broken("`delayed` only to who waits for the answer to a join", _short(frame))
            return
        if self.is_nobodys and name not in ("bye", "error"):
            raise Broken("no push to a connection that has no user", _short(frame))
        if name in ("notification", "restored"):
            # Overtaken by a later change it would tell of what the document has become.
            self._check_not_old(name, [data["_id"]], data["rev"], self._told)
        elif name in CHANGES and "ids" in data:
            self._check_not_old(name, data["ids"], data["rev"], self._shown)

    @staticmethod
    def _check_not_old(name: str, ids: Sequence[str], rev: str, known: Mapping[str, str]) -> None:
        if all(known.get(id_, "") > rev for id_ in ids):
            raise Broken(f"no {name} older than what was told before", f"rev {rev} after {known[ids[0]]}")

    def _note(self, frame: Fields) -> None:
        name, data = frame["name"], frame["data"]
        if name == "joined":
            self.is_nobodys = False
            self._shown.clear()
            self._told.clear()
            self.ticket = data["ticket"]
        elif name == "leave":
            self.is_nobodys = True
        self.ticket = data.get("ticket") or self.ticket
        documents = data.get("documents", [data] if name in ("notification", "restored") else [])
        shown = self._shown if "documents" in data else self._told
        for known in (self._told, shown):
            for each in documents:
                known[each["_id"]] = max(each["rev"], known.get(each["_id"], ""))
        if name in CHANGES and data.get("rev"):
            self._told |= {id_: max(data["rev"], self._told.get(id_, "")) for id_ in data["ids"]}
        self.model.hear(name, data)


def _is_rising(places: Sequence[tuple[str, str]]) -> bool:
    return all(one < other for one, other in itertools.pairwise(places))


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:300]
