"""What can be wrong in a database of the store: how it is found, and mended. See `mongo_fsck`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from pymongo.errors import BulkWriteError

from server import messages
from server.grants import DEFAULT_TENANT
from server.revs import COUNTER_BITS
from server.store.fsck import HORIZON_REMEDY, TENANTS_REMEDY
from server.store.mongo_changing import Changing
from server.store.mongo_connection import Connection, raise_but_for_duplicates
from server.store.mongo_documents import ACCESS, Raw
from server.store.mongo_fsck_values import Kind, unreadable_values
from server.store.mongo_reading import Reading
from server.store.mongo_revs import StoredRevs

_HOUR_MS = 3_600_000

_AN_HOUR_AGO: Raw = {"$subtract": ["$$NOW", _HOUR_MS]}
"""What was written later may be about to be completed."""

_LONGEST_LEASE: Raw = {"$add": ["$$NOW", 48 * _HOUR_MS]}
"""Twice what the configuration takes."""

_SOON: Raw = {"$add": ["$$NOW", 60_000]}

_HAS_MAIL: Raw = {"mail.subject": {"$exists": True}}


class Kinds:
    """All of them, over this connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> list[Kind]:
        """In the order in which they are mended."""
        return [
            *unreadable_values(self._connection),
            *self._of_documents(),
            *self._of_mail(),
            *self._of_the_rest(),
        ]

    # -- documents -------------------------------------------------------------------------------------------
    def _of_documents(self) -> list[Kind]:
        user: Raw = {"tenant": "$tenant", "userId": "$_userId"}
        ceiling: Raw = {
            "from": self._connection.meta.name,
            "pipeline": [{"$match": {"_id": "rev"}}],
            "as": "clock",
        }
        return [
            Kind(
                "documents-without-user",
                "users who have documents and are not known: no broadcast reaches them",
                "they are known since their first document",
                "documents",
                [
                    {"$match": {"tenant": {"$type": "string"}, "_userId": {"$type": "string"}}},
                    {"$group": {"_id": user, "firstSeenAt": {"$min": "$createdAt"}}},
                    {
                        "$lookup": {
                            "from": self._connection.users.name,
                            "localField": "_id",
                            "foreignField": "_id",
                            "as": "known",
                        }
                    },
                    {"$match": {"known": []}},
                    {"$unset": "known"},
                ],
                self._register,
            ),
            Kind(
                "documents-twice",
                "documents of which their users have another one of the same notification",
                "the later ones are deleted, as if by their users",
                "documents",
                [
                    {"$match": {"delete": False, "tenant": {"$type": "string"}}},
                    {"$sort": {"_id": 1}},
                    {"$group": {"_id": {**user, "nid": "$nid"}, "ids": {"$push": "$_id"}}},
                    {"$match": {"ids.1": {"$exists": True}}},
                    {"$set": {"example": {"$last": "$ids"}}},
                ],
                self._delete_later,
            ),
            Kind(
                "tombstones-in-part",
                "documents that are deleted without a time, or have one and are not",
                "they are deleted since their last change, or have no such time",
                "documents",
                [
                    {"$match": {"tenant": {"$type": "string"}, "legacy": {"$exists": False}}},
                    {"$match": {"$expr": {"$ne": ["$delete", {"$gt": ["$deletedAt", None]}]}}},
                    {"$project": {"_id": 1}},
                ],
                self._update(
                    "documents",
                    {"deletedAt": {"$cond": ["$delete", {"$ifNull": ["$updatedAt", "$$NOW"]}, None]}},
                ),
            ),
            Kind(
                "revs-beyond-clock",
                "documents with a rev that is not given out yet, and will be given out again",
                "the clock is set forward; restart the servers",
                "documents",
                [
                    {"$group": {"_id": None, "rev": {"$max": "$rev"}}},
                    {"$lookup": ceiling},
                    {"$match": {"$expr": {"$gt": ["$rev", {"$ifNull": [{"$first": "$clock.ceiling"}, 0]}]}}},
                    {"$set": {"example": "$rev"}},
                ],
                self._set_clock,
            ),
        ]

    async def _register(self, found: Sequence[Raw]) -> None:
        users = [{"_id": each["_id"], "firstSeenAt": each["firstSeenAt"]} for each in found]
        try:
            await self._connection.users.insert_many(users, ordered=False)
        except BulkWriteError as exc:
            raise_but_for_duplicates(exc)

    async def _delete_later(self, found: Sequence[Raw]) -> None:
        revs = StoredRevs()
        await revs.open(self._connection.meta)
        changing = Changing(self._connection, Reading(self._connection), revs, messages.now)
        for each in found:
            later = [str(id_) for id_ in each["ids"][1:]]
            await changing.delete(each["_id"]["tenant"], each["_id"]["userId"], later)

    async def _set_clock(self, found: Sequence[Raw]) -> None:
        [highest] = found
        await self._connection.meta.update_one(
            {"_id": "rev"}, {"$max": {"ceiling": highest["rev"]}}, upsert=True
        )

    # -- mail and intents ------------------------------------------------------------------------------------
    def _of_mail(self) -> list[Kind]:
        of_places: list[Kind] = []
        for place in ("documents", "intents"):
            of_places += [self._wrong_times(place), self._wrong_lease(place)]
        return [*of_places, *self._of_intents()]

    def _wrong_times(self, place: str) -> Kind:
        recipients: Raw = {"$ifNull": ["$mail.recipients", []]}
        count: Raw = {"$size": recipients}
        earliest: Raw = {"$min": "$mail.recipients.due"}
        return Kind(
            f"mail-at-wrong-times-{place}",
            "mails that are due at another time than their recipients, or never, or count others",
            "they get the times of their recipients",
            place,
            [
                {"$match": {**_HAS_MAIL, "mail.recipients.0": {"$exists": True}}},
                {"$match": {"openedAt": None, "failedAt": None}},
                {
                    "$match": {
                        "$expr": {"$or": [{"$ne": ["$mail.due", earliest]}, {"$ne": ["$mail.owed", count]}]}
                    }
                },
                *self._of_active_tenants(),
                {"$project": {"_id": 1}},
            ],
            self._update(
                place,
                {
                    "mail.due": earliest,
                    "mail.owed": count,
                    "mail.version": {"$add": [{"$ifNull": ["$mail.version", 0]}, 1]},
                },
            ),
        )

    def _of_active_tenants(self) -> list[Raw]:
        """Those of removed tenants are held back."""
        tenants = {
            "from": self._connection.tenants.name,
            "localField": "tenant",
            "foreignField": "_id",
            "as": "of",
        }
        return [{"$lookup": tenants}, {"$match": {"of.removedAt": {"$not": {"$gt": None, "$exists": True}}}}]

    def _wrong_lease(self, place: str) -> Kind:
        # What is missing is less than anything.
        has_lease, has_end = {"$gt": ["$mail.lease", None]}, {"$gt": ["$mail.leasedUntil", None]}
        endless = {"$gt": ["$mail.leasedUntil", _LONGEST_LEASE]}
        lease = ("lease", "leasedUntil", "claimedAt", "claimed")
        return Kind(
            f"leases-of-mail-{place}",
            "leases of mail without a holder or an end, or that do not end for days: nobody else would send it",
            "they end",
            place,
            [
                {"$match": _HAS_MAIL},
                {"$match": {"$expr": {"$or": [{"$ne": [has_lease, has_end]}, endless]}}},
                {"$project": {"_id": 1}},
            ],
            self._update(place, {f"mail.{name}": "$$REMOVE" for name in lease}),
        )

    def _of_intents(self) -> list[Kind]:
        documents: Raw = _lookup(self._connection.documents.name)
        return [
            Kind(
                "intents-set-aside",
                "notifications that MongoDB has refused to store for all of their users",
                "a server tries it again",
                "intents",
                [{"$match": {"failedAt": {"$exists": True}}}, {"$project": {"example": "$nid"}}],
                self._update("intents", {"openedAt": "$$NOW", "failedAt": "$$REMOVE", "failure": "$$REMOVE"}),
            ),
            Kind(
                "intents-of-nobody",
                "notifications with mail, or a note of work, that nobody has",
                "they are removed",
                "intents",
                [
                    {"$match": {"openedAt": None, "failedAt": None}},
                    {"$match": {"$expr": {"$lt": ["$createdAt", _AN_HOUR_AGO]}}},
                    {"$lookup": documents},
                    {"$match": {"$or": [{"found": []}, {"mail": None}]}},
                    {"$project": {"example": "$nid"}},
                ],
                self._remove("intents"),
            ),
        ]

    # -- the rest --------------------------------------------------------------------------------------------
    def _of_the_rest(self) -> list[Kind]:
        endless: Raw = {"$expr": {"$gt": ["$until", _LONGEST_LEASE]}}
        is_broken = {"$ne": [{"$gt": ["$lease", None]}, {"$gt": ["$leasedUntil", None]}]}
        return [
            Kind(
                "leases-endless",
                "leases that do not end for days: what their holders did, nobody would do",
                "they end",
                "leases",
                [{"$match": endless}, {"$project": {"_id": 1}}],
                self._remove("leases"),
            ),
            Kind(
                "leases-of-broadcasts",
                "broadcasts that nobody can go on with, as their lease has no end or does not end for days",
                "the leases end",
                "broadcasts",
                [
                    {"$match": {"$expr": {"$or": [is_broken, {"$gt": ["$leasedUntil", _LONGEST_LEASE]}]}}},
                    {"$project": {"_id": 1}},
                ],
                self._update("broadcasts", {"lease": "$$REMOVE", "leasedUntil": "$$REMOVE"}),
            ),
            self._keys_without_effect(),
            *self._tenants_unknown(),
            Kind(
                "horizon-ahead",
                "tenants whose inboxes begin in the future: their clients drop everything, or read anew each time",
                HORIZON_REMEDY,
                "tenants",
                [{"$match": {"$expr": {"$or": _horizon_ahead()}}}, {"$project": {"_id": 1}}],
                self._update("tenants", _horizon_now()),
            ),
        ]

    def _keys_without_effect(self) -> Kind:
        stages: list[Raw] = []
        for place in ("documents", "intents", "broadcasts"):
            lookup = _lookup(getattr(self._connection, place).name, tenant="$_id.tenant")
            stages += [{"$lookup": lookup}, {"$match": {"found": []}}]
        return Kind(
            "keys-without-effect",
            "idempotency keys of requests whose notification is not there",
            "they are forgotten: the same request is carried out when it comes again",
            "once",
            [
                {"$match": {"doneBy": None, "$expr": {"$lt": ["$createdAt", _AN_HOUR_AGO]}}},
                {"$match": {"$expr": {"$gt": ["$expiresAt", "$$NOW"]}}},
                *stages,
                {"$project": {"example": "$_id.key"}},
            ],
            self._remove("once"),
        )

    def _tenants_unknown(self) -> list[Kind]:
        known: Raw = {
            "from": self._connection.tenants.name,
            "localField": "_id",
            "foreignField": "_id",
            "as": "known",
        }
        unknown: list[Raw] = [
            {"$match": {"_id": {"$type": "string"}}},
            {"$lookup": known},
            {"$match": {"known": []}},
        ]
        return [
            Kind(
                f"tenants-unknown-{place}",
                "tenants that are not there, but have something",
                TENANTS_REMEDY,
                place,
                [{"$group": {"_id": name}}, *unknown],
                self._add_removed,
            )
            for place, name in (("documents", "$tenant"), ("users", "$_id.tenant"), ("intents", "$tenant"))
        ]

    async def _add_removed(self, found: Sequence[Raw]) -> None:
        at = messages.now()
        tenants = [
            {"_id": name, "createdAt": at, "removedAt": None if name == DEFAULT_TENANT else at, "keys": []}
            for name in (each["_id"] for each in found)
        ]
        await self._connection.tenants.insert_many(tenants)
        await self._connection.meta.update_one(ACCESS, {"$inc": {"sequence": 1}})

    # -- ways of mending -------------------------------------------------------------------------------------
    def _update(self, place: str, fields: Raw) -> Callable[[Sequence[Raw]], Awaitable[None]]:
        async def mend(found: Sequence[Raw]) -> None:
            ids = [each["_id"] for each in found]
            # It may have become right meanwhile: the fields are worked out anew.
            await getattr(self._connection, place).update_many({"_id": {"$in": ids}}, [{"$set": fields}])

        return mend

    def _remove(self, place: str) -> Callable[[Sequence[Raw]], Awaitable[None]]:
        async def mend(found: Sequence[Raw]) -> None:
            ids = [each["_id"] for each in found]
            await getattr(self._connection, place).delete_many({"_id": {"$in": ids}})

        return mend


