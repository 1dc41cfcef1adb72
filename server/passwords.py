"""Makes and verifies password hashes: which kinds there are, and that verifying takes nobody else's time.

Verifying costs 50-200 ms of a core by design (RFC 9106): it runs in threads of its own, few at a time, and those who
wait for one are bounded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import argon2
import bcrypt
from argon2.exceptions import InvalidHashError, VerificationError

from server.credentials import CredentialCache
from server.errors import Busy
from server.flights import SingleFlight

logger = logging.getLogger(__name__)

# What a stored hash may ask for: some seconds of a core. Who can write into the table of users must not be able to
# occupy the threads for days with one row.
MAX_ARGON2_KIB = 1024 * 1024
MAX_ARGON2_KIB_PASSES = 4 * MAX_ARGON2_KIB
MAX_ARGON2_LANES = 64
MAX_BCRYPT_COST = 16
MAX_PBKDF2_ITERATIONS = 10_000_000

BCRYPT_MAX_BYTES = 72
"""Of a password: bcrypt does not look at what comes after them."""

_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)

_PBKDF2 = re.compile(r"pbkdf2_sha256\$(\d{1,9})\$([^$]+)\$([A-Za-z0-9+/]{43}=)", re.ASCII)

DECOY = "$argon2id$v=19$m=65536,t=3,p=4$" + "A" * 22 + "$" + "A" * 43
"""A hash of nobody's, as dear to verify as one made by `hash_password`."""


_DECOY_KEY = secrets.token_bytes(16)


def decoy(login: str, hashes: Sequence[str]) -> str:
    """The one of these that stands in for the hash of a login that there is not, so that it takes as long as if there
    were. For a login it is always the same one, however it is capitalised; where hashes cost differently, each cost is
    met as often among the unknown logins as among the known. `DECOY` if there are none."""
    if not hashes:
        return DECOY
    folded = login.casefold().encode(errors="replace")
    chosen = hashlib.blake2b(folded, key=_DECOY_KEY, digest_size=8).digest()
    return hashes[int.from_bytes(chosen) % len(hashes)]


def hash_password(password: str) -> str:
    """An argon2id hash in the PHC string format, as `[USERS-…]` holds them. Takes some 50 ms of a core."""
    return argon2.PasswordHasher().hash(password)


def matches(hashed: str, password: str) -> bool:
    """Whether the password has this hash, whose kind is told by its beginning: argon2, bcrypt (`$2a$`, `$2b$`, `$2y$`),
    or PBKDF2 as Django writes it (`pbkdf2_sha256$iterations$salt$hash`). Anything else matches nothing. Takes as long
    as the hash says; what asks for too much matches nothing at once."""
    if hashed.startswith("$argon2"):
        return _matches_argon2(hashed, password)
    if hashed.startswith("$2"):
        return _matches_bcrypt(hashed, password)
    if hashed.startswith("pbkdf2_sha256$"):
        return _matches_pbkdf2(hashed, password)
    return False


def _matches_argon2(hashed: str, password: str) -> bool:
    try:
        if _is_too_dear_argon2(hashed):
            return _too_dear("argon2")
        return argon2.PasswordHasher().verify(hashed, password)
    except (VerificationError, InvalidHashError, ValueError):
        return False


def _matches_bcrypt(hashed: str, password: str) -> bool:
    if not (found := _BCRYPT.fullmatch(hashed)):
        return False
    if int(found[1]) > MAX_BCRYPT_COST:
        return _too_dear("bcrypt")
    raw = password.encode()
    try:
        is_right = bcrypt.checkpw(raw[:BCRYPT_MAX_BYTES], hashed.encode())
    except ValueError:
        return False
    # Verified all the same, so that it takes as long as any other. A longer one never matches: it would be right
    # whatever it ends with.
    return is_right and len(raw) <= BCRYPT_MAX_BYTES


def _matches_pbkdf2(hashed: str, password: str) -> bool:
    if not (found := _PBKDF2.fullmatch(hashed)):
        return False
    iterations, salt = int(found[1]), found[2]
    if iterations > MAX_PBKDF2_ITERATIONS:
        return _too_dear("pbkdf2_sha256")
    try:
        stored = base64.b64decode(found[3], validate=True)
        made = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), iterations)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(stored, made)


def is_hash(text: str) -> bool:
    """Whether `matches` would have to work to find out; not so: what is no hash, or asks for too much."""
    if text.startswith("$argon2"):
        try:
            return not _is_too_dear_argon2(text)
        except (InvalidHashError, ValueError):
            return False
    if found := _BCRYPT.fullmatch(text):
        return int(found[1]) <= MAX_BCRYPT_COST
    if found := _PBKDF2.fullmatch(text):
        return int(found[1]) <= MAX_PBKDF2_ITERATIONS
    return False


def _is_too_dear_argon2(hashed: str) -> bool:
    asked = argon2.extract_parameters(hashed)
    kib, passes = asked.memory_cost, asked.time_cost
    return (
        kib > MAX_ARGON2_KIB or kib * passes > MAX_ARGON2_KIB_PASSES or asked.parallelism > MAX_ARGON2_LANES
    )


def _too_dear(kind: str) -> bool:
    logger.warning("a stored %s hash asks for more work than is done for any: nobody gets in with it", kind)
    return False


LOWEST_PRIORITY = 19
"""As `nice` counts."""


def _step_back() -> None:
    """Let the event loop, and all else, go before this thread and those that it starts: however much is guessed, it
    takes what nobody else needs. Elsewhere than on Linux a priority is the whole process's, and stays as it is."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)


class PasswordChecks:
    """Verifies passwords in `workers` threads; at most `max_waiting` checks wait for one. `cache`: what was right is
    remembered there; None: nowhere."""

    def __init__(self, workers: int, max_waiting: int, cache: CredentialCache | None = None) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="password", initializer=_step_back)
        self._max_unfinished = workers + max_waiting
        self._unfinished = 0
        self._cache = CredentialCache(cache_s=0, max_entries=1) if cache is None else cache
        self._flights: SingleFlight[tuple[str, str], bool] = SingleFlight("password check")

    async def verify(self, hashed: str, password: str, *, user_id: str | None = None) -> bool:
        """Whether the password has this hash (see `matches`). Raises `Busy` when too many checks wait already.

        With the `user_id` whose password it is, a check that is under way for the same hash and password is shared,
        and one that was right is remembered, until it is too long ago or `forget`. Without, it always costs a check: as
        with the hash that stands in for that of an unknown login, which must take as long as any other.
        """
        if user_id is None:
            return await self._check(hashed, password)
        if self._cache.get("hash", hashed, password) is not None:
            return True
        return await self._flights.do((hashed, password), lambda: self._learn(hashed, password, user_id))

    def forget(self, user_id: str) -> None:
        """The next check of this user's password is a real one."""
        self._cache.forget(user_id)

    def close(self) -> None:
        """Begin no further check; those that run end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _learn(self, hashed: str, password: str, user_id: str) -> bool:
        is_right = await self._check(hashed, password)
        # Before the flight has ended: who comes right after its end must find it here.
        if is_right:
            self._cache.put("hash", hashed, password, value="right", user_id=user_id)
        return is_right

    async def _check(self, hashed: str, password: str) -> bool:
        if self._unfinished >= self._max_unfinished:
            raise Busy("too many sign-ins at this moment; try again")
        self._unfinished += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, matches, hashed, password)
        finally:
            self._unfinished -= 1
