"""What the benchmarks share: the C tools, the server as it ships on a core of its own, and honest numbers.

Load goes to loopback only, is bounded, and every process started here is stopped here, by its pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
BENCH = ROOT / "bench"
TOOLS = BENCH / "tools"
BUILD = ROOT / ".cache" / "bench"

SERVER_CORE, LOAD_CORE = 0, 1
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def build(*tools: str) -> None:
    """Compile the C tools that changed since."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for tool in tools:
        source, program = TOOLS / f"{tool}.c", BUILD / tool
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(core: int) -> Any:
    """For `preexec_fn`: keep a child on one core, where the platform can."""

    def apply() -> None:
        if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {core})

    return apply


@contextlib.contextmanager
def running(argv: Sequence[str | Path], core: int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A child on a core, ended with the block."""
    child = subprocess.Popen([str(a) for a in argv], text=True, preexec_fn=pin(core), **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def place(config: str = "") -> Iterator[tuple[Path, int]]:
    """A config.ini with these lines, an embedded store and a free port, in a fresh folder: its path, and the port."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        port = free_port()
        path = Path(folder) / "config.ini"
        path.write_text(f"[APPLICATION]\nport={port}\ndata={folder}/data\n{config}")
        yield path, port


@contextlib.contextmanager
def serving(path: Path, port: int, *, environment: dict[str, str] | None = None) -> Iterator[int]:
    """The server as it ships, ready, in such a place: its pid."""
    argv = [PYTHON, "-m", "server", "serve", "--config", path]
    environ = {**os.environ, **(environment or {})}
    with (
        open(path.parent / "log", "w+") as log,
        running(argv, SERVER_CORE, cwd=ROOT, env=environ, stdout=log, stderr=log) as child,
    ):
        try:
            _wait_until_healthy(port, child)
        except RuntimeError:
            log.seek(0)
            print(log.read())
            raise
        yield child.pid


@contextlib.contextmanager
def server(config: str = "", *, environment: dict[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """Such a server in a place of its own: (port, pid)."""
    with place(config) as (path, port), serving(path, port, environment=environment) as pid:
        yield port, pid


def _wait_until_healthy(port: int, child: subprocess.Popen[str]) -> None:
    for _ in range(200):
        if child.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("the server did not start")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, its threads included (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def rss_kib(pid: int) -> int:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS")


def total_cpu_s(pids: Sequence[int]) -> float:
    """Those of several processes."""
    return sum(map(cpu_s, pids))


def settle(*pids: int) -> None:
    """Return when these processes have become idle."""
    last = total_cpu_s(pids)
    for _ in range(100):
        time.sleep(0.3)
        present = total_cpu_s(pids)
        if present - last < 0.02:
            return
        last = present


def read_json(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a tool's output."""
    assert child.stdout
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args!r} ended with {child.wait()}")
    result: dict[str, Any] = json.loads(line)
    return result
