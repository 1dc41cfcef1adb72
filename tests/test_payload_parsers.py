"""Tests of server/parsers.py: what systems with payloads publish (CONTRACT C2 to C5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.dialects import HubDialect, RealtimeDialect, ServiceDialect, StreamDialect, TenantDialect
from server.errors import InvalidInput, InvalidNotification, TooLarge
from server.ids import is_id
from server.messages import Added, Broadcasted, Document, Notification, Publication, Recipient, now
from server.parsers import (
    MAX_NESTING,
    FieldLimits,
    parse_broadcast,
    parse_hub,
    parse_internal,
    parse_service,
)
from server.wire import EventFrames

LIMITS = FieldLimits(content_bytes=100, field_bytes=40, users=5, data_bytes=200)

any_text = st.text(st.characters(exclude_categories=()))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)


def hub(message: Any, user: str = "alice", limits: FieldLimits = LIMITS) -> Publication:
    return parse_hub(user, message, "acme", limits)


def service(fields: Any, limits: FieldLimits = LIMITS) -> Publication:
    return parse_service(fields, "acme", limits)


def internal(fields: Any, limits: FieldLimits = LIMITS) -> Publication:
    return parse_internal(fields, "acme", limits)


def broadcast(fields: Any, limits: FieldLimits = LIMITS) -> Notification:
    return parse_broadcast(fields, "acme", limits)


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def refusal(parse: Callable[[Any], object], fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(fields)
    return caught.value


# -- what comes out ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make",
    [
        lambda: hub({}).notification,
        lambda: service({"user_id": 1, "payload": 0}).notification,
        lambda: internal({"userIds": [1], "payload": {}}).notification,
        lambda: broadcast({"title": "", "message": ""}),
    ],
    ids=["hub", "service", "internal", "broadcast"],
)
def test_id_tenant_and_instant_are_ours(make: Callable[[], Notification]) -> None:
    """Nothing that a caller says decides them."""
    before = now()
    made = make()
    assert is_id(made.nid)
    assert made.tenant == "acme"
    assert before <= made.created_at <= now()


def test_a_hub_message_has_a_type_and_a_payload() -> None:
    """Either may be missing; the texts are lifted from the payload, which is kept as it is."""
    payload = {"title": "New Order", "message": "You have a new order #12345"}
    publication = hub({"type": " order ", "payload": payload})
    made = publication.notification
    assert publication.recipients == (Recipient("alice"),)
    assert (made.type, made.title, made.content, made.data) == (
        "order",
        "New Order",
        "You have a new order #12345",
        payload,
    )
    for message in ({}, {"type": None, "payload": None}, {"type": ""}):
        assert (hub(message).notification.type, hub(message).notification.data) == ("", None)


def test_the_user_of_a_hub_message_is_that_of_its_channel() -> None:
    """With colons and whatever else it holds; an empty one is none."""
    for user in ("a:b", ":", "user:1:2", "é", " "):
        assert hub({}, user).recipients == (Recipient(user),)
    with pytest.raises(InvalidNotification, match="user_id"):
        hub({}, "")
    with pytest.raises(TooLarge):
        hub({}, "x" * 1025)


@pytest.mark.parametrize("payload", [{"a": 1}, [], "text", 0, False, "", {}])
def test_a_service_payload_may_be_anything_but_null(payload: Any) -> None:
    """The type of what comes by this door is `notification`."""
    made = service({"user_id": "alice", "payload": payload}).notification
    assert made.data == payload and type(made.data) is type(payload)
    assert made.type == "notification"


@pytest.mark.parametrize(
    ("given", "user"), [(1, "1"), ("1", "1"), (-5, "-5"), (10**30, "1" + "0" * 30), (" a ", " a ")]
)
def test_users_are_texts_or_integers(given: Any, user: str) -> None:
    """Which are the same as their digits; blanks are part of an id."""
    assert service({"user_id": given, "payload": 1}).recipients == (Recipient(user),)
    assert internal({"userIds": [given], "payload": {}}).recipients == (Recipient(user),)


def test_a_user_named_twice_is_one() -> None:
    """In the order of their first appearance; as many names as the limit has."""
    publication = internal({"userIds": ["b", 1, "a", "1", "b"], "payload": {}})
    assert publication.recipients == (Recipient("b"), Recipient("1"), Recipient("a"))
    error = refusal(internal, {"userIds": ["a"] * 6, "payload": {}})
    assert (error.field, error.code) == ("userIds", "too_large")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"type": "booking"}, "booking"),
        ({"type": "  booking "}, "booking"),
        ({}, "notification"),
        ({"type": ""}, "notification"),
        ({"type": 5}, "notification"),
        ({"type": "x" * 41}, "notification"),
    ],
)
def test_an_internal_payload_may_name_the_type(payload: dict[str, Any], expected: str) -> None:
    """Where it names none that fits, it is `notification`; the payload stays as it is."""
    made = internal({"userIds": [1], "payload": payload}).notification
    assert (made.type, made.data) == (expected, payload)


def test_a_broadcast_has_title_message_and_data() -> None:
    """The type is that of its data, if it names one; texts are not lifted from it."""
    data = {"type": "alert", "content": "not lifted", "url": "not lifted"}
    made = broadcast({"title": " T ", "message": " M ", "data": data})
    assert (made.title, made.content, made.type, made.data, made.url) == ("T", "M", "alert", data, "")
    for none in ({}, {"data": None}):
        assert broadcast({"title": "", "message": "", **none}).data is None
    for data in ({"type": 5}, {"type": "x" * 41}, ["type"], "type"):
        made = broadcast({"title": "T", "message": "M", "data": data})
        assert (made.type, made.data) == ("", data)


# -- what is refused -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("parse", [hub, service, internal, broadcast])
@pytest.mark.parametrize("fields", [None, [], "text", 5, True])
def test_what_is_no_object_is_refused_as_a_whole(parse: Callable[[Any], object], fields: Any) -> None:
    """It has no field to name."""
    assert refusal(parse, fields).field == ""


@pytest.mark.parametrize(
    ("parse", "fields", "field"),
    [
        (hub, {"type": 5}, "type"),
        (hub, {"type": "x" * 41}, "type"),
        (hub, {"type": "\ud800"}, "type"),
        (service, {"payload": 1}, "user_id"),
        (service, {"user_id": True, "payload": 1}, "user_id"),
        (service, {"user_id": 1.0, "payload": 1}, "user_id"),
        (service, {"user_id": "\udfff", "payload": 1}, "user_id"),
        (service, {"user_id": 1, "payload": None}, "payload"),
        (service, {"user_id": 1}, "payload"),
        (internal, {"payload": {}}, "userIds"),
        (internal, {"userIds": [], "payload": {}}, "userIds"),
        (internal, {"userIds": "1", "payload": {}}, "userIds"),
        (internal, {"userIds": [1, {}], "payload": {}}, "userIds[1]"),
        (internal, {"userIds": [1], "payload": [1]}, "payload"),
        (internal, {"userIds": [1]}, "payload"),
        (broadcast, {"title": "T"}, "message"),
        (broadcast, {"message": "M"}, "title"),
        (broadcast, {"title": "T", "message": 5}, "message"),
        (broadcast, {"title": "x" * 41, "message": "M"}, "title"),
        (broadcast, {"title": "T", "message": "x" * 101}, "message"),
    ],
)
def test_what_is_wrong_is_named(parse: Callable[[Any], object], fields: Any, field: str) -> None:
    """As the caller wrote it; and no error repeats what it held."""
    error = refusal(parse, fields)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("parse", "fields", "field"),
    [
        (hub, {}, "payload"),
        (service, {"user_id": 1}, "payload"),
        (internal, {"userIds": [1]}, "payload"),
        (broadcast, {"title": "T", "message": "M"}, "data"),
    ],
)
def test_a_payload_is_bounded(parse: Callable[[Any], object], fields: Any, field: str) -> None:
    """In bytes as compact JSON, and in depth; it is JSON, and Unicode."""

    def with_value(value: Any) -> Any:
        return fields | {field: {"v": value}}

    for good in ("x" * (200 - len('{"v":""}')), "é" * 96, nested(MAX_NESTING - 1)):
        parse(with_value(good))
    for bad, code in (
        ("x" * (201 - len('{"v":""}')), "too_large"),
        ("é" * 97, "too_large"),
        (nested(MAX_NESTING), "invalid"),
        (float("nan"), "invalid"),
        (float("inf"), "invalid"),
        ("\ud800", "invalid"),
        ({"\udfff": 1}, "invalid"),
    ):
        error = refusal(parse, with_value(bad))
        assert (error.field, error.code) == (field, code)
    # What no stack can hold is refused as well.
    error = refusal(parse, with_value(nested(100_000)))
    assert (error.field, error.code) == (field, "invalid")


# -- anything ------------------------------------------------------------------------------------------------
fields = st.fixed_dictionaries(
    {},
    optional={
        "type": json_values,
        "payload": json_values,
        "user_id": json_values,
        "userIds": st.lists(st.integers() | any_text | json_values, max_size=4),
        "title": any_text | json_values,
        "message": any_text | json_values,
        "data": json_values,
    },
)


@given(what=fields | json_values, user=any_text)
@example(what={"type": "\ud800"}, user="a")
@example(what={"userIds": [1], "payload": {"type": "x" * 50}}, user="a")
def test_any_json_is_taken_or_refused(what: Any, user: str) -> None:
    """And what is taken can be stored as JSON and told in every dialect: it comes back equal."""
    for parse in (lambda each: hub(each, user), service, internal):
        try:
            publication = parse(what)
        except InvalidInput:
            continue
        assert publication.recipients
        check_can_be_told(publication.notification)
    try:
        check_can_be_told(broadcast(what))
    except InvalidInput:
        pass


def check_can_be_told(made: Notification) -> None:
    assert json.loads(json.dumps(made.data)) == made.data
    document = Document("a" * 24, "alice", made, made.created_at, made.created_at, 1)
    for dialect in (HubDialect(), RealtimeDialect(), ServiceDialect(), EventFrames()):
        frame = dialect.frame(Added(document))
        assert frame is not None
        frame.text.encode("ascii")
        json.loads(frame.text)
    assert StreamDialect().frame(Added(document)) is not None
    told = TenantDialect().frame(Broadcasted(made))
    assert told is not None
    json.loads(told.text)
