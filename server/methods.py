"""Which methods a route has: an answer with status 405 has to name them (RFC 9110 section 15.5.6)."""

from __future__ import annotations

from typing import Any

from tornado.web import RedirectHandler, RequestHandler


def methods_of(kind: type[RequestHandler]) -> str:
    """Those that handlers of this kind answer, as the header `Allow` lists them."""
    named = ((name, name.lower()) for name in kind.SUPPORTED_METHODS)
    return ", ".join(name for name, own in named if getattr(kind, own) is not getattr(RequestHandler, own))


class MethodNamingHandler(RequestHandler):
    """Refuses other methods than it has as it should."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's page, with the header."""
        if status_code == 405:
            self.set_header("Allow", methods_of(type(self)))
        super().write_error(status_code, **kwargs)


class LeadingHandler(MethodNamingHandler, RedirectHandler):
    """Leads elsewhere."""
