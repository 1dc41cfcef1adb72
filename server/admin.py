"""Pages: the example page, the client files, and the demo's mailbox.

The page and the demo exist in DEBUG only, and answer callers on this machine only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from server.callers import Caller
from server.methods import LeadingHandler, MethodNamingHandler
from server.users import DEMO_USERS

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: https: http:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'self'; object-src 'none'"
)
"""Pictures of notifications may come from anywhere; scripts and styles only from here, and none stands in the
page."""

MAILBOX_SIZE = 50
"""The newest mails that the demo's mailbox shows."""

ListMails = Callable[[int], Awaitable[list[dict[str, Any]]]]
"""The newest mails, at most so many, newest first; as `mail_folder` describes them."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What the handlers need. `identify`: see `callers.CallerPolicy`. `list_mails` is None where mail goes out by SMTP:
    then there is no mailbox to show."""

    folder: Path
    identify: Callable[[str, Mapping[str, str]], Caller]
    list_mails: ListMails | None


class _DemoHandler(MethodNamingHandler):
    """Answers callers on this machine only."""

    def initialize(self, pages: Pages) -> None:
        self._pages = pages

    def prepare(self) -> None:
        _refuse_foreign(self, self._pages)


class DemoUsersHandler(_DemoHandler):
    """`GET /demo/users`: whom the page can sign in and write to."""

    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.write({"users": [{"id": name, "email": f"{name}@example.test"} for name in DEMO_USERS]})


class DemoMailboxHandler(_DemoHandler):
    """`GET /demo/mailbox`: the mails that would have gone out, newest first."""

    async def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        list_mails = self._pages.list_mails
        if list_mails is None:
            raise HTTPError(404, reason="Mail goes out by SMTP")
        self.write({"mails": await list_mails(MAILBOX_SIZE)})


class PageHandler(MethodNamingHandler, StaticFileHandler):
    """`GET /` and `GET /example/…`: the page and its files."""

    def initialize(self, pages: Pages) -> None:  # type: ignore[override]  # Tornado passes it what the route holds
        super().initialize(str(pages.folder), default_filename="index.html")
        self._pages = pages

    def prepare(self) -> None:
        _refuse_foreign(self, self._pages)

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-cache")


class ClientFileHandler(MethodNamingHandler, StaticFileHandler):
    """`GET /client/…`: the client files, for pages of any origin."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.set_header("X-Content-Type-Options", "nosniff")
        # The modules of the client go together: no page is to have some of them from before an upgrade.
        is_module = path.startswith("notifications")
        self.set_header("Cache-Control", "no-cache" if is_module else "public, max-age=3600")


def _refuse_foreign(handler: RequestHandler, pages: Pages) -> None:
    request = handler.request
    caller = pages.identify(request.remote_ip or "", request.headers)
    if not caller.is_loopback:
        raise HTTPError(403, reason="The demo answers callers on this machine only")


def routes(folder: Path) -> list[tuple[Any, ...]]:
    """What every server answers."""
    return [
        (r"/client/(notifications(?:/[a-z0-9]+)?\.js)", ClientFileHandler, {"path": str(folder)}),
        (r"/client/(sockjs\.min\.js)", ClientFileHandler, {"path": str(folder / "vendor")}),
    ]


def demo_routes(pages: Pages) -> list[tuple[Any, ...]]:
    """What a server in DEBUG answers besides."""
    return [
        (r"/()", PageHandler, {"pages": pages}),
        (r"/example/?", LeadingHandler, {"url": "/", "permanent": False}),
        (r"/example/(.+)", PageHandler, {"pages": pages}),
        (r"/demo/users", DemoUsersHandler, {"pages": pages}),
        (r"/demo/mailbox", DemoMailboxHandler, {"pages": pages}),
    ]
