"""Backends that publish in Redis, each with its own language's client, to the door as it is by default."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.config.brokers import RedisHub
from server.ingest.consumer import Lease
from server.ingest.redis import RedisDoor
from tests.support import hub_clients
from tests.support.available import unavailable
from tests.support.consuming import (
    LIMITS,
    MAX_MESSAGE_BYTES,
    Heard,
    MemoryLeases,
    open_behind,
    quickly,
    running,
)
from tests.support.redis_server import RedisServer
from tests.support.servers import server_program

pytestmark = pytest.mark.servers

_TIMEOUT_S = 100.0
"""Go compiles its client first."""


@pytest.fixture(scope="module")
def secured() -> Iterator[RedisServer]:
    """A Redis with the password of the examples."""
    with RedisServer(password=hub_clients.PASSWORD) as server:
        yield server


async def _check(folder: Path, server: RedisServer, *argv: str | Path, **environment: str) -> None:
    """What this command publishes is the message of the examples."""
    async with open_behind(folder) as behind:
        door = RedisDoor(
            RedisHub(url=f"redis://127.0.0.1:{server.port}", password=hub_clients.PASSWORD),
            behind.notifier,
            Lease(MemoryLeases(), "redis", "us"),
            limits=LIMITS,
            max_message_bytes=MAX_MESSAGE_BYTES,
            online=behind.who_is_online,
            backoff=quickly(),
        )
        async with running(behind, door) as heard:
            await _run(folder, *argv, **environment)
            await heard.stored(1)
            _check_message(heard)


async def _run(folder: Path, *argv: str | Path, **environment: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, output.decode()


def _check_message(heard: Heard) -> None:
    assert heard.users == [hub_clients.USER]
    assert heard.data == [hub_clients.MESSAGE["payload"]]
    assert heard.contents == ["You have a new order #12345"]


def _write(folder: Path, name: str, text: str, server: RedisServer) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text.replace("PORT", str(server.port)))
    return file


async def test_redis_cli(tmp_path: Path, secured: RedisServer) -> None:
    """As an operator tries it."""
    message = (
        '{"type":"notification","payload":{"title":"New Order","message":"You have a new order #12345"}}'
    )
    program = server_program("redis-cli", "redis")
    login = ("-p", str(secured.port), "-a", hub_clients.PASSWORD)
    await _check(tmp_path, secured, program, *login, "PUBLISH", "user_noti:user123", message)


async def test_python(tmp_path: Path, secured: RedisServer) -> None:
    """With redis-py."""
    file = _write(tmp_path, "send.py", hub_clients.PYTHON, secured)
    await _check(tmp_path, secured, sys.executable, file)


async def test_node(tmp_path: Path, secured: RedisServer, node_modules: Path) -> None:
    """With node-redis."""
    file = _write(tmp_path, "send.js", hub_clients.NODE, secured)
    await _check(tmp_path, secured, "node", file, NODE_PATH=str(node_modules))


@pytest.mark.parametrize(
    "text", [hub_clients.PHP_PREDIS, hub_clients.PHP_PHPREDIS], ids=["predis", "phpredis"]
)
async def test_php(tmp_path: Path, secured: RedisServer, text: str) -> None:
    """With both of its clients."""
    program = shutil.which("php") or unavailable("php", "there is no PHP")
    _write(tmp_path, "vendor/autoload.php", hub_clients.PHP_AUTOLOAD, secured)
    file = _write(tmp_path, "send.php", text, secured)
    await _check(tmp_path, secured, program, "-d", "include_path=.:/usr/share/php", file)


async def test_go(tmp_path: Path, secured: RedisServer) -> None:
    """With redigo."""
    program = shutil.which("go") or unavailable("go", "there is no Go")
    file = _write(tmp_path, "main.go", hub_clients.GO, secured)
    environment = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOPROXY": "off"}
    await _check(tmp_path, secured, program, "run", file, GOCACHE=str(tmp_path / "go"), **environment)
