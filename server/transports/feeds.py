"""What the doors for clients without commands have in common: who may come in is decided before the upgrade, by a
token or a key in the request. Each door is a file of its own, which says how its dialect is asked and refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from server.affinity import Affinity
from server.auth import Authenticator, Identity, proved_now
from server.bus import REFUSED, tell
from server.callers import Caller
from server.commands import MAX_TOKEN_CHARS, JoinByToken
from server.errors import BadCredentials, NoCredentials, RateLimited, Refused, ServerError
from server.feed import Feed, FeedServices
from server.limits import refusal_headers
from server.methods import methods_of
from server.publishers import Publishers
from server.rooms import Connection
from server.transports.connections import ClientSession
from server.transports.origins import Origins
from server.transports.registry import Connections
from server.transports.websocket import WebSocketEndpoint

REFUSAL_DELAY_S = 1.0
"""By about how much the answer to who connects too often is held back."""


@dataclass(slots=True)
class FeedDoors:
    """What these doors need. `identify`: see `callers.CallerPolicy`; `origins`: those whose pages may connect;
    `affinity`: for what is kept from one request to the next."""

    connections: Connections
    services: FeedServices
    authenticator: Authenticator
    publishers: Publishers
    identify: Callable[[str, Mapping[str, str]], Caller]
    origins: Origins
    affinity: Affinity


class FeedRequest(RequestHandler):
    """A request that wants to listen."""

    door = ""
    """Its name, for figures."""
    methods: tuple[str, ...] = ("GET",)
    """Those that are looked at, of those that there are."""
    doors: FeedDoors
    identity: Identity

    def initialize(self, doors: FeedDoors) -> None:
        self.doors = doors
        self.connections = doors.connections

    def identify(self, request: HTTPServerRequest) -> Caller:
        return self.doors.identify(request.remote_ip or "", request.headers)

    @property
    def caller(self) -> Caller:
        return self.identify(self.request)

    async def prepare(self) -> None:
        """Find out who comes in; who may not is answered here."""
        if self.request.method not in self.methods:
            return
        try:
            if not self.doors.origins.allows(self.request):
                raise Refused("pages of this origin may not connect")
            self.connections.admission.may_connect(self.caller)
            await self.admit()
        except ServerError as error:
            if isinstance(error, RateLimited):
                await asyncio.sleep(self.connections.admission.refusal_delay_s(self.caller, REFUSAL_DELAY_S))
                for name, value in refusal_headers(error).items():
                    self.set_header(name, value)
            tell(REFUSED, self.doors, door=self.door, code=error.code, tenant=None)
            self.refuse(error)

    async def admit(self) -> None:
        """Let in who may come in. Raises `ServerError`."""
        # As of now, however long it is until its turn to connect: a sign-out in between is after it.
        self.identity = proved_now(await self.who())

    async def who(self) -> Identity:
        """Who is listening, and until when. Raises `ServerError`."""
        raise NotImplementedError

    def query_text(self, name: str) -> str | None:
        """A field of the query, the last one of that name; None: not there, or empty. Raises `BadCredentials` if it is
        no text: Tornado would put it into the log."""
        try:
            return self.request.query_arguments.get(name, [b""])[-1].decode().strip() or None
        except UnicodeDecodeError:
            raise BadCredentials(f"{name}: not UTF-8") from None

    async def _of_token(self, token: str | None, missing: str) -> Identity:
        """The user of a token."""
        if not token:
            raise NoCredentials(missing)
        if len(token) > MAX_TOKEN_CHARS:
            raise BadCredentials("the token is too long")
        return await self.doors.authenticator.authenticate(JoinByToken(token), self.caller)

    def refuse(self, error: ServerError) -> None:
        """Answer in the words of this door's contract."""
        raise NotImplementedError

    def answer(self, status: int, fields: Mapping[str, Any]) -> None:
        """Answer with JSON instead of the upgrade."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(dict(fields))

    def answer_problem(self, status: int, code: str, detail: str, **beside: str) -> None:
        """Answer as RFC 9457 has it."""
        problem = {"type": "about:blank", "title": code, "status": status, "detail": detail, **beside}
        self.set_status(status)
        self.set_header("Content-Type", "application/problem+json")
        self.finish(json.dumps(problem))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What Tornado refuses by itself, such as a method that there is not, and what fails here."""
        if status_code == 405:
            self.set_header("Allow", methods_of(type(self)))
        code = "internal" if status_code >= 500 else self._reason.lower().replace(" ", "_")
        self.answer_problem(status_code, code, self._reason)


class WebSocketRequest(FeedRequest, WebSocketEndpoint):
    """One that wants to become a WebSocket; what cannot is answered as a problem."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Become a WebSocket."""
        wrong = self.why_no_upgrade()
        if wrong is None:
            await super().get(*args, **kwargs)
        else:
            self.answer_problem(wrong.status, wrong.code, wrong.reason)


class FeedWebSocket(WebSocketRequest):
    """A WebSocket whose client only listens."""

    feed_class: type[Feed]

    def open_session(self, connection: Connection) -> ClientSession:
        return self.feed_class(connection, self.doors.services, self.identity)
