"""Tests of server/wire_v2.py: what clients are told in dialect 2."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import wire_v2
from server.errors import InvalidCommand, NotJoined, RateLimited, StoreUnavailable
from server.messages import (
    Added,
    AllSeen,
    Broadcasted,
    Counted,
    Counts,
    Deleted,
    Document,
    Event,
    Missed,
    Notification,
    Restored,
    Seen,
    TypeCounts,
    Unseen,
    UnseenCount,
    altered,
)
from server.wire import document_fields
from server.wire_v2 import InboxFrames, InboxStream, answer_frame, error_frame

AT = datetime(2026, 11, 21, 9, 30, 0, 123000, UTC)
ID = "6740c0ffee0123456789abcd"
NOTIFICATION = Notification("6740c0ffee0123456789abcc", "default", AT, content="hello")
DOCUMENT = Document(ID, "alice", NOTIFICATION, AT, AT, rev=7)


def told(event: Event) -> Any:
    frame = InboxFrames().frame(event)
    return None if frame is None else json.loads(frame.text)


@pytest.mark.parametrize(
    ("event", "name", "data"),
    [
        (Added(DOCUMENT), "notification", document_fields(DOCUMENT)),
        (Restored(altered(DOCUMENT, seen=True)), "restored", document_fields(altered(DOCUMENT, seen=True))),
        (Seen((ID,), 8), "seen", {"ids": [ID], "rev": "0000000000000008"}),
        (Seen((ID, "other"), 8, changed=(ID,)), "seen", {"ids": [ID], "rev": "0000000000000008"}),
        (AllSeen(9), "seen", {"all": True, "upto": "0000000000000009"}),
        (Unseen((ID,), 8), "unseen", {"ids": [ID], "rev": "0000000000000008"}),
        (Deleted((ID,), 8), "delete", {"ids": [ID], "rev": "0000000000000008"}),
        (
            Counted(Counts(1, 2, {"order": TypeCounts(1, 2)})),
            "counts",
            {"unseen": 1, "total": 2, "types": {"order": {"unseen": 1, "total": 2}}},
        ),
        (Missed(), "missed", {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_events(event: Event, name: str, data: Any) -> None:
    """Each by its name, without an id, with an object."""
    assert told(event) == {"name": name, "data": data}


@pytest.mark.parametrize(
    "event",
    [Seen((ID,), 8, is_part=True), Seen((ID,), 8, changed=()), UnseenCount(1), Broadcasted(NOTIFICATION)],
    ids=str,
)
def test_what_is_told_otherwise_or_to_others_is_not_told(event: Event) -> None:
    """Parts of what is told as a whole, changes of nothing, counts of the classic dialect."""
    assert told(event) is None


texts = st.text(max_size=20)


@given(texts, texts, texts, st.none() | st.lists(st.text(max_size=5)), st.booleans())
def test_a_document_is_the_same_however_it_is_encoded(
    user: str, content: str, type_: str, data: Any, seen: bool
) -> None:
    """Spliced or whole, with whatever is in its texts; in ASCII."""
    notification = altered(NOTIFICATION, content=content, type=type_, data=data)
    document = altered(DOCUMENT, user_id=user, notification=notification, seen=seen)
    frames = InboxFrames()
    for each in (document, altered(document, id="0" * 24, user_id="another")):
        frame = frames.frame(Added(each))
        assert frame is not None and frame.text.isascii()
        assert json.loads(frame.text) == {"name": "notification", "data": document_fields(each)}


def test_for_many_users_the_shared_fields_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each notification; and not of those that went before for ever."""
    calls = 0
    fresh_fields = wire_v2.fresh_fields

    def counted(document: Document) -> str:
        nonlocal calls
        calls += 1
        return fresh_fields(document)

    monkeypatch.setattr(wire_v2, "fresh_fields", counted)
    frames = InboxFrames()
    for number in range(1000):
        frames.frame(Added(altered(DOCUMENT, id=f"{number:024x}", user_id=f"user-{number}")))
    assert calls == 1
    for number in range(100):
        notification = altered(NOTIFICATION, nid=f"{number:024x}")
        frames.frame(Added(altered(DOCUMENT, notification=notification)))
    assert len(frames._rests) == wire_v2.REMEMBERED_NOTIFICATIONS


def test_answers_have_the_id_of_their_request() -> None:
    """A push has none."""
    assert json.loads(answer_frame("counts", 0, {}).text) == {"name": "counts", "id": 0, "data": {}}
    assert json.loads(answer_frame("counts", "", {}).text)["id"] == ""
    assert "id" not in json.loads(answer_frame("counts", None, {}).text)


def test_errors_say_whether_to_try_again() -> None:
    """With the field or the time that they name."""
    assert json.loads(error_frame(InvalidCommand("data.ids", "missing"), 5).text) == {
        "name": "error",
        "id": 5,
        "data": {"code": "invalid", "message": "data.ids: missing", "retryable": False, "field": "data.ids"},
    }
    assert json.loads(error_frame(StoreUnavailable()).text)["data"]["retryable"]
    assert json.loads(error_frame(RateLimited("slow down", 1.5)).text)["data"]["retry_ms"] == 1500
    assert "field" not in json.loads(error_frame(NotJoined()).text)["data"]


def test_over_a_stream_a_frame_is_the_data_of_an_event() -> None:
    """With an id where one may go on from there."""
    stream, frame = InboxStream(), answer_frame("missed", None, {})
    assert stream.of(frame).text == f"data: {frame.text}\n\n"
    assert stream.of(frame, "since").text == f"id: since\ndata: {frame.text}\n\n"
    pushed = stream.frame(Missed())
    assert pushed is not None and pushed.text == f"data: {frame.text}\n\n"
    assert stream.frame(UnseenCount(1)) is None
    assert stream.bye(700).text == f"retry: 700\ndata: {InboxFrames.bye(700).text}\n\n"
