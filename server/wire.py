"""What clients are told in the classic socket protocol (CONTRACT C1), without any I/O: events -> Frame. What they ask
is in `commands`.

A message is a JSON object `{"name": …, "data": …}` in both directions. In `notification`, `seen` and
`delete`, `data` is a JSON *string* that holds an array: deployed clients were written for that. All text is
ASCII (other characters as `\\uXXXX`): what travels inside a SockJS frame or a script must not need escaping
again.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.errors import InvalidInput, ServerError
from server.messages import (
    Added,
    Deleted,
    Document,
    Event,
    Notification,
    Restored,
    Seen,
    UnseenCount,
)
from server.revs import to_wire

MAX_DOCUMENTS_PER_FRAME = 100
"""No frame holds more, however many a user has: a frame is made, sent and parsed as one piece."""

MAX_CHARS_PER_FRAME = 64 * 1024
"""Of texts and data in a frame, if it holds more than one document: as much as the largest content there may be. A
frame is encoded in one go, and the loop stands still meanwhile; many clients take no message over 1 MiB."""

_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_text: Callable[[str], str] = json.encoder.encode_basestring_ascii
"""What `_encode` makes of a text, at once."""


# -- frames: what a client is told ---------------------------------------------------------------------------


class Frame:
    """One message to clients: its text, and its bytes for each way of sending, encoded once for all
    connections."""

    __slots__ = ("_encoded", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._encoded: dict[Callable[[str], bytes], bytes] = {}

    def encoded(self, encode: Callable[[str], bytes]) -> bytes:
        """`encode(text)`, worked out at the first call with that function and remembered."""
        data = self._encoded.get(encode)
        if data is None:
            data = self._encoded[encode] = encode(self.text)
        return data


class Burst(Frame):
    """Several frames that go out in a row, as one piece: one write instead of many. Its text is that of a JSON array's
    elements, for transports that carry messages in an array."""

    __slots__ = ("_frames",)

    def __init__(self, frames: Sequence[Frame]) -> None:
        super().__init__(",".join(frame.text for frame in frames))
        self._frames = frames

    def encoded(self, encode: Callable[[str], bytes]) -> bytes:
        """The frames' own bytes, one after the other."""
        data = self._encoded.get(encode)
        if data is None:
            data = self._encoded[encode] = b"".join(frame.encoded(encode) for frame in self._frames)
        return data


@dataclass(frozen=True, slots=True)
class CloseReason:
    """Why the server ends a connection: WebSocket close code (RFC 6455 section 7.4; 3000-3999 are a
    framework's own; the same number in SockJS's close frame) and a short text. After a code below 3500 a client may
    come back; from 3500 on not before something has changed, such as its credentials."""

    code: int
    reason: str


GOING_AWAY = CloseReason(1001, "going away")
"""The server stops. Come back soon."""
SLOW = CloseReason(3008, "slow")
"""The client did not take what was sent. Come back and read the inbox."""
TOO_BIG = CloseReason(1009, "message too big")
TIMED_OUT = CloseReason(3009, "no sign of life")
TOKEN_EXPIRED = CloseReason(3005, "token_expired")
"""The token of the join has ended. Come back with a new one."""
NOT_JOINED = CloseReason(3006, "not_joined")
"""Nobody joined in time."""
TOO_MANY = CloseReason(3429, "too_many_connections")
"""The user has as many connections as they may."""
REVOKED = CloseReason(3500, "revoked")
"""The key behind the token was revoked, or the tenant was removed."""
SIGNED_OUT = CloseReason(3501, "signed_out")
"""The user was signed out everywhere. Come back with a new proof of who you are."""
FAILED = CloseReason(1011, "internal error")


def notification_frame(documents: Sequence[Document]) -> Frame:
    """`notification` with these documents, in this order; may be empty (a client's sign of a good join)."""
    return _frame("notification", [document_fields(document) for document in documents])


def newest_frame(documents: Sequence[Document], before: str | None, has_more: bool) -> Frame:
    """The answer to `ListNewest`: a `notification` that says beside its data what it answers, and whether older
    documents follow. Deployed clients look at neither."""
    array = _encode(_encode([document_fields(document) for document in documents]))
    more = "true" if has_more else "false"
    return Frame(f'{{"name":"notification","data":{array},"before":{_encode(before)},"more":{more}}}')


