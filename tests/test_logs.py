"""Where the log goes, how a line looks, and what never stands in it."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from server import logs, request_id
from server.config import Log
from server.errors import StartupError

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z ([A-Z]+) ([\w.]+): (.*)")

NAMES = (
    "server",
    "server.x",
    "tornado.access",
    "tornado.general",
    "pymongo.command",
    "elsewhere",
    "py.warnings",
)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The test has the process's logging to itself and leaves it as it was."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("root", *NAMES)}
    root.handlers.clear()
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_events_go_to_standard_error_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Time in UTC, level, logger, message."""
    logs.setup(Log())
    logging.getLogger("server.x").warning("the %s is full", "queue")
    out, err = capsys.readouterr()
    assert out == ""
    match = LINE.fullmatch(err.rstrip("\n"))
    assert match
    assert match.groups() == ("WARNING", "server.x", "the queue is full")


_INTO_A_FULL_PIPE = """
import logging, os, sys
from server import logs
from server.config import Log

reading, writing = os.pipe()
os.set_blocking(writing, False)
try:
    while True:
        os.write(writing, b"x")
except BlockingIOError:
    os.set_blocking(writing, True)
sys.stderr = os.fdopen(writing, "w")
logs.setup(Log())
log = logging.getLogger("server.x")
log.warning("one")
log.warning("two")
logs.last_word("a last word")
os.read(reading, 1 << 20)
log.warning("three" + 6_000 * " ")
print(os.read(reading, 1 << 20).decode(), end="")
"""


