"""Child processes that tests start, kill and freeze, and that never outlive the test run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Lives in a session of its own and learns through a pipe which process groups are alive. When the pipe
# closes, because this process has ended in whatever way (SIGKILL too), it kills those that are left.
_REAPER = """
import os, signal, sys
alive = set()
for line in sys.stdin:
    sign, group = line.split()
    (alive.add if sign == "+" else alive.discard)(int(group))
for group in alive:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""

_reaper: subprocess.Popen[str] | None = None


def _tell_reaper(sign: str, group: int) -> None:
    global _reaper
    if _reaper is None:
        _reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _REAPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
    assert _reaper.stdin is not None
    _reaper.stdin.write(f"{sign} {group}\n")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Block until `condition()` is true, for things outside that can only be asked, not awaited.

    Raises TimeoutError("<what> …").
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


def _states(group: int) -> set[str]:
    """In which states the threads of a process group are (proc_pid_stat(5))."""
    states = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if _stat(process)[2] == str(group):
                states |= {_stat(thread)[0] for thread in (process / "task").iterdir()}
    return states


def _stat(process: Path) -> list[str]:
    """State, parent, process group and more."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _port(address: str) -> int:
    """Of an address as the kernel's tables have it."""
    return int(address.rpartition(":")[2], 16)


class ServersEnd:
    """The end of a TCP connection (IPv4, this machine) that process `pid` has, of which we have the other."""

    def __init__(self, pid: int, ours: asyncio.StreamWriter) -> None:
        # Both: another server may have had a client at the same port.
        ports = [ours.get_extra_info(name)[1] for name in ("peername", "sockname")]
        connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        [inode] = (each[9] for each in connections if [_port(each[1]), _port(each[2])] == ports)
        self._link = f"socket:[{inode}]"
        self._files = Path(f"/proc/{pid}/fd")

    @property
    def is_open(self) -> bool:
        """Whether the process holds it still, whatever the kernel has left to send."""
        return any(self._target(file) == self._link for file in self._files.iterdir())

    @staticmethod
    def _target(file: Path) -> str:
        try:
            return str(file.readlink())
        except OSError:  # closed between the two questions
            return ""


class Process:
    """A command in a process group of its own, its output (stdout and stderr) in the file `log`."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`env` is added to the environment of the tests. The output is appended to `log`."""
        self.argv = [str(word) for word in argv]
        self.log = log
        self.cwd = cwd
        self.env = dict(env or {})
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None, "not started"
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs and before it was started; negative when a signal ended it."""
        return self._popen.poll() if self._popen else None

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def start(self) -> None:
        assert not self.is_running, "already started"
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                env={**os.environ, **self.env},
                start_new_session=True,
            )
        _tell_reaper("+", self.pid)

    def wait_for_output(self, text: str, timeout_s: float = 30.0) -> None:
        """Block until `text` was printed. Raises RuntimeError if the process ends without having printed
        it."""

        def printed() -> bool:
            is_running = self.is_running  # asked first: what it printed last must still count
            if text in self.output():
                return True
            if not is_running:
                raise RuntimeError(f"{self.argv[0]} ended with {self.returncode}:\n{self.output()}")
            return False

        wait_until(printed, f"{self.argv[0]} printing {text!r}", timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.pid, number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Block until it has ended; its return code."""
        assert self._popen is not None, "not started"
        code = self._popen.wait(timeout_s)
        _tell_reaper("-", self.pid)
        return code

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM and wait; its return code. Raises subprocess.TimeoutExpired if it does not end."""
        if self.is_running:
            self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the whole group, as by a power cut; no matter in which state it is."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self.signal(signal.SIGKILL)
            self.wait()

    def freeze(self) -> None:
        """SIGSTOP: alive and connected, but silent. Returns when every thread of the group has stopped: on a busy
        machine some go on for a while, and answer."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: _states(self.pid) <= {"T", "Z", "X"}, f"{self.argv[0]} standing still")

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
