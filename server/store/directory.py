"""What the core asks of a store about tenants, their keys, the users known of each, and who was signed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.grants import ApiKey, Keep, KnownUser, SigningSecret, SignOut, Tenant

STEP = timedelta(milliseconds=1)
"""Between two sign-outs of a user at least."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what, at one moment. `sequence`: the number of that moment. `tenants`: the active ones. `keys`: those
    of active tenants that are not revoked (they may have expired). `secrets`: newest first, those that are still good
    for checking."""

    sequence: int
    tenants: tuple[Tenant, ...]
    keys: tuple[ApiKey, ...]
    secrets: tuple[SigningSecret, ...]


@dataclass(frozen=True, slots=True)
class Sequences:
    """The numbers of the last changes: of what `Directory.access` returns, and of the sign-outs."""

    access: int
    sign_outs: int


class SignOutCursor:
    """A place in the row of sign-outs. What it holds is the business of the store that made it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SignOutPage:
    """Some sign-outs. `cursor`: where the next ones begin. `is_last`: there were no more at that moment."""

    sign_outs: tuple[SignOut, ...]
    cursor: SignOutCursor
    is_last: bool


class Directory(Protocol):
    """Tenants, their keys, the users known of each, and who was signed out.

    May be changed by another process while a server runs: each change of what `access` returns, and each sign-out,
    raises its number of `sequences`, in the same transaction where there are any, else right after it, so that servers
    see it by asking (and read in any case now and then). `at` and all instants: aware UTC, whole milliseconds."""

    async def sequences(self) -> Sequences:
        """The numbers of the last changes. Cheap: asked several times a second."""

    async def access(self) -> Access:
        """All of it, as of one number (or later: then asking again finds a higher one)."""

    # -- tenants ---------------------------------------------------------------------------------------------
    async def tenants(self) -> list[Tenant]:
        """Those removed, too; by name."""

    async def add_tenant(self, tenant: Tenant, key: ApiKey) -> None:
        """With its first key, both or none. Raises `Conflict` if one of that name is there, also a removed one whose
        data is not erased."""

    async def set_keep(self, name: str, keep: Keep) -> None:
        """Keep what the tenant has for so long from now on. Raises `NotFound` if no active one has that name."""

    async def remove_tenant(self, name: str, at: datetime) -> None:
        """End its access: it is no longer active, its keys are revoked. Its data stays until `erase_tenant`. Raises
        `NotFound` if there is no active one of that name."""

    async def erase_tenant(self, name: str, limit: int) -> int:
        """Erase up to about `limit` documents of a removed tenant, and what goes with them (notifications, mail that is
        owed); once there are none left, its users, keys and name. How many documents were erased; call again until it
        is 0. Raises `NotFound` if there is no removed tenant of that name."""

    # -- keys ------------------------------------------------------------------------------------------------
    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        """Of one tenant, or of all; the revoked ones, too. By tenant, then oldest first."""

    async def add_key(self, key: ApiKey) -> None:
        """Raises `NotFound` if its tenant is not active, `Conflict` if the tenant has a key of that name that is not
        revoked."""

    async def revoke_key(self, tenant: str, name: str, at: datetime) -> ApiKey:
        """The key of that name that was not revoked, as it is now. Raises `NotFound`."""

    async def note_key_use(self, used_at: Mapping[str, datetime]) -> None:
        """Remember when keys (by id) were last used; a time before the known one changes nothing. No change of
        sequence."""

    # -- users -----------------------------------------------------------------------------------------------
    async def note_users(self, seen_at: Mapping[tuple[str, str], datetime]) -> None:
        """Remember users (tenant, user id) who have joined, and when. No change of sequence. Who is notified is
        remembered by `Store.add` itself."""

    async def users(self, tenant: str, *, after: str | None, limit: int) -> list[KnownUser]:
        """The known users of a tenant, in the order of their ids, those beyond `after` only."""

    async def known_since(self, tenant: str, user_id: str) -> datetime | None:
        """When the user was first notified or joined, as far as that is written down; None: never."""

    # -- signing out -----------------------------------------------------------------------------------------
    async def sign_out(self, tenant: str, user_id: str, at: datetime) -> None:
        """Void all that proved before `at` who this user is; if they were signed out then or later already, before
        `STEP` after that: one that is written down later counts as later. The user need not be known."""

    async def sign_outs(self, after: SignOutCursor | None, limit: int) -> SignOutPage:
        """Up to `limit` of them, in any order: those written down since the page that ended with this cursor; None: the
        last of each user. Who goes on from cursor to cursor gets each at least once; where it is in doubt what is new,
        some come again. What is new costs no more where there are many others."""

    async def forget_sign_outs(self, before: datetime) -> None:
        """Drop those from before this instant. No change of sequence."""

    # -- signing secrets -------------------------------------------------------------------------------------
    async def add_secret(self, secret: SigningSecret, *, retire_others_at: datetime) -> None:
        """Sign with this one from now on; the others are good for checking until then (unless they end earlier)."""
