"""Many WebSockets that count what arrives, and callers who publish to them: what the benchmarks of delivery share.

The clients are `tools/receivers.c`, the callers `tools/publishers.c`, both on the core of the load.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import BUILD, LOAD_CORE, PYTHON, read_json, running, settle, total_cpu_s

MARKER = "benchmark-marker"
"""In each message that counts, and behind it when it was to be sent."""

WARM_UP = "warm-up"
"""In its place in those that do not."""

PADDING = "x" * 240
PASSWORD = "benchmark"

ROUND_S = 60
"""The longest that a round may take."""

Run = dict[str, float]
"""The figures of one measurement, by name."""


def text(marker: str = MARKER, size: int | None = None) -> str:
    """A content for the callers to fill in; so many bytes long by then. None: as long as it happens to be."""
    stamp = len(str(time.clock_gettime_ns(time.CLOCK_MONOTONIC)))
    padding = PADDING if size is None else "x" * (size - len(marker) - stamp - 2)
    return f"{marker} {{T}} {padding}"


def password_hash() -> str:
    """A hash that costs next to nothing to check: joining is not what is measured."""
    code = f"import argon2; print(argon2.PasswordHasher(1, 8, 1).hash({PASSWORD!r}))"
    return subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def logins(count: int, hashed: str) -> str:
    """Lines of a configuration: `user0` and those after them."""
    return "[USERS-DEBUG]\n" + "".join(f"user{number}={hashed}\n" for number in range(count))


def join(login: str) -> str:
    """The message by which a client says who it is; `%d` in it is its number."""
    return json.dumps({"name": "join", "data": {"login": login, "password": PASSWORD}})


class Audience:
    """WebSockets that are open and ready."""

    def __init__(self, child: subprocess.Popen[str], count: int) -> None:
        self._child = child
        self.count = count

    def expect(self, messages: int, *, is_paced: bool = False) -> None:
        """Count from now on, until so many have come. Paced: sleeping in between, as one does at an even rate."""
        assert self._child.stdin
        self._child.stdin.write(f"{'paced ' if is_paced else ''}{messages}\n")
        self._child.stdin.flush()
        read_json(self._child)

    def result(self, messages: int) -> dict[str, Any]:
        """What came; see `receivers.c`."""
        result = read_json(self._child)
        if result["received"] != messages:
            raise RuntimeError(f"{result['received']} of {messages} arrived, {result['closed']} were closed")
        return result


@contextlib.contextmanager
def audience(port: int, path: str, count: int, hello: str = "", ready: str = "") -> Iterator[Audience]:
    """So many WebSockets; for `hello` and `ready` see `receivers.c`."""
    argv = [BUILD / "receivers", port, path, count, hello, ready, MARKER, 0, ROUND_S, "rounds"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with running(argv, LOAD_CORE, **pipes) as child:
        found = read_json(child)["ready"]
        if found != count:
            raise RuntimeError(f"only {found} of {count} became ready")
        yield Audience(child, count)


def publish(
    port: int,
    path: str,
    body: str,
    requests: int,
    *,
    callers: int,
    users: int = 1,
    rate: float = 0,
    media_type: str = "application/json",
) -> dict[str, Any]:
    """Posts; see `publishers.c`. Returns when all are answered."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(body)
        file.flush()
        argv = [BUILD / "publishers", port, path, media_type, callers, requests, users, f"@{file.name}"]
        with running([*argv, ROUND_S, rate], LOAD_CORE, stdout=subprocess.PIPE) as child:
            result = read_json(child)
    if result["refused"]:
        raise RuntimeError(f"{result['refused']} of {requests} posts were refused")
    return result


def measure(
    audience: Audience,
    pids: Sequence[int],
    messages: int,
    post: Callable[[], Mapping[str, Any]],
    *,
    is_paced: bool = False,
) -> Run:
    """Post, and wait until so many messages have arrived: deliveries a second from the first post to the last arrival
    (`per_s`), and divided by the CPU seconds of these processes (`per_core`); bytes of a message; latency."""
    settle(*pids)
    cpu = total_cpu_s(pids)
    audience.expect(messages, is_paced=is_paced)
    start_ns = post()["start_ns"]
    result = audience.result(messages)
    settle(*pids)
    used_s = total_cpu_s(pids) - cpu
    seconds = (result["last_ns"] - start_ns) / 1e9
    run = {
        "per_s": messages / seconds,
        "per_core": messages / max(used_s, 0.001),
        "bytes": result["bytes"] / messages,
    }
    return run | {key: result[key] for key in ("p50_ms", "p99_ms", "max_ms") if key in result}


class Results:
    """The runs of each case, with those of earlier calls if a file keeps them.

    The file: `{"machine": "…", "runs": {case: [{figure: value}, …]}}`."""

    def __init__(self, path: Path | None, machine: str = "two cores of a virtual machine") -> None:
        self._path = path
        self._machine = machine
        self.runs: dict[str, list[Run]] = {}
        if path is not None and path.exists():
            self.runs = json.loads(path.read_text())["runs"]

    def add(self, case: str, run: Run) -> None:
        """Keep a run, in the file at once."""
        self.runs.setdefault(case, []).append({key: round(value, 3) for key, value in run.items()})
        if self._path is not None:
            found = {"machine": self._machine, "runs": self.runs}
            self._path.write_text(json.dumps(found, indent=1) + "\n")

    def median(self, case: str, figure: str) -> float | None:
        """Of a figure over all runs of a case; None: it has none."""
        values = [run[figure] for run in self.runs.get(case, ()) if figure in run]
        return statistics.median(values) if values else None
