"""An `Authenticator` as the app makes it, with tenants that a test changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from server.auth import Authenticator, Memory, PasswordMethod, TokenMethod
from server.credentials import CredentialCache
from server.grants import DEFAULT_TENANT
from server.guessing import Brake
from server.messages import now
from server.passwords import PasswordChecks
from server.users import ConfigUsers, DemoUsers
from tests.support.clock import Clock

T = TypeVar("T")

CACHE_S = 300.0


@dataclass
class KnownTenants:
    """The `auth.TenantsView` of a test."""

    names: set[str] = field(default_factory=lambda: {DEFAULT_TENANT})
    sign_outs: dict[tuple[str, str], datetime] = field(default_factory=dict)
    heard_at: dict[tuple[str, str], datetime] = field(default_factory=dict)
    voids: dict[tuple[str, str], datetime] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def is_active(self, tenant: str) -> bool:
        return tenant in self.names

    def signed_out_at(self, tenant: str, user_id: str, *, by_own_clock: bool = False) -> datetime | None:
        user = (tenant, user_id)
        return self.heard_at.get(user) if by_own_clock and user in self.heard_at else self.sign_outs.get(user)

    def voided_at(self, tenant: str, user_id: str) -> datetime | None:
        return self.voids.get((tenant, user_id))

    def has_key(self, key_id: str) -> bool:
        return key_id in self.keys


class SignInDesk:
    """All parts of the sign-in. `users`: of config.ini. More methods come after those."""

    def __init__(
        self,
        users: Mapping[str, str],
        *,
        has_demo: bool = False,
        password_methods: Sequence[PasswordMethod] = (),
        token_methods: Sequence[TokenMethod] = (),
        memories: Sequence[Memory] = (),
        default_tenant: str | None = DEFAULT_TENANT,
        now: Callable[[], datetime] = now,
    ) -> None:
        self.clock = Clock()
        self.tenants = KnownTenants()
        self.cache = CredentialCache(CACHE_S, 1000, self.clock)
        self.checks = PasswordChecks(workers=2, max_waiting=1000, cache=self.cache)
        self.users = ConfigUsers(users, self.checks)
        self.tenants.keys |= self.users.key_ids
        self.authenticator = Authenticator(
            [*([DemoUsers(self.users)] if has_demo else []), self.users, *password_methods],
            token_methods,
            self.tenants,
            default_tenant=default_tenant,
            cache=self.cache,
            brake=Brake(1000, self.clock, self.clock.sleep),
            memories=memories,
            clock=now,
        )

    async def finish(self, work: asyncio.Future[T]) -> T:
        """What this ends with. Time passes as needed, and none while passwords are checked."""
        while not work.done():
            await self.clock.settle()
            if not self.checks._unfinished:
                await self.clock.turn_to_next()
        return await work

    async def close(self) -> None:
        await self.authenticator.close()
        self.checks.close()
