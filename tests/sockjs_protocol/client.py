"""A SockJS service as a client sees it, request by request; and what answers have in common."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit

from websockets.sync.client import ClientConnection, connect

TIMEOUT_S = 5.0

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Answer:
    """A complete response. `headers[name]` is None for one that is not there."""

    status: int
    headers: Message
    body: str

    @property
    def content_type(self) -> str | None:
        """Without spaces."""
        value = self.headers["Content-Type"]
        return None if value is None else value.replace(" ", "")


class Stream:
    """A response that goes on, read line by line."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    @property
    def content_type(self) -> str:
        return self.headers["Content-Type"].replace(" ", "")

    def line(self) -> str:
        """The next line with its end; "" at the end of the response."""
        return self._response.readline().decode()

    def lines(self, count: int) -> str:
        return "".join(self.line() for _ in range(count))

    def read_to_end(self) -> str:
        return self._response.read().decode()


class Service:
    """A SockJS service at a base URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    def new_session(self) -> str:
        """The path of a session that nobody has used."""
        return f"/000/{uuid.uuid4()}"

    def request(
        self, method: str, path: str, body: str | bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        with self.stream(method, path, body, headers) as stream:
            return Answer(stream.status, stream.headers, stream.read_to_end())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: str | bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("POST", path, body, headers)

    def options(self, path: str, origin: str, headers: Mapping[str, str] | None = None) -> Answer:
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST", **(headers or {})}
        return self.request("OPTIONS", path, headers=preflight)

    @contextlib.contextmanager
    def stream(
        self, method: str, path: str, body: str | bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Iterator[Stream]:
        """A request whose response may go on; leaving the block cuts it."""
        connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT_S)
        try:
            data = body.encode() if isinstance(body, str) else body
            connection.request(method, urlsplit(self.url).path + path, body=data, headers=dict(headers or {}))
            with connection.getresponse() as response:
                yield Stream(response)
        finally:
            connection.close()

    @contextlib.contextmanager
    def waiting(self, method: str, path: str) -> Iterator[None]:
        """A request whose response has not begun; leaving the block cuts it."""
        connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT_S)
        try:
            connection.request(method, urlsplit(self.url).path + path, body=b"")
            yield
        finally:
            connection.close()

    def websocket(self, path: str) -> contextlib.AbstractContextManager[ClientConnection]:
        return connect("ws" + self.url.removeprefix("http") + path, compression=None, open_timeout=TIMEOUT_S)

    @contextlib.contextmanager
    def raw(self, request: str) -> Iterator[socket.SocketIO]:
        """A connection on which `request` was written; `{host}` and `{path}` in it stand for the service's own."""
        parts = urlsplit(self.url)
        with socket.create_connection(self.address, timeout=TIMEOUT_S) as connection:
            text = request.replace("{host}", parts.netloc).replace("{path}", parts.path)
            connection.sendall(text.encode())
            with connection.makefile("rb", buffering=0) as reader:
                yield reader


def read_head(reader: socket.SocketIO) -> tuple[int, Message]:
    """The status and headers at the front of a raw response."""
    status_line = reader.readline().decode()
    return int(status_line.split()[1]), http.client.parse_headers(_Unbuffered(reader))


class _Unbuffered:
    """`parse_headers` wants a buffered reader, which would read on into the body."""

    def __init__(self, reader: socket.SocketIO) -> None:
        self._reader = reader

    def readline(self, limit: int = -1) -> bytes:
        return self._reader.readline(limit)


# -- what answers have in common -----------------------------------------------------------------------------


def assert_allows(answer: Answer | Stream, origin: str | None) -> None:
    """A page of this origin may read the answer, and send cookies; None: no page asked."""
    if origin is None:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Access-Control-Allow-Credentials"] is None
    else:
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"


def assert_never_cached(answer: Answer | Stream) -> None:
    directives = "no-store, no-cache, no-transform, must-revalidate, max-age=0"
    assert answer.headers["Cache-Control"] == directives
    assert answer.headers["Expires"] is None
    assert answer.headers["Last-Modified"] is None


def assert_cached(answer: Answer) -> None:
    """For about a year."""
    assert "public" in answer.headers["Cache-Control"]
    assert re.search(r"max-age=[1-9]\d{6}", answer.headers["Cache-Control"])
    assert answer.headers["Expires"]
    assert answer.headers["Last-Modified"] is None


def assert_preflight(service: Service, path: str, methods: str) -> None:
    """The answer to a browser that asks before it sends."""
    for origin in ("http://page.example", "null"):
        answer = service.options(path, origin)
        assert answer.status in (200, 204)
        assert answer.body == ""
        assert_cached(answer)
        assert int(answer.headers["Access-Control-Max-Age"]) > 1_000_000
        allowed = {method.strip() for method in answer.headers["Access-Control-Allow-Methods"].split(",")}
        assert set(methods.split()) <= allowed
        assert_allows(answer, origin)
