"""Who was signed out everywhere, as this node knows it: what is new is read from the store, all of it only seldom.

They may be many: whoever may sign out users can name any, and each is remembered for a month. So nothing here looks at
all of them at once, but portion by portion, with the loop left to others in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from server.errors import StoreUnavailable
from server.grants import SignOut
from server.store import Directory, SignOutCursor, SignOutPage

logger = logging.getLogger(__name__)

KEPT = timedelta(days=30)
"""How long a sign-out is remembered, here and in the store: no token that counts should live longer."""

PORTION = 500
"""Read, or looked at, at a time: some milliseconds."""

GO_OVER_EVERY_S = 600.0
"""Between two times that the old ones are dropped, and all others are read again: what reading the new ones may miss
(written by a process of an older version, or made visible by the store much too late) is found then."""

PAUSE_S = 0.02
"""Between the portions of that: it is in no hurry."""

_NEVER = -1


class SignOuts:
    """One for each node. `directory`: that of the store, to be used while it is open. `tell`: is called with those that
    were not known before."""

    def __init__(
        self,
        directory: Callable[[], Directory],
        tell: Callable[[Sequence[SignOut]], None],
        clock: Callable[[], datetime],
    ) -> None:
        self.sequence = _NEVER
        """As of which number of the store's all are known."""
        self._directory = directory
        self._tell = tell
        self._clock = clock
        self._at: dict[str, dict[str, datetime]] = {}
        # of those that were written down with a time yet to come: when this node heard of them
        self._heard_at: dict[str, dict[str, datetime]] = {}
        self._cursor: SignOutCursor | None = None
        self._is_due = asyncio.Event()

    def __len__(self) -> int:
        """How many are remembered."""
        return sum(map(len, self._at.values()))

    def at(self, tenant: str, user_id: str, *, by_own_clock: bool = False) -> datetime | None:
        """When the user was last signed out; None: not lately. By the clock of whoever did it, which may be ahead;
        `by_own_clock`: by ours, to be compared with its times: not after we have heard of it."""
        at = self._at.get(tenant, {}).get(user_id)
        if at is not None and by_own_clock:
            return min(at, self._heard_at.get(tenant, {}).get(user_id, at))
        return at

    def take(self, sign_outs: Iterable[SignOut]) -> None:
        """Know of these, too."""
        now = self._clock()
        new = []
        for each in sign_outs:
            known_at = self.at(each.tenant, each.user_id)
            if each.at >= now - KEPT and (known_at is None or each.at > known_at):
                self._at.setdefault(each.tenant, {})[each.user_id] = each.at
                self._heard_at.get(each.tenant, {}).pop(each.user_id, None)
                if each.at > now:
                    self._heard_at.setdefault(each.tenant, {})[each.user_id] = now
                new.append(each)
        if new:
            self._tell(new)

    def drop(self, *, begun: Sequence[str], ended: Sequence[str]) -> None:
        """Forget those of tenants (their names) that have ended. What is known of the name of one that has begun may be
        of another before it: that is forgotten, too, and what does belong to it is read again soon."""
        for tenant in begun:
            if self._at.get(tenant):
                self._is_due.set()
        for tenant in (*begun, *ended):
            self._at.pop(tenant, None)
            self._heard_at.pop(tenant, None)

    # -- reading ---------------------------------------------------------------------------------------------
    async def open(self, sequence: int) -> None:
        """Read all, as of this number or later. Raises `StoreUnavailable`."""
        self._cursor = await self._read_all()
        self.sequence = sequence

    async def read_new(self, sequence: int) -> None:
        """Read a portion of what is new. `sequence`: the number that the store has given before; it is ours afterwards,
        unless there was more than a portion. Raises `StoreUnavailable`."""
        page = await self._read(self._cursor)
        self._cursor = page.cursor
        self.sequence = sequence if page.is_last else _NEVER

    async def _read_all(self, pause_s: float = 0.0) -> SignOutCursor:
        """Where reading what is new from now on begins."""
        page = await self._read(None)
        while not page.is_last:
            await asyncio.sleep(pause_s)
            page = await self._read(page.cursor)
        return page.cursor

    async def _read(self, after: SignOutCursor | None) -> SignOutPage:
        page = await self._directory().sign_outs(after, PORTION)
        self.take(page.sign_outs)
        return page

    # -- going over them -------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Go over all of them now and then, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(GO_OVER_EVERY_S):
                    await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._go_over()
            except StoreUnavailable as error:
                logger.debug("sign-outs are gone over later: %s", error)
            except Exception:
                # A bug met by one round must not end all that follow.
                logger.exception("sign-outs could not be gone over")

    async def _go_over(self) -> None:
        oldest = self._clock() - KEPT
        await self._directory().forget_sign_outs(oldest)
        await self._forget(oldest)
        await self._read_all(PAUSE_S)

    async def _forget(self, before: datetime) -> None:
        for tenant, known in list(self._at.items()):
            users = list(known)
            for start in range(0, len(users), PORTION):
                for user_id in users[start : start + PORTION]:
                    if known[user_id] < before:
                        del known[user_id]
                        self._heard_at.get(tenant, {}).pop(user_id, None)
                await asyncio.sleep(0)
            if not known and self._at.get(tenant) is known:
                del self._at[tenant]
