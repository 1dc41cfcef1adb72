"""What anybody may have of this server: how many requests, connections and commands. Knows no doors; they ask.

Backends are counted by key, everybody else by address. Callers on this very machine are counted by key alone: what else
runs here is not kept out by counting, and behind a proxy that hides its clients all would be one.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import NoReturn, TypeVar

from server.bus import THROTTLED, tell
from server.callers import Caller
from server.config.schema import Limits as LimitSettings
from server.errors import RateLimited
from server.grants import Grant
from server.rates import UNLIMITED, Allowance, Buckets, Rate, TokenBucket
from server.rooms import Room

K = TypeVar("K")

CONNECT_AGAIN_S = 10.0
"""What a client is told to wait when it has as many connections as it may: nobody knows when one will end."""

REFUSAL_DELAY_S = 1.0
"""By how much doors hold back the answer to who did something too often: an attacker who goes by the answers, as on a
connection one must, is slowed at no cost. Who hears of it a second late loses nothing."""

REFUSALS_PER_ADDRESS = Rate(50, 1.0)
MAX_REFUSAL_DELAY_S = 30.0
"""Over however many connections an address asks: each refusal waits for its turn, up to so long."""

BYTES_PER_COMMAND = 16 * 1024
"""Of a message or an answer: more are the work of one command more."""

FRAMES_PER_COMMAND = 2
"""Beside its commands a client answers pings, and may send some; over all connections of an address, too."""

SOCKETS_PER_CONNECTION = 1.5
"""Beside its connection a page loads files, and a client over HTTP sends while it receives."""

IPV6_SITE_BITS = 64
"""The part of an address that a provider gives to one customer (RFC 6177); the rest is theirs to choose."""


class OverRate(RateLimited):
    """The caller did something too often. `allowance`: what is left, for the headers of the answer."""

    def __init__(self, what: str, allowance: Allowance) -> None:
        super().__init__(f"too many {what}; slow down", allowance.retry_after_s)
        self.allowance = allowance


class TooManyConnections(RateLimited):
    """The user, or the address, has as many connections as they may: `most`. `limit`: the name of that limit."""

    code = "too_many_connections"

    def __init__(self, limit: str, whose: str, most: int) -> None:
        super().__init__(
            f"{whose} has {most} connections already, which is as many as may be", CONNECT_AGAIN_S
        )
        self.limit = limit
        self.most = most


class Limits:
    """All limits of this node, and what has been used of them."""

    def __init__(self, settings: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic, in seconds."""
        self._settings = settings
        self._clock = clock
        self._key_requests = Buckets("requests_per_key", settings.requests_per_key, clock)
        self._address_requests = Buckets("requests_per_address", settings.requests_per_address, clock)
        self._sign_outs = Buckets("sign_outs_per_tenant", settings.sign_outs_per_tenant, clock)
        self._connects = Buckets("connects_per_address", settings.connects_per_address, clock)
        self._user_commands = Buckets("commands_per_user", settings.commands_per_user, clock)
        self._address_commands = Buckets("commands_per_address", settings.commands_per_address, clock)
        self._address_frames = Buckets(
            "commands_per_address", _frame_rate(settings.commands_per_address), clock
        )
        self._refusals = Buckets("requests_per_address", REFUSALS_PER_ADDRESS, clock)
        self._by_address: Counter[str] = Counter()
        self._by_user: Counter[Room] = Counter()
        self._frame_rate = _frame_rate(settings.commands_per_connection)

    def apply(self, settings: LimitSettings) -> None:
        """Go by these from now on. Who has more connections than they may keeps them."""
        self._settings = settings
        self._key_requests.apply(settings.requests_per_key)
        self._address_requests.apply(settings.requests_per_address)
        self._sign_outs.apply(settings.sign_outs_per_tenant)
        self._connects.apply(settings.connects_per_address)
        self._user_commands.apply(settings.commands_per_user)
        self._address_commands.apply(settings.commands_per_address)
        self._address_frames.apply(_frame_rate(settings.commands_per_address))
        self._frame_rate = _frame_rate(settings.commands_per_connection)

    # -- requests of backends --------------------------------------------------------------------------------
    def check_request(self, grant: Grant | None, caller: Caller) -> Allowance:
        """Count a request; what is left, for `headers`. `grant` None: its credential was wrong, or there was none.
        Raises `OverRate`."""
        if grant is not None and grant.is_keyless:
            return UNLIMITED
        if grant is not None:
            key = grant.key_id or f"{grant.tenant} {grant.label}"
            return self._take(self._key_requests, key, "requests with this key")
        if caller.is_local:
            return UNLIMITED
        key = address_key(caller.address)
        return self._take(self._address_requests, key, "requests from this address")

    def check_sign_out(self, tenant: str) -> Allowance:
        """Count a user that a tenant signs out everywhere; what is left, for `headers`. Raises `OverRate`."""
        return self._take(self._sign_outs, tenant, "sign-outs of this tenant")

    def refusal_delay_s(self, caller: Caller, about_s: float = REFUSAL_DELAY_S) -> float:
        """How long to hold back an answer that refuses: about so long, longer when many of this address wait."""
        # Not all at the same time, or they would come again at the same time.
        delay_s = about_s * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
        if caller.is_local:
            return delay_s
        waiting_s = self._refusals.reserve(address_key(caller.address))
        return min(delay_s + waiting_s, MAX_REFUSAL_DELAY_S)

    def _take(self, buckets: Buckets, key: str, what: str) -> Allowance:
        allowance = buckets.take(key)
        if not allowance.allowed:
            self._refuse(buckets.limit, OverRate(what, allowance))
        return allowance

    def _refuse(self, limit: str, error: RateLimited) -> NoReturn:
        tell(THROTTLED, self, limit=limit)
        raise error

    # -- commands of clients ---------------------------------------------------------------------------------
    def pace(self, connection: TokenBucket, caller: Caller, room: Room | None, size: int = 0) -> float:
        """Count a command of so many bytes that will be carried out; how many seconds to wait before that.
        `connection`: the bucket of its connection. `room`: its user, None before they have joined."""
        tokens = 1 + size // BYTES_PER_COMMAND
        return self._held_up(
            commands_per_connection=self._reserve(connection, self._settings.commands_per_connection, tokens),
            commands_per_address=self._reserve_of_address(self._address_commands, caller, tokens),
            commands_per_user=0.0 if room is None else self._user_commands.reserve(room, tokens),
        )

    def pace_join(self, room: Room) -> float:
        """As `pace`, for the command by which a connection becomes this user's: till then it was nobody's."""
        return self._held_up(commands_per_user=self._user_commands.reserve(room))

    def charge(self, connection: TokenBucket, caller: Caller, room: Room, size: int) -> None:
        """Count an answer of so many bytes. What it is too many the next command waits for."""
        tokens = size // BYTES_PER_COMMAND
        if tokens:
            self._reserve(connection, self._settings.commands_per_connection, tokens)
            self._reserve_of_address(self._address_commands, caller, tokens)
            self._user_commands.reserve(room, tokens)

    def pace_frame(self, connection: TokenBucket, caller: Caller) -> float:
        """Count what a client sent, whatever it is; how many seconds to wait before more is read of it. Holds up who
        sends what is no command, such as pings, faster than anybody may send commands. `connection`: a bucket for
        this alone."""
        return self._held_up(
            commands_per_connection=self._reserve(connection, self._frame_rate, 1),
            commands_per_address=self._reserve_of_address(self._address_frames, caller, 1),
        )

    def _reserve(self, connection: TokenBucket, rate: Rate | None, tokens: int) -> float:
        return 0.0 if rate is None else connection.reserve(rate, self._clock(), tokens)

    def _reserve_of_address(self, buckets: Buckets, caller: Caller, tokens: int) -> float:
        return 0.0 if caller.is_local else buckets.reserve(address_key(caller.address), tokens)

    def _held_up(self, **waits_s: float) -> float:
        """The longest of these waits, each by the name of its limit."""
        if not any(waits_s.values()):
            return 0.0
        limit = max(waits_s, key=lambda name: waits_s[name])
        tell(THROTTLED, self, limit=limit)
        return waits_s[limit]

    # -- connections of clients ------------------------------------------------------------------------------
    @property
    def join_within_s(self) -> float:
        """Until a connection has to have joined."""
        return self._settings.join_within_s

    @property
    def sockets_per_address(self) -> int:
        """How many sockets of one address may be open, whatever goes over them."""
        return math.ceil(SOCKETS_PER_CONNECTION * self._settings.connections_per_address)

    def may_connect(self, caller: Caller) -> None:
        """Count an attempt to connect. Raises `OverRate`, `TooManyConnections`."""
        if caller.is_local:
            return
        key = address_key(caller.address)
        self._take(self._connects, key, "connections at once from this address")
        most = self._settings.connections_per_address
        if self._by_address[key] >= most:
            limit = "connections_per_address"
            self._refuse(limit, TooManyConnections(limit, "this address", most))

    def would_admit(self, caller: Caller) -> bool:
        """Whether `may_connect` would let this one in now. Counts nothing."""
        if caller.is_local:
            return True
        key = address_key(caller.address)
        return self._by_address[key] < self._settings.connections_per_address and self._connects.would_allow(
            key
        )

    def opened(self, caller: Caller) -> None:
        """A connection of this caller is open now."""
        if not caller.is_local:
            self._by_address[address_key(caller.address)] += 1

    def closed(self, caller: Caller) -> None:
        """A connection of this caller, told of by `opened`, is over."""
        if not caller.is_local:
            take_one(self._by_address, address_key(caller.address))

    def join_user(self, room: Room, *, has_place: bool = False) -> None:
        """A connection becomes this user's. `has_place`: it is already, and gives that place up next. Raises
        `TooManyConnections`, and nothing has changed then."""
        most = self._settings.connections_per_user
        if not has_place and self._by_user[room] >= most:
            self._refuse(
                "connections_per_user", TooManyConnections("connections_per_user", "this user", most)
            )
        self._by_user[room] += 1

    def leave_user(self, room: Room) -> None:
        """A connection, told of by `join_user`, is this user's no more."""
        take_one(self._by_user, room)