def portions(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """`documents` in their order, in portions for a frame each: of one, or with at most `MAX_CHARS_PER_FRAME`.
    A single empty one if there are none. Nothing is looked at before its portion is asked for."""
    start = size = 0
    for index, document in enumerate(documents):
        length = _length(document)
        size += length
        if index > start and size > MAX_CHARS_PER_FRAME:
            yield documents[start:index]
            start, size = index, length
    yield documents[start:]


def overflow(documents: Sequence[Document]) -> bool:
    """Whether these are more than go into one frame, as `portions` has it."""
    return len(next(portions(documents))) < len(documents)


def are_all(documents: Sequence[Document], limit: int) -> bool:
    """Whether a reading of up to `limit` documents has come to the end: of long ones a store returns no more than go
    into a frame, and one."""
    return len(documents) < limit and not overflow(documents)


def _length(document: Document) -> int:
    """Characters of all in it that publishers choose freely."""
    said = document.notification
    texts = (said.content, said.title, said.type, said.url, said.icon, said.image)
    return sum(map(len, texts)) + (0 if said.data is None else len(_encode(said.data)))


def seen_frame(ids: Sequence[str]) -> Frame:
    return _frame("seen", ids)


def delete_frame(ids: Sequence[str]) -> Frame:
    return _frame("delete", ids)


def count_frame(unseen: int) -> Frame:
    return Frame(f'{{"name":"count","data":{{"unseen":{unseen}}}}}')


def error_frame(error: ServerError) -> Frame:
    """`error` with the code and message, and the field where the error names one."""
    data = {"code": error.code, "message": str(error)}
    if isinstance(error, InvalidInput) and error.field:
        data["field"] = error.field
    return Frame(_encode({"name": "error", "data": data}))


def _frame(name: str, array: Sequence[Any]) -> Frame:
    return Frame(f'{{"name":"{name}","data":{_encode(_encode(array))}}}')


def document_fields(document: Document) -> dict[str, Any]:
    """A document as JSON has it."""
    return {"_id": document.id, "_userId": document.user_id, **shared_fields(document)}


def shared_fields(document: Document) -> dict[str, Any]:
    """All fields but the two in which the fresh documents of one notification differ."""
    notification = document.notification
    fields: dict[str, Any] = {
        "nid": notification.nid,
        "type": notification.type,
        "title": notification.title,
        "content": notification.content,
        "url": notification.url,
        "icon": notification.icon,
        "image": notification.image,
        "createdAt": instant(document.created_at),
        "updatedAt": instant(document.updated_at),
        "deletedAt": instant(document.deleted_at),
        "delete": document.deleted,
        "seen": document.seen,
        "rev": to_wire(document.rev),
    }
    if notification.data is not None:
        fields["data"] = notification.data
    return fields


_TO_MILLISECONDS = len("2026-11-22T10:00:00.000")


def instant(instant: datetime | None) -> str | None:
    """ISO 8601 with milliseconds and `Z` (RFC 3339), as JavaScript's `toISOString` writes it."""
    # What follows the milliseconds is that it is UTC, as all our instants are.
    return None if instant is None else instant.isoformat(timespec="milliseconds")[:_TO_MILLISECONDS] + "Z"


def is_fresh(document: Document) -> bool:
    """Whether it is as it came into the inbox."""
    created_at = document.created_at
    return (
        document.updated_at == created_at == document.notification.created_at
        and not document.seen
        and not document.deleted
    )


def fresh_fields(document: Document) -> str:
    """The JSON of `shared_fields` of a fresh document without its opening brace, in a fifth of the time."""
    notification, at = document.notification, instant(document.created_at)
    data = "" if notification.data is None else f',"data":{_encode(notification.data)}'
    return (
        f'"nid":"{notification.nid}","type":{_text(notification.type)},"title":{_text(notification.title)}'
        f',"content":{_text(notification.content)},"url":{_text(notification.url)}'
        f',"icon":{_text(notification.icon)},"image":{_text(notification.image)}'
        f',"createdAt":"{at}","updatedAt":"{at}","deletedAt":null,"delete":false,"seen":false'
        f',"rev":"{to_wire(document.rev)}"{data}}}'
    )


REMEMBERED_NOTIFICATIONS = 16
"""Notifications on their way to many users at the same time, of which the encoded fields are kept."""


class EventFrames:
    """Frames for events. Remembers the notifications it saw last: fresh documents of one notification differ
    only in `_id` and `_userId`, so for many users the rest is encoded once and those two are spliced in."""

    counts_as = UnseenCount

    def __init__(self) -> None:
        self._rests: dict[tuple[str, int], tuple[Notification, str]] = {}

    def frame(self, event: Event) -> Frame | None:
        """The frame that tells a client of `event`; None: classic clients are not told."""
        if isinstance(event, Added):  # these two first, since most are
            return self._added(event.document)
        if isinstance(event, UnseenCount):
            return count_frame(event.count)
        if isinstance(event, Restored):
            return self._added(event.document)
        if isinstance(event, Seen):
            return seen_frame(event.ids)
        return delete_frame(event.ids) if isinstance(event, Deleted) else None

    def _added(self, document: Document) -> Frame:
        if not is_fresh(document):
            return notification_frame([document])
        user_id = _text(_text(document.user_id))[1:-1]
        return Frame(
            '{"name":"notification","data":"[{\\"_id\\":\\"'
            f'{document.id}\\",\\"_userId\\":{user_id},{self._rest(document)}]"}}'
        )

    def _rest(self, document: Document) -> str:
        """The shared fields without their opening brace, as they stand inside a string."""
        key = (document.notification.nid, document.rev)
        notification, rest = self._rests.get(key, (None, ""))
        if notification is not document.notification:
            if len(self._rests) >= REMEMBERED_NOTIFICATIONS:
                del self._rests[next(iter(self._rests))]
            rest = _text(fresh_fields(document))[1:-1]
            self._rests[key] = document.notification, rest
        return rest
