"""Erasing a removed tenant from the embedded store, step by step: what a step does on a connection.

Its documents go first, user by user, then its open broadcasts, then the notifications that both leave behind, then the
rest. No step depends on another: after a crash, or when a server that has not heard of the removal stores something
more, the next one goes on."""

from __future__ import annotations

import sqlite3

from server.errors import NotFound
from server.store import sqlite_once, sqlite_sign_outs
from server.store.sqlite_access import is_removed, raise_sequence


def erase_some(connection: sqlite3.Connection, tenant: str, limit: int) -> tuple[int, bool]:
    """A step of at most `limit` rows of a kind: how many documents it has erased, and whether nothing is left. Raises
    `NotFound` if there is no removed tenant of that name."""
    if not is_removed(connection, tenant):
        raise NotFound(f"there is no removed tenant {tenant!r}")
    users = connection.execute(
        "SELECT key FROM users WHERE tenant = ? ORDER BY user_id LIMIT ?", (tenant, limit)
    ).fetchall()
    if users:
        return _erase_users(connection, tenant, [key for (key,) in users], limit), False
    for erase_rest in (
        _end_broadcasts,
        _erase_orphans,
        _erase_ways,
        sqlite_sign_outs.erase,
        sqlite_once.erase,
    ):
        if erase_rest(connection, tenant, limit):
            return 0, False
    connection.execute("DELETE FROM api_keys WHERE tenant = ?", (tenant,))
    connection.execute("DELETE FROM retention WHERE tenant = ?", (tenant,))
    connection.execute("DELETE FROM tenants WHERE name = ?", (tenant,))
    raise_sequence(connection)
    return 0, True


def _erase_users(connection: sqlite3.Connection, tenant: str, users: list[int], limit: int) -> int:
    """Their documents, up to `limit`, and each user of whom all are gone: never a user before the documents, because
    the next new user may get the same key."""
    erased = 0
    for user in users:
        documents = connection.execute(
            "SELECT id, notification FROM documents WHERE user = ? LIMIT ?", (user, limit - erased)
        ).fetchall()
        connection.executemany(
            "INSERT OR IGNORE INTO orphans VALUES (?, ?)", ((tenant, key) for _, key in documents)
        )
        connection.executemany(
            "DELETE FROM documents WHERE user = ? AND id = ?", ((user, id_) for id_, _ in documents)
        )
        erased += len(documents)
        if erased >= limit:
            break
        connection.execute("DELETE FROM users WHERE key = ?", (user,))
    return erased


def _end_broadcasts(connection: sqlite3.Connection, tenant: str, limit: int) -> int:
    keys = connection.execute(
        "SELECT notification FROM broadcasts WHERE tenant = ? LIMIT ?", (tenant, limit)
    ).fetchall()
    connection.executemany("INSERT OR IGNORE INTO orphans VALUES (?, ?)", ((tenant, key) for (key,) in keys))
    connection.executemany("DELETE FROM broadcasts WHERE notification = ?", keys)
    return len(keys)


def _erase_orphans(connection: sqlite3.Connection, tenant: str, limit: int) -> int:
    """Notifications of whose documents none is left, and their mail."""
    keys = connection.execute(
        "SELECT notification FROM orphans WHERE tenant = ? LIMIT ?", (tenant, limit)
    ).fetchall()
    for statement in (
        "DELETE FROM mails WHERE notification = ?",
        "DELETE FROM mail_recipients WHERE notification = ?",
        "DELETE FROM refused_mail WHERE notification = ?",
        "DELETE FROM notifications WHERE key = ?",
    ):
        connection.executemany(statement, keys)
    connection.executemany(
        "DELETE FROM orphans WHERE tenant = ? AND notification = ?", ((tenant, key) for (key,) in keys)
    )
    return len(keys)


def _erase_ways(connection: sqlite3.Connection, tenant: str, limit: int) -> int:
    return connection.execute(
        "DELETE FROM ways WHERE (tenant, user_id, way) IN"
        " (SELECT tenant, user_id, way FROM ways WHERE tenant = ? LIMIT ?)",
        (tenant, limit),
    ).rowcount
