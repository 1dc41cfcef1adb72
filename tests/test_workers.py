"""`notification-server serve --workers 2`: several processes on the same ports, and one over them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from server.workers import tally as tally_module
from server.workers import worker
from server.workers.channel import VARIABLE, Channel, Given, line
from server.workers.child import Child
from server.workers.tally import Tally
from tests.support.client import SocketClient
from tests.support.feeds import SETTINGS, user_token
from tests.support.mongod import MongoDatabase
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer
from tests.support.workers import WorkersServer, connections, is_alive

PUBLISHED = "notification_published_total"


def on_mongodb(database: MongoDatabase) -> dict[str, str]:
    return {**SETTINGS, "NOTIFY_MONGODB_URL": database.url, "NOTIFY_MONGODB_DB": database.name}


@pytest.fixture
def server(tmp_path: Path, mongo_database: MongoDatabase) -> Iterator[WorkersServer]:
    """Two workers, with the backplane that is chosen for them."""
    with WorkersServer(tmp_path, **on_mongodb(mongo_database)) as server:
        yield server


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def figure(server: RunningServer, name: str, label: str = "") -> float:
    """The sum of the samples of this name, as they are now, and not as one of the workers remembers."""
    time.sleep(1.1)  # as long as an answer is given again
    text = server.request("GET", "/metrics", headers={"Accept": "text/plain"}).body.decode()
    samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for labels, value in samples if label in labels)


async def on_both(server: WorkersServer, stack: AsyncExitStack, user: str) -> list[SocketClient]:
    """Connections of a user, at least one on each worker."""
    clients: list[SocketClient] = []
    while not all(connections(pid, local=server.port) for pid in server.workers):
        assert len(clients) < 50, "all of them come to one worker"
        client = await stack.enter_async_context(SocketClient(server))
        await client.join_by_token(user_token(user))
        clients.append(client)
    return clients


# -- serving together ----------------------------------------------------------------------------------------


@pytest.fixture(params=["mongodb", "redis"])
async def on_each_backplane(
    request: pytest.FixtureRequest, tmp_path: Path, mongo_database: MongoDatabase
) -> AsyncIterator[WorkersServer]:
    settings = on_mongodb(mongo_database)
    if request.param == "redis":
        redis: RedisServer = request.getfixturevalue("own_redis_server")
        settings |= {"NOTIFY_CLUSTER_BACKPLANE": "redis", "NOTIFY_CLUSTER_REDIS_URL": redis.url()}
    with WorkersServer(tmp_path, **settings) as server:
        yield server


async def test_a_users_connections_are_on_all_workers_and_get_each_push(
    on_each_backplane: WorkersServer, user: str
) -> None:
    """Whichever worker it was published at; and what one screen has seen, all have."""
    server = on_each_backplane
    async with AsyncExitStack() as stack:
        clients = await on_both(server, stack, user)
        server.wait_for("backplane: connected to", 2)
        for number in range(8):
            server.must_notify(user, content=str(number))
        ids = []
        for client in clients:
            got: dict[str, str] = {}
            while len(got) < 8:
                got |= {each["content"]: each["_id"] for each in await client.next("notification")}
            ids.append(got)
        assert all(each == ids[0] for each in ids)
        await clients[0].send("seen", {"ids": [ids[0]["0"]]})
        assert [await client.next("seen") for client in clients] == [[ids[0]["0"]]] * len(clients)
    assert figure(server, PUBLISHED) == 8


def test_all_ports_and_one_announcement(tmp_path: Path, mongo_database: MongoDatabase) -> None:
    """Further ports and the publishing port are shared, too; the manager hears once that it serves, and so do people;
    whoever of them is asked is ready; a log as JSON has the number of the worker."""
    also, publish = free_port(), free_port()
    settings = {
        "NOTIFY_APPLICATION_ALSO_LISTEN": str(also),
        "NOTIFY_APPLICATION_PUBLISH_PORT": str(publish),
        "NOTIFY_LOG_FORMAT": "json",
        "NOTIFY_SOCKET": str(tmp_path / "manager"),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(settings["NOTIFY_SOCKET"])
        manager.settimeout(30)
        with WorkersServer(tmp_path, **on_mongodb(mongo_database), **settings) as server:
            assert manager.recv(100) == b"READY=1"
            assert (
                len(server.said("^  store "))
                == len(server.said(f"^  publish  http://127.0.0.1:{publish}/"))
                == 1
            )
            for port in [server.port, also] * 4:
                assert _status(port, "GET", "/readyz") == _status(port, "GET", "/healthz") == 200
            body = json.dumps({"users": [{"id": "ann"}], "content": "x"})
            assert [_status(publish, "POST", "/notify", body) for _ in range(8)] == [200] * 8
            server.wait_for(r'"logger": "server.cluster.link", .*"worker": [12]', 2)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def _status(port: int, method: str, path: str, body: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


# -- what cannot be ------------------------------------------------------------------------------------------


def test_the_embedded_store_is_for_one_process(tmp_path: Path) -> None:
    """One sentence, and the exit code of a wrong configuration; whether the option says it or the environment."""
    for name, arguments, settings in [
        ("--workers", ["--workers", "2"], {}),
        ("NOTIFY_APPLICATION_WORKERS", [], {"NOTIFY_APPLICATION_WORKERS": "2"}),
    ]:
        done = RunningServer(tmp_path, **settings).run("serve", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"notification-server: {name}: 2 workers need a store that they can share, and the embedded store is for"
            " one process; set url of [MONGODB], or workers=1\n"
        )


def test_one_worker_is_a_server_without_a_supervisor(tmp_path: Path) -> None:
    """The option wins over the configuration; it is that process that serves."""
    with RunningServer(tmp_path, arguments=["--workers", "1"], NOTIFY_APPLICATION_WORKERS="2") as server:
        assert connections(server.pid, local=server.port) == 0
        with socket.create_connection(("127.0.0.1", server.port)):
            wait_until(lambda: connections(server.pid, local=server.port) == 1, "the connection")
        assert "[worker" not in server.log and "supervises" not in server.log


def test_one_process_does_not_end_by_what_is_for_workers(tmp_path: Path) -> None:
    """SIGUSR2, which one script may send on all machines."""
    with RunningServer(tmp_path) as server:
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: "SIGUSR2 replaces workers one by one" in server.log, "what is told of it")
        assert server.notify("ann", content="x").status == 200


def test_a_port_that_is_taken_is_said_once(tmp_path: Path, mongo_database: MongoDatabase) -> None:
    """By whichever program; and so is what only a worker finds out."""
    server = WorkersServer(tmp_path, **on_mongodb(mongo_database))
    with socket.create_server(("127.0.0.1", server.port)):
        done = server.run("serve", "--workers", "2")
    assert done.returncode == 1
    assert done.stderr.count("is in use by another program") == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = WorkersServer(
            tmp_path, **on_mongodb(mongo_database), NOTIFY_APPLICATION_PUBLISH_PORT=str(port)
        )
        done = server.run("serve", "--workers", "2")
    assert f"port {port} on 127.0.0.1 is in use by another program" in done.stderr
    assert "set another publish_port under [APPLICATION]" in done.stderr
    for name in ("cert", "key"):
        (tmp_path / f"{name}.pem").write_text("nonsense")
    tls = {"NOTIFY_TLS_CERT": str(tmp_path / "cert.pem"), "NOTIFY_TLS_KEY": str(tmp_path / "key.pem")}
    done = WorkersServer(tmp_path, **on_mongodb(mongo_database), **tls).run("serve", "--workers", "2")
    assert done.returncode == 1
    assert len(re.findall("^notification-server: ", done.stderr, re.MULTILINE)) == 1


# -- dying ---------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_killed_is_started_anew_and_nothing_is_lost(
    server: WorkersServer, user: str
) -> None:
    """Its clients come back to whoever is there and have all; the others notice nothing; no sum goes back."""
    async with AsyncExitStack() as stack:
        clients = await on_both(server, stack, user)
        server.must_notify(user, content="before")
        assert figure(server, PUBLISHED) == 1
        victim, other = server.workers
        os.kill(victim, signal.SIGKILL)
        server.wait_for(rf"worker \d \(pid {victim}\) was ended by SIGKILL; it is started anew")
        server.must_notify(user, content="meanwhile")
        staying = 0
        for client in clients:
            try:
                got: set[str] = set()
                while "meanwhile" not in got:
                    got |= {each["content"] for each in await client.next("notification")}
                staying += 1
            except ConnectionClosed:
                again = await stack.enter_async_context(SocketClient(server))
                unseen = await again.join_by_token(user_token(user))
                assert {each["content"] for each in unseen} == {"before", "meanwhile"}
        assert 0 < staying < len(clients)
        server.wait_for(r"\(pid \d+\) serves$", 3)
        assert other in server.workers and victim not in server.workers and len(server.workers) == 2
        server.must_notify(user, content="after")
        assert figure(server, PUBLISHED) == 3
        assert figure(server, "notification_dependency_up", 'dependency="store"') == 1


def test_a_worker_that_keeps_dying_is_tried_less_and_less_often(server: WorkersServer) -> None:
    """The others serve; as soon as it can live, it does."""
    fault = server.spoil(2)
    second = int(server.said(r"worker 2 \(pid (\d+)\) serves")[0])
    os.kill(second, signal.SIGKILL)
    dying = r"worker 2 \(pid \d+\) ended with exit code 7 before it served; it is started anew in (\S+) s"
    server.wait_for(dying, 4)
    assert [server.notify("ann", content="x").status for _ in range(10)] == [200] * 10
    delays = [float(text) for text in server.said(dying)]
    assert delays == sorted(delays) and delays[-1] > delays[0]
    fault.unlink()
    server.wait_for(r"worker 2 \(pid \d+\) serves", 2)


def test_a_mistake_in_the_configuration_ends_nobody_who_serves(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """As it would at the start: a worker that finds it is tried again, until it is mended."""
    file = tmp_path / "config.ini"
    file.write_text("[LOG]\nlevel=info\n")
    with WorkersServer(tmp_path, **on_mongodb(mongo_database)) as server:
        first = int(server.said(r"worker 1 \(pid (\d+)\) serves")[0])
        file.write_text("[LOG]\nlevel=loud\n")
        os.kill(first, signal.SIGKILL)
        server.wait_for(r"worker 1 \(pid \d+\) ended with exit code 2 before it served; it is started anew")
        server.must_notify("ann", content="x")
        file.write_text("[LOG]\nlevel=info\n")
        server.wait_for(r"worker 1 \(pid \d+\) serves", 2)
        assert server.stop() == 0


def test_another_number_of_workers_waits_for_a_restart(tmp_path: Path, mongo_database: MongoDatabase) -> None:
    """A worker that is started before that does not take itself for the only one: it tells the others what is new."""
    file = tmp_path / "config.ini"
    file.write_text("[APPLICATION]\nworkers=2\n")
    with WorkersServer(tmp_path, option=(), **on_mongodb(mongo_database)) as server:
        server.wait_for("backplane: connected to MongoDB", 2)
        file.write_text("[APPLICATION]\nworkers=1\n")
        os.kill(server.workers[0], signal.SIGKILL)
        server.wait_for(r"\(pid \d+\) serves$", 3)
        server.wait_for("backplane: connected to MongoDB", 3)
        server.tell(signal.SIGHUP)
        server.wait_for(r"these wait for a restart: .*\[APPLICATION\] workers", 2)


def test_only_the_first_worker_says_at_the_start_that_it_cannot_be(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """What is wrong with another one is wrong with that one alone."""
    fault = """
