"""`/ws/v2`: a plain WebSocket for dialect 2 (docs/protocol.md). Who is listening is said by `join`, not by the
request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from server.errors import ServerError
from server.rooms import Connection
from server.transports.connections import ClientSession
from server.transports.feeds import FeedDoors, WebSocketRequest
from server.transports.upgrades import Way
from server.transports.websocket import WebSocketConnection

OpenSession = Callable[[Connection], ClientSession]


PATH = "/ws/v2"


class SocketV2Handler(WebSocketRequest):
    door = transport = "ws_v2"

    def initialize(self, doors: FeedDoors, open_session: OpenSession) -> None:  # type: ignore[override]  # its route's
        super().initialize(doors)
        self._open_session = open_session

    async def admit(self) -> None:
        """Whoever; join comes first."""

    def open_session(self, connection: Connection) -> ClientSession:
        return self._open_session(connection)

    def refuse(self, error: ServerError) -> None:
        self.answer(error.http_status, {"error": str(error)})


def routes(doors: FeedDoors, open_session: OpenSession) -> list[tuple[Any, ...]]:
    """`open_session`: of clients that speak nothing but dialect 2."""
    return [(PATH, SocketV2Handler, {"doors": doors, "open_session": open_session})]


def way(doors: FeedDoors, open_session: OpenSession) -> Way:
    """The short one, for plain requests."""
    return Way(
        path=re.compile(re.escape(PATH)),
        transport=SocketV2Handler.transport,
        connection_class=WebSocketConnection,
        open_session=open_session,
        allows=doors.origins.allows,
        is_logged=True,
    )
