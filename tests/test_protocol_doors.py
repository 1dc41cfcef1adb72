"""The examples of docs/protocol.md for the doors without commands, played to a running server; and what that page says
of the kit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.config.schema import Connections, Limits
from server.conformance.shapes import DOCUMENT, problem_of
from tests.support.dialect_script import steps
from tests.support.event_streams import EventStream, event_stream
from tests.support.feeds import SETTINGS, user_token
from tests.support.running_server import Response, RunningServer

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")

[BLOCK] = re.findall(r"```doors\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path, **SETTINGS) as running:
        yield running


async def test_the_examples_are_true(server: RunningServer) -> None:
    """In their order; pushes of the stream that are not in the example are counts."""
    play = _Play(server)
    first, *lines = BLOCK.strip().split("\n")
    async with event_stream(server, "alice", path=first.split()[2]) as stream:
        for line in lines:
            await play.line(line, stream)


class _Play:
    """`known`: what the placeholders stand for."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._known: dict[str, Any] = {}
        self._answer: Response | None = None

    async def line(self, line: str, stream: EventStream) -> None:
        kind, rest = line.split(" ", 1)
        if kind == "!":
            _, user, content = rest.split()
            self._server.must_notify(user, content=content)
        elif kind == ">":
            method, path, *body = rest.split(" ", 2)
            sent = self._filled(body[0]).encode() if body else None
            headers = {"Authorization": f"Bearer {user_token('alice')}"}
            self._answer = self._server.request(method, self._filled(path), sent, headers)
        elif rest[0].isdigit():
            status, fields = rest.split(" ", 1)
            assert self._answer is not None
            assert self._answer.status == int(status), line
            assert self._fits(json.loads(fields), self._answer.json()), (line, self._answer.body)
        else:
            await self._event(rest, stream)

    async def _event(self, expected: str, stream: EventStream) -> None:
        id_ = re.match(r"id: (\S+) ", expected)
        frame = json.loads(expected[id_.end() :] if id_ else expected)
        event = await stream.next("message")
        while event.data["name"] == "counts" != frame["name"]:
            event = await stream.next("message")
        assert self._fits(frame, event.data), (expected, event.data)
        assert event.id == (self._known[id_[1]] if id_ else None)

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\w+", lambda found: str(self._known[found[0]]), text)

    def _fits(self, expected: Any, found: Any) -> bool:
        """The same, but for placeholders."""
        if isinstance(expected, str) and expected.startswith("$"):
            return bool(self._known.setdefault(expected, found) == found)
        if isinstance(expected, dict) and isinstance(found, dict):
            keys = set(expected) - {"$"}
            is_whole = keys < set(found) if "$" in expected else keys == set(found)
            return is_whole and all(self._fits(expected[key], found[key]) for key in keys)
        if isinstance(expected, list) and isinstance(found, list):
            return len(expected) == len(found) and all(map(self._fits, expected, found))
        return bool(expected == found)


def test_the_document_of_the_page_is_one() -> None:
    """With every field."""
    [text] = re.findall(r'^    (\{"_id".*?"rev": "[^"]*"\})', TEXT, re.DOTALL | re.MULTILINE)
    document = json.loads(text)
    assert problem_of(document, DOCUMENT) is None
    assert set(document) == {name.removesuffix("?") for name in DOCUMENT}


def test_the_step_of_the_page_is_one_of_the_script() -> None:
    """By its scenario, number and note, with these fields."""
    found = re.search(r'\{"scenario": "(.*?)", "step": (\d+), "note": "(.*?)", "frames"', TEXT)
    assert found is not None
    [step] = [each for each in steps() if (each["scenario"], each["step"]) == (found[1], int(found[2]))]
    assert step["note"] == found[3]
    assert set(step) == {"scenario", "step", "note", "frames", "state"}
    assert set(step["state"]) == {"inbox", "since", "counts", "must"}


def test_the_links_of_the_page_lead_somewhere() -> None:
    """To files, and to headings of its own."""
    headings = {
        re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-")
        for each in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        assert (ROOT / "docs" / path).exists(), target
        assert path or anchor in headings, target


def test_every_bound_of_the_page_is_the_default() -> None:
    """As configured, if nothing is."""
    [bounds] = re.findall(r"^Limits, most of them.*?\n\n.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    bounds = " ".join(bounds.split())
    limits, connections = Limits(), Connections()
    assert limits.commands_per_connection is not None
    assert limits.commands_per_user is not None
    for said in (
        f"{connections.message_bytes // 2**20} MiB",
        f"In {limits.commands_per_connection.window_s:g} s a connection",
        f"{limits.commands_per_connection.quota} commands",
        f"a user {limits.commands_per_user.quota}",
        f"{connections.pending_commands} commands wait",
        f"from {2 * connections.pending_commands} on",
        f"within {limits.join_within_s:g} s",
        f"A user may have {limits.connections_per_user} connections",
    ):
        assert said in bounds
