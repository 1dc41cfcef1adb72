"""Values in a database of the store that cannot be read, and whatever they are part of with them: how they are found,
and mended. See `mongo_fsck_kinds`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw
from server.store.mongo_revs import StoredRevs

LATEST_REV = 1 << 62
"""In the year 4199; beyond it there is no number for the next ones."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`pipeline`: over the collection `place`, what is wrong, by `_id`, with an `example` if that says more; `mend`: is
    given what was found."""

    code: str
    sentence: str
    remedy: str
    place: str
    pipeline: Sequence[Raw]
    mend: Callable[[Sequence[Raw]], Awaitable[None]]


def _is(path: str, *types: str) -> Raw:
    return {"$in": [{"$type": path}, types]}


def _else(is_right: Raw, path: str, otherwise: object) -> Raw:
    return {"$cond": [is_right, path, otherwise]}


_NONE = ("null", "missing")
_IS_REV: Raw = {"$and": [_is("$rev", "int", "long"), {"$gte": ["$rev", 0]}, {"$lte": ["$rev", LATEST_REV]}]}

_LIKE_JSON = r"""^([\[{].*[\]}]|".*"|-?[0-9][0-9.eE+-]*|true|false|null)$"""
"""As far as MongoDB can tell: it notices what is cut off, and what is something else."""

_FIELDS: dict[str, tuple[Raw, object]] = {
    "nid": (_is("$nid", "objectId"), "$_id"),
    "createdAt": (
        _is("$createdAt", "date"),
        {"$convert": {"input": "$_id", "to": "date", "onError": "$$NOW"}},
    ),
    "updatedAt": (_is("$updatedAt", "date", *_NONE), None),
    "deletedAt": (_is("$deletedAt", "date", *_NONE), "$$NOW"),
    "delete": (_is("$delete", "bool"), {"$ne": [{"$ifNull": ["$deletedAt", None]}, None]}),
    "seen": (_is("$seen", "bool"), False),
    "data": (
        {
            "$cond": [
                _is("$data", "string"),
                {"$regexMatch": {"input": "$data", "regex": _LIKE_JSON, "options": "s"}},
                _is("$data", *_NONE),
            ]
        },
        None,
    ),
    "rev": ({"$or": [_is("$rev", "missing"), _IS_REV]}, None),
}
"""Of a document: when they are right, and what they are else. A rev is given to all that are mended."""

_MAIL_FIELDS: dict[str, tuple[Raw, object]] = {
    "subject": (_is("$mail.subject", "string"), ""),
    "content": (_is("$mail.content", "string"), ""),
    "subtype": (_is("$mail.subtype", "string"), "plain"),
    "forced": (_is("$mail.forced", "bool"), False),
}


def unreadable_values(connection: Connection) -> list[Kind]:
    """What is mended before all else, which takes readable values for granted."""
    return [_clock(connection), _documents(connection), *(_mail(connection, place) for place in _PLACES)]


_PLACES = ("documents", "intents")


def _clock(connection: Connection) -> Kind:
    is_rev: Raw = {
        "$and": [
            _is("$ceiling", "int", "long"),
            {"$gte": ["$ceiling", 0]},
            {"$lte": ["$ceiling", LATEST_REV]},
        ]
    }

    async def mend(found: Sequence[Raw]) -> None:
        await connection.meta.delete_one({"_id": "rev"})

    return Kind(
        "clock-unreadable",
        "clocks that no rev can follow",
        "it is set by the revs that there are, and the time; restart the servers",
        "meta",
        [{"$match": {"_id": "rev", "$expr": {"$not": is_rev}}}, {"$project": {"_id": 1}}],
        mend,
    )


def _documents(connection: Connection) -> Kind:
    async def mend(found: Sequence[Raw]) -> None:
        revs = StoredRevs()
        await revs.open(connection.meta)
        fields = {name: _else(is_right, f"${name}", other) for name, (is_right, other) in _FIELDS.items()}
        ids = {"_id": {"$in": [each["_id"] for each in found]}}
        await connection.documents.update_many(ids, [{"$set": {**fields, "rev": await revs.next()}}])

    return Kind(
        "documents-unreadable",
        "documents with values that cannot be read: the inboxes that have them cannot be read either",
        "what cannot be read is left out: they are as old as their ids, unseen, deleted if they have a time of that",
        "documents",
        [
            # What is of an earlier version is brought up to this one by a server.
            {"$match": {"tenant": {"$type": "string"}, "_userId": {"$type": "string"}}},
            {"$match": {"$expr": {"$not": {"$and": [is_right for is_right, _ in _FIELDS.values()]}}}},
            {"$project": {"_id": 1}},
        ],
        mend,
    )


def _mail(connection: Connection, place: str) -> Kind:
    """Of what can be claimed: dead letters of earlier versions have no text."""
    has_list = {"$isArray": "$mail.recipients"}
    texts = {
        name: _else(is_right, f"$mail.{name}", other) for name, (is_right, other) in _MAIL_FIELDS.items()
    }

    async def mend(found: Sequence[Raw]) -> None:
        ids = {"_id": {"$in": [each["_id"] for each in found]}}
        mail = {"$cond": [has_list, {"$mergeObjects": ["$mail", texts]}, "$$REMOVE"]}
        await getattr(connection, place).update_many(ids, [{"$set": {"mail": mail}}])

    return Kind(
        f"mail-unreadable-{place}",
        "mails with values that cannot be read: they are claimed again and again, and never sent",
        "texts that cannot be read are empty; without readable recipients they are owed to nobody",
        place,
        [
            {"$match": {"$or": [{"mail.due": {"$exists": True}}, {"mail.leasedUntil": {"$exists": True}}]}},
            {
                "$match": {
                    "$expr": {
                        "$not": {"$and": [has_list, *(is_right for is_right, _ in _MAIL_FIELDS.values())]}
                    }
                }
            },
            {"$project": {"_id": 1}},
        ],
        mend,
    )
