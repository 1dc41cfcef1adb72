"""JSON Web Key Sets (RFC 7517): the usable keys of one, and which of them a token means. Knows no I/O."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from server.tokens.keys import VerifyingKey, public_key

MAX_KEYS = 100

_MAX_MEMBER_CHARS = 2048
"""Of each part of a key: RSA keys of 8192 bits have 1366. A longer one is not worth the time to look at."""

_MEMBERS: Mapping[str, tuple[str, ...]] = {"RSA": ("n", "e"), "EC": ("crv", "x", "y")}
"""The public parts of the kinds of keys that are taken. `oct` is none: a secret that is published is no secret."""

_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}


@dataclass(frozen=True, slots=True)
class KeySet:
    """Usable keys, in the order of the set."""

    keys: tuple[VerifyingKey, ...] = ()

    def find(self, algorithm: str, key_id: str | None) -> VerifyingKey | None:
        """The key of this id; of several, the first. Where the token or the keys have no id, the one key of this
        algorithm, if there is only one."""
        fitting = [key for key in self.keys if key.algorithm == algorithm]
        named = [key for key in fitting if key.id == key_id and key_id is not None]
        if named:
            return named[0]
        if len(fitting) == 1 and (key_id is None or fitting[0].id is None):
            return fitting[0]
        return None


def parse_key_set(raw: bytes, algorithms: Collection[str]) -> KeySet:
    """The keys for these algorithms; what is for anything else, or broken, is left out. Raises ValueError with a reason
    if it is no key set at all."""
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is no JSON Web Key Set: an object with a list `keys`")
    if len(entries) > MAX_KEYS:
        raise ValueError(f"it holds more than {MAX_KEYS} keys")
    found = (_key(entry) for entry in entries if isinstance(entry, dict))
    return KeySet(tuple(key for key in found if key is not None and key.algorithm in algorithms))


def _key(entry: dict[str, Any]) -> VerifyingKey | None:
    kind = entry.get("kty")
    if kind not in ("RSA", "EC") or not _is_for_checking(entry, _ALGORITHMS[kind]):
        return None
    # Only the public parts: private ones that were published by mistake never get into memory as keys.
    parts = {name: entry.get(name) for name in _MEMBERS[kind]}
    if not all(isinstance(part, str) and len(part) <= _MAX_MEMBER_CHARS for part in parts.values()):
        return None
    try:
        key = public_key(PyJWK({"kty": kind, **parts}, _ALGORITHMS[kind]).key)
    except (PyJWTError, ValueError):
        return None
    return replace(key, id=entry.get("kid"))


def _is_for_checking(entry: dict[str, Any], algorithm: str) -> bool:
    """Whether the key says nothing against being used for this (RFC 7517 sections 4.2 to 4.5)."""
    operations = entry.get("key_ops")
    return (
        entry.get("use") in (None, "sig")
        and entry.get("alg") in (None, algorithm)
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
        and isinstance(entry.get("kid"), str | None)
    )
