"""The short way to a WebSocket: what begins with a plain request for one is answered at once, at the price of a
fraction of what a request through all of Tornado takes.

Only looked at, not read, until that is certain. Whatever is not quite plain, or would be refused, goes the common way
untouched: there is one place that says no. What may come in the short way is decided by the same rules: see `Way`.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tornado.httputil import HTTPHeaders, format_timestamp

from server.callers import Caller
from server.errors import RateLimited
from server.rooms import Connection
from server.tasks import Tasks
from server.transports.connections import ClientSession, tune_socket
from server.transports.origins import Asking
from server.transports.registry import Connections
from server.transports.sockets import SocketStream
from server.transports.upgraded import UpgradedSocket
from server.transports.websocket import WebSocketConnection

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8 * 1024

LOOK_FOR_S = 1.0
"""About so long a request may take to come; then it, too, goes the common way, where idle ones are closed."""

HEAD = re.compile(
    rb"GET (/[\w./~-]*)(\?[!-~]*)? HTTP/1\.1\r\n((?:[!#$%&'*+.^`|~\w-]+:[\t -~]*\r\n){1,100})\r\n"
)
"""Nothing in it can be read in two ways."""

_HOST = r"([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?"
PLAIN_HOST = re.compile(_HOST, re.ASCII)
PLAIN_ORIGIN = re.compile(rf"https?://{_HOST}|null", re.ASCII)
PLAIN_KEY = re.compile(r"[\w+/]{22}==", re.ASCII)

NOT_PLAIN = ("Transfer-Encoding", "Expect")

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Left = Callable[[], None]
Serve = Callable[[socket.socket, Any, Left], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A door that takes in whoever may connect: who it is is said on the connection. `path`: all of it. `allows`:
    whether the page that asks may. `is_logged`: whether there is a line in the log of requests."""

    path: re.Pattern[str]
    transport: str
    connection_class: type[WebSocketConnection]
    open_session: Callable[[Connection], ClientSession]
    allows: Callable[[Asking], bool]
    is_logged: bool


