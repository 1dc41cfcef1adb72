"""Three nodes as people run them: behind HAProxy, over a replica set of three and a backplane, all of it real; each
node with ways of its own to what it shares with the others, which a test may cut."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from server.torture.ways import Ways
from tests.support.feeds import SETTINGS
from tests.support.mongod import ReplicaSet
from tests.support.ports import free_port
from tests.support.processes import Process, wait_until
from tests.support.proxies import shipped
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer
from tests.support.servers import server_program

NAMES = ("one", "two", "three")


class HAProxy(RunningServer):
    """Debian's, with the configuration of deploy/, in which nothing but addresses is another one, and no TLS. To
    clients it is a server."""

    def __init__(self, ports: list[int]) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="test-haproxy-"))
        addresses = dict(zip(NAMES, ports, strict=True))
        listening = "bind :443 ssl crt /etc/ssl/notifications.example.org.pem alpn h2,http/1.1"
        text = shipped("haproxy.cfg", **{listening: f"bind 127.0.0.1:{self.port}"})
        for number, (name, port) in enumerate(addresses.items(), 1):
            before = f"server {name} 10.0.0.{number}:8587"
            assert text.count(before) == 3
            text = text.replace(before, f"server {name} 127.0.0.1:{port}")
        (self.folder / "haproxy.cfg").write_text(text.replace("maxconn 100000", "maxconn 1000"))
        program = server_program("haproxy", "haproxy")
        self._process = Process([program, "-db", "-f", self.folder / "haproxy.cfg"], log=self.folder / "log")

    def start(self) -> None:
        self._process.start()
        wait_until(self._is_ready, "HAProxy leading to a node")

    def close(self) -> None:
        self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Network:
    """The ways of all nodes, in a thread with a loop of its own."""

    def __init__(self, ways: list[Ways]) -> None:
        self._ways = ways
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def open(self) -> None:
        self._thread.start()
        for ways in self._ways:
            self._do(ways.open())

    def cut(self, node: int, *places: str, is_silent: bool = False) -> None:
        """See `Ways.cut`."""
        self._do(self._now(lambda: self._ways[node].cut(places, is_silent=is_silent)))

    def mend(self) -> None:
        for ways in self._ways:
            self._do(self._now(ways.mend))

    def close(self) -> None:
        for ways in self._ways:
            self._do(ways.close())
        self._do(self._end_connections())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _now(do: Any) -> None:
        do()

    @staticmethod
    async def _end_connections() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


class Cluster:
    """`nodes`: each is also a server by itself; `front`: where clients come in. As a context manager it starts, and is
    ended for sure."""

    def __init__(
        self, folder: Path, backplane: str, mongod: ReplicaSet, redis: RedisServer, **more: str
    ) -> None:
        self.backplane = backplane
        self.mongod = mongod
        self.redis = redis
        self._ways = [Ways(redis.port, mongod.ports, "rs3", free_port) for _ in NAMES]
        self.network = Network(self._ways)
        common = {
            **SETTINGS,
            "NOTIFY_MONGODB_DB": f"test_{uuid.uuid4().hex[:16]}",
            "NOTIFY_MONGODB_TIMEOUT_S": "3",
            "NOTIFY_CLUSTER_BACKPLANE": backplane,
            "NOTIFY_CONNECTIONS_HEARTBEAT_S": "10",
            "NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1",
            **more,
        }
        self.nodes = []
        for name, ways in zip(NAMES, self._ways, strict=True):
            (folder / name).mkdir()
            settings = common | {"NOTIFY_MONGODB_URL": ways.mongodb_url}
            if backplane == "redis":
                settings["NOTIFY_CLUSTER_REDIS_URL"] = ways.redis_url
            self.nodes.append(RunningServer(folder / name, **settings))
        self.front = HAProxy([node.port for node in self.nodes])
        self._stack = ExitStack()

    def heal(self) -> None:
        """Whatever was broken runs again; return when all nodes know of each other."""
        self.network.mend()
        if not self.redis.process.is_running:
            self.redis.start()
        self.mongod.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(RunningServer.start, [node for node in self.nodes if not node.is_running]))
        for node in self.nodes:
            wait_until(lambda node=node: is_well(node), f"the node on port {node.port} being well")  # type: ignore[misc]

    def __enter__(self) -> Self:
        try:
            self.network.open()
            self._stack.callback(self.network.close)
            # The first makes the indexes, for which the others would wait anyway.
            for node in self.nodes:
                self._stack.callback(node.kill)
            self.nodes[0].start()
            self.heal()
            self._stack.callback(self.front.close)
            self.front.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def is_well(node: RunningServer) -> bool:
    """It, its store and its way to the other nodes."""
    answer = node.get("/readyz")
    return answer.status == 200 and all(
        each["status"] == "up" for each in answer.json()["dependencies"].values()
    )