if given.get("number") == 2 and not (Path(__file__).parent / "tried").exists():
    (Path(__file__).parent / "tried").touch()
    os._exit(1)
"""
    with WorkersServer(tmp_path, fault=fault, **on_mongodb(mongo_database)) as server:
        assert len(server.said(r"worker 2 \(pid \d+\) ended with exit code 1 before it served")) == 1
        server.must_notify("ann", content="x")


def test_a_worker_that_hangs_is_killed_and_started_anew(server: WorkersServer) -> None:
    """A part of all connections would wait for it for ever."""
    hanging, well = server.workers
    server.hang(hanging)
    server.wait_for(rf"worker \d \(pid {hanging}\) has given no sign of life for \d+ s, so it is killed")
    server.wait_for(r"worker \d \(pid \d+\) serves", 3)
    assert well in server.workers and hanging not in server.workers
    assert [server.notify("ann", content="x").status for _ in range(10)] == [200] * 10


@pytest.mark.parametrize("place", ["before it takes orders", "while it comes up"])
def test_a_worker_that_hangs_before_it_serves_is_killed_and_started_anew(
    tmp_path: Path, mongo_database: MongoDatabase, place: str
) -> None:
    """As one that dies: after a pause, again and again, until it serves."""
    fault = """
from server.workers import signs
signs.SIGN_S = 0.4
if given and (Path(__file__).parent / f"hang-{given['number']}").exists():
    from server.app import Server
    async def hang(*_):
        time.sleep(600)
    Server.run = hang
