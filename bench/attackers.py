"""The attackers of bench/attack, and the few bytes of HTTP and WebSocket that they and the honest clients need.

They come through what looks like a proxy, so that they are not taken for this machine, which is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

PASSWORD = "benchmark"
MALLORY = "mallory"
VICTIM = "user0"

HANDSHAKE = (
    b"GET /notification/websocket HTTP/1.1\r\nHost: here\r\nVia: 1.1 proxy\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
POST = b"POST /notify HTTP/1.1\r\nHost: here\r\nVia: 1.1 proxy\r\n"
GUESS = POST + b"Authorization: Api-Key " + b"x" * 43 + b"\r\nContent-Length: 0\r\n\r\n"

SMALL_BUFFER_BYTES = 4096
"""Of who does not read: so that it is felt soon."""

TEXT, CONTINUATION, PING, PONG = 0x1, 0x0, 0x9, 0xA

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def frame(opcode: int, payload: bytes = b"", is_final: bool = True) -> bytes:
    """A WebSocket frame of a client, with a mask of zeros."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack("!H", size)
    else:
        length = b"\xff" + struct.pack("!Q", size)
    return bytes([0x80 * is_final | opcode]) + length + bytes(4) + payload


def command(name: str, **data: Any) -> bytes:
    return frame(TEXT, json.dumps({"name": name, "data": data}).encode())


def join(user: str, password: str = PASSWORD) -> bytes:
    return command("join", login=user, password=password)


