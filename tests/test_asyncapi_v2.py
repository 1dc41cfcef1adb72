"""docs/asyncapi.yaml is true of dialect 2, too: what the server takes, and what it sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.commands_v2 import COMMANDS, parse_request
from server.errors import InvalidCommand, ServerError
from server.messages import (
    AllSeen,
    Counted,
    Counts,
    Deleted,
    Event,
    Missed,
    Restored,
    Seen,
    TypeCounts,
    Unseen,
)
from server.wire_v2 import InboxFrames, InboxStream, error_frame
from tests.support.asyncapi import MESSAGES, RAW, fits, is_told
from tests.support.client_v2 import PATHS
from tests.support.dialect_script import steps
from tests.support.event_streams import event_stream
from tests.support.feeds import SETTINGS, listening, user_token
from tests.support.running_server import RunningServer
from tests.test_asyncapi import DOCUMENT_OF_ALICE, ERRORS, EVENTS, ID

TAKEN = [each["$ref"].rpartition("/")[2] for each in RAW["operations"]["takeInboxCommands"]["messages"]]

FRAMES = [frame for step in steps() for frame in step["frames"] if frame["name"] != "weather"]
"""Of a real session."""


# -- what the server takes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKEN)
def test_the_commands_of_the_document_are_taken(name: str) -> None:
    """Each example is a command, and one of this message only."""
    for example in MESSAGES[name]["examples"]:
        assert parse_request(example["payload"])
        is_told("takeInboxCommands", example["payload"])


def test_the_document_has_every_command() -> None:
    """By its name."""
    names = [MESSAGES[name]["payload"]["properties"]["name"] for name in TAKEN]
    documented = {each for name in names for each in name.get("enum", [name.get("const")])}
    assert documented == set(COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        {"name": "join", "data": {"v": 2}},
        {"name": "join", "data": {"v": 2, "login": "alice"}},
        {"name": "join", "data": {"v": 2, "token": "x", "ticket": "y"}},
        {"name": "join", "data": {"v": 2, "token": "x", "since": 7}},
        {"name": "join", "data": {"v": 2, "token": "x", "since": ""}},
        {"name": "join"},
        {"name": "sync", "data": {}},
        {"name": "sync", "data": {"since": "x" * 257}},
        {"name": "content", "data": {"before": "x"}},
        {"name": "content", "data": {"limit": 0}},
        {"name": "content", "data": {"seen": "true"}},
        {"name": "content", "data": {"type": 7}},
        {"name": "seen", "data": {"all": True, "ids": []}},
        {"name": "seen", "data": {"all": False}},
        {"name": "seen", "data": {"all": True, "upto": "x"}},
        {"name": "unseen", "data": {"all": True}},
        {"name": "delete", "data": {"ids": [1]}},
        {"name": "restore"},
        {"name": "ack", "data": []},
        {"name": "counts", "data": 7},
        {"name": "counts", "id": 2**53},
        {"name": "counts", "id": True},
        {"name": "counts", "id": "x" * 65},
        {"name": "shout", "data": {}},
    ],
    ids=str,
)
def test_what_is_refused_is_not_in_the_document(command: Any) -> None:
    """The one is as strict as the other."""
    with pytest.raises(InvalidCommand):
        parse_request(command)
    assert not [name for name in TAKEN if fits(name, command)]


# -- what the server sends -----------------------------------------------------------------------------------

COUNTS = Counts(1, 3, {"order": TypeCounts(1, 2), "": TypeCounts(0, 1)})

TOLD: list[Event] = [
    *EVENTS,
    Restored(DOCUMENT_OF_ALICE),
    Seen((ID, "f" * 24), 8, (ID,)),
    Unseen((ID,), 8),
    Deleted((ID,), 9),
    AllSeen(9),
    Counted(COUNTS),
    Counted(Counts(0, 0, {})),
    Missed(),
]


@pytest.mark.parametrize("event", TOLD, ids=str)
def test_events(event: Event) -> None:
    """Over a socket, and in a stream."""
    frame = InboxFrames().frame(event)
    if frame is not None:
        is_told("tellInbox", json.loads(frame.text))
    event_ = InboxStream().frame(event)
    if event_ is not None:
        is_told("tellInboxEvents", json.loads(event_.text.removeprefix("data: ")))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
@pytest.mark.parametrize("id_", [None, 7, "x"], ids=str)
def test_errors(error: ServerError, id_: Any) -> None:
    """With an id, and without."""
    is_told("tellInbox", json.loads(error_frame(error, id_).text))


def test_frames_of_a_real_session() -> None:
    """All of them; and none of the messages is only in the document."""
    for frame in FRAMES:
        is_told("tellInbox", {key: value for key, value in frame.items() if key != "color"} | _plain(frame))
    told = [each["$ref"].rpartition("/")[2] for each in RAW["operations"]["tellInbox"]["messages"]]
    unsaid = [name for name in told if not any(fits(name, frame) for frame in FRAMES)]
    assert unsaid == ["inboxLeft"]


def _plain(frame: Any) -> Any:
    """Without what the script puts in to see whether a client passes it over."""
    return {"data": {key: value for key, value in frame["data"].items() if key != "color"}}


# -- over real connections -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server"), **SETTINGS) as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
async def test_a_real_connection(server: RunningServer, path: str) -> None:
    """Every example is taken by a running server, and every answer is in the document."""
    server.must_notify("erin", content="before", title="T")
    examples = [example["payload"] for name in TAKEN for example in MESSAGES[name]["examples"]]
    commands = [each for each in examples if each["name"] not in ("join", "leave")]
    async with listening(server, path) as client:
        await client.say({"name": "join", "id": "j", "data": {"v": 2, "token": user_token("erin")}})
        for command in [*commands, {"name": "shout", "id": "s"}, "no JSON", {"name": "leave", "id": "end"}]:
            await client.say(command)
        frame: Any = {}
        while frame.get("id") != "end":
            frame = await client.frame()
            is_told("tellInbox", frame)


async def test_a_real_stream(server: RunningServer) -> None:
    """From `joined` to what was pushed."""
    async with event_stream(server, "frank", path="/events?v=2") as stream:
        frames = [await stream.next("message")]
        server.must_notify("frank", content="while")
        frames += [await stream.next("message") for _ in range(2)]
        for frame in frames:
            is_told("tellInboxEvents", frame.data)
        assert sorted(frame.data["name"] for frame in frames) == ["counts", "joined", "notification"]
