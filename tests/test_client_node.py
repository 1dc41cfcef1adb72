"""static/example/notifications.js outside of a browser, through crashes of the real server: after each, all clients
hold what a new one reads."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.assets import example_folder
from tests.support.running_server import RunningServer

SCRIPT = Path(__file__).resolve().parent / "node" / "notifications.mjs"
WAIT_S = 60.0
"""Long enough for a busy machine: it is reached only by what never comes."""


class Node:
    """See tests/node/notifications.mjs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def evaluate(self, js: str) -> Any:
        """What an expression comes to. Raises RuntimeError with what it throws."""
        assert self._process.stdin is not None
        id_ = next(self._ids)
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"id": id_, "js": js}).encode() + b"\n")
        return await asyncio.wait_for(answer, WAIT_S)

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            answer = self._answers.pop(said["id"])
            if "error" in said:
                answer.set_exception(RuntimeError(said["error"]))
            else:
                answer.set_result(said["value"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path) as server:
        yield server


@pytest.fixture
async def node(node_modules: Path, tmp_path: Path) -> AsyncIterator[Node]:
    """The client as it is served, in a folder of modules."""
    folder = tmp_path / "client"
    shutil.copytree(example_folder() / "notifications", folder / "notifications")
    shutil.copy(example_folder() / "notifications.js", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    process = await asyncio.create_subprocess_exec(
        *("node", str(SCRIPT), str(folder / "notifications.js")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(node_modules)},
        limit=2**24,
    )
    node = Node(process)
    reading = asyncio.create_task(node.read())
    try:
        yield node
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.sleep(0)


async def open_client(node: Node, server: RunningServer, name: str, options: str) -> None:
    """A client of this name, online."""
    await node.evaluate(
        f"""(() => {{
            clients.{name} = new Notifications({{
                url: "{server.url}/notification", login: "alice", password: "alice", {options} }});
            clients.{name}.connect();
            return when(clients.{name}, ({{ state }}) => state === "online");
        }})()"""
    )


CLIENTS = {
    "socket": "pageSize: 100",
    "polling": "pageSize: 100, SockJS, transports: ['xhr-polling']",
    "short": "pageSize: 5",
}
"""By their names, with their options. The short one does not hold the whole inbox."""


async def test_whatever_happens(server: RunningServer, node: Node) -> None:
    """Changes by several clients at once, some without a connection, and a server that is killed in between: once all
    are back each holds the inbox, and knows its counts."""
    chance = random.Random(7)  # noqa: S311  # the same each time
    for name, options in CLIENTS.items():
        await open_client(node, server, name, options)
    # Short delays, for a short test.
    await node.evaluate("void (Math.random = () => 0.1)")
    for number in range(30):
        server.must_notify("alice", title=f"before {number}", type=chance.choice(["a", "b"]))
    for turn in range(4):
        for change in range(12):
            name = chance.choice(list(CLIENTS))
            verb = chance.choice(["seen", "seen", "markUnseen", "delete", "restore"])
            first = chance.randrange(10)
            known = f"(clients.{name}.known ??= []).push(...clients.{name}.items.map(({{ _id }}) => _id))"
            await node.evaluate(f"void {known}")
            ids = f"clients.{name}.known.slice({first}, {first + 3})"
            await node.evaluate(f"void clients.{name}.{verb}({ids})")
            if change % 3 == 0:
                server.must_notify("alice", title=f"{turn}/{change}", type=chance.choice(["a", "b"]))
            if change == 6:
                await asyncio.to_thread(server.kill)
                await node.evaluate("void clients.socket.seenAll()")
                await node.evaluate("void clients.short.delete(clients.short.known.slice(-2))")
                await asyncio.to_thread(server.start)
        await agree(node, server, turn)


async def agree(node: Node, server: RunningServer, turn: int) -> None:
    """All clients are back, what they asked for is done, and each holds what a new client reads."""
    for name in CLIENTS:
        await node.evaluate(f"when(clients.{name}, ({{ state }}) => state === 'online')")
        # Answered behind all that was asked before.
        await node.evaluate(f"clients.{name}.seen([])")
    await open_client(node, server, f"new{turn}", "pageSize: 100")
    inbox, counts = await node.evaluate(f"state(clients.new{turn})")
    expected = json.dumps(json.dumps(counts, separators=(",", ":")))
    for name in CLIENTS:
        await node.evaluate(f"when(clients.{name}, ({{ counts }}) => JSON.stringify(counts) === {expected})")
        found, _ = await node.evaluate(f"state(clients.{name})")
        is_whole = not await node.evaluate(f"clients.{name}.hasMore")
        assert found == (inbox if is_whole else inbox[: len(found)]), name
    await node.evaluate(f"clients.new{turn}.close()")
