"""The root: opens the store, wires the parts, owns the long-lived tasks, reloads, and shuts down in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket
from typing import Any

from pydispatch import dispatcher

from server import __version__
from server.arrivals import Arrivals
from server.broadcaster import Broadcaster
from server.bus import ACCESS_CHANGED, BROADCAST_HEARD, NOTIFICATION_STORED, USERS_SIGNED_OUT
from server.checks import Checks, State, Trouble
from server.config import Config
from server.consumers import Consumers
from server.counts import UnseenCounts
from server.doors import Doors
from server.errors import StoreUnavailable
from server.feed import FeedServices
from server.grants import SignOut
from server.inbox import Inbox
from server.limits import Limits
from server.listening import Left, Peers, TCPListener
from server.mail_folder import MailFolder
from server.mail_transport import MailTransport
from server.marks import Marks
from server.messages import EmailDuty
from server.metrics import Metrics, Sources
from server.notifier import Notifier
from server.outbox import OutboxWorker
from server.presence import Presence
from server.publish_port import PublishPort
from server.publishers import Publishers
from server.reloading import Reloads, tls_context
from server.retention import Retention
from server.rooms import Listener, Room, Rooms
from server.session import SessionServices
from server.sign_in import SignIn
from server.smtp import SMTPTransport
from server.streams import open_stream
from server.sweep import sweep
from server.sync import Sync
from server.tasks import Tasks, first_of, step
from server.tenants import Tenants
from server.tokens.resume import ResumeTickets
from server.wire import CloseReason, EventFrames
from server.wire_v2 import InboxFrames
from server.wiring import make_backplane, make_store, publisher_rules
from server.workers.seat import Seat

logger = logging.getLogger(__name__)

SHUTDOWN_DEADLINE_S = 10.0
"""For the orderly end as a whole; what is not done by then is cut off, and completed after the next start."""

LETTING_GO_S = 2.0
"""Of these, kept however long the work takes: half for cutting off what is left, half for closing the store."""

STORE_RETRY_S = 2.0
"""Between tries to open a store that is not there yet."""


class Server:
    """One node; to be made where a loop runs. Raises `StartupError`."""

    def __init__(self, config: Config, seat: Seat | None = None) -> None:
        self.config = config
        self._seat = seat or Seat()
        self._loops = Tasks()
        self._sessions = Tasks()
        secured = tls_context(config)
        self._store = make_store(config)
        self._tenants = Tenants(lambda: self._store.directory)
        self._sign_in = SignIn(config, self._tenants)
        self._publishers = Publishers(self._tenants, publisher_rules(config), self._sign_in.service_tokens)
        self._limits = Limits(config.limits)
        self._rooms = Rooms()
        self._backplane = make_backplane(config, self._rooms, self._store)
        self._presence = Presence(self._rooms, self._backplane, config.connections.heartbeat_s)
        self._notifier = Notifier(self._store, self._backplane, self._presence, self._tenants.is_active)
        self._counts = UnseenCounts(self._store, self._rooms, self._backplane)
        self._mail_folder = None if config.email.host else MailFolder(config.application.data / "mail")
        self._mail: MailTransport = self._mail_folder or SMTPTransport(config.email)
        self._outbox = OutboxWorker(self._store, self._mail, self._presence, config.email)
        self._broadcaster = Broadcaster(self._store, self._backplane, self._rooms, self._tenants)
        self._marks = Marks(lambda: self._store.deliveries)
        self._inbox = Inbox(self._store, self._backplane)
        self._retention = Retention(
            self._store, self._tenants, config.retention, lambda: self._notifier.keep_keys_s
        )
        self._sync = Sync(self._store, self._retention)
        self._arrivals = Arrivals()
        self._consumers = Consumers(
            config, self._store, self._notifier, self._presence, self._seat.lease_holder
        )
        self._metrics = Metrics({"version": __version__, "store": self._store.name.partition(" ")[0]})
        self._seat.watch(self._metrics)
        self._checks = self._make_checks()
        self._peers = Peers(lambda: self._limits.sockets_per_address, self._is_exempt)
        self._doors = Doors(
            config,
            sessions=self._session_services(),
            feeds=self._feed_services(),
            broadcaster=self._broadcaster,
            notifier=self._notifier,
            publishers=self._publishers,
            tenants=self._tenants,
            limits=self._limits,
            own_tokens=self._sign_in.own_tokens,
            metrics=self._metrics,
            checks=self._checks,
            mail_folder=self._mail_folder,
            handoff=self._seat.handoff,
        )
        self._publish_port = PublishPort(config.application, self._doors, self._metrics, self._peers)
        self._entrance = self._doors.entrance()
        self._http = self._doors.http_server(self._entrance)
        self._reloads = Reloads(
            config,
            secured,
            sign_in=self._sign_in,
            publishers=self._publishers,
            limits=self._limits,
            rooms=self._rooms,
            doors=self._doors,
            consumers=self._consumers,
            retention=self._retention,
        )
        dispatcher.connect(self._wake_outbox, NOTIFICATION_STORED, sender=self._notifier)
        dispatcher.connect(self._broadcaster.hear, BROADCAST_HEARD, sender=self._backplane)
        dispatcher.connect(self._follow_access, ACCESS_CHANGED, sender=self._tenants)
        dispatcher.connect(self._follow_sign_outs, USERS_SIGNED_OUT, sender=self._tenants)

    # -- wiring ----------------------------------------------------------------------------------------------
    def _session_services(self) -> SessionServices:
        config = self.config
        return SessionServices(
            authenticator=self._sign_in.authenticator,
            tickets=ResumeTickets(self._sign_in.own_tokens),
            tenants=self._tenants,
            limits=self._limits,
            inbox=self._inbox,
            sync=self._sync,
            broadcaster=self._broadcaster,
            rooms=self._rooms,
            tasks=self._sessions,
            dialect=EventFrames(),
            dialect_v2=InboxFrames(),
            page_limit=config.application.page_limit,
            max_queue_bytes=config.connections.queue_bytes,
            max_pending=config.connections.pending_commands,
            max_pending_bytes=config.connections.message_bytes,
            heartbeat_s=config.connections.heartbeat_s,
            arrivals=self._arrivals,
        )

    def _feed_services(self) -> FeedServices:
        return FeedServices(
            tenants=self._tenants,
            limits=self._limits,
            rooms=self._rooms,
            tasks=self._sessions,
            store=self._store,
            inbox=self._inbox,
            marks=self._marks,
            broadcaster=self._broadcaster,
            sync=self._sync,
            max_queue_bytes=self.config.connections.queue_bytes,
            heartbeat_s=self.config.connections.heartbeat_s,
            arrivals=self._arrivals,
        )

    def _make_checks(self) -> Checks:
        checks = Checks(self._metrics.note_check)
        checks.add("store", self._store.ping, is_vital=True)
        checks.add("mail", self._check_mail, is_vital=False)
        for part in (self._backplane, self._sign_in, self._consumers):
            for name, probe in part.probes.items():
                checks.add(name, probe, is_vital=False)
        return checks

    async def _check_mail(self) -> None:
        if self._outbox.has_outage:
            raise Trouble("mail cannot be handed over; it is kept, and tried again")

    def _is_exempt(self, address: str) -> bool:
        """Whether connections of this address are not counted: a trusted proxy stands for many clients, and what runs
        on this machine is not kept out by counting."""
        return self._doors.callers.stands_for_many(address)

    # -- life ------------------------------------------------------------------------------------------------
    async def run(self, stop: asyncio.Event, started: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop` is set, then end in order; `started` is called when all is up. Raises `StartupError`."""
        application, seat = self.config.application, self._seat
        listener = TCPListener(
            application.address, application.port, self._peers, application.also_listen, seat.main
        )
        try:
            self._publish_port.bind(seat.publishing)
            if seat.listens_early:  # whoever watches over this process hears that it lives
                listener.start(self._serve_connection)
            if not await self._open_store(stop):
                return
            self._start_instruments(listener)
            self._start_tasks()
            self._publish_port.start(self._loops)
            self._entrance.open()
            self._checks.state = State.SERVING
            if not seat.listens_early:
                listener.start(self._serve_connection)
            names = self._store.name, self._mail.name
            seat.announce(self.config, listener.port, *names, self._publish_port.port)
            seat.take_in(partial(listener.adopt, self._serve_requests))
            started()
            await stop.wait()
            await self._drain(listener)
        finally:
            await self._shut_down(listener)

    def _serve_connection(self, connection: socket, address: Any, left: Left) -> None:
        if self._reloads.tls is None and self._checks.state is State.SERVING:
            self._doors.upgrades.take(connection, address, left, self._serve_requests)
        else:
            self._serve_requests(connection, address, left)

    def _serve_requests(self, connection: socket, address: Any, left: Left, ahead: bytes = b"") -> None:
        stream = open_stream(connection, left, self._reloads.tls, ahead=ahead)
        if stream is not None:
            self._http.handle_stream(stream, address)

    async def _open_store(self, stop: asyncio.Event) -> bool:
        """Open the store, waiting for one that is not there yet; False if told to stop meanwhile."""
        await first_of(self._keep_opening(), stop.wait())
        return not stop.is_set()

    async def _keep_opening(self) -> None:
        is_open = False
        while True:
            try:
                if not is_open:
                    await self._store.open()
                    is_open = True
                await self._tenants.open()
                return await self._retention.look()
            except StoreUnavailable as error:
                logger.warning("waiting for the store, %s: %s", self._store.name, error)
            await asyncio.sleep(STORE_RETRY_S)

    def _start_instruments(self, listener: TCPListener) -> None:
        self._metrics.hear(
            self._notifier,
            self._outbox,
            self._limits,
            self._doors.gate,
            self._doors.connections,
            self._doors.feeds,
            self._broadcaster,
            self._retention,
            self._backplane,
            *self._consumers.doors,
            self._sign_in.authenticator,
            self._sign_in.brake,
            listener,
        )
        self._metrics.watch(
            Sources(
                connections=lambda: self._doors.connections.counts,
                joined=lambda: self._rooms.joined_by_tenant,
                users=lambda: self._rooms.users_by_tenant,
                queues={
                    "fan_out": lambda: self._backplane.waiting,
                    "broadcasts": lambda: self._broadcaster.waiting,
                    "marks": lambda: self._marks.waiting,
                    "commands": lambda: len(self._sessions),
                    "sockets": lambda: len(self._peers),
                    **self._backplane.queues,
                    **self._consumers.queues,
                    **self._seat.queues,
                },
                mail_counts=self._store.mail_counts,
                certificate_until=lambda: self._reloads.certificate_until,
            )
        )

    def _start_tasks(self) -> None:
        self._backplane.start()
        self._loops.start(self._counts.run(), "counts")
        self._loops.start(self._outbox.run(), "outbox")
        self._tenants.start(self._loops)
        self._loops.start(self._metrics.run(), "metrics")
        self._broadcaster.start(self._loops)
        self._loops.start(self._marks.run(), "marks")
        self._loops.start(self._retention.run(), "retention")
        self._loops.start(sweep(self._notifier, self._outbox, self._presence), "sweep")
        self._consumers.start(self._loops)

    def _wake_outbox(self, duty: EmailDuty | None) -> None:
        if duty is not None:
            self._outbox.wake()

    # -- changes while running -------------------------------------------------------------------------------
    def _follow_access(self, tenants: Tenants) -> None:
        """Tenants, keys or secrets have changed: who may no longer be here is closed."""
        self._sign_in.own_tokens.use(tenants.secrets)
        self._publishers.warn_of_missing_tenants()
        self._loops.start(self._close_the_revoked(), "closing")

    async def _close_the_revoked(self) -> None:
        _log_closed(await self._rooms.close_where(self._why_over))

    def _follow_sign_outs(self, tenants: Tenants, sign_outs: Sequence[SignOut]) -> None:
        """These users were signed out: they are closed, and forgotten; nobody else is looked at."""
        self._sign_in.forget(sign_outs)
        rooms = [(each.tenant, each.user_id) for each in sign_outs]
        _log_closed(self._rooms.close_in(rooms, self._why_over))

    def _why_over(self, room: Room, listener: Listener) -> CloseReason | None:
        return None if listener.sign_in is None else self._tenants.why_over(room, listener.sign_in)

    def reload_soon(self, reread: Callable[[], Config]) -> None:
        """As `Reloads.soon`; at the end of the server it is not done at all."""
        if self._checks.state is not State.STOPPING:
            self._reloads.soon(reread)

    # -- the end ---------------------------------------------------------------------------------------------
    async def _drain(self, listener: TCPListener) -> None:
        """Go on serving: for as long as load balancers that ask /readyz take to notice; or, if another process has
        these ports now, until those who are connected here have been answered once more."""
        if self._seat.hand_over_s:
            await self._refuse_new(listener)
            return await asyncio.sleep(self._seat.hand_over_s)
        self._checks.state = State.STOPPING
        if self.config.application.drain_s and self._seat.drains:
            logger.info("the end begins in %g s; /readyz says so already", self.config.application.drain_s)
            await asyncio.sleep(self.config.application.drain_s)

    async def _shut_down(self, listener: TCPListener) -> None:
        """The order is such that nothing accepted is dropped, and nobody is told of what is not stored. A step that
        fails or is late holds up none of those behind it."""
        now = asyncio.get_running_loop().time
        ends_at = now() + SHUTDOWN_DEADLINE_S
        cut_at, work_ends_at = ends_at - LETTING_GO_S / 2, ends_at - LETTING_GO_S
        self._checks.state = State.STOPPING
        await step("listening", lambda: self._refuse_new(listener), cut_at)
        await step("reloading", self._reloads.cancel, cut_at)
        await step("fetching", lambda: self._consumers.stop(max(0.0, work_ends_at - now())), work_ends_at)
        await step("notifying", self._notifier.close, work_ends_at)
        await step("accepting broadcasts", self._broadcaster.close, work_ends_at)
        await step("fan-out", self._backplane.flushed, work_ends_at)
        await step("the clients", self._doors.close, cut_at)
        await step("commands", lambda: self._sessions.finish(max(0.0, work_ends_at - now())), cut_at)
        await step("the mail", lambda: self._outbox.stop(max(0.0, work_ends_at - now())), cut_at)
        await step("the joins", lambda: self._tenants.close(max(0.0, work_ends_at - now())), cut_at)
        await step("the checks", lambda: self._checks.close(max(0.0, work_ends_at - now())), cut_at)
        await step("the background tasks", self._loops.cancel, cut_at)
        await step("the other nodes", self._backplane.close, cut_at)
        await step("what was used", self._write_use, cut_at)
        await step("the signals", self._hear_no_more, cut_at)
        await step("the upgraded connections", self._doors.upgrades.cut_off, cut_at)
        await step("the connections", self._http.close_all_connections, cut_at)
        await step("those of the publishing port", self._publish_port.close, cut_at)
        await step("signing in", self._sign_in.close, cut_at)
        await step("the store", self._store.close, ends_at)

    async def _refuse_new(self, listener: TCPListener) -> None:
        await listener.close()
        self._doors.upgrades.close()
        # Who has a connection is answered on it once more, and then knows that it is over: a request that met one just
        # being closed would leave its caller in doubt whether it was carried out.
        self._http.conn_params.no_keep_alive = True
        await self._publish_port.stop()
        self._seat.closed()

    async def _write_use(self) -> None:
        try:
            await self._marks.write()
            await self._tenants.write_down()
        except StoreUnavailable as error:
            logger.warning("what was sent, and when keys were last used, is not written down: %s", error)

    def _hear_no_more(self) -> None:
        dispatcher.disconnect(self._wake_outbox, NOTIFICATION_STORED, sender=self._notifier)
        dispatcher.disconnect(self._broadcaster.hear, BROADCAST_HEARD, sender=self._backplane)
        dispatcher.disconnect(self._follow_access, ACCESS_CHANGED, sender=self._tenants)
        dispatcher.disconnect(self._follow_sign_outs, USERS_SIGNED_OUT, sender=self._tenants)
        self._counts.close()
        self._metrics.close()


def _log_closed(count: int) -> None:
    if count:
        logger.info("closed %d connections whose access has ended", count)
