"""Backends that publish: each request has an idempotency key and is repeated until it is acknowledged, whatever happens
in between. Some are sent twice at the same moment, some are cut off in the middle, of some nobody hears the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.http_client import NoReply, Reply
from server.torture.ledger import Ledger, Request
from server.torture.nodes import Entrance

ANSWER_WITHIN_S = 8.0
"""Longer than the server waits for its store."""

PAUSE_S = (0.05, 0.5)
"""Between two tries."""

TWICE, CUT, UNHEARD = 0.08, 0.05, 0.05
"""How often a try is made twice at once, is cut off before its end, or its answer is not waited for."""

CONTENT = "what the torture says. "


@dataclass(frozen=True, slots=True)
class Audience:
    """`listening`: have clients, and change their documents; `feeding`: have clients that only listen; `away`: have
    none, and are mailed."""

    listening: Sequence[str]
    feeding: Sequence[str]
    away: Sequence[str]

    @property
    def everybody(self) -> tuple[str, ...]:
        return (*self.listening, *self.feeding, *self.away)


def address_of(user: str) -> str:
    return f"{user}@example.invalid"


class Door(Protocol):
    """One way in."""

    name: str

    def open(self, rng: random.Random) -> Request:
        """A request that is to be published by it."""

    async def publish(self, request: Request, rng: random.Random) -> bool:
        """One try; whether it was acknowledged. What is refused for good is written into the request."""


class HTTPDoor:
    """A door that is asked over HTTP."""

    name = ""
    path = ""

    def __init__(self, nodes: Entrance, ledger: Ledger, audience: Audience) -> None:
        self._nodes = nodes
        self._ledger = ledger
        self._audience = audience

    def open(self, rng: random.Random) -> Request:
        return self._ledger.open(self.name, some(self._audience.everybody, rng), size=size_of(rng))

    def fields(self, request: Request) -> dict[str, Any]:
        """What is asked for, without the key."""
        raise NotImplementedError

    async def publish(self, request: Request, rng: random.Random) -> bool:
        headers, fields = {"Idempotency-Key": request.key}, self.fields(request)
        if rng.random() < 0.5:  # the other way to say it
            headers, fields = {}, fields | {"idempotency_key": request.key}
        body, chance = json.dumps(fields).encode(), rng.random()
        if chance < CUT + UNHEARD:
            await self._abandon(headers, body, rng, is_whole=chance > CUT)
            return False
        tries = [self._post(headers, body)]
        if chance > 1 - TWICE:
            tries.append(self._post(headers, body))
        replies = await asyncio.gather(*tries)
        return any([self._is_acknowledged(request, reply) for reply in replies])

    async def _post(self, headers: dict[str, str], body: bytes) -> Reply | None:
        node = self._nodes.any()
        try:
            return await node.http.post(
                f"{node.url}{self.path}", ANSWER_WITHIN_S, {**headers, "Connection": "close"}, body
            )
        except NoReply:
            return None

    @staticmethod
    def _is_acknowledged(request: Request, reply: Reply | None) -> bool:
        if reply is None:
            return False
        if 400 <= reply.status < 500 and reply.status not in (409, 429):
            request.refusal = f"{reply.status} {reply.body[:200].decode(errors='replace')}"
        return 200 <= reply.status < 300

    async def _abandon(
        self, headers: dict[str, str], body: bytes, rng: random.Random, *, is_whole: bool
    ) -> None:
        """Send a request, or part of it, and hang up."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        sent = "\r\n".join(lines).encode() + body
        with contextlib.suppress(OSError):  # a TimeoutError, too
            async with asyncio.timeout(ANSWER_WITHIN_S):
                _, writer = await asyncio.open_connection("127.0.0.1", self._nodes.any().port)
                try:
                    writer.write(sent if is_whole else sent[: rng.randrange(len(sent))])
                    await writer.drain()
                    await asyncio.sleep(rng.uniform(0, 0.02))
                finally:
                    writer.transport.abort()