"""
    with WorkersServer(tmp_path, fault=fault, **on_mongodb(mongo_database)) as server:
        victim = int(server.said(r"worker 1 \(pid (\d+)\) serves")[0])
        if place == "while it comes up":
            cause = tmp_path / "hang-1"
            cause.touch()
        else:
            cause = server.hold(1)
        os.kill(victim, signal.SIGKILL)
        hanging = r"worker 1 \(pid (\d+)\) has given no sign of life for 8 s and does not serve yet, so it is killed$"
        server.wait_for(hanging)
        first = int(server.said(hanging)[0])
        server.wait_for(
            rf"worker 1 \(pid {first}\) was ended by SIGKILL before it served; it is started anew in \S+ s"
        )
        assert [server.notify("ann", content="x").status for _ in range(10)] == [200] * 10
        cause.unlink()
        server.wait_for(r"worker 1 \(pid \d+\) serves$", 2)


async def test_the_lease_of_a_dead_worker_is_taken_over(
    tmp_path: Path, mongo_database: MongoDatabase, own_redis_server: RedisServer, user: str
) -> None:
    """One worker listens to Redis, and nothing is stored twice; when that one dies, another one does."""
    settings = {**on_mongodb(mongo_database), "NOTIFY_REDIS_HUB_URL": own_redis_server.url()}
    with WorkersServer(tmp_path, **settings) as server:
        port = own_redis_server.port

        def publish(content: str) -> bool:
            return own_redis_server.run("PUBLISH", f"user_noti:{user}", json.dumps({"n": content})) == "1"

        def listening() -> list[int]:
            return [pid for pid in server.workers if connections(pid, remote=port)]

        wait_until(lambda: publish("one"), "somebody who listens")
        await asyncio.to_thread(server.wait_for, r"\(pid \d+\) serves$", 2)
        wait_until(
            lambda: figure(server, PUBLISHED) == 1, "its being stored"
        )  # else it would be lost with the worker
        [holder] = listening()
        os.kill(holder, signal.SIGKILL)
        wait_until(lambda: holder not in server.workers and bool(listening()), "somebody who listens again")
        wait_until(lambda: publish("two"), "somebody who listens again")
        async with SocketClient(server) as client:
            unseen = await client.join_by_token(user_token(user))
            while len(unseen) < 2:
                unseen += await client.next("notification")
            assert len(unseen) == 2 and len(listening()) == 1


# -- being told ----------------------------------------------------------------------------------------------


class Callers:
    """Backends that publish all the while, over connections that they keep: who finds one closed tries once more on
    another. And one who comes anew each time."""

    def __init__(self, port: int) -> None:
        self.answers: list[object] = []
        self.published = 0
        self._counting = threading.Lock()
        self._port = port
        self._is_over = threading.Event()
        work = [self._keep] * 3 + [self._come_anew]
        self._threads = [threading.Thread(target=each) for each in work]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _keep(self) -> None:
        connection = self._connect()
        while not self._is_over.wait(0.02):
            try:
                self._publish(connection)
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = self._connect()
                try:
                    self._publish(connection)
                except (OSError, http.client.HTTPException) as error:
                    self.answers.append(error)
        connection.close()

    def _publish(self, connection: http.client.HTTPConnection) -> None:
        body = json.dumps({"users": [{"id": "ann"}], "content": "x"})
        connection.request("POST", "/notify", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        with self._counting:
            self.published += 1
        self.answers.append(answer.status)

    def _come_anew(self) -> None:
        while not self._is_over.wait(0.02):
            with contextlib.closing(self._connect()) as connection:
                try:
                    connection.request("GET", "/readyz")
                    self.answers.append(connection.getresponse().status)
                except (OSError, http.client.HTTPException) as error:
                    self.answers.append(error)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)


def test_sigusr2_replaces_all_workers_and_no_request_fails(server: WorkersServer) -> None:
    """One by one; what they have counted stays counted."""
    before = server.workers
    with Callers(server.port) as callers:
        server.tell(signal.SIGUSR2)
        server.wait_for("all workers are replaced$", timeout_s=120)
    assert set(callers.answers) == {200} and len(callers.answers) > 10
    assert len(server.workers) == 2 and not set(server.workers) & set(before)
    assert figure(server, PUBLISHED) == callers.published
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_sigusr2_replaces_a_worker_too_that_does_not_serve_yet(server: WorkersServer) -> None:
    """It was started with what was there before."""
    killed, held = server.workers[0], server.hold(1)  # the first of those that are to be replaced
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.has_next_after(killed), "the next one")
    begun = server.workers
    server.tell(signal.SIGUSR2)
    server.wait_for("the workers are replaced, one by one$")
    held.unlink()
    server.wait_for("all workers are replaced$", timeout_s=120)
    assert not set(server.workers) & set(begun)


def test_none_is_replaced_while_one_does_not_come_to_serve(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """Nor is it said that all are: it may be one of what was there before."""
    fault = "from server.workers import supervisor; supervisor.COMING_UP_S = 0.1"
    with WorkersServer(tmp_path, fault=fault, **on_mongodb(mongo_database)) as server:
        killed, other = server.workers
        server.hold(1)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.has_next_after(killed), "the next one")
        server.tell(signal.SIGUSR2)
        server.wait_for(
            r"ERROR .*worker 1 \(pid \d+\) does not serve after 0.1 s, so it is not replaced, and no other is$"
        )
        assert other in server.workers
        assert not server.said("all workers are replaced$")


def test_who_does_not_come_to_replace_a_worker_is_ended(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """It takes no orders yet."""
    fault = "from server.workers import supervisor; supervisor.COMING_UP_S = 0.1"
    with WorkersServer(tmp_path, fault=fault, **on_mongodb(mongo_database)) as server:
        before = server.workers
        server.hold(1)
        server.tell(signal.SIGUSR2)
        server.wait_for(
            r"worker 1 \(pid \d+\) does not serve after 0.1 s,"
            r" so worker 1 \(pid \d+\) goes on, and no other is replaced$"
        )
        wait_until(lambda: server.workers == before, "its end")


def test_a_worker_that_dies_while_it_is_replaced_has_one_successor(server: WorkersServer) -> None:
    """The one that was on its way."""
    first = int(server.said(r"worker 1 \(pid (\d+)\) serves")[0])
    held = server.hold(1)
    server.tell(signal.SIGUSR2)
    wait_until(lambda: len(server.workers) == 3, "the one to replace it")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in server.workers, "its end")
    held.unlink()
    server.wait_for("all workers are replaced$", timeout_s=120)
    wait_until(lambda: len(server.workers) == 2, "the end of the other one")
    assert len(server.said(r"worker 1 \(pid \d+\) serves")) == 2


def test_who_has_replaced_a_worker_and_dies_is_started_anew_before_that_one_has_ended(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """Else nobody would take the connections that the kernel gives to the two of them."""
    fault = "from server.workers import supervisor, worker; worker.HAND_OVER_S, supervisor.END_S = 600, 600"
    with WorkersServer(tmp_path, fault=fault, **on_mongodb(mongo_database)) as server:
        server.hold(2)  # one that is replaced is enough
        first = int(server.said(r"worker 1 \(pid (\d+)\) serves")[0])
        server.tell(signal.SIGUSR2)
        server.wait_for("is replaced by")
        second = int(server.said(r"is replaced by worker 1 \(pid (\d+)\)")[0])
        os.kill(second, signal.SIGKILL)
        server.wait_for(rf"worker 1 \(pid {second}\) was ended by SIGKILL; it is started anew")
        server.wait_for(r"worker 1 \(pid \d+\) serves$", 3)
        assert [server.notify("ann", content="x").status for _ in range(10)] == [200] * 10
        assert is_alive(first)
        os.kill(first, signal.SIGKILL)


def test_signals_for_the_whole_group_end_no_worker_that_begins(server: WorkersServer) -> None:
    """By themselves both would."""
    before = server.workers
    held = server.hold(1)
    os.kill(int(server.said(r"worker 1 \(pid (\d+)\) serves")[0]), signal.SIGKILL)
    wait_until(lambda: bool(set(server.workers) - set(before)), "the next one")
    [begun] = set(server.workers) - set(before)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        os.kill(begun, number)
    held.unlink()
    server.wait_for(rf"worker 1 \(pid {begun}\) serves")
    server.wait_for(r"\[worker 1\] .*the configuration and the files that it names were reread")
    assert begun in server.workers


def test_who_follows_a_dead_worker_has_its_leases(server: WorkersServer) -> None:
    """Also one that has replaced another; for as long as both are there, each has those of a name of its own."""

    def holders() -> dict[int, str]:
        return {given["number"]: given["lease_holder"] for given in map(given_to, server.workers)}

    before = holders()
    server.tell(signal.SIGUSR2)
    server.wait_for("all workers are replaced$", timeout_s=120)
    replaced = holders()
    assert len({*before.values(), *replaced.values()}) == 4
    os.kill(server.workers[0], signal.SIGKILL)
    server.wait_for(r"\(pid \d+\) serves$", 5)
    assert holders() == replaced
    assert server.stop() == 0


def given_to(pid: int) -> dict[str, Any]:
    """What a worker was given at its start."""
    environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
    [text] = [each.partition("=")[2] for each in environ if each.startswith(f"{VARIABLE}=")]
    given: dict[str, Any] = json.loads(text)
    return given


def test_a_worker_stays_if_the_one_to_replace_it_does_not_come_up(server: WorkersServer) -> None:
    """And so do all others: a clear line in the log, and nobody notices anything else."""
    before = server.workers
    fault = server.spoil(1)
    with Callers(server.port) as callers:
        server.tell(signal.SIGUSR2)
        server.wait_for(
            r"ERROR .*worker 1 \(pid \d+\) ended with exit code 7 before it served,"
            r" so worker 1 \(pid (\d+)\) goes on, and no other is replaced$"
        )
    assert set(callers.answers) == {200}
    assert server.workers == before
    fault.unlink()
    server.tell(signal.SIGUSR2)
    server.wait_for("all workers are replaced$", timeout_s=120)
    assert not set(server.workers) & set(before)


def test_sighup_is_passed_on_and_a_mistake_is_said_once(
    tmp_path: Path, mongo_database: MongoDatabase
) -> None:
    """Nobody is restarted by it."""
    file = tmp_path / "config.ini"
    file.write_text("[LOG]\nlevel=info\n")
    with WorkersServer(tmp_path, **on_mongodb(mongo_database)) as server:
        before = server.workers
        file.write_text("[LOG]\nlevel=debug\n")
        server.tell(signal.SIGHUP)
        for number in (1, 2):
            server.wait_for(
                rf"\[worker {number}\] .*the configuration .* were reread; changed keys: \[LOG\] level$"
            )
        file.write_text("[LOG]\nlevel=loud\n")
        server.tell(signal.SIGHUP)
        server.wait_for("the configuration is wrong, so nothing was changed: ")
        server.must_notify("ann", content="x")
        assert len(server.said("the configuration is wrong")) == 1
        assert server.workers == before


# -- the end -------------------------------------------------------------------------------------------------


async def test_sigterm_ends_all_in_order(server: WorkersServer, user: str) -> None:
    """Clients are told that the server goes; exit code 0; nobody is left."""
    workers = server.workers
    async with AsyncExitStack() as stack:
        clients = await on_both(server, stack, user)
        server.tell(signal.SIGTERM)
        assert {(await client.closed())[0] for client in clients} == {1001}
    assert await asyncio.to_thread(server.wait) == 0
    assert not any(map(is_alive, workers))
    assert not server.said("ERROR|Traceback")


def test_a_second_signal_ends_all_at_once(tmp_path: Path, mongo_database: MongoDatabase) -> None:
    """However long the end would take."""
    with WorkersServer(tmp_path, **on_mongodb(mongo_database), NOTIFY_APPLICATION_DRAIN_S="300") as server:
        workers = server.workers
        server.tell(signal.SIGINT)
        server.wait_for(r"the end begins in 300 s", 2)
        server.tell(signal.SIGINT)
        assert server.wait() == 1
        wait_until(lambda: not any(map(is_alive, workers)), "the end of the workers")
        assert "all workers were ended at once (a second signal)" in server.log


def test_no_worker_outlives_its_supervisor(server: WorkersServer) -> None:
    """Not even where that is killed, and not even one that hangs."""
    well, hanging = server.workers
    server.hang(hanging)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    wait_until(lambda: not is_alive(well), "the end of the one that is well")
    assert len(server.said("the supervisor is gone, so this worker ends, too")) == 1
    wait_until(lambda: not is_alive(hanging), "the end of the one that hangs")
    assert server.said(r"ended at once \(the supervisor is gone\)")


def test_nobody_drains_without_a_supervisor(tmp_path: Path, mongo_database: MongoDatabase) -> None:
    """There is nobody left who would watch."""
    with WorkersServer(tmp_path, **on_mongodb(mongo_database), NOTIFY_APPLICATION_DRAIN_S="300") as server:
        workers = server.workers
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        wait_until(lambda: not any(map(is_alive, workers)), "the end of the workers")
        assert not server.said("ended at once")


# -- what is counted -----------------------------------------------------------------------------------------


async def test_who_ends_while_it_is_asked_counts_once() -> None:
    """In the sum of those that have ended."""
    said: list[bytes] = []
    asker, leaver = (Child(number, "", lambda child, message: None) for number in (1, 2))
    asker.say = said.append  # type: ignore[method-assign]
    leaver.figures = [["published", "", "counter", "", [["published_total", {}, 100.0]]]]
    leaver.is_ready.set()
    tally = Tally()
    asked = asyncio.create_task(tally.answer(asker, {asker, leaver}))
    await asyncio.sleep(0)
    leaver.has_ended.set()
    tally.ended(leaver)
    await asked
    await tally.answer(asker, {asker})
    first, second = (json.loads(each)["packed"] for each in said)
    assert first == second and "100" in str(first) and "200" not in str(first)


async def test_of_who_does_not_answer_what_was_said_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The asker does not wait for ever."""
    monkeypatch.setattr(tally_module, "WAIT_S", 0.01)
    said: list[bytes] = []
    asker, hanging = (Child(number, "", lambda child, message: None) for number in (1, 2))
    asker.say = said.append  # type: ignore[method-assign]
    hanging.figures = [["published", "", "counter", "", [["published_total", {}, 100.0]]]]
    hanging.is_ready.set()
    await Tally().answer(asker, {asker, hanging})
    assert "100" in str(json.loads(said[0])["packed"])


