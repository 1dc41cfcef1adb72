"""The server as a whole, in a process of its own: starting, refusing to start, the walk, stopping, and being killed."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydispatch import dispatcher
from websockets.exceptions import ConnectionClosed

from server import app, tenants
from server.bus import NOTIFICATION_STORED
from server.config import load
from server.grants import ALL_SCOPES, DEFAULT_TENANT, ApiKey, hash_secret, new_secret
from server.greeting import announce
from server.ids import new_id
from server.messages import now
from server.rooms import Push, Room, SignIn
from server.store.sqlite_beside import SQLiteBeside
from server.tenants import Tenants
from server.wire import REVOKED, SIGNED_OUT, CloseReason, Frame
from tests.support.client import SocketClient
from tests.support.mongod import Mongod
from tests.support.processes import wait_until
from tests.support.recording import RecordingConnection
from tests.support.running_server import RunningServer
from tests.support.smtp_sink import SMTPSink

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path) as running:
        yield running


def refusal_of(server: RunningServer) -> str:
    """The last line of a server that does not start."""
    server.launch()
    assert server.wait() not in (0, -signal.SIGKILL)
    return server.log.strip().splitlines()[-1]


def mails_in(folder: Path) -> list[email.message.EmailMessage]:
    return [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in sorted(folder.glob("*.eml"))
    ]


def faulty(folder: Path, fault: str, **settings: str) -> RunningServer:
    """A server with this code run in its process before anything else."""
    (folder / "sitecustomize.py").write_text(fault)
    return RunningServer(folder, **settings, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")


# -- starting ------------------------------------------------------------------------------------------------


def test_it_says_what_a_newcomer_needs_to_know(server: RunningServer) -> None:
    """The address of the page, where the data lies, which store and which mail transport."""
    wait_until(lambda: "mail" in server.log, "the announcement")
    assert f"http://127.0.0.1:{server.port}/" in server.log
    assert str(server.data) in server.log
    assert "embedded" in server.log
    assert "files in" in server.log


def test_it_serves_though_nobody_reads_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its end, at which what is left unwritten goes out, does not fail by it either."""
    with open("/dev/full", "w") as nowhere:
        monkeypatch.setattr("sys.stdout", nowhere)
        announce(load(None, {}), 8587, "a store", "a mail")


def test_a_taken_port_is_one_clear_sentence(tmp_path: Path) -> None:
    """It names the port and what to do; the exit code is not 0."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = RunningServer(tmp_path, port=port)
        line = refusal_of(server)
    assert f"port {port}" in line and "in use" in line
    assert "Traceback" not in server.log


def test_a_data_folder_in_use_is_one_clear_sentence(server: RunningServer, tmp_path: Path) -> None:
    """It names the folder; the first server goes on."""
    (tmp_path / "second").mkdir()
    second = RunningServer(tmp_path / "second", NOTIFY_APPLICATION_DATA=str(server.data))
    line = refusal_of(second)
    assert str(server.data) in line and "in use" in line
    assert "Traceback" not in second.log
    assert server.get("/healthz").status == 200


def test_a_data_folder_that_is_a_file_is_one_clear_sentence(tmp_path: Path) -> None:
    """Something else lies where the data should."""
    (tmp_path / "data").write_text("mine")
    server = RunningServer(tmp_path)
    assert str(tmp_path / "data") in refusal_of(server)
    assert "Traceback" not in server.log


def test_any_free_port(tmp_path: Path) -> None:
    """Port 0 is the system's choice, and the address that is printed is the one."""
    server = RunningServer(tmp_path, NOTIFY_APPLICATION_PORT="0")
    server.launch()
    wait_until(lambda: "mail" in server.log, "the announcement")
    [port] = re.findall(r"http://127\.0\.0\.1:(\d+)/", server.log)
    server.port = int(port)
    server.wait_until_ready()
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_cleanly_at_a_signal(server: RunningServer, number: signal.Signals) -> None:
    """Clients are told that the server goes away; the exit code is 0, and nothing is left in the log but that."""
    async with SocketClient(server) as client:
        await client.join("alice")
        server.signal(number)
        with pytest.raises(ConnectionClosed) as closed:
            await client.frame()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.log and "ERROR" not in server.log


