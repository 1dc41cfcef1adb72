"""Sign-outs on MongoDB: the last of each user, with the time at which it was written down.

`<collection>_sign_outs`: `_id` is {tenant, userId}, `at`, and `writtenAt` by the clock of the database, which says what
is new to whom. A row written by an earlier version has none: it is found by whoever reads all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from server.errors import StoreUnavailable
from server.grants import SignOut
from server.store import STEP, SignOutCursor, SignOutPage
from server.store.mongo_connection import Connection
from server.store.mongo_documents import ACCESS, Raw
from server.store.mongo_users import of_tenant

OVERLAP = timedelta(seconds=30)
"""A row may be seen only some time after it was written, and the clocks of a cluster may differ: what is new is read
from so far back. Above any time-out of a verb."""


@dataclass(frozen=True, slots=True)
class _Place(SignOutCursor):
    """`began`: when this reading began. `since`: when the oldest that it is to find were written; None: it is one of
    all. `last`: the last row of it so far; None: it has ended."""

    began: datetime
    since: datetime | None
    last: Raw | None = None


class SignOutRecords:
    """The verbs of `Directory` about sign-outs. Called within an operation of the connection; the caller raises the
    sequence."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, tenant: str, user_id: str, at: datetime) -> None:
        """As `Directory.sign_out`."""
        user = {"_id": {"tenant": tenant, "userId": user_id}}
        # $max ignores a field that is missing; to a date $add adds milliseconds.
        after = {"$add": ["$at", STEP // timedelta(milliseconds=1)]}
        last = {"$set": {"at": {"$max": [after, at]}, "writtenAt": "$$NOW"}}
        await self._connection.sign_outs.update_one(user, [last], upsert=True)

    async def page(self, after: SignOutCursor | None, limit: int) -> SignOutPage:
        """As `Directory.sign_outs`."""
        if not isinstance(after, _Place):
            place = _Place(await self._now(), None)
        elif after.last is None:
            place = _Place(await self._now(), after.began - OVERLAP)
        else:
            place = after
        where, sort = _query(place)
        found = await self._connection.sign_outs.find(where, sort=sort, limit=limit).to_list()
        is_last = len(found) < limit
        cursor = replace(place, last=None if is_last else found[-1])
        return SignOutPage(tuple(map(_read, found)), cursor, is_last)

    async def forget(self, before: datetime) -> None:
        """As `Directory.forget_sign_outs`."""
        await self._connection.sign_outs.delete_many({"at": {"$lt": before}})

    async def erase(self, tenant: str) -> None:
        """Drop those of this tenant."""
        await self._connection.sign_outs.delete_many(of_tenant(tenant))

    async def _now(self) -> datetime:
        """By the same clock as `writtenAt`."""
        pipeline: list[Raw] = [{"$match": ACCESS}, {"$project": {"now": "$$NOW"}}]
        found = await (await self._connection.meta.aggregate(pipeline)).to_list()
        if not found:
            raise StoreUnavailable("the database was emptied; restart the server")
        now: datetime = found[0]["now"]
        return now


def _query(place: _Place) -> tuple[Raw, Raw]:
    """The filter for what a reading has still to find, and the order in which it goes."""
    last = place.last
    if place.since is None:
        return {} if last is None else {"_id": {"$gt": last["_id"]}}, {"_id": 1}
    order = {"writtenAt": 1, "_id": 1}
    if last is None:
        return {"writtenAt": {"$gte": place.since}}, order
    # The first condition alone gives the bounds of the index scan; an $or over both would need a sort.
    at = last["writtenAt"]
    beyond = [{"writtenAt": {"$gt": at}}, {"_id": {"$gt": last["_id"]}}]
    return {"writtenAt": {"$gte": at}, "$or": beyond}, order


def _read(found: Raw) -> SignOut:
    return SignOut(found["_id"]["tenant"], found["_id"]["userId"], found["at"])
