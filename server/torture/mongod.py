"""A mongod of its own, as a replica set of one member; or a database of its own on one that is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from server.torture.children import Child
from server.torture.services import Service, find_program


class Mongod(Service):
    """Keeps its data and its port."""

    name = "mongod"

    @staticmethod
    def program() -> Path | None:
        """$MONGODB_BIN, else that of the PATH."""
        return find_program(os.environ.get("MONGODB_BIN") or "mongod")

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet=torture"

    def _make_child(self) -> Child:
        data = self.folder / "data"
        data.mkdir()
        argv: list[str | Path] = [self.program() or "mongod", "--dbpath", data, "--port", str(self.port)]
        argv += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
        argv += ["--replSet", "torture", "--oplogSize", "64"]
        # Else it sets aside 300 MB of disk for its journal.
        argv += ["--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]
        argv += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        return Child(self._reaper, argv, log=self.log, cwd=self.folder)

    async def is_ready(self) -> bool:
        """Whether it takes writes."""
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            "127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=500, socketTimeoutMS=5000
        )
        try:
            said = await client.admin.command("hello")
            if not said.get("setName") and not said.get("isWritablePrimary"):
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                await client.admin.command("replSetInitiate", {"_id": "torture", "members": [member]})
            return bool(said.get("isWritablePrimary"))
        except PyMongoError:
            return False
        finally:
            await client.close()


async def drop_database(url: str, name: str) -> None:
    """Leave nothing behind where others live."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url, serverSelectionTimeoutMS=10_000)
    try:
        await client.drop_database(name)
    finally:
        await client.close()
