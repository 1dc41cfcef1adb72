"""A worker as its supervisor sees it: a process, and what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from server.errors import StartupError
from server.figures import Packed
from server.service_manager import VARIABLE as MANAGER
from server.workers.channel import VARIABLE, Channel, Given, Message, line

DEAF = {signal.SIGHUP, signal.SIGUSR2}
"""Blocked when a worker begins, until it can take them: by themselves they would end it."""

STARTUP_CODES = (1, 2)
"""Of a process that has said why it cannot serve; see `server.cli`."""


class Child:
    """One process, from its start to its end. `told`: is given each message that is not dealt with here."""

    def __init__(self, number: int, lease_holder: str, told: Callable[[Child, Message], None]) -> None:
        self.number = number
        self.lease_holder = lease_holder
        self.is_ready = asyncio.Event()
        self.has_ended = asyncio.Event()
        self.ready_at: float | None = None
        """Monotonic."""
        self.names: Message = {}
        """Of its store and its mail transport, when it is ready."""
        self.drain_s = 0.0
        """How long it serves on when it is to end, by its own configuration."""
        self.figures: Packed = []
        """As last told."""
        self.unanswered = 0
        """How often a sign of life was due since it last said anything."""
        self._told = told
        self._takes_orders = False
        self._gives_signs = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connected: socket.socket | None = None
        self._channel: Channel | None = None
        self._reaped = asyncio.Event()

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def code(self) -> int | None:
        """Of its end; negative: the number of the signal that ended it."""
        return self._process.returncode if self._process else None

    @property
    def end_told(self) -> str:
        """How it ended, for people."""
        code = self.code
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"

    def start(
        self,
        main: Sequence[socket.socket],
        publishing: Sequence[socket.socket],
        lifeline: int,
        inbox: socket.socket,
        posts: Sequence[socket.socket],
        *,
        is_early: bool,
    ) -> None:
        """Give it copies of these; `hear` has to follow. Raises OSError, `StartupError`."""
        ours, theirs = socket.socketpair()
        try:
            given = Given(
                number=self.number,
                channel=theirs.fileno(),
                lifeline=lifeline,
                main=[each.fileno() for each in main],
                publishing=[each.fileno() for each in publishing],
                is_early=is_early,
                lease_holder=self.lease_holder,
                inbox=inbox.fileno(),
                posts=[each.fileno() for each in posts],
            )
            self._process = _start(given)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._connected = ours

    async def hear(self) -> None:
        """What it says, until it has ended."""
        if self._connected is None:
            raise RuntimeError("not started")
        channel = self._channel = await Channel.open(self._connected)
        while (message := await channel.hear()) is not None:
            self._hear(message)
        await channel.close()
        await self._reaped.wait()
        self.has_ended.set()

    def _hear(self, message: Message) -> None:
        self.unanswered = 0
        match message:
            case {"is": "hello", **more}:
                self._takes_orders = True
                self._gives_signs = more.get("signs") is True
            case {"is": "ready", **more}:
                self.names, self.ready_at = message, time.monotonic()
                self.drain_s = float(more.get("drain_s", 0.0))
                self.is_ready.set()
            case {"is": "figures" | "last", "packed": list(packed)}:
                self.figures = packed
        self._told(self, message)

    def say(self, message: bytes) -> None:
        if self._channel is not None:
            self._channel.say(message)

    def ask_for_sign(self) -> None:
        """It is to say anything, if it can say that at all; until it takes orders, by itself."""
        if self._gives_signs or not self._takes_orders:
            self.unanswered += 1
        if self._gives_signs:
            self.say(line("sign"))

    def end(self, *, is_replaced: bool) -> None:
        """Ask it to end in order."""
        if self._takes_orders:
            self.say(line("end", replaced=is_replaced))
        else:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def reap(self) -> None:
        """To be called when some process has ended."""
        if self._process is not None and self._process.poll() is not None:
            self._reaped.set()


def _start(given: Given) -> subprocess.Popen[bytes]:
    environ = {name: text for name, text in os.environ.items() if name != MANAGER}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF)
    try:
        return subprocess.Popen(  # noqa: S603  # what this process was started with
            command(),
            stdin=subprocess.DEVNULL,
            env={**environ, VARIABLE: given.to_text()},
            pass_fds=given.files,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def command() -> list[str]:
    """What this process was started with: a worker runs the code that is there now, which may be newer. Raises
    `StartupError` if that was not `serve`."""
    words = sys.orig_argv[1:]
    if "serve" not in words:
        raise StartupError("workers can be started by the command `notification-server serve` only")
    return [sys.executable, *words]
