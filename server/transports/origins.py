"""Which web pages may use this door."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Asking(Protocol):
    """A request, as far as its origin is looked at."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def host(self) -> str: ...


class Origins:
    """`allowed` are origins as browsers write them (`https://example.org`, or `null`), or `*` for all of them.

    The server's own origin is always allowed. What has no origin at all is no foreign web page, and allowed.

    `framing_if_open` are the pages that may put our pages into a frame while all may come in, as sources of
    Content-Security-Policy; None: all pages.
    """

    def __init__(self, allowed: Collection[str], framing_if_open: Collection[str] | None = None) -> None:
        self.is_open = "*" in allowed
        self._allowed = frozenset(_normal(origin) for origin in allowed)
        self._framing_if_open = framing_if_open

    def allows(self, request: Asking) -> bool:
        if self.is_open:
            return True
        origin = request.headers.get("Origin") or _origin_of_page(request)
        if origin is None:
            return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        origin = _normal(origin)
        # TLS may end at a proxy: the scheme of our own is that of the page.
        scheme = origin.partition("://")[0]
        return origin in self._allowed or origin == _normal(f"{scheme}://{request.host}")

    @property
    def frame_ancestors(self) -> str | None:
        """The Content-Security-Policy for pages that work inside a frame of other pages; None: no limit.

        Without it any page could put the SockJS iframe in between, whose requests come from our own origin.
        """
        if not self.is_open:
            return " ".join(["frame-ancestors 'self'", *sorted(self._allowed - {"null"})])
        if self._framing_if_open is None:
            return None
        return " ".join(["frame-ancestors", *(self._framing_if_open or ["'none'"])])


def _normal(origin: str) -> str:
    """As browsers write it: in small letters, and without the port that goes without saying, which configurations and
    proxies name all the same."""
    origin = origin.rstrip("/").lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], ""))


def _origin_of_page(request: Asking) -> str | None:
    """Scripts and frames (jsonp, htmlfile) are fetched without `Origin`; the page is in `Referer`. None: not there."""
    referer = request.headers.get("Referer", "")
    try:
        parts = urlsplit(referer)
    except ValueError:
        return referer  # of no page that is known
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else None
