"""While the server starts, in a process of its own: who is answered, and how."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.client import SocketClient
from tests.support.mongo_stores import original
from tests.support.mongod import Mongod
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer

ROOT = Path(__file__).resolve().parents[1]

HANGING_STORE = """
import asyncio, signal
from server.store.sqlite import SQLiteStore
open_well = SQLiteStore.open
async def hang(store):
    print("is opening", flush=True)
    go_on = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, go_on.set)
    await go_on.wait()
    await open_well(store)
SQLiteStore.open = hang
"""
"""It opens after SIGUSR1."""


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose store takes its time to open."""
    (tmp_path / "sitecustomize.py").write_text(HANGING_STORE)
    server = RunningServer(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    server.launch()
    wait_until(lambda: "is opening" in server.log, "the store being opened")
    yield server
    if server.is_running:
        server.stop()


def test_it_can_be_ended(starting: RunningServer) -> None:
    """Whoever is connected."""
    with socket.create_connection(("127.0.0.1", starting.port)):
        assert starting.get("/healthz").status == 200
        assert starting.stop() == 0
    assert "Traceback" not in starting.log


def test_while_the_store_opens_only_health_is_answered(starting: RunningServer) -> None:
    """A process that works for minutes on its store is alive: nobody who watches over it should end it."""
    for method in ("GET", "HEAD"):
        assert starting.request(method, "/healthz").status == 200
        assert starting.request(method, "/readyz").status == 503
    assert starting.get("/readyz").json() == {"status": "starting", "dependencies": {}}
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/", "/notify", "/health", "/metrics", "/api/v2/tokens", "/notification/info", "/none"):
            answer = starting.request(method, path)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), (method, path)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert method == "HEAD" or answer.json()["title"] == "starting"
    assert "Traceback" not in starting.log and "ERROR" not in starting.log


def test_a_publisher_with_much_to_say_is_answered_while_the_store_opens(starting: RunningServer) -> None:
    """As much as it could publish later: the answer arrives, and nothing of it is kept."""
    assert starting.notify("alice", content="x" * 4 * 1024 * 1024).status == 503
    starting.signal(signal.SIGUSR1)
    starting.wait_until_ready()
    assert starting.notify("alice", content="x").status == 200


async def test_who_was_connected_before_it_served_is_served(starting: RunningServer) -> None:
    """Proxies keep their connections; a WebSocket is refused until then."""
    with pytest.raises(InvalidStatus) as refused:
        await SocketClient(starting).__aenter__()
    assert refused.value.response.status_code == 503
    connection = http.client.HTTPConnection("127.0.0.1", starting.port, timeout=30)
    connection.request("GET", "/client/notifications.js")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 503
    kept = connection.sock
    starting.signal(signal.SIGUSR1)
    await asyncio.to_thread(starting.wait_until_ready)
    connection.request("GET", "/client/notifications.js")
    assert connection.getresponse().status == 200
    assert connection.sock is kept
    connection.close()
    async with SocketClient(starting) as client:
        assert await client.join("alice") == []


async def test_a_long_migration_is_a_start(tmp_path: Path, own_mongod: Mongod) -> None:
    """As that of a large inbox of the original: it is alive, it is not ready, and when it is, all is there."""
    count = 20_000
    with own_mongod.client() as client:
        documents = [original(number % 1000, _userId=f"user-{number % 100}") for number in range(count)]
        client["ws_notification"]["ws_notification"].insert_many(documents)
    server = RunningServer(tmp_path, NOTIFY_MONGODB_URL=own_mongod.url)
    server.launch()
    await asyncio.to_thread(wait_until, lambda: _is_alive(server), "a sign of life")
    alive = 0
    while server.get("/readyz").json()["status"] == "starting":
        assert server.get("/healthz").status == 200
        alive += 1
    assert alive, "it was not asked in time"
    with own_mongod.client() as client:
        assert client["ws_notification"]["ws_notification"].count_documents({"tenant": "default"}) == count
    assert server.stop() == 0


def _is_alive(server: RunningServer) -> bool:
    with contextlib.suppress(OSError):
        return server.get("/healthz").status == 200
    return False
