"""The tokens that the server makes itself: for a user, on behalf of a backend with an API key."""

from __future__ import annotations

import math
import secrets as random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from jwt.exceptions import ExpiredSignatureError, PyJWTError

from server import claims
from server.auth import Identity, Proof
from server.callers import Caller
from server.claims import TOKEN_WRONG
from server.errors import AuthUnavailable, BadCredentials, TokenExpired
from server.grants import SigningSecret
from server.messages import now
from server.store import STEP
from server.tokens.decoding import HS256, decoder
from server.tokens.verifier import MAX_TOKEN_CHARS, looks_like_jwt, read_header

ISSUER = "notification-server"

TYPE = "notification+jwt"
"""The header `typ` (RFC 8725 section 3.11). Nothing else that is signed with the same secret is one of these tokens."""

_CLAIMS = ("iss", "sub", "tenant", "iat", "exp", "jti", "key")

IDENTITY, ACCESS, REFRESH = "identity", "access", "refresh"
"""What the claim `token_type` of tokens that are given for a password says (CONTRACT C3)."""

IDENTITY_S = 3600
REFRESH_S = 24 * 3600


class OwnTokens:
    """Makes and checks them. The newest secret signs; those it replaced are good for checking until they retire."""

    name = "own"

    def __init__(self, secrets: Iterable[SigningSecret] = (), clock: Callable[[], datetime] = now) -> None:
        self._clock = clock
        # Made and ended by clocks of the same cluster: `exp` goes exactly, and an `iat` of a clock that is ahead is no
        # forgery.
        self._jwt = decoder(
            {"require": list(_CLAIMS), "verify_iat": False, "enforce_minimum_key_length": True}
        )
        self.use(secrets)

    def use(self, secrets: Iterable[SigningSecret]) -> None:
        """Go by these from now on, in whatever order they come."""
        self._secrets = {secret.id: secret for secret in sorted(secrets, key=lambda each: each.created_at)}

    def make(
        self, tenant: str, user_id: str, key_id: str, lifetime_s: float, voided_at: datetime | None = None
    ) -> tuple[str, datetime]:
        """A token that lets this user listen, and when it ends: after `lifetime_s`, rounded up to a full second.
        `voided_at`: when those of the user last were, by whatever clock; the token is later than that. Raises
        `AuthUnavailable` if there is nothing to sign with."""
        return self._sign(tenant, user_id, lifetime_s, voided_at, {"key": key_id})

    def make_login(
        self, identity: Identity, with_refresh: bool, voided_at: datetime | None = None
    ) -> dict[str, str]:
        """The tokens for who has given a password, by their types: `identity` and `access` let the user listen, for an
        hour; `refresh` gets new ones, for a day. None outlives what it is given for. `voided_at`: as `make` has it.
        Raises `AuthUnavailable`."""
        user_id, ends_at = identity.user_id, identity.expires_at
        left_s = math.inf if ends_at is None else (ends_at - self._clock()).total_seconds()
        lives = {IDENTITY: IDENTITY_S, ACCESS: IDENTITY_S} | ({REFRESH: REFRESH_S} if with_refresh else {})
        return {
            kind: self._sign(
                identity.tenant,
                user_id,
                min(life_s, left_s),
                voided_at,
                {"key": identity.key_id or "", "token_type": kind, "user_id": user_id},
            )[0]
            for kind, life_s in lives.items()
        }

    def _sign(
        self,
        tenant: str,
        user_id: str,
        lifetime_s: float,
        voided_at: datetime | None,
        more: Mapping[str, Any],
    ) -> tuple[str, datetime]:
        issued_at = self._clock()
        ends = math.ceil(issued_at.timestamp() + lifetime_s)
        said = {
            "sub": user_id,
            "tenant": tenant,
            # With its fraction: a user who is signed out and in again within a second must not be out again.
            "iat": (issued_at if voided_at is None else max(issued_at, voided_at + STEP)).timestamp(),
            "exp": ends,
            **more,
        }
        return self.sign(said, TYPE), datetime.fromtimestamp(ends, UTC)

    def sign(self, said: Mapping[str, Any], kind: str, secret_id: str | None = None) -> str:
        """A token of this kind (the header `typ`) that says this, beside who made it; signed with that secret (None:
        the newest). Raises `AuthUnavailable` if there is nothing to sign with."""
        newest = next(reversed(self._secrets.values()), None)
        secret = newest if secret_id is None else self._secrets.get(secret_id)
        if secret is None:
            raise AuthUnavailable("there is no secret to sign tokens with yet; try again")
        whole = {"iss": ISSUER, "jti": random.token_urlsafe(12), **said}
        return self._jwt.encode(whole, secret.secret, HS256, {"kid": secret.id, "typ": kind})

    def check_refresh(self, token: str) -> Proof:
        """Whose refresh token this is. Raises `BadCredentials`, `TokenExpired`."""
        read = self.read(token, TYPE)
        if read is None or read[0].get("token_type") != REFRESH:
            raise BadCredentials(TOKEN_WRONG)
        return proof(*read)

    async def check_token(self, token: str, caller: Caller) -> Proof | None:
        """As `auth.TokenMethod`."""
        read = self.read(token, TYPE)
        if read is None:
            return None
        if read[0].get("token_type") == REFRESH:
            raise BadCredentials(TOKEN_WRONG)
        return proof(*read)

    def read(self, token: str, kind: str) -> tuple[dict[str, Any], str] | None:
        """What a token of ours of this kind says, and the id of the secret that it is signed with; None if it is none.
        Raises `BadCredentials`, `TokenExpired`."""
        secret = self._signer(token, kind)
        if secret is None:
            return None
        try:
            said: dict[str, Any] = self._jwt.decode(token, secret.secret, [HS256], issuer=ISSUER)
        except ExpiredSignatureError:
            raise TokenExpired from None
        except (PyJWTError, ValueError):
            raise BadCredentials(TOKEN_WRONG) from None
        return said, secret.id

    def _signer(self, token: str, kind: str) -> SigningSecret | None:
        """Who the token says has signed it; None if it was not one of us."""
        if not looks_like_jwt(token) or not token.isascii() or len(token) > MAX_TOKEN_CHARS:
            return None
        try:
            header = read_header(token)
        except PyJWTError:
            return None
        secret = self._secrets.get(header.get("kid", ""))
        if header.get("typ") != kind or secret is None:
            return None
        return secret if secret.retired_at is None or self._clock() < secret.retired_at else None


def proof(said: Mapping[str, Any], secret_id: str) -> Proof:
    """What a token that was read proves. Raises `BadCredentials`."""
    key_id = said["key"]
    try:
        if not isinstance(key_id, str):
            raise ValueError("key: is not a text")
        return Proof(
            claims.user_id(said["sub"]),
            tenant=claims.tenant(said["tenant"]),
            issued_at=claims.instant(said["iat"]),
            expires_at=claims.instant(said["exp"]),
            key_id=key_id or None,
            secret_id=secret_id,
        )
    except ValueError:
        raise BadCredentials(TOKEN_WRONG) from None
