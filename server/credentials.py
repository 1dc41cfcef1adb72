"""Remembers for a while which credentials were right, so that coming back costs nothing.

Kept are keyed hashes (HMAC-SHA256, RFC 2104) under a key that is made at start and never leaves this process: whoever
reads the memory of a cache finds nothing to guess against without that key, and nothing is left after the process.
Only what was right is kept, never what was wrong: a mistyped password is often another one of the same user.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Entry:
    value: str
    user_id: str
    made_at: float


class CredentialCache:
    """Holds up to `max_entries` for `cache_s` seconds each (0: none); the one unused for longest goes first. `clock`:
    monotonic, seconds."""

    def __init__(self, cache_s: float, max_entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.cache_s = cache_s
        """May be changed at any time; counts for what is held already, too."""
        self._max_entries = max_entries
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._of_user: dict[str, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, *parts: str) -> str | None:
        """What was put with exactly these parts; None if nothing was, or it is too long ago. Asking does not make it
        last longer."""
        digest = self._digest(parts)
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if self._clock() - entry.made_at >= self.cache_s:
            self._drop(digest)
            return None
        self._entries.move_to_end(digest)
        return entry.value

    def put(self, *parts: str, value: str, user_id: str) -> None:
        """Remember `value` with these parts. `user_id`: at whose sign-out it is forgotten."""
        if self.cache_s <= 0:
            return
        digest = self._digest(parts)
        if digest in self._entries:
            self._drop(digest)
        self._entries[digest] = _Entry(value, user_id, self._clock())
        self._of_user.setdefault(user_id, set()).add(digest)
        if len(self._entries) > self._max_entries:
            self._drop(next(iter(self._entries)))

    def forget(self, user_id: str) -> None:
        """Drop all that was put for this user, of whichever tenant."""
        for digest in tuple(self._of_user.get(user_id, ())):
            self._drop(digest)

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._of_user.clear()

    def _drop(self, digest: bytes) -> None:
        user_id = self._entries.pop(digest).user_id
        digests = self._of_user[user_id]
        digests.remove(digest)
        if not digests:
            del self._of_user[user_id]

    def _digest(self, parts: tuple[str, ...]) -> bytes:
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            raw = part.encode(errors="surrogatepass")
            # With its length, so that no two lists of parts run together to the same text.
            mac.update(len(raw).to_bytes(8, "big"))
            mac.update(raw)
        return mac.digest()