def _frame_rate(commands: Rate | None) -> Rate | None:
    return commands and Rate(FRAMES_PER_COMMAND * commands.quota, commands.window_s)


def take_one(counts: Counter[K], key: K) -> None:
    """One less; nothing is left of a key that has none."""
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


@functools.lru_cache(4096)
def address_key(address: str) -> str:
    """What an address is counted by: an IPv4 address (also one that is mapped into IPv6) alone, an IPv6 address
    together with its whole network of 64 bits. Any other text stands for itself."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(parsed) >> IPV6_SITE_BITS << IPV6_SITE_BITS)) + f"/{IPV6_SITE_BITS}"


def headers(allowance: Allowance) -> dict[str, str]:
    """The fields RateLimit-Policy and RateLimit of HTTP, as draft-ietf-httpapi-ratelimit-headers (08 to 11) has them:
    quota `q` in a window of `w` seconds; `r` of it remain, and all of it will in `t` seconds. None without a limit."""
    rate = allowance.rate
    if rate is None:
        return {}
    return {
        "RateLimit-Policy": f'"{allowance.limit}";q={rate.quota};w={_whole_s(rate.window_s)}',
        "RateLimit": f'"{allowance.limit}";r={allowance.remaining};t={_whole_s(allowance.reset_s)}',
    }


def refusal_headers(error: RateLimited) -> dict[str, str]:
    """The fields of an answer with status 429: Retry-After (RFC 9110 section 10.2.3), and those of `headers`. The unit
    (`qu`) of connections is of the same draft."""
    fields = {"Retry-After": str(_whole_s(error.retry_after_s))}
    if isinstance(error, OverRate):
        fields |= headers(error.allowance)
    elif isinstance(error, TooManyConnections):
        fields["RateLimit-Policy"] = f'"{error.limit}";q={error.most};qu="concurrent-requests"'
        fields["RateLimit"] = f'"{error.limit}";r=0;t={fields["Retry-After"]}'
    return fields


def _whole_s(seconds: float) -> int:
    return max(1, math.ceil(seconds))
