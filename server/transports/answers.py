"""Answers over HTTP that are on their way: whose client takes them too slowly loses its connection. Tornado has a time
for what it reads, and none for what it writes.

Clients that are pushed to are held to the same rule in half the time, and hear a word of goodbye (`connections`).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer

from server.transports.connections import MIN_BYTES_PER_S, written_bytes

LOOKS = 4
"""In the time that an answer has."""


class Answers:
    """Those of a server. `patience_s`: over how long an answer has to leave at `MIN_BYTES_PER_S`."""

    def __init__(self, server: HTTPServer, patience_s: float) -> None:
        # Tornado has no public name for them. What has become a WebSocket, or a stream of events, is none of them.
        self._connections: set[HTTP1ServerConnection] = server._connections
        self._patience_s = patience_s
        self._next_look_at = 0.0
        # since when something has been waiting, and how much had left by then
        self._waiting: WeakKeyDictionary[HTTP1ServerConnection, tuple[float, int]] = WeakKeyDictionary()

    def look(self, now: float) -> None:
        """Close those connections whose answers leave too slowly. To be called often, with `time.monotonic()`."""
        if now < self._next_look_at:
            return
        self._next_look_at = now + self._patience_s / LOOKS
        for connection in tuple(self._connections):
            stream = connection.stream
            if stream.closed() or not stream.writing():
                self._waiting.pop(connection, None)
                continue
            written = written_bytes(stream)
            since, mark = self._waiting.setdefault(connection, (now, written))
            if now - since < self._patience_s:
                continue
            if written - mark < MIN_BYTES_PER_S * (now - since):
                stream.close()
            else:
                self._waiting[connection] = now, written
