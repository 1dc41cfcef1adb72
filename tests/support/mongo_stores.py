"""What the tests of the store on MongoDB have in common: stores, and documents as the original system wrote them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from server.errors import StoreUnavailable
from server.store.mongo import MongoStore
from tests.support.mongod import MongoDatabase

USER = "alice"


@asynccontextmanager
async def opened(database: MongoDatabase, **settings: Any) -> AsyncIterator[MongoStore]:
    """A store, from open to close."""
    store = MongoStore(database.url, database.name, **settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def until_it_succeeds(verb: Callable[[], Awaitable[Any]], timeout_s: float = 30.0) -> Any:
    """Call `verb` until it no longer raises StoreUnavailable."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await verb()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], bool]) -> None:
    """Look into the database again and again, while what changes it goes on."""
    while not condition():  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0)


def original(minutes: int = 0, **fields: Any) -> dict[str, Any]:
    """A document as the original wrote it: naive local times, which MongoDB takes for UTC."""
    at = datetime(2014, 5, 1, 12) + timedelta(minutes=minutes)
    texts = {"type": "info", "title": "T", "content": f"old {minutes}", "url": "", "icon": "", "image": ""}
    times = {"createdAt": at, "updatedAt": at, "deletedAt": None}
    return {"_id": ObjectId(), **texts, "_userId": USER, **times, "delete": False, "seen": False, **fields}
