"""The mail that is owed, as the outbox takes and settles it. Duties lie in the subdocument `mail`: of a document if the
notification has one recipient, of its closed intent if it has several.

Beside a claim, operators may change a duty (`mongo_outbox`): who has read one and writes it back does so only if its
`version` is still the same.

A removed tenant is owed none. Its duties are not looked for: when one comes up, all of that tenant's are withdrawn,
which is to say that they are never due again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import itemgetter

from bson import ObjectId
from pymongo import ReturnDocument

from server.ids import is_id
from server.store import MailCounts, MailJob, MailOutcome, PostponedMail
from server.store.mongo_connection import Collection, Connection
from server.store.mongo_documents import Raw, due_by, owed_fields, read_mail, read_recipient
from server.store.mongo_tenants import removed_among

# In `$expr` what is missing is less than any time: without a lease, a duty is free.
_IS_CLAIMABLE = {
    "mail.due": {"$exists": True},
    "$expr": {"$and": [{"$lte": ["$mail.due", "$$NOW"]}, {"$lte": ["$mail.leasedUntil", "$$NOW"]}]},
}

_ID_DIGITS = 24


class MailDuties:
    """The mail verbs of the store, but for `still_unseen`."""

    def __init__(self, connection: Connection, clock: Callable[[], datetime]) -> None:
        self._connection = connection
        self._clock = clock

    @property
    def _places(self) -> tuple[Collection, Collection]:
        return self._connection.documents, self._connection.intents

    async def claim(self, lease_s: float, limit: int, recipients: int) -> list[MailJob]:
        """As `Store.claim_mail`."""
        due = await self._find_due(limit)
        while await self._withdraw_of_removed(found for _, _, found in due):
            due = await self._find_due(limit)
        jobs = [await self._lease(place, found, lease_s, recipients) for _, place, found in due]
        return [job for job in jobs if job is not None]

    async def _find_due(self, limit: int) -> list[tuple[datetime, Collection, Raw]]:
        """The earliest first."""
        due: list[tuple[datetime, Collection, Raw]] = []
        for place in self._places:
            # A claim must name the shard key, where the collection is sharded.
            keys = {"mail.due": 1, "tenant": 1, "_userId": 1}
            found = await place.find(_IS_CLAIMABLE, keys, sort={"mail.due": 1}, limit=limit).to_list()
            due += [(each["mail"]["due"], place, each) for each in found]
        due.sort(key=itemgetter(0))
        return due[:limit]

    async def _withdraw_of_removed(self, found: Iterable[Raw]) -> bool:
        """Whether any of these is of a removed tenant. Then no mail of that tenant is due any more."""
        tenants = {each["tenant"] for each in found}
        removed = await removed_among(self._connection, tenants) if tenants else []
        if removed:
            await self.withdraw(removed)
        return bool(removed)

    async def withdraw(self, tenants: Sequence[str]) -> None:
        """Let no mail of these tenants be due. What is claimed can still be settled."""
        due = {"tenant": {"$in": list(tenants)}, "mail.due": {"$exists": True}}
        for place in self._places:
            await place.update_many(due, {"$unset": {"mail.due": "", "mail.leasedUntil": ""}})

    async def _lease(self, place: Collection, found: Raw, lease_s: float, limit: int) -> MailJob | None:
        """None if another node was quicker."""
        # It begins with the id of the record, so that settling finds it.
        lease = f"{found['_id']}-{secrets.token_hex(16)}"
        taken = await place.find_one_and_update(
            {
                "_id": found["_id"],
                "tenant": found["tenant"],
                "_userId": found.get("_userId"),
                **_IS_CLAIMABLE,
            },
            [
                {
                    "$set": {
                        "mail.leasedUntil": {"$add": ["$$NOW", round(lease_s * 1000)]},
                        "mail.claimedAt": "$$NOW",
                        "mail.claimed": limit,
                        "mail.lease": lease,
                    }
                }
            ],
            projection={"nid": 1, "tenant": 1, "createdAt": 1, "mail": 1},
            return_document=ReturnDocument.AFTER,
        )
        if taken is None:
            return None
        mail = taken["mail"]
        return MailJob(
            nid=str(taken["nid"]),
            tenant=taken["tenant"],
            created_at=taken["createdAt"],
            mail=read_mail(mail),
            recipients=tuple(map(read_recipient, leased_of(mail))),
            lease=lease,
            accepted_s_ago=_since_accepted_s(mail),
        )

    async def settle(self, job: MailJob, outcome: MailOutcome) -> bool:
        """As `Store.settle_mail`."""
        id_ = job.lease[:_ID_DIGITS]
        if not (is_id(id_) and is_id(job.nid)):
            return False
        notification = {"tenant": job.tenant, "nid": ObjectId(job.nid)}
        leased = {"_id": ObjectId(id_), **notification, "mail.lease": job.lease}
        for place in self._places:
            # An operator may change it between the reading and the writing.
            while (found := await place.find_one(leased, {"mail": 1, "at": "$$NOW"})) is not None:
                if await self._write_outcome(place, leased, found["mail"], outcome, found["at"]):
                    return True
        return False

    async def _write_outcome(
        self, place: Collection, leased: Raw, mail: Raw, outcome: MailOutcome, present: datetime
    ) -> bool:
        """`present`: by MongoDB's clock."""
        is_withdrawn = "due" not in mail
        at = self._clock()
        ahead_s = (present - at).total_seconds()
        recipients = mail["recipients"]
        refused = mail.get("refused", []) + _refused_fields(recipients, outcome, at)
        owed = [] if is_withdrawn else _still_owed(recipients, outcome, at, ahead_s)
        left = {name: value for name, value in mail.items() if name not in LEASE_FIELDS}
        return await replace(self._connection, place, leased, rest_of(left, owed, refused))

    async def next_due(self) -> datetime | None:
        """As `Store.next_mail_due`: of a leased duty that is when its lease ends."""
        due = await self._find_next()
        while await self._withdraw_of_removed(found for _, found in due):
            due = await self._find_next()
        return min((instant for instant, _ in due), default=None)

    async def _find_next(self) -> list[tuple[datetime, Raw]]:
        """Of each place the first that is free, and the first lease to end."""
        free = {"mail.due": {"$exists": True}, "mail.leasedUntil": None}
        leased = {"mail.leasedUntil": {"$exists": True}}
        due = []
        for place in self._places:
            for where, what in ((free, "due"), (leased, "leasedUntil")):
                keys = {f"mail.{what}": 1, "tenant": 1}
                found = await place.find_one(where, keys, sort={f"mail.{what}": 1})
                if found is not None:
                    due.append((found["mail"][what], found))
        return due

    async def counts(self) -> MailCounts:
        """As `Store.mail_counts`."""
        # Comparisons and not $exists: with them the index alone has the answer.
        due = await self._sum({"mail.due": {"$gt": datetime.min.replace(tzinfo=UTC)}}, "$mail.owed")
        refused = await self._sum({"mail.refusals": {"$gt": 0}}, "$mail.refusals")
        return MailCounts(due=due, refused=refused)

    async def _sum(self, where: Raw, what: str) -> int:
        total = 0
        for place in self._places:
            group = {"$group": {"_id": None, "sum": {"$sum": what}}}
            async for found in await place.aggregate([{"$match": where}, group]):
                total += found["sum"]
        return total


