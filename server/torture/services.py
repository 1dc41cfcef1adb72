"""What stands beside the server: Redis, RabbitMQ and a mail server, each in a folder and on ports of its own. MongoDB
is in `mongod`, the server itself in `node`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import server
from server.errors import StartupError
from server.torture.children import Child, Reaper, connects, free_port

READY_WITHIN_S = 90.0
"""RabbitMQ, after a kill, on a busy machine."""

STOP_WITHIN_S = 30.0

PACKAGES = Path(server.__file__).parents[1]
"""Where `server` is imported from: the children need not stand in the same folder."""


def find_program(*names: str) -> Path | None:
    """The first of these that is there: in the PATH, or where systems put what is not for everybody's."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return Path(found).absolute()  # they are started in another folder
    return None


class Service(ABC):
    """One that is started, killed and frozen, and keeps its port and its data all the time."""

    name: str

    def __init__(self, reaper: Reaper, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir(mode=0o700)
        self.log = folder / f"{self.name}.log"
        self.port = free_port()
        self._reaper = reaper
        self.child = self._make_child()

    @abstractmethod
    def _make_child(self) -> Child: ...

    @abstractmethod
    async def is_ready(self) -> bool:
        """Whether it does what it is for."""

    async def start(self) -> None:
        """Start, or start again; return when it is ready. Raises `StartupError`."""
        self.child.start()
        await self.become_ready()

    async def become_ready(self) -> None:
        """Return when it is. Raises `StartupError`."""
        ends_at = time.monotonic() + READY_WITHIN_S
        while not await self.is_ready():
            if not self.child.is_running or time.monotonic() > ends_at:
                raise StartupError(f"{self.name} does not start; what it says is in {self.log}")
            await asyncio.sleep(0.05)

    async def kill(self) -> None:
        await self.child.kill()

    async def freeze(self) -> None:
        """Alive and connected, but silent."""
        self.child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.child.signal(signal.SIGCONT)

    async def close(self) -> None:
        """End it for good."""
        await self.child.kill()


class Redis(Service):
    """Keeps nothing on disk."""

    name = "redis"
    program = staticmethod(lambda: find_program("redis-server", "valkey-server"))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _make_child(self) -> Child:
        argv: list[str | Path] = [self.program() or "redis-server", "--port", str(self.port)]
        argv += ["--bind", "127.0.0.1", "--dir", self.folder, "--save", "", "--appendonly", "no"]
        return Child(self._reaper, argv, log=self.log, cwd=self.folder)

    async def is_ready(self) -> bool:
        return await connects(self.port, b"PING\r\n", b"+PONG")


class RabbitMQ(Service):
    """One node, with the user guest."""

    name = "rabbitmq"

    def __init__(self, reaper: Reaper, folder: Path) -> None:
        self._epmd_port = free_port()
        self._node_port = free_port()
        super().__init__(reaper, folder)
        (self.folder / "home").mkdir(mode=0o700)
        (self.folder / "rabbitmq.conf").write_text("log.console.level = warning\n")
        (self.folder / "plugins").write_text("[].\n")
        # As a child of ours: else the broker leaves one behind that nobody ends.
        epmd = [*self._environment(), find_program("epmd") or "epmd", "-port", str(self._epmd_port)]
        self._epmd = Child(reaper, epmd, log=self.log, cwd=self.folder)

    @staticmethod
    def program() -> Path | None:
        if find_program("epmd") is None:
            return None
        # Debian's in the PATH changes the user, and logs elsewhere.
        own = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        return own if own.exists() else find_program("rabbitmq-server")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    async def start(self) -> None:
        if not self._epmd.is_running:
            self._epmd.start()
            ends_at = time.monotonic() + READY_WITHIN_S
            while not await connects(self._epmd_port):
                if not self._epmd.is_running or time.monotonic() > ends_at:
                    raise StartupError(f"epmd does not start; what it says is in {self.log}")
                await asyncio.sleep(0.05)
        await super().start()

    async def close(self) -> None:
        await super().close()
        await self._epmd.kill()

    def _make_child(self) -> Child:
        argv = [*self._environment(), self.program() or "rabbitmq-server"]
        return Child(self._reaper, argv, log=self.log, cwd=self.folder)

    def _environment(self) -> Sequence[str | Path]:
        """The settings, and nothing of the machine's own."""
        folder = self.folder
        settings = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": folder / "home",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"torture{self._node_port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": self._node_port,
            "RABBITMQ_MNESIA_BASE": folder / "data",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": folder / "pid",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
        }
        return ["env", "-i", *(f"{name}={value}" for name, value in settings.items())]

    async def is_ready(self) -> bool:
        """A living process is not enough: it takes connections last."""
        return await connects(self.port, b"AMQP\x00\x00\x09\x01", b"\x01")


class MailServer(Service):
    """The sink of `sink`, which writes down each mail that it takes, before it says so."""

    name = "mail"

    @staticmethod
    def check() -> None:
        """Raises `StartupError` if it cannot be started."""
        if importlib.util.find_spec("aiosmtpd") is None:
            raise StartupError("the mail server of the torture needs aiosmtpd: pip install aiosmtpd")

    @property
    def taken(self) -> Path:
        """Where it writes them down: see `mailbox`."""
        return self.folder / "taken"

    def _make_child(self) -> Child:
        argv: list[str | Path] = [
            sys.executable,
            "-P",
            "-m",
            "server.torture.sink",
            str(self.port),
            self.taken,
        ]
        env = {"PYTHONPATH": str(PACKAGES)}
        return Child(self._reaper, argv, log=self.log, cwd=self.folder, env=env)

    async def is_ready(self) -> bool:
        return await connects(self.port, b"", b"220")
