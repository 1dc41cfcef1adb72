"""Which web pages may use this door."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest


class Origins:
    """`allowed` are origins as browsers write them (`https://example.org`, or `null`), or `*` for all of them.

    The server's own origin is always allowed. What has no origin at all is no foreign web page, and allowed.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self.is_open = "*" in allowed
        self._allowed = frozenset(_normal(origin) for origin in allowed)

    def allows(self, request: HTTPServerRequest) -> bool:
        if self.is_open:
            return True
        origin = request.headers.get("Origin") or _origin_of_page(request)
        if origin is None:
            return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        return _normal(origin) in self._allowed or urlsplit(origin).netloc.lower() == request.host.lower()

    @property
    def frame_ancestors(self) -> str | None:
        """The Content-Security-Policy for pages that work inside a frame of the allowed origins; None: no limit.

        Without it any page could put the SockJS iframe in between, whose requests come from our own origin.
        """
        if self.is_open:
            return None
        return " ".join(["frame-ancestors 'self'", *sorted(self._allowed - {"null"})])


def _normal(origin: str) -> str:
    return origin.rstrip("/").lower()


def _origin_of_page(request: HTTPServerRequest) -> str | None:
    """Scripts and frames (jsonp, htmlfile) are fetched without `Origin`; the page is in `Referer`. None: not there."""
    referer = urlsplit(request.headers.get("Referer", ""))
    return f"{referer.scheme}://{referer.netloc}" if referer.netloc else None
