"""Who may do what, as this node knows it: tenants, their keys, and who was signed out.

All of it lies in the store, where any process may change it; this holds it in memory, so that checking a key costs no
query, and asks a few times a second whether it has changed. While the store is away, what was known last holds.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from server.bus import ACCESS_CHANGED, USERS_SIGNED_OUT, tell
from server.errors import StoreUnavailable
from server.flights import Gathering
from server.grants import ApiKey, SigningSecret, SignOut, Tenant, hash_secret
from server.messages import now
from server.rooms import Room, SignIn
from server.sign_outs import SignOuts
from server.store import STEP, Access, Directory
from server.tasks import Tasks
from server.wire import REVOKED, SIGNED_OUT, TOKEN_EXPIRED, CloseReason

logger = logging.getLogger(__name__)

POLL_S = 0.3
"""Between two looks for changes: with the time that a look and the closing of connections take, a revoked key opens
nothing after a second."""

READ_ANYWAY_S = 30.0
"""After so long tenants and keys are read again, and what is new of sign-outs, whatever the sequences say."""

WRITE_USE_S = 5.0
"""Between two times that the last use of keys and the last joins of users are written down: a crash forgets so much."""

MAX_NOTED = 100_000
"""Users whose join is to be written down. More at once, and the rest waits for their next join."""

_NOTHING = Access(-1, (), (), ())


class Tenants:
    """One for each node. `directory`: that of the store, to be used while it is open."""

    def __init__(self, directory: Callable[[], Directory], clock: Callable[[], datetime] = now) -> None:
        self._directory = directory
        self._clock = clock
        self._access = _NOTHING
        self._began_at: dict[str, datetime] = {}
        self._keys: dict[str, ApiKey] = {}
        self._key_ids: dict[str, ApiKey] = {}
        self._passwords: frozenset[str] = frozenset()
        self._sign_outs = SignOuts(directory, self._tell_sign_outs, clock)
        self._used_keys: dict[str, datetime] = {}
        self._seen_users: dict[tuple[str, str], datetime] = {}
        self._writing = asyncio.Lock()
        self._joins = Gathering("writing joins", self._write_joins)

    # -- what is known ---------------------------------------------------------------------------------------
    def is_active(self, tenant: str) -> bool:
        return tenant in self._began_at

    @property
    def active(self) -> tuple[Tenant, ...]:
        """Those that are."""
        return self._access.tenants

    def find_key(self, secret: str) -> ApiKey | None:
        """The key with this secret, if it opens anything now; its use is noted."""
        hashed = hash_secret(secret)
        key = self._keys.get(hashed)
        at = self._clock()
        if key is None or not hmac.compare_digest(key.hashed, hashed) or not key.is_valid(at):
            return None
        self._used_keys[key.id] = at
        return key

    @property
    def has_keys(self) -> bool:
        """Whether there is any key at all."""
        return bool(self._keys)

    def has_key(self, key_id: str) -> bool:
        """Whether the key, or the password, with this id opens anything now."""
        key = self._key_ids.get(key_id)
        return key_id in self._passwords if key is None else key.is_valid(self._clock())

    def key_expires_at(self, key_id: str) -> datetime | None:
        """When the key with this id ends by itself; None: never, or it is not there."""
        key = self._key_ids.get(key_id)
        return None if key is None else key.expires_at

    def signed_out_at(self, tenant: str, user_id: str, *, by_own_clock: bool = False) -> datetime | None:
        """When the user was last signed out everywhere; None: not lately. `by_own_clock`: as of `SignOuts.at`."""
        return self._sign_outs.at(tenant, user_id, by_own_clock=by_own_clock)

    def voided_at(self, tenant: str, user_id: str) -> datetime | None:
        """When all tokens that were made here for this user were last void: at a sign-out, or when the tenant began, as
        what is older is another's that had its name. None: never, as far as is known."""
        began_at, signed_out_at = self._began_at.get(tenant), self.signed_out_at(tenant, user_id)
        if began_at is None or signed_out_at is None:
            return began_at or signed_out_at
        # A tenant that began by a clock that was ahead: tokens are dated a step after it until then.
        return max(signed_out_at, began_at + STEP)

    @property
    def secrets(self) -> tuple[SigningSecret, ...]:
        """That sign the tokens made here; newest first."""
        return self._access.secrets

    def has_secret(self, secret_id: str) -> bool:
        """Whether tokens that this secret has signed still count."""
        return any(secret.id == secret_id for secret in self.secrets)

    def why_over(self, room: Room, sign_in: SignIn) -> CloseReason | None:
        """Why somebody may be in this room no longer; None: they may."""
        tenant, user_id = room
        if not self.is_active(tenant) or (sign_in.key_id is not None and not self.has_key(sign_in.key_id)):
            return REVOKED
        if sign_in.secret_id is None:
            over_at = self.signed_out_at(tenant, user_id, by_own_clock=sign_in.by_own_clock)
        elif self.has_secret(sign_in.secret_id):
            over_at = self.voided_at(tenant, user_id)
        else:
            # Unlike those above, who is honest may come back: with a token signed by the secret of now.
            return TOKEN_EXPIRED
        return SIGNED_OUT if over_at is not None and sign_in.proved_at <= over_at else None

    def note_user(self, tenant: str, user_id: str) -> None:
        """A user has joined."""
        if len(self._seen_users) < MAX_NOTED:
            self._seen_users[tenant, user_id] = self._clock()

    # -- changes ---------------------------------------------------------------------------------------------
    def use_passwords(self, key_ids: frozenset[str]) -> None:
        """Those of config.ini are these from now on (`ConfigUsers.key_ids`)."""
        self._passwords = key_ids

    async def open(self) -> None:
        """Read everything for the first time. Raises `StoreUnavailable`."""
        sequences = await self._directory().sequences()
        self._use(await self._directory().access())
        await self._sign_outs.open(sequences.sign_outs)

    async def sign_out(self, tenant: str, user_id: str) -> None:
        """Sign a user out everywhere: this node's connections are closed when this returns, those of others within a
        second. Raises `StoreUnavailable`."""
        at, known_at = self._clock(), self.signed_out_at(tenant, user_id)
        # What came after one that another machine wrote down, whose clock is ahead, is to end, too.
        sign_out = SignOut(tenant, user_id, at if known_at is None else max(at, known_at + STEP))
        await self._directory().sign_out(tenant, user_id, sign_out.at)
        # Nothing is read for it: however many are signed out at once, that costs no more than each of them.
        self._sign_outs.take([sign_out])

    def start(self, tasks: Tasks) -> None:
        """Follow the changes that other processes make, and write down what was used, as tasks of this owner, until
        cancelled."""
        # Apart: thousands who join at once take seconds to write down, going over all sign-outs may take minutes, and a
        # revoked key must not wait for that.
        tasks.start(self._follow(), "following")
        tasks.start(self._keep_writing(), "writing use")
        tasks.start(self._sign_outs.run(), "going over sign-outs")

    async def close(self, deadline_s: float) -> None:
        """Let the joins for which somebody has waited be written down for so many seconds, then give it up: they stay
        noted."""
        await self._joins.finish(deadline_s)

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(WRITE_USE_S)
            try:
                await self.write_down()
            except StoreUnavailable as error:
                logger.debug("what was used is written down later: %s", error)
            except Exception:
                logger.exception("what was used could not be written down")

    async def _follow(self) -> None:
        read_at = time.monotonic()
        is_away = is_behind = False
        while True:
            await asyncio.sleep(0 if is_behind else POLL_S)
            moment = time.monotonic()
            is_behind, is_due = False, moment - read_at >= READ_ANYWAY_S
            try:
                is_behind = await self._read_changes(anyway=is_due)
                is_away = False
                read_at = moment if is_due else read_at
            except StoreUnavailable as error:
                if not is_away:
                    logger.warning("changes of tenants and keys cannot be followed: %s", error)
                is_away = True
            except Exception:
                # A bug met by one round must not end all that follow.
                logger.exception("tenants and keys could not be followed")

    async def write_down(self) -> None:
        """Write when keys were last used, and users last joined, so far. Raises `StoreUnavailable`: nothing is
        forgotten."""
        # In turn: what another call has taken, and not written yet, is to be written when this one returns.
        async with self._writing:
            await self._write_down()

    async def write_user(self, tenant: str, user_id: str) -> None:
        """Return when it is written down that this user has joined, as `note_user` was told; of many who join at once a
        few writes do. Raises `StoreUnavailable`."""
        await self._joins.put((tenant, user_id))

    async def _write_joins(self, users: Sequence[tuple[str, str]]) -> Sequence[None]:
        async with self._writing:
            if not self._seen_users.keys().isdisjoint(users):
                await self._write_down()
        return [None] * len(users)

    async def _write_down(self) -> None:
        directory = self._directory()
        used, self._used_keys = self._used_keys, {}
        seen, self._seen_users = self._seen_users, {}
        try:
            if used:
                await directory.note_key_use(used)
                used = {}
            if seen:
                await directory.note_users(seen)
                seen = {}
        finally:
            self._used_keys = used | self._used_keys
            self._seen_users = seen | self._seen_users

    async def _read_changes(self, *, anyway: bool) -> bool:
        """Read what has changed, of sign-outs a portion; whether there are more. `anyway`: also where the sequences are
        the same."""
        directory = self._directory()
        sequences = await directory.sequences()
        if anyway or sequences.access != self._access.sequence:
            self._use(await directory.access())
        if anyway or sequences.sign_outs != self._sign_outs.sequence:
            await self._sign_outs.read_new(sequences.sign_outs)
        return sequences.sign_outs != self._sign_outs.sequence

    def _use(self, access: Access) -> None:
        if access == self._access:
            return
        old, self._access = self._access, access
        # Not the whole records: how long notifications are kept may change, and a tenant stays who it is.
        before, after = ({(each.name, each.created_at) for each in known.tenants} for known in (old, access))
        self._sign_outs.drop(
            begun=[name for name, _ in after - before], ended=[name for name, _ in before - after]
        )
        self._began_at = {tenant.name: tenant.created_at for tenant in access.tenants}
        self._keys = {key.hashed: key for key in access.keys}
        self._key_ids = {key.id: key for key in self._keys.values()}
        # Else they would be written down when their tenant is erased, and belong to the next one of its name.
        self._seen_users = {user: at for user, at in self._seen_users.items() if user[0] in self._began_at}
        tell(ACCESS_CHANGED, self, tenants=self)

    def _tell_sign_outs(self, sign_outs: Sequence[SignOut]) -> None:
        tell(USERS_SIGNED_OUT, self, tenants=self, sign_outs=sign_outs)
