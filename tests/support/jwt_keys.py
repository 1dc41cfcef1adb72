"""Real keys of each kind that tokens are signed with, and what is made with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

SECRET = "a secret that both sides know, of enough bytes"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Signer:
    """A private key and what belongs to it."""

    algorithm: str
    key: PrivateKey

    @cached_property
    def pem(self) -> bytes:
        """Of the public key."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @cached_property
    def private_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def jwk(self, kid: str | None = None, **more: Any) -> dict[str, Any]:
        """The public key as a JSON Web Key."""
        public: Any = self.key.public_key()
        kind: Any = RSAAlgorithm if self.algorithm == "RS256" else ECAlgorithm
        made = kind.to_jwk(public, as_dict=True)
        made.pop("key_ops", None)
        return made | ({} if kid is None else {"kid": kid}) | more

    def sign(self, claims: dict[str, Any], kid: str | None = None, **header: Any) -> str:
        return jwt.encode(claims, self.key, self.algorithm, ({} if kid is None else {"kid": kid}) | header)


def rsa_signer(bits: int = 2048) -> Signer:
    return Signer("RS256", rsa.generate_private_key(65537, bits))


def ec_signer(curve: ec.EllipticCurve | None = None) -> Signer:
    return Signer("ES256", ec.generate_private_key(curve or ec.SECP256R1()))


RSA = rsa_signer()
EC = ec_signer()


def claims(**more: Any) -> dict[str, Any]:
    """Those of a good token of alice; None takes one away."""
    present = int(time.time())
    made = {"sub": "alice", "iat": present, "exp": present + 600} | more
    return {name: value for name, value in made.items() if value is not None}


def hs256(said: dict[str, Any], secret: str = SECRET, **header: Any) -> str:
    return jwt.encode(said, secret, "HS256", header)


def segment(raw: bytes | dict[str, Any]) -> str:
    """A part of a token, of bytes or of what becomes JSON."""
    if isinstance(raw, dict):
        raw = json.dumps(raw).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: bytes | dict[str, Any], payload: bytes | dict[str, Any], secret: bytes) -> str:
    """A token that no library would make, signed with HMAC-SHA256."""
    signed = f"{segment(header)}.{segment(payload)}"
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
