"""SockJS frames (protocol 0.3.3, "Framing accepted by the client") and the bytes that carry them on each transport.

What is carried is ASCII JSON, so that characters are bytes, and no transport has to escape what another one mangles.
The functions from text to bytes belong to the module, because `Frame.encoded` remembers their results by them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from server.commands import read_json
from server.transports.websocket import PING_BYTES, text_frame_bytes
from server.wire import CloseReason

OPEN = "o"
HEARTBEAT = "h"

Encode = Callable[[str], bytes]

_json: Callable[[Any], str] = json.JSONEncoder().encode


def array_frame(texts: Iterable[str]) -> str:
    """The frame of these messages, each a JSON value."""
    return f"a[{','.join(texts)}]"


def close_frame(reason: CloseReason) -> str:
    return f"c[{reason.code},{_json(reason.reason)}]"


def parse_messages(payload: str, *, may_be_single: bool = False) -> list[str] | None:
    """The messages in what a client sent: an array of them, or a single one where that is allowed; None if it is
    neither. SockJS clients send strings; any other value is taken for the JSON text it is. Raises ValueError: as
    `read_json`.
    """
    value = read_json(payload)
    if may_be_single and not isinstance(value, list):
        value = [value]
    if not isinstance(value, list):
        return None
    try:
        return [item if isinstance(item, str) else _json(item) for item in value]
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


# -- WebSocket -----------------------------------------------------------------------------------------------


HEARTBEAT_BYTES = text_frame_bytes(HEARTBEAT) + PING_BYTES
"""Both: the one for SockJS clients and what is between, the other one is answered by every WebSocket client."""


def sockjs_websocket_bytes(text: str) -> bytes:
    """One message to a SockJS client over WebSocket."""
    return text_frame_bytes(f"a[{text}]")


# -- streaming -----------------------------------------------------------------------------------------------


def xhr_bytes(frame: str) -> bytes:
    return f"{frame}\n".encode()


def eventsource_bytes(frame: str) -> bytes:
    return f"data: {frame}\r\n\r\n".encode()


def htmlfile_bytes(frame: str) -> bytes:
    return f"<script>\np({_script_string(frame)});\n</script>\r\n".encode()


def jsonp_bytes(callback: str, frame: str) -> bytes:
    # The comment keeps the callback's name from being the first bytes of a file of another type (CVE-2014-4671).
    return f"/**/{callback}({_script_string(frame)});\r\n".encode()


def _script_string(text: str) -> str:
    """`text` as a JavaScript string that cannot end the script element around it."""
    return _json(text).replace("<", "\\u003c")
