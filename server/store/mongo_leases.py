"""`Leases` on MongoDB: `<collection>_leases` has the `holder` of each, by its name, and `until` when."""

from __future__ import annotations

from pymongo import ReturnDocument

from server.store.mongo_connection import Connection


class MongoLeases:
    """`Leases` on an open connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def take(self, name: str, holder: str, lease_s: float) -> bool:
        # Neither is to be taken for an expression.
        me = {"$literal": holder}
        # A missing `until`, as of a lease that nobody ever took, is less than any time.
        is_mine = {"$or": [{"$eq": ["$holder", me]}, {"$lte": ["$until", "$$NOW"]}]}
        until = {"$add": ["$$NOW", round(lease_s * 1000)]}
        taken = {
            "holder": {"$cond": [is_mine, me, "$holder"]},
            "until": {"$cond": [is_mine, until, "$until"]},
        }
        with self._connection.operation():
            lease = await self._connection.leases.find_one_and_update(
                {"_id": name}, [{"$set": taken}], upsert=True, return_document=ReturnDocument.AFTER
            )
        return lease is not None and lease["holder"] == holder

    async def give_back(self, name: str, holder: str) -> None:
        with self._connection.operation():
            await self._connection.leases.delete_one({"_id": name, "holder": holder})
