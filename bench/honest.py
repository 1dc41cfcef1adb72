"""Honest clients, whose pushes are waited for while something else goes on: what bench/attack and bench/restart ask."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Sequence

from attackers import HANDSHAKE, PONG, Connection, frame, join

USERS = [f"user{number}" for number in range(20)]
CALLERS = 4
KEY = "benchmark"
TIMEOUT_S = 60.0
PAUSE_S = 0.005
"""Between two pushes whose latency is measured."""


class Backend:
    """A caller with a key, on a connection of its own, who waits for each answer."""

    def __init__(self, opened: Connection) -> None:
        self._reader, self._writer = opened

    async def notify(self, users: Sequence[str], content: str) -> None:
        body = json.dumps({"content": content, "users": [{"id": user} for user in users]}).encode()
        self._writer.write(
            f"POST /notify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Api-Key {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(f"POST /notify answered {head!r}")


class Honest:
    """The users, each with a WebSocket, joined; and the backends that notify them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._users: list[Connection] = []
        self._backends: list[Backend] = []
        self._count = 0

    async def join(self) -> None:
        self._users = await asyncio.gather(*map(self._join, USERS))
        self._backends = [Backend(await self._connect()) for _ in range(CALLERS)]

    async def _join(self, user: str) -> Connection:
        reader, writer = await self._connect()
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(join(user))
        await reader.readuntil(b'"count"')
        return reader, writer

    async def _connect(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def fill_inbox(self, user: str) -> None:
        """100 documents of 2 KiB, which are dear to ask for."""
        for _ in range(100):
            await self.notify([user], "x" * 2048)

    async def notify(self, users: Sequence[str], content: str) -> None:
        await self._backends[0].notify(users, content)

    async def push(self, caller: int = 0) -> float:
        """Notify a user; after how many seconds they were told. Each caller has users of its own."""
        self._count += 1
        user = (self._count * CALLERS + caller) % len(USERS)
        reader, writer = self._users[user]
        marker = f"push {self._count}."
        began_at = time.perf_counter()
        async with asyncio.timeout(TIMEOUT_S):
            posting = asyncio.create_task(self._backends[caller].notify([USERS[user]], marker))
            await reader.readuntil(marker.encode())
            took_s = time.perf_counter() - began_at
            writer.write(frame(PONG))  # a sign of life
            await posting
        return took_s

    async def latencies_s(self, count: int = sys.maxsize, until: float = math.inf) -> list[float]:
        """Of so many pushes, one by one, or of those that begin before `until`."""
        latencies: list[float] = []
        while len(latencies) < count and time.perf_counter() < until:
            latencies.append(await self.push())
            await asyncio.sleep(PAUSE_S)
        return latencies

    async def pushes_per_s(self, count: int) -> float:
        """With all callers at it."""

        async def call(caller: int) -> None:
            for _ in range(count // CALLERS):
                await self.push(caller)

        began_at = time.perf_counter()
        await asyncio.gather(*map(call, range(CALLERS)))
        return count / (time.perf_counter() - began_at)


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]
