"""The publishing port as HTTP/1.1: what it does with connections. What its doors do is tested with the main port's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.callers import Caller
from server.ingest.door import Door
from server.ingest.lane import port as lane_port
from server.ingest.lane import protocol
from server.ingest.lane.head import Headers, split, target_of
from server.ingest.lane.port import PublishingPort
from server.ingest.visits import Answer, Gate, Visit
from tests.support.client import SocketClient
from tests.support.lane import LaneServer
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer

ROOT = Path(__file__).resolve().parents[1]

OPERATIONS = {"NOTIFY_APPLICATION_INTERNAL": "127.0.0.1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneServer]:
    with LaneServer(tmp_path_factory.mktemp("lane")) as running:
        yield running


@pytest.fixture
def connection(server: LaneServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connected:
        yield connected


def body_of(content: str = "c", user: str = "alice") -> bytes:
    return json.dumps({"content": content, "users": [{"id": user}]}).encode()


def request(body: bytes | None = None, *fields: str, line: str = "POST /notify HTTP/1.1") -> bytes:
    body = body_of() if body is None else body
    lines = [
        line,
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Answers:
    """Reads answers off a connection, one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def next(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(fields.get("content-length", "0")) if has_body else 0
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return int(status_line.split()[1]), fields, body

    def _receive(self) -> None:
        chunk = self._connection.recv(65536)
        assert chunk, "the connection was closed"
        self._received += chunk

    def is_over(self) -> bool:
        """Blocks until there is more, or surely nothing more."""
        try:
            return not self._received and self._connection.recv(1) == b""
        except ConnectionResetError:
            return True


# -- connections ---------------------------------------------------------------------------------------------
def test_many_requests_on_one_connection(connection: socket.socket) -> None:
    """It is kept, whatever was answered."""
    answers = Answers(connection)
    for _ in range(20):
        connection.sendall(request())
        assert answers.next()[0] == 200
        connection.sendall(request(b"{"))
        assert answers.next()[0] == 400


def test_heads_that_come_again(server: LaneServer, connection: socket.socket) -> None:
    """With bodies of other lengths, among others, alone or with the next request at once: each is what it would be on a
    connection of its own."""
    answers, before = Answers(connection), stored_in(server)
    for number in range(30):
        connection.sendall(request(body_of("é" * number)))
        assert answers.next()[0] == 200
        connection.sendall(request(body_of("k"), f"Idempotency-Key: {number % 3}"))
        assert answers.next()[0] == 200
        connection.sendall(request(b"[]" + b" " * number))
        assert answers.next()[0] == 400
        connection.sendall(request(body_of("a")) + request(body_of("b")) + request()[:9])
        assert [answers.next()[0], answers.next()[0]] == [200, 200]
        connection.sendall(request()[9:])
        assert answers.next()[0] == 200
    assert stored_in(server) == before + 30 * 4 + 3


async def test_requests_that_do_not_wait_for_answers(server: LaneServer, connection: socket.socket) -> None:
    """Are answered in their order, and stored in it, though many come in one segment."""
    numbers = range(200)
    async with SocketClient(server) as client:
        await client.join("bob")
        connection.sendall(b"".join(request(body_of(str(number), "bob")) for number in numbers))
        answers = Answers(connection)
        assert [answers.next()[0] for _ in numbers] == [200] * len(numbers)
        pushed: list[str] = []
        while len(pushed) < len(numbers):
            pushed += [each["content"] for each in await client.next("notification")]
    assert pushed == [str(number) for number in numbers]


def test_answers_keep_the_order_of_requests(connection: socket.socket) -> None:
    """Also where some take longer than those behind them."""
    lines = b"".join(body_of() + b"\n" for _ in range(2000))
    batch = request(lines, line="POST /api/v2/notifications HTTP/1.1").replace(
        b"application/json", b"application/x-ndjson"
    )
    connection.sendall(batch + request(b"{") + request() + request(line="GET /notify HTTP/1.1") + request())
    answers = Answers(connection)
    statuses = [answers.next() for _ in range(5)]
    assert [each[0] for each in statuses] == [200, 400, 200, 405, 200]
    assert len(statuses[0][2].splitlines()) == 2000


def test_byte_by_byte(connection: socket.socket) -> None:
    """However it is cut up, a request is one."""
    for byte in request(body_of("é")):
        connection.sendall(bytes([byte]))
    assert Answers(connection).next()[0] == 200


def test_a_chunked_body(connection: socket.socket) -> None:
    """Is put together."""
    head = "\r\n".join(
        [
            "POST /notify HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            "",
            "",
        ]
    )
    body = body_of()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    connection.sendall(head.encode() + chunks + b"0\r\n\r\n")
    assert Answers(connection).next()[0] == 200


def test_who_asks_whether_to_send_is_told_to(connection: socket.socket) -> None:
    """RFC 9110 section 10.1.1."""
    whole = request(None, "Expect: 100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    assert Answers(connection).next()[0] == 200


def test_who_asks_whether_to_send_may_be_told_not_to(connection: socket.socket) -> None:
    """And will not: what else came over the connection would be taken for the body, so it ends."""
    line, wrong = "POST /api/notifications/send/ HTTP/1.1", "Authorization: Api-Key wrong"
    head, _, _ = request(None, "Expect: 100-continue", wrong, line=line).partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    answers = Answers(connection)
    status, fields, _ = answers.next()
    assert (status, fields["connection"]) == (403, "close")
    assert answers.is_over()


@pytest.mark.parametrize(
    ("line", "field", "kept"),
    [
        ("POST /notify HTTP/1.1", "Connection: close", "close"),
        ("POST /notify HTTP/1.0", "X: y", "close"),
        ("POST /notify HTTP/1.0", "Connection: keep-alive", "keep-alive"),
    ],
)
def test_what_becomes_of_the_connection(connection: socket.socket, line: str, field: str, kept: str) -> None:
    """As the client wants it, which is told so."""
    connection.sendall(request(None, field, line=line))
    answers = Answers(connection)
    status, fields, _ = answers.next()
    assert (status, fields["connection"]) == (200, kept)
    if kept == "close":
        assert answers.is_over()
    else:
        connection.sendall(request(None, field, line=line))
        assert answers.next()[0] == 200


def test_who_sends_no_more_is_answered_still(connection: socket.socket) -> None:
    """After the last byte of a request the client may close its side."""
    connection.sendall(request() * 3)
    connection.shutdown(socket.SHUT_WR)
    answers = Answers(connection)
    assert [answers.next()[0] for _ in range(3)] == [200] * 3
    assert answers.is_over()


def test_who_goes_away_in_the_midst_of_a_request(server: LaneServer) -> None:
    """Leaves nothing behind, and others are served."""
    whole = request()
    for length in (1, 30, len(whole) - 40, len(whole) - 1):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as leaving:
            leaving.sendall(whole[:length])
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as staying:
        staying.sendall(whole)
        assert Answers(staying).next()[0] == 200
    assert "Traceback" not in server.log


# -- what is no request to a door ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (request(None, "Transfer-Encoding: chunked"), 400),
        (request(None, "Content-Length: 3"), 400),
        (b"POST /notify HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (request(None, "Host: other"), 400),
        (request(None, "Connection: Upgrade", "Upgrade: h2c"), 400),
        (
            b"POST /notify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nX: "
            + b"x" * 70_000
            + b"\r\n\r\n",
            431,
        ),
        (b"POST /notify?" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"POST /notify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (
            b"POST /notify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
    ],
    ids=[
        *("nonsense", "tls", "two-framings", "two-lengths", "no-host", "two-hosts", "upgrade"),
        *("large-head", "large-target", "broken-chunk", "packed"),
    ],
)
def test_what_is_no_good_http(connection: socket.socket, sent: bytes, status: int) -> None:
    """Is answered with what is wrong, and the connection ends: what comes behind it could be anything."""
    connection.sendall(sent + request())
    answers = Answers(connection)
    answered, fields, said = answers.next()
    assert (answered, fields["connection"], fields["content-type"]) == (
        status,
        "close",
        "application/problem+json",
    )
    assert json.loads(said)["status"] == status
    assert answers.is_over()


def test_a_head_without_an_end(connection: socket.socket) -> None:
    """Is cut off when it is too large."""
    connection.sendall(b"POST /notify HTTP/1.1\r\nHost: localhost\r\nX: ")
    with pytest.raises((ConnectionError, BrokenPipeError)):
        for _ in range(10_000):
            connection.sendall(b"x" * 10_000)


def test_other_addresses_and_methods(connection: socket.socket) -> None:
    """There is nothing else on this port; a HEAD gets no body."""
    answers = Answers(connection)
    for line, status in (
        ("GET / HTTP/1.1", 404),
        ("GET /metrics HTTP/1.1", 404),
        ("POST /notify/ HTTP/1.1", 404),
        ("PUT /api/v2/notifications HTTP/1.1", 405),
    ):
        connection.sendall(request(line=line))
        answered, fields, said = answers.next()
        assert (answered, json.loads(said)["status"]) == (status, status)
        assert fields.get("allow") == ("POST" if status == 405 else None)
    connection.sendall(request(line="HEAD /notify HTTP/1.1"))
    assert answers.next(has_body=False)[1]["allow"] == "POST, OPTIONS"
    connection.sendall(request(line="POST http://localhost/notify HTTP/1.1"))
    assert answers.next()[0] == 200


def test_answers_say_of_themselves_what_those_of_the_main_port_do(server: LaneServer) -> None:
    """Header by header."""
    here = server.request("POST", "/notify", body_of(), {"Content-Type": "application/json"})
    server.port, lane = server.main_port, server.port
    try:
        there = server.request("POST", "/notify", body_of(), {"Content-Type": "application/json"})
    finally:
        server.port = lane
    varying = {"date", "x-request-id"}
    fields = [{name.lower(): value for name, value in each.headers.items()} for each in (here, there)]
    assert fields[0].keys() == fields[1].keys()
    assert all(fields[0][name] == fields[1][name] for name in fields[0].keys() - varying)
    assert here.body == there.body


def test_the_id_of_a_request(connection: socket.socket) -> None:
    """Is the caller's own, or a new one; each has its own."""
    answers = Answers(connection)
    connection.sendall(request(None, "X-Request-ID: mine") + request() + request())
    found = [answers.next()[1]["x-request-id"] for _ in range(3)]
    assert found[0] == "mine"
    assert len(set(found)) == 3


# -- the port ------------------------------------------------------------------------------------------------
def test_figures(tmp_path: Path) -> None:
    """Its requests are counted as those of the main port."""
    with LaneServer(tmp_path, **OPERATIONS) as server:
        assert server.notify("alice", "bob").status == 200
        assert server.request("POST", "/notify", b"{", {"Content-Type": "application/json"}).status == 400
        text = server.request("GET", "/metrics", headers={"Accept": "text/plain"}).body.decode()
    assert 'notification_published_total{door="notify",tenant="default"} 1.0' in text
    assert 'notification_http_request_duration_seconds_count{door="notify",status="2xx"} 1.0' in text
    assert 'notification_requests_refused_total{code="invalid",door="notify",tenant="default"} 1.0' in text


def test_what_is_under_way_at_the_end_is_answered(tmp_path: Path) -> None:
    """Idle connections hold up nothing; nothing is answered that is not stored."""
    with LaneServer(tmp_path) as server:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as idle,
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as busy,
        ):
            busy.sendall(request() * 300)
            answers = Answers(busy)
            assert answers.next()[0] == 200
            assert server.stop() == 0
            count = 1
            with contextlib.suppress(AssertionError, ConnectionResetError):  # the connection ends
                while answers.next()[0] == 200:
                    count += 1
            assert idle.recv(1) == b""
        assert stored_in(server) >= count


SLOW_STORE = """
import asyncio
from server.store.sqlite import SQLiteStore
add = SQLiteStore.add
async def slowly(*arguments):
    print("storing", flush=True)
    await asyncio.sleep(1.5)
    return await add(*arguments)
SQLiteStore.add = slowly
"""


def test_who_has_a_connection_is_told_that_it_is_the_end(tmp_path: Path) -> None:
    """What comes on it is refused, to be tried elsewhere, and nothing more is expected on it: no request meets a
    connection that is just being closed."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_STORE)
    with LaneServer(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}") as server:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as kept,
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as busy,
        ):
            answers = Answers(kept)
            kept.sendall(request(line="OPTIONS /notify HTTP/1.1"))
            assert answers.next()[0] == 204
            busy.sendall(request())
            wait_until(lambda: "storing" in server.log, "the request being stored")
            server.signal(signal.SIGTERM)
            wait_until(lambda: refuses_connections(server.port), "the server refusing connections")
            kept.sendall(request())
            status, fields, _ = answers.next()
            assert (status, fields["connection"]) == (503, "close")
            assert answers.is_over()
            assert Answers(busy).next()[0] == 200
        assert server.wait() == 0


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def stored_in(server: LaneServer) -> int:
    """How many documents its store holds."""
    with contextlib.closing(sqlite3.connect(server.data / "notifications.sqlite3")) as database:
        count: int = database.execute("SELECT count(*) FROM documents").fetchone()[0]
    return count


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Is said at the start, with its number and its key."""
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        server = RunningServer(tmp_path, NOTIFY_APPLICATION_PUBLISH_PORT=str(port))
        with pytest.raises(RuntimeError, match=f"port {port} on 127.0.0.1 is in use .* publish_port under"):
            server.start()


def test_it_is_said_where_it_is(server: LaneServer) -> None:
    """With the other addresses, at the start."""
    wait_until(lambda: "publish  " in server.log, "the announcement")
    assert f"publish  http://127.0.0.1:{server.port}/" in server.log


def test_without_it_there_is_none(tmp_path: Path) -> None:
    """It is off unless it is named."""
    with RunningServer(tmp_path) as server:
        wait_until(lambda: "mail     " in server.log, "the announcement")
        assert "publish  " not in server.log


# -- parts ---------------------------------------------------------------------------------------------------
def test_headers_have_no_letter_case() -> None:
    """And those of one name are one."""
    headers = Headers()
    for name, value in (
        (b"Via", b"a"),
        (b"VIA", b"b"),
        (b"Idempotency-Key", b"k"),
        (b"idempotency-key", b"l"),
    ):
        headers.add(name, value)
    assert (headers["via"], headers.get("Via"), headers.get("none"), headers.get("none", "x")) == (
        "a,b",
        "a,b",
        None,
        "x",
    )
    assert "vIa" in headers and 5 not in headers
    assert list(headers) == ["via", "idempotency-key"]
    assert len(headers) == 2
    assert headers.keys_given == ["k", "l"]


HEAD = b"POST / HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\n{}", (HEAD + b"Content-Length: \r\n\r\n", b"{}")),
        (HEAD + b"content-LENGTH: 0\r\nA: b\r\n\r\n", (HEAD + b"content-LENGTH: \r\nA: b\r\n\r\n", b"")),
        (HEAD + b"Content-Length: 5\r\n\r\n\r\n\r\n.", (HEAD + b"Content-Length: \r\n\r\n", b"\r\n\r\n.")),
        (HEAD + b"\r\n", None),
        (HEAD + b"Content-Length: 2\r\n\r\n{", None),
        (HEAD + b"Content-Length: 2\r\n\r\n{}P", None),
        (HEAD + b"Content-Length: 2", None),
        (HEAD + b"Content-Length: \r\n\r\n", None),
        (HEAD + b"Content-Length: +2\r\n\r\n{}", None),
        (HEAD + b"Content-Length: 2,2\r\n\r\n{}", None),
        (HEAD + b"Content-Length:\t2\r\n\r\n{}", None),
        (HEAD + b"A: content-length: 2\r\n\r\n{}", None),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", None),
        (HEAD + b"Content-Length: " + b"0" * 30 + b"2\r\n\r\n{}", None),
        (b"", None),
    ],
    ids=[
        "plain",
        "letter-case",
        "a-body-like-an-end",
        "no-length",
        "too-short",
        "more-behind-it",
        "half-a-head",
        "no-number",
        "a-sign",
        "a-list",
        "a-tab",
        "elsewhere",
        "twice",
        "many-digits",
        "nothing",
    ],
)
def test_heads_but_for_the_length(data: bytes, parts: tuple[bytes, bytes] | None) -> None:
    """Of plain requests that are there as a whole."""
    assert split(data) == parts