LEASE_FIELDS = ("lease", "leasedUntil", "claimedAt", "claimed")


def leased_of(mail: Raw) -> list[Raw]:
    """Those of the recipients of a claimed duty whom the claim was for."""
    due = [each for each in mail["recipients"] if each["due"] <= mail["claimedAt"]]
    due.sort(key=itemgetter("due"))
    return due[: mail.get("claimed", len(due))]  # earlier versions claim all that are due


def _since_accepted_s(mail: Raw) -> float | None:
    """By MongoDB's clock at both times; None: earlier versions do not say."""
    accepted_at = mail.get("acceptedAt")
    is_known = isinstance(accepted_at, datetime)
    return (mail["claimedAt"] - accepted_at).total_seconds() if is_known else None


def rest_of(mail: Raw, owed: Sequence[Raw], refused: Sequence[Raw]) -> Raw:
    """The duty with these who are still owed it, and these who were refused it, in place of those before."""
    rest = {name: value for name, value in mail.items() if name not in ("recipients", "owed", "due")}
    if owed:
        rest |= owed_fields(owed)
    return rest | {"refused": list(refused), "refusals": len(refused)}


async def replace(connection: Connection, place: Collection, where: Raw, mail: Raw) -> bool:
    """Put a changed duty in the place of what was read; False if that is not there any more as it was. A duty with
    nobody in it goes, with its intent if it was in one."""
    version = mail.pop("version", None)
    unchanged = {**where, "mail.version": version}
    if mail["refusals"] == 0:
        del mail["refused"], mail["refusals"]
        if "owed" not in mail and place is connection.intents:
            return (await place.delete_one(unchanged)).deleted_count == 1
        if "owed" not in mail:
            return (await place.update_one(unchanged, {"$unset": {"mail": ""}})).matched_count == 1
    changed = {**mail, "version": (version or 0) + 1}
    return (await place.update_one(unchanged, {"$set": {"mail": changed}})).matched_count == 1


def _refused_fields(recipients: Sequence[Raw], outcome: MailOutcome, at: datetime) -> list[Raw]:
    """What is kept of the refusals. Those of earlier versions have neither `refusedAt` nor `attempts`."""
    owed = {each["_userId"]: each for each in recipients}
    return [
        {
            "_userId": each.user_id,
            "email": each.email,
            "code": each.code,
            "reason": each.reason,
            "refusedAt": at,
            "attempts": owed[each.user_id].get("attempts", 0) + 1,
        }
        for each in outcome.refused
        if each.user_id in owed
    ]


def _still_owed(recipients: Sequence[Raw], outcome: MailOutcome, at: datetime, ahead_s: float) -> list[Raw]:
    """Those whom the outcome does not name, as they were, and those to try again, with the answer."""
    settled = {each.user_id for each in (*outcome.sent, *outcome.dropped)}
    settled |= {each.user_id for each in outcome.refused}
    again = {each.user_id: each for each in outcome.retry}
    return [
        _put_off(each, again[each["_userId"]], at, ahead_s) if each["_userId"] in again else each
        for each in recipients
        if each["_userId"] not in settled
    ]


def _put_off(recipient: Raw, answer: PostponedMail, at: datetime, ahead_s: float) -> Raw:
    due_at = due_by(answer.retry_at, ahead_s)
    failed = {"due": due_at, "failedAt": at, "code": answer.code, "reason": answer.reason}
    present = due_by(at, ahead_s)
    if not answer.is_untried:
        failed["attempts"] = recipient.get("attempts", 0) + 1
        failed["failingSince"] = present
    if "failingSince" in recipient:
        # What it waited for anything but the mail server's will does not count (see `MailRecipient`).
        until = due_at if answer.is_untried else present
        failed["failingSince"] = recipient["failingSince"] + (until - recipient["due"])
    return recipient | failed