def test_nobody_stands_still_because_of_who_reads_standard_error() -> None:
    """What a reader who hangs makes no room for is left out, and said when there is room again."""
    done = subprocess.run(
        [sys.executable, "-c", _INTO_A_FULL_PIPE], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert [match[3].rstrip() for line in lines if (match := LINE.fullmatch(line))] == [
        "standard error was not read, so 2 lines were left out",
        "three",
    ]


def test_events_also_go_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is made for this user only, the file for nobody beyond the group, and what is there already stays."""
    file = tmp_path / "a" / "log" / "server.log"
    for text in ("one", "two ünïcödé \udce9"):
        logs.setup(Log(file=file))
        logging.getLogger("server.x").warning(text)
    assert [line[-10:] for line in file.read_text("utf-8").splitlines()] == [
        "ver.x: one",
        r"cödé \udce9"[-10:],
    ]
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) & 0o137 == 0
    assert capsys.readouterr().err.count("\n") == 2


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """As logrotate does it."""
    file = tmp_path / "server.log"
    logs.setup(Log(file=file))
    logging.getLogger("server.x").warning("one")
    file.rename(tmp_path / "server.log.1")
    logging.getLogger("server.x").warning("two")
    assert file.read_text().endswith("two\n")


def test_a_file_that_cannot_be_opened_anew_hurts_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said once; and in the file, when it can be written again, how many lines are not in it."""
    file = tmp_path / "log" / "server.log"
    logs.setup(Log(file=file))
    log = logging.getLogger("server.x")
    file.parent.rename(tmp_path / "before")
    file.parent.touch()
    log.warning("one")
    log.warning("two")
    file.parent.unlink()
    file.parent.mkdir()
    log.warning("three")
    assert [match[3] for line in file.read_text().splitlines() if (match := LINE.fullmatch(line))] == [
        "the file could not be written, so 2 lines were left out",
        "three",
    ]
    said = [line for line in capfd.readouterr().err.splitlines() if not LINE.fullmatch(line)]
    assert said == [f"notification-server: the log file {file} cannot be written: Not a directory"]


def test_a_disk_that_is_full_hurts_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does setting up anew, which closes the file."""
    logs.setup(Log(file=Path("/dev/full")))
    logging.getLogger("server.x").warning("one")
    logging.getLogger("server.x").warning("two")
    logs.setup(Log())
    said = [line for line in capfd.readouterr().err.splitlines() if not LINE.fullmatch(line)]
    assert said == ["notification-server: the log file /dev/full cannot be written: No space left on device"]


_ONTO_A_FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
from server import logs
from server.config import Log

path, stderr = Path(sys.argv[1]), Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.stderr = stderr.open("w")
logs.setup(Log(file=path))
log = logging.getLogger("server.x")
log.warning("one")
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, most))
for _ in range(20):
    log.warning("two")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.warning("three")
"""


def test_when_the_disk_has_room_again_it_is_said_once_what_is_missing(tmp_path: Path) -> None:
    """Of what is counted as left out nothing comes after all; the next line stands by itself though one was cut."""
    file, stderr = tmp_path / "server.log", tmp_path / "stderr"
    subprocess.run([sys.executable, "-c", _ONTO_A_FULL_DISK, file, stderr], timeout=60, check=True)
    for path, loss in (
        (file, "the file could not be written, so 20 lines were left out"),
        (stderr, "standard error was not read, so 20 lines were left out"),
    ):
        lines = path.read_text().splitlines()
        assert [match[3] for line in lines if (match := LINE.fullmatch(line))] == ["one", loss, "three"]
        assert len(lines) == 4, "beside them nothing but what there was room for"


def test_a_file_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    """Here its folder is a file."""
    (tmp_path / "log").write_text("")
    with pytest.raises(StartupError, match=r"^the log file .*/log/server\.log cannot be written: "):
        logs.setup(Log(file=tmp_path / "log" / "server.log"))


@pytest.mark.parametrize(
    ("level", "logger", "lowest"),
    [
        (logging.DEBUG, "server.x", logging.DEBUG),
        (logging.DEBUG, "pymongo.command", logging.INFO),
        (logging.DEBUG, "tornado.access", logging.WARNING),
        (logging.INFO, "server.x", logging.INFO),
        (logging.INFO, "tornado.general", logging.INFO),
        (logging.ERROR, "server.x", logging.ERROR),
        (logging.ERROR, "elsewhere", logging.ERROR),
        (logging.ERROR, "tornado.access", logging.ERROR),
    ],
)
def test_the_level_holds_for_our_messages_and_libraries_begin_at_info(
    level: int, logger: str, lowest: int
) -> None:
    """At DEBUG some of them show what they carry; what went well is no news."""
    logs.setup(Log(level=level))
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    enabled = [number for number in levels if logging.getLogger(logger).isEnabledFor(number)]
    assert min(enabled) == lowest


def test_setting_up_again_replaces_what_was_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    """No line comes twice."""
    logs.setup(Log())
    logs.setup(Log())
    logging.getLogger("server.x").warning("once")
    assert capsys.readouterr().err.count("once") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\x1b[2Jb", r"a\r\x1b[2Jb"),
        ("a\x9bb\x7f", r"a\x9bb\x7f"),
        ("a\u2028b\u202eb", r"a\u2028b\u202eb"),
        ("ü 😀 \\n", "ü 😀 \\n"),
    ],
)
def test_no_text_can_look_like_another_line(
    capsys: pytest.CaptureFixture[str], text: str, shown: str
) -> None:
    """Control characters are escaped, in the logger's name as well; all other text stays as it is."""
    logs.setup(Log())
    logging.getLogger("server.x").warning("%s", text)
    match = LINE.fullmatch(capsys.readouterr().err.rstrip("\n"))
    assert match
    assert match[3] == shown


def test_a_traceback_is_indented_below_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    """So that the text of an exception cannot look like an event either."""
    logs.setup(Log())
    forged = "2026-11-21 06:14:58.123Z INFO server.x: all is well"
    try:
        raise ValueError(f"x\n{forged}\x1b")
    except ValueError:
        logging.getLogger("server.x").exception("it failed")
    first, *others = capsys.readouterr().err.rstrip("\n").split("\n")
    assert first.endswith("ERROR server.x: it failed")
    assert all(line.startswith("\t") for line in others)
    assert f"\t{forged}\\x1b" in others


@pytest.mark.parametrize("logger", ["tornado.access", "tornado.general", "tornado.application"])
def test_what_tornado_says_of_a_request_leaves_out_the_query(
    capsys: pytest.CaptureFixture[str], logger: str
) -> None:
    """It may hold an apikey and the content of a notification."""
    logs.setup(Log())
    logging.getLogger(logger).warning(
        "400 POST %s (127.0.0.1) 1.00ms", "/notify?apikey=s'ecret&content=Hello?x"
    )
    assert capsys.readouterr().err.endswith("400 POST /notify?… (127.0.0.1) 1.00ms\n")


def test_warnings_of_python_are_events(capsys: pytest.CaptureFixture[str]) -> None:
    """They too are one line each."""
    logs.setup(Log())
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        warnings.warn("take care", stacklevel=1)
    match = LINE.fullmatch(capsys.readouterr().err.rstrip("\n"))
    assert match
    assert match[2] == "py.warnings"


# -- JSON and request ids ------------------------------------------------------------------------------------
def _json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is in a message, the line stays one line."""
    logs.setup(Log(format="json"))
    logging.getLogger("server.x").warning("one\ntwo \x1b[31m \u2028 %s", "ü \udce9")
    [line] = _json_lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "warning", "logger": "server.x", "message": "one\ntwo \x1b[31m \u2028 ü \udce9"}


def test_json_has_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """As one text."""
    logs.setup(Log(format="json"))
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("server.x").exception("failed")
    [line] = _json_lines(capsys)
    assert line["message"] == "failed"
    assert line["traceback"].splitlines()[-1] == "ValueError: why"


@pytest.mark.parametrize("format_", ["human", "json"])
def test_a_url_is_logged_without_its_query_in_either_format(
    format_: Literal["human", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    """A key or a token may stand there."""
    logs.setup(Log(format=format_))
    logging.getLogger("tornado.access").warning("404 GET /ws?token=secret (127.0.0.1) 1.00ms")
    text = capsys.readouterr().err
    assert "/ws?" in text.replace("\\u2026", "…")
    assert "secret" not in text


async def test_a_line_of_a_requests_walk_has_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """In both formats; a line outside of one has none."""
    for format_ in ("human", "json"):
        logs.setup(Log(format=format_))
        logging.getLogger("server.x").warning("before")
        await asyncio.create_task(_walk())
    human, human_walk, outside, walk = capsys.readouterr().err.splitlines()
    assert human.endswith("before")
    assert human_walk.endswith("walk (request abc-1)")
    assert "request_id" not in json.loads(outside)
    assert json.loads(walk)["request_id"] == "abc-1"


async def _walk() -> None:
    request_id.begin("abc-1")
    logging.getLogger("server.x").warning("walk")


@pytest.mark.parametrize("format_", ["human", "json"])
def test_lines_of_several_workers_say_whose_they_are(
    format_: Literal["human", "json"], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In front of the logger's name, or as a field."""
    monkeypatch.setattr(logs, "_worker", None)
    logs.name_worker(3)
    logs.setup(Log(format=format_))
    logging.getLogger("server.x").warning("it is so")
    line = capsys.readouterr().err
    if format_ == "json":
        assert json.loads(line)["worker"] == 3
    else:
        assert line.endswith("Z WARNING [worker 3] server.x: it is so\n")
