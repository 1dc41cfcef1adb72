"""Where the server to be tested is, and its services."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sockjs_protocol.client import Service
from tests.support.processes import Process


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sockjs-url", default=os.environ.get("SOCKJS_URL"), help="test this server, not our own"
    )


@pytest.fixture(scope="session")
def sockjs_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server, without a path."""
    given = request.config.getoption("--sockjs-url", default=os.environ.get("SOCKJS_URL"))
    if given:
        yield str(given).rstrip("/")
        return
    log = tmp_path_factory.mktemp("sockjs") / "services.log"
    process = Process(
        [sys.executable, "-W", "error", "-m", "tests.support.sockjs_services"], log=log, cwd=_ROOT
    )
    process.start()
    try:
        process.wait_for_output("\n")
        yield process.output().splitlines()[0]
    finally:
        process.kill()


_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def echo(sockjs_url: str) -> Service:
    """Sends every message back. Its streaming responses end after 4 KiB."""
    return Service(f"{sockjs_url}/echo")


@pytest.fixture
def echo_without_websocket(sockjs_url: str) -> Service:
    return Service(f"{sockjs_url}/disabled_websocket_echo")


@pytest.fixture
def echo_with_cookie(sockjs_url: str) -> Service:
    return Service(f"{sockjs_url}/cookie_needed_echo")


@pytest.fixture
def closing(sockjs_url: str) -> Service:
    """Closes every session as soon as it is open, with 3000 and "Go away!"."""
    return Service(f"{sockjs_url}/close")
