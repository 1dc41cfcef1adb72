"""Requests as most are, read straight from their bytes into types (msgspec), in a tenth of the time. What is of another
kind in any way is left to those who read JSON first and look then. No I/O."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct


class PlainUser(Struct, forbid_unknown_fields=True, gc=False):
    """A user without an address."""

    id: str


class PlainNotification(Struct, forbid_unknown_fields=True, gc=False):
    """A notification without mail or `data`, each value of the type that it should have."""

    content: str
    users: list[PlainUser]
    type: str = ""
    title: str = ""
    url: str = ""
    icon: str = ""
    image: str = ""
    idempotency_key: str | None = None


_notifications = msgspec.json.Decoder(PlainNotification)
_arrays = msgspec.json.Decoder(list[Raw])


def read_plain(text: bytes) -> PlainNotification | None:
    """The notification in this JSON. None: it is not such a plain one, or no JSON at all."""
    try:
        return _notifications.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def read_array(text: bytes) -> list[bytes] | None:
    """The texts of the values in this JSON array. None: it is none, or not one that is easily read."""
    try:
        return [bytes(item) for item in _arrays.decode(text)]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
