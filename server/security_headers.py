"""What every answer says to browsers about itself, whichever handler it comes from, errors included."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform

SERVER = "notification-server"
"""Tornado would name itself with its version, which is a help to nobody but those who look for old ones."""

NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
"""For what is not meant to be looked at: should a browser take it for a page all the same, nothing in it works."""

PAGE = "base-uri 'none'; object-src 'none'"
"""For pages that set no policy of their own: those of SockJS, whose scripts stand in them, and which pages of other
origins must be able to frame."""

STRICT_TRANSPORT_SECURITY = "max-age=31536000"
"""A year (RFC 6797). Not for the hosts below this one, of which nothing is known here."""


class SecurityHeaders(OutputTransform):
    """Adds the headers as an answer leaves; a policy that the handler has set stays."""

    def __init__(self, request: HTTPServerRequest) -> None:
        self._is_secure = request.protocol == "https"

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["Server"] = SERVER
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = (
            "same-origin"  # without any, browsers hide whose page it is that posts a form
        )
        if "Content-Security-Policy" not in headers:
            headers["Content-Security-Policy"] = PAGE if _is_page(status_code, headers, chunk) else NO_PAGE
        return status_code, headers, chunk


WITHOUT_CONTENT = {
    "Server": SERVER,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": NO_PAGE,
}
"""The same for an answer that is no page, and did not come by TLS."""


class StrictSecurityHeaders(SecurityHeaders):
    """For RELEASE: whoever came by our own TLS is to come by TLS only, to every port of this host. (In DEBUG that host
    is the developer's own, with other servers on it.)"""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        if self._is_secure:
            headers["Strict-Transport-Security"] = STRICT_TRANSPORT_SECURITY
        return super().transform_first_chunk(status_code, headers, chunk, finishing)


def _is_page(status_code: int, headers: HTTPHeaders, chunk: bytes) -> bool:
    """Tornado's own error pages are HTML too, and so is, by its default, an answer with nothing in it."""
    return status_code == 200 and bool(chunk) and headers.get("Content-Type", "").startswith("text/html")
