"""A server of dialect 2 that is wrong in one way: a proxy before a right one, which changes what that says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler, websocket_connect

from server.conformance.lines import Closed, Stream

Frame = dict[str, Any]


class Tamper:
    """One connection, or one request, of a server that is right. A wrong one overrides one of these."""

    def frame(self, frame: Frame) -> list[Frame]:
        """What clients are told instead of this frame."""
        return [frame]

    def command(self, command: Frame) -> list[Frame]:
        """What the server hears instead; commands that are no objects are passed on."""
        return [command]

    def event(self, id_: str | None, frame: Frame) -> list[tuple[str | None, Frame]]:
        """Of a stream."""
        return [(id_, frame)]

    def request(self, method: str, path: str, headers: dict[str, str]) -> None:
        """Of HTTP: its headers may be changed."""

    def reply(
        self, method: str, path: str, status: int, headers: dict[str, str], fields: Any
    ) -> tuple[int, Any]:
        """Of HTTP; `fields`: the body, parsed, None if there is none."""
        return status, fields

    def close_code(self, code: int) -> int:
        return code


class _Socket(WebSocketHandler):
    def initialize(self, upstream: str, make: Callable[[], Tamper], tasks: set[asyncio.Task[None]]) -> None:
        self._upstream, self._tamper, self._tasks = upstream, make(), tasks

    def check_origin(self, origin: str) -> bool:
        return True

    async def open(self, *_: str, **__: str) -> None:
        url = f"ws://{self._upstream}{self.request.path}"
        self._server = await websocket_connect(url, max_message_size=2**26)
        task = asyncio.create_task(self._pass_on())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self) -> None:
        while (message := await self._server.read_message()) is not None:
            for frame in self._tamper.frame(json.loads(message)):
                with contextlib.suppress(WebSocketClosedError):
                    await self.write_message(json.dumps(frame))
        code = self._server.close_code
        self.close(None if code is None else self._tamper.close_code(code), self._server.close_reason)

    async def on_message(self, message: str | bytes) -> None:
        try:
            command = json.loads(message)
        except ValueError:
            command = None
        told = self._tamper.command(command) if isinstance(command, dict) else []
        for each in [json.dumps(each) for each in told] if told or isinstance(command, dict) else [message]:
            await self._server.write_message(each)

    def on_close(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()


class _Stream(RequestHandler):
    def initialize(self, upstream: str, make: Callable[[], Tamper]) -> None:
        self._upstream, self._tamper = upstream, make()

    async def get(self) -> None:
        names = ("Authorization", "Last-Event-ID")
        headers = {name: self.request.headers[name] for name in names if name in self.request.headers}
        stream = await Stream.open(f"http://{self._upstream}", self.request.uri or "", headers, 30)
        self._upstream_stream = stream
        self.set_status(stream.status)
        self.set_header("Content-Type", stream.headers.get("content-type", ""))
        try:
            while stream.status == 200:
                event = await stream.event()
                for id_, frame in self._tamper.event(event.id, event.data):
                    self.write("" if id_ is None else f"id: {id_}\n")
                    self.write(f"data: {json.dumps(frame)}\n\n")
                await self.flush()
        except (Closed, StreamClosedError):
            pass
        finally:
            stream.close()

    def on_connection_close(self) -> None:
        if hasattr(self, "_upstream_stream"):
            self._upstream_stream.close()


class _Request(RequestHandler):
    def initialize(self, upstream: str, make: Callable[[], Tamper], http: AsyncHTTPClient) -> None:
        self._upstream, self._tamper, self._http = upstream, make(), http

    async def _any(self) -> None:
        method, path = self.request.method or "", self.request.uri or ""
        passed = ("Authorization", "If-None-Match", "Content-Type")
        headers = {name: self.request.headers[name] for name in passed if name in self.request.headers}
        self._tamper.request(method, path, headers)
        request = HTTPRequest(
            f"http://{self._upstream}{path}",
            method,
            headers,
            self.request.body or None,
            allow_nonstandard_methods=True,
        )
        answer = await self._http.fetch(request, raise_error=False)
        try:
            fields = json.loads(answer.body)
        except ValueError:
            fields = None
        named = ("Content-Type", "ETag", "Retry-After", "WWW-Authenticate", "Allow")
        told = {name: answer.headers[name] for name in named if name in answer.headers}
        status, fields = self._tamper.reply(method, path, answer.code, told, fields)
        self.set_status(status)
        for name, value in told.items():
            self.set_header(name, value)
        if status not in (204, 304):
            self.write(answer.body if fields is None else json.dumps(fields))
        self.finish()

    get = post = patch = delete = put = _any  # type: ignore[assignment]  # Tornado's are not awaitable for mypy

    def compute_etag(self) -> None:
        """The server's own."""


@asynccontextmanager
async def tampering(upstream_port: int, make: Callable[[], Tamper] = Tamper) -> AsyncIterator[str]:
    """Its address. `make` is called for each connection and each request."""
    upstream = f"127.0.0.1:{upstream_port}"
    http = AsyncHTTPClient(force_instance=True, max_clients=100)
    tasks: set[asyncio.Task[None]] = set()
    what = {"upstream": upstream, "make": make}
    application = Application(
        [
            (r"/ws/v2", _Socket, {**what, "tasks": tasks}),
            (r"/events", _Stream, what),
            (r"/.*", _Request, {**what, "http": http}),
        ],
        log_function=lambda handler: None,
    )
    server = HTTPServer(application)
    socket, port = bind_unused_port()
    server.add_socket(socket)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        await server.close_all_connections()
        if tasks:  # the server takes their goodbye
            await asyncio.wait(tasks, timeout=10)
        http.close()
