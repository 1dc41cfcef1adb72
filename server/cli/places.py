"""The way to a store as such, for commands that need more of it than tenants and keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from server.config import Config

if TYPE_CHECKING:
    from server.store.mongo_connection import Connection

T = TypeVar("T")


def embedded_file(config: Config) -> Path:
    """Where the embedded store is, or would be."""
    from server.wiring import EMBEDDED_FILE  # takes a moment, which other commands need not wait for

    return config.application.data / EMBEDDED_FILE


def in_mongodb(config: Config, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something with the database that the configuration names. Raises `StartupError`, `StoreUnavailable`, and what
    `work` raises."""
    from server.store.mongo_connection import Connection

    mongodb = config.mongodb

    async def run() -> T:
        connection = Connection(mongodb.url or "", mongodb.db, mongodb.collection, mongodb.timeout_s)
        await connection.open()
        try:
            return await work(connection)
        finally:
            await connection.disconnect()

    return asyncio.run(run())
