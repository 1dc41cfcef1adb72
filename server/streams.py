"""Accepted sockets as streams of Tornado, plain or under TLS, that tell of their end. No handshake takes for ever."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from tornado.iostream import IOStream, SSLIOStream

from server.tls import HANDSHAKE_TIMEOUT_S

logger = logging.getLogger(__name__)


class PlainStream(IOStream):
    """A TCP connection. `on_close` is called once, when its socket is closed, whoever does that. `ahead`: what somebody
    else has read of it, which comes first."""

    def __init__(self, connection: socket.socket, on_close: Callable[[], None], ahead: bytes = b"") -> None:
        super().__init__(connection)
        self._on_close = on_close
        self._read_buffer += ahead
        self._read_buffer_size += len(ahead)

    @property
    def unread(self) -> bytes:
        """What has come from the socket, and has not been asked for yet. What is in the socket stays there."""
        return bytes(self._read_buffer[: self._read_buffer_size])

    def close_fd(self) -> None:
        super().close_fd()
        self._on_close()


class TLSStream(SSLIOStream):
    """As `PlainStream`, under TLS."""

    def __init__(self, connection: ssl.SSLSocket, on_close: Callable[[], None]) -> None:
        super().__init__(connection)
        self._on_close = on_close

    def close_fd(self) -> None:
        super().close_fd()
        self._on_close()


def open_stream(
    connection: socket.socket,
    on_close: Callable[[], None],
    tls: ssl.SSLContext | None = None,
    *,
    ahead: bytes = b"",
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> IOStream | None:
    """Take over an accepted socket. None if the client is gone already; then it is closed, and told so. `ahead`: as for
    `PlainStream`; one of which there is any has no TLS."""
    if tls is None or ahead:
        return PlainStream(connection, on_close, ahead)
    try:
        secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    except OSError as exc:  # as ssl.SSLError is
        logger.debug("a client was gone before its TLS handshake: %s", exc)
        connection.close()
        on_close()
        return None
    stream = TLSStream(secured, on_close)
    _bound_handshake(stream, handshake_timeout_s)
    return stream


def _bound_handshake(stream: SSLIOStream, timeout_s: float) -> None:
    handshake = stream.wait_for_handshake()
    timer = asyncio.get_running_loop().call_later(timeout_s, stream.close)

    def stop(_: asyncio.Future[SSLIOStream]) -> None:
        timer.cancel()

    handshake.add_done_callback(stop)
