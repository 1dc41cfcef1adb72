"""The listening sockets: bound early, opened to clients late, and accepting no more than the process has files for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from server.bus import THROTTLED, tell
from server.errors import StartupError
from server.limits import address_key
from server.tasks import Tasks

logger = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that the kernel keeps waiting: a restart brings all clients back at once."""

RESERVED_FILES = 100
"""Not for connections: the store, the logs, mail and name look-ups must go on however many clients there are."""

ACCEPTED_PER_TURN = 4
"""Connections that are taken in before the others get their turn of the loop: the first request of each has to be read,
which takes half a millisecond."""

PAUSE_S = 1.0
"""After a connection that could not be taken in. Who comes meanwhile waits in the kernel's backlog."""

REPORT_EVERY_S = 60.0


class Keys(NamedTuple):
    """Of [APPLICATION], that say where to listen: what to change where that cannot be."""

    port: str
    address: str


MAIN, ALSO = Keys("port", "address"), Keys("also_listen", "address")
PUBLISHING = Keys("publish_port", "publish_address")

_TOO_MANY_FILES = "{} files are open (ulimit -n)"

Left = Callable[[], None]
"""To be called when a connection is closed."""

Serve = Callable[[socket.socket, Any, Left], None]
"""Takes over a connection, the address of its peer, and what to call at its end."""


class Peers:
    """How many connections each address has open, whatever goes over them, if anything ever does."""

    def __init__(self, most: Callable[[], int], is_exempt: Callable[[str], bool]) -> None:
        """`most`: how many an address may have, asked each time. `is_exempt`: whether an address may have any number,
        as those of proxies, behind which are many clients."""
        self._most = most
        self._is_exempt = is_exempt
        self._counts: Counter[str] = Counter()

    def enter(self, address: str) -> Callable[[], None] | None:
        """Count a connection; what to call when it is closed (calling it again does nothing). None if it is one too
        many."""
        if self._is_exempt(address):
            return _do_nothing
        key = address_key(address)
        if self._counts[key] >= self._most():
            return None
        self._counts[key] += 1
        return _Place(self._counts, key).leave

    def __len__(self) -> int:
        """How many are counted."""
        return self._counts.total()


class _Place:
    __slots__ = ("_counts", "_key")

    def __init__(self, counts: Counter[str], key: str) -> None:
        self._counts: Counter[str] | None = counts
        self._key = key

    def leave(self) -> None:
        counts, self._counts = self._counts, None
        if counts is None:
            return
        counts[self._key] -= 1
        if not counts[self._key]:
            del counts[self._key]


def _do_nothing() -> None:
    pass


class TCPListener:
    """All addresses that a host name and a port stand for."""

    def __init__(
        self,
        host: str,
        port: int,
        peers: Peers,
        also: Iterable[int] = (),
        bound: Iterable[socket.socket] | None = None,
        keys: Keys = MAIN,
    ) -> None:
        """Bind; clients are still refused. Port 0 is any free one; `also`: further ports; `bound`: in place of all
        these, sockets that are bound already; `keys`: where `host` and `port` are from. Raises `StartupError`."""
        self._peers = peers
        self._tasks = Tasks()
        self._reported_at = -REPORT_EVERY_S
        self._turned_away = 0
        self._turned_away_told_at = -REPORT_EVERY_S
        self._is_closing = False
        self._keys = keys
        self._sockets = bind(host, (port, *also), keys) if bound is None else list(bound)

    @property
    def port(self) -> int:
        port: int = self._sockets[0].getsockname()[1]
        return port

    def start(self, serve: Serve) -> None:
        """Accept connections from now on. What `serve` raises is logged. Raises `StartupError`."""
        # Two servers can be bound to one port as long as none of them listens.
        for listening in self._sockets:
            host, port = listening.getsockname()[:2]
            with _explained(host, port, self._keys if port == self.port else ALSO):
                listening.listen(BACKLOG)
        for listening in self._sockets:
            self._tasks.start(self._accept(listening, serve, max_connection_files()), "accept")

    async def close(self) -> None:
        """Refuse all that come from now on; who was accepted already is served. Idempotent."""
        self._is_closing = True
        self._hear_no_more()
        # Where a connection was accepted in this turn, it is handed over in the next.
        await asyncio.sleep(0)
        self._hear_no_more()
        await self._tasks.cancel()
        self._close()

    def _hear_no_more(self) -> None:
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            # asyncio does so a turn later: who comes in this one would end as an error in the log.
            if listening.fileno() >= 0:
                loop.remove_reader(listening)

    def _close(self) -> None:
        for listening in self._sockets:
            listening.close()

    async def _accept(self, listening: socket.socket, serve: Serve, max_files: int) -> None:
        loop = asyncio.get_running_loop()
        accepted = 0
        while not self._is_closing:
            try:
                connection, address = await loop.sock_accept(listening)
            except ConnectionAbortedError:  # gone before its turn came
                continue
            except OSError as exc:
                await self._pause(exc.strerror or str(exc))
                continue
            # The kernel gives the lowest free number: all below are in use, whoever opened them.
            if connection.fileno() >= max_files:
                connection.close()
                await self._pause(_TOO_MANY_FILES.format(max_files))
                continue
            left = self._peers.enter(address[0])
            if left is None:
                self._turn_away(connection, address[0])
            else:
                _hand_over(connection, address, serve, left)
            accepted += 1
            if accepted % ACCEPTED_PER_TURN == 0:
                await asyncio.sleep(0)

    def adopt(self, serve: Callable[..., None], connection: socket.socket, request: bytes) -> None:
        """Let `serve` take over a connection that another process has accepted; it gets what that one has read, as
        `ahead`."""
        try:
            address = connection.getpeername()
        except OSError:  # gone
            connection.close()
            return
        if connection.fileno() >= max_connection_files():
            self._report_full(
                _TOO_MANY_FILES.format(max_connection_files()),
                "one that another worker has handed over is closed",
            )
            connection.close()
            return
        left = self._peers.enter(address[0])
        if left is None:
            self._turn_away(connection, address[0])
        else:
            _hand_over(connection, address, partial(serve, ahead=request), left)

    async def _pause(self, reason: str) -> None:
        self._report_full(reason, "new ones wait")
        await asyncio.sleep(PAUSE_S)

    def _report_full(self, reason: str, what: str) -> None:
        now = time.monotonic()
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            logger.error("no more connections can be taken in: %s; %s", reason, what)

    def _turn_away(self, connection: socket.socket, address: str) -> None:
        with contextlib.suppress(OSError):
            # With a reset: an orderly end would stay in the kernel's tables for a minute.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        tell(THROTTLED, self, limit="connections_per_address")
        self._turned_away += 1
        now = time.monotonic()
        if now - self._turned_away_told_at >= REPORT_EVERY_S:
            logger.warning(
                "turned away %d connections of addresses that have as many as they may, the last one of %s",
                self._turned_away,
                address,
            )
            self._turned_away, self._turned_away_told_at = 0, now


