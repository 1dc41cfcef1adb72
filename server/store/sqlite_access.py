"""Tenants, keys, signing secrets and known users of the embedded store: what each verb of the port does on a
connection. Knows no threads and no clock. Sign-outs: see `sqlite_sign_outs`.

Functions that write run inside a transaction of the caller, which nobody else's can come between.
"""

# ruff: noqa: S608  # statements are put together from texts of this module only

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from server.errors import Conflict, NotFound
from server.grants import ApiKey, Keep, KnownUser, SigningSecret, Tenant, scopes_of
from server.store import Access, Sequences
from server.store.sqlite_schema import from_ms, to_ms

_KEY_FIELDS = "id, tenant, name, hashed, scopes, created_at, expires_at, last_used_at, revoked_at"

_IS_ACTIVE = "tenant IN (SELECT name FROM tenants WHERE removed_at IS NULL)"


def sequences(connection: sqlite3.Connection) -> Sequences:
    """See `Directory.sequences`."""
    rows = connection.execute(
        "SELECT value FROM meta WHERE name IN ('access_sequence', 'sign_out_sequence') ORDER BY name"
    )
    [(of_access,), (of_sign_outs,)] = rows
    return Sequences(of_access, of_sign_outs)


def raise_sequence(connection: sqlite3.Connection) -> None:
    """To be part of each change of what `access` returns."""
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'access_sequence'")


def access(connection: sqlite3.Connection, now: datetime) -> Access:
    """See `Directory.access`."""
    connection.execute("SAVEPOINT access")  # all of it as of one moment
    try:
        return Access(
            sequence=sequences(connection).access,
            tenants=tuple(_tenants(connection, "WHERE removed_at IS NULL")),
            keys=tuple(_keys(connection, f"WHERE revoked_at IS NULL AND {_IS_ACTIVE}")),
            secrets=_secrets(connection, now),
        )
    finally:
        connection.execute("RELEASE access")


# -- tenants -------------------------------------------------------------------------------------------------


def tenants(connection: sqlite3.Connection) -> list[Tenant]:
    """See `Directory.tenants`."""
    return _tenants(connection, "")


def add_tenant(connection: sqlite3.Connection, tenant: Tenant, key: ApiKey) -> None:
    """See `Directory.add_tenant`."""
    found = _tenants(connection, "WHERE name = ?", tenant.name)
    if found and found[0].removed_at is None:
        raise Conflict(f"tenant {tenant.name!r} is there already")
    if found:
        raise Conflict(f"tenant {tenant.name!r} was removed, but its data is not erased yet")
    connection.execute(
        "INSERT INTO tenants VALUES (?, ?, ?)",
        (tenant.name, to_ms(tenant.created_at), _ms(tenant.removed_at)),
    )
    add_key(connection, key)


def remove_tenant(connection: sqlite3.Connection, name: str, at: datetime) -> None:
    """See `Directory.remove_tenant`."""
    ms = to_ms(at)
    removed = connection.execute(
        "UPDATE tenants SET removed_at = ? WHERE name = ? AND removed_at IS NULL", (ms, name)
    )
    if not removed.rowcount:
        raise NotFound(f"there is no active tenant {name!r}")
    connection.execute(
        "UPDATE api_keys SET revoked_at = ? WHERE tenant = ? AND revoked_at IS NULL", (ms, name)
    )
    raise_sequence(connection)


def set_keep(connection: sqlite3.Connection, name: str, keep: Keep) -> None:
    """See `Directory.set_keep`."""
    if not _tenants(connection, "WHERE name = ? AND removed_at IS NULL", name):
        raise NotFound(f"there is no active tenant {name!r}")
    connection.execute(
        "INSERT INTO retention (tenant, documents_s, tombstones_s) VALUES (?, ?, ?) ON CONFLICT (tenant)"
        " DO UPDATE SET documents_s = excluded.documents_s, tombstones_s = excluded.tombstones_s",
        (name, keep.documents_s, keep.tombstones_s),
    )
    raise_sequence(connection)


