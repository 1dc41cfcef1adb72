"""The server that is tortured: its settings, whether it serves, what it says of itself, and its disk and its clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.http_client import HTTPClient, NoReply, Reply
from server.torture.children import Child, Reaper, until
from server.torture.observed import write_shift
from server.torture.services import PACKAGES, STOP_WITHIN_S, Service

JWT_SECRET = "70" * 32
"""Signs the tokens of users."""

SETTINGS: Mapping[str, str] = {
    "NOTIFY_JWT_SECRET": JWT_SECRET,
    "NOTIFY_MONGODB_TIMEOUT_S": "3",
    # Clients that are this rude would wait longer for their limits than for the server.
    "NOTIFY_LIMITS_COMMANDS_PER_USER": "off",
    "NOTIFY_LIMITS_COMMANDS_PER_ADDRESS": "off",
    "NOTIFY_LIMITS_COMMANDS_PER_CONNECTION": "off",
    # What else takes minutes is to happen within seconds.
    "NOTIFY_CONNECTIONS_HEARTBEAT_S": "3",
    "NOTIFY_CONNECTIONS_SLOW_AFTER_S": "4",
    "NOTIFY_CONNECTIONS_QUEUE_BYTES": "64 KiB",
    "NOTIFY_CONNECTIONS_DISCONNECT_DELAY_S": "2",
    "NOTIFY_EMAIL_SENDER": "torture@example.invalid",
    "NOTIFY_EMAIL_TLS": "none",
    "NOTIFY_EMAIL_TIMEOUT_S": "3",
    "NOTIFY_EMAIL_LEASE_S": "15",
    "NOTIFY_EMAIL_RETRY_FIRST_S": "1",
    "NOTIFY_EMAIL_RETRY_MAX_S": "4",
}

SOME_S = 10.0
"""For one request that is to be answered at once."""

MAX_ANSWER_BYTES = 16 * 2**20


class Node(Service):
    """One process of the server, in a folder `name` of `folder`. `settings`: more of them, as environment variables."""

    launcher = "server.torture.observed"
    """The module by which it is started."""

    store_ports: Sequence[int] = ()
    """Of a store that listens on some, as this node knows them."""

    def __init__(
        self, reaper: Reaper, folder: Path, settings: Mapping[str, str], name: str = "server"
    ) -> None:
        self.name = name
        self._settings = {**SETTINGS, **settings}
        super().__init__(reaper, folder)
        write_shift(self.folder, 0.0)
        self.http = HTTPClient(max_body_bytes=MAX_ANSWER_BYTES, connections=64)

    def _make_child(self) -> Child:
        settings = {
            "PYTHONPATH": str(PACKAGES),
            "NOTIFY_APPLICATION_PORT": str(self.port),
            "NOTIFY_APPLICATION_DATA": str(self.folder / "data"),
            **self._settings,
        }
        argv: list[str | Path] = [sys.executable, "-P", "-m", self.launcher, self.folder, "serve"]
        return Child(self._reaper, argv, log=self.log, cwd=self.folder, env=settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def any(self) -> Node:
        """As `Nodes.any`."""
        return self

    async def is_ready(self) -> bool:
        """Whether it has its routes open; the store may be away again by now."""
        try:
            return (await self.http.get(f"{self.url}/client/notifications.js", 2.0)).status == 200
        except NoReply:
            return False

    async def restart(self) -> bool:
        """An orderly end, and a new start; whether the end was one."""
        ended_well = await self.child.stop(STOP_WITHIN_S)
        await self.start()
        return ended_well and self.child.returncode is None

    async def close(self) -> None:
        await super().close()
        self.http.close()

    # -- its disk and its clock ------------------------------------------------------------------------------
    def fill_disk(self, free_bytes: int) -> None:
        """Let no file of it grow beyond so many bytes: writes fail (EFBIG), as on a full disk, and nobody has to be
        root for it."""
        _, most = resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (free_bytes, most))

    def free_disk(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            _, most = resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (most, most))

    def shift_clock(self, seconds: float) -> None:
        """By how much it differs from the machine's, also after a restart."""
        write_shift(self.folder, seconds)

    # -- what it says of itself ------------------------------------------------------------------------------
    async def get(self, path: str, token: str | None = None) -> Reply:
        """`token`: of the user who asks. Raises OSError if there is no answer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            return await self.http.get(f"{self.url}{path}", SOME_S, headers)
        except NoReply as error:
            raise OSError(str(error)) from error

    async def figures(self) -> dict[str, float]:
        """Every figure of /metrics, by its name with its labels. Raises OSError."""
        try:
            reply = await self.http.get(f"{self.url}/metrics", SOME_S, {"Accept": "text/plain"})
        except NoReply as error:
            raise OSError(str(error)) from error
        lines = (
            line.rpartition(" ") for line in reply.body.decode().splitlines() if not line.startswith("#")
        )
        return {name: float(value) for name, _, value in lines}

    async def tasks(self) -> list[str]:
        """The names of its tasks. Raises OSError if it does not say."""
        told = self.folder / "tasks"
        told.unlink(missing_ok=True)
        self.child.signal(signal.SIGUSR1)
        if not await until(told.exists, SOME_S):
            raise OSError("nothing about its tasks")
        return [name for name, _ in json.loads(told.read_text())]

    def open_files(self) -> dict[str, int]:
        """How many descriptors it has, by their kind; connections to the store, of which there is a pool, apart."""
        counts: dict[str, int] = {}
        pooled = {each for port in self.store_ports for each in self._sockets_to(port)}
        folder = Path(f"/proc/{self.child.pid}/fd")
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                kind = "file" if target.startswith("/") else target.partition(":")[0]
                kind = "pooled socket" if target in pooled else kind
                counts[kind] = counts.get(kind, 0) + 1
        return counts

    def _sockets_to(self, port: int) -> set[str]:
        """As /proc/PID/fd names them."""
        lines = Path(f"/proc/{self.child.pid}/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        return {f"socket:[{row[9]}]" for row in rows if int(row[2].partition(":")[2], 16) == port}

    def status(self) -> dict[str, str]:
        """/proc/PID/status."""
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def serves(self, timeout_s: float) -> bool:
        """Wait until it answers that it is ready, the store too; False if that takes longer."""
        ends_at = time.monotonic() + timeout_s
        while time.monotonic() < ends_at:
            with contextlib.suppress(OSError):
                if (await self.get("/readyz")).status == 200:
                    return True
            await asyncio.sleep(0.1)
        return False
