"""`/api/users/…`: tokens for a password, as the Django service gave them (CONTRACT C3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from server.auth import Authenticator, Identity, Proof
from server.commands import MAX_CREDENTIAL_CHARS, MAX_TOKEN_CHARS, Join, JoinByToken, is_unicode
from server.errors import BadCredentials, InvalidInput, NoCredentials, Refused, ServerError
from server.ingest.base import DoorHandler, Gate
from server.tenants import Tenants

CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "origin, content-type, accept, authorization",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Max-Age": "86400",
}
"""Credentials travel in bodies and headers, never in cookies."""

REQUIRED = "This field is required."
NULL = "This field may not be null."
BLANK = "This field may not be blank."
NOT_TEXT = "Not a valid string."
"""As Django REST framework says it."""


class _WrongFields(InvalidInput):
    """`reasons`: why, by field; at least one."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(*next(iter(reasons.items())))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class UserTokenDoors:
    """What the handlers need beside the gate. `make_login`: of who it is, whether with a refresh token, and when the
    user's tokens were last void: those by type. `check_refresh`: whose refresh token that is."""

    authenticator: Authenticator
    tenants: Tenants
    make_login: Callable[[Identity, bool, datetime | None], dict[str, str]]
    check_refresh: Callable[[str], Proof]

    def tokens(self, identity: Identity, *, with_refresh: bool) -> dict[str, str]:
        """The tokens for who has just proved who they are, by type. Raises `AuthUnavailable`."""
        voided_at = self.tenants.voided_at(identity.tenant, identity.user_id)
        return self.make_login(identity, with_refresh, voided_at)


class _UserTokenHandler(DoorHandler):
    door = "user-tokens"

    def initialize(self, gate: Gate, doors: UserTokenDoors) -> None:  # type: ignore[override]  # what the route holds
        super().initialize(gate)
        self._doors = doors

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name, value in CORS_HEADERS.items():
            self.set_header(name, value)

    def options(self) -> None:
        """The preflight of a page of another origin."""
        self.set_status(204)

    def texts(self, max_chars: int, *names: str) -> list[str]:
        """These fields of the body. Raises `InvalidInput`, which tells of all that are wrong."""
        fields = self.json_fields(InvalidInput)
        reasons = {name: why for name in names if (why := _why_wrong(fields, name, max_chars))}
        if reasons:
            raise _WrongFields(reasons)
        return [fields[name] for name in names]

    def status_of(self, error: ServerError) -> int:
        return 401 if isinstance(error, Refused) else super().status_of(error)

    def problem(self, error: ServerError) -> dict[str, Any]:
        """Beside ours: `{"field": ["why"]}`, and `{"detail", "code"}` as that service's library has them."""
        problem = super().problem(error)
        if isinstance(error, _WrongFields):
            return {name: [why] for name, why in error.reasons.items()} | problem
        if isinstance(error, InvalidInput):
            return {error.field or "non_field_errors": [error.reason]} | problem
        if isinstance(error, BadCredentials):
            return problem | dict(self.wrong)
        return problem

    def _finish(self, body: bytes) -> None:
        if self.get_status() == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="api"')  # RFC 9110 section 11.6.1
        super()._finish(body)

    wrong: Mapping[str, Any] = MappingProxyType(
        {"detail": "Token is invalid or expired", "code": "token_not_valid"}
    )
    """What is said beside ours of a token, or a password, that is wrong."""


class ObtainHandler(_UserTokenHandler):
    """`POST /api/users/token/ {"username", "password"}` -> `{"refresh", "access", "identity"}`."""

    wrong = MappingProxyType({"detail": "No active account found with the given credentials"})

    async def post(self) -> None:
        """Check the password, and give tokens."""
        try:
            self._gate.limits.check_request(None, self.caller)
            login, password = self.texts(MAX_CREDENTIAL_CHARS, "username", "password")
            identity = await self._doors.authenticator.authenticate(Join(login, password), self.caller)
            tokens = self._doors.tokens(identity, with_refresh=True)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer(tokens)


class RefreshHandler(_UserTokenHandler):
    """`POST /api/users/token/refresh/ {"refresh"}` -> `{"access", "identity"}`."""

    async def post(self) -> None:
        """Give new tokens to whose refresh token still counts."""
        try:
            self._gate.limits.check_request(None, self.caller)
            [token] = self.texts(MAX_TOKEN_CHARS, "refresh")
            identity = self._doors.authenticator.still(self._doors.check_refresh(token))
            tokens = self._doors.tokens(identity, with_refresh=False)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer(tokens)


class VerifyHandler(_UserTokenHandler):
    """`POST /api/users/token/verify/ {"token"}` -> `{}`."""

    async def post(self) -> None:
        """Say whether a token counts."""
        try:
            self._gate.limits.check_request(None, self.caller)
            [token] = self.texts(MAX_TOKEN_CHARS, "token")
            await self._verify(token)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer({})

    async def _verify(self, token: str) -> None:
        try:
            await self._doors.authenticator.authenticate(JoinByToken(token), self.caller)
        except BadCredentials:
            self._doors.authenticator.still(self._doors.check_refresh(token))


class IsAuthenticatedHandler(_UserTokenHandler):
    """`GET /api/users/is-authenticated/` with `Authorization: Bearer …`: 200 without a body."""

    wrong = MappingProxyType(
        {
            "detail": "Given token not valid for any token type",
            "code": "token_not_valid",
            "messages": [
                {
                    "token_class": "AccessToken",
                    "token_type": "access",
                    "message": "Token is invalid or expired",
                }
            ],
        }
    )

    async def get(self) -> None:
        """Say whether the caller's token counts."""
        try:
            self._gate.limits.check_request(None, self.caller)
            scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise NoCredentials("Authentication credentials were not provided.")
            if len(token) > MAX_TOKEN_CHARS:
                raise BadCredentials("the token is too long")
            await self._doors.authenticator.authenticate(JoinByToken(token.strip()), self.caller)
        except ServerError as error:
            self.refuse(error)
        else:
            self.set_status(200)


def _why_wrong(fields: Mapping[str, Any], name: str, max_chars: int) -> str:
    """ "" if it is not."""
    if name not in fields:
        return REQUIRED
    value = fields[name]
    if value is None:
        return NULL
    if not isinstance(value, str) or not is_unicode(value):
        return NOT_TEXT
    if not value.strip():
        return BLANK
    return f"longer than {max_chars} characters" if len(value) > max_chars else ""


def routes(gate: Gate, doors: UserTokenDoors) -> list[tuple[Any, ...]]:
    what = {"gate": gate, "doors": doors}
    return [
        (r"/api/users/token/?", ObtainHandler, what),
        (r"/api/users/token/refresh/?", RefreshHandler, what),
        (r"/api/users/token/verify/?", VerifyHandler, what),
        (r"/api/users/is-authenticated/?", IsAuthenticatedHandler, what),
    ]
