"""A real mongod for the tests: in a fresh folder, on a free port, alone or as a replica set of one member, or of three.

Tests may stop, kill, freeze and restart it; it keeps its port and its data until close().
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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

    def __init__(self, *, replica_set: str | None = None, is_one_of_several: bool = False) -> None:
        """`replica_set`: the name of the set of which this becomes the only member; None: a standalone
        server. `is_one_of_several`: somebody else makes the set."""
        self.replica_set = replica_set
        self._is_one_of_several = is_one_of_several
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
            if not self._is_one_of_several:
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

    @property
    def is_running(self) -> bool:
        return self._process.is_running

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


class ReplicaSet:
    """Three members, of which any may be killed, frozen and started again. They elect a primary within seconds."""

    def __init__(self, name: str = "rs3") -> None:
        self._name = name
        self.members = [Mongod(replica_set=name, is_one_of_several=True) for _ in range(3)]

    @property
    def url(self) -> str:
        return f"mongodb://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/?replicaSet={self._name}"

    @property
    def ports(self) -> list[int]:
        return [member.port for member in self.members]

    def start(self) -> None:
        """Those that do not run; return when all are well."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Mongod.start, [member for member in self.members if not member.is_running]))
        with self.members[0].client() as client:
            if not client.admin.command("hello").get("setName"):
                hosts = [{"_id": place, "host": f"127.0.0.1:{port}"} for place, port in enumerate(self.ports)]
                # By default they miss a primary after 10 s.
                settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
                wanted = {"_id": self._name, "members": hosts, "settings": settings}
                client.admin.command("replSetInitiate", wanted)
        self._wait_for_primary(self.members)

    def kill_primary(self) -> None:
        """SIGKILL; return when the others have another one."""
        primary = self.primary()
        primary.kill()
        self._wait_for_primary([member for member in self.members if member is not primary])

    def step_down(self) -> None:
        """An orderly change of the primary."""
        with self.primary().client() as client:
            client.admin.command("replSetStepDown", 10, secondaryCatchUpPeriodSecs=5)
        self._wait_for_primary(self.members)

    def primary(self) -> Mongod:
        return self._wait_for_primary(self.members, of_all=False)

    def close(self) -> None:
        for member in self.members:
            member.close()

    def _wait_for_primary(self, members: Sequence[Mongod], *, of_all: bool = True) -> Mongod:
        """`of_all`: until the others follow it."""
        found: list[Mongod] = []

        def agree() -> bool:
            roles = [_role(member) for member in members]
            found[:] = [member for member, role in zip(members, roles, strict=True) if role == "primary"]
            return len(found) == 1 and (not of_all or None not in roles)

        wait_until(agree, "the replica set having a primary")
        return found[0]

    def __enter__(self) -> ReplicaSet:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _role(member: Mongod) -> str | None:
    try:
        with member.client(timeout_ms=500) as client:
            said = client.admin.command("hello")
    except PyMongoError:
        return None
    return "primary" if said.get("isWritablePrimary") else "secondary" if said.get("secondary") else None


@dataclass(frozen=True)
class MongoDatabase:
    """A fresh, empty database; dropped after the test."""

    url: str
    """The address of the server, without a database."""
    name: str
    """The name of the database."""
