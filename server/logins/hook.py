"""Asks an address of yours who a user is, by login and password or by token. Fails closed: no answer lets nobody in.

A yes is 200 with {"user_id", "tenant"?, "expires_at"? or "expires_in"?}, a no is 401, 403 or 404. Anything else is no
answer.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from server import claims
from server.auth import Proof
from server.callers import Caller
from server.config.access import HTTPHook
from server.errors import AuthUnavailable, Busy
from server.flights import SingleFlight
from server.http_client import HTTPClient, NoReply, Reply
from server.logins.hook_cache import ProofCache
from server.messages import now

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

MAX_ANSWER_BYTES = 64 * 1024

CONNECTIONS = 50
"""Questions at once; more wait in the client's queue, for `timeout_s` like any question."""

MAX_QUESTIONS = 1000
"""With those that wait: what a hook of 50 ms answers within a second. More are refused as busy."""

_NO = (401, 403, 404)

_MAX_LIFETIME_S = 10 * 365 * 24 * 3600


class _NoAnswer(Exception):
    """There was none, or none as it should be; `str(error)` says why, without what it said."""


class HookLogin:
    """Both an `auth.PasswordMethod` and an `auth.TokenMethod`. To be made where a loop runs. Raises `StartupError` if
    `settings.ca` cannot be used.

    The same credentials from the same address are one question, while it is on its way and for `cache_s` after a yes. A
    proof is as old as its question, so a sign-out voids it also where it is remembered.
    """

    name = "hook"

    def __init__(self, settings: HTTPHook) -> None:
        self._settings = settings
        self._http = HTTPClient(max_body_bytes=MAX_ANSWER_BYTES, connections=CONNECTIONS, ca=settings.ca)
        # Credentials are remembered as a keyed hash of them, which says nothing to who does not have the key.
        self._cache_key = secrets.token_bytes(32)
        self._cache = ProofCache(settings.cache_s)
        self._flights: SingleFlight[tuple[int, bytes], Proof | None] = SingleFlight("login hook")
        self._count = 0
        self._era = 0
        """Counts how often something was forgotten."""
        self._is_failing = False

    async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
        """As `auth.PasswordMethod`."""
        return await self._decide({"login": login, "password": password, "address": caller.address})

    async def check_token(self, token: str, caller: Caller) -> Proof | None:
        """As `auth.TokenMethod`; a no is None: the hook does not say whether it could ever take such a token."""
        return await self._decide({"token": token, "address": caller.address})

    def apply(self, settings: HTTPHook) -> None:
        """Go by these from now on. Of what they say, `ca` and `cache_s` count at start only."""
        self._settings = settings

    def forget(self, tenant: str, user_id: str) -> None:
        """Ask anew who this user is. Proofs without a tenant are those of any."""
        self._cache.forget(tenant, user_id)
        # Whose the questions on their way are is not known: none of their answers is remembered.
        self._era += 1

    def clear(self) -> None:
        """Ask anew who anybody is."""
        self._cache.clear()
        self._era += 1

    async def close(self) -> None:
        """Give up all questions. Idempotent."""
        await self._flights.close()
        self._http.close()

    # -- questions -------------------------------------------------------------------------------------------
    async def _decide(self, question: Mapping[str, str]) -> Proof | None:
        body = json.dumps(question).encode()
        digest = hmac.digest(self._cache_key, body, "sha256")
        proof = self._cache.get(digest)
        if proof is not None:
            return proof
        # Whoever comes after a sign-out gets no answer to a question from before it.
        key = (self._era, digest)
        return await self._flights.do(key, lambda: self._ask(key, body))

    async def _ask(self, key: tuple[int, bytes], body: bytes) -> Proof | None:
        if self._count >= MAX_QUESTIONS:
            raise Busy("too many logins are being checked; try again")
        self._count += 1
        try:
            proof = await self._answer(body)
        finally:
            self._count -= 1
        era, digest = key
        if proof is not None and era == self._era:
            self._cache.put(digest, proof)
        return proof

    async def _answer(self, body: bytes) -> Proof | None:
        asked_at = now()
        try:
            proof = _read(await self._fetch(body), asked_at)
        except _NoAnswer as error:
            self._failed(str(error))
            raise AuthUnavailable("what decides about logins does not answer; try again") from None
        if self._is_failing:
            logger.warning("the login hook %s answers again", self._shown_url)
        self._is_failing = False
        return proof

    async def _fetch(self, body: bytes) -> Reply:
        settings = self._settings
        headers = {"Authorization": f"Bearer {settings.secret}"} if settings.secret else {}
        try:
            return await self._http.post(settings.url, settings.timeout_s, headers, body)
        except NoReply as exc:
            raise _NoAnswer(str(exc)) from exc

    def _failed(self, reason: str) -> None:
        if not self._is_failing:
            logger.warning("the login hook %s decides nothing: %s", self._shown_url, reason)
        self._is_failing = True

    @property
    def _shown_url(self) -> str:
        # What follows the question mark may be a secret.
        return self._settings.url.partition("?")[0]


# -- answers -------------------------------------------------------------------------------------------------
def _read(reply: Reply, asked_at: datetime) -> Proof | None:
    if reply.status in _NO:
        return None
    if reply.status != 200:
        raise _NoAnswer(f"its answer is {reply.status}; 200 means yes, 401, 403 and 404 mean no")
    try:
        said = json.loads(reply.body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise _NoAnswer("its answer is no JSON object")
    return Proof(
        _value(said, "user_id", claims.user_id),
        tenant=_value(said, "tenant", claims.tenant),
        issued_at=asked_at,
        by_own_clock=True,
        expires_at=_ends_at(said, asked_at),
    )


def _value(said: Mapping[str, Any], name: str, parse: Callable[[object], Value]) -> Value:
    try:
        return parse(said.get(name))
    except ValueError as exc:
        raise _NoAnswer(f"{name} in its answer {exc}") from None


def _ends_at(said: Mapping[str, Any], asked_at: datetime) -> datetime | None:
    ends_at = _value(said, "expires_at", _instant)
    lifetime_s = _value(said, "expires_in", _seconds)
    if ends_at is not None or lifetime_s is None:
        return ends_at
    return asked_at + timedelta(seconds=lifetime_s)


def _instant(value: object) -> datetime | None:
    """RFC 3339, section 5.6."""
    if value is None:
        return None
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
        if instant is not None and instant.tzinfo is not None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("is no time with its zone, such as 2030-01-31T12:00:00Z")


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number of seconds")
    # Not `value <= 0 or …`: NaN compares as false with everything.
    if not 0 < value <= _MAX_LIFETIME_S:
        raise ValueError("is not within 0 to ten years")
    return value
