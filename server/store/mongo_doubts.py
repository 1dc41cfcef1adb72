"""Documents whose insert was not answered in time: whether they are there is found out later, so that their users hear
of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bson import ObjectId

from server.messages import Document
from server.store.mongo_connection import Connection
from server.store.mongo_documents import WHOLE, read_document

MAX_UNCERTAIN = 10_000
"""Timed-out documents that are remembered."""


@dataclass(frozen=True, slots=True)
class _Uncertain:
    document: Document
    timed_out_at: float
    """On the monotonic clock."""
    others: Sequence[Document]
    intent: ObjectId | None


class Doubts:
    """Called within an operation of the connection, but for `note`. `grace_s`: after so long an insert is done or never
    will be."""

    def __init__(self, connection: Connection, grace_s: float) -> None:
        self._connection = connection
        self._grace_s = grace_s
        self._uncertain: deque[_Uncertain] = deque(maxlen=MAX_UNCERTAIN)

    def note(
        self,
        documents: Sequence[Document],
        others: Sequence[Document] = (),
        intent: ObjectId | None = None,
    ) -> None:
        """The inserts of these timed out, or what follows them. `others`: whose users nobody has told either, if these
        are there. `intent`: as long as it is open, they are its sweep's."""
        timed_out_at = time.monotonic()
        self._uncertain.extend(_Uncertain(document, timed_out_at, others, intent) for document in documents)

    async def landed(self) -> list[Document]:
        """Those that came through, and those that were noted with them."""
        latest = time.monotonic() - self._grace_s
        settled = [each for each in self._uncertain if each.timed_out_at < latest]
        if not settled:
            return []
        stored = await read_stored(self._connection, [each.document for each in settled])
        # Who has changed it since knows of it; and what has another rev was stored by another call.
        revs = {each.document.id: each.document.rev for each in settled}
        left = await self._left_to_sweeps(settled)
        landed = [
            document for document in stored if document.rev == revs[document.id] and document.id not in left
        ]
        ids = {document.id for document in landed}
        others = [other for each in settled if each.document.id in ids for other in each.others]
        found = await read_stored(self._connection, others) if others else []
        # By their time: meanwhile others may have taken the places of some, if there were no more.
        while self._uncertain and self._uncertain[0].timed_out_at < latest:
            self._uncertain.popleft()
        return landed + [document for document in found if not document.deleted]

    async def _left_to_sweeps(self, settled: Sequence[_Uncertain]) -> set[str]:
        intents = {each.intent for each in settled if each.intent is not None}
        if not intents:
            return set()
        query = {"_id": {"$in": list(intents)}, "openedAt": {"$exists": True}}
        is_open = {each["_id"] for each in await self._connection.intents.find(query, {"_id": 1}).to_list()}
        return {each.document.id for each in settled if each.intent in is_open}


async def read_stored(connection: Connection, documents: Sequence[Document]) -> list[Document]:
    """These documents as they are now, without those that are not there."""
    place = {ObjectId(document.id): index for index, document in enumerate(documents)}
    stored = await connection.documents.find({"_id": {"$in": list(place)}}, WHOLE).to_list()
    return [read_document(found) for found in sorted(stored, key=lambda found: place[found["_id"]])]
