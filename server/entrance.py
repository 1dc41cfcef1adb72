"""Where all requests come in. While the server starts, which may take long, only those who watch over the process are
answered; all others are asked to come again."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application, OutputTransform, RequestHandler, stream_request_body

from server.ingest.lane.head import target_of
from server.relocation import Relocation

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Of a request that is asked to come again: read, so that the answer arrives, and dropped."""


BODY_BYTES = 64 * 1024
"""Of requests that need none; the doors that read bodies have limits of their own, and keep them as they read."""

BODY_TIMEOUT_S = 60.0
"""For one request's body: 4 MiB over a line of 1 Mbit/s take 34 s. Who sends no more holds up to that much memory."""

IDLE_TIMEOUT_S = 75.0
"""For the headers of a request, and so between two on one connection: above the 60 s for which common proxies keep
theirs, so that it is they who close it. Neither time runs on a WebSocket, or during an answer: see
`transports.answers`."""


class Entrance(HTTPServerConnectionDelegate):
    """Leads to `application` once it is open, and requests that are another worker's to that one. `early_routes`: what
    is answered before that, too; `transforms`: of those answers."""

    def __init__(
        self,
        application: Application,
        early_routes: list[Any],
        transforms: list[type[OutputTransform]],
        relocation: Relocation | None = None,
    ) -> None:
        self.application = application
        self._relocation = relocation
        self._early = _EarlyApplication([*early_routes, (r".*", _NotYetHandler)], transforms=transforms)
        self._is_open = False

    def open(self) -> None:
        """The server serves from now on."""
        self._is_open = True

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """As Tornado asks when a connection waits for its next request, which may be long before that comes."""

        def lead(start_line: RequestStartLine, headers: HTTPHeaders) -> HTTPMessageDelegate | None:
            relocation = self._relocation if self._is_open else None
            if relocation is not None and relocation.takes(start_line, headers, request_conn):
                return None
            return self._now.start_request(server_conn, request_conn)

        return _Request(lead)

    @property
    def _now(self) -> Application:
        return self.application if self._is_open else self._early


class _Request(HTTPMessageDelegate):
    """Goes where it is led to when its head has come; None: it has left this process."""

    def __init__(self, lead: Callable[[RequestStartLine, HTTPHeaders], HTTPMessageDelegate | None]) -> None:
        self._lead = lead
        self._delegate: HTTPMessageDelegate | None = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        start_line = _in_origin_form(cast(RequestStartLine, start_line))
        self._delegate = self._lead(start_line, headers)
        return None if self._delegate is None else self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return None if self._delegate is None else self._delegate.data_received(chunk)

    def finish(self) -> None:
        if self._delegate is not None:
            self._delegate.finish()

    def on_connection_close(self) -> None:
        if self._delegate is not None:
            self._delegate.on_connection_close()


def _in_origin_form(start_line: RequestStartLine) -> RequestStartLine:
    """Servers have to take the absolute form, too (RFC 9112 section 3.2.2); Tornado looks for a route of that name."""
    target = start_line.path
    if target.startswith("/") or "://" not in target:
        return start_line
    path, query = target_of(target.encode("latin-1"))
    return start_line._replace(path=f"{path}?{query.decode('latin-1')}" if query else path)


class _EarlyApplication(Application):
    def log_request(self, handler: RequestHandler) -> None:
        # Else a log of a long start would hold little else.
        logger.debug("%d %s %s", handler.get_status(), handler.request.method, handler.request.path)


@stream_request_body
class _NotYetHandler(RequestHandler):
    def prepare(self) -> None:
        self.request.connection.set_max_body_size(MAX_BODY_BYTES)  # type: ignore[union-attr]  # HTTP/1 always has it

    def data_received(self, chunk: bytes) -> None:
        pass

    def _refuse(self) -> None:
        """As RFC 9457 has it."""
        problem = {
            "type": "about:blank",
            "title": "starting",
            "status": 503,
            "detail": "the server is starting; try again",
        }
        self.set_status(503)
        self.set_header("Retry-After", str(RETRY_AFTER_S))
        self.set_header("Content-Type", "application/problem+json")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(problem))

    get = head = post = put = patch = delete = options = _refuse


def make_http_server(entrance: Entrance) -> HTTPServer:
    """What speaks HTTP on the connections that it is handed, and knows when who has been silent for too long."""
    return HTTPServer(
        entrance,
        max_body_size=BODY_BYTES,
        body_timeout=BODY_TIMEOUT_S,
        idle_connection_timeout=IDLE_TIMEOUT_S,
    )
