"""The keys that tokens are checked with, each bound to the one algorithm it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from server.config.access import Algorithm
from server.errors import StartupError

MIN_SECRET_BYTES = 32
"""RFC 7518 section 3.2: as many bits as the hash. A shorter one can be found out from a single token, offline."""

RSA_BITS = range(2048, 8192 + 1)
"""RFC 7518 section 3.3 demands the least; more than the most would make each check slow."""

Material = bytes | RSAPublicKey | EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """`algorithm` comes from the kind of the key, never from a token: else a token could have a public key taken for
    the secret of an HMAC (RFC 8725 section 2.1). `id` None: it has none."""

    algorithm: Algorithm
    material: Material = field(repr=False)
    id: str | None = None


class KeySource(Protocol):
    """Where keys come from."""

    async def find(self, algorithm: str, key_id: str | None) -> VerifyingKey | None:
        """The key that a token with this header (`alg`, and `kid` if it has one) must be signed with; None if there is
        none. Raises `AuthUnavailable` if that cannot be found out now."""

    async def close(self) -> None:
        """Let go of what runs. Idempotent."""


class OneKey:
    """A source of one key, whatever a token calls it."""

    def __init__(self, key: VerifyingKey) -> None:
        self._key = key

    async def find(self, algorithm: str, key_id: str | None) -> VerifyingKey | None:
        return self._key if algorithm == self._key.algorithm else None

    async def close(self) -> None:
        pass


def public_key(material: object) -> VerifyingKey:
    """Bind a public key to its algorithm. Raises ValueError if it is of a kind that is not taken."""
    if isinstance(material, RSAPublicKey):
        if material.key_size not in RSA_BITS:
            raise ValueError(f"is an RSA key of {material.key_size} bits; it must have 2048 to 8192")
        return VerifyingKey("RS256", material)
    if isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        return VerifyingKey("ES256", material)
    raise ValueError("is neither an RSA key nor one of the curve P-256")


def secret_key(secret: str) -> VerifyingKey:
    """A shared secret. Raises ValueError if it is too short to be one."""
    material = secret.encode()
    if len(material) < MIN_SECRET_BYTES:
        raise ValueError(f"has less than {MIN_SECRET_BYTES} bytes, so that it could be guessed")
    return VerifyingKey("HS256", material)


def read_public_key(path: Path) -> VerifyingKey:
    """The key of a PEM file (`-----BEGIN PUBLIC KEY-----`). Raises `StartupError`."""
    try:
        return public_key(load_pem_public_key(path.read_bytes()))
    except OSError as exc:
        raise StartupError(f"the key {path} cannot be read: {exc.strerror}") from exc
    except UnsupportedAlgorithm as exc:
        raise StartupError(f"the key {path} is of a kind that is not taken") from exc
    except ValueError as exc:
        # That of `public_key` says more than the library's, which talks of ASN.1.
        why = str(exc) if str(exc).startswith("is ") else "is no PEM file with a public key"
        raise StartupError(f"the key {path} {why}") from exc
