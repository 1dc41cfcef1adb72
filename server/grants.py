"""Who may do what: tenants, their keys and scopes, and what becomes of a key. Pure records, and how secrets are made.

A key is 43 characters of chance. Of it only the hash is kept (SHA-256: a secret of 256 random bits needs no slow one,
there is nothing to guess), beside what people know it by: its tenant and its name.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

DEFAULT_TENANT = "default"
"""The tenant of all that was there before there were tenants. It cannot be removed."""

NO_TENANT = "none"
"""What config calls having no default tenant; so no tenant is called that."""

MAX_NAME_CHARS = 64

_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")


class Scope(StrEnum):
    """What a credential of a backend allows, within its tenant."""

    PUBLISH = "publish"
    """Notify users."""
    LISTEN = "listen"
    """Let users listen: make tokens for them, whoever they are; and all that `BROADCASTS` allows."""
    ADMIN = "admin"
    """Sign users out, see and change the mail that is owed, see the tenant's figures."""
    BROADCASTS = "broadcasts"
    """Hear what is for everybody, and nothing else: for keys that lie open in a page."""


_SCOPES: Mapping[str, Scope] = {scope.value: scope for scope in Scope}


def scopes_of(words: Iterable[object]) -> frozenset[Scope]:
    """Those of these that there are. Others, as of a later version or of other services, allow nothing here."""
    return frozenset(_SCOPES[word] for word in words if isinstance(word, str) and word in _SCOPES)


ALL_SCOPES = frozenset({Scope.PUBLISH, Scope.LISTEN, Scope.ADMIN})
"""All that can be allowed."""


FOREVER = 0
"""As a number of seconds for which something is kept."""


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many seconds a tenant's notifications are kept after they were created, and those that their users
    deleted after that (`FOREVER`: for ever). None: as the configuration says."""

    documents_s: int | None = None
    tombstones_s: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose users, documents, keys and figures are apart from all others'. `removed_at` None: active."""

    name: str
    created_at: datetime
    removed_at: datetime | None = None
    keep: Keep = Keep()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. `name` is unique among the tenant's keys that are not revoked. Instants: aware UTC;
    None: never."""

    id: str
    tenant: str
    name: str
    hashed: str = field(repr=False)
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, at: datetime) -> bool:
        """Whether it opens anything at this instant."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True)
class SignOut:
    """A user was signed out everywhere: what was proved before `at` counts no more."""

    tenant: str
    user_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user that the server has heard of. `first_seen_at`: when they were first notified or joined;
    `last_seen_at`: when they last joined, None if never."""

    tenant: str
    user_id: str
    first_seen_at: datetime
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """Signs the tokens that the server makes itself. The newest signs; one that was replaced is good for checking until
    `retired_at` (None: not replaced)."""

    id: str
    secret: str = field(repr=False)
    created_at: datetime
    retired_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What a backend's credential turned out to allow. `key_id` None: it is no key of the store. `label` names the
    credential for people and figures (`key ci`, `certificate billing`, `this machine`); never a secret. `is_keyless`:
    it is for being on this machine, and nothing was shown."""

    tenant: str
    scopes: frozenset[Scope]
    label: str
    key_id: str | None = None
    is_keyless: bool = False

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes


def is_name(text: str) -> bool:
    """Whether a tenant or a key may be called so: up to 64 of `a-z 0-9 . _ -`, beginning with a letter or digit."""
    return _NAME.fullmatch(text) is not None and text != NO_TENANT


def new_secret() -> str:
    """A fresh key or signing secret: 43 characters of `A-Z a-z 0-9 - _`, 256 bits."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """The hash by which a key is kept and found: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
