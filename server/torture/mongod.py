"""MongoDB of its own: a replica set of one member or of several; or a database of its own on one that is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from server.errors import StartupError
from server.torture.children import Child, Reaper
from server.torture.services import READY_WITHIN_S, Service, find_program

SET = "torture"

ELECTION_MS = 2000
"""Without the primary for so long, the others elect one. By default that takes them 10 s."""

STEPPED_DOWN_S = 5
"""A primary that has stepped down does not stand for so long."""


class Mongod(Service):
    """Keeps its data and its port."""

    name = "mongod"

    @staticmethod
    def program() -> Path | None:
        """$MONGODB_BIN, else that of the PATH."""
        return find_program(os.environ.get("MONGODB_BIN") or "mongod")

    @property
    def ports(self) -> tuple[int, ...]:
        """Of all members."""
        return (self.port,)

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={SET}"

    def _make_child(self) -> Child:
        data = self.folder / "data"
        data.mkdir()
        argv: list[str | Path] = [self.program() or "mongod", "--dbpath", data, "--port", str(self.port)]
        argv += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
        argv += ["--replSet", SET, "--oplogSize", "64"]
        # Else it sets aside 300 MB of disk for its journal.
        argv += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]
        argv += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        return Child(self._reaper, argv, log=self.log, cwd=self.folder)

    async def is_ready(self) -> bool:
        """Whether it takes writes."""
        try:
            said = await self.ask("hello")
            if not said.get("setName") and not said.get("isWritablePrimary"):
                await self.initiate([self])
            return bool(said.get("isWritablePrimary"))
        except PyMongoError:
            return False

    async def initiate(self, members: Sequence[Mongod]) -> None:
        """Make a replica set of these. Raises PyMongoError."""
        hosts = [{"_id": number, "host": f"127.0.0.1:{each.port}"} for number, each in enumerate(members)]
        settings = {"electionTimeoutMillis": ELECTION_MS, "heartbeatIntervalMillis": ELECTION_MS // 4}
        await self.ask("replSetInitiate", {"_id": SET, "members": hosts, "settings": settings})

    async def ask(self, command: str, value: Any = 1, **options: Any) -> dict[str, Any]:
        """The answer of this member. Raises PyMongoError."""
        async with self._client() as client:
            answer: dict[str, Any] = await client.admin.command(command, value, **options)
            return answer

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            "127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=500, socketTimeoutMS=5000
        )
        try:
            yield client
        finally:
            await client.close()


class Member(Mongod):
    """One of several, `number` of them."""

    def __init__(self, reaper: Reaper, folder: Path, number: int) -> None:
        self.name = f"mongod-{number}"
        super().__init__(reaper, folder)

    async def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return bool(await self.ask("hello"))
        except PyMongoError:
            return False


class ReplicaSet:
    """Several members. What is broken is the one that is the primary at that moment."""

    name = "mongod"

    def __init__(self, reaper: Reaper, folder: Path, count: int) -> None:
        self.members = [Member(reaper, folder, number) for number in range(1, count + 1)]
        self._frozen: Member | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(member.port for member in self.members)

    @property
    def url(self) -> str:
        return f"mongodb://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/?replicaSet={SET}"

    async def start(self) -> None:
        """Those that do not run; return when all follow one primary. Raises `StartupError`."""
        await asyncio.gather(*(each.start() for each in self.members if not each.child.is_running))
        await self._unite()
        await self._agree(self.members)

    async def _unite(self) -> None:
        """Make a replica set of them, unless they are one. Asked again and again: on a busy machine an answer may be
        late."""
        ends_at = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < ends_at:
            with contextlib.suppress(PyMongoError):
                if (await self.members[0].ask("hello")).get("setName"):
                    return
                await self.members[0].initiate(self.members)
            await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """The primary; return when the others have another one."""
        primary = await self._primary()
        await primary.kill()
        await self._agree([each for each in self.members if each is not primary])

    async def freeze(self) -> None:
        self._frozen = await self._primary()
        await self._frozen.freeze()

    def thaw(self) -> None:
        if self._frozen is not None:
            self._frozen.thaw()

    async def step_down(self) -> None:
        """An orderly change of the primary."""
        primary = await self._primary()
        with contextlib.suppress(PyMongoError):  # its connections may end before it answers
            await primary.ask("replSetStepDown", STEPPED_DOWN_S, secondaryCatchUpPeriodSecs=STEPPED_DOWN_S)
        await self._agree(self.members)

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in self.members))

    async def _primary(self) -> Member:
        """Raises `StartupError` if there is none for long."""
        [primary, *_] = await self._agree(self.members, of_all=False)
        return primary

    async def _agree(self, members: Sequence[Member], *, of_all: bool = True) -> list[Member]:
        """Return when one of these is the primary, first in the list, and the rest (`of_all`) are secondaries."""
        ends_at = time.monotonic() + READY_WITHIN_S
        while True:
            roles = await asyncio.gather(*map(_role, members))
            primaries = [member for member, role in zip(members, roles, strict=True) if role == "primary"]
            if len(primaries) == 1 and (not of_all or None not in roles):
                return [*primaries, *(member for member in members if member not in primaries)]
            if time.monotonic() > ends_at:
                raise StartupError(f"the replica set has no primary; roles: {roles}")
            await asyncio.sleep(0.05)


async def _role(member: Member) -> str | None:
    """ "primary", "secondary"; None: neither."""
    try:
        said = await member.ask("hello")
    except PyMongoError:
        return None
    return "primary" if said.get("isWritablePrimary") else "secondary" if said.get("secondary") else None


async def drop_database(url: str, name: str) -> None:
    """Leave nothing behind where others live."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url, serverSelectionTimeoutMS=10_000)
    try:
        await client.drop_database(name)
    finally:
        await client.close()
