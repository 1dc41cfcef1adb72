"""What an idle connection of the SockJS door costs, beside one of sockjs-tornado as it comes."""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Process

CONNECTIONS = 600
WARM_UP = 50

_ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_connection_costs_no_more_than_stock(tmp_path: Path) -> None:
    """An idle WebSocket that has said one thing costs no more memory than on sockjs-tornado without our adapter."""
    assert _growth("ours", tmp_path) <= _growth("stock", tmp_path)


def _growth(kind: str, folder: Path) -> int:
    """By how much the server's memory grows with `CONNECTIONS` connections, beyond the first `WARM_UP`."""
    process = Process(
        [sys.executable, "-m", "tests.support.sockjs_memory", kind], log=folder / f"{kind}.log", cwd=_ROOT
    )
    process.start()
    try:
        process.wait_for_output("\n")
        port = int(process.output())
        with contextlib.ExitStack() as stack:
            for _ in range(WARM_UP):
                stack.enter_context(_idle_connection(port))
            before = _memory(port)
            for _ in range(CONNECTIONS):
                stack.enter_context(_idle_connection(port))
            return _memory(port) - before
    finally:
        process.kill()


def _memory(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/memory", timeout=20) as answer:
        return int(answer.read())


@contextlib.contextmanager
def _idle_connection(port: int) -> Iterator[None]:
    request = (
        f"GET /echo/000/a/websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Origin: http://127.0.0.1:{port}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:153.0)\r\n"
        "Accept-Language: en-US,en;q=0.9\r\nCache-Control: no-cache\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.encode())
        _read_until(connection, b"\x81\x01o")
        connection.sendall(b"\x81\x85\0\0\0\0" + b'["a"]')
        _read_until(connection, b'a["a"]')
        yield


def _read_until(connection: socket.socket, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        part = connection.recv(4096)
        assert part, received
        received += part
