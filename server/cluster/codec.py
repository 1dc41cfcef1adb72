"""What nodes tell each other, as bytes (MessagePack) and back. No I/O.

Whatever comes may be garbled, or of somebody who has no business there: it is checked for its form, and nothing here
takes more time or memory than the bytes are long. Notifications are encoded once for all messages they are in, and are
read only for users who are here; those that are equal are one record again, so that their frames are made once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw, Struct

from server.messages import (
    Added,
    AllSeen,
    Broadcasted,
    Deleted,
    Document,
    Event,
    Missed,
    Notification,
    Restored,
    Seen,
    Unseen,
)
from server.rooms import Room

REMEMBERED_NOTIFICATIONS = 64
"""Read lately: those of one notification for many users come in many messages."""

_EPOCH = datetime.fromtimestamp(0, UTC)


class Garbled(Exception):
    """Bytes that no node of this version sends."""


class _Notification(Struct, array_like=True, frozen=True):
    nid: str
    tenant: str
    created_ms: int
    texts: tuple[str, str, str, str, str, str]
    data: str | None
    """As JSON: MessagePack has no integers above 64 bits."""


class _Document(Struct, array_like=True, frozen=True):
    notification: int
    """Its place in the message's list."""
    id: str
    created_ms: int
    updated_ms: int
    rev: int
    seen: bool
    deleted_ms: int | None


class _Added(Struct, array_like=True, frozen=True, tag="a"):
    document: _Document


class _Restored(Struct, array_like=True, frozen=True, tag="r"):
    document: _Document


class _Seen(Struct, array_like=True, frozen=True, tag="s"):
    ids: tuple[str, ...]
    rev: int
    changed: tuple[str, ...] | None
    is_part: bool


class _AllSeen(Struct, array_like=True, frozen=True, tag="S"):
    upto: int


class _Unseen(Struct, array_like=True, frozen=True, tag="u"):
    ids: tuple[str, ...]
    rev: int


class _Deleted(Struct, array_like=True, frozen=True, tag="d"):
    ids: tuple[str, ...]
    rev: int


class _Missed(Struct, array_like=True, frozen=True, tag="m"):
    pass


class _Broadcasted(Struct, array_like=True, frozen=True, tag="b"):
    notification: int


_Event = _Added | _Restored | _Seen | _AllSeen | _Unseen | _Deleted | _Missed | _Broadcasted


class Told(Struct, array_like=True, frozen=True, tag="T"):
    """Events for users, each with its room. `sent_ms`: when they were published, by the clock of that node; `number`:
    that no other message of it has; None: of an earlier version."""

    node: str
    sent_ms: int
    notifications: list[Raw]
    events: list[tuple[str, str, _Event]]
    number: int | None = None


class Asked(Struct, array_like=True, frozen=True, tag="?"):
    """Which of these users gave a sign of life within the last `silent_for_s`?"""

    node: str
    number: int
    tenant: str
    user_ids: list[str]
    silent_for_s: float


class Answered(Struct, array_like=True, frozen=True, tag="!"):
    """These did."""

    node: str
    number: int
    user_ids: list[str]


class Lost(Struct, array_like=True, frozen=True, tag="L"):
    """The node has told of nothing since then, and will not."""

    node: str
    since_ms: int


class Left(Struct, array_like=True, frozen=True, tag="."):
    """The node has ended in order: nothing of it is missing."""

    node: str


AnyMessage = Told | Asked | Answered | Lost | Left

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(AnyMessage)
_notifications = msgspec.msgpack.Decoder(_Notification)

Entry = tuple[Room, Event, bytes | None]
"""An event, and its notification as bytes, if it has one."""


# -- writing -------------------------------------------------------------------------------------------------
def notification_of(event: Event) -> Notification | None:
    """The one that an event brings with it."""
    if isinstance(event, Added | Restored):
        return event.document.notification
    return event.notification if isinstance(event, Broadcasted) else None


def encode_notification(notification: Notification) -> bytes:
    """For the entries of all events that bring it."""
    it = notification
    data = None if it.data is None else json.dumps(it.data, separators=(",", ":"))
    texts = (it.content, it.type, it.title, it.url, it.icon, it.image)
    return _encoder.encode(_Notification(it.nid, it.tenant, to_ms(it.created_at), texts, data))


