"""A real HTTP server that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Question:
    """A request as it came. `body`: parsed, if it is JSON."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class AnsweringServer:
    """On a free port of 127.0.0.1, from `async with` to its end. What is set counts from the next question on.

    `status`, `body` (bytes, or what becomes JSON), `headers`: the answer. `hold()`: answers wait until `let_go()`.
    """

    def __init__(self, body: Any = b"", *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.status = 200
        self.body = body
        self.headers: dict[str, str] = {}
        self.questions: list[Question] = []
        self._tls = tls
        self._may_go = asyncio.Event()
        self._may_go.set()
        self._asked = asyncio.Condition()
        self.port = port

    async def __aenter__(self) -> Self:
        application = Application([(".*", _Handler, {"server": self})], log_function=lambda _: None)
        self._server = HTTPServer(application, ssl_options=self._tls)
        sockets = bind_sockets(self.port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()
        self._server.stop()
        await self._server.close_all_connections()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/answers"

    def hold(self) -> None:
        self._may_go.clear()

    def let_go(self) -> None:
        self._may_go.set()

    async def asked(self, count: int) -> None:
        """Return when there were so many questions."""
        async with asyncio.timeout(_TIMEOUT_S), self._asked:
            await self._asked.wait_for(lambda: len(self.questions) >= count)

    async def answer(self, request: HTTPServerRequest) -> tuple[int, dict[str, str], bytes]:
        try:
            body = json.loads(request.body)
        except ValueError:
            body = request.body
        headers = {name.lower(): value for name, value in request.headers.get_all()}
        # Before the wait: it is the answer of the moment of the question.
        status, sent, answer = self.status, dict(self.headers), self.body
        async with self._asked:
            self.questions.append(Question(request.method or "", request.path, headers, body))
            self._asked.notify_all()
        await self._may_go.wait()
        return status, sent, answer if isinstance(answer, bytes) else json.dumps(answer).encode()


class _Handler(RequestHandler):
    def initialize(self, server: AnsweringServer) -> None:
        self.server = server

    async def get(self) -> None:
        status, headers, body = await self.server.answer(self.request)
        self.set_status(status)
        for name, value in headers.items():
            self.set_header(name, value)
        if body:
            self.write(body)

    post = get
