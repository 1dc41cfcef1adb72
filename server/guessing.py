"""Slows the guessing of passwords, and locks nobody out: whoever guesses waits, for seconds, and is never shut out.

After a few failures the next attempt waits before it is checked: for the same login from the same place, for the same
login from anywhere, and for any login from the same place. A place is an IPv4 address or an IPv6 network of 64 bits
(RFC 4291 section 2.5.4: what one host can choose from).

Who signed in at a place lately is known there, and waits for their own failures at that place only: neither guesses at
their login from elsewhere nor guesses at others' logins from their place cost them anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import random
import secrets
import time
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from server.bus import THROTTLED, tell
from server.errors import AuthUnavailable, Busy, RateLimited

T = TypeVar("T")

FREE_AT_PLACE = 30
"""Failures of one place before it is slowed: behind one address may be an office, where some mistype every day."""
FREE_AT_ONCE = 16
"""Failures of one place before its attempts are checked one after the other; they wait for nothing else yet."""
FREE_UNANSWERED = 4
"""Attempts of one place that waited for what decides, for `LONG_S` or more and in vain, before its attempts go one by
one: else one place could take all turns of strangers, again and again. The next one that is decided ends that."""
LONG_S = 0.5
FREE_OF_LOGIN = 10
FREE_OF_PAIR = 5
"""Of one login at one place."""

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 4.0
"""Each failure more doubles the wait up to here: long for who has thousands to try, short for who has one."""

HALF_LIFE_S = 300.0
"""After so long half of the failures are forgotten."""

REMEMBERED_ABOVE_FREE = 8
"""More failures than this are not counted, so that slowing ends some minutes after the guessing, however long that
was."""

KNOWN_S = 14 * 24 * 3600.0
"""How long somebody is known at a place after signing in there."""

MAX_REMEMBERED = 100_000
"""Of failing pairs, logins and places, and of known pairs, each: some 20 MB. The ones idle for longest go first."""

MAX_OF_PAIR = 5
"""Attempts at one login from one place, the one under way included. They go one after the other."""

MAX_HELD_AT_PLACE = 32
"""Attempts that wait at one place, of as many logins: what all guessers at one place do in `MAX_DELAY_S`."""

IDLE_PER_CHECK = 4.0
"""After the wrong guess of one who had to wait for their turn, the next one of that place waits so many times as long
as the check took: so guessing takes a fifth of a core at most, and not all that there is."""

MAX_HELD = 10_000
"""Attempts that wait, over all places."""

STRANGERS_AT_ONCE = 8
"""Checks under way for those who are not known where they are. The others find few before them in the queue, and a new
guesser is known as one after as many checks."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Keyed hashes: what was typed as a login may be a password, and an address any text that a proxy passed on."""

    pair: bytes
    login: bytes
    place: bytes


class _Failures:
    """Of each key: how often it failed lately. The latest `MAX_REMEMBERED` keys are held."""

    def __init__(self, free: int, clock: Callable[[], float]) -> None:
        self._free = free
        self._clock = clock
        self._counts: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def add(self, key: bytes) -> None:
        count = min(self.count(key) + 1, self._free + REMEMBERED_ABOVE_FREE)
        _put(self._counts, key, (count, self._clock()))

    def forget(self, key: bytes) -> None:
        self._counts.pop(key, None)

    def delay_s(self, key: bytes) -> float:
        over = round(self.count(key)) - self._free
        return min(FIRST_DELAY_S * 2.0**over, MAX_DELAY_S) if over >= 0 else 0.0

    def count(self, key: bytes) -> float:
        """Decayed: failures fade, they do not all end at once."""
        count, counted_at = self._counts.get(key, (0.0, 0.0))
        return count * 0.5 ** ((self._clock() - counted_at) / HALF_LIFE_S) if count else 0.0


