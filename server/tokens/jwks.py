"""Keeps a key set at hand and up to date, so that a check hardly ever waits for it and nobody can make us ask often."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

from server.config.access import JWTRules
from server.errors import AuthUnavailable
from server.http_client import HTTPClient
from server.tasks import Tasks
from server.tokens.key_sets import KeySet, parse_key_set
from server.tokens.keys import VerifyingKey
from server.tokens.loading import CannotLoad, load_address, load_file

logger = logging.getLogger(__name__)

AGAIN_AFTER_S = 10.0
"""At the earliest, after an answer or a failure: tokens that name keys which do not exist cost anybody nothing."""

KEPT_S = 24 * 3600.0
"""For so long keys count though newer ones cannot be got. Then nobody gets in: whoever holds up the answers must not
keep a withdrawn key alive for ever."""

FILE_CACHE_S = 1.0
"""How often a file is looked at, at most."""

UNAVAILABLE = "the keys that tokens are checked with cannot be got now; try again"


class JWKS:
    """`name`: where the set comes from, for the log. `load`: gets it, in a bounded time; raises `CannotLoad`.
    `cache_s`: how old it may be before it is asked for again.

    Nothing runs by itself: a token that finds the set older than `cache_s` has it renewed behind its back, one that
    finds it twice as old (nobody came for a while) waits for the new one, unless that failed the last time. A token
    that names a key which is not there has the set renewed at once. There is one question at a time.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Awaitable[bytes]],
        algorithms: Collection[str],
        cache_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._load = load
        self._algorithms = algorithms
        self._cache_s = cache_s
        self._again_after_s = min(AGAIN_AFTER_S, cache_s)
        self._clock = clock
        self._tasks = Tasks()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = self._loaded_at = -math.inf
        self._raw: bytes | None = None
        self._keys = KeySet()
        self._is_failing = False

    async def find(self, algorithm: str, key_id: str | None) -> VerifyingKey | None:
        """As `KeySource.find`. A key that is not in a set which was just got, or could be got a moment ago, is not
        there; if it could not be got, nobody knows."""
        await self._freshen()
        key = self._keys.find(algorithm, key_id)
        if key is None and key_id is not None and self._may_ask():
            await self._ask()
            key = self._keys.find(algorithm, key_id)
        if key is None and self._is_failing:
            raise AuthUnavailable(UNAVAILABLE)
        return key

    async def close(self) -> None:
        """End the question under way; who waits for it is told that the keys cannot be got. Idempotent."""
        await self._tasks.cancel()

    async def _freshen(self) -> None:
        """See to it that the keys at hand may be used. Raises `AuthUnavailable` if there are none."""
        age = self._age_s()
        if age > KEPT_S:
            if self._may_ask():
                await self._ask()
            if self._age_s() > KEPT_S:
                raise AuthUnavailable(UNAVAILABLE)
        elif age > 2 * self._cache_s and not self._is_failing:
            await self._ask()
        elif age > self._cache_s and self._may_ask():
            self._start()

    def _age_s(self) -> float:
        return self._clock() - self._loaded_at

    def _may_ask(self) -> bool:
        """Whether it is time, or somebody has asked already, so that it costs nothing."""
        return self._asking is not None or self._clock() - self._asked_at >= self._again_after_s

    async def _ask(self) -> None:
        """Raises `AuthUnavailable` if the question was ended without an answer."""
        asking = self._start()
        # Neither does who waits end the question for the others, nor does its end, as at `close`, end who waits.
        await asyncio.wait({asking})
        if asking.cancelled():
            raise AuthUnavailable(UNAVAILABLE)

    def _start(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = self._tasks.start(self._renew(), f"keys of {self._name}")
        return self._asking

    async def _renew(self) -> None:
        try:
            raw = await self._load()
            # The same bytes are the same keys; making them takes a moment.
            if raw != self._raw:
                self._use(raw)
        except (CannotLoad, ValueError) as error:
            self._failed(str(error))
        else:
            self._loaded_at = self._clock()
            if self._is_failing:
                logger.warning("the keys for tokens of %s can be got again", self._name)
            self._is_failing = False
        finally:
            self._asked_at = self._clock()
            self._asking = None

    def _use(self, raw: bytes) -> None:
        self._keys = parse_key_set(raw, self._algorithms)
        self._raw = raw
        if not self._keys.keys:
            wanted = " or ".join(sorted(self._algorithms))
            logger.warning("the key set of %s holds no key for %s, so no token counts", self._name, wanted)

    def _failed(self, reason: str) -> None:
        if not self._is_failing:
            kept = "there are none" if self._raw is None else "those from before count for a day"
            logger.warning("the keys for tokens of %s cannot be got (%s): %s", self._name, kept, reason)
        self._is_failing = True


def key_set_of(rules: JWTRules, http: HTTPClient) -> JWKS:
    """That of `rules.jwks`: an address, or a file."""
    jwks, timeout_s = rules.jwks, rules.timeout_s
    if "://" in jwks:
        # What follows the question mark may be a secret.
        name, load = jwks.partition("?")[0], partial(load_address, http, jwks, timeout_s)
        return JWKS(name, load, rules.algorithms, rules.jwks_cache_s)
    return JWKS(jwks, partial(load_file, Path(jwks), timeout_s), rules.algorithms, FILE_CACHE_S)
