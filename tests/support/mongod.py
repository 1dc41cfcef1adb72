"""A real mongod for the tests: in a fresh folder, on a free port, alone or as a replica set of one member.

Tests may stop, kill, freeze and restart it; it keeps its port and its data until close().
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.support.available import unavailable
from tests.support.ports import free_port
from tests.support.processes import Process, wait_until

_ROOT = Path(__file__).resolve().parents[2]
_EXIT_PORT_TAKEN = 48


def mongod_binary() -> Path:
    """$MONGODB_BIN, else the one that scripts/test put into .cache/, else the one of the PATH."""
    named = os.environ.get("MONGODB_BIN")
    ours = _ROOT / ".cache/mongod/fiftyone/db/bin/mongod"
    found = named or (str(ours) if ours.exists() else shutil.which("mongod"))
    if found is None:
        unavailable("mongod", "there is no mongod")
    return Path(found)


class Mongod:
    """One mongod process and its folder."""

    def __init__(self, *, replica_set: str | None = None) -> None:
        """`replica_set`: the name of the set of which this becomes the only member; None: a standalone
        server."""
        self.replica_set = replica_set
        self.folder = Path(tempfile.mkdtemp(prefix="test-mongod-"))
        self._binary = mongod_binary()
        self._choose_port()

    @property
    def url(self) -> str:
        """The address of the server, without a database; with the name of the set if it has one."""
        return f"mongodb://127.0.0.1:{self.port}/" + (
            f"?replicaSet={self.replica_set}" if self.replica_set else ""
        )

    def start(self) -> None:
        """Start, or start again with the same data on the same port; return when it takes writes."""
        self._process.start()
        try:
            while not self._wait_for_answer():
                self._choose_port()
                self._process.start()
            self._wait_for_writes()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> int:
        """An orderly end (SIGTERM); its return code."""
        return self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._process.freeze()

    def thaw(self) -> None:
        self._process.thaw()

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, timeout_ms: int = 30000) -> MongoClient[dict[str, Any]]:
        """A client of the tests' own, straight to this member; the caller closes it."""
        return MongoClient(
            "127.0.0.1",
            self.port,
            directConnection=True,
            tz_aware=True,
            serverSelectionTimeoutMS=timeout_ms,
            socketTimeoutMS=timeout_ms,
        )

    def _choose_port(self) -> None:
        self.port = free_port()
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        argv: list[str | Path] = [self._binary, "--dbpath", data, "--port", str(self.port)]
        argv += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.5"]
        # Else it sets aside 300 MB of disk for its journal.
        argv += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]
        argv += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        # Else an orderly stop takes 15 s in a replica set.
        argv += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"]
        if self.replica_set:
            argv += ["--replSet", self.replica_set, "--oplogSize", "64"]
        self._process = Process(argv, log=self.folder / "mongod.log")

    def _wait_for_answer(self) -> bool:
        """False if its port was taken in the meantime. Raises RuntimeError if it ends for another reason."""
        with self.client(timeout_ms=200) as client:

            def answers() -> bool:
                if not self._process.is_running:
                    return True
                try:
                    return bool(client.admin.command("ping"))
                except PyMongoError:
                    return False

            wait_until(answers, "mongod answering")
        code = self._process.returncode
        if code == _EXIT_PORT_TAKEN and not (self.folder / "initiated").exists():
            return False
        if code is not None:
            raise RuntimeError(f"mongod ended with {code}: {self._process.output()[-2000:]}")
        return True

    def _wait_for_writes(self) -> None:
        with self.client() as client:
            initiated = self.folder / "initiated"
            if self.replica_set and not initiated.exists():
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                client.admin.command("replSetInitiate", {"_id": self.replica_set, "members": [member]})
            initiated.touch()
            wait_until(lambda: client.admin.command("hello")["isWritablePrimary"], "mongod taking writes")

    def __enter__(self) -> Mongod:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class MongoDatabase:
    """A fresh, empty database; dropped after the test."""

    url: str
    """The address of the server, without a database."""
    name: str
    """The name of the database."""