async def test_commands_taken_before_the_end_are_carried_out(tmp_path: Path) -> None:
    """People click, and the server is restarted: what they saw stays seen."""
    slow_changes = """
import asyncio
from server.inbox import Inbox
mark_seen = Inbox.mark_seen
async def slowly(*arguments):
    await asyncio.sleep(0.05)
    return await mark_seen(*arguments)
Inbox.mark_seen = slowly
"""
    with faulty(tmp_path, slow_changes) as server:
        for number in range(20):
            server.must_notify("alice", content=str(number))
        async with SocketClient(server) as client:
            for document in await client.join("alice"):
                await client.send("seen", {"ids": [document["_id"]]})
            await (await client.socket.ping())  # answered when all before it has been read
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
        await asyncio.to_thread(server.start)
        async with SocketClient(server) as client:
            assert await client.join("alice") == []


async def test_load_balancers_learn_of_the_end_before_it_begins(tmp_path: Path) -> None:
    """For `drain_s` after the signal /readyz answers 503, and everything else goes on, for clients that are there and
    for new ones. A second signal ends that."""
    with RunningServer(tmp_path, NOTIFY_APPLICATION_DRAIN_S="300") as server:
        async with SocketClient(server) as client:
            await client.join("alice")
            server.signal(signal.SIGTERM)
            wait_until(lambda: server.get("/readyz").status == 503, "the server saying that it ends")
            assert server.get("/readyz").json()["status"] == "stopping"
            assert server.get("/healthz").status == 200
            server.must_notify("alice", content="late")
            assert [each["content"] for each in await client.next("notification")] == ["late"]
            async with SocketClient(server) as newcomer:
                assert [each["content"] for each in await newcomer.join("alice")] == ["late"]
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 1


def test_the_end_begins_after_that(tmp_path: Path) -> None:
    """And is as orderly as any."""
    with RunningServer(tmp_path, NOTIFY_APPLICATION_DRAIN_S="0.1") as server:
        assert server.stop() == 0
        assert "the end begins in 0.1 s" in server.log


def test_who_has_a_connection_is_told_that_it_is_the_end(tmp_path: Path) -> None:
    """What comes on it is refused, to be tried elsewhere, and nothing more is expected on it: no request meets a
    connection that is just being closed."""
    slow_store = """
import asyncio
from server.store.sqlite import SQLiteStore
add = SQLiteStore.add
async def slowly(*arguments):
    print("storing", flush=True)
    await asyncio.sleep(1.5)
    return await add(*arguments)
SQLiteStore.add = slowly
"""
    body = json.dumps({"users": [{"id": "alice"}], "content": "x"})
    headers = {"Content-Type": "application/json"}
    with faulty(tmp_path, slow_store) as server:
        busy, kept = (http.client.HTTPConnection("127.0.0.1", server.port, timeout=20) for _ in range(2))
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()
        busy.request("POST", "/notify", body, headers)
        wait_until(lambda: "storing" in server.log, "the request being stored")
        server.signal(signal.SIGTERM)
        wait_until(lambda: refuses_connections(server.port), "the server refusing connections")
        kept.request("POST", "/notify", body, headers)
        refused = kept.getresponse()
        assert (refused.status, refused.headers["Connection"]) == (503, "close")
        assert busy.getresponse().status == 200
        assert server.wait() == 0
        busy.close()
        kept.close()


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_step_of_the_end_that_fails_or_is_late_holds_up_no_other(tmp_path: Path) -> None:
    """The store is closed in any case."""
    faults = """
import asyncio
from server import app, doors
app.SHUTDOWN_DEADLINE_S = 6.0
app.LETTING_GO_S = 5.0
async def hang(*_):
    await asyncio.Event().wait()
def fail(*_):
    raise RuntimeError("broken")
app.Notifier.close = hang
doors.Connections.close_all = fail
app.OutboxWorker.stop = hang
"""
    with faulty(tmp_path, faults) as server:
        server.must_notify("alice", content="x")
        assert server.stop() == 0
        assert "notifying: not ended in time" in server.log
        assert "the clients: could not be ended" in server.log
    assert not list(server.data.glob("*-wal")), "the store was not closed"


