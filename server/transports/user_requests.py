"""Requests of users: with a token in the header, from pages of whatever origin is allowed; refused as RFC 9457 says."""

from __future__ import annotations

from typing import Any

from server.auth import Identity
from server.errors import BadCredentials, InvalidInput, NoCredentials, RateLimited, Refused, ServerError
from server.limits import refusal_headers
from server.transports import cors
from server.transports.feeds import FeedRequest

RETRY_AFTER_S = 2
"""What a client is told to wait before it tries again, where nothing more exact is known."""


class UserRequest(FeedRequest):
    """A door derives from it, and says in `who` whose request it is."""

    allowed_headers = "Authorization, Cache-Control, Content-Type"
    """What pages may send."""

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")

    async def prepare(self) -> None:
        if self.request.method in self.methods:
            if self._is_page_allowed():
                cors.allow(self)
            await super().prepare()

    def options(self) -> None:
        if self._is_page_allowed():
            cors.answer_preflight(self, self._allowed_methods, self.allowed_headers)
        else:
            self.refuse(Refused("pages of this origin may not connect"))

    @property
    def _allowed_methods(self) -> str:
        return ", ".join((*self.methods, "OPTIONS"))

    def check_xsrf_cookie(self) -> None:
        """No cookie has any power here."""

    def _is_page_allowed(self) -> bool:
        return self.doors.origins.allows(self.request)

    def _bearer(self) -> str | None:
        """The token in the header `Authorization` (RFC 6750 section 2.1); None if there is none."""
        scheme, _, token = self.request.headers.get("Authorization", "").strip().partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    async def _of_bearer(self) -> Identity:
        return await self._of_token(self._bearer(), "a token is needed: Authorization: Bearer …")

    # -- refusals --------------------------------------------------------------------------------------------
    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if self._is_page_allowed():
            cors.allow(self)  # what was set so far is gone by now
        super().write_error(status_code, **kwargs)

    def refuse(self, error: ServerError) -> None:
        """As RFC 9457 has it."""
        is_about_token = isinstance(error, NoCredentials | BadCredentials)
        status = 401 if is_about_token else error.http_status
        if is_about_token:
            why = "" if isinstance(error, NoCredentials) else ', error="invalid_token"'
            self.set_header("WWW-Authenticate", f'Bearer realm="notifications"{why}')
        if isinstance(error, RateLimited):
            for name, value in refusal_headers(error).items():
                self.set_header(name, value)
        elif error.retryable:
            self.set_header("Retry-After", str(RETRY_AFTER_S))
        field = {"field": error.field} if isinstance(error, InvalidInput) and error.field else {}
        self.answer_problem(status, error.code, str(error), **field)
