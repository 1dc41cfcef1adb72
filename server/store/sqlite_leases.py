"""Leases in the embedded store. Keeps the `Leases` contract.

Only one process has the store open, and what it held ends with it: so they are kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from server.store.sqlite_directory import Run


class SQLiteLeases:
    """See `Leases`."""

    def __init__(self, write: Run, clock: Callable[[], datetime]) -> None:
        """`write` runs one work at a time, and only while the store is there."""
        self._write = write
        self._clock = clock
        self._held: dict[str, tuple[str, datetime]] = {}
        """The holder of each, and until when."""

    async def take(self, name: str, holder: str, lease_s: float) -> bool:
        """See `Leases.take`."""
        return await self._write(lambda _: self._take(name, holder, lease_s))

    async def give_back(self, name: str, holder: str) -> None:
        """See `Leases.give_back`."""
        await self._write(lambda _: self._give_back(name, holder))

    def free(self) -> None:
        """Let all of them be free, as the store is opened again."""
        self._held.clear()

    def _take(self, name: str, holder: str, lease_s: float) -> bool:
        now = self._clock()
        other, until = self._held.get(name, (holder, now))
        if other != holder and now < until:
            return False
        self._held[name] = holder, now + timedelta(seconds=lease_s)
        return True

    def _give_back(self, name: str, holder: str) -> None:
        if self._held.get(name, ("", None))[0] == holder:
            del self._held[name]
