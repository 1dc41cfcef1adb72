"""PyJWT, with secrets looked at once: whether one is a key of another kind, which would be an attack (RFC 8725 section
2.1), takes longer to find out than all the rest of a check, and is the same each time.

Checking is PyJWT's alone; our own tokens are made here, which is little beside that.
"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm

MAX_REMEMBERED = 16

HS256 = "HS256"


_to_json: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def signed(said: Mapping[str, Any], kind: str, key_id: str, secret: str) -> str:
    """A JSON Web Token of this kind (its header `typ`) that says this, signed with HS256 (RFC 7515 section 7.1)."""
    text = f"{_header(kind, key_id)}.{_base64(_to_json(said).encode())}"
    return f"{text}.{_base64(hmac.digest(secret.encode(), text.encode(), 'sha256'))}"


@lru_cache(maxsize=100)
def _header(kind: str, key_id: str) -> str:
    return _base64(_to_json({"alg": HS256, "kid": key_id, "typ": kind}).encode())


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


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
