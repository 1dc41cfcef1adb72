"""Connections on their way from one worker to another: the socket, and what was read of it already, in one datagram
(`SCM_RIGHTS`, unix(7)) over a pair of sockets that the supervisor has made. From then on the other one has it, as if
the kernel had given it to that one; what is known of a client by its socket is known still.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

from server.affinity import Affinity
from server.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024
"""More than there ever is of a request: a head, and what comes with it."""

RETRY_S = 0.005
GIVE_UP_S = 5.0
"""While the other one has too many waiting, as when it is being started anew."""

MAX_WAITING = 500

Take = Callable[[socket.socket, bytes], None]
"""Takes over a connection, of which these bytes were read already."""


class Handoff:
    """With sockets of the supervisor, which do not block: `inbox` is this worker's, into each of `posts`
    one can throw what is for the worker of that number."""

    def __init__(self, affinity: Affinity, inbox: socket.socket, posts: Sequence[socket.socket]) -> None:
        self.affinity = affinity
        self._inbox = inbox
        self._posts = posts
        self._waiting = Tasks()
        self._take: Take | None = None

    # -- giving ----------------------------------------------------------------------------------------------
    def give(self, owner: int, connection: socket.socket, request: bytes) -> None:
        """Hand over a copy of this socket, which the caller is to close then. A connection that cannot be handed over
        in time is closed: its client tries again."""
        if self._throw(owner, connection.fileno(), request):
            return
        if len(self._waiting) >= MAX_WAITING:
            logger.warning("worker %d takes no connections, so one for it is closed", owner + 1)
            return
        self._waiting.start(self._keep_throwing(owner, connection.dup(), request), "handing over")

    async def _keep_throwing(self, owner: int, connection: socket.socket, request: bytes) -> None:
        ends_at = time.monotonic() + GIVE_UP_S
        with connection:
            while time.monotonic() < ends_at:
                await asyncio.sleep(RETRY_S)
                if self._throw(owner, connection.fileno(), request):
                    return
        logger.warning("worker %d takes no connections, so one for it is closed", owner + 1)

    def _throw(self, owner: int, number: int, request: bytes) -> bool:
        """False: there is no room now. Whatever else is wrong with it, it cannot be thrown."""
        try:
            socket.send_fds(self._posts[owner], [request], [number])
        except BlockingIOError:
            return False
        except OSError as exc:
            logger.warning("a connection cannot be handed to worker %d, so it is closed: %s", owner + 1, exc)
        return True

    # -- taking ----------------------------------------------------------------------------------------------
    def start(self, take: Take) -> None:
        """Take what comes from now on."""
        self._take = take
        asyncio.get_running_loop().add_reader(self._inbox, self._receive)

    def stop(self) -> None:
        """Take no more: another one with the same number does. Idempotent."""
        if self._take is not None:
            self._take = None
            asyncio.get_running_loop().remove_reader(self._inbox)

    def _receive(self) -> None:
        try:
            request, numbers, _, _ = socket.recv_fds(self._inbox, MAX_BYTES, 1)
        except (BlockingIOError, InterruptedError):  # another one with the same number was faster
            return
        for number in numbers:
            os.set_inheritable(number, False)
            connection = socket.socket(fileno=number)
            connection.setblocking(False)
            if self._take is not None:
                self._take(connection, request)

    async def close(self) -> None:
        """Give and take no more. Idempotent."""
        self.stop()
        await self._waiting.cancel()