def _lookup(collection: str, tenant: str = "$tenant") -> Raw:
    """What looks, as the field `found`, for something of the same notification."""
    same: Raw = {"$expr": {"$and": [{"$eq": ["$tenant", "$$tenant"]}, {"$eq": ["$nid", "$$nid"]}]}}
    stages: list[Raw] = [{"$match": same}, {"$limit": 1}, {"$project": {"_id": 1}}]
    return {
        "from": collection,
        "let": {"tenant": tenant, "nid": "$nid"},
        "pipeline": stages,
        "as": "found",
    }


def _rev_of(instant: Raw | str) -> Raw:
    return {"$multiply": [{"$toLong": instant}, 1 << COUNTER_BITS]}


def _horizon_ahead() -> list[Raw]:
    return [
        {"$gt": ["$horizon.floor", _SOON]},
        {"$gt": ["$horizon.oldestRev", _rev_of(_SOON)]},
    ]


def _horizon_now() -> Raw:
    is_ahead: Raw = {"$gt": ["$horizon.floor", "$$NOW"]}
    return {
        "horizon.floor": {"$cond": [is_ahead, "$$REMOVE", "$horizon.floor"]},
        "horizon.oldestRev": {
            "$min": [{"$cond": [is_ahead, _rev_of("$$NOW"), "$horizon.oldestRev"]}, _rev_of("$$NOW")]
        },
    }
