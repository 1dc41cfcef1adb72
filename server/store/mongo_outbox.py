"""`Outbox` on MongoDB: what operators see and change of the mail duties that `mongo_mail` claims and settles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime

from bson import ObjectId

from server.errors import NotFound
from server.ids import is_id
from server.store import Mails, MailState, OutboxMail, OutboxNotification
from server.store.mongo_connection import Collection as Place
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw, read_mail
from server.store.mongo_mail import leased_of, replace, rest_of

# A notification may have thousands of recipients.
BATCH = 10
"""Notifications that MongoDB sends at a time."""

# `mail.subject`: so that the index with duties only can be used. An intent that is open, or was set aside, owes nothing
# yet.
_HAS_MAIL: Raw = {"mail.subject": {"$exists": True}, "openedAt": None, "failedAt": None}

_DUTY: Raw = {"nid": 1, "tenant": 1, "_userId": 1, "mail": 1, "at": "$$NOW"}
_WITHOUT_TEXT: Raw = {"nid": 1, "at": "$$NOW"} | dict.fromkeys(
    (f"mail.{name}" for name in ("recipients", "refused", "due", "leasedUntil", "claimedAt", "claimed")), 1
)

Owed = list[Raw]
Dead = list[Raw]
Edit = Callable[[Raw, Collection[str] | None, datetime], tuple[Owed, Dead, int]]
"""What a verb makes of a duty, at this time of the store: who is owed it then, who is dead, and how many it changed."""


class MongoOutbox:
    """`Outbox` on an open connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _places(self) -> tuple[Place, Place]:
        return self._connection.documents, self._connection.intents

    # -- looking ---------------------------------------------------------------------------------------------

    async def entries(
        self,
        tenant: str,
        *,
        nid: str | None = None,
        state: MailState | None = None,
        after: tuple[str, str] | None = None,
        limit: int,
    ) -> list[OutboxMail]:
        if not all(map(is_id, [*([] if nid is None else [nid]), *([] if after is None else [after[0]])])):
            return []
        where = {"tenant": tenant, **_HAS_MAIL, **_having(state)}
        bounds = ({} if nid is None else {"$eq": ObjectId(nid)}) | (
            {} if after is None else {"$gte": ObjectId(after[0])}
        )
        if bounds:
            where["nid"] = bounds
        with self._connection.operation():
            found = [
                entry for place in self._places for entry in await _read(place, where, state, after, limit)
            ]
        found.sort(key=_position)
        return found[:limit]

    async def find(self, tenant: str, nid: str) -> OutboxNotification:
        where = {"tenant": tenant, "nid": ObjectId(nid) if is_id(nid) else None, **_HAS_MAIL}
        with self._connection.operation():
            for place in self._places:
                found = await place.find_one(where, {"nid": 1, "createdAt": 1, "mail": 1})
                if found is not None:
                    return OutboxNotification(nid, found["createdAt"], read_mail(found["mail"]))
        raise NotFound("there is no mail of such a notification in the outbox")

    # -- changing --------------------------------------------------------------------------------------------

    async def retry(self, tenant: str, mails: Mails) -> int:
        return await self._change(tenant, mails, _retried)

    async def drop(self, tenant: str, mails: Mails) -> int:
        return await self._change(tenant, mails, _dropped)

    async def _change(self, tenant: str, mails: Mails, edit: Edit) -> int:
        changed = 0
        with self._connection.operation():
            for nid, user_ids in mails.items():
                if is_id(nid):
                    where = {"tenant": tenant, "nid": ObjectId(nid), **_HAS_MAIL}
                    for place in self._places:
                        changed += await self._change_one(place, where, user_ids, edit)
        return changed

    async def _change_one(
        self, place: Place, where: Raw, user_ids: Collection[str] | None, edit: Edit
    ) -> int:
        """How many mails of a notification were changed in this place."""
        wanted = None if user_ids is None else frozenset(user_ids)
        while (found := await place.find_one(where, _DUTY)) is not None:
            mail = found["mail"]
            owed, dead, changed = edit(mail, wanted, found["at"])
            if not changed:
                return 0
            # A claim changes no version, but the lease.
            unchanged = {
                "_id": found["_id"],
                "tenant": found["tenant"],
                "_userId": found.get("_userId"),
                "mail.lease": mail.get("lease"),
            }
            if await replace(self._connection, place, unchanged, rest_of(mail, owed, dead)):
                return changed
        return 0


