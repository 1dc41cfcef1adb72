"""Checks the tokens by which backends prove what they may do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server import claims
from server.claims import TOKEN_WRONG
from server.config.access import JWTRules
from server.errors import BadCredentials
from server.grants import Scope, scopes_of
from server.publishers import ServiceClaims
from server.tokens.verifier import JWTVerifier

MAX_LABEL_CHARS = 64

# Who a service is: the subject, else the client of OAuth (RFC 9068 section 2.2) or OpenID Connect.
_WHO = ("sub", "client_id", "azp")

_NOT_IN_LABEL = re.compile(r"[^A-Za-z0-9._:@/|-]")


class JWTServices:
    """The `publishers.ServiceTokens` of a verifier. `rules`: of the verifier, for the names of the claims."""

    def __init__(self, verifier: JWTVerifier, rules: JWTRules) -> None:
        self._verifier = verifier
        self._rules = rules

    async def check(self, token: str) -> ServiceClaims:
        """A token without scopes may publish. One with scopes may what is among them of ours, perhaps nothing; the
        others are those of other services. Raises `BadCredentials`, `TokenExpired`, `AuthUnavailable`."""
        found = await self._verifier.verify(token)
        try:
            tenant = claims.tenant(found.get(self._rules.tenant_claim))
            scopes = _scopes(found.get(self._rules.scope_claim))
        except ValueError:
            raise BadCredentials(TOKEN_WRONG) from None
        return ServiceClaims(tenant, scopes, _label(found))


def _scopes(value: object) -> frozenset[Scope]:
    if value is None:
        return frozenset({Scope.PUBLISH})
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list):
        raise ValueError("is neither a text nor a list")
    return scopes_of(words)


def _label(found: Mapping[str, Any]) -> str:
    who = next((found[name] for name in _WHO if isinstance(found.get(name), str) and found[name]), "unnamed")
    return _NOT_IN_LABEL.sub("_", who[:MAX_LABEL_CHARS])
