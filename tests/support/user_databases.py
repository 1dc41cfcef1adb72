"""A fresh database for one test, in each of the kinds that the login by SQL knows."""

from __future__ import annotations

import gc
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from server.config.access import SQLLogin
from tests.support.mariadb import MariaDB
from tests.support.postgres import Postgres

USERS = """
CREATE TABLE users (id INTEGER, login VARCHAR(80), password VARCHAR(200), tenant VARCHAR(20));
INSERT INTO users VALUES (1, 'alice', 'wonderland', NULL), (2, 'bob', 'builder', 'acme');
"""


class UserDatabase(ABC):
    """Empty at first. `kind`: "mariadb", "postgres", "sqlite"."""

    kind: str
    url: str
    """For `SQLLogin`."""
    _lock: str

    def __init__(self) -> None:
        self.name = f"test_{uuid.uuid4().hex[:16]}"

    def settings(self, **changes: Any) -> SQLLogin:
        """For the table `users`, its passwords in plain text."""
        return SQLLogin(**{"url": self.url, "check": "database", "timeout_s": 30.0} | changes)

    @abstractmethod
    def run(self, sql: str) -> None:
        """Carry out these statements."""

    @abstractmethod
    def connections(self) -> int:
        """How many are open to it."""

    @abstractmethod
    def drop(self) -> None: ...

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Somebody works on the table `users` for so long, and nobody else may read it."""
        engine = create_async_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                for statement in self._lock.split(";"):
                    await connection.execute(text(statement))
                try:
                    yield
                finally:
                    await connection.invalidate()
        finally:
            # Also of a test that failed: aiosqlite's thread would keep the process alive for ever.
            await engine.dispose()


class MariaDBUsers(UserDatabase):
    kind = "mariadb"
    _lock = "LOCK TABLES users WRITE"

    def __init__(self, server: MariaDB) -> None:
        super().__init__()
        self._server = server
        self.url = server.url(self.name).replace("mysql:", "mysql+asyncmy:")
        server.run(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4")

    def run(self, sql: str) -> None:
        self._server.run(sql, self.name)

    def connections(self) -> int:
        where = f"FROM information_schema.processlist WHERE db = '{self.name}'"
        return int(self._server.run(f"SELECT COUNT(*) {where}"))

    def drop(self) -> None:
        self._server.run(f"DROP DATABASE {self.name}")


class PostgresUsers(UserDatabase):
    kind = "postgres"
    _lock = "BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE"

    def __init__(self, server: Postgres) -> None:
        super().__init__()
        self._server = server
        self.url = server.url(self.name).replace("postgresql:", "postgresql+asyncpg:")
        server.run(f"CREATE DATABASE {self.name}")

    def run(self, sql: str) -> None:
        self._server.run(sql, self.name)

    def connections(self) -> int:
        where = f"FROM pg_stat_activity WHERE datname = '{self.name}'"
        return int(self._server.run(f"SELECT COUNT(*) {where}"))

    def drop(self) -> None:
        self._server.run(f"DROP DATABASE {self.name} WITH (FORCE)")


class SQLiteUsers(UserDatabase):
    kind = "sqlite"
    _lock = "BEGIN EXCLUSIVE"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        # What has a meaning in an address is only a part of the name in a path.
        self.path = folder / "the users #1? 50%25.db"
        self.url = f"sqlite+aiosqlite:///{folder}/the users #1%3F 50%2525.db"
        self.path.touch()

    def run(self, sql: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript(sql)

    def connections(self) -> int:
        # Those of `sqlite3` refer to themselves: one that was cut off in a query stays open until it is collected.
        gc.collect()
        links = Path("/proc/self/fd")
        return sum(link.resolve() == self.path for link in links.iterdir())

    def drop(self) -> None:
        self.path.unlink()
