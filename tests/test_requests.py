"""server/requests.py: JSON values become requests, or are refused with the field that is wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import Struct

from server.errors import InvalidInput, InvalidNotification
from server.openapi import schemas
from server.parsers import FieldLimits, parse_broadcast, parse_internal, parse_notify, parse_service
from server.requests import (
    BroadcastRequest,
    InternalRequest,
    LoginRequest,
    NotifyRequest,
    ServiceRequest,
    TokenRequest,
    VerifyRequest,
    read,
)

LIMITS = FieldLimits(10**6, 10**6, 10**6, 10**6)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

REQUESTS: list[type[Struct]] = [
    ServiceRequest,
    InternalRequest,
    BroadcastRequest,
    TokenRequest,
    LoginRequest,
    NotifyRequest,
]


def test_read() -> None:
    """Fields that are not there have their defaults, unknown ones are ignored."""
    request = read({"user_id": 7, "unknown": 1}, TokenRequest)
    assert (request.user_id, request.expires_in) == (7, None)
    users = read({"content": "x", "users": [{"id": "a"}, {"id": 2, "email": None}]}, NotifyRequest).users
    assert [(user.id, user.email) for user in users] == [("a", None), (2, None)]


@pytest.mark.parametrize(
    ("kind", "fields", "field", "reason"),
    [
        (ServiceRequest, [], "", "not an object"),
        (ServiceRequest, None, "", "not an object"),
        (ServiceRequest, {"payload": 1}, "user_id", "missing"),
        (ServiceRequest, {"user_id": 1}, "payload", "missing"),
        (ServiceRequest, {"user_id": "", "payload": 1}, "user_id", "empty"),
        (ServiceRequest, {"user_id": None, "payload": 1}, "user_id", "neither a text nor an integer"),
        (ServiceRequest, {"user_id": True, "payload": 1}, "user_id", "neither a text nor an integer"),
        (ServiceRequest, {"user_id": 1.0, "payload": 1}, "user_id", "neither a text nor an integer"),
        (InternalRequest, {"userIds": [], "payload": {}}, "userIds", "empty"),
        (InternalRequest, {"userIds": "a", "payload": {}}, "userIds", "not a list"),
        (InternalRequest, {"userIds": [1, {}], "payload": {}}, "userIds[1]", "neither a text nor an integer"),
        (InternalRequest, {"userIds": [1], "payload": []}, "payload", "not an object"),
        (BroadcastRequest, {"title": 1, "message": "m"}, "title", "not a text"),
        (BroadcastRequest, {"title": "t", "message": None}, "message", "not a text"),
        (NotifyRequest, {"content": "c", "users": [{"id": 1}, {}]}, "users[1].id", "missing"),
        (
            NotifyRequest,
            {"content": "c", "users": [{"id": 1, "email": 2}]},
            "users[0].email",
            "neither null nor a text",
        ),
        (TokenRequest, {"user_id": 1, "expires_in": 0}, "expires_in", "less than 1"),
        (TokenRequest, {"user_id": 1, "expires_in": float("nan")}, "expires_in", "less than 1"),
        (TokenRequest, {"user_id": 1, "expires_in": True}, "expires_in", "neither null nor a number"),
        (VerifyRequest, {"token": "x" * 8193}, "token", "longer than 8192 characters"),
    ],
)
def test_what_is_wrong_is_named(kind: type[Struct], fields: Any, field: str, reason: str) -> None:
    """By its path, as the caller wrote it, and in words of JSON."""
    with pytest.raises(InvalidNotification) as caught:
        read(fields, kind, InvalidNotification)
    assert (caught.value.field, caught.value.reason) == (field, reason)


@given(kind=st.sampled_from(REQUESTS), value=JSON)
def test_no_value_is_an_internal_error(kind: type[Struct], value: Any) -> None:
    """Whatever JSON it is; a refusal says nothing of the value."""
    names = [field.name for field in msgspec.structs.fields(kind)]
    for fields in (value, dict.fromkeys(names, value)):
        try:
            read(fields, kind)
        except InvalidInput as error:
            assert error.reason and "`" not in str(error)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[type[Struct], dict[str, Any]]:
    """Fields of which most fit."""
    good = st.text(min_size=1, max_size=5) | st.integers() | st.booleans() | st.none()
    good |= (
        st.lists(st.text(max_size=3) | st.integers(), max_size=3)
        | st.just([{"id": "a"}])
        | st.just({"type": "x"})
    )
    kind = draw(st.sampled_from(REQUESTS))
    names = [field.name for field in msgspec.structs.fields(kind)]
    return kind, draw(st.dictionaries(st.sampled_from(names), good, max_size=len(names)))


SCHEMAS = schemas()


@given(_requests())
def test_the_schemas_of_the_document_say_the_same(request: tuple[type[Struct], dict[str, Any]]) -> None:
    """What a type takes, its schema in the OpenAPI document allows, and the other way round."""
    kind, fields = request
    defs = json.loads(json.dumps(SCHEMAS).replace("#/components/schemas/", "#/$defs/"))
    schema = {"$ref": f"#/$defs/{kind.__name__}", "$defs": defs}
    try:
        taken = read(fields, kind)
    except InvalidInput:
        is_taken = False
    else:
        # Null is no payload, which the parsers see to.
        is_taken = not (isinstance(taken, ServiceRequest) and taken.payload is None)
    assert Draft202012Validator(schema).is_valid(fields) is is_taken


@given(_requests())
def test_the_parsers_take_what_the_types_take(request: tuple[type[Struct], dict[str, Any]]) -> None:
    """And nothing else; but for texts of which more is asked than that they are texts."""
    kind, fields = request
    parse: Any = {
        ServiceRequest: parse_service,
        InternalRequest: parse_internal,
        BroadcastRequest: parse_broadcast,
        NotifyRequest: parse_notify,
    }.get(kind)
    if parse is None:
        return
    try:
        read(fields, kind)
        is_read = True
    except InvalidInput:
        is_read = False
    try:
        parse(fields, "default", LIMITS)
        is_parsed = True
    except InvalidNotification as error:
        is_parsed = False
        what_else = ("email_", "payload: null")
        assert not is_read or str(error).startswith(what_else), error
    # A form has no other types than text: `/notify` takes more than the document promises.
    assert is_read or not is_parsed or kind is NotifyRequest
