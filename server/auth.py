"""Which user is listening: asks the configured methods in their order, and says who somebody is, or that they are not.

What a method finds out is a `Proof`; which tenant that means, and whether it still counts, is decided here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Protocol

from server import claims
from server.bus import SIGN_IN_FAILED, SIGNED_IN, tell
from server.callers import Caller
from server.claims import TOKEN_WRONG
from server.commands import Join, JoinByToken
from server.credentials import CredentialCache
from server.errors import AuthUnavailable, BadCredentials, ServerError, TokenExpired
from server.flights import SingleFlight
from server.guessing import Brake
from server.messages import now
from server.rooms import SignIn

logger = logging.getLogger(__name__)

UNAVAILABLE = "what decides about this sign-in cannot be asked now; try again"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a method found out. `tenant` None: it said none. Instants: aware UTC. `expires_at` None: it does not end by
    itself; `issued_at` None: it was made just now; `by_own_clock`: that time is of this node's clock. `key_id`: of the
    API key, or the password of config.ini, that it was made with, `secret_id`: of the secret of ours that signed it;
    None: none."""

    user_id: str
    tenant: str | None = None
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    key_id: str | None = None
    secret_id: str | None = None
    by_own_clock: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client turned out to be, and until when (None: as long as they like). The other fields: as of a `Proof`."""

    tenant: str
    user_id: str
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    key_id: str | None = None
    secret_id: str | None = None
    by_own_clock: bool = False


def proved_now(identity: Identity) -> Identity:
    """The same, but who does not say when they proved it has proved it at this moment: what comes later may end it."""
    return identity if identity.issued_at else replace(identity, issued_at=now(), by_own_clock=True)


def sign_in_of(identity: Identity) -> SignIn:
    """By what somebody is in their room; who does not say when they proved it has proved it now."""
    is_ours = identity.by_own_clock or identity.issued_at is None
    return SignIn(identity.issued_at or now(), identity.key_id, identity.secret_id, is_ours)


class PasswordMethod(Protocol):
    """A way to check a login and a password."""

    name: str

    async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
        """The proof; None if the login is unknown or the password wrong, which takes about as long as a right one.
        Raises `Busy` when too many checks wait, `AuthUnavailable` when what decides cannot be asked."""


class TokenMethod(Protocol):
    """A way to check a token."""

    name: str

    async def check_token(self, token: str, caller: Caller) -> Proof | None:
        """The proof; None if the token is none that this method could ever take (so that the next one is asked).
        Raises `BadCredentials` if it is one and is wrong, `TokenExpired`, `AuthUnavailable`."""


class TenantsView(Protocol):
    """What is asked about tenants. Answers from memory."""

    def is_active(self, tenant: str) -> bool:
        """Whether the tenant is there and not removed."""

    def signed_out_at(self, tenant: str, user_id: str, *, by_own_clock: bool = False) -> datetime | None:
        """When the user was last signed out everywhere; None: not lately. `by_own_clock`: to be compared with a time of
        this node's clock."""

    def voided_at(self, tenant: str, user_id: str) -> datetime | None:
        """When all tokens that were made here for this user were last void; None: never, as far as is known."""

    def has_key(self, key_id: str) -> bool:
        """Whether the API key, or the password of config.ini, with this id opens anything now."""


class Memory(Protocol):
    """A method that remembers users by itself."""

    def forget(self, tenant: str, user_id: str) -> None:
        """Ask anew who this user is."""

    def clear(self) -> None:
        """Ask anew who anybody is."""


_Check = Callable[[], Awaitable[Proof | None]]


@dataclass(frozen=True, slots=True)
class _Found:
    """A proof, and the name of the method that it is from."""

    method: str
    proof: Proof
    is_token: bool


