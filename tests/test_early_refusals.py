"""A request that is refused before its body has come: the answer arrives, whoever is still sending."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.lane import PORTS
from tests.support.running_server import RunningServer

MIB = 1024 * 1024

GOOD = b'{"users": [], "content": ""}'


@pytest.fixture(scope="module", params=PORTS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Nobody may publish here but with a key of the store; there is none, so that no body can hold one."""
    folder = tmp_path_factory.mktemp("server")
    with request.param(folder, NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY="false") as running:
        yield running


@pytest.fixture
def connection(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connected:
        yield connected


def head(*fields: str) -> bytes:
    return "\r\n".join(["POST /notify HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer, of which nothing is left to read then."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    fields, _, body = received.partition(b"\r\n\r\n")
    length = int(fields.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _some(connection)
    assert len(body) == length
    return int(fields.split()[1]), body


def _some(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    assert chunk, "the connection was closed"
    return chunk


def chunked(body: bytes, *, is_last: bool = True) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if is_last else b"")


@pytest.mark.parametrize("size", [MIB, 5 * MIB])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_who_sends_everything_first_reads_the_answer(
    connection: socket.socket, size: int, is_chunked: bool
) -> None:
    """And goes on with the next request on the same connection."""
    for _ in range(3):
        body = b"x" * size
        if is_chunked:
            connection.sendall(head("Transfer-Encoding: chunked") + chunked(body))
        else:
            connection.sendall(head(f"Content-Length: {size}") + body)
        status, said = answer(connection)
        assert status == (413 if size > 4 * MIB and not is_chunked else 403)
        assert said.startswith(b'{"type"')


def test_the_answer_does_not_wait_for_the_body(connection: socket.socket) -> None:
    """Who reads while sending can stop."""
    connection.sendall(head(f"Content-Length: {5 * MIB}") + b"the beginning")
    assert answer(connection)[0] == 413


def test_who_asks_first_is_not_told_to_go_on(connection: socket.socket) -> None:
    """The refusal is all that comes (RFC 9110 section 10.1.1), and the connection ends with it."""
    connection.sendall(head(f"Content-Length: {5 * MIB}", "Expect: 100-continue"))
    assert answer(connection)[0] == 413
    assert connection.recv(1) == b""


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_without_an_end_is_cut_off(connection: socket.socket, is_chunked: bool) -> None:
    """After the answer as much is read as any client of good will sends, and no more."""
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {1024 * MIB}"
    connection.sendall(head(framing))
    assert answer(connection)[0] in (403, 413)
    body = b"x" * MIB
    with pytest.raises((ConnectionError, BrokenPipeError)):
        for _ in range(100):
            connection.sendall(chunked(body, is_last=False) if is_chunked else body)


def test_without_a_body_nothing_is_waited_for(connection: socket.socket) -> None:
    """The next request is answered at once."""
    for _ in range(2):
        connection.sendall(head("Content-Length: 0"))
        assert answer(connection)[0] == 403
