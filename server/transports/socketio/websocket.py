"""The request that becomes a WebSocket: of a client that comes by it, or that came over HTTP and goes on by it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tornado.httputil import HTTPServerRequest

from server.callers import Caller
from server.transports.connections import STRANGER_MESSAGE_BYTES, tune_socket
from server.transports.registry import Connections
from server.transports.socketio.connection import SocketIOConnection
from server.transports.socketio.handlers import BadRequest, Refusal, SocketIORequest
from server.transports.socketio.packets import PROBE, PROBED, UPGRADE
from server.transports.websocket import PacedProtocol, WebSocketEndpoint, text_frame_bytes

PROBE_WITHIN_S = 10.0
"""How long a WebSocket may be tried out."""


class SocketIOWebSocket(SocketIORequest, WebSocketEndpoint):
    """A client that comes over WebSocket, or would like to go on over it."""

    transport = "socketio"
    connection: SocketIOConnection
    _sid: str | None = None
    _is_open = False
    _deadline: asyncio.TimerHandle | None = None
    """Set while the WebSocket is being tried out."""

    @property
    def connections(self) -> Connections:  # type: ignore[override]  # as of the door
        return self.door.connections

    async def prepare(self) -> None:
        try:
            self._sid = self.check("websocket")
            if self._sid is not None and self._find_to_upgrade() is None:
                raise BadRequest(Refusal.UNKNOWN_SESSION)
        except BadRequest as bad:
            self.refuse(bad.refusal)
            return
        if self._sid is None:
            await self.admit()

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Become a WebSocket."""
        wrong = self.why_no_upgrade()
        if wrong is None:
            await super().get(*args, **kwargs)
        else:
            self._answer_error(wrong.status, 3, wrong.reason)

    def _find_to_upgrade(self) -> SocketIOConnection | None:
        client = self.door.find(self._sid or "")
        return None if client is None or client.is_closed or client.is_probed else client

    def identify(self, request: HTTPServerRequest) -> Caller:
        return self.door.identify(request)

    def open(self, *args: str, **kwargs: str) -> None:
        protocol: PacedProtocol = self.ws_connection  # type: ignore[assignment]  # is there by now
        if protocol.drop_if_gone():
            return
        tune_socket(protocol.stream, self.connections.give_up_after_s)
        self._is_open = True
        if self._sid is None:
            self.connection = self.door.make(self.caller)
            self.connection.carry(protocol)
            self.connection.send_packet(self.door.handshake(self.connection.sid, upgrades=False))
            self.door.open(self.connection)
        else:
            self._begin_probe(protocol)
        self._forget_request()

    # -- going over from HTTP --------------------------------------------------------------------------------
    def _begin_probe(self, protocol: PacedProtocol) -> None:
        client = self._find_to_upgrade()
        if client is None:  # any more
            self._is_open = False
            protocol.stream.close()
            protocol.drop_if_gone()
            return
        self.connection = client
        client.is_probed = True
        self._deadline = asyncio.get_running_loop().call_later(PROBE_WITHIN_S, protocol.stream.close)

    def _probe(self, packet: str) -> None:
        """Two packets: whether it works, and that it is to be used from now on."""
        protocol: PacedProtocol = self.ws_connection  # type: ignore[assignment]  # is there: it brought the packet
        client = self.connection
        if protocol.drop_if_gone():  # but its last packets are still read
            return
        client.last_alive_at = time.monotonic()
        if packet == PROBE:
            protocol.stream.write(text_frame_bytes(PROBED))
            client.release_poll()
        elif packet == UPGRADE and not client.is_closed:
            self._end_probe()
            client.carry(protocol)
        else:
            protocol.stream.close()

    def _end_probe(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self.connection.is_probed = False

    async def receive(self, message: str) -> None:
        if self._deadline is None:
            await self.connection.take(message)
        else:
            self._probe(message)

    async def on_message(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.connection.last_alive_at = time.monotonic()  # belongs to an event, of which nothing comes
            return
        await self.receive(message)

    @property
    def message_limit(self) -> int:
        return super().message_limit if self._deadline is None else STRANGER_MESSAGE_BYTES

    def on_pong(self, data: bytes) -> None:
        """We send no pings of WebSocket."""

    def note_goodbye(self) -> None:
        if self._is_open and self._deadline is None and self.connection.is_over_websocket:
            self.connection.note_goodbye()

    def on_close(self) -> None:
        if not self._is_open:  # gone while it was looked at
            return
        if self._deadline is not None:
            self._end_probe()
        elif self.connection.is_over_websocket:
            self.connection.lost()