class Authenticator:
    """One for each node. The methods are asked in this order; the first proof counts. `default_tenant`: whose the users
    are that come without a tenant; None: those are refused. `cache`: remembers which method took which password, so
    that it is asked first; the same as that of the `PasswordChecks`. `brake`: slows guessing. `memories`: methods that
    remember users beside that."""

    def __init__(
        self,
        password_methods: Sequence[PasswordMethod],
        token_methods: Sequence[TokenMethod],
        tenants: TenantsView,
        *,
        default_tenant: str | None,
        cache: CredentialCache,
        brake: Brake,
        memories: Sequence[Memory] = (),
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._password_methods = tuple(password_methods)
        self._token_methods = tuple(token_methods)
        self._tenants = tenants
        self._default_tenant = default_tenant
        self._cache = cache
        self._brake = brake
        self._memories = tuple(memories)
        self._clock = clock
        self._flights: SingleFlight[tuple[int, int, Join, Caller], _Found] = SingleFlight("sign-in")
        self._forgotten = 0
        """Counts sign-outs: who comes after one does not share an attempt from before it."""
        self._era = 0
        """Counts how often the settings changed: what was proved by older ones is proved anew."""

    async def authenticate(self, command: Join | JoinByToken, caller: Caller) -> Identity:
        """Who the caller is. Equal joins at the same moment, as of several tabs, are one attempt. An attempt is carried
        to its end even if the caller goes away.

        Raises `BadCredentials`, `TokenExpired`, `AuthUnavailable` (nobody took it, and not everybody could be asked),
        `RateLimited` and `Busy` (too many attempts at this moment)."""
        started_at = time.perf_counter()
        try:
            era = -1
            while era != self._era:
                era = self._era
                found = await self._prove(command, caller)
            identity = self._identity(found)
        except ServerError as error:
            tell(SIGN_IN_FAILED, self, code=error.code, took_s=time.perf_counter() - started_at)
            raise
        took_s = time.perf_counter() - started_at
        tell(SIGNED_IN, self, method=found.method, tenant=identity.tenant, took_s=took_s)
        return identity

    def still(self, proof: Proof) -> Identity:
        """Who somebody is by a proof of another moment, if it still counts. Raises `BadCredentials`, `TokenExpired`."""
        return self._identity(_Found("proof", proof, is_token=True))

    def apply(
        self, *, default_tenant: str | None, cache_s: float, token_methods: Sequence[TokenMethod]
    ) -> None:
        """Go by changed settings, and remember nothing from before."""
        self._default_tenant = default_tenant
        self._token_methods = tuple(token_methods)
        self._cache.cache_s = cache_s
        self.forget_all()

    def forget(self, tenant: str, user_id: str) -> None:
        """A user was signed out, or their password changed: they are checked anew when they come back. So is a namesake
        of another tenant, whom it costs no more than a moment."""
        self._forgotten += 1
        self._cache.forget(user_id)
        for memory in self._memories:
            memory.forget(tenant, user_id)

    def forget_all(self) -> None:
        """Everybody is checked anew when they come back, and who is being checked now, too."""
        self._era += 1
        self._cache.clear()
        for memory in self._memories:
            memory.clear()

    async def close(self) -> None:
        """End the attempts under way; who waits for one gets `Busy`. Idempotent."""
        await self._flights.close()

    # -- asking the methods ----------------------------------------------------------------------------------
    async def _prove(self, command: Join | JoinByToken, caller: Caller) -> _Found:
        if isinstance(command, JoinByToken):
            return await self._by_token(command.token, caller)
        # The attempt is a task of its own: who does not wait for a slowed one has made it all the same.
        key = (self._era, self._forgotten, command, caller)
        return await self._flights.do(key, lambda: self._by_password(command, caller))

    async def _by_password(self, join: Join, caller: Caller) -> _Found:
        found = await self._brake.guard(
            join.login, caller.address, lambda: self._check_password(join, caller)
        )
        if found is None:
            raise BadCredentials()
        return found

    async def _check_password(self, join: Join, caller: Caller) -> _Found | None:
        found = await self._ask(
            [
                (method.name, partial(method.check_password, join.login, join.password, caller))
                for method in self._by_likelihood(join)
            ],
            caller,
        )
        if found is not None:
            self._cache.put(
                "method", join.login, join.password, value=found.method, user_id=found.proof.user_id
            )
        return found

    def _by_likelihood(self, join: Join) -> list[PasswordMethod]:
        """The method that took this password lately comes first: the others would check it in vain, and at a price."""
        likely = self._cache.get("method", join.login, join.password)
        return sorted(self._password_methods, key=lambda method: method.name != likely)

    async def _by_token(self, token: str, caller: Caller) -> _Found:
        found = await self._ask(
            [(method.name, partial(method.check_token, token, caller)) for method in self._token_methods],
            caller,
            is_token=True,
        )
        if found is None:
            raise BadCredentials(TOKEN_WRONG)
        return found

    async def _ask(
        self, checks: Sequence[tuple[str, _Check]], caller: Caller, *, is_token: bool = False
    ) -> _Found | None:
        """The first proof; None if all say no. Raises `AuthUnavailable` if none proves it and one could not say, and
        what else a check raises."""
        outcomes: dict[str, str] = {}
        for method, check in checks:
            try:
                proof = await check()
            except AuthUnavailable as error:
                outcomes[method] = error.code
            except ServerError as error:
                _log_failure(caller, {**outcomes, method: error.code})
                raise
            else:
                if proof is not None:
                    return _Found(method, proof, is_token)
                outcomes[method] = "no"
        _log_failure(caller, outcomes)
        if AuthUnavailable.code in outcomes.values():
            raise AuthUnavailable(UNAVAILABLE)
        return None

    # -- what a proof is worth -------------------------------------------------------------------------------
    def _identity(self, found: _Found) -> Identity:
        proof = found.proof
        if proof.expires_at is not None and proof.expires_at <= self._clock():
            raise TokenExpired
        tenant = self._default_tenant if proof.tenant is None else proof.tenant
        reason = self._why_not(found, tenant)
        if tenant is None or reason:
            logger.info("a sign-in by the method %s is refused though proved: %s", found.method, reason)
            raise BadCredentials(TOKEN_WRONG) if found.is_token else BadCredentials()
        return Identity(
            tenant,
            proof.user_id,
            proof.issued_at,
            proof.expires_at,
            proof.key_id,
            proof.secret_id,
            proof.by_own_clock,
        )

    def _why_not(self, found: _Found, tenant: str | None) -> str:
        """Why the proof does not count; "" if it does."""
        proof = found.proof
        if tenant is None:
            return "it does not say of which tenant the user is, and there is no default_tenant"
        try:
            claims.user_id(proof.user_id)
        except ValueError as error:
            return f"the user id {error}"
        if not self._tenants.is_active(tenant):
            return f"the tenant {tenant!r} is not there"
        if proof.key_id is not None and not self._tenants.has_key(proof.key_id):
            return "the key or password that it was made with has been revoked or changed, or has expired"
        if self._is_over(found, tenant):
            return "the user has been signed out since, or the tenant is another one of that name"
        return ""

    def _is_over(self, found: _Found, tenant: str) -> bool:
        """Whether the proof is from before the user's last sign-out, or of ours from before the tenant, as far as it
        says."""
        proof, issued_at = found.proof, found.proof.issued_at
        if proof.secret_id is not None:
            over_at = self._tenants.voided_at(tenant, proof.user_id)
        else:
            over_at = self._tenants.signed_out_at(tenant, proof.user_id, by_own_clock=proof.by_own_clock)
        if over_at is None:
            return False
        # A password was proved just now. A token may be of any age.
        return found.is_token if issued_at is None else issued_at <= over_at


def _log_failure(caller: Caller, outcomes: Mapping[str, str]) -> None:
    # Never the login: people type their password there.
    said = ", ".join(f"{method}: {outcome}" for method, outcome in outcomes.items())
    logger.info("a sign-in from %s failed (%s)", caller.address, said or "no method is configured")
