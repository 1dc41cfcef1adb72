"""docs/asyncapi.yaml is true: its examples, what the server takes, and what it sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError

from server import __version__, wire
from server.commands import _COMMANDS, parse_command
from server.dialects import HubDialect, RealtimeDialect, ServiceDialect, StreamDialect, TenantDialect
from server.errors import (
    AuthUnavailable,
    BadCredentials,
    Busy,
    InvalidCommand,
    NotJoined,
    RateLimited,
    ServerError,
    StoreUnavailable,
    TokenExpired,
    TooLarge,
)
from server.limits import TooManyConnections
from server.messages import Added, Broadcasted, Deleted, Document, Event, Notification, Seen, UnseenCount
from server.parsers import FieldLimits, parse_hub, parse_service
from server.transports.websocket import TEXT_ONLY
from tests.support.feeds import SETTINGS, broadcast, hub_path, listening, send, service_path, user_token
from tests.support.running_server import RunningServer

ROOT = Path(__file__).resolve().parents[1]

TEXT = (ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML takes in silence: a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return super().construct_mapping(node, deep)


RAW = yaml.load(TEXT, _Loader)


def _resolved(value: Any) -> Any:
    """`value` with no references; ours never refer to themselves."""
    if isinstance(value, list):
        return [_resolved(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        found = RAW
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return _resolved(found)
    return {key: _resolved(each) for key, each in value.items()}


DOCUMENT = _resolved(RAW)

MESSAGES = DOCUMENT["components"]["messages"]

each_message = pytest.mark.parametrize("name", MESSAGES)


def _check(schema: Any, value: Any) -> None:
    """That `value` fits, and what is JSON in its texts, too."""
    Draft202012Validator(schema).validate(value)
    if isinstance(schema, dict) and "contentSchema" in schema:
        _check(schema["contentSchema"], json.loads(value))
    if isinstance(schema, dict) and isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                _check(inner, value[name])


def _fits(name: str, value: Any) -> bool:
    try:
        _check(MESSAGES[name]["payload"], value)
    except ValidationError:
        return False
    return True


def _is_told(operation: str, frame: Any) -> None:
    """That exactly one message of an operation is this one."""
    names = [each["$ref"].rpartition("/")[2] for each in RAW["operations"][operation].get("messages", [])]
    channel = RAW["operations"][operation]["channel"]["$ref"].rpartition("/")[2]
    fitting = [name for name in names or RAW["channels"][channel]["messages"] if _fits(name, frame)]
    assert len(fitting) == 1, (fitting, frame)


# -- the document --------------------------------------------------------------------------------------------


def test_the_document_is_one() -> None:
    """As the schema of AsyncAPI 3.0.0 has it, with the version of the server."""
    # From the npm package @asyncapi/specs 6.11.1 (Apache-2.0), unchanged.
    schema = json.loads((ROOT / "tests" / "data" / "asyncapi-3.0.0.json").read_text())
    as_json = json.loads(json.dumps(RAW))
    Draft7Validator(schema).validate(as_json)
    with pytest.raises(ValidationError):
        Draft7Validator(schema).validate(as_json | {"operations": {"tell": {"action": "shout"}}})
    assert RAW["info"]["version"] == __version__


@each_message
def test_each_message_has_examples_that_fit(name: str) -> None:
    """At least one, with its headers where it has any."""
    message = MESSAGES[name]
    Draft202012Validator.check_schema(message["payload"])
    assert message["examples"]
    for example in message["examples"]:
        _check(message["payload"], example["payload"])
        _check(message.get("headers", {}), example.get("headers", {}))


def test_every_message_goes_over_a_channel() -> None:
    """And every channel is used by an operation."""
    used = {
        each["$ref"].rpartition("/")[2]
        for channel in RAW["channels"].values()
        for each in channel["messages"].values()
    }
    assert used == set(MESSAGES)
    channels = {operation["channel"]["$ref"].rpartition("/")[2] for operation in RAW["operations"].values()}
    assert channels == set(RAW["channels"])


def test_every_reason_to_close_is_named() -> None:
    """With its code; SockJS's and Socket.IO's own are those of their protocols."""
    reasons = [each for each in vars(wire).values() if isinstance(each, wire.CloseReason)]
    assert RAW["x-close-codes"] == {each.code: each.reason for each in [*reasons, TEXT_ONLY]}


# -- what the server takes -----------------------------------------------------------------------------------

COMMANDS = [each["$ref"].rpartition("/")[2] for each in RAW["operations"]["takeCommands"]["messages"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_the_document_are_taken(name: str) -> None:
    """Each example is a command."""
    for example in MESSAGES[name]["examples"]:
        assert parse_command(json.dumps(example["payload"]))


def test_the_document_has_every_command() -> None:
    """By its name."""
    documented = {MESSAGES[name]["payload"]["properties"]["name"]["const"] for name in COMMANDS}
    assert documented == set(_COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        {"name": "join", "data": {"login": "alice"}},
        {"name": "join", "data": {"login": "alice", "password": "alice", "token": "x"}},
        {"name": "join", "data": None},
        {"name": "content", "data": {"before": "x"}},
        {"name": "content", "data": {"page": []}},
        {"name": "content", "data": "one"},
        {"name": "seen", "data": {"all": False}},
        {"name": "seen", "data": {"all": True, "ids": []}},
        {"name": "delete", "data": {"all": True}},
        {"name": "delete", "data": {"ids": [1]}},
        {"name": "delete"},
        {"name": "shout", "data": {}},
        {"data": {}},
        [],
    ],
)
def test_what_is_refused_is_not_in_the_document(command: Any) -> None:
    """The one is as strict as the other."""
    with pytest.raises(InvalidCommand):
        parse_command(json.dumps(command))
    assert not [name for name in COMMANDS if _fits(name, command)]


def test_the_messages_of_brokers_are_taken() -> None:
    """As publications."""
    for example in MESSAGES["hubPublication"]["examples"]:
        assert parse_hub("alice", example["payload"], "default", FieldLimits()).recipients
    for example in MESSAGES["servicePublication"]["examples"]:
        assert parse_service(example["payload"], "default", FieldLimits()).recipients


# -- what the server sends -----------------------------------------------------------------------------------

AT = datetime(2026, 11, 21, 9, 30, 0, 123000, UTC)
ID = "6740c0ffee0123456789abcd"
NOTIFICATION = Notification(
    "6740c0ffee0123456789abcc", "default", AT, content='"Ünïcödé" 🎉', type="order", title="Order"
)
DOCUMENT_OF_ALICE = Document(ID, "alice", NOTIFICATION, AT, AT, rev=7)

DATA: list[Any] = [None, {}, {"type": "booking", "title": "x"}, [], [1], "text", "", 0, 1.5, True, False]


def _with_data(data: Any) -> Document:
    return replace(
        DOCUMENT_OF_ALICE, notification=replace(NOTIFICATION, data=data, nid=f"{DATA.index(data):024x}")
    )


EVENTS: list[Event] = [
    *(Added(_with_data(data)) for data in DATA),
    Added(replace(DOCUMENT_OF_ALICE, notification=replace(NOTIFICATION, type="", title="", content=""))),
    Added(replace(DOCUMENT_OF_ALICE, seen=True, rev=8)),
    Added(replace(DOCUMENT_OF_ALICE, deleted=True, deleted_at=AT, rev=9)),
    Seen((ID,), 8),
    Seen((), 8),
    Deleted((ID,), 9),
    UnseenCount(0),
    *(Broadcasted(_with_data(data).notification) for data in DATA),
]

ERRORS: list[ServerError] = [
    InvalidCommand("", "the message is not JSON"),
    InvalidCommand("data.ids", "missing"),
    TooLarge("", "too large"),
    NotJoined(),
    BadCredentials(),
    TokenExpired(),
    AuthUnavailable("away"),
    RateLimited("too many", 1.0),
    TooManyConnections("connections_per_user", "this user", 100),
    Busy("later"),
    StoreUnavailable(),
]


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_events_in_each_dialect(event: Event) -> None:
    """What clients are told of an event is in the document, in each dialect that tells of it."""
    told = {
        "tellClassic": wire.EventFrames(),
        "tellHub": HubDialect(),
        "tellService": ServiceDialect(),
        "tellTenant": TenantDialect(),
    }
    for operation, dialect in told.items():
        frame = dialect.frame(event)
        if frame is not None:
            _is_told(operation, json.loads(frame.text))
    frame = RealtimeDialect().frame(event)
    if frame is not None:
        name, payload = json.loads(frame.text)
        assert name == MESSAGES["realtimeNotification"]["name"]
        _check(MESSAGES["realtimeNotification"]["payload"], payload)


def _check_event(text: str) -> None:
    """That this is an event of the stream that the document has."""
    assert text.endswith("\n\n")
    fields = dict(line.split(": ", 1) for line in text[:-2].split("\n"))
    data = json.loads(fields.pop("data"))
    message = MESSAGES[f"stream{fields['event'].capitalize()}"]
    _check(message["headers"], fields)
    _check(message["payload"], data)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_events_in_the_stream(event: Event) -> None:
    """Likewise, with their names and ids."""
    frame = StreamDialect().frame(event)
    if frame is not None:
        _check_event(frame.text)


def test_the_rest_of_the_stream() -> None:
    """What no event of the server tells."""
    for frame in (
        StreamDialect.listed(DOCUMENT_OF_ALICE),
        StreamDialect.deleted(DOCUMENT_OF_ALICE),
        StreamDialect.count(3, 7),
        StreamDialect.goodbye(1001, "going away"),
    ):
        _check_event(frame.text)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_errors(error: ServerError) -> None:
    """Each code that a client may be told is in the document."""
    _is_told("tellClassic", json.loads(wire.error_frame(error).text))


def test_the_document_has_no_code_too_many() -> None:
    """All its codes are told."""
    codes = MESSAGES["error"]["payload"]["properties"]["data"]["properties"]["code"]["enum"]
    assert set(codes) == {error.code for error in ERRORS}


def test_answers_to_commands() -> None:
    """Pages of both kinds, with and without documents."""
    for documents in ([], [DOCUMENT_OF_ALICE], [_with_data([1]), DOCUMENT_OF_ALICE]):
        _is_told("tellClassic", json.loads(wire.notification_frame(documents).text))
        for before in (None, ID):
            _is_told("tellClassic", json.loads(wire.newest_frame(documents, before, True).text))


# -- over real connections -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server"), **SETTINGS) as server:
        yield server


async def test_a_real_classic_connection(server: RunningServer) -> None:
    """Every example is taken by a running server, and every answer is in the document."""
    server.must_notify("carol", content="before", title="T")
    async with listening(server, "/notification/websocket") as client:
        await client.say({"name": "join", "data": {"token": user_token("carol")}})
        examples = [example["payload"] for name in COMMANDS for example in MESSAGES[name]["examples"]]
        good = [each for each in examples if each["name"] not in ("join", "leave")]
        for command in [*good, {"name": "shout"}, {"name": "delete", "data": 1}, "no JSON"]:
            await client.say(command)
        told = []
        while [each["name"] for each in told[-3:]] != ["error"] * 3:
            frame = await client.frame()
            _is_told("tellClassic", frame)
            # How many are unseen is told in between.
            told += [frame] if frame["name"] != "count" else []
        assert len(told) == 1 + len(good) + 3


async def test_real_connections_of_the_other_dialects(server: RunningServer) -> None:
    """What was published before and while they listen is in the document, and so is what they are answered."""
    send(server, "dave", {"title": "before"})
    async with (
        listening(server, hub_path("dave")) as hub,
        listening(server, service_path("dave")) as service,
    ):
        _is_told("tellHub", await hub.frame())
        send(server, "dave", "while")
        _is_told("tellHub", await hub.frame())
        frame = await service.frame()
        _is_told("tellService", frame)
        acknowledgement = MESSAGES["acknowledge"]["examples"][0]["payload"] | {"key": frame["key"]}
        await service.say(acknowledgement)
        answer = await service.asked(MESSAGES["ping"]["examples"][0]["payload"])
        _is_told("tellService", answer)
        assert answer["value"] == "pong", "an acknowledgement has no answer"
        _is_told("tellService", await service.asked({"type": "else"}))
        broadcast(server, data={"hours": 2})
        _is_told("tellHub", await hub.frame())
