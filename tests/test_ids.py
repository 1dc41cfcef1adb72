"""Tests of server/ids.py."""

from __future__ import annotations

import pytest
from bson import ObjectId
from hypothesis import example, given
from hypothesis import strategies as st

from server.ids import is_id, new_id


def test_new_ids_are_distinct_and_sort_in_the_order_they_were_made() -> None:
    """Ids made later in one process sort later: paging by (created_at, id) keeps the order of arrival."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


def test_a_new_id_is_an_object_id_in_lower_case() -> None:
    """24 lower-case hexadecimal digits, the same in both stores."""
    id_ = new_id()
    assert is_id(id_)
    assert id_ == id_.lower() == str(ObjectId(id_))


@pytest.mark.parametrize(
    "value", ["", "0" * 23, "0" * 25, "g" * 24, " " * 24, "٣" * 24, b"0" * 12, None, 7, ["0" * 24]]
)
def test_anything_else_is_no_id(value: object) -> None:
    """Only texts of 24 hexadecimal digits have the form of an id."""
    assert not is_id(value)


@given(st.text(min_size=24, max_size=24))
@example("ab cd ef ab cd ef ab cd ")
@example("0x" * 12)
@example("F" * 24)
def test_what_has_the_form_of_an_id_can_be_one(text: str) -> None:
    """What is_id lets through, both stores can turn into 12 bytes."""
    if is_id(text):
        assert len(bytes.fromhex(text)) == 12
        assert str(ObjectId(text)) == text.lower()