def _having(state: MailState | None) -> Raw:
    """The filter for duties that may have a mail in this state."""
    if state is MailState.DEAD:
        return {"mail.refusals": {"$gt": 0}}
    return {} if state is None else {"mail.owed": {"$gt": 0}}


async def _read(
    place: Place, where: Raw, state: MailState | None, after: tuple[str, str] | None, limit: int
) -> list[OutboxMail]:
    found: list[OutboxMail] = []
    async with place.find(where, _WITHOUT_TEXT, sort={"nid": 1}, batch_size=BATCH) as duties:
        async for duty in duties:
            entries = [each for each in _entries(duty) if state in (None, each.state)]
            found += [each for each in entries if after is None or _position(each) > after]
            if len(found) >= limit:
                break
    return found


def _position(entry: OutboxMail) -> tuple[str, str]:
    return entry.nid, entry.user_id


def _entries(duty: Raw) -> Iterable[OutboxMail]:
    """All mails of a duty."""
    mail, nid = duty["mail"], str(duty["nid"])
    leased = _leased(mail, duty["at"])
    for each in _owed(mail):
        is_leased = each["_userId"] in leased
        is_due = each["due"] <= duty["at"]
        yield OutboxMail(
            nid=nid,
            user_id=each["_userId"],
            email=each["email"],
            state=MailState.LEASED if is_leased else MailState.DUE if is_due else MailState.WAITING,
            due_at=each["due"],
            leased_until=mail["leasedUntil"] if is_leased else None,
            attempts=each.get("attempts", 0),
            failed_at=each.get("failedAt"),
            code=each.get("code"),
            reason=each.get("reason"),
        )
    for each in mail.get("refused", ()):
        yield OutboxMail(
            nid=nid,
            user_id=each["_userId"],
            email=each["email"],
            state=MailState.DEAD,
            due_at=None,
            leased_until=None,
            attempts=each.get("attempts", 0),
            failed_at=each.get("refusedAt"),
            code=each["code"],
            reason=each["reason"],
        )


def _owed(mail: Raw) -> Sequence[Raw]:
    """The recipients; of a removed tenant nobody is owed anything."""
    owed: Sequence[Raw] = mail["recipients"] if "due" in mail else []
    return owed


def _leased(mail: Raw, at: datetime) -> frozenset[str]:
    """The users whose mail a server has in hand."""
    if "leasedUntil" not in mail or mail["leasedUntil"] <= at:
        return frozenset()
    return frozenset(each["_userId"] for each in leased_of(mail))


def _retried(mail: Raw, wanted: Collection[str] | None, at: datetime) -> tuple[Owed, Dead, int]:
    leased = _leased(mail, at)
    owed: Owed = []
    changed = 0
    for each in _owed(mail):
        waits = each["due"] > at and each["_userId"] not in leased
        is_meant = waits and (wanted is None or each["_userId"] in wanted)
        owed.append(_afresh(each, at) if is_meant else each)
        changed += is_meant
    dead: Dead = []
    for each in mail.get("refused", ()):
        if wanted is None or each["_userId"] in wanted:
            failed = {"online": False, "failedAt": each.get("refusedAt")}
            owed.append(_afresh({**each, **failed}, at))
            changed += 1
        else:
            dead.append(each)
    return owed, dead, changed


def _afresh(recipient: Raw, at: datetime) -> Raw:
    """As if it had never been tried, but with the last answer."""
    kept = {
        name: value
        for name, value in recipient.items()
        if name not in ("attempts", "failingSince", "refusedAt") and value is not None
    }
    return kept | {"due": at}


def _dropped(mail: Raw, wanted: Collection[str] | None, at: datetime) -> tuple[Owed, Dead, int]:
    leased = _leased(mail, at)

    def stays(each: Raw) -> bool:
        return wanted is not None and each["_userId"] not in wanted

    owed = [each for each in _owed(mail) if stays(each) or each["_userId"] in leased]
    dead = [each for each in mail.get("refused", ()) if stays(each)]
    before = len(_owed(mail)) + len(mail.get("refused", ()))
    return owed, dead, before - len(owed) - len(dead)
