"""Mounts the doors: which routes there are, and what their handlers are given. May be changed while the server runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.log import access_log
from tornado.web import Application, RequestHandler

from server import admin, health
from server.affinity import ALONE
from server.assets import example_folder
from server.broadcaster import Broadcaster
from server.callers import Caller, CallerPolicy
from server.checks import Checks
from server.config import Config
from server.entrance import Entrance, make_http_server
from server.exposition import Exposition
from server.feed import FeedServices
from server.grants import Grant
from server.health import Instruments
from server.ingest import deliveries, handlers, outbox, schema, user_tokens, users
from server.ingest.base import Gate, UnknownHandler, presented
from server.ingest.batch import BatchDoor
from server.ingest.door import Door, Publishing
from server.ingest.notify import NotifyDoor
from server.ingest.publishing import InternalDoor, SendDoor
from server.ingest.user_tokens import UserTokenDoors
from server.ingest.users import UserDoors
from server.limits import Limits
from server.mail_folder import MailFolder
from server.metrics import Metrics
from server.notifier import Notifier
from server.parsers import FieldLimits
from server.publishers import Publishers
from server.relocation import Relocation
from server.rooms import Connection
from server.security_headers import WITHOUT_CONTENT, SecurityHeaders, StrictSecurityHeaders
from server.session import Session, SessionServices
from server.tenants import Tenants
from server.tokens.own import OwnTokens
from server.transports import events, hub, inbox, service, socket_v2, socketio, tenant
from server.transports.answers import Answers
from server.transports.feeds import FeedDoors
from server.transports.origins import Origins
from server.transports.registry import ConnectionOptions, Connections
from server.transports.socketio import SocketIODoor
from server.transports.sockjs import SockJSDoor, SockJSOptions
from server.transports.upgrades import Upgrades
from server.wire import GOING_AWAY
from server.workers.handoff import Handoff

Identify = Callable[[str, Mapping[str, str]], Caller]
"""See `callers.CallerPolicy.identify`."""

DEMO_FRAME_ANCESTORS = (
    "'self'",
    *(f"{scheme}://{host}:*" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1")),
)
"""The pages that may frame SockJS's iframe where there are demo users: what is in it speaks with our own origin."""

ANSWER_PATIENCE = 2
"""Times `slow_after_s`: who is pushed to is closed as slow before, with a reason."""

REQUEST_LINE = "%d %s %s (%s) %.2fms"


class _CountingApplication(Application):
    def __init__(
        self, metrics: Metrics, identify: Identify, routes: list[Any], headers: type[SecurityHeaders]
    ) -> None:
        super().__init__(routes, transforms=[headers])
        self._metrics = metrics
        self._identify = identify

    def log_request(self, handler: RequestHandler) -> None:
        """As Tornado does it, but with the address of the caller instead of that of a trusted proxy."""
        status, request = handler.get_status(), handler.request
        is_failure = (
            status >= 500 and getattr(handler, "door", "") != health.DOOR
        )  # there a 503 is what was asked for
        log = access_log.info if status < 400 else access_log.error if is_failure else access_log.warning
        address = self._identify(request.remote_ip or "", request.headers).address
        took_ms = 1000.0 * request.request_time()
        log(REQUEST_LINE, status, request.method, request.uri, address, took_ms)
        health.note_request(self._metrics, handler)


