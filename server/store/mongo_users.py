"""The users that the server has heard of: one record each, written before their first document is.

`_id` is {tenant, userId}, in this order of fields, so that its index has a tenant's users in the order of their ids.

Since when somebody is known goes by MongoDB's clock where the node's is ahead of it: else whoever has come to that node
would seem to have come after a broadcast that another one accepts next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from bson import MaxKey
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from server import messages
from server.grants import KnownUser
from server.store.mongo_connection import Connection, raise_but_for_duplicates
from server.store.mongo_documents import Raw

UserKey = tuple[str, str]
"""Tenant and user id."""

MAX_REMEMBERED = 100_000
"""Users of whom a node remembers that they are registered, those notified last: about 20 MB."""

CHUNK_USERS = 1000
"""How many records are written at a time: the loop is free in between."""


class KnownUsers:
    """The register. Its verbs are called within an operation of the connection. `latest`: as `StoredRevs.latest`."""

    def __init__(self, connection: Connection, latest: Callable[[], datetime] = messages.now) -> None:
        self._connection = connection
        self._latest = latest
        self._remembered: OrderedDict[UserKey, None] = OrderedDict()
        self._remembered_of: set[str] = set()
        self._tenants: Mapping[str, datetime] = {}

    async def register(self, notified_at: Mapping[UserKey, datetime]) -> None:
        """Return when all of these are registered, who is not yet since that time. Those whom this node remembers cost
        nothing, the others together a round trip, and one more if any are new."""
        others = [user for user in notified_at if not self._remembers(user)]
        for start in range(0, len(others), CHUNK_USERS):
            chunk = others[start : start + CHUNK_USERS]
            await self._insert_missing({user: notified_at[user] for user in chunk})
            self._remember(chunk)

    async def write_first_seen(self, at: Mapping[UserKey, datetime]) -> None:
        """Have these users registered since that time at the latest."""
        await self._write([_upsert(user, {"$min": {"firstSeenAt": each}}) for user, each in at.items()])

    async def note(self, seen_at: Mapping[UserKey, datetime]) -> None:
        """As `Directory.note_users`."""
        await self._write([_upsert(user, [{"$set": _seen(at)}]) for user, at in seen_at.items()])

    async def page(self, tenant: str, after: str | None, limit: int) -> list[KnownUser]:
        """As `Directory.users`."""
        where = of_tenant(tenant)
        if after is not None:
            where["_id"]["$gt"] = {"tenant": tenant, "userId": after}
        found = await self._connection.users.find(where, sort={"_id": 1}, limit=limit).to_list()
        return [
            KnownUser(tenant, each["_id"]["userId"], each["firstSeenAt"], each.get("lastSeenAt"))
            for each in found
        ]

    async def known_since(self, tenant: str, user_id: str) -> datetime | None:
        """As `Directory.known_since`."""
        return await known_since(self._connection, tenant, user_id)

    def keep(self, tenants: Mapping[str, datetime]) -> None:
        """Forget whom this node remembers of tenants that have ended. `tenants`: the active ones, and since when: of
        two of the same name the later is another."""
        known, self._tenants = self._tenants, tenants
        ended = {name for name in self._remembered_of if tenants.get(name) != known.get(name)}
        if ended:
            self._remembered_of -= ended
            kept = (user for user in self._remembered if user[0] not in ended)
            self._remembered = OrderedDict.fromkeys(kept)

    def _remembers(self, user: UserKey) -> bool:
        if user not in self._remembered:
            return False
        self._remembered.move_to_end(user)
        return True

    def _remember(self, users: Sequence[UserKey]) -> None:
        self._remembered.update(dict.fromkeys(users))
        self._remembered_of.update(tenant for tenant, _ in users)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    async def _insert_missing(self, first_seen_at: Mapping[UserKey, datetime]) -> None:
        """For new users many times as fast as upserts are."""
        ids = {user: id_of(user) for user in first_seen_at}
        found = await self._connection.users.find({"_id": {"$in": list(ids.values())}}, {"_id": 1}).to_list()
        known = {(each["_id"]["tenant"], each["_id"]["userId"]) for each in found}
        latest = self._latest()
        new = [
            {"_id": ids[user], "firstSeenAt": min(at, latest)}
            for user, at in first_seen_at.items()
            if user not in known
        ]
        if new:
            with _whoever_is_first():
                await self._connection.users.insert_many(new, ordered=False)

    async def _write(self, upserts: Sequence[UpdateOne]) -> None:
        for start in range(0, len(upserts), CHUNK_USERS):
            with _whoever_is_first():
                await self._connection.users.bulk_write(upserts[start : start + CHUNK_USERS], ordered=False)


@contextmanager
def _whoever_is_first() -> Iterator[None]:
    """Of two nodes that register somebody at once MongoDB refuses one: the user is registered."""
    try:
        yield
    except BulkWriteError as exc:
        raise_but_for_duplicates(exc)


async def known_since(connection: Connection, tenant: str, user_id: str) -> datetime | None:
    """As `Directory.known_since`, within an operation of the connection."""
    found = await connection.users.find_one({"_id": id_of((tenant, user_id))}, {"firstSeenAt": 1})
    return None if found is None else found["firstSeenAt"]


def of_tenant(tenant: str) -> Raw:
    """The filter for the records of a tenant, where `_id` is {tenant, userId}, or has another text in its place."""
    return {"_id": {"$gt": {"tenant": tenant}, "$lt": {"tenant": tenant, "userId": MaxKey()}}}


def id_of(user: UserKey) -> Raw:
    tenant, user_id = user
    return {"tenant": tenant, "userId": user_id}


def _seen(at: datetime) -> Raw:
    """The fields of a user who was there at that time. What is missing counts for neither."""
    return {
        "firstSeenAt": {"$min": ["$firstSeenAt", at, "$$NOW"]},
        "lastSeenAt": {"$max": ["$lastSeenAt", at]},
    }


def _upsert(user: UserKey, change: Raw | Sequence[Raw]) -> UpdateOne:
    return UpdateOne({"_id": id_of(user)}, change, upsert=True)
