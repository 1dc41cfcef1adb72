"""The worked examples of docs/protocol.md, played to a running server: what it answers is what stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server import commands_v2
from tests.support.client_v2 import PATHS
from tests.support.feeds import listening
from tests.support.running_server import RunningServer

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")

LINES = [
    line
    for block in re.findall(r"```frames\n(.*?)```", TEXT, re.DOTALL)
    for line in block.strip().split("\n")
]


def test_there_are_examples() -> None:
    """Of every command but those that have nothing to show, and of most frames."""
    sent = {json.loads(line[2:])["name"] for line in LINES if line.startswith(">")}
    assert sent == set(commands_v2.COMMANDS) - {"ack", "counts", "leave"}


def test_every_command_stands_there() -> None:
    """In the table of them."""
    for name in commands_v2.COMMANDS:
        assert re.search(rf"^\| [^|]*`{name}`", TEXT, re.MULTILINE), name


@pytest.mark.parametrize("path", PATHS)
async def test_the_examples_are_true(tmp_path: Path, path: str) -> None:
    """In their order, over each socket."""
    known: dict[str, Any] = {}
    with RunningServer(tmp_path) as server:
        parts = "\n".join(LINES).split("! cut\n")
        for part in parts:
            lines = part.strip().split("\n")
            while lines and lines[0].startswith("! notify"):
                _, _, user, content = lines.pop(0).split()
                server.must_notify(user, content=content)
            async with listening(server, path) as client:
                for line in lines:
                    if line.startswith(">"):
                        await client.say(_filled(json.loads(line[2:]), known))
                    else:
                        frame = await client.frame()
                        assert _fits(json.loads(line[2:]), frame, known), (line, frame)
    assert len(parts) == 2


def _filled(value: Any, known: dict[str, Any]) -> Any:
    """`value` with what its placeholders stand for."""
    if isinstance(value, dict):
        return {key: _filled(each, known) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, known) for each in value]
    return known[value] if isinstance(value, str) and value.startswith("$") else value


def _fits(expected: Any, found: Any, known: dict[str, Any]) -> bool:
    """Whether they are the same, but for placeholders, which stand for what is found first."""
    if isinstance(expected, str) and expected.startswith("$"):
        return bool(known.setdefault(expected, found) == found)
    if isinstance(expected, dict):
        keys = set(expected) - {"$"}
        is_whole = keys == set(found) if "$" not in expected else keys < set(found)
        return is_whole and all(_fits(expected[key], found[key], known) for key in keys)
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(_fits, expected, found, [known] * len(found)))
    return bool(expected == found)
