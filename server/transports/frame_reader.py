"""The frames of WebSocket clients (RFC 6455 section 5), put together to messages. No I/O."""

from __future__ import annotations

import struct

from tornado.util import _websocket_mask as unmask  # in C where Tornado has it so; it has no public name

CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
CLOSE, PING, PONG = 0x8, 0x9, 0xA
PART = -1
"""No opcode: a frame that is not the last one of its message."""

FIN, RESERVED, OPCODE, CONTROL, MASKED = 0x80, 0x70, 0x0F, 0x08, 0x80


class MalformedFrame(Exception):
    """What came is no WebSocket: nothing that follows can be understood."""


class OverLimit(Exception):
    """A message is larger than it may be."""


class FrameReader:
    """Takes what came in portions of any size; gives messages, each as soon as it is whole."""

    __slots__ = ("_at", "_buffer", "_opcode", "_parts")

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._at = 0  # where in the buffer the next frame begins
        self._opcode = 0
        self._parts: bytearray | None = None

    @property
    def is_amid_message(self) -> bool:
        """Whether a part of a message has come, and not all."""
        return self._parts is not None

    def feed(self, data: bytes) -> None:
        """Take in what came."""
        if not self._buffer:
            self._buffer = data
            return
        # In place: of a large frame that comes in many portions none is copied again and again.
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(self._buffer)
        del self._buffer[: self._at]
        self._at = 0
        self._buffer += data

    def next(self, max_bytes: int) -> tuple[int, bytes] | None:
        """The opcode and the payload of the next message, or `PART` for a frame that does not end one; None if there is
        no whole frame. Raises `MalformedFrame`, `OverLimit` (a message of more than `max_bytes`), from then on for
        good."""
        buffer, at = self._buffer, self._at
        there = len(buffer) - at
        if there < 2:
            return None
        opcode, is_final = buffer[at] & OPCODE, bool(buffer[at] & FIN)
        length, is_masked = buffer[at + 1] & 0x7F, bool(buffer[at + 1] & MASKED)
        if buffer[at] & RESERVED or (opcode & CONTROL and length > 125):
            raise MalformedFrame
        head = 2 if length < 126 else 4 if length == 126 else 10
        if there < head:
            return None
        if length == 126:
            (length,) = struct.unpack_from("!H", buffer, at + 2)
        elif length == 127:
            (length,) = struct.unpack_from("!Q", buffer, at + 2)
        if length + len(self._parts or b"") > max_bytes:
            raise OverLimit
        begin = at + head + 4 * is_masked
        if len(buffer) < begin + length:
            return None
        payload = bytes(buffer[begin : begin + length])
        if is_masked:
            payload = unmask(bytes(buffer[begin - 4 : begin]), payload)
        self._at = begin + length
        if self._at == len(buffer):
            self._buffer, self._at = b"", 0
        return self._message(opcode, is_final, payload)

    def _message(self, opcode: int, is_final: bool, payload: bytes) -> tuple[int, bytes]:
        if opcode & CONTROL:
            if not is_final:
                raise MalformedFrame
            return opcode, payload
        if (opcode == CONTINUATION) != self.is_amid_message:
            raise MalformedFrame
        if self._parts is None:
            if is_final:
                return opcode, payload
            self._opcode, self._parts = opcode, bytearray(payload)
            return PART, b""
        self._parts += payload
        if not is_final:
            return PART, b""
        whole, self._parts = bytes(self._parts), None
        return self._opcode, whole
