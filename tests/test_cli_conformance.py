"""`notification-server conformance`, as an operator types it; and what it prints."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.conformance.report import Progress, table
from server.conformance.run import BROKEN, KEPT, NOT_CHECKED, RULES, Outcome
from server.conformance.shapes import ANSWERS, PUSHES, frame_problem
from tests.support.command import Command
from tests.support.dialect_script import steps
from tests.support.feeds import add_key
from tests.support.ports import free_port
from tests.support.running_server import RunningServer
from tests.support.tampering import tampering
from tests.test_conformance import NoTicket


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("conformance")) as running:
        yield running


@pytest.fixture
def key_file(server: RunningServer, tmp_path: Path) -> str:
    file = tmp_path / "key"
    file.write_text(add_key(server, "default", tmp_path.name, "publish", "listen") + "\n")
    return str(file)


def test_a_server_that_keeps_the_rules(server: RunningServer, bare: Command, key_file: str) -> None:
    """A line for each rule and door, the sum, and exit code 0; a rule for which the key is too weak is not checked."""
    outcome = bare(
        *("conformance", server.url, "--key-file", key_file),
        *("--rule", "join", "--rule", "sign-out", "--rule", "etag", "--door", "ws_v2", "--door", "rest"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    heading, *lines, last = outcome.out.splitlines()
    assert heading.split() == ["RESULT", "DOOR", "RULE"]
    results = [(line[:11].strip(), line[13:18].strip()) for line in lines if not line.startswith(" ")]
    assert sorted(results) == [(KEPT, "rest"), (KEPT, "ws_v2"), (NOT_CHECKED, "ws_v2")]
    assert "admin" in outcome.out
    assert last == "2 kept, 1 not checked"


def test_for_programs(server: RunningServer, bare: Command, key_file: str) -> None:
    """All that is known of each, as JSON."""
    outcome = bare("conformance", server.url, "--key-file", key_file, "--rule", "join", "--json")
    assert outcome.code == 0
    found = outcome.json()
    assert [(each["rule"], each["door"], each["result"]) for each in found] == [
        ("join", "sockjs", KEPT),
        ("join", "ws_v2", KEPT),
    ]
    assert all(each["took_s"] > 0 and each["text"] for each in found)


async def test_a_server_that_breaks_one(server: RunningServer, key_file: str) -> None:
    """Exit code 1, with what was expected and what was seen beneath the rule."""
    async with tampering(server.port, NoTicket) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "server", "conformance", url, "--key-file", key_file),
            *("--rule", "tickets", "--door", "ws_v2"),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (1, b"")
    assert [line.strip() for line in out.decode().splitlines()[-3:]] == [
        "expected: a ticket",
        "seen:     null",
        "1 broken",
    ]


def test_without_a_server_there_is_nothing_to_check(bare: Command) -> None:
    """One sentence."""
    port = free_port()
    outcome = bare("conformance", f"http://127.0.0.1:{port}")
    assert outcome.code == 1
    assert outcome.problem.startswith("GET /healthz: ")


def test_a_key_that_is_wrong(server: RunningServer, bare: Command, tmp_path: Path) -> None:
    """Is not shown, and nothing is checked."""
    file = tmp_path / "key"
    file.write_text("wrong-secret-text")
    outcome = bare("conformance", server.url, "--key-file", str(file))
    assert outcome.code == 1
    assert outcome.problem.startswith("POST /api/v2/tokens answered 403: ")
    assert "wrong-secret-text" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["ftp://x"], "'ftp://x' is no address such as http://127.0.0.1:8587"),
        (["127.0.0.1:8587"], "'127.0.0.1:8587' is no address such as http://127.0.0.1:8587"),
        (["http://a:b@x"], "'http://a:b@x' is no address such as http://127.0.0.1:8587"),
        (
            ["http://x", "--key-file", "there-is-none"],
            "--key-file: [Errno 2] No such file or directory: 'there-is-none'",
        ),
        (["http://x", "--key-file", "/dev/null"], "--key-file: there is no key in it"),
        (["http://x", "--patience", "0"], "--patience: not above 0, or more than a day"),
        (["http://x", "--timeout", "nan"], "--timeout: not above 0, or more than a day"),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_what_is_typed_wrong(bare: Command, arguments: list[str], problem: str) -> None:
    """In one sentence; exit code 2."""
    outcome = bare("conformance", *arguments)
    assert (outcome.code, outcome.problem) == (2, problem)


def test_a_rule_that_there_is_not(bare: Command) -> None:
    """Names those that there are."""
    outcome = bare("conformance", "http://x", "--rule", "gravity")
    assert outcome.code == 2
    assert all(rule.name in outcome.problem for rule in RULES)


# -- what is printed -----------------------------------------------------------------------------------------


def test_the_time_bounds_all(server: RunningServer, bare: Command, key_file: str) -> None:
    """What is left when it is over is not checked; who has checked nothing is not content."""
    outcome = bare("conformance", server.url, "--key-file", key_file, "--timeout", "0.001", "--json")
    assert outcome.code == 1
    assert {(each["result"], each["seen"]) for each in outcome.json()} == {(NOT_CHECKED, "the time was over")}


def test_what_a_server_says_does_not_steer_the_terminal() -> None:
    """Nor is all of it shown."""
    text = table([Outcome("x", "a rule", "rest", BROKEN, "peace", "\x1b[2J" + "y" * 1000)])
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 500
    assert text.splitlines()[-1] == "1 broken"


def test_progress_is_for_terminals() -> None:
    """And leaves nothing there."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    outcome = Outcome("join", "a rule", "rest", KEPT)
    for out in (Terminal(), io.StringIO()):
        progress = Progress(out)
        progress(outcome)
        progress.end()
        assert out.getvalue().endswith("\r\x1b[K") == out.isatty()
        assert ("join at rest" in out.getvalue()) == out.isatty()


# -- forms ---------------------------------------------------------------------------------------------------


def test_each_frame_of_the_script_has_its_form() -> None:
    """But the one that no server of this version sends."""
    frames = [frame for step in steps() for frame in step["frames"]]
    assert {json.dumps(frame)[:60]: problem for frame in frames if (problem := frame_problem(frame))} == {}


def test_a_field_that_is_missing_or_wrong_is_found() -> None:
    """In each frame of the script, whichever field it is; those that may be missing are few."""
    frames = [frame for step in steps() for frame in step["frames"] if frame["name"] in {*ANSWERS, *PUSHES}]
    for frame in frames:
        for name in frame["data"]:
            if name in ("data", "field", "ticket", "color"):
                continue
            without = {key: value for key, value in frame["data"].items() if key != name}
            wrong = {**frame["data"], name: {"none": "of these"}}
            for data in (without, wrong):
                assert frame_problem({**frame, "data": data}), (frame["name"], name)


@pytest.mark.parametrize(
    "frame", [[], {}, {"name": 7, "data": {}}, {"name": "x"}, {"name": "x", "data": []}], ids=str
)
def test_what_is_no_frame_has_no_form(frame: object) -> None:
    """Whatever else."""
    assert frame_problem(frame)