async def test_a_known_head_with_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a body may be is asked of each."""
    door = AnsweringDoor()
    async with served(door) as (reader, writer):
        for bound, status in ((1000, b"200"), (1000, b"200"), (3, b"413")):
            monkeypatch.setattr(AnsweringDoor, "max_body_bytes", bound)
            writer.write(request())
            assert (await reader.readuntil(b"\r\n")).split()[1] == status
            await reader.readuntil(b"\r\n\r\n")
        writer.write_eof()
    assert door.bodies == [body_of()] * 2


@pytest.mark.parametrize(
    ("url", "path", "query"),
    [
        (b"/a?b=c?d", "/a", b"b=c?d"),
        (b"/", "/", b""),
        (b"http://h:1/a?b", "/a", b"b"),
        (b"http://h", "/", b""),
        (b"http://h?b=http://c/d", "/", b"b=http://c/d"),
        (b"a?b=http://c/d", "/", b""),
        (b"*", "/", b""),
        (b"h:1", "/", b""),
    ],
)
def test_targets(url: bytes, path: str, query: bytes) -> None:
    """In origin form and in absolute form (RFC 9112 section 3.2)."""
    assert target_of(url) == (path, query)


@pytest.mark.parametrize(
    "sent", [b"", b"POST /notify HT", request()[:-1]], ids=["nothing", "half-a-head", "half-a-body"]
)
async def test_who_takes_too_long_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends no request, and who sends half of one."""
    monkeypatch.setattr(lane_port, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(protocol, "IDLE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 0.1)
    async with served(AnsweringDoor()) as (reader, writer):
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_more_at_once_than_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are begun are answered, then the connection ends; the others have no effect."""
    monkeypatch.setattr(protocol, "MAX_REQUESTS", 5)
    door = AnsweringDoor()
    async with served(door) as (reader, writer):
        writer.write(request() * 8)
        said = await reader.read()
    assert said.count(b"HTTP/1.1 200 OK\r\n") == 5
    assert said.count(b"Connection: close\r\n") == 1
    assert door.bodies == [body_of()] * 5


async def test_a_client_that_takes_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is cut off, and its other requests are not begun."""
    monkeypatch.setattr(lane_port, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 0.1)
    door = AnsweringDoor(b"x" * 10_000_000)
    async with served(door) as (_, writer):
        writer.write(request() * 3)
    assert len(door.bodies) == 1


async def test_a_door_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Is answered for with 500, and in the log; the connection goes on."""
    async with served(AnsweringDoor(None)) as (reader, writer):
        writer.write(request() + request(None, "Connection: close"))
        assert (await reader.read()).count(b"HTTP/1.1 500 Internal Server Error\r\n") == 2
    assert [record.getMessage() for record in caplog.records] == ["a request to notify failed"] * 2


@contextlib.asynccontextmanager
async def served(door: Door) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a port with this door; it has been closed by the server at the end."""
    left = asyncio.Event()
    port = PublishingPort(open_gate(), [door], headers={}, note=lambda *_: None)
    looking = asyncio.create_task(port.run())
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    port.serve(ours, None, left.set)
    reader, writer = await asyncio.open_connection(sock=theirs)
    yield reader, writer
    async with asyncio.timeout(30):
        await left.wait()
    assert len(port) == 0
    looking.cancel()
    writer.close()
    await port.close()


def open_gate() -> Gate:
    """Anybody comes in who is asked."""
    return Gate(lambda address, _: Caller(address), None, None)  # type: ignore[arg-type]  # not asked


class AnsweringDoor(Door):
    """Lets everybody in, and answers with this; None: it fails."""

    name = "notify"
    paths = ("/notify",)

    def __init__(self, answer: bytes | None = b"") -> None:
        self._answer = answer
        self.bodies: list[bytes] = []

    @property
    def max_body_bytes(self) -> int:
        return 1000

    async def check_early(self, visit: Visit) -> None:
        pass

    async def carry_out(self, visit: Visit, body: bytes) -> Answer:
        self.bodies.append(body)
        if self._answer is None:
            raise RuntimeError("broken")
        return Answer(200, self._answer)
