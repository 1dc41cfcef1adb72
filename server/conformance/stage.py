"""Where a rule is checked: users that nobody else has, and what was opened for them, to be closed at the end."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from tornado.httpclient import HTTPResponse

from server.conformance.client import Broken, Client
from server.conformance.lines import LINES, Stream
from server.conformance.model import Fields, InboxModel
from server.conformance.shapes import REST, problem_of
from server.conformance.target import DEMO_USERS, CannotCheck, Target, User, demo_user

SOCKETS = tuple(LINES)
EVENTS, REST_DOOR = "events", "rest"
DOORS = (*SOCKETS, EVENTS, REST_DOOR)

IDS_PER_REQUEST = 500
CLOSED_WITHIN_S = 2.0

SETTLED_WITHIN_S, LOOK_AGAIN_S = 2.0, 0.05
"""A device at another node of the same server hears of a change a moment after whoever asked for it was answered."""

LONG_S = 600
"""How long a token is good, if it is not about that."""


class Stage:
    """`door`: one of `DOORS`; where that is none of the sockets, `/ws/v2` stands in for other devices."""

    def __init__(self, target: Target, door: str) -> None:
        self.target = target
        self._line = LINES.get(door, LINES["ws_v2"])
        self._clients: list[Client] = []
        self._streams: list[Stream] = []
        self._demo = itertools.cycle(DEMO_USERS)

    async def close(self) -> None:
        """All that was opened."""
        for stream in self._streams:
            stream.close()
        for client in self._clients:
            client.close()
        for client in self._clients:
            await client.line.gone(CLOSED_WITHIN_S)

    # -- users -----------------------------------------------------------------------------------------------
    async def user(self, expires_in_s: int = LONG_S) -> User:
        """Somebody with an empty inbox."""
        if self.target.has_key:
            return await self.target.user(expires_in_s)
        if expires_in_s != LONG_S:
            cannot("needs a token: give a key with the scope listen")
        user = demo_user(next(self._demo))
        client = await self.join(user)
        ids = list(client.model.inbox)
        for start in range(0, len(ids), IDS_PER_REQUEST):
            await client.ask("delete", {"ids": ids[start : start + IDS_PER_REQUEST]})
        client.close()
        return user

    async def connect(self, model: InboxModel | None = None) -> Client:
        line = await self._line.open(self.target.url, self.target.wait_s)
        client = Client(line, self.target.wait_s, model)
        self._clients.append(client)
        return client

    async def join(self, user: User, model: InboxModel | None = None) -> Client:
        """A device of the user, which has read what there is to read."""
        client = await self.connect(model)
        await client.join(user)
        return client

    async def joined(self, user: User, count: int, **fields: Any) -> tuple[Client, list[str]]:
        """The same, with so many notifications that came before; their ids, oldest first."""
        for number in range(count):
            await self.target.publish(user, str(number), **fields)
        client = await self.join(user)
        return client, list(client.model.inbox)[::-1]

    async def truth(self, user: User) -> InboxModel:
        """The inbox, as somebody finds it who comes for the first time."""
        client = await self.join(user)
        client.close()
        return client.model

    async def must_have_all(self, client: Client, user: User) -> None:
        """The client has what is in the inbox, or will in a moment, and the counts are those of it."""
        until = asyncio.get_running_loop().time() + min(SETTLED_WITHIN_S, self.target.wait_s)
        while (truth := await self.truth(user)).inbox != client.model.inbox:
            if asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
            await client.ask("counts")  # what was pushed until then has been read by the time of the answer
        same("the state of the inbox", truth.inbox, client.model.inbox)
        counts = await client.ask("counts")
        inbox = truth.inbox.values()
        expected = {"unseen": sum(not seen for seen in inbox), "total": len(inbox)}
        same("counts of the inbox", expected, {name: counts[name] for name in expected})

    # -- doors without commands ------------------------------------------------------------------------------
    async def stream(self, user: User, query: str = "", last_id: str | None = None) -> Stream:
        headers = self.target.bearer(user) | ({} if last_id is None else {"Last-Event-ID": last_id})
        return await self.open_stream(f"/events?v=2{query}", headers)

    async def open_stream(self, path: str, headers: dict[str, str]) -> Stream:
        stream = await Stream.open(self.target.url, path, headers, self.target.wait_s)
        self._streams.append(stream)
        return stream

    async def rest(self, form: str, method: str, user: User, query: str = "", fields: Any = None) -> Fields:
        """What `/api/v2/inbox` answers, which has to be 200 and of this form of `REST`."""
        return read(form, await self.target.inbox(method, user, query, fields))


def read(form: str, answer: HTTPResponse, status: int = 200) -> Fields:
    """The body of an answer, which has to have this status and form."""
    if answer.code != status:
        raise Broken(f"status {status}", f"{answer.code}: {answer.body.decode(errors='replace')[:200]}")
    try:
        fields: Fields = json.loads(answer.body)
    except ValueError:
        raise Broken("JSON", answer.body.decode(errors="replace")[:200]) from None
    problem = problem_of(fields, REST[form])
    if problem is not None:
        raise Broken(f"a {form} as documented", problem)
    return fields


# -- rules ---------------------------------------------------------------------------------------------------

Check = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rule:
    """`text`: what has to be true, at each of `doors`."""

    text: str
    doors: tuple[str, ...]
    check: Check

    @property
    def name(self) -> str:
        """By which it is asked for."""
        return self.check.__name__.replace("_", "-")


class Rules(list[Rule]):
    """Those of one chapter, in their order."""

    def __init__(self, *doors: str) -> None:
        super().__init__()
        self._doors = doors

    def __call__(self, text: str) -> Callable[[Check], Check]:
        def add(check: Check) -> Check:
            self.append(Rule(text, self._doors, check))
            return check

        return add


def expect(is_so: bool, expected: str, seen: Any) -> None:
    """Raises `Broken`."""
    if not is_so:
        raise Broken(expected, seen)


def same(what: str, expected: Any, seen: Any) -> None:
    """Raises `Broken`."""
    if expected != seen:
        raise Broken(f"{what}: {json.dumps(expected, ensure_ascii=False)}", seen)


def cannot(why: str) -> NoReturn:
    raise CannotCheck(why)
