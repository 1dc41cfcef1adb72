"""`Directory` on MongoDB: signing secrets and the numbers of the last changes; tenants with their keys lie in
`mongo_tenants`, users in `mongo_users`, sign-outs in `mongo_sign_outs`.

Each change is one atomic write; then its number is raised, so whoever reads the higher one reads the change. After a
crash between the two the change is there without a new number: servers, which read every half minute in any case, see
it then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime

from server.errors import NotFound, StoreUnavailable
from server.grants import DEFAULT_TENANT, ApiKey, Keep, KnownUser, SigningSecret, Tenant, new_secret
from server.ids import new_id
from server.store import Access, Sequences, SignOutCursor, SignOutPage
from server.store.mongo_connection import Collection, Connection
from server.store.mongo_documents import ACCESS, Raw
from server.store.mongo_mail import MailDuties
from server.store.mongo_sign_outs import SignOutRecords
from server.store.mongo_tenants import TenantRecords
from server.store.mongo_users import KnownUsers, UserKey, of_tenant


class MongoDirectory:
    """`Directory` on an open connection."""

    def __init__(
        self, connection: Connection, users: KnownUsers, mail: MailDuties, clock: Callable[[], datetime]
    ) -> None:
        self._connection = connection
        self._tenants = TenantRecords(connection)
        self._users = users
        self._sign_outs = SignOutRecords(connection)
        self._mail = mail
        self._clock = clock

    async def found(self) -> None:
        """Make what every store has: the tenant `default`, and one secret. Of several nodes one wins."""
        at = self._clock()
        secret = _secret_fields(SigningSecret(new_id(), new_secret(), at))
        with self._connection.operation():
            await self._tenants.make_sure_of(Tenant(DEFAULT_TENANT, at))
            first = {"$setOnInsert": {"sequence": 1, "secrets": [secret]}}
            await self._connection.meta.update_one(ACCESS, first, upsert=True)

    async def sequences(self) -> Sequences:
        with self._connection.operation():
            found = await self._read_access()
            return Sequences(found["sequence"], found.get("signOuts", 0))

    async def access(self) -> Access:
        with self._connection.operation():
            # First of all: what is read after it is as of this sequence, or later.
            found = await self._read_access()
            tenants, keys = await self._tenants.active()
        self._users.keep({tenant.name: tenant.created_at for tenant in tenants})
        return Access(
            sequence=found["sequence"],
            tenants=tuple(tenants),
            keys=tuple(keys),
            secrets=self._good_secrets(found["secrets"]),
        )

    async def _read_access(self) -> Raw:
        found = await self._connection.meta.find_one(ACCESS)
        if found is None:
            raise StoreUnavailable("the database was emptied; restart the server")
        return found

    async def _raise_sequence(self, which: str = "sequence") -> None:
        await self._connection.meta.update_one(ACCESS, {"$inc": {which: 1}})

    # -- tenants ---------------------------------------------------------------------------------------------

    async def tenants(self) -> list[Tenant]:
        with self._connection.operation():
            return await self._tenants.all()

    async def add_tenant(self, tenant: Tenant, key: ApiKey) -> None:
        with self._connection.operation():
            await self._tenants.add(tenant, key)
            await self._raise_sequence()

    async def set_keep(self, name: str, keep: Keep) -> None:
        with self._connection.operation():
            await self._tenants.set_keep(name, keep)
            await self._raise_sequence()

    async def remove_tenant(self, name: str, at: datetime) -> None:
        with self._connection.operation():
            await self._tenants.remove(name, at)
            await self._raise_sequence()
        # It is removed, whether or not there is time for this; what is left is withdrawn when its time has come.
        with suppress(StoreUnavailable), self._connection.operation():
            await self._mail.withdraw([name])

    async def erase_tenant(self, name: str, limit: int) -> int:
        with self._connection.operation():
            if not await self._tenants.is_removed(name):
                raise NotFound(f"there is no tenant {name!r} that is removed")
            erased = await self._erase_documents(name, limit)
        if erased:
            return erased
        with self._connection.operation():
            # Without them nobody completes a notification any more; what was completed until now goes, too.
            await self._connection.intents.delete_many({"tenant": name})
            await self._connection.broadcasts.delete_many({"tenant": name})
            erased = await self._erase_documents(name, limit)
        if erased:
            return erased
        for records in (self._connection.users, self._connection.ways, self._connection.once):
            while await self._erase_records(records, name, limit):
                pass
        with self._connection.operation():
            await self._sign_outs.erase(name)
            await self._tenants.forget(name)
            await self._raise_sequence()
        return 0

    async def _erase_documents(self, tenant: str, limit: int) -> int:
        documents = self._connection.documents
        found = await documents.find({"tenant": tenant}, {"_id": 1}, limit=limit).to_list()
        ids = [each["_id"] for each in found]
        return (await documents.delete_many({"tenant": tenant, "_id": {"$in": ids}})).deleted_count

    async def _erase_records(self, records: Collection, tenant: str, limit: int) -> int:
        with self._connection.operation():
            found = await records.find(of_tenant(tenant), {"_id": 1}, limit=limit).to_list()
            return (
                await records.delete_many({"_id": {"$in": [each["_id"] for each in found]}})
            ).deleted_count

    # -- keys ------------------------------------------------------------------------------------------------

    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        with self._connection.operation():
            return await self._tenants.keys(tenant)

    async def add_key(self, key: ApiKey) -> None:
        with self._connection.operation():
            await self._tenants.add_key(key)
            await self._raise_sequence()

    async def revoke_key(self, tenant: str, name: str, at: datetime) -> ApiKey:
        with self._connection.operation():
            key = await self._tenants.revoke_key(tenant, name, at)
            await self._raise_sequence()
            return key

    async def note_key_use(self, used_at: Mapping[str, datetime]) -> None:
        with self._connection.operation():
            await self._tenants.note_key_use(used_at)

    # -- users -----------------------------------------------------------------------------------------------

    async def note_users(self, seen_at: Mapping[UserKey, datetime]) -> None:
        with self._connection.operation():
            await self._users.note(seen_at)

    async def users(self, tenant: str, *, after: str | None, limit: int) -> list[KnownUser]:
        with self._connection.operation():
            return await self._users.page(tenant, after, limit)

    async def known_since(self, tenant: str, user_id: str) -> datetime | None:
        with self._connection.operation():
            return await self._users.known_since(tenant, user_id)

    # -- signing out -----------------------------------------------------------------------------------------

    async def sign_out(self, tenant: str, user_id: str, at: datetime) -> None:
        with self._connection.operation():
            await self._sign_outs.add(tenant, user_id, at)
            await self._raise_sequence("signOuts")

    async def sign_outs(self, after: SignOutCursor | None, limit: int) -> SignOutPage:
        with self._connection.operation():
            return await self._sign_outs.page(after, limit)

    async def forget_sign_outs(self, before: datetime) -> None:
        with self._connection.operation():
            await self._sign_outs.forget(before)

    # -- signing secrets -------------------------------------------------------------------------------------

    async def add_secret(self, secret: SigningSecret, *, retire_others_at: datetime) -> None:
        others = {"$filter": {"input": "$secrets", "cond": _is_good("$$this.retiredAt", self._clock())}}
        # $min ignores null.
        retired = {"retiredAt": {"$min": ["$$this.retiredAt", retire_others_at]}}
        secrets = [
            {"$map": {"input": others, "as": "this", "in": {"$mergeObjects": ["$$this", retired]}}},
            [{"$literal": _secret_fields(secret)}],
        ]
        change = {"secrets": {"$concatArrays": secrets}, "sequence": {"$add": ["$sequence", 1]}}
        with self._connection.operation():
            await self._connection.meta.update_one(ACCESS, [{"$set": change}])

    def _good_secrets(self, found: list[Raw]) -> tuple[SigningSecret, ...]:
        """The newest first; of those made at the same time that which was added last."""
        at = self._clock()
        secrets = [_read_secret(each) for each in reversed(found)]
        good = [secret for secret in secrets if secret.retired_at is None or at < secret.retired_at]
        return tuple(sorted(good, key=lambda secret: secret.created_at, reverse=True))


def _is_good(retired_at: str, at: datetime) -> Raw:
    return {"$or": [{"$eq": [retired_at, None]}, {"$gt": [retired_at, at]}]}


def _secret_fields(secret: SigningSecret) -> Raw:
    return {
        "id": secret.id,
        "secret": secret.secret,
        "createdAt": secret.created_at,
        "retiredAt": secret.retired_at,
    }


def _read_secret(found: Raw) -> SigningSecret:
    return SigningSecret(found["id"], found["secret"], found["createdAt"], found["retiredAt"])
