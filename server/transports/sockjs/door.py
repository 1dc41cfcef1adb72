"""The door itself: its routes, and the sessions over HTTP that came in by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from server.callers import Caller
from server.limits import REFUSAL_DELAY_S
from server.rooms import Connection
from server.transports.connections import ClientSession
from server.transports.origins import Origins
from server.transports.polling import ExpectedRequests
from server.transports.registry import Connections
from server.transports.sockjs import handlers, receivers, websocket
from server.transports.sockjs.http import HttpConnection
from server.transports.sockjs.stock import SockJSRouter, static, transports
from server.transports.upgrades import Way

Route = tuple[str, type[RequestHandler], dict[str, Any]]

_OURS: dict[type, type[RequestHandler]] = {
    static.GreetingsHandler: handlers.Greeting,
    static.InfoHandler: handlers.Info,
    static.IFrameHandler: handlers.IFrame,
    transports.WebSocketTransport: websocket.WebSocketTransport,
    transports.RawWebSocketTransport: websocket.RawWebSocketTransport,
    transports.XhrPollingTransport: receivers.XhrPolling,
    transports.XhrStreamingTransport: receivers.XhrStreaming,
    transports.XhrSendHandler: receivers.XhrSend,
    transports.EventSourceTransport: receivers.EventSource,
    transports.HtmlFileTransport: receivers.HtmlFile,
    transports.JSONPTransport: receivers.JsonpPolling,
    transports.JSONPSendHandler: receivers.JsonpSend,
}
"""Whose place our handlers take in the table of sockjs-tornado. Not in it: `/chunking_test`, of SockJS 0.1."""


_OVER_HTTP = "xhr|xhr_send|xhr_streaming|eventsource|htmlfile|jsonp|jsonp_send"
"""How the paths of sessions over several requests end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SockJSOptions:
    """Where the door is, and whom it lets in."""

    client_url: str
    """Where our own SockJS client file is served: the page of the iframe transports loads it."""
    prefix: str = "/notification"
    origins: tuple[str, ...] = ("*",)
    """See `Origins`."""
    frame_ancestors: tuple[str, ...] | None = None
    """While `origins` is `*`: the pages that may put those of this door into a frame, as sources of
    Content-Security-Policy; None: all. What is asked from inside the frame seems to come from this server's own page.
    """
    response_limit_bytes: int = 128 * 1024
    """After how much a streaming response ends, and the client asks for the next one."""
    refusal_delay_s: float = REFUSAL_DELAY_S
    """By about how much the answer to who has too many connections is held back."""
    websocket: bool = True
    """Whether there is WebSocket, raw or not."""
    cookie_needed: bool = False
    """Whether to set the cookie JSESSIONID, by which some load balancers keep a session on one node."""


class SockJSDoor(SockJSRouter):
    """A SockJS service at `options.prefix`. To be made on a running loop.

    `open_session` is called with each new connection, `identify` with the address of a request's socket and its
    headers; `connections` looks after those that are open.
    """

    def __init__(
        self,
        open_session: Callable[[Connection], ClientSession],
        identify: Callable[[str, Mapping[str, str]], Caller],
        connections: Connections,
        options: SockJSOptions,
    ) -> None:
        disabled = [] if options.websocket else ["websocket"]
        settings = {"jsessionid": options.cookie_needed, "disabled_transports": disabled}
        super().__init__(None, re.escape(options.prefix), settings)
        # Two timers of sockjs-tornado's, for sessions and statistics that we do not use.
        self._sessions_cleanup.stop()
        self.stats._callback.stop()

        self.options = options
        self._session_path = re.compile(
            rf"{re.escape(options.prefix)}/[^/.?]+/([^/.?]+)/(?:{_OVER_HTTP})(?:\?|$)"
        )
        self.origins = Origins(options.origins, options.frame_ancestors)
        self.open_session = open_session
        self.connections = connections
        self._identify = identify
        self._http_connections: dict[str, HttpConnection] = {}
        self._expected: ExpectedRequests[HttpConnection] = ExpectedRequests(connections, self._forget)

    @property
    def routes(self) -> list[Route]:
        """What `tornado.web.Application` needs to know."""
        routes = [(path, _OURS[stock], kwargs) for path, stock, kwargs in self.urls if stock in _OURS]
        if self.options.websocket:
            return routes
        return [route for route in routes if route[1] is not websocket.RawWebSocketTransport]

    def session_in(self, uri: str) -> str | None:
        """The session over several requests that this one is part of."""
        found = self._session_path.match(uri)
        return None if found is None else unquote(found[1])

    @property
    def ways(self) -> list[Way]:
        """The short ones to WebSocket, for plain requests."""
        if not self.options.websocket or self.options.cookie_needed:
            return []
        prefix = re.escape(self.options.prefix)
        return [
            Way(
                path=re.compile(prefix + path),
                transport=handler.transport,
                connection_class=handler.connection_class,
                open_session=lambda connection: self.open_session(connection),
                allows=self.origins.allows,
                is_logged=False,
            )
            for path, handler in (
                ("/websocket", websocket.RawWebSocketTransport),
                ("/[^/.]+/[^/.]+/websocket", websocket.WebSocketTransport),
            )
        ]

    def identify(self, request: HTTPServerRequest) -> Caller:
        return self._identify(request.remote_ip or "", request.headers)

    # -- sessions over HTTP ----------------------------------------------------------------------------------
    def http_connection(self, session_id: str, transport: str, caller: Caller) -> HttpConnection:
        """The connection of this session, or a new one, to be opened by its first receiver. Raises `Busy` if there are
        too many."""
        connection = self._http_connections.get(session_id)
        if connection is None:
            self._expected.check_space()
            self.connections.admission.may_connect(caller)
            connection = HttpConnection(self, transport, caller, session_id)
            self._http_connections[session_id] = connection
        return connection

    def open_http_connection(self, session_id: str, caller: Caller) -> HttpConnection | None:
        """The connection of this session if it is open and this caller's."""
        connection = self._http_connections.get(session_id)
        if connection is None or connection.is_closed or not connection.is_of(caller):
            return None
        return connection

    def expect(self, connection: HttpConnection) -> None:
        """The client has no request waiting, and is expected to send one soon."""
        self._expected.expect(connection)

    def keep(self, connection: HttpConnection) -> None:
        """The client has a request waiting."""
        self._expected.drop(connection)

    def _forget(self, connection: HttpConnection) -> None:
        self._http_connections.pop(connection.session_id, None)
