"""Reading inboxes on MongoDB."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bson import ObjectId
from pymongo.errors import AutoReconnect

from server.ids import is_id
from server.messages import Document
from server.store import MAX_TYPES, Counts, TypeCounts, Welcome
from server.store.mongo_connection import Connection
from server.store.mongo_documents import WHOLE, Raw, beyond, read_document
from server.store.mongo_users import known_since
from server.wire import MAX_CHARS_PER_FRAME, overflow

OLDEST_FIRST = 1
NEWEST_FIRST = -1

Position = tuple[datetime, ObjectId]

MAX_REV = (1 << 63) - 1
"""What MongoDB takes for an integer."""

FEW_TYPES = 16
"""Of one user: each takes two questions to count."""

FEW_DOCUMENTS = 1000
"""Of one user: to group them takes less than a question more."""

TURN_CHARS = 16 * 1024
"""Of documents that are read without a break."""

NOT_DELETED: Raw = {"delete": False}

_ALL: Raw = {"documents": ["unbounded", "unbounded"]}

# Of each type of each user, those with the most documents first; in each, too, the sums over all types of the user.
_COUNTING: list[Raw] = [
    # By seen, too, and not a sum over its values: the index alone has them, and this takes the least time.
    {"$group": {"_id": {"user": "$_userId", "type": "$type", "seen": "$seen"}, "count": {"$sum": 1}}},
    # What is no text in a document of the original is read as an empty one.
    {"$set": {"_id.type": {"$cond": [{"$eq": [{"$type": "$_id.type"}, "string"]}, "$_id.type", ""]}}},
    {
        "$group": {
            "_id": {"user": "$_id.user", "type": "$_id.type"},
            "unseen": {"$sum": {"$cond": ["$_id.seen", 0, "$count"]}},
            "total": {"$sum": "$count"},
        }
    },
    # Places are given by one field only.
    {"$set": {"order": {"fewer": {"$multiply": [-1, "$total"]}, "type": "$_id.type"}}},
    {
        "$setWindowFields": {
            "partitionBy": "$_id.user",
            "sortBy": {"order": 1},
            "output": {
                "place": {"$documentNumber": {}},
                "allUnseen": {"$sum": "$unseen", "window": _ALL},
                "allTotal": {"$sum": "$total", "window": _ALL},
            },
        }
    },
    {"$match": {"place": {"$lte": MAX_TYPES}}},
    {"$sort": {"place": 1}},
]


class Reading:
    """The verbs of the store that read, but for `position`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def newest(
        self,
        tenant: str,
        user_id: str,
        before: str | None,
        limit: int,
        type_: str | None,
        seen: bool | None,
    ) -> list[Document]:
        """As `Store.newest`."""
        position = None
        if before is not None:
            position = await self._position(tenant, user_id, before)
            if position is None:
                return []
        where, index = _only(type_, seen)
        found = await self.select(
            tenant, user_id, where, index=index, order=NEWEST_FIRST, past=position, limit=limit
        )
        return await read_documents(found, is_for_a_frame=True)

    async def page(self, tenant: str, user_id: str, page: int, limit: int) -> list[Document]:
        """As `Store.page`."""
        found = await self.select(tenant, user_id, order=OLDEST_FIRST, skip=page * limit, limit=limit)
        return await read_documents(found)

    async def unseen(self, tenant: str, user_id: str, after: Document | None, limit: int) -> list[Document]:
        """As `Store.unseen`."""
        position = None if after is None else (after.created_at, ObjectId(after.id))
        found = await self.select(
            tenant, user_id, {"seen": False}, index="unseen", order=OLDEST_FIRST, past=position, limit=limit
        )
        return await read_documents(found, is_for_a_frame=True)

    async def changes(self, tenant: str, user_id: str, after: tuple[int, str], limit: int) -> list[Document]:
        """As `Store.changes`."""
        query = {"tenant": tenant, "_userId": user_id, **_changed_after(*after)}
        sort = {"rev": 1, "_id": 1}
        found = self._connection.documents.find(query, WHOLE, sort=sort, limit=limit, hint="changes")
        return await read_documents(await found.to_list(), is_for_a_frame=True)

    async def find(self, tenant: str, user_id: str, ids: Sequence[str]) -> list[Document]:
        """As `Store.find`."""
        return await read_documents(await self.among(tenant, user_id, id_list(ids), {}, WHOLE))

    async def counts(self, tenant: str, user_ids: Collection[str]) -> dict[str, Counts]:
        """As `Store.counts`."""
        if len(user_ids) == 1:
            [user_id] = user_ids
            counts = await self._counts_of_few(tenant, user_id)
            counts = counts or await self._counts_of_few_types(tenant, user_id)
            if counts is not None:
                return {user_id: counts}
        sums = dict.fromkeys(user_ids, (0, 0))
        types: dict[str, dict[str, TypeCounts]] = {user_id: {} for user_id in user_ids}
        match: Raw = {"$match": {"tenant": tenant, "_userId": {"$in": list(sums)}, **NOT_DELETED}}
        async for found in await self._connection.documents.aggregate([match, *_COUNTING], hint="types"):
            user_id, type_ = found["_id"]["user"], found["_id"]["type"]
            sums[user_id] = found["allUnseen"], found["allTotal"]
            types[user_id][type_] = TypeCounts(found["unseen"], found["total"])
        return {user_id: Counts(*sums[user_id], types[user_id]) for user_id in sums}

    async def _counts_of_few(self, tenant: str, user_id: str) -> Counts | None:
        """By one question; None if the user has more than a few documents."""
        groups = {"$group": {"_id": {"type": "$type", "seen": "$seen"}, "count": {"$sum": 1}}}
        pipeline: list[Raw] = [
            {"$match": {"tenant": tenant, "_userId": user_id, **NOT_DELETED}},
            {"$limit": FEW_DOCUMENTS + 1},
            groups,
        ]
        found = await (await self._connection.documents.aggregate(pipeline, hint="types")).to_list()
        if sum(each["count"] for each in found) > FEW_DOCUMENTS:
            return None
        types: dict[str, TypeCounts] = {}
        for each in found:
            _add(types, each["_id"].get("type"), each["count"], seen=each["_id"]["seen"])
        return _counts(types)

    async def _counts_of_few_types(self, tenant: str, user_id: str) -> Counts | None:
        """None if the user has documents of more than a few types. To count the entries of an index between two places
        takes MongoDB a tenth of the time of grouping them, and most users have most documents."""
        of_user: Raw = {"tenant": tenant, "_userId": user_id, **NOT_DELETED}
        distinct: list[Raw] = [{"$match": of_user}, {"$group": {"_id": "$type"}}, {"$limit": FEW_TYPES + 1}]
        found = await (await self._connection.documents.aggregate(distinct, hint="types")).to_list()
        if len(found) > FEW_TYPES:
            return None
        types: dict[str, TypeCounts] = {}
        for each in found:
            of_type: Raw = {**of_user, "type": each["_id"]}
            for seen in (False, True):
                _add(types, each["_id"], await self._count({**of_type, "seen": seen}, "types"), seen=seen)
        return _counts(types)

    async def count_unseen(self, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
        """As `Store.count_unseen`."""
        unseen: Raw = {"tenant": tenant, "seen": False, **NOT_DELETED}
        if len(user_ids) == 1:
            [user_id] = user_ids
            return {user_id: await self._count({**unseen, "_userId": user_id}, "unseen")}
        match = {**unseen, "_userId": {"$in": list(user_ids)}}
        pipeline: list[Raw] = [{"$match": match}, {"$group": {"_id": "$_userId", "count": {"$sum": 1}}}]
        counts = dict.fromkeys(user_ids, 0)
        async for found in await self._connection.documents.aggregate(pipeline, hint="unseen"):
            counts[found["_id"]] = found["count"]
        return counts

    async def welcome(
        self,
        tenant: str,
        user_id: str,
        unseen: int,
        counts: bool,
        changes: int,
        after: tuple[int, str],
    ) -> Welcome:
        """As `Store.welcome`: all questions are on their way at once."""
        asking: dict[str, Awaitable[Any]] = {"known_since": known_since(self._connection, tenant, user_id)}
        if unseen:
            asking["unseen"] = self.unseen(tenant, user_id, None, unseen)
        if counts:
            asking["counts"] = self.counts(tenant, [user_id])
        if changes:
            asking["changes"] = self.changes(tenant, user_id, after, changes)
        # Until all have ended: `close` is to wait for each.
        answers: list[Any] = await asyncio.gather(*asking.values(), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        found = dict(zip(asking, answers, strict=True))
        if counts:
            found["counts"] = found["counts"][user_id]
        return Welcome(**found)

    async def _count(self, which: Raw, index: str) -> int:
        """How many documents there are, by equality of the first fields of an index."""
        # Not `count_documents`, which is an aggregation: that goes through the entries one by one.
        command = {"count": self._connection.documents.name, "query": which, "hint": index}
        database = self._connection.documents.database
        try:
            answer: Raw = await database.command(command)
        except AutoReconnect:  # as pymongo does by itself with what it knows to be a question
            answer = await database.command(command)
        return int(answer["n"])

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        """As `Store.still_unseen`."""
        if not is_id(nid):
            return set()
        unseen = {"_userId": {"$in": list(user_ids)}, "seen": False, **NOT_DELETED}
        query = {"tenant": tenant, "nid": ObjectId(nid), **unseen}
        found = await self._connection.documents.find(query, {"_userId": 1}).to_list()
        return {each["_userId"] for each in found}

    async def _position(self, tenant: str, user_id: str, id_: str) -> Position | None:
        """The place of a document in its user's inbox, None if it is not the user's. It may be deleted."""
        if not is_id(id_):
            return None
        one = {"tenant": tenant, "_userId": user_id, "_id": ObjectId(id_)}
        found = await self._connection.documents.find_one(one, {"createdAt": 1})
        return None if found is None else (found["createdAt"], found["_id"])

    async def select(
        self,
        tenant: str,
        user_id: str,
        where: Raw | None = None,
        *,
        index: str = "inbox",
        order: int,
        limit: int,
        past: Position | None = None,
        skip: int = 0,
        fields: Raw = WHOLE,
    ) -> list[Raw]:
        """Documents of an inbox that are not deleted, in `order`, those past a position only."""
        query: Raw = {"tenant": tenant, "_userId": user_id, **NOT_DELETED, **(where or {})}
        if past is not None:
            query |= beyond(past, order)
        sort = {"createdAt": order, "_id": order}
        # MongoDB would choose by what it learnt with another user, whose inbox may be quite different.
        found = self._connection.documents.find(query, fields, sort=sort, skip=skip, limit=limit, hint=index)
        return await found.to_list()

    async def among(
        self, tenant: str, user_id: str, ids: Sequence[ObjectId], where: Raw, fields: Raw
    ) -> list[Raw]:
        """Of the user's documents with these ids those that match `where`, in this order."""
        if not ids:
            return []
        query = {"tenant": tenant, "_userId": user_id, "_id": {"$in": ids}, **where}
        found = await self._connection.documents.find(query, fields, hint="_id_").to_list()
        by_id = {each["_id"]: each for each in found}
        return [by_id[id_] for id_ in ids if id_ in by_id]


async def read_documents(found: Iterable[Raw], *, is_for_a_frame: bool = False) -> list[Document]:
    """In their order. `is_for_a_frame`: of long ones no more than go into a frame, and one. Others get their turn of
    the loop while long ones are read: each may hold the JSON of very many values."""
    documents: list[Document] = []
    size = turn = 0
    for each in found:
        if turn > TURN_CHARS:
            await asyncio.sleep(0)
            turn = 0
        document = read_document(each)
        documents.append(document)
        length = len(document.notification.content) + len(each.get("data") or "")
        size += length
        turn += length
        # `overflow` decides, as whoever reads on goes by it; but it takes longer.
        if is_for_a_frame and size > MAX_CHARS_PER_FRAME and overflow(documents):
            break
    return documents


def _add(types: dict[str, TypeCounts], value: object, count: int, *, seen: bool) -> None:
    """To the type that stands in documents as `value`."""
    # What is no text in a document of the original is read as an empty one.
    name = value if isinstance(value, str) else ""
    known = types.get(name, TypeCounts(0, 0))
    types[name] = TypeCounts(known.unseen + (0 if seen else count), known.total + count)


def _counts(types: Mapping[str, TypeCounts]) -> Counts:
    """All of a user's, those with the most documents first."""
    ordered = sorted(types.items(), key=lambda item: (-item[1].total, item[0]))
    return Counts(
        sum(each.unseen for each in types.values()),
        sum(each.total for each in types.values()),
        {name: each for name, each in ordered[:MAX_TYPES] if each.total},
    )


def id_list(ids: Sequence[str]) -> list[ObjectId]:
    """Those that have the form of an id, in the order given, once each."""
    return list(dict.fromkeys(ObjectId(id_) for id_ in ids if is_id(id_)))


def _only(type_: str | None, seen: bool | None) -> tuple[Raw, str]:
    """The filter for documents of this type that are seen or not, and the index that has them in their order."""
    if type_ is None:
        return ({}, "inbox") if seen is None else ({"seen": seen}, "inbox" if seen else "unseen")
    # The index has the documents of each value of seen in their order, and MongoDB merges them.
    seen_values = {"$in": [False, True]} if seen is None else seen
    # What the original did not write is read as an empty text.
    return {"type": type_ or {"$in": ["", None]}, "seen": seen_values}, "types"


def _changed_after(rev: int, id_: str) -> Raw:
    """The filter for the documents of a user beyond this place among the changes."""
    if rev < 0 or (rev, id_) == (0, ""):
        return {}
    later = {"_id": {"$gt": ObjectId(id_ if is_id(id_) else bytes(12))}}
    if rev == 0:
        # The original's documents have no rev: the index has them first.
        return {"$or": [{"rev": None, **later}, {"rev": {"$gt": 0}}]}
    rev = min(rev, MAX_REV)
    # The first condition alone gives the bounds of the index scan; an $or over both would need a sort.
    return {"rev": {"$gte": rev}, "$or": [{"rev": {"$gt": rev}}, later]}
