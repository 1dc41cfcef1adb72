"""Browser pages that notice what went wrong in them."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from playwright.async_api import Browser, ConsoleMessage, Error, Page, expect

# Long enough for a busy machine: it is reached only by what never comes.
_TIMEOUT_MS = 30_000
expect.set_options(timeout=_TIMEOUT_MS)


class Pages:
    """Opens pages, each in a context of its own, as in another browser. At the end all must have been without errors.

    An error is what a page wrote to the console as an error or a warning, and an uncaught exception.
    """

    def __init__(self, browser: Browser) -> None:
        self._problems: list[str] = []
        self._browser = browser
        # SockJS's iframe and htmlfile pages set it, as the protocol has it; Chromium ignores it, and says so.
        self._forgiven: list[str] = ["document.domain"]

    async def open(self, url: str, **context: Any) -> Page:
        """A page that has loaded `url`; `context`: options of playwright's `new_context`."""
        page = await self._new_page(**context)
        await page.goto(url)
        return page

    async def bare(self, origin: str) -> Page:
        """A page of this origin (of one of our servers) with nothing in it, not even an icon, and without a policy, as
        somebody's own page would be. (Chromium would not let one that no server has sent connect to this machine.)"""
        self.forgive("/favicon.ico")
        page = await self._new_page(bypass_csp=True)
        await page.goto(f"{origin}/healthz")
        return page

    async def _new_page(self, **context: Any) -> Page:
        page = await (await self._browser.new_context(**context)).new_page()
        page.set_default_timeout(_TIMEOUT_MS)
        page.on("console", self._on_console)
        page.on("pageerror", self._on_error)
        return page

    def forgive(self, text: str) -> None:
        """Problems that contain `text` are none."""
        self._forgiven.append(text)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._problems.append(f"console: {message.text} ({message.location['url']})")

    def _on_error(self, error: Error) -> None:
        self._problems.append(f"exception: {error}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = [text for text in self._problems if not any(word in text for word in self._forgiven)]
        if error is None and problems:
            raise AssertionError("the pages reported:\n" + "\n".join(problems))
