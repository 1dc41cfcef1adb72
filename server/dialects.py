"""What clients of the other systems are told, each in the dialect of its contract, without any I/O: events -> Frame.
The classic dialect is in `wire`.

A frame is encoded once for all connections that speak a dialect; where it is the same for all users of a
notification, once for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from server.messages import (
    Added,
    Broadcasted,
    Counted,
    Deleted,
    Document,
    Event,
    Notification,
    Restored,
    Seen,
    UnseenCount,
)
from server.payloads import payload_object_of, payload_of
from server.revs import to_wire
from server.wire import Frame, document_fields, instant

_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

DEFAULT_TYPE = "notification"

REMEMBERED_NOTIFICATIONS = 16
"""On their way to many users at the same time, of which the frame is kept."""


class Dialect(Protocol):
    """How a kind of clients is told of events."""

    @property
    def counts_as(self) -> type[UnseenCount] | type[Counted] | None:
        """The event by which they are told how many notifications there are. None: they are not, and nobody counts for
        a user who has no other clients."""

    def frame(self, event: Event) -> Frame | None:
        """The frame that tells of `event`; None: these clients are not told."""


@runtime_checkable
class Farewell(Protocol):
    """A dialect in which clients are told when to come back."""

    def bye(self, retry_ms: int) -> Frame:
        """The server ends; the client is to come back after that time."""


class _PerNotification:
    """A dialect whose frames have nothing of a single user in them."""

    counts_as = None

    def __init__(self) -> None:
        self._frames: dict[str, tuple[Notification, Frame]] = {}

    def frame(self, event: Event) -> Frame | None:
        return self._frame(event.document.notification) if isinstance(event, Added) else None

    def _frame(self, notification: Notification) -> Frame:
        known, frame = self._frames.get(notification.nid, (None, None))
        if frame is None or known is not notification:
            if len(self._frames) >= REMEMBERED_NOTIFICATIONS:
                del self._frames[next(iter(self._frames))]
            frame = Frame(self._text(notification))
            self._frames[notification.nid] = notification, frame
        return frame

    def _text(self, notification: Notification) -> str:
        raise NotImplementedError


class HubDialect(_PerNotification):
    """CONTRACT C2: `{"type", "payload", "timestamp"}`."""

    def _text(self, notification: Notification) -> str:
        return _encode(
            {
                "type": notification.type or DEFAULT_TYPE,
                "payload": payload_of(notification),
                "timestamp": instant(notification.created_at),
            }
        )


class RealtimeDialect(_PerNotification):
    """CONTRACT C4: the event `notification:new` of Socket.IO with the payload, as the JSON array in its packet."""

    def _text(self, notification: Notification) -> str:
        return _encode(["notification:new", payload_object_of(notification)])


class TenantDialect(_PerNotification):
    """CONTRACT C5: `{"title", "message", "data", "created_at"}`, for those who have no user and get what is for
    everybody of their tenant."""

    def frame(self, event: Event) -> Frame | None:
        return self._frame(event.notification) if isinstance(event, Broadcasted) else None

    def _text(self, notification: Notification) -> str:
        return _encode(
            {
                "title": notification.title,
                "message": notification.content,
                "data": {} if notification.data is None else notification.data,
                "created_at": instant(notification.created_at),
            }
        )


class ServiceDialect:
    """CONTRACT C3: `{"type": "server_notification", "key", "value"}`; the key, by which a client acknowledges, is the
    id of the user's document."""

    counts_as = None

    def __init__(self) -> None:
        self._values: dict[str, tuple[Notification, str]] = {}

    def frame(self, event: Event) -> Frame | None:
        if not isinstance(event, Added):
            return None
        document = event.document
        value = self._value(document.notification)
        return Frame(f'{{"type":"server_notification","key":"{document.id}","value":{value}}}')

    def _value(self, notification: Notification) -> str:
        known, value = self._values.get(notification.nid, (None, ""))
        if known is not notification:
            if len(self._values) >= REMEMBERED_NOTIFICATIONS:
                del self._values[next(iter(self._values))]
            value = _encode(payload_of(notification))
            self._values[notification.nid] = notification, value
        return value

    @staticmethod
    def pong() -> Frame:
        """The answer to the command `ping`."""
        return Frame('{"type":"command_processing_result","key":"ping","value":"pong"}')

    @staticmethod
    def error(why: str) -> Frame:
        """The answer to what cannot be understood."""
        return Frame(_encode({"type": "message_processing_error", "value": why}))


class StreamDialect:
    """Server-Sent Events (HTML Living Standard, 9.2): the events of the classic dialect by their names, with data
    that is JSON (not JSON in a string). `id` is the document's rev: what `Last-Event-ID` gives back."""

    counts_as = UnseenCount

    def frame(self, event: Event) -> Frame | None:
        if isinstance(event, Added | Restored):
            return self.added(event.document)
        if isinstance(event, Seen):
            return _event("seen", _encode({"ids": event.ids}), event.rev)
        if isinstance(event, Deleted):
            return _event("delete", _encode({"ids": event.ids}), event.rev)
        return self.count(event.count) if isinstance(event, UnseenCount) else None

    @staticmethod
    def added(document: Document) -> Frame:
        """A document, as it is now."""
        return _event("notification", _encode(document_fields(document)), document.rev)

    @staticmethod
    def listed(document: Document) -> Frame:
        """A document of a listing that is not in the order of revs: who is cut off in it has to have it all again."""
        return _event("notification", _encode(document_fields(document)))

    @staticmethod
    def deleted(document: Document) -> Frame:
        """That this document is deleted."""
        return _event("delete", _encode({"ids": [document.id]}), document.rev)

    @staticmethod
    def count(unseen: int, upto: int | None = None) -> Frame:
        """How many are unseen. `upto`: the rev up to which everything has been told, if that is known."""
        return _event("count", f'{{"unseen":{unseen}}}', upto)

    @staticmethod
    def goodbye(code: int, reason: str) -> Frame:
        """Why the stream ends: what another transport says in its close frame."""
        return _event("close", _encode({"code": code, "reason": reason}))


def _event(name: str, data: str, rev: int | None = None) -> Frame:
    """`data` has no line breaks: it is compact JSON."""
    id_ = "" if rev is None else f"id: {to_wire(rev)}\n"
    return Frame(f"event: {name}\n{id_}data: {data}\n\n")
