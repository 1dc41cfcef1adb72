"""The packets of Engine.IO 4 and Socket.IO 5, without any I/O: what a client of the realtime service (CONTRACT C4) says
and is told.

An Engine.IO packet is a digit and its data. It travels in a WebSocket frame, or over HTTP with others, a `\\x1e`
between two. A Socket.IO packet is the data of a message of Engine.IO (`4`): a digit, then `/namespace,` unless that is
`/`, then JSON. Written to the documents "The Engine.IO protocol" (revision 4) and "The Socket.IO protocol"
(revision 5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from server.commands import read_json
from server.transports.websocket import text_frame_bytes
from server.wire import CloseReason

ENGINE_VERSION = "4"
SEPARATOR = "\x1e"

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = "0123456"
BINARY = "b"
"""Instead of the digit: a binary message, in Base64. Only over HTTP; a WebSocket has frames for it."""

PROBE, PROBED = PING + "probe", PONG + "probe"
"""A client tries whether a WebSocket works; the answer."""

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = "0123456"
IGNORED = {EVENT, ACK, BINARY_EVENT, BINARY_ACK}
"""What a client may say that only listens: nothing comes of it."""

NAMESPACE = "/"
MAX_NAMESPACE_CHARS = 128

_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class MalformedPacket(ValueError):
    """A packet that no client of the protocol sends."""


@dataclass(frozen=True, slots=True)
class Connect:
    """A client wants to listen. `auth`: the JSON that it shows for it, None if there is none."""

    namespace: str
    auth: Any


def kind_of(packet: str) -> str:
    """Of a Socket.IO packet, one of the kinds above; "" if it is none, or speaks of another namespace than `/`."""
    kind, rest = packet[:1], packet[1:]
    if kind in (BINARY_EVENT, BINARY_ACK):
        count, dash, after = rest.partition("-")
        if not dash or not _is_number(count):
            return ""
        rest = after
    is_known = kind in IGNORED or kind in (CONNECT, DISCONNECT)
    return kind if is_known and (kind == CONNECT or not rest.startswith("/") or _is_main(rest)) else ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_main(rest: str) -> bool:
    return rest.partition(",")[0].partition("?")[0] == NAMESPACE


def parse_connect(packet: str) -> Connect:
    """A packet of the kind `CONNECT`. Raises `MalformedPacket`."""
    rest = packet[1:]
    namespace = NAMESPACE
    if rest.startswith("/"):
        namespace, _, rest = rest.partition(",")
        namespace = namespace.partition("?")[0]
        if len(namespace) > MAX_NAMESPACE_CHARS:
            raise MalformedPacket("the name of a namespace is too long")
    if not rest:
        return Connect(namespace, None)
    try:
        return Connect(namespace, read_json(rest))
    except ValueError as exc:
        raise MalformedPacket("what is shown to connect is not JSON") from exc


def split(payload: str) -> Iterator[str]:
    """The Engine.IO packets in the body of a request, one by one: they may be as many as its bytes, and some wait for
    their turn."""
    start, end = 0, payload.find(SEPARATOR)
    while end != -1:
        yield payload[start:end]
        start, end = end + 1, payload.find(SEPARATOR, end + 1)
    yield payload[start:]


# -- what a client is told -----------------------------------------------------------------------------------


def handshake(sid: str, *, heartbeat_s: float, patience_s: float, max_bytes: int, upgrades: bool) -> str:
    """The first Engine.IO packet. A client that hears nothing for both times together gives up; it sends at most
    `max_bytes` in a request."""
    fields = {
        "sid": sid,
        "upgrades": ["websocket"] if upgrades else [],
        "pingInterval": round(heartbeat_s * 1000),
        "pingTimeout": round(patience_s * 1000),
        "maxPayload": max_bytes,
    }
    return OPEN + _encode(fields)


def connected(sid: str) -> str:
    """That a client is connected to the namespace `/`. Like all below, as an Engine.IO packet."""
    return MESSAGE + CONNECT + _encode({"sid": sid})


def refused(message: str, code: str, namespace: str = NAMESPACE) -> str:
    """That it is not: the client's `connect_error`, with `code` in its `data`. It does not try again by itself."""
    where = "" if namespace == NAMESPACE else f"{namespace},"
    return f"{MESSAGE}{CONNECT_ERROR}{where}" + _encode({"message": message, "data": {"code": code}})


def goodbye(reason: CloseReason, is_connected: bool) -> list[str]:
    """What comes before the end. A client that hears no more than the event comes back by itself; one that is
    disconnected, or refused, does not, which is right for codes from 3500 on (see `wire.CloseReason`)."""
    is_final = 3500 <= reason.code < 4000
    if not is_connected:
        return [refused(reason.reason, str(reason.code))] if is_final else []
    event = MESSAGE + EVENT + _encode(["close", {"code": reason.code, "reason": reason.reason}])
    return [event, MESSAGE + DISCONNECT] if is_final else [event]


# -- as bytes, of the JSON array of an event -----------------------------------------------------------------


def websocket_bytes(text: str) -> bytes:
    """The frame that carries it."""
    return text_frame_bytes(MESSAGE + EVENT + text)


def polling_bytes(text: str) -> bytes:
    """What carries it in the body of an answer, behind other packets; JSON holds no bare `\\x1e`."""
    return (SEPARATOR + MESSAGE + EVENT + text).encode()
