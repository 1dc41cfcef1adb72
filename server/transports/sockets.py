"""An accepted socket as a stream that is written to: what of Tornado's `IOStream` connections need, in a tenth of the
memory. Who reads from the socket does so past it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from tornado.iostream import StreamClosedError

WRITTEN_AT_ONCE = 128 * 1024


class SocketStream:
    """A plain TCP connection. `closed` is called once, when it is closed, whoever does that, and not from within what
    closes it; `left` likewise, at once."""

    __slots__ = (
        "_closed",
        "_left",
        "_loop",
        "_open",
        "_queue",
        "_total_write_done_index",
        "_total_write_index",
        "_write_futures",
        "socket",
    )

    def __init__(
        self, connection: socket.socket, left: Callable[[], None], are_open: set[SocketStream]
    ) -> None:
        """`are_open`: those that are, of which this is one from now on until its end."""
        self._loop = asyncio.get_running_loop()
        self.socket = connection
        self._left = left
        self._open = are_open
        are_open.add(self)
        self._closed: Callable[[], None] | None = None
        self._queue = bytearray()
        # As Tornado's streams have them: see `connections.pending_writes` and those that follow.
        self._write_futures: list[tuple[int, asyncio.Future[None]]] = []
        self._total_write_index = 0
        self._total_write_done_index = 0

    def set_close_callback(self, closed: Callable[[], None] | None) -> None:
        """What to call when it is closed."""
        self._closed = closed

    def fileno(self) -> int:
        return self.socket.fileno()

    def set_nodelay(self, value: bool) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(value))

    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def writing(self) -> bool:
        return bool(self._write_futures)

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Send this after all that was written before; what is returned is done when the kernel has taken it, or fails
        with `StreamClosedError`, which this raises where that is so already."""
        if self.closed():
            raise StreamClosedError
        future: asyncio.Future[None] = self._loop.create_future()
        self._total_write_index += len(data)
        was_empty = not self._write_futures
        self._write_futures.append((self._total_write_index, future))
        self._queue += data
        if was_empty:
            self._send()
            if self._write_futures and not self.closed():
                self._loop.add_writer(self.socket, self._send)
        return future

    def _send(self) -> None:
        while self._queue:
            try:
                sent = self.socket.send(self._queue[:WRITTEN_AT_ONCE])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.close()
                return
            del self._queue[:sent]
            self._total_write_done_index += sent
        self._settle()

    def _settle(self) -> None:
        """Say of which writes the kernel has taken all."""
        futures, done = self._write_futures, self._total_write_done_index
        # In place: that list says to others whether anything waits.
        while futures and futures[0][0] <= done:
            _, future = futures.pop(0)
            if not future.done():
                future.set_result(None)
        if not futures:
            self._loop.remove_writer(self.fileno())

    def close(self) -> None:
        """Close the socket; what is still queued is lost. Idempotent."""
        if self.closed():
            return
        # By its number: see `UpgradedSocket`.
        self._loop.remove_reader(self.fileno())
        self._loop.remove_writer(self.fileno())
        self.socket.close()
        self._open.discard(self)
        self._queue.clear()
        futures = self._write_futures[:]
        self._write_futures.clear()
        for _, future in futures:
            if not future.done():
                future.set_exception(StreamClosedError())
                future.exception()  # nobody has to look
        if self._closed is not None:
            self._loop.call_soon(self._closed)
        self._left()