async def test_no_task_is_left_when_the_store_is_closed(tmp_path: Path) -> None:
    """Not even the question to a dependency that does not answer, or a join that is not written down."""
    faults = """
import asyncio
from server import app
from server.store.sqlite import SQLiteStore
from server.store.sqlite_directory import SQLiteDirectory
app.SHUTDOWN_DEADLINE_S, app.LETTING_GO_S = 5.0, 4.0
async def hang(*_):
    print("hangs", flush=True)
    await asyncio.Event().wait()
app.Server._check_mail = hang
note_well = SQLiteDirectory.note_users
async def hang_once(*_):
    SQLiteDirectory.note_users = note_well
    await hang()
SQLiteDirectory.note_users = hang_once
close_well = SQLiteStore.close
async def close_and_tell(store):
    left = asyncio.all_tasks() - {asyncio.current_task()}
    print("left:", *sorted(task.get_name() for task in left), flush=True)
    await close_well(store)
SQLiteStore.close = close_and_tell
"""
    with faulty(tmp_path, faults) as server:
        assert "no answer" in server.get("/readyz").body.decode()
        async with SocketClient(server) as client:
            await client.send("join", {"login": "alice", "password": "alice"})
            await asyncio.to_thread(wait_until, lambda: server.log.count("hangs") >= 2, "the join")
            assert await asyncio.to_thread(server.stop) == 0
        [told] = [line for line in server.log.splitlines() if line.startswith("left:")]
        assert told == "left:"


@pytest.mark.parametrize("kind", ["_readers", "_writer"])
def test_a_disk_that_hangs_does_not_keep_it_from_ending(tmp_path: Path, kind: str) -> None:
    """Neither while it reads nor while it writes."""
    fault = f"""
import time
from server import app
from server.store.sqlite import SQLiteStore
app.SHUTDOWN_DEADLINE_S = 1.0
app.LETTING_GO_S = 0.5
open_well = SQLiteStore.open
async def open_and_hang(store):
    await open_well(store)
    store.{kind}.submit(lambda _: time.sleep(3600))
SQLiteStore.open = open_and_hang
"""
    with faulty(tmp_path, fault) as server:
        assert server.stop() == 0
        assert "the store: not ended in time" in server.log


def test_a_thread_that_hangs_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    """The interpreter would wait for it. It is said that this was not the orderly end."""
    fault = """
import asyncio, threading, time
from server import app
app.LAST_RESORT_S = 0.5
async def hang(_):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
    await asyncio.Event().wait()
app.UnseenCounts.run = hang
"""
    with faulty(tmp_path, fault) as server:
        assert server.stop() == 1
        assert "ended at once (something hangs)" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """With one sentence, whatever is still to be done."""
    fault = """
import asyncio
from server import app, doors
app.SHUTDOWN_DEADLINE_S = app.LAST_RESORT_S = 3600
async def hang(*_):
    print("is ending", flush=True)
    await asyncio.Event().wait()
app.Notifier.close = hang
"""
    with faulty(tmp_path, fault) as server:
        server.signal(number)
        wait_until(lambda: "is ending" in server.log, "the end beginning")
        server.signal(number)
        assert server.wait() == 1
        assert "ended at once (a second signal)" in server.log.splitlines()[-1]
        assert "Traceback" not in server.log


# -- bounds --------------------------------------------------------------------------------------------------


def test_more_connections_than_files(tmp_path: Path) -> None:
    """Those that are too many wait or are closed, the log tells of it once, the rest of the server has the files it
    needs, and new clients are served when the others are gone."""
    few_files = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    with faulty(tmp_path, few_files) as server, contextlib.ExitStack() as idle:
        for _ in range(90):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        wait_until(lambda: "ulimit" in server.log, "the complaint")
        idle.close()
        wait_until(lambda: server.notify("alice", content="x").status == 200, "service")
        assert server.log.count("ERROR") == 1
        assert "Traceback" not in server.log


