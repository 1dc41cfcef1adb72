"""What can be wrong in a database of the store: how it is found, and mended. See `mongo_fsck`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pymongo.errors import BulkWriteError

from server import messages
from server.revs import COUNTER_BITS, RevClock
from server.store.mongo_changing import Changing
from server.store.mongo_connection import Connection, raise_but_for_duplicates
from server.store.mongo_documents import ACCESS, Raw
from server.store.mongo_reading import Reading
from server.store.mongo_revs import StoredRevs

Mend = Callable[[Connection, Sequence[Raw]], Awaitable[None]]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

_AN_HOUR_AGO: Raw = {"$subtract": ["$$NOW", _HOUR_MS]}
"""What is written later may be about to be completed."""

_LONGEST_LEASE: Raw = {"$add": ["$$NOW", 2 * _DAY_MS]}
"""Beyond what the configuration takes."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`pipeline`: over the collection `place`, what is wrong, by `_id`, with an `example` if that says more; `mend`: is
    given what was found."""

    code: str
    sentence: str
    remedy: str
    place: str
    pipeline: Sequence[Raw]
    mend: Mend


def _lookup(place: str, tenant: Raw | str, nid: Raw | str) -> Raw:
    """The stage that looks for something of this notification in a collection, as the field `place`."""
    same: Raw = {"$expr": {"$and": [{"$eq": ["$tenant", "$$tenant"]}, {"$eq": ["$nid", "$$nid"]}]}}
    stages: list[Raw] = [{"$match": same}, {"$limit": 1}, {"$project": {"_id": 1}}]
    return {"let": {"tenant": tenant, "nid": nid}, "pipeline": stages, "as": place}


def kinds(connection: Connection) -> list[Kind]:
    """All of them, in the order in which they are mended."""
    return []
