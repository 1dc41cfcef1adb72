"""Remembers for a short while whose credentials were right, without the credentials."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from server.auth import Proof
from server.messages import now

MAX_ENTRIES = 20_000


class ProofCache:
    """`cache_s`: how long a proof is remembered, 0: not at all. Never longer than it counts. When full, the
    oldest goes."""

    def __init__(
        self, cache_s: float, max_entries: int = MAX_ENTRIES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache_s = cache_s
        self._max_entries = max_entries
        self._clock = clock
        # All live equally long, so the first is the oldest.
        self._entries: OrderedDict[bytes, tuple[float, Proof]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Proof | None:
        """The proof remembered under this key, if it still counts."""
        self._drop_old()
        found = self._entries.get(key)
        if found is None or (found[1].expires_at is not None and found[1].expires_at <= now()):
            return None
        return found[1]

    def put(self, key: bytes, proof: Proof) -> None:
        """Remember a proof."""
        if self._cache_s <= 0:
            return
        self._entries[key] = (self._clock() + self._cache_s, proof)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def forget(self, tenant: str, user_id: str) -> None:
        """Drop the proofs of a user; those without a tenant may be anybody's of this name."""
        for key, (_, proof) in list(self._entries.items()):
            if proof.user_id == user_id and proof.tenant in (None, tenant):
                del self._entries[key]

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

    def _drop_old(self) -> None:
        moment = self._clock()
        while self._entries and next(iter(self._entries.values()))[0] <= moment:
            self._entries.popitem(last=False)