# -- what they say to each other -----------------------------------------------------------------------------


def test_who_says_anything_is_alive() -> None:
    """Also who has said nothing yet is to do so in time; nobody is asked who is of a version that would not answer."""
    child = Child(1, "", lambda child, message: None)
    asked: list[bytes] = []
    child.say = asked.append  # type: ignore[method-assign]
    child.ask_for_sign()
    assert (child.unanswered, asked) == (1, [])
    child._hear({"is": "hello", "signs": True})
    assert child.unanswered == 0
    child.ask_for_sign()
    child.ask_for_sign()
    assert (child.unanswered, asked) == (2, [line("sign")] * 2)
    child._hear({"is": "figures", "packed": []})
    assert child.unanswered == 0
    child._hear({"is": "hello"})
    child.ask_for_sign()
    assert (child.unanswered, len(asked)) == (0, 2)


async def test_a_long_line_is_heard_and_what_is_no_line_ends_it() -> None:
    """The figures of many tenants are long."""
    ours, theirs = socket.socketpair()
    here, there = await Channel.open(ours), await Channel.open(theirs)
    packed = ["x" * 1000] * 5000
    here.say(line("figures", packed=packed))
    here.say(line("sign"))
    assert await there.hear() == {"is": "figures", "packed": packed}
    assert await there.hear() == {"is": "sign"}
    here.say(b"no JSON\n")
    assert await there.hear() is None
    await here.close()
    assert await there.hear() is None
    await there.close()


# -- what a worker is given ----------------------------------------------------------------------------------


def test_a_worker_knows_that_its_sockets_do_not_block() -> None:
    """The loop asks Python for that in its debug mode."""
    with socket.socket() as bound:
        bound.setblocking(False)
        [taken] = worker._sockets([os.dup(bound.fileno())])
        with taken:
            assert taken.gettimeout() == 0


def test_a_worker_may_be_given_more_than_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a supervisor that is newer. Processes that it starts get nothing of it."""
    with socket.socket() as channel, socket.socket() as lifeline:
        files = [channel.fileno(), lifeline.fileno()]
        for number in files:
            os.set_inheritable(number, True)
        given = Given(
            number=1,
            channel=files[0],
            lifeline=files[1],
            main=[],
            publishing=[],
            is_early=False,
            lease_holder="a name",
        )
        monkeypatch.setenv(VARIABLE, json.dumps({**json.loads(given.to_text()), "of later": 1}))
        assert Given.take() == given
        assert not any(map(os.get_inheritable, files))
        assert VARIABLE not in os.environ
        assert Given.take() is None