def is_removed(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a removed tenant of that name."""
    return bool(_tenants(connection, "WHERE name = ? AND removed_at IS NOT NULL", name))


def _tenants(connection: sqlite3.Connection, where: str, *values: str) -> list[Tenant]:
    rows = connection.execute(
        "SELECT name, created_at, removed_at, documents_s, tombstones_s FROM tenants"
        f" LEFT JOIN retention ON tenant = name {where} ORDER BY name",
        values,
    )
    return [
        Tenant(name, from_ms(created_at), _instant(removed_at), Keep(*keep))
        for name, created_at, removed_at, *keep in rows
    ]


# -- keys ----------------------------------------------------------------------------------------------------


def keys(connection: sqlite3.Connection, tenant: str | None) -> list[ApiKey]:
    """See `Directory.keys`."""
    return _keys(connection, "") if tenant is None else _keys(connection, "WHERE tenant = ?", tenant)


def add_key(connection: sqlite3.Connection, key: ApiKey) -> None:
    """See `Directory.add_key`."""
    if not _tenants(connection, "WHERE name = ? AND removed_at IS NULL", key.tenant):
        raise NotFound(f"there is no active tenant {key.tenant!r}")
    if _find_key(connection, key.tenant, key.name) is not None:
        raise Conflict(f"tenant {key.tenant!r} has a key {key.name!r} already")
    connection.execute(
        f"INSERT INTO api_keys ({_KEY_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.id,
            key.tenant,
            key.name,
            key.hashed,
            " ".join(sorted(key.scopes)),
            to_ms(key.created_at),
            _ms(key.expires_at),
            _ms(key.last_used_at),
            _ms(key.revoked_at),
        ),
    )
    raise_sequence(connection)


def revoke_key(connection: sqlite3.Connection, tenant: str, name: str, at: datetime) -> ApiKey:
    """See `Directory.revoke_key`."""
    key = _find_key(connection, tenant, name)
    if key is None:
        raise NotFound(f"tenant {tenant!r} has no key {name!r} that is not revoked")
    connection.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ?", (to_ms(at), key.id))
    raise_sequence(connection)
    [revoked] = _keys(connection, "WHERE id = ?", key.id)
    return revoked


def note_key_use(connection: sqlite3.Connection, used_at: Mapping[str, datetime]) -> None:
    """See `Directory.note_key_use`."""
    connection.executemany(
        "UPDATE api_keys SET last_used_at = ?1 WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?1)",
        ((to_ms(at), id_) for id_, at in used_at.items()),
    )


def _find_key(connection: sqlite3.Connection, tenant: str, name: str) -> ApiKey | None:
    found = _keys(connection, "WHERE tenant = ? AND name = ? AND revoked_at IS NULL", tenant, name)
    return found[0] if found else None


def _keys(connection: sqlite3.Connection, where: str, *values: str) -> list[ApiKey]:
    rows = connection.execute(
        f"SELECT {_KEY_FIELDS} FROM api_keys {where} ORDER BY tenant, created_at, key", values
    )
    return [_key(row) for row in rows]


def _key(row: Sequence[Any]) -> ApiKey:
    id_, tenant, name, hashed, scopes, created_at, expires_at, last_used_at, revoked_at = row
    return ApiKey(
        id=id_,
        tenant=tenant,
        name=name,
        hashed=hashed,
        scopes=scopes_of(scopes.split()),
        created_at=from_ms(created_at),
        expires_at=_instant(expires_at),
        last_used_at=_instant(last_used_at),
        revoked_at=_instant(revoked_at),
    )


# -- users ---------------------------------------------------------------------------------------------------


def note_users(connection: sqlite3.Connection, seen_at: Mapping[tuple[str, str], datetime]) -> None:
    """See `Directory.note_users`."""
    connection.executemany(
        "INSERT INTO users (tenant, user_id, first_seen_at, last_seen_at) VALUES (?1, ?2, ?3, ?3)"
        " ON CONFLICT (tenant, user_id) DO UPDATE SET"
        " first_seen_at = min(first_seen_at, ?3), last_seen_at = max(coalesce(last_seen_at, ?3), ?3)",
        ((tenant, user_id, to_ms(at)) for (tenant, user_id), at in seen_at.items()),
    )


def users(connection: sqlite3.Connection, tenant: str, after: str | None, limit: int) -> list[KnownUser]:
    """See `Directory.users`."""
    rows = connection.execute(
        "SELECT user_id, first_seen_at, last_seen_at FROM users"
        f" WHERE tenant = ? AND user_id {'>=' if after is None else '>'} ? ORDER BY user_id LIMIT ?",
        (tenant, after or "", limit),
    )
    return [KnownUser(tenant, user_id, from_ms(first), _instant(last)) for user_id, first, last in rows]


def known_since(connection: sqlite3.Connection, tenant: str, user_id: str) -> datetime | None:
    """See `Directory.known_since`."""
    row = connection.execute(
        "SELECT first_seen_at FROM users WHERE tenant = ? AND user_id = ?", (tenant, user_id)
    ).fetchone()
    return None if row is None else from_ms(row[0])


def latest_known_since(connection: sqlite3.Connection, tenant: str) -> datetime:
    """The latest since which any user of the tenant is known; long ago if there are none."""
    # By the index each user would be looked up by itself: for a million of one tenant that takes 20 times as long.
    latest = "SELECT coalesce(max(first_seen_at), 0) FROM users NOT INDEXED WHERE tenant = ?"
    return from_ms(connection.execute(latest, (tenant,)).fetchone()[0])


# -- signing secrets -----------------------------------------------------------------------------------------


def add_secret(
    connection: sqlite3.Connection, secret: SigningSecret, retire_others_at: datetime, now: datetime
) -> None:
    """See `Directory.add_secret`. Those that are good for nothing any more are not kept."""
    connection.execute(
        "UPDATE signing_secrets SET retired_at = min(coalesce(retired_at, ?1), ?1)",
        (to_ms(retire_others_at),),
    )
    connection.execute("DELETE FROM signing_secrets WHERE retired_at <= ?", (to_ms(now),))
    connection.execute(
        "INSERT INTO signing_secrets (id, secret, created_at, retired_at) VALUES (?, ?, ?, ?)",
        (secret.id, secret.secret, to_ms(secret.created_at), _ms(secret.retired_at)),
    )
    raise_sequence(connection)


def _secrets(connection: sqlite3.Connection, now: datetime) -> tuple[SigningSecret, ...]:
    rows = connection.execute(
        "SELECT id, secret, created_at, retired_at FROM signing_secrets"
        " WHERE retired_at IS NULL OR retired_at > ? ORDER BY created_at DESC, key DESC",
        (to_ms(now),),
    )
    return tuple(
        SigningSecret(id_, secret, from_ms(created_at), _instant(retired_at))
        for id_, secret, created_at, retired_at in rows
    )


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else to_ms(instant)


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else from_ms(ms)
