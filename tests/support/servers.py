"""Servers of the system (MariaDB, PostgreSQL, Redis, RabbitMQ, nginx) that tests start themselves: never the system's
own service, its port or its data."""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Self

from tests.support.available import unavailable
from tests.support.ports import free_port
from tests.support.processes import Process, wait_until

START_S = 90.0
"""Until a server must answer: RabbitMQ on a busy machine takes more than half a minute."""


def server_program(name: str, what: str) -> Path:
    """Where this program is: in the PATH, or where Debian puts what is not for everybody's PATH, the newest first.
    Skips the test if `what` (as scripts/test calls it) is missing."""
    # The same places as in scripts/services.sh.
    versions = sorted(
        glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]), reverse=True
    )
    folders = ["/usr/sbin", "/usr/local/sbin", "/usr/lib/rabbitmq/bin", *versions]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
    found = shutil.which(name, path=path)
    if found is None:
        unavailable(what, f"there is no {name}")
    return Path(found)


class OwnServer(ABC):
    """One server process on a loopback port of its own, with its data in a folder of its own. Tests may stop, kill and
    freeze it and start it again; it keeps its port and its data until close()."""

    name: str
    """As in the sentences of scripts/test."""

    def __init__(self) -> None:
        # Not pytest's folder: it is closed to the user that a server may have to run as, and too long for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix=f"test-{self.name}-"))
        self.data = self.folder / "data"
        self._process: Process | None = None
        try:
            self._initialise()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _initialise(self) -> None:
        """Make the data folder."""

    @abstractmethod
    def _command(self, port: int) -> Sequence[str | Path]:
        """What to start, in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it takes connections."""

    @property
    def process(self) -> Process:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        """Start, or start again with the same data on the same port; return when it takes connections."""
        try:
            if self._process is None:
                self._start_first()
            else:
                self._start_again()
        except BaseException:
            self.kill()
            raise

    def _start_first(self) -> None:
        """On a port that may have been taken by somebody else in the meantime."""
        for _ in range(5):
            self.port = free_port()
            self._process = Process(self._command(self.port), log=self.folder / "log")
            self._process.start()
            if self._is_up():
                return
        raise RuntimeError(f"{self.name} does not start: {self.process.output()[-2000:]}")

    def _start_again(self) -> None:
        # What a killed one has left behind (PostgreSQL's children) may take a moment to go.
        def started() -> bool:
            self.process.start()
            return self._is_up()

        wait_until(started, f"{self.name} starting again")

    def _is_up(self) -> bool:
        """Wait until it answers; False if it has ended instead."""
        wait_until(lambda: not self.process.is_running or self._answers(), f"{self.name} answering", START_S)
        return self.process.is_running

    def stop(self) -> None:
        """An orderly end, which does not wait for clients."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DatabaseServer(OwnServer):
    """One that a login by SQL may ask."""

    @abstractmethod
    def url(self, database: str) -> str:
        """What `[SQL] url` would be for this database, as its administrator."""

    @abstractmethod
    def run(self, sql: str, database: str | None = None) -> str:
        """Let the database's own command line tool carry this out; what it prints, without headers. Raises
        CalledProcessError. `database` None: the one that each server has."""