class PlainHead(dict[str, str]):
    """The headers of a request, each of which came once, by their names in any letter case."""

    def __init__(self, path: str, uri: str, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__(fields)
        self.path = path
        self.uri = uri

    def get(self, name: str, default: Any = None) -> Any:  # texts, and whatever the default is
        return super().get(_normal_name(name), default)

    # What `Origins` looks at.
    @property
    def headers(self) -> Mapping[str, str]:
        return self

    @property
    def host(self) -> str:
        return self["Host"]


def read_head(data: bytes) -> tuple[PlainHead, int] | None:
    """The head that `data` begins with, and its size; None if it is not the whole of one that plainly asks for a
    WebSocket (RFC 6455 section 4.2.1)."""
    found = HEAD.match(data)
    if found is None:
        return None
    path, query, lines = (part.decode("ascii") for part in found.groups(b""))
    fields = [line.partition(":") for line in lines.split("\r\n")[:-1]]
    head = PlainHead(
        path, path + query, [(_normal_name(name), value.strip(" \t")) for name, _, value in fields]
    )
    return (head, found.end()) if len(head) == len(fields) and _is_plain(head) else None


def _is_plain(head: PlainHead) -> bool:
    get = head.get
    options = [option.strip().lower() for option in get("Connection", "").split(",")]
    return (
        get("Upgrade", "").lower() == "websocket"
        and "upgrade" in options
        and get("Sec-WebSocket-Version") == "13"
        and PLAIN_KEY.fullmatch(get("Sec-WebSocket-Key", "")) is not None
        and PLAIN_HOST.fullmatch(get("Host", "")) is not None
        and PLAIN_ORIGIN.fullmatch(get("Origin", "null")) is not None
        # Else Tornado looks at the origin once more.
        and ("Origin" in head or get("Sec-Fetch-Site", "none") in ("none", "same-origin"))
        and get("Content-Length", "0") == "0"
        and not any(name in head for name in NOT_PLAIN)
    )


@functools.lru_cache(1000)
def _normal_name(name: str) -> str:
    """As Tornado writes names of headers: this is how they are quoted to callers."""
    normal: str = next(iter(HTTPHeaders({name: ""})))
    return normal


class Upgrades:
    """All ways of a node. `identify`: see `callers.CallerPolicy`. `headers`: those of all answers, but for the date.
    `note`: told of each that is to be in the log: the uri, whose it is, and the seconds it took."""

    def __init__(
        self,
        ways: Sequence[Way],
        connections: Connections,
        identify: Callable[[str, Mapping[str, str]], Caller],
        headers: Mapping[str, str],
        note: Callable[[str, Caller, float], None],
    ) -> None:
        self._ways = ways
        self._connections = connections
        self._identify = identify
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._after_date = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-Websocket-Accept: {}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name != "Server")
            + "\r\n"
        )
        self._before_date = f"HTTP/1.1 101 Switching Protocols\r\nServer: {headers['Server']}\r\n"
        self._waiting: dict[_Newcomer, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._streams: set[SocketStream] = set()
        self._handlings = Tasks()
        self._coming: set[_Newcomer] = set()  # let in, when it is their turn
        self._is_closed = False

    def __len__(self) -> int:
        """How many have not said yet what they want."""
        return len(self._waiting)

    def take(self, connection: socket.socket, address: Any, left: Left, otherwise: Serve) -> None:
        """Take over an accepted socket that does not block; `otherwise` gets it, untouched, if it is for none of these
        ways."""
        newcomer = _Newcomer(connection, address, left, otherwise)
        if not self._look(newcomer):
            self._waiting[newcomer] = None
            self._loop.add_reader(connection.fileno(), self._look, newcomer)  # see `UpgradedSocket`
            if self._timer is None:
                self._timer = self._loop.call_later(LOOK_FOR_S, self._give_up)

    def close(self) -> None:
        """From now on all go the common way, those too who have not said yet what they want; who waits for their turn
        is closed when that comes. Idempotent."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._send_on(next(iter(self._waiting)))

    async def cut_off(self) -> None:
        """Close all WebSockets that are still open, without a word, and who waits to become one. Idempotent."""
        for newcomer in tuple(self._coming):
            self._coming.discard(newcomer)
            newcomer.close()
        for stream in tuple(self._streams):
            stream.close()
        await self._handlings.cancel()

    # -- looking ---------------------------------------------------------------------------------------------
    def _look(self, newcomer: _Newcomer) -> bool:
        """Whether it is decided where this one goes; then it has gone there."""
        try:
            data = newcomer.socket.recv(MAX_HEAD_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if newcomer in self._waiting:
            self._forget(newcomer)
        try:
            is_let_in = self._lets_in(newcomer, data)
        except Exception:
            logger.exception("a connection could not be looked at")
            newcomer.close()
            return True
        if not is_let_in:
            newcomer.go_the_common_way()
        return True

    def _give_up(self) -> None:
        """Send those away who have been waiting for too long."""
        now = time.monotonic()
        self._timer = None
        while self._waiting:
            newcomer = next(iter(self._waiting))
            if now - newcomer.came_at < LOOK_FOR_S:
                wait_s = newcomer.came_at + LOOK_FOR_S - now
                self._timer = self._loop.call_later(wait_s, self._give_up)
                return
            self._send_on(newcomer)

    def _send_on(self, newcomer: _Newcomer) -> None:
        self._forget(newcomer)
        newcomer.go_the_common_way()

    def _forget(self, newcomer: _Newcomer) -> None:
        del self._waiting[newcomer]
        self._loop.remove_reader(newcomer.socket)

    def _lets_in(self, newcomer: _Newcomer, data: bytes) -> bool:
        found = read_head(data)
        if found is None:
            return False
        head, size = found
        way = next((way for way in self._ways if way.path.fullmatch(head.path)), None)
        if way is None or not way.allows(head):
            return False
        caller = self._identify(newcomer.address[0], head)
        if not self._connections.admission.would_admit(caller):
            return False
        try:
            self._connections.admission.may_connect(caller)
        except RateLimited:  # it was asked for a moment ago
            return False
        newcomer.socket.recv(size)
        self._coming.add(newcomer)
        self._connections.arrivals.connect(lambda: self._open(newcomer, way, head, caller))
        newcomer.has_waited = True
        return True

    # -- letting in ------------------------------------------------------------------------------------------
    def _open(self, newcomer: _Newcomer, way: Way, head: PlainHead, caller: Caller) -> None:
        """Become a WebSocket."""
        connections = self._connections
        if newcomer not in self._coming:  # it was closed meanwhile
            return
        self._coming.discard(newcomer)
        if self._is_closed:
            newcomer.close()
            return
        try:
            if way.is_logged:
                self._note(head.uri, caller, time.monotonic() - newcomer.came_at)
            has_gone = newcomer.has_waited and newcomer.has_gone()
            if has_gone or not newcomer.say(self._answer(head["Sec-Websocket-Key"])):
                newcomer.close()
                return
            stream = SocketStream(newcomer.socket, newcomer.left, self._streams)
        except Exception:
            logger.exception("a WebSocket could not be begun for %s", caller.address)
            newcomer.close()
            return
        try:
            tune_socket(stream, connections.give_up_after_s)
            protocol = UpgradedSocket(stream, self._handlings)
            connection = way.connection_class(connections, way.transport, caller, protocol)
            connection.open(way.open_session)
            protocol.start(connection)
        except Exception:
            logger.exception("a WebSocket could not be opened for %s", caller.address)
            stream.close()

    def _answer(self, key: str) -> bytes:
        accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()  # noqa: S324  # RFC 6455, no secret
        return f"{self._before_date}{_date(int(time.time()))}{self._after_date.format(accept)}".encode(
            "ascii"
        )


@functools.lru_cache(1)
def _date(second: int) -> str:
    return f"Date: {format_timestamp(second)}\r\n"


class _Newcomer:
    """Who has connected, and not said yet what they want, or waits for their turn."""

    __slots__ = ("_otherwise", "address", "came_at", "has_waited", "left", "socket")

    def __init__(self, connection: socket.socket, address: Any, left: Left, otherwise: Serve) -> None:
        self.socket = connection
        self.address = address
        self.left = left
        self.came_at = time.monotonic()
        self.has_waited = False
        self._otherwise = otherwise

    def go_the_common_way(self) -> None:
        try:
            self._otherwise(self.socket, self.address, self.left)
        except Exception:
            logger.exception("a connection could not be served")
            self.close()

    def has_gone(self) -> bool:
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def say(self, data: bytes) -> bool:
        """Whether this has left: nothing was sent before, so that there is room."""
        try:
            return self.socket.send(data) == len(data)
        except OSError:
            return False

    def close(self) -> None:
        self.socket.close()
        self.left()
