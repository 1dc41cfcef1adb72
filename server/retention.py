"""How long inboxes reach back: removes for good what has had its time, and knows what is gone.

Every node knows the horizons, as the store has them; one node, which holds the lease, works. What is told to clients is
always true, wherever that is interrupted: documents are removed first, and the floor is raised then; with tombstones it
is the other way round, since a client that comes back must not be told that nothing was deleted when that is no longer
known. They go when all nodes have had the time to hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from server.bus import DOCUMENTS_REMOVED, INBOX_CHANGED, tell
from server.checks import Trouble
from server.config import Retention as Rules
from server.errors import StoreUnavailable
from server.grants import Tenant
from server.messages import now
from server.moments import Moments
from server.revs import COUNTER_BITS, span_of
from server.store import Bounds, Horizon, Removed, Store
from server.tenants import Tenants

logger = logging.getLogger(__name__)

LOOK_S = 20.0
"""Between two times that a node reads the horizons."""

HEARD_S = 60.0
"""After so long every node has heard of a horizon: it has read it, or does not reach the store."""

PASS_S = 3600.0
"""Between two passes over all inboxes."""

SET_S = 3600.0
"""A clock that was set by more is not believed before the next pass: what is removed does not come back when the clock
is set right."""

LEASE = "retention"
LEASE_S = 60.0
"""After so long another node goes on when the one that did this has crashed."""

BATCH_DOCUMENTS = 500
"""Removed at once."""

PAUSE_S = 0.02
"""After each step at least, and at least as long as it took: others have most of the store's time."""

KEYS_MARGIN_S = 3600
"""Documents and tombstones are kept for so much longer than idempotency keys are remembered: by them a repeat knows
that it is one."""

_LONG_AGO = datetime.fromtimestamp(0, UTC)
_NOTHING = Horizon()


