"""Tests of server/wire.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.commands import (
    MAX_CREDENTIAL_CHARS,
    MAX_PAGE,
    MAX_PAGE_SIZE,
    Command,
    Delete,
    Join,
    Leave,
    ListNewest,
    ListPage,
    ListUnseen,
    MarkSeen,
    command_of,
    read_message,
)
from server.errors import BadCredentials, InvalidCommand, StoreUnavailable
from server.messages import (
    Added,
    Deleted,
    Document,
    Notification,
    Seen,
    UnseenCount,
    altered,
    to_milliseconds,
)
from server.wire import (
    FAILED,
    GOING_AWAY,
    SLOW,
    TIMED_OUT,
    TOO_BIG,
    Burst,
    EventFrames,
    Frame,
    count_frame,
    delete_frame,
    error_frame,
    notification_frame,
    portions,
    seen_frame,
)

ID = "0123456789abcdef01234567"
OTHER_ID = "89abcdef0123456701234567"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
instants = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(
    to_milliseconds
)
finite_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
notifications = st.builds(
    Notification,
    nid=st.just(OTHER_ID),
    tenant=st.just("default"),
    created_at=instants,
    content=st.text(),
    type=st.text(),
    title=st.text(),
    url=st.text(),
    icon=st.text(),
    image=st.text(),
    data=finite_json,
)


@st.composite
def documents(draw: st.DrawFn, of: st.SearchStrategy[Notification] = notifications) -> Document:
    notification = draw(of)
    created_at = draw(st.just(notification.created_at) | instants)
    deleted = draw(st.booleans())
    return Document(
        id=draw(st.sampled_from([ID, OTHER_ID])),
        user_id=draw(st.text(min_size=1)),
        notification=notification,
        created_at=created_at,
        updated_at=draw(st.just(created_at) | instants),
        rev=draw(st.just(1) | st.integers(0, 2**64 - 1)),
        seen=draw(st.booleans()),
        deleted=deleted,
        deleted_at=draw(instants) if deleted else None,
    )


@st.composite
def fan_outs(draw: st.DrawFn) -> list[Document]:
    """The documents of a few notifications, mixed, many of them fresh."""
    some = draw(st.lists(notifications, min_size=1, max_size=3))
    return draw(st.lists(documents(st.sampled_from(some)) | st.sampled_from(some).map(_fresh), max_size=8))


def _fresh(notification: Notification, user_id: str = "bob", rev: int = 1) -> Document:
    at = notification.created_at
    return Document(ID, user_id, notification, at, at, rev)


def _command(name: str, data: Any = None) -> Command:
    return command_of(read_message(json.dumps({"name": name, "data": data})))


def _refusal(text: str) -> InvalidCommand:
    with pytest.raises(InvalidCommand) as caught:
        command_of(read_message(text))
    return caught.value


# -- commands ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "data", "command"),
    [
        ("join", {"login": "alice", "password": "secret"}, Join("alice", "secret")),
        ("join", {"login": 7, "password": 8}, Join("7", "8")),
        ("join", {"login": " a ", "password": "ü☃", "more": 1}, Join(" a ", "ü☃")),
        ("unseen", {}, ListUnseen()),
        ("unseen", None, ListUnseen()),
        ("leave", {}, Leave()),
        ("content", {"page": 2}, ListPage(2)),
        ("content", 2, ListPage(2)),
        ("content", None, ListPage(0)),
        ("content", {}, ListPage(0)),
        ("content", {"page": None}, ListPage(0)),
        ("content", {"page": "3"}, ListPage(3)),
        ("content", "3", ListPage(3)),
        ("content", {"page": -1}, ListPage(0)),
        ("content", "-5", ListPage(0)),
        ("content", 2.0, ListPage(2)),
        ("content", 10**30, ListPage(MAX_PAGE)),
        ("content", 1e300, ListPage(MAX_PAGE)),
        ("content", {"before": None}, ListNewest(None, None)),
        ("content", {"limit": None}, ListNewest(None, None)),
        ("content", {"before": ID, "limit": 5}, ListNewest(ID, 5)),
        ("content", {"before": ID.upper()}, ListNewest(ID, None)),
        ("content", {"limit": "7"}, ListNewest(None, 7)),
        ("content", {"limit": 0}, ListNewest(None, 1)),
        ("content", {"limit": -3}, ListNewest(None, 1)),
        ("content", {"limit": 1000}, ListNewest(None, MAX_PAGE_SIZE)),
        ("content", {"page": 4, "limit": 5}, ListNewest(None, 5)),
        ("seen", {"ids": [ID]}, MarkSeen((ID,))),
        ("seen", [ID, OTHER_ID], MarkSeen((ID, OTHER_ID))),
        ("seen", {"all": True}, MarkSeen(None)),
        ("seen", [], MarkSeen(())),
        ("seen", [ID, ID.upper(), "nobody's", OTHER_ID, ID], MarkSeen((ID, OTHER_ID))),
        ("delete", {"ids": [ID]}, Delete((ID,))),
        ("delete", [OTHER_ID, ID], Delete((OTHER_ID, ID))),
    ],
)
def test_each_command_is_read_in_all_its_forms(name: str, data: Any, command: Command) -> None:
    """C1's commands, the bare forms of the original's README, numbers as texts, and every clamp."""
    assert _command(name, data) == command


@pytest.mark.parametrize(
    ("name", "data", "field"),
    [
        ("join", None, "data"),
        ("join", ["alice", "secret"], "data"),
        ("join", {"password": "x"}, "data.login"),
        ("join", {"login": "alice"}, "data.password"),
        ("join", {"login": "", "password": "x"}, "data.login"),
        ("join", {"login": True, "password": "x"}, "data.login"),
        ("join", {"login": ["a"], "password": "x"}, "data.login"),
        ("join", {"login": "alice", "password": 1.5}, "data.password"),
        ("join", {"login": "a" * (MAX_CREDENTIAL_CHARS + 1), "password": "x"}, "data.login"),
        ("join", {"login": 10 ** (MAX_CREDENTIAL_CHARS + 1), "password": "x"}, "data.login"),
        ("join", {"login": "\ud800", "password": "x"}, "data.login"),
        ("content", "", "data.page"),
        ("content", "1" * 21, "data.page"),
        ("content", "two", "data.page"),
        ("content", 1.5, "data.page"),
        ("content", float("inf"), "data.page"),
        ("content", float("nan"), "data.page"),
        ("content", True, "data.page"),
        ("content", [1], "data.page"),
        ("content", {"before": "x"}, "data.before"),
        ("content", {"before": 7}, "data.before"),
        ("content", {"limit": "many"}, "data.limit"),
        ("content", {"limit": False}, "data.limit"),
        ("seen", None, "data.ids"),
        ("seen", {}, "data.ids"),
        ("seen", {"ids": ID}, "data.ids"),
        ("seen", ID, "data.ids"),
        ("seen", {"ids": [ID, 7]}, "data.ids[1]"),
        ("seen", {"all": False}, "data.all"),
        ("seen", {"all": 1}, "data.all"),
        ("seen", {"all": True, "ids": [ID]}, "data.all"),
        ("delete", {"all": True}, "data.ids"),
        ("delete", [None], "data.ids[0]"),
        ("notify", {}, "name"),
        ("", {}, "name"),
        ("_parse_join", {}, "name"),
    ],
)
def test_a_command_that_is_not_as_documented_is_refused_by_its_field(
    name: str, data: Any, field: str
) -> None:
    """The error names the path of what is wrong; nothing is guessed."""
    assert _refusal(json.dumps({"name": name, "data": data})).field == field


@pytest.mark.parametrize(
    "text", ["[]", "1", "null", '"join"', "{}", '{"name": 7}', '{"name": null}', '{"name": ["join"]}']
)
def test_a_message_is_an_object_with_a_name(text: str) -> None:
    """Any other JSON is refused by its name."""
    assert _refusal(text).field == "name"


@pytest.mark.parametrize(
    "text", ["", "join", "{", '{"name": "join"', "[" * 100_000, "9" * 10_000, "\ufeff{}"]
)
def test_what_is_not_json_is_refused_as_a_whole(text: str) -> None:
    """Neither bottomless nesting nor endless numbers do more than that."""
    assert _refusal(text).field == ""


def test_the_longest_credentials_are_taken() -> None:
    """The limit is the last length allowed."""
    longest = "a" * MAX_CREDENTIAL_CHARS
    assert _command("join", {"login": longest, "password": longest}) == Join(longest, longest)


def test_a_refusal_does_not_repeat_the_password() -> None:
    """What a client sent is not echoed into answers and logs."""
    error = _refusal(json.dumps({"name": "join", "data": {"login": "", "password": "hunter2"}}))
    assert "hunter2" not in error_frame(error).text


@pytest.mark.parametrize("value", ["[]", "{}", "0", '""', "[[[[[[[[]]]]]]]]"])
def test_more_values_than_any_command_has_are_not_read(value: str) -> None:
    """It would take long, in which nobody else is served. A list of as many ids as fit in is."""
    refused = _refusal('{"name": "seen", "data": {"ids": [' + ",".join([value] * 60_000) + "]}}")
    assert "too many values" in str(refused)
    assert refused.field == ""
    ids = [f"{number:024x}" for number in range(40_000)]
    assert _command("seen", {"ids": ids}) == MarkSeen(tuple(ids))


@given(st.text())
@example('{"name": "\\ud800"}')
def test_any_text_is_a_command_or_refused(text: str) -> None:
    """Nothing a client sends raises anything but InvalidCommand."""
    try:
        command_of(read_message(text))
    except InvalidCommand as error:
        assert error_frame(error).text.isascii()


@given(st.sampled_from(["join", "unseen", "content", "seen", "delete", "leave"]), json_values)
def test_any_data_makes_a_command_or_is_refused(name: str, data: Any) -> None:
    """Any JSON as the data of a known command likewise, and what is taken is within its bounds."""
    try:
        command = _command(name, data)
    except InvalidCommand as error:
        assert error.field.startswith("data")
        return
    if isinstance(command, ListPage):
        assert 0 <= command.page <= MAX_PAGE
    elif isinstance(command, ListNewest):
        assert command.limit is None or 1 <= command.limit <= MAX_PAGE_SIZE


# -- frames --------------------------------------------------------------------------------------------------
AT = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC)
NOTIFICATION = Notification(OTHER_ID, "default", AT, "C", "info", "T", "http://u", "i.png", "m.png")


def _data(frame: Frame) -> Any:
    return json.loads(json.loads(frame.text)["data"])


def test_a_document_has_the_fields_of_the_original_and_ours() -> None:
    """C1's document: times as ISO 8601 with Z, deletedAt null, plus nid and rev; `data` only where there is any."""
    document = Document(ID, "bob", NOTIFICATION, AT, AT, rev=255)
    message = json.loads(notification_frame([document]).text)
    assert message["name"] == "notification"
    assert isinstance(message["data"], str)
    assert json.loads(message["data"]) == [
        {
            "_id": ID,
            "_userId": "bob",
            "nid": OTHER_ID,
            "type": "info",
            "title": "T",
            "content": "C",
            "url": "http://u",
            "icon": "i.png",
            "image": "m.png",
            "createdAt": "2026-03-04T05:06:07.089Z",
            "updatedAt": "2026-03-04T05:06:07.089Z",
            "deletedAt": None,
            "delete": False,
            "seen": False,
            "rev": "00000000000000ff",
        }
    ]


