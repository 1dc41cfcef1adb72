"""Storing a notification as a whole, though MongoDB writes only single documents atomically.

For one user: one document, which carries its own mail duty. For several: first an *intent* (all that is to be
written, with preset ids), then the documents, then the intent is closed: it vanishes, or what is left of it is the
mail duty, which nobody can claim earlier. An intent found open long after its writer must have ended is completed
forward by any node. Whoever closes an intent has completed it, so two never do.

An intent whose documents MongoDB refuses (a validator of the operator's, a limit) would never be completed. It is set
aside: with `failedAt` and `failure` instead of `openedAt`. Giving it an `openedAt` again has it tried again.

What is to have its effect once, however often it comes, goes another way: see `mongo_once`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, PyMongoError

from server.errors import StoreUnavailable, TooLarge
from server.flights import Turns
from server.ids import new_id, new_ids
from server.messages import Document, EmailDuty, Notification, Recipient
from server.store import Once, Stored
from server.store.mongo_batches import Batcher, chunks
from server.store.mongo_connection import Connection, DocumentRefused, raise_but_for_duplicates
from server.store.mongo_documents import (
    Raw,
    document_fields,
    duty_fields,
    encode,
    notification_fields,
    read_notification,
)
from server.store.mongo_doubts import Doubts, read_stored
from server.store.mongo_once import OnceRecords, Whole, id_for, intent_fields, new_document, user_of
from server.store.mongo_revs import StoredRevs
from server.store.mongo_tenants import removed_among
from server.store.mongo_users import KnownUsers

logger = logging.getLogger(__name__)

CHUNK_DOCUMENTS = 500
"""How many documents of one notification are built and written at a time, fewer of long ones: the loop is free in
between."""

GRACE_TIMEOUTS = 3
"""After this many times the time limit of a verb, the writer of an open intent has surely ended."""

ENOUGH_DOCUMENTS = 10_000
"""One sweep ends with the intent that reaches this."""

_WHOSE = {"_id": 0, "nid": 1, "_userId": 1}
"""What the index `notification` has, so that no document is looked at."""


class Adding:
    """The verbs `add` and `complete_intents` of the store. `records`: of idempotency keys."""

    def __init__(self, connection: Connection, revs: StoredRevs, users: KnownUsers) -> None:
        self._connection = connection
        self._revs = revs
        self._users = users
        self._batcher = Batcher(connection, users)
        self._grace_s = GRACE_TIMEOUTS * connection.timeout_s
        self.records = OnceRecords(connection)
        self._turns: Turns[tuple[str, str]] = Turns(connection.timeout_s)
        self._doubts = Doubts(connection, self._grace_s)

    async def close(self) -> None:
        """Return when nothing is under way any more."""
        await self.records.close()
        await self._batcher.close()

    async def add(
        self,
        notification: Notification,
        recipients: Sequence[Recipient],
        duty: EmailDuty | None,
        once: Once | None,
    ) -> Stored:
        """As `Store.add`, for several users or with a key."""
        user_ids = [recipient.user_id for recipient in recipients]
        if once is None:
            added = await self._add(notification, user_ids, duty)
            return Stored(notification, added, added)
        # Other nodes need not wait: what all do comes to the same.
        async with self._turns.take((notification.tenant, once.key)):
            return await self._add_once(notification, user_ids, duty, once)

    async def _add(
        self, notification: Notification, user_ids: Sequence[str], duty: EmailDuty | None
    ) -> list[Document]:
        rev = await self._revs.next()
        ids = new_ids(len(user_ids), notification.tenant)
        documents = [new_document(notification, *each, rev) for each in zip(ids, user_ids, strict=True)]
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
            completed = await self._doubts.landed()
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
        try:
            if intent.get("isOnce"):
                return await self._complete_once(intent)
            return await self._complete_intent(intent)
        except DocumentRefused as exc:
            await self._set_aside(intent, exc)
            return []

    async def _complete_intent(self, intent: Raw) -> list[Document]:
        notification = read_notification(intent)
        rev = await self._revs.next()
        documents = [
            new_document(notification, str(each["_id"]), each["_userId"], rev)
            for each in intent["recipients"]
        ]
        await self._register(documents)
        written, is_ours = await self._write_documents(intent, documents)
        return [document for document in written if is_ours and not document.deleted]

    async def _register(self, documents: Sequence[Document]) -> None:
        """Their users are known before they have them."""
        await self._users.register({user_of(document): document.created_at for document in documents})

    # -- one user --------------------------------------------------------------------------------------------

    async def add_one(self, notification: Notification, user_id: str, duty: EmailDuty | None) -> Stored:
        """As `Store.add`, for one user without a key. Not within an operation: the batch it goes with is one."""
        self._connection.begin()
        try:
            rev = self._revs.at_hand()
            if rev is None:
                with self._connection.bounded():
                    rev = await self._revs.next()
            document = new_document(notification, new_id(notification.tenant), user_id, rev)
            fields = document_fields(document, notification_fields(notification))
            if duty is not None:
                fields["mail"] = duty_fields(duty, notification.created_at, self._revs.ahead_s)
            try:
                await self._batcher.insert(encode(fields), user_of(document), document.created_at)
            except (StoreUnavailable, asyncio.CancelledError):
                # Cancelled, too, it may be made: a broker's message is given up and comes again, here or elsewhere.
                self._doubts.note([document])
                raise
        finally:
            self._connection.end()
        return Stored(notification, [document], [document])

    # -- once: see `mongo_once` ------------------------------------------------------------------------------

    async def _add_once(
        self, notification: Notification, user_ids: Sequence[str], duty: EmailDuty | None, once: Once
    ) -> Stored:
        rev = await self._revs.next()
        mail = duty_fields(duty, notification.created_at, self._revs.ahead_s)
        # First, so that what is too large for MongoDB claims no key.
        whole = Whole.of(notification, user_ids, mail, rev)
        claimed = await self.records.claim(notification, once)
        if not claimed.is_new:
            whole = Whole.of(claimed.notification, user_ids, mail, rev)
            if await self._is_complete(whole):
                stored = await read_stored(self._connection, whole.documents)
                return Stored(claimed.notification, stored, [], is_repeat=True)
        if whole.intent is not None:
            await self._register(whole.documents)
            await self._note_intent(whole.nid, whole.intent)
        try:
            stored, is_ours = await self._write_whole(whole)
        except DocumentRefused as exc:
            await self._withdraw({"_id": whole.nid, "nid": whole.nid}, whole.documents, exc)
            raise
        new = [document for document in stored if not document.deleted] if is_ours else []
        return Stored(claimed.notification, stored, new, is_repeat=not is_ours)

    async def _complete_once(self, intent: Raw) -> list[Document]:
        mail = {**intent["mail"], "due": intent["mailDue"]} if "mail" in intent else None
        user_ids = [each["_userId"] for each in intent["recipients"]]
        whole = Whole.of(read_notification(intent), user_ids, mail, await self._revs.next())
        await self._register(whole.documents)
        stored, is_ours = await self._write_whole(whole)
        return [document for document in stored if is_ours and not document.deleted]

    async def _is_complete(self, whole: Whole) -> bool:
        last = whole.last
        query = {"_id": ObjectId(last.id), "tenant": last.notification.tenant, "_userId": last.user_id}
        return await self._connection.documents.find_one(query, {"_id": 1}) is not None

    async def _write_whole(self, whole: Whole) -> tuple[list[Document], bool]:
        """Write what is not there. The documents as they are stored then, and whether it was this call that wrote the
        last one."""
        others_wrote = False
        for chunk in chunks([each for each in whole.documents if each is not whole.last], CHUNK_DOCUMENTS):
            there = await self._insert_missing(
                [encode(document_fields(each, whole.common)) for each in chunk]
            )
            others_wrote |= bool(there)
        is_ours = await self._insert_last(whole)
        try:
            if whole.intent is not None:
                await self._connection.intents.delete_one({"_id": whole.nid})
            if is_ours and not others_wrote:
                return list(whole.documents), True
            return await read_stored(self._connection, whole.documents), is_ours
        except BaseException:
            if is_ours:
                self._doubt_last(whole)  # who repeats it finds it complete, and tells nobody
            raise

    async def _insert_last(self, whole: Whole) -> bool:
        """False if it was there."""
        last = whole.last
        try:
            await self._batcher.insert(whole.encoded_last, user_of(last), last.created_at)
        except DocumentRefused as exc:
            if exc.is_there:
                return False
            raise
        except (StoreUnavailable, asyncio.CancelledError):
            self._doubt_last(whole)
            raise
        return True

    def _doubt_last(self, whole: Whole) -> None:
        self._doubts.note([whole.last], [each for each in whole.documents if each is not whole.last])

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
        documents = [new_document(each, id_for(each, user), user, rev) for each, user in lacking]
        await self._register(documents)
        common = {each.nid: notification_fields(each) for each in notifications}
        new: list[Document] = []
        try:
            for chunk in chunks(documents, CHUNK_DOCUMENTS):
                fields = (document_fields(each, common[each.notification.nid]) for each in chunk)
                there = await self._insert_missing([encode(each) for each in fields])
                new += [document for place, document in enumerate(chunk) if place not in there]
        except BaseException:
            self._doubts.note(documents)  # the caller does not hear of those that are stored
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
        fields = intent_fields(documents, duty_fields(duty, documents[0].created_at, self._revs.ahead_s))
        id_ = ObjectId()
        await self._note_intent(id_, encode(fields))
        return {"_id": id_, **fields}

    async def _note_intent(self, id_: ObjectId, fields: RawBSONDocument) -> None:
        # An upsert, since only an update can write the store's time.
        await self._connection.intents.update_one(
            {"_id": id_}, {"$setOnInsert": fields, "$currentDate": {"openedAt": True}}, upsert=True
        )

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
        for chunk in chunks(documents, CHUNK_DOCUMENTS):
            there = await self._insert_missing([encode(document_fields(each, common)) for each in chunk])
            others_wrote |= bool(there)
        try:
            is_ours = await self._close_intent(intent)
        except BaseException:
            self._doubts.note(documents, intent=intent["_id"])  # if it is closed, no sweep finds it
            raise
        return (await read_stored(self._connection, documents) if others_wrote else list(documents)), is_ours

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


def _still_open(intent: Raw) -> Raw:
    return {"_id": intent["_id"], "openedAt": {"$exists": True}}
