"""Checks JSON Web Tokens (RFC 7519) that others have signed. What their claims mean is for others to say."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jwt
from jwt.exceptions import ExpiredSignatureError, InvalidTokenError, PyJWTError

from server import claims
from server.claims import TOKEN_WRONG
from server.config.access import JWTRules
from server.errors import BadCredentials, StartupError, TokenExpired
from server.http_client import HTTPClient
from server.tokens.decoding import decoder
from server.tokens.jwks import key_set_of
from server.tokens.keys import KeySource, OneKey, VerifyingKey, read_public_key, secret_key
from server.tokens.loading import MAX_BYTES

logger = logging.getLogger(__name__)

MAX_TOKEN_CHARS = 8192

_INSTANTS = ("exp", "nbf", "iat")


def looks_like_jwt(token: str) -> bool:
    """Whether it has the three parts of the compact form (RFC 7515 section 7.1)."""
    return token.count(".") == 2


def read_header(token: str) -> Mapping[str, Any]:
    """What a token says about its key, which nothing vouches for yet. Raises `PyJWTError`. PyJWT refuses here what it
    does not understand and must (`crit`, RFC 7515 section 4.1.11)."""
    # Alone: PyJWT would decode all parts, and again when it checks them.
    return _read_header(token.partition(".")[0])


@functools.lru_cache(maxsize=100)
def _read_header(part: str) -> Mapping[str, Any]:
    """All tokens of one key begin with the same."""
    return MappingProxyType(jwt.get_unverified_header(f"{part}.."))


def key_set_client() -> HTTPClient:
    """What verifiers get key sets with; one is enough for all."""
    return HTTPClient(max_body_bytes=MAX_BYTES, connections=10)


class JWTVerifier:
    """Goes by `rules`. `http`: gets a key set from its address (`key_set_client()`). Raises `StartupError` if the
    key cannot be used.

    A check is made at once, in the loop: it takes 0.1 to 0.3 ms, and less than 1 ms for the longest token.
    """

    def __init__(self, rules: JWTRules, http: HTTPClient) -> None:
        self._rules = rules
        self._keys = _key_source(rules, http)
        self._jwt = decoder(
            {
                "require": ["exp"],
                "enforce_minimum_key_length": True,
                "verify_aud": rules.audience is not None,
                # Integers are users, too.
                "verify_sub": False,
            }
        )

    async def verify(self, token: str) -> Mapping[str, Any]:
        """The claims of a token that is good now. `exp` is there; it, `nbf` and `iat` fit `claims.instant`; `aud` and
        `iss` are looked at if the rules say what they must be. Raises `BadCredentials`, `TokenExpired` (it would be
        good, had it not ended), `AuthUnavailable` (what it must be signed with cannot be found out now)."""
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise BadCredentials(TOKEN_WRONG)
        # The errors of the library, which may quote the token, end here: `from None`.
        try:
            algorithm, key_id = self._header(token)
        except PyJWTError as error:
            raise _refused(error) from None
        key = await self._keys.find(algorithm, key_id)
        if key is None:
            raise _refused("it names no key that is known here")
        try:
            return self._claims(token, key)
        except ExpiredSignatureError:
            raise TokenExpired from None
        except (PyJWTError, ValueError) as error:
            raise _refused(error) from None

    async def close(self) -> None:
        """Let go of what runs. Idempotent."""
        await self._keys.close()

    def _header(self, token: str) -> tuple[str, str | None]:
        """`alg`, one of those configured, and `kid`."""
        header = read_header(token)
        algorithm = header.get("alg")
        if algorithm not in self._rules.algorithms:
            raise InvalidTokenError("its algorithm is none of those configured")
        return algorithm, header.get("kid")

    def _claims(self, token: str, key: VerifyingKey) -> dict[str, Any]:
        rules = self._rules
        found = self._jwt.decode(
            token,
            key.material,
            # That of the key, not that of the token.
            algorithms=[key.algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=rules.leeway_s,
        )
        # PyJWT takes texts of digits, and numbers beyond all calendars.
        for name in _INSTANTS:
            if name in found:
                claims.instant(found[name])
        return found


def _key_source(rules: JWTRules, http: HTTPClient) -> KeySource:
    if rules.jwks:
        return key_set_of(rules, http)
    if rules.key is not None:
        key, where = read_public_key(rules.key), f"the key {rules.key}"
    else:
        try:
            key, where = secret_key(rules.secret), "a secret"
        except ValueError as exc:
            raise StartupError(f"the secret that tokens are checked with {exc}") from exc
    if key.algorithm not in rules.algorithms:
        raise StartupError(
            f"{where} is for {key.algorithm}, which is none of the algorithms that tokens may have"
        )
    return OneKey(key)


def _refused(reason: object) -> BadCredentials:
    """The kind of the mistake is for who sets up the server, at the level DEBUG; the one who asked learns nothing."""
    logger.debug("a token is refused: %s", type(reason).__name__ if isinstance(reason, Exception) else reason)
    return BadCredentials(TOKEN_WRONG)
