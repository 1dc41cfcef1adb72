"""docs/asyncapi.yaml is true: its examples, what the server takes, and what it sends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pika
import pytest
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError

from server import __version__, wire
from server.commands import _COMMANDS, command_of, read_message
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
from server.messages import (
    Added,
    Broadcasted,
    Deleted,
    Document,
    Event,
    Notification,
    Seen,
    UnseenCount,
    altered,
)
from server.parsers import FieldLimits, parse_hub, parse_service
from server.transports.socketio import connection as socketio_connection
from server.transports.socketio import session as socketio_session
from server.transports.sockjs import http
from server.transports.websocket import TEXT_ONLY
from tests.support.asyncapi import MESSAGES, RAW, ROOT, check, fits, is_told
from tests.support.event_streams import Event as StreamEvent
from tests.support.event_streams import event_stream
from tests.support.feeds import (
    SETTINGS,
    add_key,
    broadcast,
    hub_path,
    listening,
    send,
    service_path,
    tenant_path,
    user_token,
)
from tests.support.processes import wait_until
from tests.support.rabbitmq import RabbitMQServer
from tests.support.realtime import SocketClient, connect_packet, socket_client
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer

SCHEMA_SHA256 = "abe96881dbfaad495ccbb6bd8d3fb43ca18a13b9d7564849ccb66f39d5e5b20f"
"""Of the file in the npm package."""

each_message = pytest.mark.parametrize("name", MESSAGES)


# -- the document --------------------------------------------------------------------------------------------


def test_the_document_is_one() -> None:
    """As the schema of AsyncAPI 3.0.0 has it (tests/data/README.md says where that is from), with the version of the
    server."""
    text = (ROOT / "tests" / "data" / "asyncapi-3.0.0.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == SCHEMA_SHA256
    schema = json.loads(text)
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
        check(message["payload"], example["payload"])
        check(message.get("headers", {}), example.get("headers", {}))


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


def _reasons(*modules: ModuleType) -> list[wire.CloseReason]:
    """Those that these modules define, each once."""
    found = {
        each for module in modules for each in vars(module).values() if isinstance(each, wire.CloseReason)
    }
    return sorted(found, key=lambda each: (each.code, each.reason))


def test_every_reason_to_close_is_named() -> None:
    """With its code; those of SockJS and Socket.IO that no other connection is closed for stand apart."""
    ours = [*_reasons(wire), TEXT_ONLY]
    assert RAW["x-close-codes"] == {each.code: each.reason for each in ours}
    for protocol, modules in {"sockjs": [http], "socketio": [socketio_connection, socketio_session]}.items():
        found: dict[int, list[str]] = {}
        for each in _reasons(*modules):
            if each not in ours:
                found.setdefault(each.code, []).append(each.reason)
        assert RAW[f"x-close-codes-of-{protocol}"] == found


# -- what the server takes -----------------------------------------------------------------------------------

COMMANDS = [each["$ref"].rpartition("/")[2] for each in RAW["operations"]["takeCommands"]["messages"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_the_document_are_taken(name: str) -> None:
    """Each example is a command."""
    for example in MESSAGES[name]["examples"]:
        assert command_of(read_message(json.dumps(example["payload"])))


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
        command_of(read_message(json.dumps(command)))
    assert not [name for name in COMMANDS if fits(name, command)]


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
    return altered(
        DOCUMENT_OF_ALICE, notification=altered(NOTIFICATION, data=data, nid=f"{DATA.index(data):024x}")
    )


EVENTS: list[Event] = [
    *(Added(_with_data(data)) for data in DATA),
    Added(altered(DOCUMENT_OF_ALICE, notification=altered(NOTIFICATION, type="", title="", content=""))),
    Added(altered(DOCUMENT_OF_ALICE, seen=True, rev=8)),
    Added(altered(DOCUMENT_OF_ALICE, deleted=True, deleted_at=AT, rev=9)),
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
            is_told(operation, json.loads(frame.text))
    frame = RealtimeDialect().frame(event)
    if frame is not None:
        name, payload = json.loads(frame.text)
        assert name == MESSAGES["realtimeNotification"]["name"]
        check(MESSAGES["realtimeNotification"]["payload"], payload)


def _check_told(name: str, headers: dict[str, str], data: Any) -> None:
    """That this is an event of the stream that the document has."""
    message = MESSAGES[f"stream{name.capitalize()}"]
    check(message["headers"], {"event": name, **headers})
    check(message["payload"], data)


def _check_event(text: str) -> None:
    """The same as it is written."""
    assert text.endswith("\n\n")
    fields = dict(line.split(": ", 1) for line in text[:-2].split("\n"))
    data = json.loads(fields.pop("data"))
    _check_told(fields.pop("event"), fields, data)


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
    is_told("tellClassic", json.loads(wire.error_frame(error).text))


def test_the_document_has_no_code_too_many() -> None:
    """All its codes are told."""
    codes = MESSAGES["error"]["payload"]["properties"]["data"]["properties"]["code"]["enum"]
    assert set(codes) == {error.code for error in ERRORS}


def test_answers_to_commands() -> None:
    """Pages of both kinds, with and without documents."""
    for documents in ([], [DOCUMENT_OF_ALICE], [_with_data([1]), DOCUMENT_OF_ALICE]):
        is_told("tellClassic", json.loads(wire.notification_frame(documents).text))
        for before in (None, ID):
            is_told("tellClassic", json.loads(wire.newest_frame(documents, before, True).text))


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
            is_told("tellClassic", frame)
            # How many are unseen is told in between.
            told += [frame] if frame["name"] != "count" else []
        assert len(told) == 1 + len(good) + 3


async def test_real_connections_of_the_other_dialects(server: RunningServer) -> None:
    """What was published before and while they listen is in the document, and so is what they are answered."""
    send(server, "dave", {"title": "before"})
    key = add_key(server, "default", "listening", "listen")
    async with (
        listening(server, hub_path("dave")) as hub,
        listening(server, service_path("dave")) as service,
        listening(server, tenant_path(key)) as tenant,
    ):
        is_told("tellHub", await hub.frame())
        send(server, "dave", "while")
        is_told("tellHub", await hub.frame())
        frame = await service.frame()
        is_told("tellService", frame)
        acknowledgement = MESSAGES["acknowledge"]["examples"][0]["payload"] | {"key": frame["key"]}
        await service.say(acknowledgement)
        answer = await service.asked(MESSAGES["ping"]["examples"][0]["payload"])
        is_told("tellService", answer)
        assert answer["value"] == "pong", "an acknowledgement has no answer"
        is_told("tellService", await service.asked({"type": "else"}))
        broadcast(server, data={"hours": 2})
        is_told("tellHub", await hub.frame())
        is_told("tellTenant", await tenant.frame())


def _check_packet(packet: str, start: str, name: str, event: str | None = None) -> None:
    """That a packet of Socket.IO carries this message."""
    assert packet.startswith(start), packet
    value = json.loads(packet.removeprefix(start))
    if event is not None:
        assert value[0] == event == MESSAGES[name]["name"]
        [_, value] = value
    check(MESSAGES[name]["payload"], value)


async def test_a_real_socketio_connection(server: RunningServer) -> None:
    """From its connect to what it is told when its user is signed out; and the refusals."""
    send(server, "erin", {"title": "before"})
    async with socket_client(server) as client:
        await _refusals(client)
        await client.socket.send(connect_packet("erin"))
        _check_packet(await client.packet(), "40", "connected")
        _check_packet(await client.packet(), "42", "realtimeNotification", "notification:new")
        send(server, "erin", ["while"])
        _check_packet(await client.packet(), "42", "realtimeNotification", "notification:new")
        _sign_out(server, "erin")
        (goodbye, disconnect), code, reason = await client.closed()
    _check_packet(goodbye, "42", "realtimeClose", "close")
    assert disconnect == "41"
    assert RAW["x-close-codes"][code] == reason


async def _refusals(client: SocketClient) -> None:
    """Of whatever does not let in, each with a code of its own."""
    told = []
    for packet in ("40", connect_packet("erin", secret="5a" * 32), connect_packet("erin", lifetime_s=-60)):
        await client.socket.send(packet)
        told.append(await client.packet())
        _check_packet(told[-1], "44", "connectError")
    await client.socket.send("40/admin,{}")
    told.append((await client.packet()).replace("/admin,", ""))
    _check_packet(told[-1], "44", "connectError")
    assert len({json.loads(packet[2:])["data"]["code"] for packet in told}) == 4


def _sign_out(server: RunningServer, user: str) -> None:
    assert server.run("user", "sign-out", user).returncode == 0


async def test_a_real_stream(server: RunningServer) -> None:
    """From what is unseen to the reason for its end."""
    server.must_notify("fred", content="before")
    told: list[StreamEvent] = []
    async with (
        event_stream(server, "fred") as stream,
        listening(server, "/notification/websocket") as screen,
    ):
        told += await stream.caught_up()
        await screen.say({"name": "join", "data": {"token": user_token("fred")}})
        await screen.say({"name": "seen", "data": {"all": True}})
        told.append(await stream.next("seen"))
        await screen.say({"name": "delete", "data": {"ids": told[-1].data["ids"]}})
        while told[-1].name != "delete":
            told.append(await _event(stream.event))
        _sign_out(server, "fred")
        while told[-1].name != "close":
            told.append(await _event(stream.event))
    assert stream.retry_ms is not None and 2000 <= stream.retry_ms <= 6000
    for event in told:
        _check_told(event.name, {} if event.id is None else {"id": event.id}, event.data)
    assert {event.name for event in told} == {"notification", "count", "seen", "delete", "close"}


async def _event(read: Callable[[], Awaitable[StreamEvent | None]]) -> StreamEvent:
    event = await read()
    assert event is not None
    return event


@pytest.mark.servers
async def test_a_real_redis(tmp_path: Path, redis_server: RedisServer) -> None:
    """Each example is taken from there, and told to a client."""
    hub = {"NOTIFY_REDIS_HUB_URL": redis_server.url(), "NOTIFY_REDIS_HUB_PREFIX": "asyncapi"}
    with RunningServer(tmp_path, **SETTINGS, **hub) as server:
        wait_until(lambda: "consuming from Redis" in server.log, "the server listening to Redis")
        async with listening(server, hub_path("alice")) as client:
            for example in MESSAGES["hubPublication"]["examples"]:
                redis_server.publish("asyncapi:alice", json.dumps(example["payload"]))
                frame = await client.frame()
                is_told("tellHub", frame)
                assert frame["payload"] == example["payload"]["payload"]


@pytest.mark.servers
def test_a_real_rabbitmq(tmp_path: Path, rabbitmq: RabbitMQServer) -> None:
    """Each example is taken from there, and its result is in the document; so is that of what cannot be taken."""
    bindings = RAW["channels"]["rabbitmq"]["bindings"]["amqp"]["exchange"]
    exchange, key = f"{bindings['name']}_asyncapi", RAW["channels"]["rabbitmq"]["address"]
    settings = {"URL": rabbitmq.url, "EXCHANGE": exchange, "QUEUE": "asyncapi"}
    rabbit = {f"NOTIFY_RABBITMQ_{name}": value for name, value in settings.items()}
    with (
        RunningServer(tmp_path, **SETTINGS, **rabbit) as server,
        pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection,
    ):
        wait_until(lambda: "consuming from RabbitMQ" in server.log, "the server listening to RabbitMQ")
        channel = connection.channel()
        channel.exchange_declare(exchange, bindings["type"], durable=bindings["durable"])
        results = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(results, exchange, RAW["channels"]["results"]["address"])
        sent = [example["payload"] for example in MESSAGES["servicePublication"]["examples"]]
        for message in [*sent, {"user_id": 1}]:
            channel.basic_publish(exchange, key, json.dumps(message).encode())
        told = []
        for _, _, body in channel.consume(results, auto_ack=True, inactivity_timeout=30):
            assert body is not None, told
            told.append(json.loads(body))
            is_told("tellResults", told[-1])
            if len(told) == len(sent) + 1:
                break
        assert [each for each in told if "error" not in each] == sent
        channel.queue_delete("asyncapi")
