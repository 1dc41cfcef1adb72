"""Who a user is by the JSON Web Token of somebody who is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server import claims
from server.auth import Proof
from server.callers import Caller
from server.claims import TOKEN_WRONG
from server.config.access import JWTRules
from server.errors import BadCredentials
from server.tokens.verifier import JWTVerifier, looks_like_jwt


class TokenLogin:
    """The `auth.TokenMethod` of a verifier. `rules`: of the verifier, for the names of the claims."""

    name = "jwt"

    def __init__(self, verifier: JWTVerifier, rules: JWTRules) -> None:
        self._verifier = verifier
        self._rules = rules

    async def check_token(self, token: str, caller: Caller) -> Proof | None:
        """As `auth.TokenMethod`: None only for what is no JSON Web Token."""
        if not looks_like_jwt(token):
            return None
        found = await self._verifier.verify(token)
        try:
            return self._proof(found)
        except ValueError:
            raise BadCredentials(TOKEN_WRONG) from None

    def _proof(self, found: Mapping[str, Any]) -> Proof:
        return Proof(
            claims.user_id(found.get(self._rules.user_claim)),
            tenant=claims.tenant(found.get(self._rules.tenant_claim)),
            issued_at=claims.instant(found["iat"]) if "iat" in found else None,
            expires_at=claims.instant(found["exp"]),
        )