def test_a_tombstone_tells_when_it_was_deleted() -> None:
    """`delete` is true and deletedAt an instant; whole seconds keep their milliseconds."""
    deleted_at = datetime(2026, 3, 4, tzinfo=UTC)
    document = Document(ID, "bob", NOTIFICATION, AT, AT, 1, seen=True, deleted=True, deleted_at=deleted_at)
    fields = _data(notification_frame([document]))[0]
    assert (fields["delete"], fields["seen"], fields["deletedAt"]) == (True, True, "2026-03-04T00:00:00.000Z")


def test_no_documents_are_an_empty_array() -> None:
    """A client's only sign of a good join, if it has nothing unseen."""
    assert notification_frame([]).text == '{"name":"notification","data":"[]"}'


def test_seen_and_delete_carry_ids_in_a_string() -> None:
    """The string form that deployed clients were written for."""
    assert seen_frame([ID]).text == f'{{"name":"seen","data":"[\\"{ID}\\"]"}}'
    assert delete_frame((ID, OTHER_ID)).text == f'{{"name":"delete","data":"[\\"{ID}\\",\\"{OTHER_ID}\\"]"}}'


def test_the_count_is_a_number_in_an_object() -> None:
    """Ours, not C1's: plain JSON."""
    assert json.loads(count_frame(12).text) == {"name": "count", "data": {"unseen": 12}}