def _hand_over(connection: socket.socket, address: Any, serve: Serve, left: Callable[[], None]) -> None:
    try:
        serve(connection, address, left)
    except Exception:
        logger.exception("a connection could not be served")
        connection.close()
        left()


def max_connection_files() -> int:
    """The file number from which on a connection is one too many."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(limit - RESERVED_FILES, limit // 2)


def allow_many_files() -> None:
    """Every connection is a file: take as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# -- binding -------------------------------------------------------------------------------------------------


def bind(host: str, ports: Iterable[int], keys: Keys = MAIN) -> list[socket.socket]:
    """One socket for each address of the host ("": of all interfaces) and each of these ports. `keys`: where the host
    and the first port are from; the others are of `also_listen`. Raises `StartupError`."""
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for number, port in enumerate(dict.fromkeys(ports)):
            with _explained(host, port, ALSO if number else keys):
                for bound in _bind(host, port):
                    undo.callback(bound.close)
                    sockets.append(bound)
        undo.pop_all()
    return sockets


def bind_shared(addresses: Iterable[tuple[int, Any]], keys: Keys = MAIN) -> list[socket.socket]:
    """One socket for each (family, address), for which other processes of this user may have one, too (SO_REUSEPORT):
    connections are spread over those that listen. `keys`: as of `bind`. Raises `StartupError`."""
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for family, address in addresses:
            with _explained(address[0], address[1], keys):
                shared = _make_socket(family)
                undo.callback(shared.close)
                shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                shared.bind(address)
                sockets.append(shared)
        undo.pop_all()
    return sockets


@contextlib.contextmanager
def _explained(host: str, port: int, keys: Keys) -> Iterator[None]:
    where = f"port {port} on {host}"
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise StartupError(
                f"{where} is in use by another program: stop it, or set another {keys.port} under [APPLICATION]"
            ) from exc
        set_by = f"{keys.port} and {keys.address} of [APPLICATION]"
        raise StartupError(f"cannot listen on {where} ({set_by}): {exc.strerror or exc}") from exc


def _bind(host: str, port: int) -> list[socket.socket]:
    """One socket for each address of the host ("": of all interfaces), all on one port. Raises OSError."""
    family = socket.AF_UNSPEC if socket.has_ipv6 else socket.AF_INET
    found = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for kind, _, _, _, address in sorted(set(found)):
            if port == 0 and sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            bound = _bind_one(host, kind, address)
            if bound is not None:
                undo.callback(bound.close)
                sockets.append(bound)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no such address on this machine")
        undo.pop_all()
    return sockets


def _make_socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not to wait for connections of the last run
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
    return made


def _bind_one(host: str, family: int, address: tuple[Any, ...]) -> socket.socket | None:
    """None for an address that the resolver knows and this machine does not have."""
    is_local_v6 = host == "localhost" and family == socket.AF_INET6
    if is_local_v6 and address[3]:  # macOS: fe80::1 on lo0, about which its firewall asks
        return None
    bound = None
    try:
        bound = _make_socket(family)
        bound.bind(address)
    except OSError as exc:
        if bound is not None:
            bound.close()
        # A kernel without IPv6, or a container without ::1.
        if exc.errno == errno.EAFNOSUPPORT or (is_local_v6 and exc.errno == errno.EADDRNOTAVAIL):
            return None
        raise
    return bound
