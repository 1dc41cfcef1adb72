"""Which user is listening: from a login and a password to an identity.

Verifying a password costs some 50 ms of a core by design (argon2, RFC 9106): it runs in threads of its own,
few at a time, and those who wait for it are bounded.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from server.callers import Caller
from server.errors import BadCredentials, Busy

DEFAULT_TENANT = "default"

DEMO_USERS = ("alice", "bob")
"""Users of the example page: the password is the name. They exist in DEBUG, for callers on this machine."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client turned out to be."""

    tenant: str
    user_id: str


def hash_password(password: str) -> str:
    """An argon2id hash in the PHC string format, as `[USERS-…]` holds them. Takes some 50 ms of a core."""
    return argon2.PasswordHasher().hash(password)


class PasswordChecks:
    """Verifies passwords in `workers` threads; at most `max_waiting` checks wait for one."""

    def __init__(self, workers: int, max_waiting: int) -> None:
        self._hasher = argon2.PasswordHasher()
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="password")
        self._max_unfinished = workers + max_waiting
        self._unfinished = 0

    async def verify(self, hashed: str, password: str) -> bool:
        """Whether the password has this hash. Raises `Busy` when too many checks wait already."""
        if self._unfinished >= self._max_unfinished:
            raise Busy("too many sign-ins at this moment; try again")
        self._unfinished += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, self._verify, hashed, password
            )
        finally:
            self._unfinished -= 1

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    def close(self) -> None:
        """Begin no further check; those that run end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Authenticator:
    """Knows the users of config.ini (`users`: name -> argon2 hash) and, if `has_demo`, the demo users."""

    def __init__(self, users: Mapping[str, str], has_demo: bool, checks: PasswordChecks) -> None:
        self._users = users
        self._has_demo = has_demo
        self._checks = checks
        # What unknown logins are checked against, so that they take as long as known ones.
        self._nobodys_hash = next(iter(users.values()), "") or hash_password("")

    async def authenticate(self, login: str, password: str, caller: Caller) -> Identity:
        """The identity behind a login. Raises `BadCredentials`, or `Busy`."""
        hashed = self._users.get(login)
        if hashed is None and self._is_demo_user(login, password, caller):
            return Identity(DEFAULT_TENANT, login)
        is_right = await self._checks.verify(hashed or self._nobodys_hash, password)
        if hashed is None or not is_right:
            raise BadCredentials()
        return Identity(DEFAULT_TENANT, login)

    def _is_demo_user(self, login: str, password: str, caller: Caller) -> bool:
        return (
            self._has_demo
            and caller.is_loopback
            and login in DEMO_USERS
            and hmac.compare_digest(login.encode(), password.encode())
        )
