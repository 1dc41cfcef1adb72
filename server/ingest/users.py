"""What a backend does for its users: make tokens by which they join, and sign them out everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server import claims
from server.errors import InvalidInput, Refused, ServerError
from server.grants import Scope
from server.ingest.base import Gate
from server.ingest.keyed import KeyedHandler
from server.messages import now
from server.requests import TokenRequest, read
from server.tenants import Tenants

logger = logging.getLogger(__name__)

MakeToken = Callable[[str, str, str, float, datetime | None], tuple[str, datetime]]
"""Of tenant, user id, key id, life in seconds and when the user's tokens were last void: the token, and when it ends
(aware UTC)."""


@dataclass(slots=True)
class UserDoors:
    """What the handlers need beside the gate. `max_token_s`: the longest life of a token."""

    tenants: Tenants
    make_token: MakeToken
    max_token_s: float


class _UserHandler(KeyedHandler):
    def initialize(self, gate: Gate, doors: UserDoors) -> None:  # type: ignore[override]  # what the route holds
        super().initialize(gate)
        self._doors = doors


class TokensHandler(_UserHandler):
    """`POST /api/v2/tokens {"user_id", "expires_in"?}`: a token by which this user can join, for as long as the API key
    that asked for it is good."""

    door = "tokens"
    scope = Scope.LISTEN

    async def post(self) -> None:
        try:
            grant = await self.admit(self.presented())
            if grant.key_id is None:
                raise Refused("tokens are made for API keys only: `notification-server key add` makes one")
            request = self._read()
            user_id = _user_id(request.user_id)
            life_s = self._life_s(request.expires_in, grant.key_id)
            voided_at = self._doors.tenants.voided_at(grant.tenant, user_id)
            token, expires_at = self._doors.make_token(grant.tenant, user_id, grant.key_id, life_s, voided_at)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer({"token": token, "expires_at": _instant(expires_at)})

    def _read(self) -> TokenRequest:
        """Raises `InvalidInput`; that of `expires_in` names both bounds, of which one is configured."""
        longest = self._doors.max_token_s
        out_of_bounds = InvalidInput("expires_in", f"not a number of seconds from 1 to {longest:.15g}")
        try:
            request = read(self.json_fields(InvalidInput), TokenRequest)
        except InvalidInput as error:
            raise (out_of_bounds if error.field == "expires_in" else error) from None
        if request.expires_in is not None and request.expires_in > longest:
            raise out_of_bounds
        return request

    def _life_s(self, asked: float | None, key_id: str) -> float:
        """As asked for; no token outlives the key that it was made with."""
        if asked is None:
            asked = self._doors.max_token_s
        key_ends_at = self._doors.tenants.key_expires_at(key_id)
        return asked if key_ends_at is None else min(asked, (key_ends_at - now()).total_seconds())


class SignOutHandler(_UserHandler):
    """`POST /api/v2/users/{user id}/sign-out`: ends all connections of the user, and voids the tokens made for them so
    far."""

    door = "sign-out"
    scope = Scope.ADMIN

    async def post(self, user_id: str) -> None:
        try:
            grant = await self.admit(self.presented())
            user_id = _user_id(user_id)
            await self.keep_to(lambda: self._gate.limits.check_sign_out(grant.tenant))
            await self._doors.tenants.sign_out(grant.tenant, user_id)
        except ServerError as error:
            self.refuse(error)
        else:
            logger.info("signed out everywhere: tenant=%s by %s", grant.tenant, grant.label)
            self.set_status(204)


def _user_id(value: Any) -> str:
    try:
        return claims.user_id(value)
    except ValueError as exc:
        raise InvalidInput("user_id", str(exc)) from None


def _instant(at: datetime) -> str:
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def routes(gate: Gate, doors: UserDoors) -> list[tuple[Any, ...]]:
    what = {"gate": gate, "doors": doors}
    return [
        (r"/api/v2/tokens", TokensHandler, what),
        (r"/api/v2/users/([^/]+)/sign-out", SignOutHandler, what),
    ]