class Doors:
    """All doors of a node; to be made where a loop runs."""

    def __init__(
        self,
        config: Config,
        *,
        sessions: SessionServices,
        feeds: FeedServices,
        notifier: Notifier,
        broadcaster: Broadcaster,
        publishers: Publishers,
        tenants: Tenants,
        limits: Limits,
        own_tokens: OwnTokens,
        metrics: Metrics,
        checks: Checks,
        mail_folder: MailFolder | None,
        handoff: Handoff | None = None,
    ) -> None:
        """`handoff`: to the other workers; None: there are none."""
        self._config = config
        self._sessions = sessions
        self._publishers = publishers
        self._metrics = metrics
        self._mail_folder = mail_folder
        self._handoff = handoff
        self.callers = CallerPolicy(config.application.trusted_proxies, config.application.hosts)
        self.gate = Gate(self.identify, publishers, limits)
        self._publishing = Publishing(notifier, broadcaster, config.limits.body_bytes, field_limits(config))
        self.publishing = publishing_doors(self._publishing)
        self._keep_keys(config)
        self._deliveries = feeds.store.deliveries
        self._outbox = feeds.store.outbox
        self._users = UserDoors(tenants, own_tokens.make, config.auth.max_token_s)
        self._user_tokens = UserTokenDoors(
            sessions.authenticator, tenants, own_tokens.make_login, own_tokens.check_refresh
        )
        self._instruments = Instruments(
            metrics=metrics,
            exposition=Exposition(metrics),
            checks=checks,
            who=self._who,
            identify=self.identify,
            internal=config.application.internal,
            public_metrics=config.application.public_metrics,
        )
        self.connections = Connections(_connection_options(config), limits, sessions.arrivals)
        self.sockjs = SockJSDoor(self._open_session, self.identify, self.connections, self._sockjs_options())
        self.feeds = FeedDoors(
            self.connections,
            feeds,
            sessions.authenticator,
            publishers,
            self.identify,
            Origins(config.application.origins),
            ALONE if handoff is None else handoff.affinity,
        )
        self.socketio = SocketIODoor(self.feeds)
        self.upgrades = Upgrades(
            [*self.sockjs.ways, socket_v2.way(self.feeds, self._open_session_v2)],
            self.connections,
            self.identify,
            WITHOUT_CONTENT,
            _log_upgrade,
        )

    def _sockjs_options(self) -> SockJSOptions:
        return SockJSOptions(
            client_url="/client/sockjs.min.js",
            origins=self._config.application.origins,
            frame_ancestors=None if self._config.release else DEMO_FRAME_ANCESTORS,
        )

    def entrance(self) -> Entrance:
        """The way in to all of them, which is to be opened."""
        early = health.early_routes(self._instruments)
        return Entrance(self.application(), early, [self._headers], self._relocation())

    def http_server(self, entrance: Entrance) -> HTTPServer:
        """What serves connections that come in there, for as long as they take their answers."""
        server = make_http_server(entrance)
        patience_s = ANSWER_PATIENCE * self.connections.options.slow_after_s
        self.connections.on_tick.append(Answers(server, patience_s).look)
        return server

    def _relocation(self) -> Relocation | None:
        if self._handoff is None:
            return None
        return Relocation(
            session_in=self._session_in, owner_of=self._handoff.owner_of, give=self._handoff.give
        )

    def _session_in(self, uri: str) -> str | None:
        return self.sockjs.session_in(uri) or socketio.session_in(uri) or events.session_in(uri)

    @property
    def _headers(self) -> type[SecurityHeaders]:
        return StrictSecurityHeaders if self._config.release else SecurityHeaders

    def application(self) -> Application:
        """All routes."""
        folder = example_folder()
        routes: list[Any] = [
            *handlers.routes(self.gate, self.publishing),
            *users.routes(self.gate, self._users),
            *user_tokens.routes(self.gate, self._user_tokens),
            *deliveries.routes(self.gate, self._deliveries),
            *outbox.routes(self.gate, self._outbox),
            *hub.routes(self.feeds),
            *tenant.routes(self.feeds),
            *service.routes(self.feeds),
            *events.routes(self.feeds),
            *inbox.routes(self.feeds),
            *socket_v2.routes(self.feeds, self._open_session_v2),
            *socketio.routes(self.socketio),
            *health.routes(self._instruments),
            *schema.routes(folder / "api", has_example=not self._config.release),
            (r"/api/.*", UnknownHandler, {"gate": self.gate}),
            *admin.routes(folder),
        ]
        if not self._config.release:
            list_mails = self._mail_folder.list_newest if self._mail_folder else None
            routes += admin.demo_routes(admin.Pages(folder, self.identify, list_mails))
        return _CountingApplication(
            self._metrics, self.identify, [*routes, *self.sockjs.routes], self._headers
        )

    # -- who comes in ----------------------------------------------------------------------------------------
    def identify(self, remote_ip: str, headers: Mapping[str, str]) -> Caller:
        """See `callers.CallerPolicy.identify`."""
        return self.callers.identify(remote_ip, headers)

    async def _who(self, request: HTTPServerRequest) -> Grant | None:
        found = presented(request)
        if found.is_nothing:
            return None
        return await self._publishers.identify(found, self.identify(request.remote_ip or "", request.headers))

    def _open_session(self, connection: Connection) -> Session:
        return Session(connection, self._sessions)

    def _open_session_v2(self, connection: Connection) -> Session:
        return Session(connection, self._sessions, only_version=2)

    # -- life ------------------------------------------------------------------------------------------------
    def apply(self, config: Config) -> None:
        """Go by a changed configuration from now on."""
        application = config.application
        self.callers = CallerPolicy(application.trusted_proxies, application.hosts)
        self._publishing.max_body_bytes = config.limits.body_bytes
        self._publishing.limits = field_limits(config)
        self._keep_keys(config)
        self._users.max_token_s = config.auth.max_token_s
        self._instruments.internal = application.internal
        self._instruments.public_metrics = application.public_metrics

    def _keep_keys(self, config: Config) -> None:
        for publisher in (self._publishing.notifier, self._publishing.broadcaster):
            publisher.keep_keys_s = config.application.keep_keys_s

    def close(self) -> None:
        """Say goodbye to all clients."""
        self._sessions.rooms.say_bye()
        self.connections.close_all(GOING_AWAY)
        self.connections.stop()


def _log_upgrade(uri: str, caller: Caller, took_s: float) -> None:
    access_log.info(REQUEST_LINE, 101, "GET", uri, caller.address, 1000.0 * took_s)


def publishing_doors(publishing: Publishing) -> tuple[Door, ...]:
    """Those by which backends publish."""
    return NotifyDoor(publishing), SendDoor(publishing), InternalDoor(publishing), BatchDoor(publishing)


def _connection_options(config: Config) -> ConnectionOptions:
    connections = config.connections
    return ConnectionOptions(
        heartbeat_s=connections.heartbeat_s,
        disconnect_delay_s=connections.disconnect_delay_s,
        max_queue_bytes=connections.queue_bytes,
        slow_after_s=connections.slow_after_s,
        max_message_bytes=connections.message_bytes,
    )


def field_limits(config: Config) -> FieldLimits:
    """What one notification may hold."""
    limits = config.limits
    return FieldLimits(limits.content_bytes, limits.field_bytes, limits.users_per_request, limits.data_bytes)
