"""Processes that are started, killed, frozen and started again, and that never outlive the one that started them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from server.errors import StartupError

POLL_S = 0.02

# Lives in a session of its own and hears through a pipe which process groups are alive. When the pipe closes, because
# its parent has ended in whatever way (SIGKILL too), it kills those that are left.
_REAPER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
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


class Reaper:
    """Kills at its end whatever is still alive of what it was told of."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # this interpreter
            [sys.executable, "-I", "-S", "-c", _REAPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def tell(self, sign: str, group: int) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{sign} {group}\n")

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


class Child:
    """One command, in a process group of its own, its output appended to `log`. The environment is that of this
    process without what is meant for a notification server, and with `env`."""

    def __init__(
        self,
        reaper: Reaper,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self._reaper = reaper
        self._argv = [str(word) for word in argv]
        self._cwd = cwd
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NOTIFY_")}
        self._env = {**kept, **(env or {})}
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running one, or of that which ran last; 0 before the first start."""
        return self._popen.pid if self._popen else 0

    @property
    def returncode(self) -> int | None:
        """None while it runs, and before it was started."""
        return self._popen.poll() if self._popen else None

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(  # noqa: S603  # commands of ours
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,
            )
        self._reaper.tell("+", self._popen.pid)

    def signal(self, number: signal.Signals) -> None:
        """To the whole group; nothing happens if it has ended."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def ended(self, timeout_s: float) -> bool:
        """Wait for its end; False if that takes longer."""
        if self._popen is None:
            return True
        if not await until(lambda: not self.is_running, timeout_s):
            return False
        self._reaper.tell("-", self.pid)
        return True

    async def stop(self, timeout_s: float) -> bool:
        """SIGTERM; whether it ended by itself. If not, it was killed."""
        self.signal(signal.SIGTERM)
        if await self.ended(timeout_s):
            return True
        await self.kill()
        return False

    async def kill(self) -> None:
        """SIGKILL to the whole group, in whichever state it is: as a power cut."""
        if self._popen is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.ended(10.0)


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until `condition()`, which does not block; False if that takes longer."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends_at:
            return False
        await asyncio.sleep(POLL_S)
    return True


# Below those from which systems take the near ends of outgoing connections: else a client that keeps coming back to a
# killed service could take that service's port, or even connect to itself.
_PORTS = range(20000, 32000)

_given: set[int] = set()


def free_port() -> int:
    """A loopback TCP port that nothing listens on, and that was not given before. Raises `StartupError`."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise StartupError(f"there is no free port from {_PORTS.start} to {_PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def connects(port: int, hello: bytes = b"", answer: bytes = b"") -> bool:
    """Whether something takes connections there, and if it is greeted, begins its answer so."""
    writer = None
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello)
            return await reader.readexactly(len(answer)) == answer
    except (OSError, EOFError):  # a TimeoutError, too
        return False
    finally:
        if writer is not None:
            writer.close()
