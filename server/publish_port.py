"""The publishing port of a node, if it has one: its socket, bound early and opened late, and the lane behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from server.config.schema import Application
from server.doors import Doors
from server.ingest.lane.port import PublishingPort
from server.listening import PUBLISHING, Peers, TCPListener
from server.metrics import Metrics
from server.security_headers import NO_PAGE, SERVER
from server.tasks import Tasks

HEADERS = {"Server": SERVER, "Referrer-Policy": "same-origin", "Content-Security-Policy": NO_PAGE}
"""As `security_headers` gives them to the answers of the main port."""


class PublishPort:
    """All of it does nothing where the configuration names no port."""

    def __init__(self, application: Application, doors: Doors, metrics: Metrics, peers: Peers) -> None:
        self._application = application
        self._peers = peers
        self._listener: TCPListener | None = None
        self._lane = PublishingPort(
            doors.gate,
            doors.publishing,
            headers=HEADERS,
            note=metrics.note_request,
        )

    @property
    def port(self) -> int | None:
        """The one that it got."""
        return None if self._listener is None else self._listener.port

    def bind(self, bound: Iterable[socket.socket] | None = None) -> None:
        """Callers are still refused. `bound`: sockets that are bound already, none if there is no such port; None: bind
        as the configuration says. Raises `StartupError`."""
        address, port = self._application.publish_address, self._application.publish_port
        given = None if bound is None else list(bound)
        if given or (given is None and port is not None):
            self._listener = TCPListener(address, port or 0, self._peers, bound=given, keys=PUBLISHING)

    def start(self, tasks: Tasks) -> None:
        """Serve from now on; `tasks`: by whom its loop is owned. Raises `StartupError`."""
        if self._listener is not None:
            self._listener.start(self._lane.serve)
            tasks.start(self._lane.run(), "publishing port")

    async def stop(self) -> None:
        """Refuse all that come from now on; who is there is answered once more."""
        if self._listener is not None:
            await self._listener.close()
        self._lane.stop()

    async def close(self) -> None:
        """Cut off all that is left. Idempotent."""
        await self._lane.close()
