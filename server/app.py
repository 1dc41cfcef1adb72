"""The root: opens the store, wires the parts, mounts the doors, owns the long-lived tasks, and shuts down in
order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
from collections.abc import Mapping

from pydispatch import dispatcher
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from server import __version__, admin
from server.assets import example_folder
from server.auth import Authenticator, PasswordChecks
from server.backplane import LocalBackplane
from server.bus import NOTIFICATION_STORED
from server.callers import Caller, CallerPolicy
from server.config import Config
from server.counts import UnseenCounts
from server.errors import StartupError, StoreUnavailable
from server.inbox import Inbox
from server.ingest.notify import NotifyDoor, NotifyHandler
from server.mail_folder import MailFolder
from server.messages import EmailDuty
from server.notifier import Notifier
from server.outbox import MailTransport, OutboxWorker
from server.parsers import FieldLimits
from server.presence import Presence
from server.rooms import Connection, Rooms
from server.session import Session, SessionServices
from server.smtp import SMTPTransport
from server.store import Store
from server.tasks import Tasks
from server.transports.sockjs import SockJSDoor, SockJSOptions
from server.wire import GOING_AWAY

logger = logging.getLogger(__name__)

SHUTDOWN_DEADLINE_S = 10.0
"""For the orderly end; what is not done by then is cut off, and completed after the next start."""

SWEEP_INTERVAL_S = 15.0
"""Between looks for intents to complete and for what may be forgotten."""

STORE_RETRY_S = 2.0
"""Between tries to open a store that is not there yet."""

LISTEN_BACKLOG = 4096
"""Connections that the kernel keeps waiting: a restart brings all clients back at once."""

GC_THRESHOLDS = (20_000, 20, 50)
"""Half of the cost of a push was the cyclic garbage collector looking through long-lived connections again
and again."""

EMBEDDED_FILE = "notifications.sqlite3"


class Server:
    """One node."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._tasks = Tasks()
        self._callers = CallerPolicy(config.application.trusted_proxies, config.application.hosts)
        self._store = make_store(config)
        self._rooms = Rooms()
        self._backplane = LocalBackplane(self._rooms)
        self._presence = Presence(self._rooms, self._backplane, config.connections.heartbeat_s)
        self._notifier = Notifier(self._store, self._backplane, self._presence)
        self._counts = UnseenCounts(self._store, self._rooms, self._backplane)
        self._checks = PasswordChecks(config.limits.password_checks, config.limits.password_queue)
        self._mail_folder = None if config.email.host else MailFolder(config.application.data / "mail")
        self._mail: MailTransport = self._mail_folder or SMTPTransport(config.email)
        self._outbox = OutboxWorker(self._store, self._mail, self._presence, config.email)
        self._door = self._make_door()
        self._http = HTTPServer(
            self._application(),
            max_body_size=max(config.limits.body_bytes, config.connections.message_bytes),
        )

    # -- wiring
    # ----------------------------------------------------------------------------------------------------
    def _make_door(self) -> SockJSDoor:
        config = self.config
        services = SessionServices(
            authenticator=Authenticator(config.users, not config.release, self._checks),
            inbox=Inbox(self._store, self._backplane),
            rooms=self._rooms,
            tasks=self._tasks,
            page_limit=config.application.page_limit,
            max_queue_bytes=config.connections.queue_bytes,
            max_pending=config.connections.pending_commands,
            max_pending_bytes=config.connections.message_bytes,
        )

        def open_session(connection: Connection) -> Session:
            return Session(connection, services)

        def identify(remote_ip: str, headers: Mapping[str, str]) -> Caller:
            return self._callers.identify(remote_ip, headers)

        options = SockJSOptions(
            client_url="/client/sockjs.min.js",
            origins=config.application.origins,
            heartbeat_s=config.connections.heartbeat_s,
            disconnect_delay_s=config.connections.disconnect_delay_s,
            max_queue_bytes=config.connections.queue_bytes,
            slow_after_s=config.connections.slow_after_s,
            max_message_bytes=config.connections.message_bytes,
        )
        return SockJSDoor(open_session, identify, options)

    def _application(self) -> Application:
        config, folder = self.config, example_folder()
        limits = FieldLimits(
            config.limits.content_bytes, config.limits.field_bytes, config.limits.users_per_request
        )
        notify = NotifyDoor(
            self._notifier,
            self._callers,
            config.application.apikey,
            config.application.publish_without_key,
            config.limits.body_bytes,
            limits,
        )
        routes = [(r"/notify", NotifyHandler, {"door": notify}), *admin.routes(folder)]
        if not config.release:
            list_mails = self._mail_folder.list_newest if self._mail_folder else None
            routes += admin.demo_routes(admin.Pages(folder, self._callers, list_mails))
        return Application([*routes, *self._door.routes])

    # -- life
    # ------------------------------------------------------------------------------------------------------
    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end in order. Raises `StartupError`."""
        sockets = self._bind()
        try:
            if not await self._open_store(stop):
                return
            self._start_tasks()
            self._http.add_sockets(sockets)
            self._announce()
            _tune_gc()
            await stop.wait()
        finally:
            await self._shut_down()
            for listening in sockets:
                listening.close()

    def _bind(self) -> list[socket.socket]:
        application = self.config.application
        try:
            return bind_sockets(application.port, application.address, backlog=LISTEN_BACKLOG)
        except OSError as exc:
            where = f"port {application.port} on {application.address}"
            if exc.errno == errno.EADDRINUSE:
                raise StartupError(
                    f"{where} is in use by another program: stop it, or set port under [APPLICATION]"
                ) from exc
            raise StartupError(f"cannot listen on {where}: {exc.strerror or exc}") from exc

    async def _open_store(self, stop: asyncio.Event) -> bool:
        """Open the store, waiting for one that is not there yet; False if told to stop meanwhile."""
        while not stop.is_set():
            try:
                await self._store.open()
                return True
            except StoreUnavailable as error:
                logger.warning("waiting for the store, %s: %s", self._store.name, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), STORE_RETRY_S)
        return False

    def _start_tasks(self) -> None:
        dispatcher.connect(self._wake_outbox, NOTIFICATION_STORED, sender=self._notifier)
        self._tasks.start(self._counts.run(), "counts")
        self._tasks.start(self._outbox.run(), "outbox")
        self._tasks.start(self._sweep(), "sweep")

    def _wake_outbox(self, duty: EmailDuty | None) -> None:
        if duty is not None:
            self._outbox.wake()

    async def _sweep(self) -> None:
        while True:
            try:
                completed = await self._notifier.complete()
                if completed:
                    logger.info("completed %d documents that were left half stored", completed)
                    self._outbox.wake()  # a mail may be owed with them
            except StoreUnavailable:
                logger.debug("the sweep waits for the store")
            self._presence.forget()
            await asyncio.sleep(SWEEP_INTERVAL_S)

    def _announce(self) -> None:
        """Tell the person who started us what they need to know."""
        config = self.config
        address = f"http://{_url_host(config.application.address)}:{config.application.port}/"
        lines = [
            f"notification-server {__version__} ({'RELEASE' if config.release else 'DEBUG'})",
            f"  {'address' if config.release else 'page   '}  {address}",
            f"  data     {config.application.data}",
            f"  store    {self._store.name}",
            f"  mail     {self._mail.name}",
        ]
        print("\n".join(lines), flush=True)
        for warning in config.warnings:
            logger.warning("%s", warning)

    async def _shut_down(self) -> None:
        """Idempotent. The order is such that nothing accepted is dropped, and nobody is told of what is not
        stored."""
        self._http.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_DEADLINE_S):
                await self._notifier.close()
                await self._backplane.flushed()
        self._door.close_all(GOING_AWAY)
        self._door.stop()
        await self._outbox.stop(SHUTDOWN_DEADLINE_S)
        await self._tasks.cancel()
        self._counts.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._http.close_all_connections()
        self._checks.close()
        await self._store.close()


def make_store(config: Config) -> Store:
    """The store that the configuration names. Imported here, so that nobody pays for the other one."""
    mongodb = config.mongodb
    if mongodb.url is None:
        from server.store.sqlite import SQLiteStore

        return SQLiteStore(config.application.data / EMBEDDED_FILE)
    from server.store.mongo import MongoStore

    return MongoStore(
        mongodb.url,
        mongodb.db,
        collection=mongodb.collection,
        timeout_s=mongodb.timeout_s,
        legacy_timezone=mongodb.legacy_timezone,
    )


def serve(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; the exit code. Raises `StartupError`."""
    _allow_many_files()
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Server(config).run(stop)


def _allow_many_files() -> None:
    """Every connection is a file: take as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tune_gc() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _url_host(address: str) -> str:
    if address in ("", "0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address
