"""A real RabbitMQ for the tests: one node in a fresh folder, on free ports, with the user guest (password: guest)."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.certificates import CertificateAuthority, Pair
from tests.support.ports import free_port
from tests.support.processes import Process, wait_until
from tests.support.servers import OwnServer, server_program

_HELLO = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


class RabbitMQServer(OwnServer):
    """`tls`: its certificate, for a second port."""

    name = "rabbitmq"

    def __init__(self, *, tls: tuple[CertificateAuthority, Pair] | None = None) -> None:
        self._tls = tls
        self.tls_port = free_port() if tls else 0
        self._epmd_port = free_port()
        self._node_port = free_port()
        self._epmd: Process | None = None
        super().__init__()

    @property
    def url(self) -> str:
        """What `[RABBITMQ] url` would be."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        return f"amqps://guest:guest@localhost:{self.tls_port}/"

    def control(self, *command: str) -> str:
        """Let rabbitmqctl carry this out; what it prints. Takes a second. Raises CalledProcessError."""
        argv = [*self._environment(self.port), _program("rabbitmqctl"), "-q", *command]
        done = subprocess.run(argv, check=True, capture_output=True, encoding="utf-8", timeout=60)
        return done.stdout.strip()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()

    def _initialise(self) -> None:
        (self.folder / "home").mkdir(mode=0o700)
        lines = ["log.console.level = warning"]
        if self._tls is not None:
            authority, pair = self._tls
            lines += [f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}", "ssl_options.verify = verify_none"]
            lines += [f"ssl_options.cacertfile = {authority.ca_file}"]
            lines += [f"ssl_options.certfile = {pair.cert}", f"ssl_options.keyfile = {pair.key}"]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "plugins").write_text("[].\n")
        # As a child of ours: else the broker leaves one behind that nobody ends.
        argv = [*self._environment(0), server_program("epmd", self.name), "-port", str(self._epmd_port)]
        self._epmd = Process(argv, log=self.folder / "epmd.log")
        self._epmd.start()
        wait_until(lambda: _connects(self._epmd_port), "epmd answering")

    def _command(self, port: int) -> Sequence[str | Path]:
        return [*self._environment(port), _program("rabbitmq-server")]

    def _environment(self, port: int) -> list[str | Path]:
        """The settings, and nothing of the machine's own."""
        folder = self.folder
        settings = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": folder / "home",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self._node_port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_DIST_PORT": self._node_port,
            "RABBITMQ_MNESIA_BASE": self.data,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": folder / "pid",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
        }
        return ["env", "-i", *(f"{name}={value}" for name, value in settings.items())]

    def _answers(self) -> bool:
        """A living process is not enough: it takes connections last."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.settimeout(5)
                connection.sendall(_HELLO)
                return connection.recv(1) == _METHOD_FRAME
        except OSError:
            return False


def _program(name: str) -> Path:
    """Debian's in the PATH changes the user, and logs elsewhere."""
    own = Path("/usr/lib/rabbitmq/bin") / name
    return own if own.exists() else server_program(name, "rabbitmq")


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
