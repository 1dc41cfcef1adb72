"""The recipes of a document, and the place where a reader follows one: a folder, a shell in it, a server."""

from __future__ import annotations

import http.client
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from tests.support.ports import free_port
from tests.support.running_server import Response, RunningServer

_ROOT = Path(__file__).resolve().parents[2]

SECRET = "0123456789abcdef" * 4

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(document: Path) -> dict[str, str]:
    """The text under each heading of the third level, to the next heading."""
    pieces = re.split(r"^(#{2,3}) (.+)\n", document.read_text("utf-8"), flags=re.MULTILINE)
    return {
        heading: text
        for level, heading, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True)
        if level == "###"
    }


class Recipe:
    """The fenced blocks of a section, taken one after the other as a reader would."""

    def __init__(self, text: str) -> None:
        self._left = _FENCE.findall(text)

    def take(self, language: str) -> str:
        """The next block, which must be of this language."""
        assert self._left, f"no block is left, where one of {language} should be"
        found, block = self._left.pop(0)
        assert found == language, f"a block of {found}, where one of {language} should be:\n{block}"
        return str(block)

    def end(self) -> None:
        """All has been taken."""
        assert not self._left, f"the test does not run this block:\n{self._left[0][1]}"


class Place:
    """A folder in which a server may run and a shell does. What the document says about addresses is replaced by those
    that are free here; `replace` names more of that. As a context manager all of it ends."""

    def __init__(self, folder: Path, replace: Mapping[str, str] | None = None, **settings: str) -> None:
        self.folder = folder
        self.server = _Server(folder, **settings)
        self.replace = {"8587": str(self.server.port), "9000": str(free_port()), **(replace or {})}
        env = {
            "PYTHONPATH": str(_ROOT),
            "NOTIFY_APPLICATION_PORT": str(self.server.port),
            "NOTIFY_APPLICATION_DATA": str(self.server.data),
            "SECRET": SECRET,
            **settings,
        }
        self._shell = _Shell(folder, env)
        self._beside: list[_Shell] = []
        self._env = env

    def fill(self, block: str) -> str:
        """All in one pass: what is put in may contain what is replaced (a port, 29000, the 9000)."""
        texts = "|".join(re.escape(text) for text in self.replace)
        return re.sub(texts, lambda found: self.replace[found[0]], block)

    def run(self, block: str) -> str:
        """What the shell prints, to the end of these commands."""
        return self._shell.run(self.fill(block))

    def run_beside(self, block: str) -> None:
        """Begin these commands in a shell of their own, which goes on until the end of the test."""
        shell = _Shell(self.folder, self._env)
        self._beside.append(shell)
        shell.begin(self.fill(block))

    def write(self, block: str) -> str:
        """Make the file whose name stands in the first line, and return that."""
        name = block.splitlines()[0].removeprefix("# ")
        (self.folder / name).write_text(self.fill(block), "utf-8")
        return name

    def serve(self, config: str = "") -> None:
        """Start the server with this config.ini, or anew."""
        text = self.fill(config).replace("=…", f"={SECRET}")
        assert "…" not in text
        if config:
            (self.folder / "config.ini").write_text(text, "utf-8")
        self.server.is_secure = "[TLS]" in text
        if self.server.is_running:
            self.server.restart()
        else:
            self.server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shell in [self._shell, *self._beside]:
            shell.close()
        if self.server.is_running:
            self.server.stop()


class _Server(RunningServer):
    """With or without TLS; who it is was not asked."""

    is_secure = False

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        if not self.is_secure:
            return super().request(method, path, body, headers)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()


class _Shell:
    """Keeps its variables from one piece of script to the next, as a reader's does."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        command = programs / "notification-server"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m server "$@"\n')
        command.chmod(0o755)
        path = [str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        # Where curl shows its progress.
        self._errors = (folder / "shell.log").open("a")
        self._process = subprocess.Popen(
            ["sh"],
            cwd=folder,
            env={**os.environ, **env, "PATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, script: str) -> str:
        end = uuid4().hex
        self.begin(f"{script}\necho; echo {end}")
        assert self._process.stdout is not None
        printed: list[str] = []
        for line in self._process.stdout:
            if line.strip() == end:
                return "".join(printed)
            printed.append(line)
        raise AssertionError(f"the shell ended:\n{script}\n{''.join(printed)}")

    def begin(self, script: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{script}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """With all that it has started."""
        os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()
