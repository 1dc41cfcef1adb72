"""The fixtures that start something real: mongod, MariaDB, PostgreSQL, Redis, RabbitMQ, nginx, Chromium, npm packages.

Each is made when the first test asks for it. What scripts/test could not install is a skip with its reason,
or with CI=true a failure (tests/support/available.py).
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from playwright.async_api import Browser, async_playwright
from pymongo import MongoClient
from pymongo.database import Database

from server.http_client import HTTPClient
from server.store import Store
from server.tokens.verifier import key_set_client
from tests.support import browser as browser_support
from tests.support.available import is_ci
from tests.support.command import STORES, Command, no_variables, store_settings
from tests.support.feeds import SETTINGS
from tests.support.mariadb import MariaDB
from tests.support.mongod import Mongod, MongoDatabase
from tests.support.postgres import Postgres
from tests.support.rabbitmq import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import server_program
from tests.support.sockets import close_what_is_forgotten
from tests.support.stores import KINDS, Place, fresh_place

# A busy machine is not a failed property.
hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")

# A test that uses the fixture gets the marker, so that `--quick` leaves it out.
_MARKED_BY_FIXTURE = {
    "browser": "browser",
    "node_modules": "node",
    **dict.fromkeys(
        (
            *("mariadb", "own_mariadb", "postgres", "own_postgres", "nginx"),
            *("redis_server", "own_redis_server", "rabbitmq", "own_rabbitmq"),
        ),
        "servers",
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "servers: starts MariaDB, PostgreSQL, Redis, RabbitMQ or nginx (set by itself on each test that uses the"
        " fixture of one)",
    )
    close_what_is_forgotten()
    # Python's own answer to SIGTERM runs no cleanup: folders and processes would be left.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM", returncode=143))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in _MARKED_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skipped test is a failed one, whoever skipped it."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and is_ci():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.outcome = "failed"
        report.longrepr = f"with CI=true nothing may be skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def mongod_standalone() -> Iterator[Mongod]:
    """A standalone mongod of this test run. Leave it as you found it; to kill one, use `own_mongod`."""
    with Mongod() as mongod:
        yield mongod


@pytest.fixture(scope="session")
def mongod_replica_set() -> Iterator[Mongod]:
    """A replica set of one member of this test run. Leave it as you found it; to kill one, use
    `own_mongod`."""
    with Mongod(replica_set="rs0") as mongod:
        yield mongod


@pytest.fixture
def own_mongod() -> Iterator[Mongod]:
    """A replica set of one member for this test alone, which may kill, freeze and restart it."""
    with Mongod(replica_set="rs0") as mongod:
        yield mongod


@pytest.fixture(scope="session")
def mongo_url(request: pytest.FixtureRequest) -> str:
    """The server of $MONGODB_URL if that is set, else `mongod_replica_set`."""
    url = os.environ.get("MONGODB_URL")
    return url or str(request.getfixturevalue("mongod_replica_set").url)


@pytest.fixture
def mongo_database(mongo_url: str) -> Iterator[MongoDatabase]:
    """A fresh database on `mongo_url`."""
    database = MongoDatabase(mongo_url, f"test_{uuid.uuid4().hex[:16]}")
    yield database
    client: MongoClient[dict[str, Any]]
    with MongoClient(database.url) as client:
        client.drop_database(database.name)


@pytest.fixture
def raw(mongo_database: MongoDatabase) -> Iterator[Database[dict[str, Any]]]:
    """The `mongo_database` itself, beside the store that a test has there."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(mongo_database.url, tz_aware=True) as client:
        yield client[mongo_database.name]


@pytest.fixture
def user() -> str:
    """An id that nobody has used."""
    return f"user-{uuid.uuid4().hex}"


@pytest.fixture(params=STORES)
def settings_of_store(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What a server with clients of all kinds has in its environment, over a store of each kind."""
    with store_settings(request.param, request) as settings:
        yield SETTINGS | settings


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where a store of each kind may lie: what must be true of all of them is tested here."""
    with fresh_place(request.param, request) as place:
        yield place


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    """An open store at `place`."""
    store = place.store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=STORES)
def store_variables(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The environment variables of an empty store, in force; an empty current folder."""
    no_variables(monkeypatch, tmp_path)
    with store_settings(request.param, request) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables


@pytest.fixture
def command(store_variables: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, on a store that has been opened before."""
    command = Command(capsys)
    command.must("tenant", "list")
    return command


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in an empty folder, with nothing configured."""
    no_variables(monkeypatch, tmp_path)
    return Command(capsys)


@pytest.fixture
async def http() -> AsyncIterator[HTTPClient]:
    """By which key sets are fetched."""
    client = key_set_client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB of this test run. Leave it as you found it; to kill one, use `own_mariadb`."""
    with MariaDB() as server:
        yield server


@pytest.fixture
def own_mariadb() -> Iterator[MariaDB]:
    """A MariaDB for this test alone, which may kill, freeze and restart it."""
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this test run. Leave it as you found it; to kill one, use `own_postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL for this test alone, which may kill, freeze and restart it."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis of this test run. Leave it as you found it, and use channels of your own; to kill one, use
    `own_redis_server`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A Redis for this test alone, which may kill, freeze and restart it."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """A RabbitMQ of this test run. Leave it as you found it, and use exchanges and queues of your own; to kill one, use
    `own_rabbitmq`."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture
def own_rabbitmq() -> Iterator[RabbitMQServer]:
    """A RabbitMQ for this test alone, which may kill, freeze and restart it."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture(scope="session")
def nginx() -> Path:
    """The program. Start it with a configuration and a folder (`-p`) of your own."""
    return server_program("nginx", "nginx")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium; make a context and a page from it."""
    path = browser_support.chromium()
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=path, args=browser_support.LAUNCH_ARGUMENTS
        )
        yield chromium
        await chromium.close()


@pytest.fixture
def node_modules() -> Path:
    """The folder with the npm packages of tests/node/package.json; for `node` as NODE_PATH."""
    return browser_support.node_modules()