class Retention:
    """One for each node. `rules`: for tenants without rules of their own; may be changed. `keep_keys_s`: for how long
    idempotency keys are remembered. `clock`: aware UTC."""

    def __init__(
        self,
        store: Store,
        tenants: Tenants,
        rules: Rules,
        keep_keys_s: Callable[[], float],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.rules = rules
        self._store = store
        self._tenants = tenants
        self._keep_keys_s = keep_keys_s
        self._clock = clock
        self._moments = Moments(clock)
        self._holder = secrets.token_hex(12)
        self._horizons: Mapping[str, Horizon] = {}
        # By tenant: the `oldest_rev` last read, and since when (monotonic) it is known here.
        self._heard: dict[str, tuple[int, float]] = {}
        self._renewed_at = 0.0

    # -- what is known ---------------------------------------------------------------------------------------
    def floor(self, tenant: str) -> datetime | None:
        """Documents created before this are kept no longer; None: all are kept."""
        return self._horizons.get(tenant, _NOTHING).floor

    def oldest_since(self, tenant: str) -> int | None:
        """Of changes with a lower rev the tombstones may be gone; None: all are kept."""
        return self._horizons.get(tenant, _NOTHING).oldest_rev or None

    # -- in the background -----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Know, and do, until cancelled."""
        due_at = time.monotonic() + HEARD_S
        while True:
            try:
                await self.look()
                # It knows whether this node has the right time. If not, another one gets the lease.
                await self._store.ping()
                is_mine = await self._hold()
                if self._was_set():
                    due_at = time.monotonic() + PASS_S
                if is_mine and time.monotonic() >= due_at:
                    await self.work()
                    due_at = time.monotonic() + PASS_S
            except Trouble as trouble:
                if time.monotonic() >= due_at:
                    due_at = time.monotonic() + PASS_S
                    logger.warning(
                        "nothing is removed by this node before %.0f s have passed: %s", PASS_S, trouble
                    )
            except StoreUnavailable as error:
                logger.debug("removing what has had its time waits for the store: %s", error)
            except Exception:
                logger.exception("what has had its time could not be removed; it is tried again")
            await asyncio.sleep(LOOK_S)

    def _was_set(self) -> bool:
        step_s = self._moments.note()
        if abs(step_s) <= SET_S:
            return False
        logger.warning(
            "the clock was set by %+.0f s: nothing is removed before %.0f s have passed", step_s, PASS_S
        )
        return True

    async def look(self) -> None:
        """Read the horizons. Raises `StoreUnavailable`."""
        self._horizons = await self._store.retention.horizons()
        moment = time.monotonic()
        self._heard = {
            tenant: (horizon.oldest_rev, self._known_since(tenant, horizon, moment))
            for tenant, horizon in self._horizons.items()
        }

    def _known_since(self, tenant: str, horizon: Horizon, moment: float) -> float:
        rev, since = self._heard.get(tenant, (0, moment))
        return since if rev == horizon.oldest_rev else moment

    async def work(self) -> None:
        """One pass over all inboxes, or until another node does it. Raises `StoreUnavailable`."""
        at = self._clock()
        for tenant in self._tenants.active:
            if not await self._serve(tenant, at):
                logger.info("another node removes what has had its time")
                return
        forgotten = BATCH_DOCUMENTS
        while forgotten == BATCH_DOCUMENTS:
            forgotten = await self._store.retention.forget_keys(BATCH_DOCUMENTS)
            await asyncio.sleep(PAUSE_S)

    async def _serve(self, tenant: Tenant, at: datetime) -> bool:
        """`at`: now. False: somebody else has the lease."""
        documents_s, tombstones_s = self._kept_for(tenant)
        bounds = Bounds(
            None if documents_s is None else at - timedelta(seconds=documents_s),
            0 if tombstones_s is None else self._rev_below(tenant.name),
            _LONG_AGO if tombstones_s is None else at - timedelta(seconds=tombstones_s),
        )
        if tombstones_s is not None:
            oldest_ms = (bounds.deleted_before - _LONG_AGO) // timedelta(milliseconds=1)
            await self._raise(tenant.name, Horizon(oldest_rev=max(0, oldest_ms) << COUNTER_BITS))
        removed = await self._remove(tenant.name, bounds)
        if removed is None:
            return False
        if bounds.created_before is not None:
            floor = min(bounds.created_before, removed.kept_from or bounds.created_before)
            await self._raise(tenant.name, Horizon(floor=floor))
        if removed.documents or removed.tombstones:
            logger.info(
                "removed what has had its time: %d documents, %d that were deleted; tenant=%s",
                removed.documents,
                removed.tombstones,
                tenant.name,
            )
        return True

    def _kept_for(self, tenant: Tenant) -> tuple[float | None, float | None]:
        """For how long documents and tombstones are; None: for ever."""
        least_s = self._keep_keys_s() + KEYS_MARGIN_S
        own, rules = tenant.keep, self.rules
        chosen = (
            rules.documents_s if own.documents_s is None else own.documents_s,
            rules.tombstones_s if own.tombstones_s is None else own.tombstones_s,
        )
        # FOREVER is 0.
        documents_s, tombstones_s = (max(each, least_s) if each else None for each in chosen)
        return documents_s, tombstones_s

    def _rev_below(self, tenant: str) -> int:
        """Tombstones with a lower rev may go: no node takes the word of a client any more that has not heard of them,
        though revs become visible late."""
        oldest_rev, known_since = self._heard.get(tenant, (0, 0.0))
        if time.monotonic() - known_since < HEARD_S:
            return 0
        return max(0, oldest_rev - span_of(self._store.changes_overlap_s))

    async def _raise(self, tenant: str, horizon: Horizon) -> None:
        await self._store.retention.raise_horizon(tenant, horizon)
        known = self._horizons.get(tenant, _NOTHING)
        floors = [each.floor for each in (known, horizon) if each.floor is not None]
        raised = Horizon(max(floors, default=None), max(known.oldest_rev, horizon.oldest_rev))
        self._horizons = {**self._horizons, tenant: raised}

    async def _remove(self, tenant: str, bounds: Bounds) -> Removed | None:
        """All that has had its time; None: somebody else has the lease."""
        total = Removed()
        steps = self._store.retention.remove(tenant, bounds, BATCH_DOCUMENTS)
        async with contextlib.aclosing(steps):
            began_at = time.monotonic()
            async for step in steps:
                total = _sum(total, step)
                self._tell(tenant, step)
                await asyncio.sleep(max(PAUSE_S, time.monotonic() - began_at))
                if not await self._hold():
                    return None
                began_at = time.monotonic()
        return total

    def _tell(self, tenant: str, step: Removed) -> None:
        if step.documents or step.tombstones:
            tell(
                DOCUMENTS_REMOVED,
                self,
                tenant=tenant,
                documents=step.documents,
                tombstones=step.tombstones,
            )
        if step.users:
            tell(INBOX_CHANGED, self, rooms=[(tenant, user_id) for user_id in step.users])

    async def _hold(self) -> bool:
        """Whether this node is the one."""
        moment = time.monotonic()
        if moment - self._renewed_at < LEASE_S / 4:
            return True
        is_mine = await self._store.leases.take(LEASE, self._holder, LEASE_S)
        self._renewed_at = moment if is_mine else 0.0
        return is_mine


def _sum(total: Removed, step: Removed) -> Removed:
    """Of everything but the users, of whom there may be many."""
    kept_from = min((each.kept_from for each in (total, step) if each.kept_from), default=None)
    return replace(
        total,
        documents=total.documents + step.documents,
        tombstones=total.tombstones + step.tombstones,
        kept_from=kept_from,
    )
