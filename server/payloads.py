"""What systems that publish any JSON *payload* mean by it, in the fields of a notification, and back. Pure.

The contracts C2, C3 and C4 (docs/compatibility.md) have no title or text. What clients of other dialects are to show is
taken from the payload, if it has such fields; clients of these dialects get the payload as it came in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.messages import Notification

LIFTED: dict[str, tuple[str, ...]] = {
    "title": ("title",),
    "content": ("content", "message", "body"),
    "url": ("url", "link"),
    "icon": ("icon",),
    "image": ("image",),
}
"""Fields of a notification, and where in a payload each is looked for: the first text that is not empty counts."""


def lifted(payload: Any, max_bytes: Mapping[str, int]) -> dict[str, str]:
    """The texts of a notification that a payload holds, "" for each it has not. What is longer than `max_bytes` of its
    field stays in the payload alone: nothing is cut, and nothing lost."""
    fields = payload if isinstance(payload, dict) else {}
    return {
        name: next((text for source in sources if (text := _text(fields.get(source), max_bytes[name]))), "")
        for name, sources in LIFTED.items()
    }


def _text(value: Any, max_bytes: int) -> str:
    if not isinstance(value, str):
        return ""
    text = value.strip()
    return text if len(text.encode()) <= max_bytes else ""


def payload_of(notification: Notification) -> Any:
    """What clients of the dialects with payloads get: `data`, or if there is none an object of the texts that are not
    empty."""
    return texts_of(notification) if notification.data is None else notification.data


def payload_object_of(notification: Notification) -> dict[str, Any]:
    """The same for clients that take objects only: anything else is put into one, as `value`."""
    payload = payload_of(notification)
    return payload if isinstance(payload, dict) else {"value": payload}


def texts_of(notification: Notification) -> dict[str, str]:
    """The texts of a notification that are not empty, by their names."""
    names = ("type", "title", "content", "url", "icon", "image")
    return {name: text for name in names if (text := getattr(notification, name))}