def encode_told(node: str, sent_ms: int, entries: Sequence[Entry], number: int) -> bytes:
    """A message with these events: see `Told`."""
    places: dict[bytes, int] = {}
    events = [
        (*room, _written(event, -1 if body is None else places.setdefault(body, len(places))))
        for room, event, body in entries
    ]
    return _encoder.encode(Told(node, sent_ms, [Raw(body) for body in places], events, number))


def encode(message: AnyMessage) -> bytes:
    return _encoder.encode(message)


def _written(event: Event, place: int) -> _Event:
    match event:
        case Added():
            return _Added(_written_document(event.document, place))
        case Restored():
            return _Restored(_written_document(event.document, place))
        case Seen():
            return _Seen(event.ids, event.rev, event.changed, event.is_part)
        case AllSeen():
            return _AllSeen(event.upto)
        case Unseen():
            return _Unseen(event.ids, event.rev)
        case Deleted():
            return _Deleted(event.ids, event.rev)
        case Broadcasted():
            return _Broadcasted(place)
        case _:
            return _Missed()


def _written_document(document: Document, place: int) -> _Document:
    return _Document(
        place,
        document.id,
        to_ms(document.created_at),
        to_ms(document.updated_at),
        document.rev,
        document.seen,
        None if document.deleted_at is None else to_ms(document.deleted_at),
    )


def to_ms(instant: datetime) -> int:
    """Milliseconds since 1970."""
    return (instant - _EPOCH) // timedelta(milliseconds=1)


def from_ms(number: int) -> datetime:
    """Aware UTC. Raises OverflowError."""
    return _EPOCH + timedelta(milliseconds=number)


# -- reading -------------------------------------------------------------------------------------------------
def decode(body: bytes) -> AnyMessage:
    """Raises `Garbled`."""
    try:
        message: AnyMessage = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise Garbled from exc
    return message


class Reader:
    """Reads the events of messages. One for each node."""

    def __init__(self) -> None:
        self._known: dict[bytes, Notification] = {}

    def events(self, told: Told, is_wanted: Callable[[Room], bool]) -> Iterator[tuple[Room, Event]]:
        """Those for rooms that are wanted, in their order. Raises `Garbled`."""
        for tenant, user_id, event in told.events:
            room = (tenant, user_id)
            if is_wanted(room):
                try:
                    yield room, self._read(event, room, told.notifications)
                except (msgspec.DecodeError, ValueError, IndexError, OverflowError, RecursionError) as exc:
                    raise Garbled from exc

    def _read(self, event: _Event, room: Room, bodies: Sequence[Raw]) -> Event:
        match event:
            case _Added():
                return Added(self._document(event.document, room, bodies))
            case _Restored():
                return Restored(self._document(event.document, room, bodies))
            case _Seen():
                return Seen(event.ids, event.rev, event.changed, event.is_part)
            case _AllSeen():
                return AllSeen(event.upto)
            case _Unseen():
                return Unseen(event.ids, event.rev)
            case _Deleted():
                return Deleted(event.ids, event.rev)
            case _Broadcasted():
                return Broadcasted(self._notification(event.notification, room[0], bodies))
            case _Missed():
                return Missed()

    def _document(self, found: _Document, room: Room, bodies: Sequence[Raw]) -> Document:
        return Document(
            id=found.id,
            user_id=room[1],
            notification=self._notification(found.notification, room[0], bodies),
            created_at=from_ms(found.created_ms),
            updated_at=from_ms(found.updated_ms),
            rev=found.rev,
            seen=found.seen,
            deleted=found.deleted_ms is not None,
            deleted_at=None if found.deleted_ms is None else from_ms(found.deleted_ms),
        )

    def _notification(self, place: int, tenant: str, bodies: Sequence[Raw]) -> Notification:
        if place < 0:
            raise IndexError
        body = bytes(bodies[place])
        known = self._known.get(body)
        if known is None:
            if len(self._known) >= REMEMBERED_NOTIFICATIONS:
                del self._known[next(iter(self._known))]
            known = self._known[body] = _read_notification(body)
        if known.tenant != tenant:
            raise ValueError("of another tenant")
        return known


def _read_notification(body: bytes) -> Notification:
    found = _notifications.decode(body)
    content, type_, title, url, icon, image = found.texts
    return Notification(
        nid=found.nid,
        tenant=found.tenant,
        created_at=from_ms(found.created_ms),
        content=content,
        type=type_,
        title=title,
        url=url,
        icon=icon,
        image=image,
        data=None if found.data is None else json.loads(found.data),
    )
