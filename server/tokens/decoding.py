"""PyJWT, with secrets looked at once: whether one is a key of another kind, which would be an attack (RFC 8725 section
2.1), takes longer to find out than all the rest of a check, and is the same each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm

MAX_REMEMBERED = 16

HS256 = "HS256"


class _RememberingHMAC(HMACAlgorithm):
    def __init__(self) -> None:
        super().__init__(HMACAlgorithm.SHA256)
        self._prepared: dict[str | bytes, bytes] = {}

    def prepare_key(self, key: str | bytes) -> bytes:
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = super().prepare_key(key)  # what it refuses is never remembered
            if len(self._prepared) >= MAX_REMEMBERED:
                self._prepared.clear()
            self._prepared[key] = prepared
        return prepared


def decoder(options: Mapping[str, Any]) -> jwt.PyJWT:
    """With these options of PyJWT."""
    made = jwt.PyJWT(dict(options))  # type: ignore[arg-type]  # theirs is a type of its own
    # Of this one alone: what PyJWT offers for that by a public name is for all of the process.
    made._jws.unregister_algorithm(HS256)
    made._jws.register_algorithm(HS256, _RememberingHMAC())
    return made
