"""The door itself: its routes, and the clients over HTTP that came in by it."""

from __future__ import annotations

import re
import secrets
from typing import Any
from urllib.parse import parse_qs

from tornado.httputil import HTTPServerRequest
from tornado.routing import PathMatches, Rule

from server.callers import Caller
from server.rooms import Connection
from server.transports.connections import STRANGER_MESSAGE_BYTES, UNANSWERED_HEARTBEATS, ClientSession
from server.transports.feeds import FeedDoors
from server.transports.polling import ExpectedRequests
from server.transports.socketio.connection import SocketIOConnection
from server.transports.socketio.packets import handshake
from server.transports.socketio.polling import PollingHandler
from server.transports.socketio.session import SocketIOSession
from server.transports.socketio.websocket import SocketIOWebSocket

PATH = r"/socket\.io/?"


class SocketIODoor:
    """To be made on a running loop."""

    def __init__(self, doors: FeedDoors) -> None:
        self.doors = doors
        self.connections = doors.connections
        self.origins = doors.origins
        self._over_http: dict[str, SocketIOConnection] = {}
        self._expected: ExpectedRequests[SocketIOConnection] = ExpectedRequests(self.connections, self.forget)

    def identify(self, request: HTTPServerRequest) -> Caller:
        return self.doors.identify(request.remote_ip or "", request.headers)

    def may_connect(self, caller: Caller) -> None:
        """Raises `RateLimited`, `Busy`."""
        self._expected.check_space()
        self.connections.admission.may_connect(caller)

    # -- clients ---------------------------------------------------------------------------------------------
    def make(self, caller: Caller) -> SocketIOConnection:
        """A connection of a client that may connect; to be opened."""
        sid = self.doors.affinity.mint(lambda: secrets.token_urlsafe(18))
        return SocketIOConnection(self, caller, sid)

    def open_over_http(self, caller: Caller) -> str:
        """A new client; what it is told first."""
        connection = self.make(caller)
        self._over_http[connection.sid] = connection
        self.expect(connection)
        self.open(connection)
        return self.handshake(connection.sid, upgrades=True)

    def open(self, connection: SocketIOConnection) -> None:
        def open_session(opened: Connection) -> ClientSession:
            return SocketIOSession(connection, self.doors)

        connection.open(open_session)

    def handshake(self, sid: str, *, upgrades: bool) -> str:
        heartbeat_s = self.connections.options.heartbeat_s
        return handshake(
            sid,
            heartbeat_s=heartbeat_s,
            patience_s=UNANSWERED_HEARTBEATS * heartbeat_s,
            max_bytes=STRANGER_MESSAGE_BYTES,
            upgrades=upgrades,
        )

    def find(self, sid: str) -> SocketIOConnection | None:
        """The client over HTTP with this id; it may be closed."""
        return self._over_http.get(sid)

    def forget(self, connection: SocketIOConnection) -> None:
        """It is over, or over WebSocket from now on."""
        self._expected.drop(connection)
        self._over_http.pop(connection.sid, None)

    # -- requests that are expected --------------------------------------------------------------------------
    def expect(self, connection: SocketIOConnection) -> None:
        """The client has no request waiting, and is expected to send one soon."""
        if connection.sid in self._over_http:
            self._expected.expect(connection)

    def keep(self, connection: SocketIOConnection) -> None:
        """The client has a request waiting."""
        self._expected.drop(connection)


class _Upgrades(PathMatches):
    """Requests for a WebSocket."""

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        is_upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        return super().match(request) if is_upgrade else None


def session_in(uri: str) -> str | None:
    """The session that a request is for; None: it is for a new one, or for another door."""
    path, _, query = uri.partition("?")
    return parse_qs(query).get("sid", [""])[-1].strip() or None if re.fullmatch(PATH, path) else None


def routes(door: SocketIODoor) -> list[Any]:
    """What `tornado.web.Application` needs to know."""
    return [Rule(_Upgrades(PATH), SocketIOWebSocket, {"door": door}), (PATH, PollingHandler, {"door": door})]
