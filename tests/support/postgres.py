"""A real PostgreSQL for the tests: in a fresh folder, on a free port, without TLS, everybody trusted.

It refuses to run as root; then it runs as the user `postgres` of the package, to whom the folder is given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.servers import DatabaseServer, server_program

_USER = "postgres"


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups"]


class Postgres(DatabaseServer):
    name = "postgres"

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def run(self, sql: str, database: str | None = None) -> str:
        argv = [server_program("psql", self.name), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        argv += ["-h127.0.0.1", f"-p{self.port}", f"-U{_USER}", database or "postgres"]
        done = subprocess.run(
            argv,
            input=sql,
            check=True,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            env={**os.environ, "PGCLIENTENCODING": "UTF8"},
        )
        return done.stdout

    def stop(self) -> None:
        # SIGTERM would wait until the last client has gone.
        if self.process.is_running:
            self.process.signal(signal.SIGINT)
        self.process.wait()

    def kill(self) -> None:
        # They would end by themselves when the server has gone, but not while they are frozen.
        children = self._children() if self._process is not None and self._process.is_running else []
        super().kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        for pid in [self.process.pid, *self._children()]:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in [*self._children(), self.process.pid]:
            os.kill(pid, signal.SIGCONT)

    def _children(self) -> list[int]:
        """Each is in a process group of its own."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def _initialise(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, _USER, _USER)
        argv = [*_as_user(), server_program("initdb", self.name), "-D", self.data, "-U", _USER, "-A", "trust"]
        # Away from the current folder, which that user may not be able to read.
        subprocess.run(
            [*argv, "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            timeout=100,
            cwd=self.folder,
        )

    def _command(self, port: int) -> Sequence[str | Path]:
        argv = [*_as_user(), server_program("postgres", self.name), "-D", self.data, "-p", str(port)]
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "fsync=off"]
        return [*argv, *(word for setting in settings for word in ("-c", setting))]

    def _answers(self) -> bool:
        argv = [server_program("pg_isready", self.name), "-q", "-h127.0.0.1", f"-p{self.port}"]
        return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0
