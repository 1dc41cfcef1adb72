"""The users that need nothing outside: those of config.ini, and those of the example page."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from server.auth import Proof
from server.callers import Caller
from server.passwords import PasswordChecks, decoy

DEMO_USERS = ("alice", "bob")
"""Users of the example page: the password is the name. They exist in DEBUG, for callers on this machine."""


class ConfigUsers:
    """The `auth.PasswordMethod` of `[USERS]`. `users`: name -> hash. The name is login and user id in one. `tenant`:
    theirs."""

    name = "config"

    def __init__(self, users: Mapping[str, str], checks: PasswordChecks, tenant: str | None = None) -> None:
        self._checks = checks
        self._users: dict[str, str] = {}
        self.replace(users, tenant)

    def __contains__(self, login: object) -> bool:
        return login in self._users

    async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
        """As `auth.PasswordMethod`. With no users at all there is nothing to hide, and nothing is verified."""
        hashed = self._users.get(login)
        if hashed is not None:
            is_right = await self._checks.verify(hashed, password, user_id=login)
            # Meanwhile it may have been changed: what was right before is not any more.
            is_valid = is_right and self._users.get(login) == hashed
            return Proof(login, key_id=self._key_ids[login]) if is_valid else None
        if self._users:
            await self._checks.verify(decoy(login, self._hashes), password)
        return None

    @property
    def key_ids(self) -> frozenset[str]:
        """Of the passwords there are: what was proved with another one counts no more, nor what was made of that."""
        return frozenset(self._key_ids.values())

    def replace(self, users: Mapping[str, str], tenant: str | None = None) -> None:
        """Go by these from now on. Passwords of users who changed or are gone are no longer remembered."""
        for name, hashed in self._users.items():
            if users.get(name) != hashed:
                self._checks.forget(name)
        self._users = dict(users)
        self._hashes = tuple(users.values())
        self._key_ids = {name: _key_id(tenant or "", name, hashed) for name, hashed in users.items()}


def _key_id(*what: str) -> str:
    """By which a stored password is known, in tokens, too: a hash of its hash, which is salted, tells nothing."""
    return "password " + hashlib.sha256("\0".join(what).encode()).hexdigest()[:32]


class DemoUsers:
    """The `auth.PasswordMethod` of the example page, for DEBUG only. A user of config.ini takes the place of the demo
    user of that name: whoever writes `alice` there has closed this door."""

    name = "demo"

    def __init__(self, users: ConfigUsers) -> None:
        self._users = users

    async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
        """As `auth.PasswordMethod`; callers that are not on this machine are never one of them. Costs nothing, so it is
        best asked first."""
        if not caller.is_loopback or login not in DEMO_USERS or login in self._users:
            return None
        is_right = hmac.compare_digest(login.encode(), password.encode())
        return Proof(login) if is_right else None
