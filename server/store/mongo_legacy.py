"""What the original wrote, as expressions of MongoDB: its times as instants, whatever stands there. No I/O.

It wrote local time, and MongoDB took that for UTC. Here it is read in a zone. A time that the clock leaves out, when
summer begins, counts on from before the change (02:30 is 03:30); of one that it repeats, when summer ends, the later is
meant (Python would take the earlier).

Not every time can be read: it may lie beyond the years 1 to 9999, which are all that dates can be made of here and in
Python, or be no time at all. Then a document has the nearest that can be, or as its `createdAt` the time in its `_id`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from server.claims import MAX_USER_ID_BYTES
from server.grants import DEFAULT_TENANT
from server.store.mongo_documents import Raw

# A day from the ends: no zone leads beyond them.
_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 30, tzinfo=UTC)

_UNITS = ("year", "month", "dayOfMonth", "hour", "minute", "second", "millisecond")

OBJECT_ID: Raw = {"$type": "objectId"}
"""What the `_id` of a document is that can be brought up: of any other no client could say that it is seen."""

IS_STRANGE: Raw = {
    "$or": [
        # Of values of different types the type decides: nothing but dates lies between dates.
        {"$lt": ["$createdAt", _FIRST]},
        {"$gt": ["$createdAt", _LAST]},
        *(
            {
                "$and": [
                    {"$gt": [f"${name}", None]},
                    {"$or": [{"$lt": [f"${name}", _FIRST]}, {"$gt": [f"${name}", _LAST]}]},
                ]
            }
            for name in ("updatedAt", "deletedAt")
        ),
    ]
}
"""Whether one of the times of a document of the original cannot be read; one that is null can, but for `createdAt`."""

# Not $type of a filter, which finds lists of texts, too.
HAS_TENANT: Raw = {"$expr": {"$eq": [{"$type": "$tenant"}, "string"]}}

HAS_USER: Raw = {
    "$expr": {
        "$cond": [
            {"$eq": [{"$type": "$_userId"}, "string"]},
            {"$lte": [{"$strLenBytes": "$_userId"}, MAX_USER_ID_BYTES]},
            False,
        ]
    }
}
"""The filter for documents of somebody who can be a user."""

_LISTED = ("tenant", "_userId", "createdAt", "rev", "nid", "seen", "delete", "type")

HAS_LISTS: Raw = {"$or": [{name: {"$type": "array"}} for name in _LISTED]}

WITHOUT_LISTS: list[Raw] = [
    {
        "$set": {
            "legacy.lists": {
                name: {"$cond": [{"$isArray": f"${name}"}, f"${name}", "$$REMOVE"]} for name in _LISTED
            },
            **{name: {"$cond": [{"$isArray": f"${name}"}, "$$REMOVE", f"${name}"]} for name in _LISTED},
        }
    }
]
"""The update that puts away lists which stand in place of a single value: over two in one document MongoDB makes
no index."""


def adoption(zone: str) -> list[Raw]:
    """The update that brings up a document of the original."""
    before = {"createdAt": "$createdAt", "updatedAt": "$updatedAt", "deletedAt": "$deletedAt"}
    whole = {"tenant": DEFAULT_TENANT, "nid": "$_id", "legacy": before, "seen": {"$ifNull": ["$seen", False]}}
    return [{"$set": whole}, conversion(zone)]


def conversion(zone: str) -> Raw:
    """The stage of an update that takes the times from `legacy`, but for those that we have written since."""
    is_ours = {"$ne": [{"$type": "$rev"}, "missing"]}
    times = {
        name: {"$cond": [is_ours, f"${name}", _instant(f"$legacy.{name}", zone, None)]}
        for name in ("updatedAt", "deletedAt")
    }
    return {"$set": {"createdAt": created_at("$legacy.createdAt", zone), **times, "legacy.zone": zone}}


def created_at(local: str, zone: str) -> Raw:
    """The expression for the `createdAt` of what the original made then."""
    return _instant(local, zone, {"$toDate": "$_id"})


def _instant(local: str, zone: str, otherwise: Raw | None) -> Raw:
    """`otherwise`: in place of what is no time."""
    nearest = {"$max": [_FIRST, {"$min": [_LAST, local]}]}
    parts: Raw = {("day" if unit == "dayOfMonth" else unit): {f"${unit}": "$$time"} for unit in _UNITS}
    instant = {
        "$let": {"vars": {"time": nearest}, "in": {"$dateFromParts": {**parts, "timezone": zone}}},
    }
    return {"$cond": [{"$eq": [{"$type": local}, "date"]}, instant, otherwise]}
