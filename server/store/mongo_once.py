"""Idempotency keys on MongoDB: how a request has its effect once, whoever carries it out, how often, and until where.

MongoDB writes single documents atomically, so nothing here depends on an order of several. A key has one *record* in
`<collection>_once`, whose `_id` is {tenant, key}. Whoever comes first makes it; everybody who comes with the key after
that, at the same moment or after a crash, goes by it. The record gives the notification its nid, which is thus the
record's own id, and its `createdAt`. From these and the user follows the `_id` of each document, so MongoDB refuses
a second one. A key that comes again when its record has expired gets another record, and so other ids.

What follows may be done by any number of processes at once, each at its own pace, as all do the same:

1. The record: one atomic upsert. A record beyond its time, by MongoDB's clock, is replaced in it.
2. With several users, the intent (see `mongo_adding`), whose `_id` is the nid. It is a note of work to be done and
   no more: one that appears again, since its writer slept while others did it all, is done again to no effect.
3. The documents, but for that of the first user in the order of ids.
4. The document of that user, which carries the mail duty for all. It comes last, and with it the effect is complete.
5. The intent goes.

So a mail is owed once, since one document comes into being once; it cannot be claimed before all documents are there;
and a process that wakes up after everything is done, mailed and settled finds that document there and changes nothing.
Whoever inserts it tells the users of all documents: exactly one does. Nobody waits for a lease of somebody who may have
crashed; a repeat completes what it finds, also on another node.

For this, documents and tombstones must be kept for longer than keys are. A record is a promise to nobody: one without
documents, as a crash between 1 and 2 leaves it, just expires.

A broadcast is its own intent, with the nid as `_id`, which goes when all users have their documents. As there need be
no user, the record tells (`doneBy`) which call's insert it was that went first, from before that goes. Who has inserted
one looks there: if it was another call's, theirs came too late and is taken back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from server.errors import KeyReused, StoreUnavailable
from server.messages import Document, Notification, altered
from server.store import Once
from server.store.mongo_batches import Batches
from server.store.mongo_connection import Connection, raise_but_for_duplicates
from server.store.mongo_documents import Raw, document_fields, encode, notification_fields
from server.store.mongo_users import UserKey

TRIES = 3
"""A record that was in force may be gone when it is looked for, as its time is over."""

_UPSERT_BYTES = 512
"""About what one takes."""

_IS_IN_FORCE = {"$gt": ["$expiresAt", "$$NOW"]}
"""In an expression what is missing is less than any time."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """`notification`: with the nid and the `created_at` of its record. `is_new`: nobody can have begun with it.
    `done_by`: see `done_by`."""

    notification: Notification
    is_new: bool
    done_by: ObjectId | None


class OnceRecords:
    """The records. Called within an operation of the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._upserts = _Upserts(connection)

    async def claim(self, notification: Notification, once: Once) -> Claimed:
        """Make the record of this key, or find it. Raises `KeyReused`."""
        record = await self._make_sure_of(notification, once)
        if bytes(record["fingerprint"]) != once.fingerprint:
            raise KeyReused
        nid = str(record["nid"])
        return Claimed(
            altered(notification, nid=nid, created_at=record["createdAt"]),
            is_new=nid == notification.nid,
            done_by=record.get("doneBy"),
        )

    async def note_done(self, tenant: str, key: str, nid: ObjectId, by: ObjectId) -> None:
        """The broadcast of this record that was inserted `by` this call is about to go."""
        record = {"_id": _id_of(tenant, key), "nid": nid, "doneBy": {"$exists": False}}
        await self._connection.once.update_one(record, {"$set": {"doneBy": by}})

    async def done_by(self, notification: Notification, once: Once) -> ObjectId | None:
        """The first call of which that was noted; None: of none."""
        record = {"_id": _id_of(notification.tenant, once.key), "nid": ObjectId(notification.nid)}
        found = await self._connection.once.find_one(record, {"doneBy": 1})
        return None if found is None else found.get("doneBy")

    async def close(self) -> None:
        """Return when nothing is under way any more."""
        await self._upserts.close()

    async def _make_sure_of(self, notification: Notification, once: Once) -> Raw:
        """The record in force."""
        id_ = _id_of(notification.tenant, once.key)
        new = {
            "_id": id_,
            "nid": ObjectId(notification.nid),
            "fingerprint": once.fingerprint,
            "createdAt": notification.created_at,
        }
        for _ in range(TRIES):
            if await self._upserts.put(_Upsert(new, once.keep_s), _UPSERT_BYTES):
                return new
            record = await self._connection.once.find_one({"_id": id_})
            if record is not None:
                return record
        raise StoreUnavailable


