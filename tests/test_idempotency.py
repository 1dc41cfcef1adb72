"""Idempotency keys: where they stand in a request, and what makes two requests the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidNotification
from server.idempotency import MAX_KEY_CHARS, fingerprint_of, key_of
from server.ids import new_id
from server.messages import Mail, Notification, Publication, Recipient, altered, now

UUID = "8e03978e-40d5-43dd-bc93-6894a57f9324"


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (UUID, UUID),
        (f'"{UUID}"', UUID),
        (r'"a\"b\\c"', r'a"b\c'),
        ("a,b;c=d", "a,b;c=d"),
        ('a"b', 'a"b'),
        ("!", "!"),
        ("~" * MAX_KEY_CHARS, "~" * MAX_KEY_CHARS),
    ],
    ids=["bare", "quoted", "escaped", "separators", "quotation-mark-inside", "shortest", "longest"],
)
def test_the_header(header: str, key: str) -> None:
    """Bare, or the quoted string of the draft; a field may say the same."""
    assert key_of([header], {}) == key
    assert key_of([header], {"idempotency_key": key}) == key
    assert key_of([], {"idempotency_key": key}) == key


@pytest.mark.parametrize("fields", [{}, {"idempotency_key": None}, [], None, "idempotency_key", 7], ids=str)
def test_no_key(fields: Any) -> None:
    """Whatever the body is."""
    assert key_of([], fields) is None


BAD = {
    "empty": "",
    "blank": " ",
    "blank-inside": "a b",
    "too-long": "x" * (MAX_KEY_CHARS + 1),
    "not-ascii": "schlüssel",
    "control": "a\x00",
    "line-break": "a\n",
    "delete": "a\x7f",
}


@pytest.mark.parametrize("key", BAD.values(), ids=BAD)
def test_what_is_no_key(key: str) -> None:
    """Is refused where it stands, without being repeated."""
    for headers, fields, name in (
        ([key], {}, "Idempotency-Key"),
        ([f'"{key}"'], {}, "Idempotency-Key"),
        ([], {"idempotency_key": key}, "idempotency_key"),
    ):
        with pytest.raises(InvalidNotification) as refused:
            key_of(headers, fields)
        assert refused.value.field == name
        assert not key.strip() or key not in str(refused.value)


@pytest.mark.parametrize("header", ['"', '"a', '"a" ', '"a";b=c', '"a"b', r'"a\b"', r'"a\"'], ids=str)
def test_what_is_no_quoted_text(header: str) -> None:
    """Is refused, and not taken for a bare key."""
    with pytest.raises(InvalidNotification, match="Idempotency-Key"):
        key_of([header], {})


@pytest.mark.parametrize("value", [7, 1.5, True, [], ["a"], {}], ids=str)
def test_a_field_that_is_no_text(value: Any) -> None:
    """Is refused: 7 and "7" would be two keys or one, nobody knows."""
    with pytest.raises(InvalidNotification, match="idempotency_key: not a text"):
        key_of([], {"idempotency_key": value})


def test_two_keys() -> None:
    """Nobody knows which one counts."""
    with pytest.raises(InvalidNotification, match="idempotency_key: not the same as in the header"):
        key_of(["a"], {"idempotency_key": "b"})
    with pytest.raises(InvalidNotification, match="Idempotency-Key: given more than once"):
        key_of(["a", "a"], {})


# -- fingerprints --------------------------------------------------------------------------------------------
BASE = Publication(
    Notification(new_id(), "acme", now(), "c", "t", "T", "u", "i", "m", {"a": 1, "b": [1, 2]}),
    (Recipient("alice", "a@x.test"), Recipient("bob")),
    Mail("s", "c", "html", False),
)


def test_what_makes_no_difference() -> None:
    """The nid, the instant, the door, the key itself; the order of recipients and of the fields of an object."""
    notification = altered(BASE.notification, nid=new_id(), created_at=now(), data={"b": [1, 2], "a": 1})
    other = Publication(
        notification, BASE.recipients[::-1], BASE.mail, door="x", received_at=1.0, idempotency_key="k"
    )
    assert fingerprint_of(other) == fingerprint_of(BASE)
    assert len(fingerprint_of(BASE)) == 32


def of(**fields: Any) -> Publication:
    return altered(BASE, notification=altered(BASE.notification, **fields))


OTHERS = {
    **{
        name: of(**{name: "other"}) for name in ("tenant", "type", "title", "content", "url", "icon", "image")
    },
    "swapped": of(type="T", title="t"),
    "shifted": of(type="tT", title=""),
    "data-null": of(data=None),
    "data-text": of(data=json.dumps(BASE.notification.data)),
    "data-order-of-a-list": of(data={"a": 1, "b": [2, 1]}),
    "data-true": of(data={"a": True, "b": [1, 2]}),
    "fewer-recipients": altered(BASE, recipients=BASE.recipients[:1]),
    "nobody": altered(BASE, recipients=()),
    "another-address": altered(BASE, recipients=(Recipient("alice", "b@x.test"), Recipient("bob"))),
    "no-address": altered(BASE, recipients=(Recipient("alice"), Recipient("bob"))),
    "no-mail": altered(BASE, mail=None),
    "mail-subject": altered(BASE, mail=Mail("S", "c", "html", False)),
    "mail-content": altered(BASE, mail=Mail("s", "C", "html", False)),
    "mail-type": altered(BASE, mail=Mail("s", "c", "plain", False)),
    "mail-forced": altered(BASE, mail=Mail("s", "c", "html", True)),
}


def test_what_makes_a_difference() -> None:
    """Every field that has an effect; no two of these are alike."""
    prints = [fingerprint_of(each) for each in (BASE, *OTHERS.values())]
    assert len(set(prints)) == len(OTHERS) + 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_data_is_compared_as_json(one: Any, other: Any) -> None:
    """Two values are the same if their JSON is, but for the order of fields; any can be compared."""
    are_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint_of(of(data=one)) == fingerprint_of(of(data=other))) is are_same
