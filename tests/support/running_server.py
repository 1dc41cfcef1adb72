"""The server as people run it: its command in a process of its own, on a free loopback port, with its own data."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.ports import free_port
from tests.support.processes import Process, wait_until

_ROOT = Path(__file__).resolve().parents[2]
_REQUEST_TIMEOUT_S = 30.0
_COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Response:
    """An HTTP answer, its body read to the end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer:
    """`notification-server serve`, started and ended by a test.

    `folder` (must exist) gets the data (`data/`) and the log; both outlive the server, so that `start` after
    `stop` or `kill` goes on with them, on the same port. Settings are those of the environment, as in
    `NOTIFY_APPLICATION_LIMIT="5"`. As a context manager it starts, and is ended for sure.
    """

    def __init__(
        self, folder: Path, *, port: int | None = None, arguments: Sequence[str] = (), **settings: str
    ) -> None:
        self.port = port or free_port()
        self.data = folder / "data"
        self._folder = folder
        self._env = {
            "PYTHONPATH": str(_ROOT),
            "NOTIFY_APPLICATION_PORT": str(self.port),
            "NOTIFY_APPLICATION_DATA": str(self.data),
            **settings,
        }
        self._process = Process(
            [sys.executable, "-P", "-m", "server", "serve", *arguments],
            log=folder / "server.log",
            cwd=folder,
            env=self._env,
        )

    # -- the process -----------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start, and block until it serves. Raises RuntimeError with the log if it ends instead."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start, and wait for nothing."""
        self._process.start()

    def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        wait_until(self._is_ready, f"the server on port {self.port} becoming ready", timeout_s)

    def _is_ready(self) -> bool:
        if not self._process.is_running:
            raise RuntimeError(f"the server ended with {self._process.returncode}:\n{self.log}")
        try:
            # /healthz answers earlier, and /readyz asks the store.
            return self.get("/client/notifications.js").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> int:
        """SIGTERM; the return code. Kills and raises if the server does not end by itself."""
        try:
            return self._process.stop()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise RuntimeError(f"the server did not end at SIGTERM:\n{self.log}") from None

    def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        self._process.signal(number)

    def wait(self) -> int:
        """Block until it has ended; its return code."""
        return self._process.wait()

    def restart(self) -> None:
        """Stop in order and start again: same port, same data."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    @property
    def log(self) -> str:
        """All that it has printed (stdout and stderr), over all its starts."""
        return self._process.output()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running:
            self.stop()

    # -- commands beside it ----------------------------------------------------------------------------------
    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`notification-server` with these arguments and the settings of the server, which need not run; blocks."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "server", *arguments],
            cwd=self._folder,
            env={**os.environ, **self._env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )

    def must_run(self, *arguments: str) -> Any:
        """What `run` prints as JSON. Raises RuntimeError if the command could not be carried out."""
        ended = self.run(*arguments, "--json")
        if ended.returncode != 0:
            raise RuntimeError(f"{arguments} ended with {ended.returncode}: {ended.stderr}")
        return json.loads(ended.stdout)

    # -- its addresses ---------------------------------------------------------------------------------------
    @property
    def url(self) -> str:
        """The base of all HTTP addresses, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        """The raw WebSocket."""
        return f"ws://127.0.0.1:{self.port}/notification/websocket"

    def port_of(self, path: str) -> int:
        """By which port a path is asked for."""
        return self.port

    # -- requests --------------------------------------------------------------------------------------------
    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One request on a connection of its own; blocks."""
        port = self.port_of(path)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def notify(self, *users: str | Mapping[str, str], content: str = "", **fields: Any) -> Response:
        """POST /notify as JSON for these users: an id, or an object with id and email."""
        recipients = [{"id": user} if isinstance(user, str) else user for user in users]
        body = json.dumps({"users": recipients, "content": content, **fields}).encode()
        return self.request("POST", "/notify", body, {"Content-Type": "application/json"})

    def must_notify(self, *users: str | Mapping[str, str], content: str = "", **fields: Any) -> None:
        """`notify`, for tests that go on from there. Raises RuntimeError if the answer is not 200."""
        answer = self.notify(*users, content=content, **fields)
        if answer.status != 200:
            raise RuntimeError(f"POST /notify answered {answer.status}: {answer.body.decode()}")