class NotifyDoor(HTTPDoor):
    """CONTRACT C1, which alone can mail."""

    name, path = "notify", "/notify"

    def open(self, rng: random.Random) -> Request:
        audience = self._audience
        users, mailed = some(audience.everybody, rng), tuple[str, ...]()
        if rng.random() < 0.3:
            users = some(audience.away, rng)
        if rng.random() < 0.4:
            mailed = tuple(address_of(user) for user in users)
        return self._ledger.open(self.name, users, mailed, size=size_of(rng))

    def fields(self, request: Request) -> dict[str, Any]:
        users: list[dict[str, str]] = [{"id": user} for user in request.users]
        fields: dict[str, Any] = {"title": request.key, "content": text_of(request), "type": "torture"}
        if request.mailed:
            users = [user | {"email": address_of(user["id"])} for user in users]
            are_away = set(request.users) <= set(self._audience.away)
            fields |= {"email_send": True} if are_away else {"email_force": True}
            fields |= {"email_subject": request.key, "email_content": "what the torture mails"}
        return fields | {"users": users}


class ServiceDoor(HTTPDoor):
    """CONTRACT C3: one user."""

    name, path = "service", "/api/notifications/send/"

    def open(self, rng: random.Random) -> Request:
        return self._ledger.open(self.name, [rng.choice(self._audience.everybody)], size=size_of(rng))

    def fields(self, request: Request) -> dict[str, Any]:
        payload = {"title": request.key, "content": text_of(request), "n": request.size}
        return {"user_id": request.users[0], "payload": payload}


class InternalDoor(HTTPDoor):
    """CONTRACT C4."""

    name, path = "internal", "/api/realtime/internal/notify"

    def fields(self, request: Request) -> dict[str, Any]:
        payload = {"title": request.key, "content": text_of(request), "type": "booking"}
        return {"userIds": list(request.users), "payload": payload}


class BroadcastDoor(HTTPDoor):
    """CONTRACT C5: everybody who is known."""

    name, path = "broadcast", "/api/notifications/send/"

    def open(self, rng: random.Random) -> Request:
        return self._ledger.open(self.name, self._audience.everybody, size=size_of(rng))

    def fields(self, request: Request) -> dict[str, Any]:
        return {"title": request.key, "message": text_of(request)}


def some(users: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """One, several or all of them."""
    return tuple(rng.sample(users, rng.choice((1, min(3, len(users)), len(users)))))


def size_of(rng: random.Random) -> int:
    return rng.choice((20, 20, 200, 2000))


def text_of(request: Request) -> str:
    return (CONTENT * (request.size // len(CONTENT) + 1))[: request.size]


async def publish_until_acknowledged(
    door: Door, request: Request, ledger: Ledger, rng: random.Random
) -> None:
    """Try and try again."""
    while request.refusal is None:
        request.tries += 1
        if await door.publish(request, rng):
            ledger.acknowledge(request)
            return
        await asyncio.sleep(rng.uniform(*PAUSE_S))


class Publishers:
    """Several at once, each with one request at a time, by whichever door; `doors`: with how often each is taken."""

    def __init__(self, ledger: Ledger, doors: Sequence[tuple[Door, int]], seed: str) -> None:
        self._ledger = ledger
        self._doors = [door for door, _ in doors]
        self._weights = [weight for _, weight in doors]
        self._seed = seed
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, count: int, pause_s: float) -> None:
        """`pause_s`: on average between two requests of one publisher."""
        for number in range(count):
            rng = random.Random(f"{self._seed} publisher {number}")  # noqa: S311  # repeats a run, keeps no secret
            self._tasks.append(asyncio.create_task(self._publish(rng, pause_s), name=f"publisher {number}"))

    async def _publish(self, rng: random.Random, pause_s: float) -> None:
        while not self._stopping.is_set():
            [door] = rng.choices(self._doors, self._weights)
            await publish_until_acknowledged(door, door.open(rng), self._ledger, rng)
            await asyncio.sleep(rng.uniform(0, 2 * pause_s))

    async def finish(self, timeout_s: float) -> None:
        """Begin nothing more; wait until all that was begun is acknowledged. What is not by then stays so."""
        self._stopping.set()
        if self._tasks:
            done, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
            for task in done:
                task.result()  # a mistake of ours
        self._tasks.clear()