@dataclass(slots=True)
class _Queue:
    """Of one pair."""

    length: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Held:
    """Those who wait for their turn at one place, checked one at a time. `free_at`: when the next one may be."""

    length: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    free_at: float = 0.0


class Brake:
    """One for each node, in memory only. `max_waiting`: how many strangers may wait for their turn to be checked.
    `clock`: monotonic, seconds; `sleep`: by the same clock."""

    def __init__(
        self,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._key = secrets.token_bytes(16)
        self._pairs = _Failures(FREE_OF_PAIR, clock)
        self._logins = _Failures(FREE_OF_LOGIN, clock)
        self._places = _Failures(FREE_AT_PLACE, clock)
        self._unanswered = _Failures(FREE_UNANSWERED, clock)
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._queues: dict[bytes, _Queue] = {}
        self._held: dict[bytes, _Held] = {}
        self._held_total = 0
        self._turnstile = _Turnstile(STRANGERS_AT_ONCE, max_waiting)

    async def guard(self, login: str, address: str, check: Callable[[], Awaitable[T | None]]) -> T | None:
        """What `check` returns, when it is this attempt's turn. None counts as a failure, anything else as a success;
        an error as neither. Raises `RateLimited` if too many of the same login or place wait already, `Busy` if too
        many wait altogether, and what `check` raises."""
        attempt = self._attempt(login, address)
        async with self._turn_of_pair(attempt):
            try:
                found = await self._check(attempt, check)
            except AuthUnavailable:
                # One method may have said no before another could not be asked. Only the pair pays: while a
                # database is away, everybody fails.
                self._pairs.add(attempt.pair)
                raise
            if found is None:
                self._failed(attempt)
            else:
                self._succeeded(attempt)
            return found

    # -- turns -----------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _turn_of_pair(self, attempt: _Attempt) -> AsyncIterator[None]:
        # One at a time: else a thousand guesses at once would all be checked before the first has failed.
        queue = self._queues.setdefault(attempt.pair, _Queue())
        if queue.length >= MAX_OF_PAIR:
            raise self._refusal(MAX_DELAY_S)
        queue.length += 1
        try:
            async with queue.turn:
                yield
        finally:
            queue.length -= 1
            if not queue.length:
                del self._queues[attempt.pair]

    async def _check(self, attempt: _Attempt, check: Callable[[], Awaitable[T | None]]) -> T | None:
        if self._is_known(attempt):
            if delay_s := self._pairs.delay_s(attempt.pair):
                self._tell()
                await self._pause(delay_s)
            return await check()
        if self._turnstile.is_full_of(attempt.place):
            raise self._refusal(FIRST_DELAY_S)
        async with self._turnstile.turn(attempt.place):
            # Worked out now, not at arrival: those before it in the queue may have failed meanwhile.
            delay_s = self._delay_s(attempt)
            if not delay_s and not self._goes_singly(attempt.place):
                return await self._ask(attempt.place, check)
        async with self._held_aside(attempt, delay_s) as held:
            if (idle_s := held.free_at - self._clock()) > 0:
                await self._sleep(idle_s)
            async with self._turnstile.turn(attempt.place):
                began_at = self._clock()
                found = await self._ask(attempt.place, check)
            if found is None:
                held.free_at = self._clock() + IDLE_PER_CHECK * (self._clock() - began_at)
            return found

    def _goes_singly(self, place: bytes) -> bool:
        return (
            self._places.count(place) >= FREE_AT_ONCE
            or round(self._unanswered.count(place)) >= FREE_UNANSWERED
        )

    async def _ask(self, place: bytes, check: Callable[[], Awaitable[T | None]]) -> T | None:
        began_at = self._clock()
        try:
            found = await check()
        except AuthUnavailable:
            if self._clock() - began_at >= LONG_S:
                self._unanswered.add(place)
            raise
        self._unanswered.forget(place)
        return found

    @asynccontextmanager
    async def _held_aside(self, attempt: _Attempt, delay_s: float) -> AsyncIterator[_Held]:
        """Wait aside, then for the turn among those that wait at the same place. Since attempts of a pair go one by
        one, a login has one of them for each address: many guesses at one login keep no other login waiting."""
        held = self._held.get(attempt.place) or _Held()
        if held.length >= MAX_HELD_AT_PLACE or self._held_total >= MAX_HELD:
            raise self._refusal(max(delay_s, FIRST_DELAY_S))
        self._tell()
        self._held[attempt.place] = held
        held.length += 1
        self._held_total += 1
        try:
            if delay_s:
                await self._pause(delay_s)
            async with held.turn:
                yield held
        finally:
            self._held_total -= 1
            held.length -= 1
            if not held.length:
                del self._held[attempt.place]

    async def _pause(self, delay_s: float) -> None:
        # Apart from the others, or they would all come at once again.
        await self._sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # no secret

    def _tell(self) -> None:
        tell(THROTTLED, self, limit="guessing")

    def _refusal(self, retry_after_s: float) -> RateLimited:
        self._tell()
        return RateLimited("too many sign-ins that failed; try again in some seconds", retry_after_s)

    # -- what is remembered ----------------------------------------------------------------------------------
    def _delay_s(self, attempt: _Attempt) -> float:
        return max(
            self._pairs.delay_s(attempt.pair),
            self._logins.delay_s(attempt.login),
            self._places.delay_s(attempt.place),
        )

    def _is_known(self, attempt: _Attempt) -> bool:
        known_at = self._known.get(attempt.pair)
        return known_at is not None and self._clock() - known_at < KNOWN_S

    def _failed(self, attempt: _Attempt) -> None:
        self._pairs.add(attempt.pair)
        self._logins.add(attempt.login)
        self._places.add(attempt.place)

    def _succeeded(self, attempt: _Attempt) -> None:
        # Only the pair's own failures are forgiven: else who guesses would clear those of the place with an account
        # of their own, and the owner those of a login that others guess at.
        self._pairs.forget(attempt.pair)
        _put(self._known, attempt.pair, self._clock())

    def _attempt(self, login: str, address: str) -> _Attempt:
        folded, place = self._hash(_folded(login)), self._hash(_place(address))
        return _Attempt(folded + place, folded, place)

    def _hash(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(errors="replace"), key=self._key, digest_size=16).digest()


class _Turnstile:
    """Lets `at_once` through at the same time, in their order; `max_waiting` may wait, of one place half as
    many."""

    def __init__(self, at_once: int, max_waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._max_waiting = max_waiting
        self._total = 0
        self._waiting: Counter[bytes] = Counter()

    def is_full_of(self, place: bytes) -> bool:
        """Whether one more of this place would leave too little to the others."""
        return self._free.locked() and self._waiting[place] >= max(1, self._max_waiting // 2)

    @asynccontextmanager
    async def turn(self, place: bytes) -> AsyncIterator[None]:
        """Raises `Busy`."""
        if self._free.locked() and self._total >= self._max_waiting:
            raise Busy("too many sign-ins at this moment; try again")
        self._waiting[place] += 1
        self._total += 1
        try:
            await self._free.acquire()
        finally:
            self._total -= 1
            self._waiting[place] -= 1
            if not self._waiting[place]:
                del self._waiting[place]
        try:
            yield
        finally:
            self._free.release()


def _place(address: str) -> str:
    """What stands for the caller's place; the text itself if it is no IP address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def _folded(login: str) -> str:
    """The same for all spellings that a database may take for the same login: MySQL's collations see no difference in
    letter case, accents, blanks at the end and invisible characters."""
    decomposed = unicodedata.normalize("NFKD", login.casefold())
    return "".join(char for char in decomposed if unicodedata.category(char)[0] not in "CM").strip()


V = TypeVar("V")


def _put(entries: OrderedDict[bytes, V], key: bytes, value: V) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > MAX_REMEMBERED:
        entries.popitem(last=False)
