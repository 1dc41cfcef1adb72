"""Tenants with their keys: one document each, so that every change of them is atomic, on a standalone server, too.

`<collection>_tenants`: `_id` the name, `createdAt`, `removedAt` (null: active), and in `keys` all of the tenant's keys
but the oldest of very many that are revoked. `keep` (missing: as the configuration says) has for how many seconds
`documents` and `tombstones` are kept, `horizon` how far back the inboxes go: see `mongo_retention`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from server.errors import Conflict, NotFound
from server.grants import ApiKey, Keep, Tenant, scopes_of
from server.store.mongo_connection import Connection
from server.store.mongo_documents import Raw

MAX_REVOKED_KEYS = 1000
"""Of each tenant. A document ends at 16 MB: this leaves room for 50,000 that are in use."""

_REMOVED: Raw = {"removedAt": {"$ne": None}}

_REVOKED = {"$ne": ["$$this.revokedAt", None]}
_NOT_REVOKED = {"$eq": ["$$this.revokedAt", None]}


class TenantRecords:
    """The verbs of `Directory` about tenants and keys, but for erasing. Called within an operation of the
    connection; the caller raises the sequence."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def all(self) -> list[Tenant]:
        """As `Directory.tenants`."""
        found = await self._connection.tenants.find({}, {"keys": 0}, sort={"_id": 1}).to_list()
        return [_read_tenant(each) for each in found]

    async def active(self) -> tuple[list[Tenant], list[ApiKey]]:
        """The tenants that are active, and their keys that are not revoked."""
        keys = {"$filter": {"input": "$keys", "cond": _NOT_REVOKED}}
        fields = {"createdAt": 1, "removedAt": 1, "keep": 1, "keys": keys}
        found = await self._connection.tenants.find({"removedAt": None}, fields, sort={"_id": 1}).to_list()
        return [_read_tenant(each) for each in found], _read_keys(found)

    async def is_removed(self, name: str) -> bool:
        """Whether there is one of that name, and it is not active."""
        return bool(await removed_among(self._connection, [name]))

    async def make_sure_of(self, tenant: Tenant) -> None:
        """Add it, without a key, unless there is one of that name."""
        fields: Raw = {"createdAt": tenant.created_at, "removedAt": None, "keys": []}
        await self._connection.tenants.update_one({"_id": tenant.name}, {"$setOnInsert": fields}, upsert=True)

    async def add(self, tenant: Tenant, key: ApiKey) -> None:
        """As `Directory.add_tenant`."""
        fields = {"createdAt": tenant.created_at, "removedAt": None, "keys": [_key_fields(key)]}
        try:
            await self._connection.tenants.insert_one({"_id": tenant.name, **fields})
        except DuplicateKeyError:
            raise Conflict(
                f"there is a tenant {tenant.name!r}, or one that is removed and not erased"
            ) from None

    async def remove(self, name: str, at: datetime) -> None:
        """As `Directory.remove_tenant`."""
        revoked = {"revokedAt": {"$ifNull": ["$$this.revokedAt", at]}}
        keys = {"$map": {"input": "$keys", "in": {"$mergeObjects": ["$$this", revoked]}}}
        removed = await self._connection.tenants.update_one(
            {"_id": name, "removedAt": None}, [{"$set": {"removedAt": at, "keys": keys}}]
        )
        if not removed.matched_count:
            raise NotFound(f"there is no tenant {name!r}")

    async def set_keep(self, name: str, keep: Keep) -> None:
        """As `Directory.set_keep`."""
        fields = {"documents": keep.documents_s, "tombstones": keep.tombstones_s}
        found = await self._connection.tenants.update_one(
            {"_id": name, "removedAt": None}, {"$set": {"keep": fields}}
        )
        if not found.matched_count:
            raise NotFound(f"there is no tenant {name!r}")

    async def forget(self, name: str) -> None:
        """Let go of the name of a removed tenant, and of its keys."""
        await self._connection.tenants.delete_one({"_id": name, **_REMOVED})

    async def keys(self, tenant: str | None) -> list[ApiKey]:
        """As `Directory.keys`."""
        which: Raw = {} if tenant is None else {"_id": tenant}
        return _read_keys(await self._connection.tenants.find(which, {"keys": 1}, sort={"_id": 1}).to_list())

    async def add_key(self, key: ApiKey) -> None:
        """As `Directory.add_key`."""
        revoked = {"$filter": {"input": "$keys", "cond": _REVOKED}}
        others = {"$filter": {"input": "$keys", "cond": _NOT_REVOKED}}
        added = await self._connection.tenants.update_one(
            {"_id": key.tenant, "removedAt": None, "keys": {"$not": _key_in_use(key.name)}},
            [
                {
                    "$set": {
                        "keys": {
                            "$concatArrays": [
                                {"$slice": [revoked, -MAX_REVOKED_KEYS]},
                                others,
                                # What it holds is not to be taken for expressions.
                                [{"$literal": _key_fields(key)}],
                            ]
                        }
                    }
                }
            ],
        )
        if not added.matched_count:
            await self._say_why_not(key)

    async def _say_why_not(self, key: ApiKey) -> NoReturn:
        active = {"_id": key.tenant, "removedAt": None}
        if await self._connection.tenants.find_one(active, {"_id": 1}) is None:
            raise NotFound(f"there is no tenant {key.tenant!r}")
        raise Conflict(f"the tenant {key.tenant!r} has a key {key.name!r}")

    async def revoke_key(self, tenant: str, name: str, at: datetime) -> ApiKey:
        """As `Directory.revoke_key`."""
        found = await self._connection.tenants.find_one_and_update(
            {"_id": tenant, "keys": _key_in_use(name)},
            {"$set": {"keys.$.revokedAt": at}},
            projection={"keys": _key_in_use(name)},
            return_document=ReturnDocument.BEFORE,
        )
        if found is None:
            raise NotFound(f"the tenant {tenant!r} has no key {name!r}")
        [key] = found["keys"]
        return _read_key(tenant, {**key, "revokedAt": at})

    async def note_key_use(self, used_at: Mapping[str, datetime]) -> None:
        """As `Directory.note_key_use`."""
        notes = [
            UpdateOne({"keys.id": id_}, {"$max": {"keys.$.lastUsedAt": at}}) for id_, at in used_at.items()
        ]
        if notes:
            await self._connection.tenants.bulk_write(notes, ordered=False)


