"""Storing a notification as a whole, though MongoDB writes only single documents atomically.

For one user: one document, which carries its own mail duty. For several: first an *intent* (all that is to be
written, with preset ids), then the documents, then the intent is closed: it vanishes, or what is left of it is the
mail duty, which nobody can claim earlier. An intent found open long after its writer must have ended is completed
forward by any node. Whoever closes an intent has completed it, so two never do.

An intent whose documents MongoDB refuses (a validator of the operator's, a limit) would never be completed. It is set
aside: with `failedAt` and `failure` instead of `openedAt`. Giving it an `openedAt` again has it tried again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, PyMongoError

from server.errors import StoreUnavailable, TooLarge
from server.ids import new_id
from server.messages import Document, EmailDuty, Notification, Recipient
from server.store.mongo_batches import Batcher
from server.store.mongo_connection import Connection, DocumentRefused, raise_but_for_duplicates
from server.store.mongo_documents import (
    WHOLE,
    Raw,
    document_fields,
    duty_fields,
    encode,
    notification_fields,
    read_document,
    read_notification,
)
from server.store.mongo_revs import StoredRevs
from server.store.mongo_tenants import removed_among
from server.store.mongo_users import KnownUsers

logger = logging.getLogger(__name__)

CHUNK_DOCUMENTS = 500
"""How many documents of one notification are built and written at a time: the loop is free in between."""

GRACE_TIMEOUTS = 3
"""After this many times the time limit of a verb, the writer of an open intent has surely ended."""

ENOUGH_DOCUMENTS = 10_000
"""One sweep ends with the intent that reaches this."""

_WHOSE = {"_id": 0, "nid": 1, "_userId": 1}
"""What the index `notification` has, so that no document is looked at."""

MAX_UNCERTAIN = 10_000
"""Timed-out documents that are remembered."""


@dataclass(frozen=True, slots=True)
class _Uncertain:
    document: Document
    timed_out_at: float
    """On the monotonic clock."""


class Adding:
    """The verbs `add` and `complete_intents` of the store."""

    def __init__(self, connection: Connection, revs: StoredRevs, users: KnownUsers) -> None:
        self._connection = connection
        self._revs = revs
        self._users = users
        self._batcher = Batcher(connection, users)
        self._grace_s = GRACE_TIMEOUTS * connection.timeout_s
        self._uncertain: deque[_Uncertain] = deque(maxlen=MAX_UNCERTAIN)

    async def close(self) -> None:
        """Return when nothing is under way any more."""
        await self._batcher.close()

    async def add(
        self, notification: Notification, recipients: Sequence[Recipient], duty: EmailDuty | None
    ) -> list[Document]:
        """As `Store.add`."""
        rev = await self._revs.next()
        tenant = notification.tenant
        documents = [_new_document(notification, new_id(tenant), each.user_id, rev) for each in recipients]
        if len(documents) == 1:
            await self._add_one(documents[0], duty)
            return documents
        await self._register(documents)
        intent = await self._open_intent(documents, duty)
        try:
            return (await self._write_documents(intent, documents))[0]
        except DocumentRefused as exc:
            await self._withdraw(intent, documents, exc)
            raise

    async def complete(self) -> list[Document]:
        """As `Store.complete_intents`. A document whose insert timed out and came through, alone or for a broadcast, is
        completed, too: nobody has told its user of it yet."""
        with self._connection.operation():
            completed = await self._find_landed()
        while len(completed) < ENOUGH_DOCUMENTS:
            try:
                with self._connection.operation():
                    documents = await self._complete_next()
            except (StoreUnavailable, PyMongoError):
                if not completed:
                    raise
                break  # The users of those that are completed must hear of them.
            if documents is None:
                break
            completed += documents
        return completed

    async def _complete_next(self) -> list[Document] | None:
        """What was completed of the oldest abandoned intent; None if there is none."""
        intent = await self._find_abandoned()
        if intent is None:
            return None
        if await removed_among(self._connection, [intent["tenant"]]):
            await self._connection.intents.delete_one(_still_open(intent))
            return []
        notification = read_notification(intent)
        rev = await self._revs.next()
        documents = [
            _new_document(notification, str(each["_id"]), each["_userId"], rev)
            for each in intent["recipients"]
        ]
        await self._register(documents)
        try:
            written, is_ours = await self._write_documents(intent, documents)
        except DocumentRefused as exc:
            await self._set_aside(intent, exc)
            return []
        return [document for document in written if is_ours and not document.deleted]

    async def _register(self, documents: Sequence[Document]) -> None:
        """Their users are known before they have them."""
        await self._users.register({_user(document): document.created_at for document in documents})

    # -- one user --------------------------------------------------------------------------------------------

    async def _add_one(self, document: Document, duty: EmailDuty | None) -> None:
        fields = document_fields(document, notification_fields(document.notification))
        if duty is not None:
            fields["mail"] = duty_fields(duty)
        try:
            await self._batcher.insert(encode(fields), _user(document), document.created_at)
        except StoreUnavailable:
            self._doubt([document])
            raise

    def _doubt(self, documents: Sequence[Document]) -> None:
        timed_out_at = time.monotonic()
        self._uncertain.extend(_Uncertain(document, timed_out_at) for document in documents)

    async def _find_landed(self) -> list[Document]:
        latest = time.monotonic() - self._grace_s
        settled = [each.document for each in self._uncertain if each.timed_out_at < latest]
        if not settled:
            return []
        landed = await self._read_stored(settled)
        for _ in settled:
            self._uncertain.popleft()
        # Who has changed it since knows of it; and what has another rev was stored by another call.
        revs = {document.id: document.rev for document in settled}
        return [document for document in landed if document.rev == revs[document.id]]

    # -- everybody -------------------------------------------------------------------------------------------

    async def expand(self, notification: Notification, user_ids: Sequence[str]) -> list[Document]:
        """As `Broadcasts.expand`. The id of a document follows from its notification and user, so that MongoDB refuses
        a second one, whoever stores it."""
        return await self._store_lacking([notification], user_ids)

    async def give(self, user_id: str, notifications: Sequence[Notification]) -> list[Document]:
        """As `Broadcasts.give`."""
        try:
            return await self._store_lacking(notifications, [user_id])
        except (DocumentRefused, TooLarge):
            return []

    async def _store_lacking(
        self, notifications: Sequence[Notification], user_ids: Sequence[str]
    ) -> list[Document]:
        """A document of each notification (all of one tenant) for each user who has none; the new ones."""
        if not notifications:
            return []
        nids = [ObjectId(each.nid) for each in notifications]
        having = await self.having(notifications[0].tenant, nids, user_ids)
        lacking = [
            (each, user)
            for each, nid in zip(notifications, nids, strict=True)
            for user in user_ids
            if (nid, user) not in having
        ]
        if not lacking:
            return []
        rev = await self._revs.next()
        documents = [_new_document(each, _id_for(each, user), user, rev) for each, user in lacking]
        await self._register(documents)
        common = {each.nid: notification_fields(each) for each in notifications}
        new: list[Document] = []
        try:
            for chunk in _chunks(documents):
                fields = (document_fields(each, common[each.notification.nid]) for each in chunk)
                there = await self._insert_missing([encode(each) for each in fields])
                new += [document for place, document in enumerate(chunk) if place not in there]
        except BaseException:
            self._doubt(documents)  # the caller does not hear of those that are stored
            raise
        return new

    async def having(
        self, tenant: str, nids: Sequence[ObjectId], user_ids: Sequence[str]
    ) -> set[tuple[ObjectId, str]]:
        """Who of the users has a document of which of the notifications."""
        query = {"tenant": tenant, "nid": {"$in": list(nids)}, "_userId": {"$in": list(user_ids)}}
        found = self._connection.documents.find(query, _WHOSE, hint="notification")
        return {(each["nid"], each["_userId"]) async for each in found}

    # -- several users ---------------------------------------------------------------------------------------

    async def _open_intent(self, documents: Sequence[Document], duty: EmailDuty | None) -> Raw:
        """Store the intent; from then on the notification is sure to be completed."""
        fields = notification_fields(documents[0].notification)
        fields["recipients"] = [{"_id": ObjectId(each.id), "_userId": each.user_id} for each in documents]
        if duty is not None:
            fields["mail"] = duty_fields(duty)
            fields["mailDue"] = fields["mail"].pop("due")
        id_ = ObjectId()
        # An upsert, since only an update can write the store's time.
        await self._connection.intents.update_one(
            {"_id": id_}, {"$setOnInsert": encode(fields), "$currentDate": {"openedAt": True}}, upsert=True
        )
        return {"_id": id_, **fields}

    async def _find_abandoned(self) -> Raw | None:
        latest = {"$subtract": ["$$NOW", round(self._grace_s * 1000)]}
        return await self._connection.intents.find_one(
            {"openedAt": {"$exists": True}, "$expr": {"$lte": ["$openedAt", latest]}}, sort={"openedAt": 1}
        )

    async def _write_documents(
        self, intent: Raw, documents: Sequence[Document]
    ) -> tuple[list[Document], bool]:
        """Write those of an intent's documents that are not there, and close it. The documents as they are stored then,
        and whether it was this call that closed the intent."""
        common = notification_fields(documents[0].notification)
        others_wrote = False
        for chunk in _chunks(documents):
            there = await self._insert_missing([encode(document_fields(each, common)) for each in chunk])
            others_wrote |= bool(there)
        is_ours = await self._close_intent(intent)
        return (await self._read_stored(documents) if others_wrote else list(documents)), is_ours

    async def _insert_missing(self, documents: Sequence[RawBSONDocument]) -> set[int]:
        """Insert these documents; the places of those that were there already, which stay as they are."""
        try:
            await self._connection.documents.insert_many(documents, ordered=False)
        except BulkWriteError as exc:
            raise_but_for_duplicates(exc)
            return {error["index"] for error in exc.details["writeErrors"]}
        return set()

    async def _close_intent(self, intent: Raw) -> bool:
        """False if somebody else has closed it before."""
        is_open = _still_open(intent)
        if "mail" not in intent:
            return (await self._connection.intents.delete_one(is_open)).deleted_count == 1
        closed = await self._connection.intents.update_one(
            is_open,
            {
                "$set": {"mail.due": intent["mailDue"]},
                "$unset": dict.fromkeys(("openedAt", "recipients", "mailDue", "failedAt", "failure"), ""),
            },
        )
        return closed.modified_count == 1

    async def _withdraw(self, intent: Raw, documents: Sequence[Document], refusal: DocumentRefused) -> None:
        """Remove an intent whose caller is told of the error, unless some of its documents are there."""
        ids = [ObjectId(document.id) for document in documents]
        if await self._connection.documents.find_one({"_id": {"$in": ids}}, {"_id": 1}) is None:
            await self._connection.intents.delete_one(_still_open(intent))
        else:
            await self._set_aside(intent, refusal)

    async def _set_aside(self, intent: Raw, refusal: DocumentRefused) -> None:
        """Keep an intent for the operator, out of the way of the others."""
        kept = await self._connection.intents.update_one(
            _still_open(intent),
            {
                "$set": {"failure": str(refusal)},
                "$currentDate": {"failedAt": True},
                "$unset": {"openedAt": ""},
            },
        )
        if kept.modified_count:
            logger.error("notification %s is not stored for all its users: %s", intent["nid"], refusal)

    async def _read_stored(self, documents: Sequence[Document]) -> list[Document]:
        """These documents as they are now, without those that are not there."""
        place = {ObjectId(document.id): index for index, document in enumerate(documents)}
        stored = await self._connection.documents.find({"_id": {"$in": list(place)}}, WHOLE).to_list()
        return [read_document(found) for found in sorted(stored, key=lambda found: place[found["_id"]])]


def _user(document: Document) -> tuple[str, str]:
    return document.notification.tenant, document.user_id


def _still_open(intent: Raw) -> Raw:
    return {"_id": intent["_id"], "openedAt": {"$exists": True}}


def _new_document(notification: Notification, id_: str, user_id: str, rev: int) -> Document:
    return Document(id_, user_id, notification, notification.created_at, notification.created_at, rev)


def _chunks(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    for start in range(0, len(documents), CHUNK_DOCUMENTS):
        yield documents[start : start + CHUNK_DOCUMENTS]


def _id_for(notification: Notification, user_id: str) -> str:
    """The id of the user's document of a broadcast: the seconds of an ObjectId, then 8 bytes that follow from both. Of
    a million documents of the same second two are alike with a probability of 1 to 37 million."""
    seconds = int(notification.created_at.timestamp())
    return f"{seconds:08x}{hashlib.sha256(f'{notification.nid}{user_id}'.encode()).hexdigest()[:16]}"
