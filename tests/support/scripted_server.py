"""A real HTTP server that answers by a script, counts its connections, and may cut them."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_HELD_S = 30.0


@dataclass(frozen=True)
class Reply:
    """`body`: a text, or what becomes JSON; None: empty."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


CUT = Reply(0)
"""No answer: the connection is closed when the request has been read."""


@dataclass(frozen=True)
class Asked:
    """A request as it came. `headers` by lower-case names; `connection`: its number, from 0."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


class ScriptedServer:
    """On a free port of 127.0.0.1, in threads of its own, from `with` to its end. Requests are answered in the order in
    which they come, each by the next reply; one too many by 500. `hold()`: from now on none is answered until the end.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._replies: deque[Reply] = deque()
        self._lock = threading.Lock()
        self._connections = 0
        self._may_go = threading.Event()
        self._may_go.set()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with script._lock:
                    self.number = script._connections
                    script._connections += 1

            def do_POST(self) -> None:
                script._answer(self, self.number)

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="scripted server")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def reply(self, *replies: Reply) -> None:
        """Answer so, next."""
        self._replies.extend(replies)

    def hold(self) -> None:
        self._may_go.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._may_go.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, connection: int) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.asked.append(Asked(handler.command, handler.path, headers, body, connection))
            reply = self._replies.popleft() if self._replies else Reply(500)
        if not self._may_go.is_set():
            self._may_go.wait(_HELD_S)
            reply = CUT
        if reply is CUT:
            handler.close_connection = True
            return
        self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        content = b"" if reply.body is None else text.encode()
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.status != 204:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