def test_an_error_has_code_and_message_and_the_field_if_one_is_named() -> None:
    """The three things that a client can act on."""
    assert json.loads(error_frame(InvalidCommand("data.ids", "missing")).text) == {
        "name": "error",
        "data": {"code": "invalid", "message": "data.ids: missing", "field": "data.ids"},
    }
    for error in (BadCredentials(), StoreUnavailable(), InvalidCommand("", "the message is not JSON")):
        assert json.loads(error_frame(error).text)["data"] == {"code": error.code, "message": str(error)}


@given(st.lists(documents(), max_size=3))
def test_frames_are_ascii_and_lose_nothing(some: Sequence[Document]) -> None:
    """Any Unicode, and any `data`, comes out of the two layers of JSON as it went in."""
    frame = notification_frame(some)
    assert frame.text.isascii()
    assert frame.text.isprintable()
    for fields, document in zip(_data(frame), some, strict=True):
        notification = document.notification
        assert (fields["_id"], fields["_userId"]) == (document.id, document.user_id)
        assert (fields["content"], fields["title"], fields["url"]) == (
            notification.content,
            notification.title,
            notification.url,
        )
        assert fields.get("data") == notification.data


@given(fan_outs())
def test_a_spliced_frame_equals_the_one_made_whole(some: list[Document]) -> None:
    """Whatever documents came before, the shortcut for fresh ones changes no byte."""
    frames = EventFrames()
    for document in some:
        assert frames.frame(Added(document)).text == notification_frame([document]).text


