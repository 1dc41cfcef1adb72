"""The one import of sockjs-tornado, and what is taken of it: the layout of the URLs, the settings, the preflight answer
and cookie of its handlers, its pages. Sessions, framing, sending and receiving are our own: see docs/dependencies.md.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():
    # Its last release decorates with tornado's old name for a coroutine, and has one '\W' in a plain string.
    warnings.filterwarnings("ignore", "@asynchronous is deprecated", DeprecationWarning)
    warnings.filterwarnings("ignore", ".*invalid escape sequence")
    from sockjs.tornado import static, transports
    from sockjs.tornado.transports.htmlfile import HTMLFILE_HEAD as _HTMLFILE_HEAD

    if TYPE_CHECKING:
        # It has no types: these are the parts of it that we use.
        from tornado.web import RequestHandler

        class SockJSRouter:
            settings: dict[str, Any]
            websockets_enabled: bool
            cookie_needed: bool
            stats: Any
            _sessions_cleanup: Any

            def __init__(self, connection: None, prefix: str, user_settings: dict[str, Any]) -> None: ...
            @property
            def urls(self) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]: ...

        class PreflightHandler(RequestHandler):
            def options(self, *args: str, **kwargs: str) -> None: ...
            def handle_session_cookie(self) -> None: ...

        class GreetingsHandler(RequestHandler):
            def get(self) -> None: ...

    else:
        from sockjs.tornado.basehandler import PreflightHandler
        from sockjs.tornado.router import SockJSRouter
        from sockjs.tornado.static import GreetingsHandler

__all__ = ["HTMLFILE_HEAD", "GreetingsHandler", "PreflightHandler", "SockJSRouter", "static", "transports"]

HTMLFILE_HEAD: str = _HTMLFILE_HEAD
"""The head of an htmlfile response, over 1 KiB, with `%s` for the name of the callback."""
