"""The clients of bench/restart: they join in dialect 2, and come back with their ticket and `since` after a `bye`.

Tells of it in lines of JSON: {"joined": count}, then, each time that all have been back and in step:
{"back_s": [after how many seconds of the first `bye`, client by client, sorted], "refused": attempts that failed}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import struct
import sys
import time
from typing import Any, cast

from attackers import TEXT, command, frame

HANDSHAKE = (
    b"GET /ws/v2 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PONG, PING, CLOSE = 0xA, 0x9, 0x8
RETRY_S = 0.5
"""After a refused connection, and as much again by chance: as pages do it at first."""
JOINING_AT_ONCE = 200
"""In the beginning, which is not measured."""


class Client(asyncio.Protocol):
    """One connection of a user: the handshake, the join, frames."""

    def __init__(self, user: Returning) -> None:
        self._user = user
        self._buffer = bytearray()
        self._is_upgraded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_upgraded:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head.partition(b"\r\n")[0]:
                self._transport.abort()  # the server is about to end, or to be ready
                return
            self._is_upgraded, self._buffer = True, rest
            self._transport.write(command("join", **self._user.proof()))
        while (found := self._next_frame()) is not None:
            self._on_frame(*found)

    def _next_frame(self) -> tuple[int, bytes] | None:
        """A server masks nothing."""
        buffer, size, begin = self._buffer, 0, 2
        if len(buffer) < begin:
            return None
        size = buffer[1]
        if size >= 126:
            code, begin = ("!H", 4) if size == 126 else ("!Q", 10)
            if len(buffer) < begin:
                return None
            size = struct.unpack_from(code, buffer, 2)[0]
        if len(buffer) < begin + size:
            return None
        payload = bytes(buffer[begin : begin + size])
        opcode = buffer[0] & 0xF
        del buffer[: begin + size]
        return opcode, payload

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._user.hear(json.loads(payload))
        elif opcode == PING:
            self._transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self._transport.write(frame(CLOSE, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._user.lost()


class Returning:
    """A user with one screen."""

    def __init__(self, storm: Storm, name: str, token: str) -> None:
        self._storm, self._token = storm, token
        self.name = name
        self._ticket: str | None = None
        self._since: str | None = None
        self._retry_s = 0.0
        self._lost = asyncio.Event()
        self.in_step = asyncio.Event()

    def proof(self) -> dict[str, Any]:
        if self._ticket is None:
            return {"v": 2, "token": self._token}
        return {"v": 2, "ticket": self._ticket, "since": self._since}

    def hear(self, message: dict[str, Any]) -> None:
        name, data = message["name"], message["data"]
        if name == "joined":
            self._ticket = data["ticket"]
            self._since = data["since"] or self._since
        elif name == "sync":
            self._since = data["upto"]
        elif name == "bye":
            self._storm.note_bye()
            self._retry_s = data["retry_ms"] / 1000 if self._storm.is_spread else 0.0
        elif name == "error":
            raise SystemExit(f"{self.name}: {data}")
        if name in ("joined", "sync") and not data["more"]:
            self.in_step.set()

    def lost(self) -> None:
        self.in_step.clear()
        self._lost.set()

    async def connect(self) -> None:
        self._lost.clear()
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Client(self), "127.0.0.1", self._storm.port)

    async def come_back(self) -> None:
        """After each loss, for ever."""
        while True:
            await self._lost.wait()
            await asyncio.sleep(self._retry_s)
            while not await self._try():
                self._storm.refused += 1
                await asyncio.sleep(RETRY_S * (1 + random.random()))  # noqa: S311  # no secret
            self._storm.note_back()

    async def _try(self) -> bool:
        try:
            await self.connect()
        except OSError:
            return False
        waits = [asyncio.create_task(event.wait()) for event in (self.in_step, self._lost)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self.in_step.is_set()


class Storm:
    def __init__(self, port: int, *, is_spread: bool) -> None:
        self.port, self.is_spread = port, is_spread
        self.refused = 0
        self._users: list[Returning] = []
        self._bye_at: float | None = None
        self._back_s: list[float] = []

    def note_bye(self) -> None:
        if self._bye_at is None:
            self._bye_at = time.perf_counter()

    def note_back(self) -> None:
        if self._bye_at is None:
            raise SystemExit("a connection was lost without a word")
        self._back_s.append(time.perf_counter() - self._bye_at)
        if len(self._back_s) == len(self._users):
            _tell(back_s=sorted(self._back_s), refused=self.refused)
            self._bye_at, self._back_s, self.refused = None, [], 0

    async def run(self, tokens: dict[str, str]) -> None:
        self._users = [Returning(self, name, token) for name, token in tokens.items()]
        gate = asyncio.Semaphore(JOINING_AT_ONCE)

        async def join(user: Returning) -> None:
            async with gate:
                await user.connect()
                await user.in_step.wait()

        await asyncio.gather(*map(join, self._users))
        _tell(joined=len(self._users))
        async with asyncio.TaskGroup() as returning:
            for user in self._users:
                returning.create_task(user.come_back())


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--at-once", action="store_true", help="do not wait as the server asks")
    options = parser.parse_args()
    tokens = json.load(sys.stdin)
    asyncio.run(Storm(options.port, is_spread=not options.at_once).run(tokens))


if __name__ == "__main__":
    main()