class Attacker:
    """One attacker, on a server's port, from a loopback address. Its attacks are the methods in `ATTACKS`."""

    def __init__(self, port: int, address: str) -> None:
        self._port = port
        self._address = address

    async def spin(self) -> None:
        """no attack: computes for itself, which shows what an attacker costs the clients whose core it shares"""
        while True:
            pass

    # -- who only come, or drip ------------------------------------------------------------------------------
    async def strangers(self) -> None:
        """WebSockets that never join, and come again when they are sent away"""

        async def stay() -> None:
            if opened := await self._websocket():
                await opened[0].read()
                opened[1].close()

        await self._again(stay, 500)

    async def connects(self) -> None:
        """ever new WebSockets, as fast as they are refused"""

        async def come_and_go() -> None:
            if opened := await self._websocket():
                opened[1].close()

        await self._again(come_and_go, 50)

    async def headers(self) -> None:
        """headers of requests, a byte at a time"""
        await self._again(lambda: self._drip(POST + b"X-Drip: "), 500)

    async def bodies(self) -> None:
        """bodies of requests, a byte at a time"""
        await self._again(lambda: self._drip(POST + b"Content-Length: 100000\r\n\r\n"), 500)

    async def frames(self) -> None:
        """joins over WebSocket, a byte at a time"""
        beginning = frame(TEXT, bytes(4096))[: -4096 + 1]
        await self._again(lambda: self._drip(HANDSHAKE + beginning), 500)

    # -- who guess -------------------------------------------------------------------------------------------
    async def guesses(self) -> None:
        """posts with wrong keys, as fast as they are refused"""

        async def guess() -> None:
            reader, writer = await self._connect()
            with contextlib.closing(writer):
                while True:
                    writer.write(GUESS)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                    await reader.readexactly(int(length))

        await self._again(guess, 100)

    async def joins(self) -> None:
        """joins with wrong passwords, as fast as they are taken: at one's own login, others' and unknown ones"""
        number = itertools.count()

        def guess() -> bytes:
            count = next(number)
            return join((MALLORY, VICTIM, f"nobody{count}")[count % 3], f"guess {count}")

        await self._again(lambda: self._flood(b"", guess), 100)

    # -- who flood -------------------------------------------------------------------------------------------
    async def commands(self) -> None:
        """commands of one user, who asks for the whole inbox, as fast as they are taken"""
        ask = command("content", limit=100)
        await self._again(lambda: self._flood(join(MALLORY), lambda: ask), 20)

    async def unread(self) -> None:
        """the same by who does not read the answers"""
        ask = command("content", limit=100)
        await self._again(lambda: self._flood(join(MALLORY), lambda: ask, reads=False), 20)

    async def huge(self) -> None:
        """messages of nearly a MiB, of one user"""
        ask = command("seen", ids=[f"{number:024x}" for number in range(35_000)])
        await self._again(lambda: self._flood(join(MALLORY), lambda: ask, at_once=1), 20)

    async def too_huge(self) -> None:
        """messages of 2 MiB, which is more than anybody may send"""
        ask = frame(TEXT, bytes(2 << 20))
        await self._again(lambda: self._flood(join(MALLORY), lambda: ask, at_once=1), 20)

    async def pings(self) -> None:
        """pings over WebSockets that never join, as fast as they are taken"""
        await self._again(lambda: self._flood(b"", lambda: frame(PING)), 20)

    async def fragments(self) -> None:
        """a message in ever more empty fragments"""
        await self._again(
            lambda: self._flood(
                frame(TEXT, b"[", is_final=False), lambda: frame(CONTINUATION, is_final=False)
            ),
            20,
        )

    # -- what they have in common ----------------------------------------------------------------------------
    async def _connect(self, *, reads: bool = True) -> Connection:
        opened = socket.socket()
        opened.setblocking(False)
        if not reads:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        opened.bind((self._address, 0))
        await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", self._port))
        # A stream stops reading when so much waits in it.
        return await asyncio.open_connection(sock=opened, limit=SMALL_BUFFER_BYTES)

    async def _websocket(self, *, reads: bool = True) -> Connection | None:
        """None if it was refused."""
        reader, writer = await self._connect(reads=reads)
        writer.write(HANDSHAKE)
        if b" 101 " in await reader.readuntil(b"\r\n\r\n"):
            return reader, writer
        writer.close()
        return None

    async def _again(self, attack: Callable[[], Awaitable[None]], times: int) -> None:
        """So many at a time, each again when it has ended."""

        async def repeat() -> None:
            while True:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await attack()
                await asyncio.sleep(0.001)

        await asyncio.gather(*(repeat() for _ in range(times)))

    async def _drip(self, beginning: bytes) -> None:
        """Ten bytes a second, until the server has had enough."""
        reader, writer = await self._connect()
        writer.write(beginning)
        ended = asyncio.create_task(reader.read(-1))
        try:
            while not ended.done():
                writer.write(b"x")
                await asyncio.wait([ended], timeout=0.1)
        finally:
            ended.cancel()
            writer.close()

    async def _flood(
        self, beginning: bytes, then: Callable[[], bytes], *, at_once: int = 100, reads: bool = True
    ) -> None:
        opened = await self._websocket(reads=reads)
        if opened is None:
            return
        reader, writer = opened
        writer.write(beginning)
        ended = asyncio.create_task(_swallow(reader) if reads else writer.wait_closed())
        try:
            while not ended.done():
                writer.write(b"".join(then() for _ in range(at_once)))
                sending = asyncio.ensure_future(writer.drain())
                await asyncio.wait([sending, ended], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0)
                if sending.done():
                    sending.result()
                else:
                    sending.cancel()
        finally:
            ended.cancel()
            writer.transport.abort()


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


ATTACKS = {
    name: getattr(Attacker, name).__doc__
    for name in (
        "spin strangers connects headers bodies frames guesses joins commands unread huge too_huge pings fragments"
    ).split()
}
"""What each does, by its name."""


def main() -> None:
    parser = argparse.ArgumentParser(description="One of the attacks of bench/attack, until it is ended.")
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("port", type=int)
    parser.add_argument("address", help="a loopback address, from which it comes")
    options = parser.parse_args()
    os.nice(19)
    asyncio.run(getattr(Attacker(options.port, options.address), options.attack)())


if __name__ == "__main__":
    main()
