"""A real MariaDB for the tests: in a fresh folder, on a free port, without TLS, its root without a password."""

from __future__ import annotations

import getpass
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.servers import DatabaseServer, server_program


class MariaDB(DatabaseServer):
    name = "mariadb"

    def url(self, database: str) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/{database}"

    def run(self, sql: str, database: str | None = None) -> str:
        # --no-defaults must come first, or the machine's own configuration is read.
        argv = [server_program("mariadb", self.name), "--no-defaults", "--batch", "--skip-column-names"]
        argv += [
            "--default-character-set=utf8mb4",
            "-h127.0.0.1",
            f"-P{self.port}",
            "-uroot",
            database or "mysql",
        ]
        done = subprocess.run(argv, input=sql, check=True, capture_output=True, encoding="utf-8", timeout=60)
        return done.stdout

    def _initialise(self) -> None:
        argv: list[str | Path] = [server_program("mariadb-install-db", self.name), "--no-defaults"]
        argv += self._place()
        argv += ["--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(argv, check=True, capture_output=True, timeout=100)

    def _command(self, port: int) -> Sequence[str | Path]:
        argv: list[str | Path] = [server_program("mariadbd", self.name), "--no-defaults"]
        argv += self._place()
        argv += [f"--port={port}", "--bind-address=127.0.0.1"]
        argv += [f"--socket={self.folder}/socket", f"--pid-file={self.folder}/pid"]
        return [*argv, "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=2"]

    def _place(self) -> list[str]:
        # It refuses root unless it is told to run as that. Without a folder of its own for temporary tables it removes,
        # when it starts, those of every other in /tmp.
        return [f"--user={getpass.getuser()}", f"--datadir={self.data}", f"--tmpdir={self.folder}"]

    def _answers(self) -> bool:
        """It greets whoever connects."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return bool(connection.recv(1))
        except OSError:
            return False