@pytest.mark.parametrize("data", [None, {"a": ["é", 2**70, 0.5, None]}], ids=["without data", "with data"])
def test_a_fresh_document_is_written_as_any_other(data: Any) -> None:
    """The short way for what is new says the same as the long one."""
    texts = {
        name: f'{name} "\\ \n\x7fé\u2028\U0001f600'
        for name in ("type", "title", "content", "url", "icon", "image")
    }
    document = _fresh(altered(NOTIFICATION, **texts, data=data), 'us"er é')
    [frame] = [EventFrames().frame(Added(document))]
    assert frame is not None and frame.text == notification_frame([document]).text


def test_for_many_users_theshared_fields_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification for 1,000 users is serialized once, each further one costs its two ids."""
    from server import wire

    fresh_fields, calls = wire.fresh_fields, 0

    def counted(document: Document) -> str:
        nonlocal calls
        calls += 1
        return fresh_fields(document)

    monkeypatch.setattr(wire, "fresh_fields", counted)
    frames = EventFrames()
    for number in range(1000):
        frames.frame(Added(_fresh(NOTIFICATION, f"user {number}")))
    assert calls == 1


def test_notifications_that_go_out_at_the_same_time_are_each_encoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whatever order the users' turns come; of the many that were, only the last are kept."""
    from server import wire

    fresh_fields, calls = wire.fresh_fields, 0

    def counted(document: Document) -> str:
        nonlocal calls
        calls += 1
        return fresh_fields(document)

    monkeypatch.setattr(wire, "fresh_fields", counted)
    frames = EventFrames()
    some = [altered(NOTIFICATION, nid=f"{number:024x}") for number in range(wire.REMEMBERED_NOTIFICATIONS)]
    for number in range(100):
        for notification in some:
            frames.frame(Added(_fresh(notification, f"user {number}")))
    assert calls == len(some)
    frames.frame(Added(_fresh(altered(NOTIFICATION, nid="f" * 24), "another")))
    assert len(frames._rests) == wire.REMEMBERED_NOTIFICATIONS


