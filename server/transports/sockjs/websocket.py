"""SockJS over WebSocket, and the raw WebSocket beside it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from tornado.httputil import HTTPServerRequest

from server.callers import Caller
from server.errors import RateLimited
from server.rooms import Connection
from server.transports.connections import LOG, ClientSession
from server.transports.registry import Connections
from server.transports.sockjs.frames import (
    HEARTBEAT_BYTES,
    OPEN,
    close_frame,
    parse_messages,
    sockjs_websocket_bytes,
)
from server.transports.sockjs.handlers import RefusingHandler
from server.transports.websocket import TOO_OLD, WebSocketConnection, WebSocketEndpoint, text_frame_bytes
from server.wire import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.transports.sockjs.door import SockJSDoor


class SockJSWebSocketConnection(WebSocketConnection):
    """A SockJS client over WebSocket."""

    __slots__ = ()

    encode = staticmethod(sockjs_websocket_bytes)

    def open(self, open_session: Callable[[Connection], ClientSession]) -> None:
        self._write(text_frame_bytes(OPEN))
        super().open(open_session)

    def _send_heartbeat(self) -> None:
        self._write(HEARTBEAT_BYTES)

    def _say_goodbye(self, reason: CloseReason) -> None:
        self._stream.write(text_frame_bytes(close_frame(reason)))

    def take(self, message: str) -> Awaitable[None] | None:
        if not message:
            return None  # protocol: empty frames are ignored
        try:
            texts = parse_messages(message, may_be_single=True)
        except ValueError:
            LOG.info("broken JSON over WebSocket from %s", self.caller.address)
            self.abort()
            return None
        return self.receive_one(texts[0]) if texts and len(texts) == 1 else self.receive(texts or ())


class RawWebSocketTransport(RefusingHandler, WebSocketEndpoint):
    """`/websocket`: a message is a text frame, and nothing else is sent."""

    transport = "rawwebsocket"
    access_methods = "GET"

    def initialize(self, server: SockJSDoor) -> None:
        self.server = server

    @property
    def connections(self) -> Connections:  # type: ignore[override]  # as of the door
        return self.server.connections

    async def prepare(self) -> None:
        super().prepare()
        if self.request.version == "HTTP/1.0":
            self.finish_text(f"{TOO_OLD}\n", 400)
            return
        try:
            self.connections.admission.may_connect(self.identify(self.request))
        except RateLimited as error:
            await self.refuse(error)

    def identify(self, request: HTTPServerRequest) -> Caller:
        return self.server.identify(request)

    def open_session(self, connection: Connection) -> ClientSession:
        return self.server.open_session(connection)


class WebSocketTransport(RawWebSocketTransport):
    """`/<server>/<session>/websocket`. The session lives as long as the socket; the ids are not looked at."""

    transport = "websocket"
    connection_class = SockJSWebSocketConnection
    connection: SockJSWebSocketConnection
