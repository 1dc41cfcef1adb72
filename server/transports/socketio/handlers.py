"""What every request to this door goes through."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from enum import Enum
from typing import TYPE_CHECKING, Any

from tornado.web import HTTPError, RequestHandler

from server.bus import REFUSED, tell
from server.callers import Caller
from server.errors import Busy, RateLimited
from server.limits import REFUSAL_DELAY_S, refusal_headers
from server.transports import cors
from server.transports.socketio.packets import ENGINE_VERSION

if TYPE_CHECKING:
    from server.transports.socketio.door import SocketIODoor

LOG = logging.getLogger(__name__)


class Refusal(Enum):
    """Why a request is refused: status, code and message as Engine.IO's own server has them."""

    UNKNOWN_TRANSPORT = 400, 0, "Transport unknown"
    UNKNOWN_SESSION = 400, 1, "Session ID unknown"
    BAD_METHOD = 400, 2, "Bad handshake method"
    BAD_REQUEST = 400, 3, "Bad request"
    FORBIDDEN = 403, 4, "Forbidden"
    UNSUPPORTED_VERSION = 400, 5, "Unsupported protocol version"
    TOO_LARGE = 413, 3, "Payload too large"


class BadRequest(Exception):
    """The request does not fit the protocol."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value[2])
        self.refusal = refusal


class SocketIORequest(RequestHandler):
    """Any request to this door. Logs no URL: it holds the session's id, which is all that is needed to be it."""

    door: SocketIODoor

    def initialize(self, door: SocketIODoor) -> None:
        self.door = door

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """No cookie has any power here."""

    def _log(self) -> None:
        """No line per request: a client polls."""

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        if not isinstance(value, HTTPError):
            LOG.error("a Socket.IO request failed", exc_info=value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's own refusals."""
        if self.door.origins.allows(self.request):
            cors.allow(self)  # what was set so far is gone by now
        if status_code == 405:
            self.set_header("Allow", "GET, POST, OPTIONS")
        self._answer_error(status_code, 3, self._reason)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """A field of the query. Raises `BadRequest`, where Tornado's own refusal would not say that what follows is
        not read."""
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRequest(Refusal.BAD_REQUEST) from None

    # -- what is checked of every request --------------------------------------------------------------------
    def check(self, transport: str) -> str | None:
        """The session that the request is for, None: a new one. Raises `BadRequest`."""
        if not self.door.origins.allows(self.request):
            raise BadRequest(Refusal.FORBIDDEN)
        cors.allow(self)
        asked = self.get_query_argument("transport", "")
        if asked not in ("polling", "websocket"):
            raise BadRequest(Refusal.UNKNOWN_TRANSPORT)
        if self.get_query_argument("EIO", "") != ENGINE_VERSION:
            raise BadRequest(Refusal.UNSUPPORTED_VERSION)
        if asked != transport or self.get_query_argument("j", None) is not None:
            raise BadRequest(Refusal.BAD_REQUEST)
        return self.get_query_argument("sid", None)

    @property
    def caller(self) -> Caller:
        return self.door.identify(self.request)

    async def admit(self) -> bool:
        """Whether one more client may come in; if not, that was answered."""
        try:
            self.door.may_connect(self.caller)
        except Busy as error:
            if isinstance(error, RateLimited):
                # Not all at the same time, or they would come again at the same time.
                await asyncio.sleep(REFUSAL_DELAY_S * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
                for name, value in refusal_headers(error).items():
                    self.set_header(name, value)
            tell(REFUSED, self.door.doors, door="socketio", code=error.code, tenant=None)
            self._answer_error(error.http_status, 3, str(error))
            return False
        return True

    # -- answers ---------------------------------------------------------------------------------------------
    def refuse(self, refusal: Refusal) -> None:
        self._answer_error(*refusal.value)

    def _answer_error(self, status: int, code: int, message: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"code": code, "message": message}))