def _portion_sizes(*contents: int) -> list[int]:
    documents = [_fresh(altered(NOTIFICATION, content="x" * size), "alice") for size in contents]
    return [len(some) for some in portions(documents)]


def test_documents_are_portioned_by_the_length_of_their_contents() -> None:
    """Short ones stay together, long ones come alone, none is left out; no documents are one empty portion."""
    assert _portion_sizes() == [0]
    assert _portion_sizes(*[10] * 100) == [100]
    assert _portion_sizes(65536, 65536, 1, 65000, 1000) == [1, 1, 2, 1]
    assert _portion_sizes(100_000, 1) == [1, 1]


def test_documents_are_long_by_their_data_and_other_texts_too() -> None:
    """A frame with a hundred payloads of 64 KiB would be more than clients take, and hold up everybody."""
    long = altered(NOTIFICATION, data={"text": "x" * 60_000})
    titled = altered(NOTIFICATION, title="x" * 30_000, url="x" * 30_000)
    some = [_fresh(notification, "alice") for notification in (long, long, titled, NOTIFICATION)]
    assert [len(portion) for portion in portions(some)] == [1, 1, 2]
    short = _fresh(altered(NOTIFICATION, data={"text": "x"}), "alice")
    assert [len(portion) for portion in portions([short] * 100)] == [100]


def test_the_other_events_have_their_frames() -> None:
    """Seen, deleted and the count are told as their own frames tell them."""
    frames = EventFrames()
    assert frames.frame(Seen((ID,), 1)).text == seen_frame([ID]).text
    assert frames.frame(Deleted((ID,), 1)).text == delete_frame([ID]).text
    assert frames.frame(UnseenCount(3)).text == count_frame(3).text


def test_a_frame_is_encoded_once_for_each_way_of_sending() -> None:
    """However many connections a frame goes to, each encoder sees it once."""
    calls: list[str] = []

    def plain(text: str) -> bytes:
        calls.append("plain")
        return text.encode()

    def framed(text: str) -> bytes:
        calls.append("framed")
        return f"a[{json.dumps(text)}]".encode()

    frame = Frame("{}")
    assert [frame.encoded(plain), frame.encoded(framed), frame.encoded(plain)] == [b"{}", b'a["{}"]', b"{}"]
    assert calls == ["plain", "framed"]


def test_an_empty_encoding_is_remembered_too() -> None:
    """An encoder that makes nothing of a frame is not asked again."""
    calls: list[str] = []

    def nothing(text: str) -> bytes:
        calls.append(text)
        return b""

    frame = Frame("x")
    assert frame.encoded(nothing) == frame.encoded(nothing) == b""
    assert calls == ["x"]


def test_a_burst_is_its_frames_in_a_row() -> None:
    """As bytes one after the other, each encoded once in all; as text the elements of a JSON array."""
    calls: list[str] = []

    def framed(text: str) -> bytes:
        calls.append(text)
        return f"<{text}>".encode()

    frames = [count_frame(1), seen_frame([ID])]
    frames[0].encoded(framed)
    burst = Burst(frames)
    assert (
        burst.encoded(framed) == burst.encoded(framed) == b"".join(frame.encoded(framed) for frame in frames)
    )
    assert calls == [frame.text for frame in frames]
    assert json.loads(f"[{burst.text}]") == [json.loads(frame.text) for frame in frames]


def test_close_codes_may_be_sent_by_a_server() -> None:
    """RFC 6455 section 7.4: of the protocol's own codes those for servers, else 3000-3999; all different."""
    codes = [reason.code for reason in (GOING_AWAY, SLOW, TOO_BIG, TIMED_OUT, FAILED)]
    assert len(set(codes)) == len(codes)
    assert all(code in (1001, 1009, 1011) or 3000 <= code <= 3999 for code in codes)