@dataclass(frozen=True, slots=True, eq=False)
class _Upsert:
    new: Raw
    keep_s: float


class _Upserts(Batches[_Upsert, bool]):
    """Records that are made where there is none of their key in force: whether there was none at all. False also where
    MongoDB refused one of two upserts of the same moment."""

    async def _write(self, items: Sequence[_Upsert]) -> Sequence[bool | Exception]:
        try:
            result = await self._connection.once.bulk_write([_upsert(item) for item in items], ordered=False)
            upserted = set(result.upserted_ids or {})
        except BulkWriteError as exc:
            raise_but_for_duplicates(exc)
            upserted = {each["index"] for each in exc.details["upserted"]}
        return [index in upserted for index in range(len(items))]


def _upsert(item: _Upsert) -> UpdateOne:
    expires_at = {"$add": ["$$NOW", round(item.keep_s * 1000)]}
    # What the caller sent is not to be taken for expressions.
    fresh = {"$mergeObjects": [{"$literal": item.new}, {"expiresAt": expires_at}]}
    change = [{"$replaceWith": {"$cond": [_IS_IN_FORCE, "$$ROOT", fresh]}}]
    return UpdateOne({"_id": item.new["_id"]}, change, upsert=True)


def _id_of(tenant: str, key: str) -> Raw:
    return {"tenant": tenant, "key": key}


# -- what is written -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole:
    """All that one request stores. `last`: the document that comes last; encoded, it carries the mail duty. `intent`:
    None where there is no other document."""

    documents: Sequence[Document]
    common: Raw = field(repr=False)
    last: Document
    encoded_last: RawBSONDocument = field(repr=False)
    intent: RawBSONDocument | None = field(repr=False)

    @classmethod
    def of(cls, notification: Notification, user_ids: Sequence[str], mail: Raw | None, rev: int) -> Whole:
        """Whoever makes it of the same notification makes the same, but for `mail` and `rev`. Raises `TooLarge`."""
        documents = [new_document(notification, id_for(notification, user), user, rev) for user in user_ids]
        last = min(documents, key=lambda document: document.user_id)
        common = notification_fields(notification)
        fields = document_fields(last, common)
        intent = None
        if len(documents) > 1:
            intent = encode({**intent_fields(documents, mail), "isOnce": True})
        if mail is not None:
            fields["mail"] = mail
        return cls(documents, common, last, encode(fields), intent)

    @property
    def nid(self) -> ObjectId:
        return ObjectId(self.last.notification.nid)


def intent_fields(documents: Sequence[Document], mail: Raw | None) -> Raw:
    """The fields of an intent to write these documents of a notification. `mail`: its `duty_fields`; they are not due
    there."""
    fields = notification_fields(documents[0].notification)
    fields["recipients"] = [{"_id": ObjectId(each.id), "_userId": each.user_id} for each in documents]
    if mail is not None:
        fields["mail"] = {name: value for name, value in mail.items() if name != "due"}
        fields["mailDue"] = mail["due"]
    return fields


def new_document(notification: Notification, id_: str, user_id: str, rev: int) -> Document:
    return Document(id_, user_id, notification, notification.created_at, notification.created_at, rev)


def user_of(document: Document) -> UserKey:
    return document.notification.tenant, document.user_id


def id_for(notification: Notification, user_id: str) -> str:
    """The id of the user's document, where it follows from both: the seconds of an ObjectId, then 8 bytes. Of a million
    documents of the same second two are alike with a probability of 1 to 37 million."""
    seconds = int(notification.created_at.timestamp())
    return f"{seconds:08x}{hashlib.sha256(f'{notification.nid}{user_id}'.encode()).hexdigest()[:16]}"
