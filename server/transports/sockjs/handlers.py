"""What every request to this door goes through, and the requests that have no session: greeting, info, iframe."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import secrets
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, RequestHandler

from server.errors import RateLimited, ServerError
from server.limits import refusal_headers
from server.transports.sockjs.stock import GreetingsHandler, PreflightHandler

if TYPE_CHECKING:
    from asyncio import Future
    from types import TracebackType

    from server.transports.sockjs.door import SockJSDoor

LOG = logging.getLogger(__name__)

CACHE_S = 365 * 24 * 3600

IFRAME_PAGE = """<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="{client_url}"></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>"""


class RefusingHandler(RequestHandler):
    """Refuses foreign pages, and answers errors as the protocol wants it. Logs no path: it holds the session's id."""

    server: SockJSDoor
    access_methods = "OPTIONS, POST"

    def prepare(self) -> Awaitable[None] | None:
        if not self.server.origins.allows(self.request):
            raise HTTPError(403, reason="Origin not allowed")
        return None

    def check_xsrf_cookie(self) -> None:
        """No cookie has any power here."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", self.access_methods)
            self.clear_header("Content-Type")
            self.finish()
        else:
            self.finish_text(f"{self._reason}\n")

    async def refuse(self, error: ServerError) -> None:
        """Answer with what is wrong, and when to come back."""
        if isinstance(error, RateLimited):
            about_s = self.server.options.refusal_delay_s
            caller = self.server.identify(self.request)
            await asyncio.sleep(self.server.connections.admission.refusal_delay_s(caller, about_s))
            for name, value in refusal_headers(error).items():
                self.set_header(name, value)
        self.finish_text(f"{error}\n", error.http_status)

    def finish_text(self, text: str, status_code: int | None = None) -> None:
        """Answer with plain text."""
        if status_code is not None:
            self.set_status(status_code)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(text)

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not isinstance(value, HTTPError):
            LOG.error("a SockJS request failed", exc_info=value)

    def _log(self) -> None:
        """No line per request: a client polls, and the protocol wants status 500 for a client's mistakes."""


class Handler(RefusingHandler, PreflightHandler):
    """A request over plain HTTP."""

    def initialize(self, server: SockJSDoor) -> None:
        self.server = server

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if self.server.origins.allows(self.request):
            self.preflight()  # what was set so far is gone by now
        super().write_error(status_code, **kwargs)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        # sockjs-tornado's own counts for its statistics, and swallows the future.
        return RequestHandler.finish(self, chunk)

    def on_connection_close(self) -> None:
        """The client went away before the answer was complete."""
        RequestHandler.on_connection_close(self)  # past sockjs-tornado, as above

    def compute_etag(self) -> str | None:
        """What changes has none, or a client could be told 304."""
        return None

    def enable_cache(self) -> None:
        self.set_header("Cache-Control", f"max-age={CACHE_S}, public")
        self.set_header("Expires", datetime.now(UTC) + timedelta(seconds=CACHE_S))
        self.set_header("Access-Control-Max-Age", str(CACHE_S))

    def disable_cache(self) -> None:
        # no-transform: a proxy that compresses would hold a stream back.
        self.set_header("Cache-Control", "no-store, no-cache, no-transform, must-revalidate, max-age=0")

    def preflight(self) -> None:
        """The headers of Cross-Origin Resource Sharing.

        An allowed origin is echoed, with credentials: SockJS clients send theirs to other origins (the cookie of a load
        balancer), and a browser then takes neither `*` nor an answer without the second header. That gives a foreign
        page nothing: no cookie counts here, whoever joins sends login and password in a message.
        """
        self.set_header("Vary", "Origin")
        origin = self.request.headers.get("Origin")
        if origin is not None:
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Credentials", "true")
        elif self.server.origins.is_open:
            self.set_header("Access-Control-Allow-Origin", "*")
        requested = self.request.headers.get("Access-Control-Request-Headers")
        if requested:
            self.set_header("Access-Control-Allow-Headers", requested)

    def limit_frames(self) -> None:
        """Let only some pages put this one into a frame: see `Origins.frame_ancestors`."""
        if self.server.origins.frame_ancestors is not None:
            self.set_header("Content-Security-Policy", self.server.origins.frame_ancestors)


class Greeting(Handler, GreetingsHandler):
    """`/`: is there a SockJS server?"""

    access_methods = "GET"


class Info(Handler):
    """`/info`: what the client needs to choose a transport."""

    access_methods = "OPTIONS, GET"

    def get(self) -> None:
        self.preflight()
        self.disable_cache()
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        info = {
            "websocket": self.server.options.websocket,
            "cookie_needed": self.server.options.cookie_needed,
            "origins": ["*:*"],  # "Currently ignored", says the protocol
            "entropy": secrets.randbits(32),
        }
        self.finish(json.dumps(info))


class IFrame(Handler):
    """`/iframe*.html`: the page inside which the iframe transports work, on our own origin."""

    access_methods = "GET"

    def get(self) -> None:
        self.enable_cache()
        self.limit_frames()
        self.finish(IFRAME_PAGE.format(client_url=html.escape(self.server.options.client_url)))

    def compute_etag(self) -> str | None:
        return RequestHandler.compute_etag(self)
