"""Looking through a whole database of the store: its parts against each other. For the command line.

Servers may run meanwhile: what they are just writing is left out. What can be wrong is in `mongo_fsck_kinds` and
`mongo_fsck_values`.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.store.fsck import Finding, Report
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw
from server.store.mongo_fsck_kinds import Kinds
from server.store.mongo_fsck_values import Kind

LIMIT_S = 3600.0
"""For one look over a collection."""

MAX_FOUND = 10_000
"""Of one kind at a time: mending goes on until there are none."""

_COUNTS: dict[str, tuple[str, Raw]] = {
    "documents": ("documents", {"delete": False}),
    "unseen": ("documents", {"delete": False, "seen": False}),
    "tombstones": ("documents", {"delete": True}),
    "users": ("users", {}),
    "tenants": ("tenants", {"removedAt": None}),
    "mails": ("documents", {"mail.subject": {"$exists": True}}),
    "intents": ("intents", {}),
    "broadcasts": ("broadcasts", {}),
    "idempotency_keys": ("once", {}),
    "leases": ("leases", {}),
}


async def look(connection: Connection) -> Report:
    """Raises `StoreUnavailable`."""
    counts = {}
    for what, (place, which) in _COUNTS.items():
        with connection.bounded(LIMIT_S):
            counts[what] = await getattr(connection, place).count_documents(which)
    findings = []
    for kind in Kinds(connection).all():
        found = await _find(connection, kind)
        if found:
            example = str(found[0].get("example", found[0]["_id"]))
            findings.append(Finding(kind.code, kind.sentence, kind.remedy, len(found), example))
    return Report(counts, tuple(findings))


async def mend(connection: Connection) -> Report:
    """Mend all that can be, one kind after the other, as what one mends may be the next one's damage; what is left
    then. Raises `StoreUnavailable`."""
    for kind in Kinds(connection).all():
        before: Sequence[Raw] = ()
        # What cannot be mended is found again: that is the end of it.
        while (found := await _find(connection, kind)) and found != before:
            with connection.bounded(LIMIT_S):
                await kind.mend(found)
            before = found
    return await look(connection)


async def _find(connection: Connection, kind: Kind) -> list[Raw]:
    pipeline = [*kind.pipeline, {"$limit": MAX_FOUND}]
    with connection.bounded(LIMIT_S):
        cursor = await getattr(connection, kind.place).aggregate(pipeline, allowDiskUse=True)
        found: list[Raw] = await cursor.to_list()
    return found
