"""The root: opens the store, wires the parts, mounts the doors, owns the long-lived tasks, and shuts down in
order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydispatch import dispatcher
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application

from server import __version__, admin
from server.assets import example_folder
from server.auth import Authenticator, PasswordChecks
from server.backplane import LocalBackplane
from server.bus import NOTIFICATION_STORED
from server.callers import Caller, CallerPolicy
from server.config import Config
from server.counts import UnseenCounts
from server.errors import StoreUnavailable
from server.inbox import Inbox
from server.ingest.notify import NotifyDoor, NotifyHandler
from server.listening import TCPListener, allow_many_files
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
"""For the orderly end as a whole; what is not done by then is cut off, and completed after the next start."""

LETTING_GO_S = 2.0
"""Of these seconds, those that are kept, however long the work under way took: half of them for cutting off what is
left, half for closing the store."""

LAST_RESORT_S = SHUTDOWN_DEADLINE_S + 2.0
"""After a signal: when the process ends whatever still hangs."""

SWEEP_INTERVAL_S = 15.0
"""Between looks for intents to complete and for what may be forgotten."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The first asks for the orderly end, the second for an end at once."""

STORE_RETRY_S = 2.0
"""Between tries to open a store that is not there yet."""

MAX_BODY_BYTES = 64 * 1024
"""Of requests that need none; the doors that read bodies have limits of their own, and keep them as they read."""

BODY_TIMEOUT_S = 60.0
"""For one request's body: 4 MiB over a line of 1 Mbit/s take 34 s. Who sends no more holds up to that much memory."""

IDLE_TIMEOUT_S = 75.0
"""For the headers of a request, and so between two on one connection: above the 60 s for which common proxies keep
theirs, so that it is they who close it. Neither time runs during an answer or on a WebSocket."""

GC_THRESHOLDS = (20_000, 20, 50)
"""Half of the cost of a push was the cyclic garbage collector looking through long-lived connections again
and again."""

DEMO_FRAME_ANCESTORS = (
    "'self'",
    *(f"{scheme}://{host}:*" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1")),
)
"""The pages that may frame SockJS's iframe where there are demo users: what is in it speaks with our own origin."""

EMBEDDED_FILE = "notifications.sqlite3"


class Server:
    """One node."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._loops = Tasks()
        self._sessions = Tasks()
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
            max_body_size=MAX_BODY_BYTES,
            body_timeout=BODY_TIMEOUT_S,
            idle_connection_timeout=IDLE_TIMEOUT_S,
        )
        dispatcher.connect(self._wake_outbox, NOTIFICATION_STORED, sender=self._notifier)

    # -- wiring ----------------------------------------------------------------------------------------------
    def _make_door(self) -> SockJSDoor:
        config = self.config
        services = SessionServices(
            authenticator=Authenticator(config.users, not config.release, self._checks),
            inbox=Inbox(self._store, self._backplane),
            rooms=self._rooms,
            tasks=self._sessions,
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
            frame_ancestors=None if config.release else DEMO_FRAME_ANCESTORS,
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

    # -- life ------------------------------------------------------------------------------------------------
    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end in order. Raises `StartupError`."""
        application = self.config.application
        listener = TCPListener(application.address, application.port)
        try:
            if not await self._open_store(stop):
                return
            self._start_tasks()
            listener.start(self._serve_connection)
            self._announce(listener.port)
            _tune_gc()
            await stop.wait()
        finally:
            await self._shut_down(listener)

    def _serve_connection(self, connection: socket.socket, address: Any) -> None:
        self._http.handle_stream(IOStream(connection), address)

    async def _open_store(self, stop: asyncio.Event) -> bool:
        """Open the store, waiting for one that is not there yet; False if told to stop meanwhile."""
        opening, stopping = asyncio.create_task(self._keep_opening()), asyncio.create_task(stop.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if opening.done():
            opening.result()  # its error, if it failed
            return not stop.is_set()
        opening.cancel()
        await asyncio.wait([opening], timeout=LETTING_GO_S)
        return False

    async def _keep_opening(self) -> None:
        while True:
            try:
                return await self._store.open()
            except StoreUnavailable as error:
                logger.warning("waiting for the store, %s: %s", self._store.name, error)
            await asyncio.sleep(STORE_RETRY_S)

    def _start_tasks(self) -> None:
        self._loops.start(self._counts.run(), "counts")
        self._loops.start(self._outbox.run(), "outbox")
        self._loops.start(self._sweep(), "sweep")

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
                self._presence.forget()
            except StoreUnavailable:
                logger.debug("the sweep waits for the store")
            except Exception:
                # A bug met by one round must not end all that follow.
                logger.exception("the sweep failed")
            await asyncio.sleep(SWEEP_INTERVAL_S)

    def _announce(self, port: int) -> None:
        """Tell the person who started us what they need to know."""
        config = self.config
        address = f"http://{_url_host(config.application.address)}:{port}/"
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

    async def _shut_down(self, listener: TCPListener) -> None:
        """The order is such that nothing accepted is dropped, and nobody is told of what is not stored. A step that
        fails or is late holds up none of those behind it."""
        now = asyncio.get_running_loop().time
        ends_at = now() + SHUTDOWN_DEADLINE_S
        cut_at, work_ends_at = ends_at - LETTING_GO_S / 2, ends_at - LETTING_GO_S
        await _step("listening", listener.close, cut_at)
        await _step("notifying", self._notifier.close, work_ends_at)
        await _step("fan-out", self._backplane.flushed, work_ends_at)
        await _step("the clients", self._close_door, cut_at)
        await _step("commands", lambda: self._sessions.finish(max(0.0, work_ends_at - now())), cut_at)
        await _step("the mail", lambda: self._outbox.stop(max(0.0, work_ends_at - now())), cut_at)
        await _step("the background tasks", self._loops.cancel, cut_at)
        await _step("the signals", self._hear_no_more, cut_at)
        await _step("the connections", self._http.close_all_connections, cut_at)
        await _step("checking passwords", self._checks.close, cut_at)
        await _step("the store", self._store.close, ends_at)

    def _close_door(self) -> None:
        self._door.close_all(GOING_AWAY)
        self._door.stop()

    def _hear_no_more(self) -> None:
        dispatcher.disconnect(self._wake_outbox, NOTIFICATION_STORED, sender=self._notifier)
        self._counts.close()


async def _step(what: str, end: Callable[[], Awaitable[None] | None], until: float) -> None:
    """One step of the orderly end, until then (of the loop's time) at the latest; does not raise."""
    try:
        async with asyncio.timeout_at(until):
            ending = end()
            if ending is not None:
                await ending
    except TimeoutError:
        logger.warning("%s: not ended in time", what)
    except Exception:
        logger.exception("%s: could not be ended", what)


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
    allow_many_files()
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # Not by the loop, which may be what hangs.
            signal.signal(number, lambda *_: _leave("a second signal"))
        last_resort = threading.Timer(LAST_RESORT_S, _leave, ["something hangs"])
        last_resort.daemon = True
        last_resort.start()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, end)
    await Server(config).run(stop)


def _leave(why: str) -> None:
    """End without what asyncio and the interpreter do at their end: they wait for each thread, as long as it may hang
    on a disk or a name look-up. Log records have been written, each when it was made."""
    sentence = (
        f"notification-server: ended at once ({why}); what was under way is completed after the next start\n"
    )
    os.write(sys.stderr.fileno(), sentence.encode())
    os._exit(1)


def _tune_gc() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _url_host(address: str) -> str:
    if address in ("", "0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address
