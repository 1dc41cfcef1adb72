"""Clients of the Socket.IO door: the stock one in Node, and one that says what it is told to, packet by packet. Both
are independent of the server's code."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from tests.support.feeds import WAIT_S, user_token
from tests.support.running_server import Response, RunningServer

SCRIPT = Path(__file__).resolve().parents[1] / "node" / "socketio.mjs"

SEPARATOR = "\x1e"


class StockClient:
    """`socket.io-client`: what happens to it, in its order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def next(self) -> list[Any]:
        """What happens next: its name, and what belongs to it."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), WAIT_S)
        if not line:
            raise RuntimeError("the client has ended")
        what: list[Any] = json.loads(line)
        return what

    async def until(self, *names: str) -> list[Any]:
        """Pass over all that happens before something of one of these names."""
        while (what := await self.next())[0] not in names:
            pass
        return what

    async def payload(self) -> Any:
        """The payload of the next notification."""
        what = await self.until("event")
        assert what[1] == "notification:new", what
        return what[2]

    async def do(self, action: str, *values: Any) -> None:
        """See tests/node/socketio.mjs. When it is done, that is what happens next."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([action, *values]).encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def stock_client(
    server: RunningServer, token: Any = None, *, namespace: str = "", **options: Any
) -> AsyncIterator[StockClient]:
    """One that connects at once. `options`: those of `io`."""
    options = {"auth": {"token": token}} | options
    process = await asyncio.create_subprocess_exec(
        *("node", str(SCRIPT), server.url + namespace, json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield StockClient(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.sleep(0)


# -- packet by packet ----------------------------------------------------------------------------------------


def connect_packet(user: str, **claims: Any) -> str:
    return "40" + json.dumps({"token": user_token(user, **claims)})


class PollingClient:
    """Over HTTP, each request on a connection of its own."""

    def __init__(self, server: RunningServer, headers: Mapping[str, str] | None = None) -> None:
        self._server = server
        self._headers = dict(headers or {})
        self.sid = ""

    async def request(self, method: str, query: str, body: bytes | None = None) -> Response:
        return await asyncio.to_thread(
            self._server.request, method, f"/socket.io/?{query}", body, self._headers
        )

    @property
    def query(self) -> str:
        return f"EIO=4&transport=polling&sid={quote(self.sid)}"

    async def open(self) -> dict[str, Any]:
        """The handshake of Engine.IO."""
        answer = await self.request("GET", "EIO=4&transport=polling")
        assert answer.status == 200, answer.body
        said: dict[str, Any] = json.loads(answer.body[1:])
        self.sid = said["sid"]
        return said

    async def join(self, user: str) -> list[str]:
        """The packets that come together with the one that says that it is connected."""
        await self.open()
        await self.post(connect_packet(user))
        first, *others = await self.poll()
        assert first.startswith('40{"sid":"'), first
        return others

    async def poll(self) -> list[str]:
        """The packets that the next answer brings."""
        answer = await self.request("GET", self.query)
        assert answer.status == 200, answer.body
        return answer.body.decode().split(SEPARATOR)

    async def post(self, *packets: str) -> None:
        answer = await self.request("POST", self.query, SEPARATOR.join(packets).encode())
        assert (answer.status, answer.body) == (200, b"ok"), answer


class SocketClient:
    """Over WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def packet(self) -> str:
        text = await asyncio.wait_for(self.socket.recv(), WAIT_S)
        assert isinstance(text, str)
        return text

    async def closed(self) -> tuple[list[str], int | None, str | None]:
        """The packets that come before the server closes; code and reason."""
        packets = []
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionClosedError):
                async for text in self.socket:
                    packets.append(str(text))
        return packets, self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def socket_client(
    server: RunningServer, user: str | None = None, *, sid: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[SocketClient]:
    """One that has read the handshake, unless it goes on with a session (`sid`); and has joined, with `user`."""
    url = f"ws://127.0.0.1:{server.port}/socket.io/?EIO=4&transport=websocket" + (
        sid and f"&sid={quote(sid)}"
    )
    async with connect(url, max_size=None, ping_interval=None, additional_headers=headers) as socket:
        client = SocketClient(socket)
        if not sid:
            assert (await client.packet()).startswith('0{"sid":"')
        if user is not None:
            await socket.send(connect_packet(user))
            assert (await client.packet()).startswith('40{"sid":"')
        yield client


# -- figures -------------------------------------------------------------------------------------------------


def figure(server: RunningServer, name: str) -> float:
    """The value of a line of the metrics that begins so; 0 if there is none."""
    answer = server.request("GET", "/metrics", headers={"Accept": "text/plain"})
    lines = answer.body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
