"""Tickets: what a page shows in a URL where it can set no header. Each is good once, and not for long."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from server.affinity import ALONE, Affinity
from server.auth import Identity, proved_now
from server.errors import BadCredentials, Busy, RateLimited
from server.limits import take_one
from server.rooms import Room

LIFETIME_S = 30.0

MAX_TICKETS = 20_000
"""That are good at a time: about 10 MiB. A tenant gets no more once it has as many as are left, so that none takes the
place of others."""

MAX_PER_USER = 32
"""Of one user, so that no user takes the place of others."""

_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Ticket:
    identity: Identity
    ends_at: float

    @property
    def room(self) -> Room:
        return self.identity.tenant, self.identity.user_id


class Tickets:
    """Those of this node: they are chance, kept in its memory, and no other node knows them. (Signed ones would be good
    on each node, and so could be used on each.) Kept are their hashes. `affinity`: where they are to be used; `clock`:
    monotonic, in seconds."""

    def __init__(self, affinity: Affinity = ALONE, clock: Callable[[], float] = time.monotonic) -> None:
        self._affinity = affinity
        self._clock = clock
        self._tickets: OrderedDict[bytes, _Ticket] = OrderedDict()
        self._by_user: Counter[Room] = Counter()
        self._by_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tickets)

    def make(self, identity: Identity) -> str:
        """A ticket for who has shown a token. What its use proves was proved now: a sign-out in between ends it. Raises
        `RateLimited`, `Busy`."""
        self._forget()
        ticket = _Ticket(proved_now(identity), self._clock() + LIFETIME_S)
        if self._by_user[ticket.room] >= MAX_PER_USER:
            raise RateLimited(f"this user has {MAX_PER_USER} tickets that wait to be used", LIFETIME_S)
        if self._by_tenant[identity.tenant] >= MAX_TICKETS - len(self._tickets):
            raise Busy("too many tickets wait to be used; try again")
        text = self._affinity.mint(lambda: secrets.token_urlsafe(_BYTES))
        self._tickets[_digest(text)] = ticket
        self._by_user[ticket.room] += 1
        self._by_tenant[identity.tenant] += 1
        return text

    def redeem(self, text: str) -> Identity:
        """Whose ticket it was: it is used up. Raises `BadCredentials`."""
        self._forget()
        ticket = self._take(_digest(text))
        if ticket is None:
            raise BadCredentials("the ticket is wrong, used up, or too old; get a new one")
        return ticket.identity

    def _take(self, digest: bytes) -> _Ticket | None:
        ticket = self._tickets.pop(digest, None)
        if ticket is not None:
            take_one(self._by_user, ticket.room)
            take_one(self._by_tenant, ticket.identity.tenant)
        return ticket

    def _forget(self) -> None:
        """Drop those that are too old: all last as long, so they are the first ones."""
        present = self._clock()
        while self._tickets:
            digest, ticket = next(iter(self._tickets.items()))
            if ticket.ends_at > present:
                return
            self._take(digest)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
