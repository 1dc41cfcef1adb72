"""The pages of docs/integrations/: their blocks, and the place where their examples are run, each in its own language,
while the page's own example of listening runs as well."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import browser
from tests.support.available import unavailable
from tests.support.backends import Backend
from tests.support.client import SocketClient
from tests.support.processes import Process, wait_until
from tests.support.recipes import Place, Recipe, sections
from tests.support.servers import OwnServer

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "integrations"

FILES = {"python": "example.py", "js": "example.mjs", "php": "example.php", "go": "main.go"}

COMMANDS = {
    "python": "python3 example.py",
    "js": "node example.mjs",
    "php": "php example.php",
    # The libraries that Debian packages, and nothing from the network.
    "go": "GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS= GOPROXY=off GOCACHE=$PWD/go go run main.go",
}

LISTENING = """
import {{ WebSocket as Ws }} from "ws";
globalThis.WebSocket ??= Ws;
console.log = (...what) => process.stdout.write(JSON.stringify(what) + "\\n");
{constants}
{example}
const ready = () => console.log("listening");
socket.io ? socket.on("connect", ready) : socket.addEventListener("open", ready);
"""
"""A page's script in Node: with the WebSocket that browsers have, what the page leaves open, and a line for each thing
that the example prints."""


def chapters(page: str) -> dict[str, str]:
    """The parts of a page that one chooses from, by their headings (of the third level)."""
    return sections(FOLDER / f"{page}.md")


def story(page: str) -> Recipe:
    """All else on the page, which is for everybody."""
    text = (FOLDER / f"{page}.md").read_text("utf-8")
    first, *pieces = re.split(r"^(#{2,3}) .+\n", text, flags=re.MULTILINE)
    told = [text for level, text in zip(pieces[::2], pieces[1::2], strict=True) if level == "##"]
    return Recipe("\n".join([first, *told]))


class Guide:
    """One page, followed. `shown`: what the page's listening example prints of a document. As a context manager all of
    it ends."""

    def __init__(self, page: str, place: Place, shown: Callable[[dict[str, Any]], list[Any]]) -> None:
        self.page = page
        self.chapters = chapters(page)
        self.place = place
        self.shown = shown
        self.users: dict[str, str | None] = {"alice": None}
        """Who is notified, with a token; None: they join by their password, which is their name."""
        self.backend: Backend
        """Who has the key of the page."""
        self.broker: OwnServer
        """Where the page publishes, if not here."""
        self.kept: dict[str, str] = {}
        """What tests of their own need."""
        self._listening: Process | None = None
        (place.folder / "node_modules").symlink_to(browser.node_modules())

    def __enter__(self) -> Self:
        self.place.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listening is not None:
            self._listening.kill()
        self.place.__exit__(kind, error, trace)

    # -- listening -------------------------------------------------------------------------------------------
    def listen(self, example: str, **constants: str) -> None:
        """Run the page's script. `constants`: what the page leaves to its reader."""
        text = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items())
        script = self.place.folder / "listen.mjs"
        script.write_text(LISTENING.format(constants=text, example=self.place.fill(example)), "utf-8")
        self._listening = Process(["node", script], log=script.with_suffix(".log"), cwd=self.place.folder)
        self._listening.start()
        self._listening.wait_for_output('["listening"]')

    def heard(self) -> list[list[Any]]:
        """All that the script has printed."""
        assert self._listening is not None
        lines = self._listening.output().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("[") and line.endswith("\n")]

    # -- publishing ------------------------------------------------------------------------------------------
    def run(self, language: str, block: str) -> str:
        """Run an example of this language as it stands there; what it prints. It must end well."""
        if language in ("php", "go") and shutil.which(language) is None:
            unavailable(language, f"there is no {language}")
        command = block
        if language in FILES:
            (self.place.folder / FILES[language]).write_text(self.place.fill(block), "utf-8")
            command = COMMANDS[language]
        printed, _, status = self.place.run(f"{command}\necho status=$?").rpartition("status=")
        assert int(status) == 0, (printed, (self.place.folder / "shell.log").read_text("utf-8"))
        return printed

    def publish(self, language: str, block: str) -> tuple[str, dict[str, Any]]:
        """What the example prints, and the document that it makes. Each user's classic screen is told, each inbox has
        it once, and the page's own listening example has printed it."""
        before = self.heard()
        printed, document = asyncio.run(self._publish(lambda: self.run(language, block)))
        shown = self.shown(document)
        count = before.count(shown)
        wait_until(lambda: self.heard().count(shown) > count, f"{shown} being heard")
        assert self.heard().count(shown) == count + 1
        return printed, document

    async def _publish(self, run: Callable[[], str]) -> tuple[str, dict[str, Any]]:
        async with AsyncExitStack() as stack:
            screens = [await self._screen(stack, *user) for user in self.users.items()]
            printed = await asyncio.to_thread(run)
            documents = [await _told(screen, before) for screen, before in screens]
            return printed, documents[0]

    async def _screen(
        self, stack: AsyncExitStack, user: str, token: str | None
    ) -> tuple[SocketClient, list[dict[str, Any]]]:
        """A classic screen of the user, and what is in the inbox."""
        screen = await stack.enter_async_context(SocketClient(self.place.server))
        await (screen.join(user) if token is None else screen.join_by_token(token))
        return screen, await screen.content(limit=100)


async def _told(screen: SocketClient, before: list[dict[str, Any]]) -> dict[str, Any]:
    """The document that comes to a screen, and is in the inbox as the only new one."""
    [document] = await screen.next("notification")
    assert await screen.content(limit=100) == [document, *before]
    found: dict[str, Any] = document
    return found
