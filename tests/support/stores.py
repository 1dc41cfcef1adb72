"""The kinds of store that the contract suite runs over, and how a test makes one. A new kind is added here only."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from pymongo import AsyncMongoClient

from server.grants import SignOut
from server.ids import new_id
from server.messages import Document, EmailDuty, Mail, MailRecipient, Notification, Recipient, now
from server.store import Directory, Outbox, SignOutCursor, Store

KINDS = ("sqlite", "mongo-standalone", "mongo-replica-set")

TENANT = "acme"
USER = "alice"


class Beside(Protocol):
    """What another process opens to change the directory or the outbox of a store that a server has open."""

    directory: Directory
    outbox: Outbox

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class Place(Protocol):
    """Where the data of a store lies. Stores made one after the other in one place find each other's data."""

    is_shared: bool
    """Whether several stores may be open there at once, as on several nodes."""

    def store(self, timeout_s: float = 10.0) -> Store:
        """A store that is not open yet."""

    def beside(self) -> Beside:
        """A way to the directory, not open yet, for use also while a store is open there."""

    def arguments(self) -> list[str]:
        """For `place_of`, in another process."""

    async def settled(self) -> None:
        """Return when nothing goes on any more of what a process that was killed had begun there."""


@dataclass(frozen=True)
class SQLitePlace:
    path: Path
    is_shared = False

    def store(self, timeout_s: float = 10.0) -> Store:
        from server.store.sqlite import SQLiteStore

        return SQLiteStore(self.path, timeout_s=timeout_s)

    def beside(self) -> Beside:
        from server.store.sqlite_beside import SQLiteBeside

        return SQLiteBeside(self.path)

    def arguments(self) -> list[str]:
        return ["sqlite", str(self.path)]

    async def settled(self) -> None:
        """What was not committed has ended with its process."""


@dataclass(frozen=True)
class MongoPlace:
    url: str
    db: str
    is_shared = True

    def store(self, timeout_s: float = 10.0) -> Store:
        from server.store.mongo import MongoStore

        return MongoStore(
            url=self.url, db=self.db, collection=None, timeout_s=timeout_s, legacy_timezone=None
        )

    def beside(self) -> Beside:
        from server.store.mongo_beside import MongoBeside

        return MongoBeside(self.url, self.db)

    def arguments(self) -> list[str]:
        return ["mongo", self.url, self.db]

    async def settled(self) -> None:
        """mongod goes on with what it has been told."""
        going_on = [
            {"$currentOp": {"allUsers": True}},
            {"$match": {"active": True, "ns": {"$regex": f"^{re.escape(self.db)}\\."}}},
        ]
        idle = 0
        async with AsyncMongoClient[dict[str, Any]](self.url) as client:
            # More than once: it may not have read all that lies in its sockets.
            while idle < 3:
                found = await (await client.admin.aggregate(going_on)).to_list()
                idle = 0 if found else idle + 1
                await asyncio.sleep(0.02)


def place_of(arguments: Sequence[str]) -> Place:
    match arguments:
        case ["sqlite", path]:
            return SQLitePlace(Path(path))
        case ["mongo", url, db]:
            return MongoPlace(url, db)
    raise ValueError(f"not a place: {arguments}")


@contextmanager
def fresh_place(kind: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty place of this kind, for one test."""
    if kind == "sqlite":
        yield SQLitePlace(request.getfixturevalue("tmp_path") / "data" / "notifications.sqlite3")
        return
    mongod = request.getfixturevalue(kind.replace("mongo-", "mongod_").replace("-", "_"))
    place = MongoPlace(mongod.url, f"test_{uuid.uuid4().hex[:16]}")
    try:
        yield place
    finally:
        with mongod.client() as client:
            client.drop_database(place.db)


def make_notification(tenant: str = TENANT, **fields: Any) -> Notification:
    """A notification with some of its fields; `created_at` is the present unless given."""
    return Notification(
        **{"nid": new_id(tenant), "tenant": tenant, "created_at": now(), "content": "", **fields}
    )


async def put(store: Store, user_id: str = USER, tenant: str = TENANT, **fields: Any) -> Document:
    """Store a notification for one user."""
    stored = await store.add(make_notification(tenant, **fields), [Recipient(user_id)], None)
    return stored.documents[0]


async def put_many(store: Store, count: int, user_id: str = USER, **fields: Any) -> list[Document]:
    """Store notifications for one user, one after the other."""
    return [await put(store, user_id, **fields) for _ in range(count)]


async def read_sign_outs(
    directory: Directory, after: SignOutCursor | None = None, limit: int = 1000
) -> tuple[list[SignOut], SignOutCursor]:
    """All from there on (None: all there are), page by page, and where the next ones begin."""
    found: list[SignOut] = []
    while True:
        page = await directory.sign_outs(after, limit)
        assert len(page.sign_outs) <= limit
        found += page.sign_outs
        after = page.cursor
        if page.is_last:
            return found, after


async def owe(
    store: Store, *recipients: MailRecipient, mail: Mail | None = None, **fields: Any
) -> Notification:
    """Store a notification for these users, and the duty to mail them."""
    notification = make_notification(**fields)
    duty = EmailDuty(mail or Mail("subject", "content"), recipients)
    await store.add(notification, [Recipient(each.user_id, each.email) for each in recipients], duty)
    return notification


async def whole_inbox(store: Store, user_id: str = USER, tenant: str = TENANT) -> list[Document]:
    """All documents of a user, newest first, however many."""
    documents: list[Document] = []
    while True:
        before = documents[-1].id if documents else None
        some = await store.newest(tenant, user_id, before=before, limit=1000)
        if not some:
            return documents
        documents += some
