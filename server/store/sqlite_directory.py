"""Tenants, keys, known users and sign-outs in the embedded store. Keeps the `Directory` contract, for the server that
has the file open (`sqlite`) and for a process beside it (`sqlite_beside`).

What the verbs do in the file is in `sqlite_access`, `sqlite_sign_outs` and `sqlite_erasing`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from server.grants import ApiKey, Keep, KnownUser, SigningSecret, Tenant
from server.store import (
    Access,
    Sequences,
    SignOutCursor,
    SignOutPage,
    sqlite_access,
    sqlite_erasing,
    sqlite_mail,
    sqlite_sign_outs,
)
from server.store.sqlite_threads import Work

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

ROWS_PER_TRANSACTION = 1000
"""More are written in several transactions: requests wait in between, not behind all of it."""


class Run(Protocol):
    """Runs a work on a connection, in a transaction if it is one that writes."""

    def __call__(self, work: Work[T], /) -> Awaitable[T]: ...


class SQLiteDirectory:
    """See `Directory`."""

    def __init__(self, write: Run, read: Run, clock: Callable[[], datetime]) -> None:
        self._write = write
        self._read = read
        self._clock = clock

    async def sequences(self) -> Sequences:
        """See `Directory.sequences`."""
        return await self._read(sqlite_access.sequences)

    async def access(self) -> Access:
        """See `Directory.access`."""
        return await self._read(lambda c: sqlite_access.access(c, self._clock()))

    # -- tenants ---------------------------------------------------------------------------------------------
    async def tenants(self) -> list[Tenant]:
        """See `Directory.tenants`."""
        return await self._read(sqlite_access.tenants)

    async def add_tenant(self, tenant: Tenant, key: ApiKey) -> None:
        """See `Directory.add_tenant`."""
        await self._write(lambda c: sqlite_access.add_tenant(c, tenant, key))

    async def set_keep(self, name: str, keep: Keep) -> None:
        """See `Directory.set_keep`."""
        await self._write(lambda c: sqlite_access.set_keep(c, name, keep))

    async def remove_tenant(self, name: str, at: datetime) -> None:
        """See `Directory.remove_tenant`."""

        def work(connection: sqlite3.Connection) -> None:
            sqlite_access.remove_tenant(connection, name, at)
            sqlite_mail.hold(connection, name)

        await self._write(work)

    async def erase_tenant(self, name: str, limit: int) -> int:
        """See `Directory.erase_tenant`."""
        at_once = min(limit, ROWS_PER_TRANSACTION)
        while True:
            erased, is_done = await self._write(lambda c: sqlite_erasing.erase_some(c, name, at_once))
            if erased or is_done:
                return erased

    # -- keys ------------------------------------------------------------------------------------------------
    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        """See `Directory.keys`."""
        return await self._read(lambda c: sqlite_access.keys(c, tenant))

    async def add_key(self, key: ApiKey) -> None:
        """See `Directory.add_key`."""
        await self._write(lambda c: sqlite_access.add_key(c, key))

    async def revoke_key(self, tenant: str, name: str, at: datetime) -> ApiKey:
        """See `Directory.revoke_key`."""
        return await self._write(lambda c: sqlite_access.revoke_key(c, tenant, name, at))

    async def note_key_use(self, used_at: Mapping[str, datetime]) -> None:
        """See `Directory.note_key_use`."""
        for some in _portions(used_at):
            await self._write(partial(sqlite_access.note_key_use, used_at=some))

    # -- users -----------------------------------------------------------------------------------------------
    async def note_users(self, seen_at: Mapping[tuple[str, str], datetime]) -> None:
        """See `Directory.note_users`."""
        for some in _portions(seen_at):
            await self._write(partial(sqlite_access.note_users, seen_at=some))

    async def users(self, tenant: str, *, after: str | None, limit: int) -> list[KnownUser]:
        """See `Directory.users`."""
        return await self._read(lambda c: sqlite_access.users(c, tenant, after, limit))

    async def known_since(self, tenant: str, user_id: str) -> datetime | None:
        """See `Directory.known_since`."""
        return await self._read(lambda c: sqlite_access.known_since(c, tenant, user_id))

    # -- signing out -----------------------------------------------------------------------------------------
    async def sign_out(self, tenant: str, user_id: str, at: datetime) -> None:
        """See `Directory.sign_out`."""
        await self._write(lambda c: sqlite_sign_outs.sign_out(c, tenant, user_id, at))

    async def sign_outs(self, after: SignOutCursor | None, limit: int) -> SignOutPage:
        """See `Directory.sign_outs`."""
        return await self._read(lambda c: sqlite_sign_outs.page(c, after, limit))

    async def forget_sign_outs(self, before: datetime) -> None:
        """See `Directory.forget_sign_outs`."""
        while await self._write(lambda c: sqlite_sign_outs.forget(c, before, ROWS_PER_TRANSACTION)):
            pass

    # -- signing secrets -------------------------------------------------------------------------------------
    async def add_secret(self, secret: SigningSecret, *, retire_others_at: datetime) -> None:
        """See `Directory.add_secret`."""
        await self._write(lambda c: sqlite_access.add_secret(c, secret, retire_others_at, self._clock()))


def _portions(values: Mapping[K, V]) -> Iterator[dict[K, V]]:
    items = iter(values.items())
    while some := dict(islice(items, ROWS_PER_TRANSACTION)):
        yield some
