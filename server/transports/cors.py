"""What answers say to browsers about pages of other origins (Cross-Origin Resource Sharing, Fetch standard 3.3).

An allowed origin is echoed, with credentials: clients send theirs to other origins (the cookie of a load balancer), and
a browser then takes neither `*` nor an answer without the second header. That gives a foreign page nothing: no cookie
counts here, who listens shows a token.
"""

from __future__ import annotations

from tornado.web import RequestHandler

PREFLIGHT_CACHE_S = 7200
"""For how long a browser need not ask again; the longest that Chromium goes by."""

READABLE = "Retry-After, ETag"
"""What a page may read of an answer, beside what it always may."""


def allow(handler: RequestHandler) -> None:
    """Let the page that asks read the answer. To be called for pages of allowed origins only."""
    handler.set_header("Vary", "Origin")
    origin = handler.request.headers.get("Origin")
    if origin is not None:
        handler.set_header("Access-Control-Allow-Origin", origin)
        handler.set_header("Access-Control-Allow-Credentials", "true")
        handler.set_header("Access-Control-Expose-Headers", READABLE)


def answer_preflight(handler: RequestHandler, methods: str, headers: str) -> None:
    """Answer a request by which a browser asks whether a page may send another one, with these methods and headers."""
    allow(handler)
    handler.set_status(204)
    handler.set_header("Allow", methods)
    handler.set_header("Access-Control-Allow-Methods", methods)
    handler.set_header("Access-Control-Allow-Headers", headers)
    handler.set_header("Access-Control-Max-Age", str(PREFLIGHT_CACHE_S))
    handler.finish()
