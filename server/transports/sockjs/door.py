"""The door itself: its routes, the connections that came in by it, and their heartbeats."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tornado.httputil import HTTPServerRequest
from tornado.ioloop import PeriodicCallback
from tornado.web import RequestHandler

from server import bus
from server.callers import Caller
from server.errors import Busy
from server.limits import REFUSAL_DELAY_S
from server.rates import TokenBucket
from server.rooms import Connection
from server.transports.sockjs import handlers, receivers, websocket
from server.transports.sockjs.connections import ClientConnection, ClientSession
from server.transports.sockjs.http import HttpConnection
from server.transports.sockjs.origins import Origins
from server.transports.sockjs.stock import SockJSRouter, static, transports
from server.wire import NOT_JOINED, CloseReason

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


MAX_SESSIONS_WITHOUT_REQUEST = 20_000
"""How many sessions over HTTP may have no request waiting. Each of the others has a TCP connection, which are bounded
elsewhere; of these any number could be opened over one."""


class Admission(Protocol):
    """Who may have how many connections, and how fast they may send."""

    @property
    def join_within_s(self) -> float:
        """How long a connection may be nobody's."""

    def may_connect(self, caller: Caller) -> None:
        """Raises `RateLimited`."""

    def refusal_delay_s(self, caller: Caller, about_s: float) -> float:
        """How long to hold back the answer to who may not."""

    def opened(self, caller: Caller) -> None:
        """A connection of this caller is open."""

    def closed(self, caller: Caller) -> None:
        """It is over. Called once for each."""

    def pace_frame(self, connection: TokenBucket, caller: Caller) -> float:
        """Count what a client sent; how many seconds to wait before more is read of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SockJSOptions:
    """Where the door is, whom it lets in, and the limits of a connection."""

    client_url: str
    """Where our own SockJS client file is served: the page of the iframe transports loads it."""
    prefix: str = "/notification"
    origins: tuple[str, ...] = ("*",)
    """See `Origins`."""
    frame_ancestors: tuple[str, ...] | None = None
    """While `origins` is `*`: the pages that may put those of this door into a frame, as sources of
    Content-Security-Policy; None: all. What is asked from inside the frame seems to come from this server's own page.
    """
    heartbeat_s: float = 25.0
    disconnect_delay_s: float = 5.0
    """How long a client over HTTP may have no request waiting."""
    max_queue_bytes: int = 256 * 1024
    """How much may wait behind the first frame in a connection's queue; more closes it as slow."""
    slow_after_s: float = 30.0
    """Over how long a queue that is not empty must leave at `MIN_BYTES_PER_S`; slower closes the connection as slow."""
    max_message_bytes: int = 1024 * 1024
    """The size of one WebSocket message, or of one request that sends."""
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
    headers, `admission` about each connection.
    """

    def __init__(
        self,
        open_session: Callable[[Connection], ClientSession],
        identify: Callable[[str, Mapping[str, str]], Caller],
        admission: Admission,
        options: SockJSOptions,
    ) -> None:
        disabled = [] if options.websocket else ["websocket"]
        settings = {"jsessionid": options.cookie_needed, "disabled_transports": disabled}
        super().__init__(None, re.escape(options.prefix), settings)
        # Two timers of sockjs-tornado's, for sessions and statistics that we do not use.
        self._sessions_cleanup.stop()
        self.stats._callback.stop()

        self.options = options
        self.origins = Origins(options.origins, options.frame_ancestors)
        self.open_session = open_session
        self.admission = admission
        self.backlogged: set[ClientConnection] = set()
        """The connections with something in their queue, and some that had a moment ago."""
        self._identify = identify
        self._counts: Counter[str] = Counter()
        self._http_connections: dict[str, HttpConnection] = {}
        self._expected: dict[HttpConnection, float] = {}
        """Clients of which no request is waiting, and since when; the longest first."""
        self._strangers: dict[ClientConnection, float] = {}
        """Connections that had no user when last looked at, and since when; the longest first."""

        tick_s = min(1.0, options.heartbeat_s / 8, options.disconnect_delay_s / 4, options.slow_after_s / 4)
        self.give_up_after_s = 4 * options.heartbeat_s
        """When the kernel ends what heartbeats do not see: a connection that is closed, and whose peer is dead."""
        self._slices: list[set[ClientConnection]] = [
            set() for _ in range(round(options.heartbeat_s / tick_s))
        ]
        self._tick_count = 0
        self._opened_count = 0
        self._sweep = PeriodicCallback(self._tick, tick_s * 1000)
        self._sweep.start()

    @property
    def routes(self) -> list[Route]:
        """What `tornado.web.Application` needs to know."""
        routes = [(path, _OURS[stock], kwargs) for path, stock, kwargs in self.urls if stock in _OURS]
        if self.options.websocket:
            return routes
        return [route for route in routes if route[1] is not websocket.RawWebSocketTransport]

    def identify(self, request: HTTPServerRequest) -> Caller:
        return self._identify(request.remote_ip or "", request.headers)

    # -- connections -----------------------------------------------------------------------------------------
    @property
    def connection_count(self) -> int:
        return self._counts.total()

    @property
    def connection_counts(self) -> dict[str, int]:
        """By transport, those in use: websocket, rawwebsocket, xhr_streaming, eventsource, htmlfile, xhr, jsonp."""
        return {transport: count for transport, count in self._counts.items() if count}

    def add(self, connection: ClientConnection) -> None:
        """A connection opens."""
        # Spread over the later half of the round: the first heartbeat is not the second frame already.
        count = len(self._slices)
        connection.slot = (self._tick_count - self._opened_count % max(count // 2, 1)) % count
        self._opened_count += 1
        self._slices[connection.slot].add(connection)
        self._counts[connection.transport] += 1
        self._strangers[connection] = time.monotonic()
        self.admission.opened(connection.caller)
        bus.tell(bus.CONNECTION_OPENED, self, transport=connection.transport)

    def remove(self, connection: ClientConnection, reason: CloseReason | None) -> None:
        """A connection is over, by itself if `reason` is None."""
        self._slices[connection.slot].discard(connection)
        self.backlogged.discard(connection)
        self._counts[connection.transport] -= 1
        self._strangers.pop(connection, None)
        self.admission.closed(connection.caller)
        bus.tell(bus.CONNECTION_CLOSED, self, transport=connection.transport, reason=reason)

    def close_all(self, reason: CloseReason) -> None:
        """Close all connections of clients, whatever their sessions are doing."""
        for part in self._slices:
            for connection in tuple(part):
                connection.close(reason)

    def stop(self) -> None:
        """End the heartbeats. Idempotent."""
        self._sweep.stop()

    # -- sessions over HTTP ----------------------------------------------------------------------------------
    def http_connection(self, session_id: str, transport: str, caller: Caller) -> HttpConnection:
        """The connection of this session, or a new one, to be opened by its first receiver. Raises `Busy` if there are
        too many."""
        connection = self._http_connections.get(session_id)
        if connection is None:
            if len(self._expected) >= MAX_SESSIONS_WITHOUT_REQUEST:
                raise Busy("too many sessions; try again")
            self.admission.may_connect(caller)
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
        self._expected.pop(connection, None)
        self._expected[connection] = time.monotonic()

    def keep(self, connection: HttpConnection) -> None:
        """The client has a request waiting."""
        self._expected.pop(connection, None)

    def _forget_expected(self, now: float) -> None:
        while self._expected:
            connection, since = next(iter(self._expected.items()))
            if now - since < self.options.disconnect_delay_s:
                return
            connection.expire()
            self._expected.pop(connection, None)
            self._http_connections.pop(connection.session_id, None)

    # -- heartbeats ------------------------------------------------------------------------------------------
    def _close_strangers(self, now: float) -> None:
        while self._strangers:
            connection, since = next(iter(self._strangers.items()))
            if now - since < self.admission.join_within_s:
                return
            del self._strangers[connection]
            if not connection.is_joined:
                connection.close(NOT_JOINED)

    def _tick(self) -> None:
        """One timer for all connections: each is looked at once per heartbeat, a slice of them at a time."""
        now = time.monotonic()
        self._forget_expected(now)
        self._close_strangers(now)
        for connection in tuple(self.backlogged):
            connection.check_progress(now)
        self._tick_count += 1
        for connection in tuple(self._slices[self._tick_count % len(self._slices)]):
            connection.heartbeat(now)
            if not (connection.is_joined or connection.is_closed):
                self._strangers.setdefault(connection, now)  # has left
