"""Connections on their way from one worker to another: the socket, and what was read of it already, in one datagram
(`SCM_RIGHTS`, unix(7)) over a pair of sockets that the supervisor has made. From then on the other one has it, as if
the kernel had given it to that one; what is known of a client by its socket is known still.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from server.affinity import Affinity
from server.tallies import TallyFamily
from server.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_BYTES = 512 * 1024
"""More than there ever is of a request: a head, and what was read behind it."""

TAKEN_PER_TURN = 4
"""Before others get their turn of the loop, as of connections that are accepted."""

RETRY_S = 0.005
MAX_AGE_S = 5.0
"""Of a connection that was not taken: what waits for a worker that is being started anew. Then it is closed, and its
client tries again."""

MAX_WAITING, MAX_WAITING_BYTES = 200, 4 * 1024 * 1024
"""For each worker, beside what the kernel holds."""

REPORT_EVERY_S = 60.0

_HEAD = struct.Struct("!d")
"""When it was given (CLOCK_MONOTONIC, which all processes of a machine share)."""

Take = Callable[[socket.socket, bytes], None]
"""Takes over a connection, of which these bytes were read already."""


@dataclass(slots=True)
class _Way:
    """To one worker. `waiting`: what there was no room for yet, in its order: copies of sockets, and datagrams."""

    post: socket.socket
    waiting: deque[tuple[socket.socket, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0


class Handoff:
    """With sockets of the supervisor, which do not block: `inbox` is this worker's, into each of `posts` one can throw
    what is for the worker of that number."""

    def __init__(self, affinity: Affinity, inbox: socket.socket, posts: Sequence[socket.socket]) -> None:
        self.affinity = affinity
        self.has_successor = False
        """Whether another worker has this number now: see `give_way`."""
        self.figures = outcomes()
        self._given, self._taken, self._closed = map(self.figures.labels, ("given", "taken", "closed"))
        self._inbox = inbox
        self._ways = [_Way(post) for post in posts]
        self._throwing = Tasks()
        self._take: Take | None = None
        self._closed_unsaid = 0
        self._reported_at = -REPORT_EVERY_S

    @property
    def waiting(self) -> int:
        """How many connections there was no room for yet."""
        return sum(len(way.waiting) for way in self._ways)

    @property
    def queues(self) -> Mapping[str, Callable[[], int]]:
        """How much waits, by name."""
        return {"handoff": lambda: self.waiting}

    def owner_of(self, session: str | None) -> int | None:
        """The worker to which a request of the session of this name (None: of none) belongs; None: to this one."""
        number = self.affinity.number
        owner = number if session is None else self.affinity.owner(session)
        return None if owner == number and not self.has_successor else owner

    # -- giving ----------------------------------------------------------------------------------------------
    def give(self, owner: int, connection: socket.socket, request: bytes) -> None:
        """Hand over a copy of this socket, which the caller is to close then; in the order in which they come. What
        cannot be handed over in time is closed."""
        way, datagram = self._ways[owner], _HEAD.pack(time.monotonic()) + request
        if not way.waiting and self._throw(way, connection, datagram):
            return
        if len(way.waiting) >= MAX_WAITING or way.waiting_bytes + len(datagram) > MAX_WAITING_BYTES:
            self._report("its worker has no room for it")
            return
        try:
            way.waiting.append((connection.dup(), datagram))
        except OSError as exc:  # no more files can be opened
            self._report(str(exc))
            return
        way.waiting_bytes += len(datagram)
        if len(way.waiting) == 1:
            self._throwing.start(self._keep_throwing(way), "handing over")

    async def _keep_throwing(self, way: _Way) -> None:
        while way.waiting:
            connection, datagram = way.waiting[0]
            if _age_s(datagram) > MAX_AGE_S:
                self._report("its worker has not taken it")
            elif not self._throw(way, connection, datagram):
                await asyncio.sleep(RETRY_S)
                continue
            way.waiting.popleft()
            way.waiting_bytes -= len(datagram)
            connection.close()

    def _throw(self, way: _Way, connection: socket.socket, datagram: bytes) -> bool:
        """False: there is no room now."""
        try:
            socket.send_fds(way.post, [datagram], [connection.fileno()])
        except BlockingIOError:
            return False
        except OSError as exc:  # whatever is wrong with it, it will not get better
            self._report(str(exc))
        else:
            self._given.value += 1
        return True

    def _report(self, why: str) -> None:
        self._closed.value += 1
        self._closed_unsaid += 1
        now = time.monotonic()
        if now - self._reported_at >= REPORT_EVERY_S:
            logger.warning(
                "closed %d connections that belong to another worker, the last one since %s",
                self._closed_unsaid,
                why,
            )
            self._closed_unsaid, self._reported_at = 0, now

    # -- taking ----------------------------------------------------------------------------------------------
    def start(self, take: Take) -> None:
        """Take what comes from now on."""
        self._take = take
        asyncio.get_running_loop().add_reader(self._inbox, self._receive)

    def give_way(self) -> None:
        """Another one has this number now, and with it all requests that are still to come, of whatever session: it may
        be one that the other has begun."""
        self.has_successor = True
        self.stop()

    def stop(self) -> None:
        """Take no more: another one with the same number does. Idempotent."""
        if self._take is not None:
            self._take = None
            asyncio.get_running_loop().remove_reader(self._inbox)

    def _receive(self) -> None:
        for _ in range(TAKEN_PER_TURN):
            try:
                datagram, numbers, _, _ = socket.recv_fds(self._inbox, MAX_BYTES, 1)
            except (BlockingIOError, InterruptedError):  # or another one with the same number was faster
                return
            if not numbers:
                self._report("no more files can be opened (ulimit -n)")
            for number in numbers:
                self._adopt(socket.socket(fileno=number), datagram)

    def _adopt(self, connection: socket.socket, datagram: bytes) -> None:
        os.set_inheritable(connection.fileno(), False)
        connection.setblocking(False)
        if self._take is None or _age_s(datagram) > MAX_AGE_S:
            self._report("it has waited for too long")
            connection.close()
        else:
            self._taken.value += 1
            self._take(connection, datagram[_HEAD.size :])

    async def close(self) -> None:
        """Give and take no more; what waits is closed. Idempotent."""
        self.stop()
        await self._throwing.cancel()
        for way in self._ways:
            for connection, _ in way.waiting:
                self._report("this one has ended")
                connection.close()
            way.waiting.clear()
            way.waiting_bytes = 0


def outcomes() -> TallyFamily:
    """To be counted in; their label: `given`, `taken` or `closed`."""
    return TallyFamily(
        "notification_handoffs",
        "Connections that belong to another worker, by what became of them.",
        ("outcome",),
    )


def close_untaken(inbox: socket.socket) -> int:
    """Close the connections there that have waited for too long, as their worker is not there, or hangs; how many. To
    be called now and then by whoever has made the inbox."""
    closed = 0
    with suppress(BlockingIOError):
        # Only looked at: what is still in time is for the worker. If that one comes and takes this one now, the next is
        # closed in its place.
        while _age_s(inbox.recv(_HEAD.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)) > MAX_AGE_S:
            inbox.recv(_HEAD.size, socket.MSG_DONTWAIT)  # without its connection, which the kernel closes
            closed += 1
    return closed


def _age_s(datagram: bytes) -> float:
    (given_at,) = _HEAD.unpack_from(datagram)
    return time.monotonic() - float(given_at)
