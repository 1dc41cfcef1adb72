"""Tests of server/payloads.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ids import new_id
from server.messages import Notification, now
from server.payloads import LIFTED, lifted, payload_object_of, payload_of, texts_of

ROOM = dict.fromkeys(LIFTED, 20)
NOTHING = dict.fromkeys(LIFTED, "")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def notification(**fields: Any) -> Notification:
    return Notification(**{"nid": new_id(), "tenant": "acme", "created_at": now(), "content": "", **fields})


# -- lifting -------------------------------------------------------------------------------------------------
def test_texts_are_lifted_from_where_systems_put_them() -> None:
    """Each field from its own names, in their order; the first that is a text and not empty counts."""
    payload = {"title": "T", "content": "C", "message": "M", "url": "U", "icon": "I", "image": "P", "x": "X"}
    expected = {"title": "T", "content": "C", "url": "U", "icon": "I", "image": "P"}
    assert lifted(payload, ROOM) == expected
    assert lifted({"message": "M", "body": "B", "link": "L"}, ROOM) == NOTHING | {"content": "M", "url": "L"}
    assert lifted({"content": " ", "message": 5, "body": " B "}, ROOM) == NOTHING | {"content": "B"}


@pytest.mark.parametrize("payload", [None, "title", 5, True, [], [{"title": "T"}], {}, {"title": ["T"]}])
def test_what_has_no_such_texts_has_none_lifted(payload: Any) -> None:
    """All of them are empty then."""
    assert lifted(payload, ROOM) == NOTHING


def test_what_is_too_long_stays_in_the_payload_alone() -> None:
    """Measured in UTF-8, after stripping; a shorter text of another name is taken instead."""
    assert lifted({"title": "x" * 20 + " "}, ROOM)["title"] == "x" * 20
    assert lifted({"title": "x" * 21}, ROOM)["title"] == ""
    assert lifted({"title": "é" * 11}, ROOM)["title"] == ""
    assert lifted({"content": "x" * 21, "message": "short"}, ROOM)["content"] == "short"


# -- giving back ---------------------------------------------------------------------------------------------
@given(data=json_values.filter(lambda value: value is not None))
def test_a_payload_comes_back_as_it_was(data: Any) -> None:
    """Whatever else the notification has."""
    assert payload_of(notification(data=data, title="T")) is data


def test_without_one_the_texts_are_the_payload() -> None:
    """Those that are not empty, by their names; none is an empty object."""
    fields = {"type": "t", "title": "T", "content": "C", "url": "U", "icon": "I", "image": "P"}
    assert payload_of(notification(**fields)) == texts_of(notification(**fields)) == fields
    assert payload_of(notification(content="C")) == {"content": "C"}
    assert payload_of(notification()) == {}


def test_an_object_is_made_of_what_is_none() -> None:
    """For clients that take nothing else; an object stays as it is."""
    assert payload_object_of(notification(data={"a": 1})) == {"a": 1}
    assert payload_object_of(notification(content="C")) == {"content": "C"}
    for data in ([1], "text", 0, False):
        assert payload_object_of(notification(data=data)) == {"value": data}
