"""Tests of server/requests_plain.py, and of what server/parsers.py makes of plain requests: the same as of others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidNotification, TooLarge
from server.messages import Publication, altered
from server.parsers import FieldLimits, parse_notify, parse_plain
from server.requests_plain import read_array, read_plain

LIMITS = FieldLimits(content_bytes=40, field_bytes=20, users=3)

texts = st.text(max_size=25)
bodies = st.fixed_dictionaries(
    {"content": texts, "users": st.lists(st.fixed_dictionaries({"id": texts}), max_size=4)},
    optional={name: texts for name in ("type", "title", "url", "icon", "image")},
)


def outcome(publication: Publication) -> Publication:
    """Without what is another each time."""
    notification = altered(publication.notification, nid="", created_at=None)
    return altered(publication, notification=notification)


@given(bodies, st.booleans())
def test_a_plain_request_means_what_it_always_meant(body: dict[str, Any], is_ascii: bool) -> None:
    """Whichever way it is read: the same publication, or the same refusal."""
    plain = read_plain(json.dumps(body, ensure_ascii=is_ascii).encode())
    assert plain is not None
    try:
        expected = outcome(parse_notify(body, "acme", LIMITS))
    except (InvalidNotification, TooLarge) as error:
        with pytest.raises(type(error)) as caught:
            parse_plain(plain, "acme", LIMITS, "notify", 0.0, None)
        assert (str(caught.value), caught.value.field) == (str(error), error.field)
    else:
        assert outcome(parse_plain(plain, "acme", LIMITS, "notify", 0.0, None)) == expected


def test_the_rest_of_a_publication_comes_from_its_request() -> None:
    """Door, time and key."""
    plain = read_plain(b'{"content": "C", "users": [{"id": "alice"}], "idempotency_key": "k"}')
    assert plain is not None and plain.idempotency_key == "k"
    publication = parse_plain(plain, "acme", LIMITS, "batch", 7.5, "k")
    assert (publication.door, publication.received_at, publication.idempotency_key) == ("batch", 7.5, "k")


def test_of_a_field_that_comes_twice_the_last_counts() -> None:
    """As everywhere in JSON."""
    plain = read_plain(b'{"content": "A", "users": [], "content": "B"}')
    assert plain is not None and plain.content == "B"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"content": "C"',
        b'{"users": []}',
        b'{"content": 1, "users": []}',
        b'{"content": "C", "users": null}',
        b'{"content": "C", "users": "[]"}',
        b'{"content": "C", "users": [{"id": 1}]}',
        b'{"content": "C", "users": [{"id": "a", "email": "a@b.test"}]}',
        b'{"content": "C", "users": [], "title": null}',
        b'{"content": "C", "users": [], "data": {}}',
        b'{"content": "C", "users": [], "apikey": "secret"}',
        b'{"content": "C", "users": [], "email_send": true}',
        b'{"content": "\\ud800", "users": []}',
        b'{"content": "\xff", "users": []}',
        '{"content": "C", "users": []}'.encode("utf-16"),
        b"[" * 100_000,
    ],
    ids=[
        "empty",
        "no-object",
        "no-json",
        "no-content",
        "content-a-number",
        "users-null",
        "users-a-text",
        "user-a-number",
        "address",
        "null",
        "data",
        "key",
        "mail",
        "lone-surrogate",
        "no-utf8",
        "utf16",
        "nested",
    ],
)
def test_what_is_not_plain_is_left_to_others(body: bytes) -> None:
    """They say what is wrong, if anything is."""
    assert read_plain(body) is None


def test_an_array_is_its_values_texts() -> None:
    """To be read one by one."""
    assert read_array(b' [{"a": [1, "]"]}, null ,"x"] ') == [b'{"a": [1, "]"]}', b"null", b'"x"']
    assert read_array(b"[]") == []


@pytest.mark.parametrize(
    "body", [b"{}", b"[1", b"[1,]", b"", b"[" * 100_000], ids=["object", "open", "comma", "empty", "nested"]
)
def test_what_is_no_array_is_left_to_others(body: bytes) -> None:
    """As above."""
    assert read_array(body) is None