async def removed_among(connection: Connection, names: Collection[str]) -> list[str]:
    """Those of these tenants that are removed and not erased."""
    removed = {"_id": {"$in": list(names)}, **_REMOVED}
    return [each["_id"] for each in await connection.tenants.find(removed, {"_id": 1}, hint="_id_").to_list()]


async def all_removed(connection: Connection) -> list[str]:
    """The tenants that are removed and not erased."""
    return [each["_id"] for each in await connection.tenants.find(_REMOVED, {"_id": 1}).to_list()]


def _key_in_use(name: str) -> Raw:
    return {"$elemMatch": {"name": name, "revokedAt": None}}


def _key_fields(key: ApiKey) -> Raw:
    return {
        "id": key.id,
        "name": key.name,
        "hashed": key.hashed,
        "scopes": sorted(key.scopes),
        "createdAt": key.created_at,
        "expiresAt": key.expires_at,
        "lastUsedAt": key.last_used_at,
        "revokedAt": key.revoked_at,
    }


def _read_tenant(found: Raw) -> Tenant:
    keep = found.get("keep") or {}
    return Tenant(
        found["_id"],
        found["createdAt"],
        found["removedAt"],
        Keep(keep.get("documents"), keep.get("tombstones")),
    )


def _read_keys(tenants: Sequence[Raw]) -> list[ApiKey]:
    """The keys of these tenants, of each the oldest first."""
    return [
        key
        for tenant in tenants
        for key in sorted(
            (_read_key(tenant["_id"], each) for each in tenant["keys"]),
            key=lambda key: (key.created_at, key.id),
        )
    ]


def _read_key(tenant: str, found: Raw) -> ApiKey:
    return ApiKey(
        id=found["id"],
        tenant=tenant,
        name=found["name"],
        hashed=found["hashed"],
        scopes=scopes_of(found["scopes"]),
        created_at=found["createdAt"],
        expires_at=found["expiresAt"],
        last_used_at=found["lastUsedAt"],
        revoked_at=found["revokedAt"],
    )
