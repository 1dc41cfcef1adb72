"""Password hashes that cost little, and a view of the threads that verify them."""

from __future__ import annotations

import asyncio
import threading

import argon2
import pytest

from server import passwords as module

_CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def cheap_hash(password: str) -> str:
    """A real argon2id hash of the least price that there is."""
    return _CHEAP.hash(password)


class Checking:
    """Sees each real verification in its thread, and can hold them up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks: list[str] = []
        """The hashes that were verified, in this order."""
        self.passwords: list[str] = []
        """What each was verified against."""
        self.threads: list[str] = []
        self._has_begun = threading.Event()
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        matches = module.matches

        def watched(hashed: str, password: str) -> bool:
            self.checks.append(hashed)
            self.passwords.append(password)
            self.threads.append(threading.current_thread().name)
            self._has_begun.set()
            assert self._may_go_on.wait(30)
            return matches(hashed, password)

        monkeypatch.setattr(module, "matches", watched)

    def hold(self) -> None:
        """Let none end from now on."""
        self._may_go_on.clear()

    def go_on(self) -> None:
        self._may_go_on.set()

    async def began(self) -> None:
        """Return when one has begun."""
        assert await asyncio.to_thread(self._has_begun.wait, 30)