async def test_who_does_not_go_on_with_a_request_is_disconnected(tmp_path: Path) -> None:
    """Whose body stalls, and who sends nothing. A WebSocket, and an answer that streams, live on."""
    short_times = "from server import entrance as e; e.BODY_TIMEOUT_S = e.IDLE_TIMEOUT_S = 0.3"
    with faulty(tmp_path, short_times) as server:
        async with SocketClient(server) as client:
            await client.join("alice")
            streaming, sending = await asyncio.open_connection("127.0.0.1", server.port)
            sending.write(
                b"POST /notification/0/x/xhr_streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            )
            await asyncio.wait_for(streaming.readuntil(b"o\n"), 30)
            for request in (
                b"POST /notify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
                b"GET / HT",
                b"",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(request)
                assert await asyncio.wait_for(reader.read(), 30) == b""
                writer.close()
            server.must_notify("alice", content="x")
            assert (await client.next("notification"))[0]["content"] == "x"
            assert not streaming.at_eof()
            sending.close()


def test_a_sweep_that_fails_is_not_the_last(tmp_path: Path) -> None:
    """What goes wrong is logged each time."""
    fault = """
from server import sweep
sweep.INTERVAL_S = 0.01
async def fail(_):
    raise RuntimeError("broken")
sweep.Notifier.complete = fail
"""
    with faulty(tmp_path, fault) as server:
        wait_until(lambda: server.log.count("the sweep failed") > 1, "a second sweep")


# -- the walk ------------------------------------------------------------------------------------------------


async def test_one_post_reaches_every_screen_of_every_user(server: RunningServer) -> None:
    """Stored once for each user, pushed to each of their connections, and the count follows."""
    async with SocketClient(server) as first, SocketClient(server) as second, SocketClient(server) as bob:
        for client, user in ((first, "alice"), (second, "alice"), (bob, "bob")):
            assert await client.join(user) == []
        server.must_notify("alice", "bob", "carol", content="for all")
        pushed = [(await client.next("notification"))[0] for client in (first, second, bob)]
        assert [document["content"] for document in pushed] == ["for all"] * 3
        assert pushed[0]["_id"] == pushed[1]["_id"] != pushed[2]["_id"]
        assert pushed[0]["nid"] == pushed[2]["nid"]
        assert [await client.next("count") for client in (first, second, bob)] == [{"unseen": 1}] * 3


async def test_screens_are_kept_in_step(server: RunningServer) -> None:
    """Seen on one, seen on all; deleted on one, deleted on all; another user hears nothing of it."""
    server.must_notify("alice", content="1")
    server.must_notify("alice", content="2")
    async with SocketClient(server) as first, SocketClient(server) as second, SocketClient(server) as bob:
        one, two = [document["_id"] for document in await first.join("alice")]
        await second.join("alice")
        await bob.join("bob")
        await bob.send("seen", {"ids": [one]})
        assert await bob.next("seen") == []
        await first.send("seen", {"ids": [one]})
        for client in (first, second):
            assert await client.next("seen") == [one]
            assert await client.next("count") == {"unseen": 1}
        await second.send("delete", [two])
        for client in (first, second):
            assert await client.next("delete") == [two]
            assert await client.next("count") == {"unseen": 0}
        assert [document["_id"] for document in await first.content()] == [one]


async def test_who_is_away_gets_a_mail_and_who_is_there_does_not(server: RunningServer) -> None:
    """One message, the addresses in no header but that of the file; forced mail goes to everybody."""
    users = [{"id": "alice", "email": "alice@example.test"}, {"id": "bob", "email": "bob@example.test"}]
    async with SocketClient(server) as client:
        await client.join("alice")
        server.must_notify(*users, title="The title", content="<b>text</b>", email_send=True)
        folder = server.data / "mail"
        await asyncio.to_thread(wait_until, lambda: len(mails_in(folder)) == 1, "the mail")
        (mail,) = mails_in(folder)
        assert mail["X-Envelope-To"] == "bob@example.test"
        assert mail["Subject"] == "The title"
        assert mail.get_content().strip() == "<b>text</b>"
        server.must_notify(*users, content="forced", email_subject="All", email_force=True)
        await asyncio.to_thread(wait_until, lambda: len(mails_in(folder)) == 2, "the forced mail")
        assert sorted(mails_in(folder)[1].get_all("X-Envelope-To", [])) == [
            "alice@example.test",
            "bob@example.test",
        ]


async def test_an_open_socket_with_nobody_behind_it_does_not_swallow_a_mail(tmp_path: Path) -> None:
    """A client that gives no sign of life within two heartbeats after the push is mailed then."""
    with RunningServer(tmp_path, NOTIFY_CONNECTIONS_HEARTBEAT_S="1") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET /notification/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        join = json.dumps({"name": "join", "data": {"login": "alice", "password": "alice"}}).encode()
        writer.write(bytes([0x81, 0x80 | len(join), 0, 0, 0, 0]) + join)
        await reader.readuntil(b'"count"')
        server.must_notify({"id": "alice", "email": "alice@example.test"}, content="x", email_send=True)
        await reader.readuntil(b'"notification"')
        await asyncio.to_thread(wait_until, lambda: bool(mails_in(server.data / "mail")), "the mail")
        writer.close()


async def test_mail_goes_out_by_smtp(tmp_path: Path) -> None:
    """With a host configured the duty that was stored becomes one mail with the recipients in the envelope only."""
    with SMTPSink() as sink:
        settings = {"NOTIFY_EMAIL_HOST": f"127.0.0.1:{sink.port}", "NOTIFY_EMAIL_SENDER": "bell@example.test"}
        with RunningServer(tmp_path, **settings, NOTIFY_EMAIL_TLS="false") as server:
            users = [{"id": str(number), "email": f"u{number}@example.test"} for number in range(3)]
            await asyncio.to_thread(lambda: server.must_notify(*users, content="Grüße", email_send=True))
            await asyncio.to_thread(wait_until, lambda: len(sink.mails) == 1, "the mail")
    (mail,) = sink.mails
    assert sorted(mail.recipients) == [f"u{number}@example.test" for number in range(3)]
    assert b"u1@example.test" not in mail.content


# -- restarts and crashes ------------------------------------------------------------------------------------


async def test_what_was_answered_with_200_survives_kill_9(server: RunningServer) -> None:
    """The documents, what was seen of them, and the mail that is owed."""
    for number in range(20):
        server.must_notify("alice", content=str(number))
    async with SocketClient(server) as client:
        unseen = await client.join("alice")
        await client.send("seen", {"ids": [unseen[0]["_id"]]})
        await client.next("seen")
    server.must_notify({"id": "bob", "email": "bob@example.test"}, content="x", email_send=True)
    server.kill()
    await asyncio.to_thread(server.start)
    async with SocketClient(server) as client:
        assert [document["content"] for document in await client.join("alice")] == [
            str(n) for n in range(1, 20)
        ]
        assert len(await client.content(limit=100)) == 20
    await asyncio.to_thread(
        wait_until, lambda: len(mails_in(server.data / "mail")) == 1, "the mail that was owed"
    )


async def test_a_restart_brings_the_inbox_back(server: RunningServer) -> None:
    """In order, and on the same port."""
    server.must_notify("alice", content="before")
    await asyncio.to_thread(server.restart)
    async with SocketClient(server) as client:
        assert [document["content"] for document in await client.join("alice")] == ["before"]


async def test_a_store_that_goes_away_is_503_and_service_resumes_by_itself(
    tmp_path: Path, own_mongod: Mongod
) -> None:
    """While MongoDB is down nothing is pushed that is not stored; who joins meanwhile is served when it is back."""
    settings = {"NOTIFY_MONGODB_URL": own_mongod.url, "NOTIFY_MONGODB_TIMEOUT_S": "2"}
    with RunningServer(tmp_path, **settings) as server:
        async with SocketClient(server) as alice, SocketClient(server) as late:
            await alice.join("alice")
            await asyncio.to_thread(own_mongod.kill)
            answer = await asyncio.to_thread(server.notify, "alice", content="lost?")
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            await late.send("join", {"login": "bob", "password": "bob"})
            assert (await late.next("error"))["code"] == "store_unavailable"
            assert server.get("/healthz").status == 200
            await asyncio.to_thread(own_mongod.start)
            assert await late.next("count") == {"unseen": 0}
            await asyncio.to_thread(
                wait_until, lambda: server.notify("alice", content="again").status == 200, "a 200"
            )
            assert (await alice.next("notification"))[0]["content"] in ("again", "lost?")


async def test_it_waits_for_a_store_that_is_not_there_yet(tmp_path: Path, own_mongod: Mongod) -> None:
    """It says so, lets nobody in meanwhile, and serves as soon as the store is there."""
    await asyncio.to_thread(own_mongod.stop)
    settings = {"NOTIFY_MONGODB_URL": own_mongod.url, "NOTIFY_MONGODB_TIMEOUT_S": "1"}
    server = RunningServer(tmp_path, **settings)
    starting = asyncio.create_task(asyncio.to_thread(server.start))
    await asyncio.to_thread(wait_until, lambda: "waiting for the store" in server.log, "the warning")
    assert server.get("/healthz").status == 200
    assert server.get("/readyz").json() == {"status": "starting", "dependencies": {}}
    assert server.notify("alice", content="x").status == 503
    await asyncio.to_thread(own_mongod.start)
    await starting
    assert server.notify("alice", content="x").status == 200
    assert await asyncio.to_thread(server.stop) == 0


def test_it_can_be_ended_while_the_store_does_not_open(tmp_path: Path) -> None:
    """Whatever that waits for."""
    fault = """
import asyncio
from server.store.sqlite import SQLiteStore
async def hang(_):
    print("is opening", flush=True)
    await asyncio.Event().wait()
SQLiteStore.open = hang
"""
    server = faulty(tmp_path, fault)
    server.launch()
    wait_until(lambda: "is opening" in server.log, "the store being opened")
    assert server.stop() == 0
    assert "Traceback" not in server.log


async def test_after_its_end_a_server_hears_of_nothing(tmp_path: Path) -> None:
    """Others may go on in the same process."""
    connected = sorted(map(str, dispatcher.getAllReceivers(signal=NOTIFICATION_STORED)))
    settings = {"NOTIFY_APPLICATION_PORT": "0", "NOTIFY_APPLICATION_DATA": str(tmp_path)}
    server, stop = app.Server(load(None, settings)), asyncio.Event()
    stop.set()
    await server.run(stop)
    assert not list(dispatcher.getReceivers(server._notifier, NOTIFICATION_STORED))
    assert sorted(map(str, dispatcher.getAllReceivers(signal=NOTIFICATION_STORED))) == connected


@dataclass(eq=False)
class Member:
    """Somebody in a room."""

    sign_in: SignIn
    connection: RecordingConnection = field(default_factory=RecordingConnection)

    def push(self, pushes: Sequence[Push], burst: Frame) -> None:
        raise AssertionError("nobody is notified here")


async def test_who_is_looked_at_when_access_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user who is signed out, the connections of that user only, however many others there are; when a key is
    revoked, all of them."""
    monkeypatch.setattr(tenants, "POLL_S", 0.01)
    asked: list[Room] = []
    why_over = Tenants.why_over

    def count(self: Tenants, room: Room, sign_in: SignIn) -> CloseReason | None:
        asked.append(room)
        return why_over(self, room, sign_in)

    monkeypatch.setattr(Tenants, "why_over", count)
    settings = {"NOTIFY_APPLICATION_PORT": "0", "NOTIFY_APPLICATION_DATA": str(tmp_path)}
    server, stop, started = app.Server(load(None, settings)), asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(server.run(stop, started.set))
    beside = SQLiteBeside(tmp_path / "notifications.sqlite3")
    async with asyncio.timeout(60):
        await started.wait()
        await beside.open()
        secret_hash = hash_secret(new_secret())
        key = ApiKey(new_id(), DEFAULT_TENANT, "ci", secret_hash, ALL_SCOPES, now())
        await beside.directory.add_key(key)
        while not server._tenants.has_key(key.id):  # noqa: ASYNC110  # as with the next ones, nobody tells of it
            await asyncio.sleep(0.001)
        members = [Member(SignIn(now(), None if number else key.id)) for number in range(1000)]
        for number, member in enumerate(members):
            server._rooms.join((DEFAULT_TENANT, str(number)), member)
        asked.clear()
        for user_id in ("500", "nobody", "501"):
            await beside.directory.sign_out(DEFAULT_TENANT, user_id, now())
        while not members[501].connection.reasons:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert asked == [(DEFAULT_TENANT, "500"), (DEFAULT_TENANT, "501")]
        assert [number for number, each in enumerate(members) if each.connection.reasons] == [500, 501]
        await beside.directory.revoke_key(DEFAULT_TENANT, "ci", now())
        while len(asked) < 1002:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert members[0].connection.reasons == [REVOKED]
        assert members[500].connection.reasons[0] == SIGNED_OUT
        assert not any(each.connection.reasons for each in members[1:500])
        await beside.close()
        stop.set()
        await running


async def test_an_empty_message_is_answered_like_any_garbage(server: RunningServer) -> None:
    """By an error; the connection lives on."""
    async with SocketClient(server) as client:
        await client.socket.send("")
        assert (await client.next("error"))["code"] == "invalid"
        assert await client.join("alice") == []
