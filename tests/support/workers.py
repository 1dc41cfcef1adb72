"""A server of several workers, as people run it, and a look at its processes from outside."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import wait_until
from tests.support.running_server import RunningServer

_ESTABLISHED, _LISTENS = "01", "0A"

_FAULT = """
import json, os, signal, time
from pathlib import Path
given = json.loads(os.environ.get("NOTIFICATION_WORKER", "{}"))
if given and (Path(__file__).parent / f"fault-{given['number']}").exists():
    os._exit(7)
while given and (Path(__file__).parent / f"hold-{given['number']}").exists():
    time.sleep(0.02)
if given:
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))
"""


class WorkersServer(RunningServer):
    """`serve --workers 2`. A worker whose number has been `spoil`t ends as soon as it is started. `fault`: run in each
    process before anything else. `option`: in place of this one, if the configuration says how many."""

    def __init__(
        self,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        fault: str = "",
        option: Sequence[str] = ("--workers", "2"),
        **settings: str,
    ) -> None:
        (folder / "sitecustomize.py").write_text(_FAULT + fault)
        root = Path(__file__).resolve().parents[2]
        settings = {"PYTHONPATH": f"{folder}:{root}", **settings}
        super().__init__(folder, arguments=(*option, *arguments), **settings)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        super().wait_until_ready(timeout_s)
        wait_until(lambda: "\n  workers  2\n" in self.log, "all workers", timeout_s)

    def spoil(self, number: int) -> Path:
        """The file by which it is; to be removed."""
        fault = self._folder / f"fault-{number}"
        fault.touch()
        return fault

    def hold(self, number: int) -> Path:
        """A file: until it is removed, a worker of this number that is started from now on waits before it begins."""
        file = self._folder / f"hold-{number}"
        file.touch()
        return file

    def hang(self, worker: int) -> None:
        """Let this process do nothing any more: its event loop stands still."""
        os.kill(worker, signal.SIGUSR1)

    def tell(self, number: signal.Signals) -> None:
        """A signal for the supervisor alone, as an operator sends it."""
        os.kill(self.pid, number)

    @property
    def workers(self) -> list[int]:
        """The pids of the processes that serve, or are about to."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def has_next_after(self, killed: int) -> bool:
        """Whether there is another process in place of this one. In one look: between two it could go, and both be
        true with nobody in its place."""
        workers = self.workers
        return len(workers) == 2 and killed not in workers

    def said(self, pattern: str) -> list[str]:
        """What of its log matches: the lines, or the group of the pattern."""
        return re.findall(pattern, self.log, re.MULTILINE)

    def wait_for(self, pattern: str, times: int = 1, timeout_s: float = 60.0) -> None:
        """Block until so much of the log matches."""
        wait_until(lambda: len(self.said(pattern)) >= times, f"{pattern!r} in the log", timeout_s)


def connections(pid: int, *, local: int | None = None, remote: int | None = None) -> int:
    """How many TCP connections (IPv4) a process has at this port of its own, or to this one of another."""
    return _sockets(pid, _ESTABLISHED, local, remote)


def listens(pid: int, port: int) -> bool:
    """Whether a process accepts connections there."""
    return bool(_sockets(pid, _LISTENS, port, None))


def _sockets(pid: int, state: str, local: int | None, remote: int | None) -> int:
    inodes = set()
    for entry in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = entry.split()
        ports = [int(fields[number].rpartition(":")[2], 16) for number in (1, 2)]
        if fields[3] == state and local in (None, ports[0]) and remote in (None, ports[1]):
            inodes.add(f"socket:[{fields[9]}]")
    return len(inodes & {_target(file) for file in Path(f"/proc/{pid}/fd").iterdir()})


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed between the two questions
        return ""


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
