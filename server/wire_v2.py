"""What clients are told in dialect 2 of the socket protocol (docs/protocol.md), without any I/O: answers and events ->
Frame. What they ask is in `commands_v2`.

A frame is a JSON object `{"name": …, "id"?: …, "data": {…}}`; with the `id` of a request it answers that, without one
it is a push. An answer whose data has `"more": true` is followed by another one to the same request. All text is ASCII,
as in `wire`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from server.commands_v2 import VERSION, RequestId
from server.errors import InvalidInput, RateLimited, ServerError, StoreUnavailable
from server.messages import (
    Added,
    AllSeen,
    Counted,
    Counts,
    Deleted,
    Document,
    Event,
    Missed,
    Notification,
    Restored,
    Seen,
    Unseen,
)
from server.revs import to_wire
from server.wire import REMEMBERED_NOTIFICATIONS, Frame, document_fields, fresh_fields, instant, is_fresh

_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


# -- answers -------------------------------------------------------------------------------------------------


def answer_frame(name: str, id_: RequestId, data: Mapping[str, Any]) -> Frame:
    """The answer to the command of this name; `id_` None: a push."""
    return Frame(_encode({"name": name, **({} if id_ is None else {"id": id_}), "data": data}))


def error_frame(error: ServerError, id_: RequestId = None) -> Frame:
    """`error` with the code and message, whether the same may go well later, and the field or the time where the error
    names one."""
    data: dict[str, Any] = {"code": error.code, "message": str(error), "retryable": error.retryable}
    if isinstance(error, InvalidInput) and error.field:
        data["field"] = error.field
    if isinstance(error, RateLimited):
        data["retry_ms"] = round(error.retry_after_s * 1000)
    return answer_frame("error", id_, data)


def delayed_frame() -> Frame:
    """The answer to a join waits for the store: its client is not to take the connection for dead."""
    message = "the store does not answer; what was asked for comes as soon as it does"
    return answer_frame("delayed", None, {"code": StoreUnavailable.code, "message": message})


def joined_fields(
    user_id: str,
    since: str | None,
    counts: Counts,
    *,
    floor: datetime | None,
    ticket: str | None,
    heartbeat_s: float,
) -> dict[str, Any]:
    """The answer to a join. `since`: where the client goes on from; None: what has changed since it was here follows,
    and says so."""
    return {
        "v": VERSION,
        "user": user_id,
        "since": since,
        "counts": counts_fields(counts),
        "floor": instant(floor),
        "ticket": ticket,
        "heartbeat_s": heartbeat_s,
        "more": since is None,
    }


def sync_fields(
    documents: Sequence[Document], *, more: bool, upto: str, floor: datetime | None, reset: bool
) -> dict[str, Any]:
    """A chunk of what a client missed."""
    return {
        "documents": documents_fields(documents),
        "more": more,
        "upto": upto,
        "floor": instant(floor),
        "reset": reset,
    }


def documents_fields(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Documents as JSON has them."""
    return [document_fields(document) for document in documents]


def counts_fields(counts: Counts) -> dict[str, Any]:
    types = {name: {"unseen": each.unseen, "total": each.total} for name, each in counts.types.items()}
    return {"unseen": counts.unseen, "total": counts.total, "types": types}


def changed_fields(ids: Sequence[str], rev: int | None) -> dict[str, Any]:
    """Which documents a change has changed, and their new rev (None: there are none)."""
    return {"ids": ids, "rev": None if rev is None else to_wire(rev)}


# -- events --------------------------------------------------------------------------------------------------


class InboxFrames:
    """Frames for events. As with the classic `wire.EventFrames`, what the documents of one notification have in common
    is encoded once."""

    __slots__ = ("_rests",)
    counts_as = Counted

    def __init__(self) -> None:
        self._rests: dict[tuple[str, int], tuple[Notification, str]] = {}

    def frame(self, event: Event) -> Frame | None:
        """The frame that tells a client of `event`; None: it is not told."""
        if isinstance(event, Added):
            return self._of_document("notification", event.document)
        if isinstance(event, Restored):
            return self._of_document("restored", event.document)
        if isinstance(event, Seen):
            return None if event.is_part else _of_change("seen", event)
        if isinstance(event, Unseen):
            return _of_change("unseen", event)
        if isinstance(event, Deleted):
            return _of_change("delete", event)
        if isinstance(event, AllSeen):
            return answer_frame("seen", None, {"all": True, "upto": to_wire(event.upto)})
        if isinstance(event, Counted):
            return answer_frame("counts", None, counts_fields(event.counts))
        return answer_frame("missed", None, {}) if isinstance(event, Missed) else None

    @staticmethod
    def bye(retry_ms: int) -> Frame:
        """The server ends; the client is to come back after that time."""
        return answer_frame("bye", None, {"retry_ms": retry_ms})

    def _of_document(self, name: str, document: Document) -> Frame:
        if not is_fresh(document):
            return answer_frame(name, None, document_fields(document))
        own = f'"_id":"{document.id}","_userId":{_encode(document.user_id)}'
        return Frame(f'{{"name":"{name}","data":{{{own},{self._rest(document)}}}')

    def _rest(self, document: Document) -> str:
        """The shared fields without their opening brace."""
        key = (document.notification.nid, document.rev)
        notification, rest = self._rests.get(key, (None, ""))
        if notification is not document.notification:
            if len(self._rests) >= REMEMBERED_NOTIFICATIONS:
                del self._rests[next(iter(self._rests))]
            rest = fresh_fields(document)
            self._rests[key] = document.notification, rest
        return rest


def _of_change(name: str, event: Seen | Unseen | Deleted) -> Frame | None:
    ids = event.changed_ids
    return answer_frame(name, None, changed_fields(ids, event.rev)) if ids else None


class InboxStream:
    """The same frames as Server-Sent Events (HTML Living Standard, 9.2). `id` is a `since`, where one may go on by
    it."""

    __slots__ = ("_frames",)
    counts_as = Counted

    def __init__(self) -> None:
        self._frames = InboxFrames()

    def frame(self, event: Event) -> Frame | None:
        frame = self._frames.frame(event)
        return None if frame is None else self.of(frame)

    @staticmethod
    def of(frame: Frame, since: str | None = None) -> Frame:
        """A frame as an event."""
        id_ = "" if since is None else f"id: {since}\n"
        return Frame(f"{id_}data: {frame.text}\n\n")

    def bye(self, retry_ms: int) -> Frame:
        """As `InboxFrames.bye`, for browsers that come back by themselves, too."""
        return Frame(f"retry: {retry_ms}\ndata: {self._frames.bye(retry_ms).text}\n\n")
