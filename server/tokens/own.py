"""The tokens that the server makes itself: for a user, on behalf of a backend with an API key."""

from __future__ import annotations

import math
import secrets as random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import jwt
from jwt.exceptions import ExpiredSignatureError, PyJWTError

from server import claims
from server.auth import Proof
from server.callers import Caller
from server.claims import TOKEN_WRONG
from server.errors import AuthUnavailable, BadCredentials, TokenExpired
from server.grants import SigningSecret
from server.messages import now
from server.store import STEP
from server.tokens.verifier import MAX_TOKEN_CHARS, looks_like_jwt, read_header

ISSUER = "notification-server"

TYPE = "notification+jwt"
"""The header `typ` (RFC 8725 section 3.11). Nothing else that is signed with the same secret is one of these tokens."""

_ALGORITHM = "HS256"

_CLAIMS = ("iss", "sub", "tenant", "iat", "exp", "jti", "key")


class OwnTokens:
    """Makes and checks them. The newest secret signs; those it replaced are good for checking until they retire."""

    name = "own"

    def __init__(self, secrets: Iterable[SigningSecret] = (), clock: Callable[[], datetime] = now) -> None:
        self._clock = clock
        # Made and ended by clocks of the same cluster: `exp` goes exactly, and an `iat` of a clock that is ahead is no
        # forgery.
        self._jwt = jwt.PyJWT(
            {"require": list(_CLAIMS), "verify_iat": False, "enforce_minimum_key_length": True}
        )
        self.use(secrets)

    def use(self, secrets: Iterable[SigningSecret]) -> None:
        """Go by these from now on, in whatever order they come."""
        self._secrets = {secret.id: secret for secret in sorted(secrets, key=lambda each: each.created_at)}

    def make(
        self, tenant: str, user_id: str, key_id: str, lifetime_s: float, signed_out_at: datetime | None = None
    ) -> tuple[str, datetime]:
        """A token that lets this user listen, and when it ends: after `lifetime_s`, rounded up to a full second.
        `signed_out_at`: when the user last was, by whatever clock; the token is later than that. Raises
        `AuthUnavailable` if there is nothing to sign with."""
        secret = next(reversed(self._secrets.values()), None)
        if secret is None:
            raise AuthUnavailable("there is no secret to sign tokens with yet; try again")
        issued_at = self._clock()
        ends = math.ceil(issued_at.timestamp() + lifetime_s)
        said = {
            "iss": ISSUER,
            "sub": user_id,
            "tenant": tenant,
            # With its fraction: a user who is signed out and in again within a second must not be out again.
            "iat": (issued_at if signed_out_at is None else max(issued_at, signed_out_at + STEP)).timestamp(),
            "exp": ends,
            "jti": random.token_urlsafe(12),
            "key": key_id,
        }
        header = {"kid": secret.id, "typ": TYPE}
        token = self._jwt.encode(said, secret.secret, _ALGORITHM, header)
        return token, datetime.fromtimestamp(ends, UTC)

    async def check_token(self, token: str, caller: Caller) -> Proof | None:
        """As `auth.TokenMethod`."""
        secret = self._signer(token)
        if secret is None:
            return None
        try:
            said = self._jwt.decode(token, secret.secret, [_ALGORITHM], issuer=ISSUER)
            return _proof(said, secret.id)
        except ExpiredSignatureError:
            raise TokenExpired from None
        except (PyJWTError, ValueError):
            raise BadCredentials(TOKEN_WRONG) from None

    def _signer(self, token: str) -> SigningSecret | None:
        """Who the token says has signed it; None if it was not one of us."""
        if not looks_like_jwt(token) or not token.isascii() or len(token) > MAX_TOKEN_CHARS:
            return None
        try:
            header = read_header(token)
        except PyJWTError:
            return None
        secret = self._secrets.get(header.get("kid", ""))
        if header.get("typ") != TYPE or secret is None:
            return None
        return secret if secret.retired_at is None or self._clock() < secret.retired_at else None


def _proof(said: Mapping[str, Any], secret_id: str) -> Proof:
    key_id = said["key"]
    if not isinstance(key_id, str):
        raise ValueError("key: is not a text")
    return Proof(
        claims.user_id(said["sub"]),
        tenant=claims.tenant(said["tenant"]),
        issued_at=claims.instant(said["iat"]),
        expires_at=claims.instant(said["exp"]),
        key_id=key_id,
        secret_id=secret_id,
    )
