"""A real Redis for the tests: in a fresh folder, on a free port, keeping nothing on disk."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.certificates import CertificateAuthority, Pair
from tests.support.servers import OwnServer, server_program


class RedisServer(OwnServer):
    """`password`: without it nobody may do anything. `tls`: its certificate; then it speaks nothing but TLS."""

    name = "redis"

    def __init__(self, *, password: str = "", tls: tuple[CertificateAuthority, Pair] | None = None) -> None:
        self._password = password
        self._tls = tls
        super().__init__()

    def url(self, database: int = 0) -> str:
        """What `[REDIS_HUB] url` would be."""
        scheme, login = "rediss" if self._tls else "redis", f":{self._password}@" if self._password else ""
        return f"{scheme}://{login}127.0.0.1:{self.port}/{database}"

    def run(self, *command: str) -> str:
        """Let redis-cli carry this out; what it prints. Raises CalledProcessError."""
        argv = [*self._cli(), *command]
        done = subprocess.run(argv, check=True, capture_output=True, encoding="utf-8", timeout=60)
        return done.stdout.strip()

    def _cli(self) -> list[str | Path]:
        argv: list[str | Path] = [server_program("redis-cli", self.name), "-h", "127.0.0.1"]
        argv += ["-p", str(self.port), "-e", "--no-auth-warning"]
        argv += ["-a", self._password] if self._password else []
        return argv + (["--tls", "--cacert", self._tls[0].ca_file] if self._tls else [])

    def publish(self, channel: str, message: str) -> int:
        """How many subscribers got it."""
        return int(self.run("PUBLISH", channel, message))

    def _initialise(self) -> None:
        self.data.mkdir()

    def _command(self, port: int) -> Sequence[str | Path]:
        argv: list[str | Path] = [server_program("redis-server", self.name)]
        argv += ["--bind", "127.0.0.1", "--dir", self.data, "--save", "", "--appendonly", "no"]
        if self._password:
            argv += ["--requirepass", self._password]
        if self._tls is None:
            return [*argv, "--port", str(port)]
        authority, pair = self._tls
        argv += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
        return [
            *argv, "--tls-cert-file", pair.cert, "--tls-key-file", pair.key, "--tls-ca-cert-file", authority.ca_file
        ]  # fmt: skip

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return self.run("PING") == "PONG"
        except (OSError, subprocess.CalledProcessError):
            return False
