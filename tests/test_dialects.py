"""Tests of server/dialects.py."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from server import dialects as module
from server.dialects import (
    Dialect,
    HubDialect,
    RealtimeDialect,
    ServiceDialect,
    StreamDialect,
    TenantDialect,
)
from server.messages import Added, Broadcasted, Deleted, Document, Event, Notification, Seen, UnseenCount
from server.revs import to_wire
from server.wire import EventFrames

AT = datetime(2030, 1, 2, 3, 4, 5, 678_000, UTC)
AT_TEXT = "2030-01-02T03:04:05.678Z"

ID = "a" * 24
OTHER_ID = "b" * 24


def notification(**fields: Any) -> Notification:
    return Notification(**{"nid": "f" * 24, "tenant": "acme", "created_at": AT, "content": "", **fields})


def added(id_: str = ID, made: Notification | None = None, **fields: Any) -> Added:
    return Added(Document(id_, "alice", made or notification(**fields), AT, AT, rev=77))


def text(dialect: Dialect, event: Event) -> str:
    frame = dialect.frame(event)
    assert frame is not None
    return frame.text


# -- each dialect's frame ------------------------------------------------------------------------------------
def test_the_hubs_frame() -> None:
    """CONTRACT C2: exactly these fields; a type of its own where there is none."""
    event = added(type="order", data={"n": 1}, title="not told")
    assert text(HubDialect(), event) == f'{{"type":"order","payload":{{"n":1}},"timestamp":"{AT_TEXT}"}}'
    event = added(content="é", title="T")
    assert json.loads(text(HubDialect(), event)) == {
        "type": "notification",
        "payload": {"title": "T", "content": "é"},
        "timestamp": AT_TEXT,
    }


def test_the_services_frame() -> None:
    """CONTRACT C3: the key is the document's id."""
    for data in ({"n": 1}, [1], "é", 0, False):
        assert text(ServiceDialect(), added(data=data)) == (
            f'{{"type":"server_notification","key":"{ID}","value":{json.dumps(data, separators=(",", ":"))}}}'
        )
    frame = json.loads(text(ServiceDialect(), added(title="T")))
    assert frame["value"] == {"title": "T"}


def test_the_services_answers() -> None:
    """To the ping, and to what cannot be understood."""
    pong = {"type": "command_processing_result", "key": "ping", "value": "pong"}
    assert json.loads(ServiceDialect.pong().text) == pong
    error = {"type": "message_processing_error", "value": 'wh"y'}
    assert json.loads(ServiceDialect.error('wh"y').text) == error


def test_the_realtime_event() -> None:
    """CONTRACT C4: always an object."""
    assert text(RealtimeDialect(), added(data={"n": 1})) == '["notification:new",{"n":1}]'
    assert text(RealtimeDialect(), added(data=[1])) == '["notification:new",{"value":[1]}]'
    assert text(RealtimeDialect(), added(content="C")) == '["notification:new",{"content":"C"}]'


def test_the_tenants_frame() -> None:
    """CONTRACT C5: of broadcasts only."""
    made = notification(title="T", content="M", data={"a": None})
    assert text(TenantDialect(), Broadcasted(made)) == (
        f'{{"title":"T","message":"M","data":{{"a":null}},"created_at":"{AT_TEXT}"}}'
    )
    assert json.loads(text(TenantDialect(), Broadcasted(notification())))["data"] == {}
    assert TenantDialect().frame(added()) is None


def test_the_streams_events() -> None:
    """Server-Sent Events: a name, the rev as id where there is one, a line of JSON, a blank line."""
    stream = StreamDialect()
    name, id_, data, end, rest = text(stream, added(content="a\nb\u2028c")).split("\n")
    assert (name, id_, end, rest) == ("event: notification", f"id: {to_wire(77)}", "", "")
    assert json.loads(data.removeprefix("data: "))["content"] == "a\nb\u2028c"
    rev = to_wire(78)
    assert text(stream, Seen((ID,), 78)) == f'event: seen\nid: {rev}\ndata: {{"ids":["{ID}"]}}\n\n'
    assert text(stream, Deleted((ID,), 78)) == f'event: delete\nid: {rev}\ndata: {{"ids":["{ID}"]}}\n\n'
    assert text(stream, UnseenCount(3)) == 'event: count\ndata: {"unseen":3}\n\n'
    assert stream.goodbye(3005, "why").text == 'event: close\ndata: {"code":3005,"reason":"why"}\n\n'


# -- who is told of what -------------------------------------------------------------------------------------
EVENTS = [added(), Seen((ID,), 1), Deleted((ID,), 1), UnseenCount(1), Broadcasted(notification())]


@pytest.mark.parametrize(
    ("dialect", "told"),
    [
        (HubDialect(), [True, False, False, False, False]),
        (ServiceDialect(), [True, False, False, False, False]),
        (RealtimeDialect(), [True, False, False, False, False]),
        (TenantDialect(), [False, False, False, False, True]),
        (StreamDialect(), [True, True, True, True, False]),
        (EventFrames(), [True, True, True, True, False]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_events_are_told(dialect: Dialect, told: list[bool]) -> None:
    """The others are no business of these clients."""
    assert [dialect.frame(event) is not None for event in EVENTS] == told


# -- encoding once -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dialect", [HubDialect(), RealtimeDialect()])
def test_a_frame_is_made_once_for_all_users(dialect: Dialect) -> None:
    """Where there is nothing of a user in it."""
    made = notification(data={"n": 1})
    assert dialect.frame(added(made=made)) is dialect.frame(added(OTHER_ID, made))


def test_a_value_is_encoded_once_for_all_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the frame is each user's own."""
    dialect, made = ServiceDialect(), notification(data={"n": 1})
    first = text(dialect, added(made=made))
    monkeypatch.setattr(module, "_encode", None)
    assert text(dialect, added(OTHER_ID, made)) == first.replace(ID, OTHER_ID)


@pytest.mark.parametrize("dialect", [HubDialect(), RealtimeDialect(), ServiceDialect()])
def test_notifications_are_not_mixed_up(dialect: Dialect) -> None:
    """However many are on their way, and though two had one id; what is remembered is bounded."""
    for number in range(3 * module.REMEMBERED_NOTIFICATIONS):
        made = notification(nid=f"{number:024x}", data={"n": number})
        assert f'"n":{number}}}' in text(dialect, added(made=made))
    for number in range(2):
        assert f'"n":{number}}}' in text(dialect, added(made=notification(data={"n": number})))
    kept = getattr(dialect, "_frames", None) or getattr(dialect, "_values", None)
    assert len(kept) <= module.REMEMBERED_NOTIFICATIONS
