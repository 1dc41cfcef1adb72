"""The Redis hub (CONTRACT C2): what backends publish to the channels `user_noti:{user id}`.

Redis keeps nothing of what it passes on: what cannot be stored waits here, in a bounded buffer, and whoever is not
subscribed at the moment misses it. So one process of a cluster consumes, and the next takes over when its lease ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from redis.asyncio import Connection
from redis.exceptions import RedisError

from server.checks import Trouble
from server.config.brokers import RedisHub
from server.errors import (
    Busy,
    InProgress,
    InvalidInput,
    InvalidNotification,
    KeyReused,
    ServerError,
    StoreUnavailable,
    TenantGone,
    TooLarge,
)
from server.idempotency import field_key
from server.ingest.consumer import (
    ACCESS_REFUSED,
    NO_TENANT,
    NOT_CONNECTED,
    Backoff,
    Consumer,
    Lanes,
    Lease,
    check_size,
    json_of,
    reason_of,
)
from server.messages import Publication, altered
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_hub
from server.redis_client import REFUSALS, address_of, make_connection, pushed
from server.rooms import Room
from server.tasks import first_of

logger = logging.getLogger(__name__)

RECONNECT_MAX_S = 2.0
"""Between two tries to reach Redis: what is published meanwhile is gone, and a try costs next to nothing."""

STORE_RETRY_MAX_S = 5.0
"""Between two tries to store a message that waits: who reads it has been waiting, too."""


@dataclass(frozen=True, slots=True)
class _Message:
    """As it came; it is read when its turn has come, since its bytes take the least room."""

    user_id: str
    body: bytes
    size: int
    """Bytes that were sent, those of the channel included: a name may be as long as a message."""
    received_at: float


class RedisDoor(Consumer):
    """`limits`, `max_message_bytes`: of one message; may be changed while the server runs. `online`: which of some
    users have a connection on any node; asked only with `skip_offline`. `run` and `stop`: as of every consumer."""

    door = "redis"

    def __init__(
        self,
        settings: RedisHub,
        notifier: Notifier,
        lease: Lease,
        *,
        limits: FieldLimits,
        max_message_bytes: int,
        online: Callable[[Collection[Room]], Awaitable[set[Room]]],
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(
            f"Redis at {address_of(settings.url)}", settings.tenant, backoff or Backoff(max_s=RECONNECT_MAX_S)
        )
        self.limits = limits
        self.max_message_bytes = max_message_bytes
        self._settings = settings
        self._notifier = notifier
        self._lease = lease
        self._online = online
        self._prefix = f"{settings.prefix}:".encode()
        self._lanes = Lanes(self._work)
        self._waiting_bytes = 0
        self._dropped = 0
        self._connection: Connection | None = None
        self._pongs: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> int:
        return self._lanes.waiting

    # -- life ------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        await first_of(super().run(), self._lanes.run())

    async def _finish(self) -> None:
        try:
            await self._lanes.idle()
        finally:
            if self._lanes.waiting:
                logger.warning("redis: %d messages could not be stored in time", self._lanes.waiting)
            # Not before: who has it next would store a user's next message before those that waited here.
            await self._lease.give_back()

    async def _consume(self) -> None:
        self._notifier.check_tenant(self._settings.tenant)
        if not await self._lease.renew():
            if not self._lease.is_known:
                raise StoreUnavailable
            self._note_standby()
            await self._pause(self._lease.ask_every_s)
            return
        settings = self._settings
        connection = make_connection(
            settings.url, password=settings.password, ca=settings.ca, timeout_s=settings.timeout_s
        )
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]  # of redis-py
                await connection.send_command("PSUBSCRIBE", self._prefix + b"*")
            self._connection = connection
            await first_of(self._listen(connection), self._keep_lease(), self._stopping.wait())
        finally:
            self._connection = None
            self._answer_pings(Trouble("not connected"))
            await connection.disconnect(nowait=True)

    async def _keep_lease(self) -> None:
        """Return when somebody else has it. Raises `TenantGone`."""
        while True:
            await asyncio.sleep(self._lease.renew_every_s)
            self._notifier.check_tenant(self._settings.tenant)
            if not await self._lease.renew():
                logger.warning("redis: another process has taken over")
                return

    # -- listening -------------------------------------------------------------------------------------------
    async def _listen(self, connection: Connection) -> None:
        """Take what comes; never waits for the store, or Redis would cut off a subscriber that is slow. Raises when the
        connection has ended, or is silent also when asked."""
        async for message in pushed(connection, self._settings.timeout_s):
            self._take(message)

    def _take(self, pushed: list[bytes | int]) -> None:
        match pushed:
            case [b"pmessage", _, bytes() as channel, bytes() as body]:
                self._receive(channel, body)
            case [b"psubscribe", *_]:
                self._note_up()
            case [b"pong", *_]:
                self._answer_pings(None)

    def _receive(self, channel: bytes, body: bytes) -> None:
        self._note_received()
        size = len(channel) + len(body)
        try:
            # Now, or it would take the place of others in the buffer.
            check_size(size, self.max_message_bytes)
            message = _Message(channel.removeprefix(self._prefix).decode(), body, size, time.monotonic())
        except UnicodeDecodeError:
            self._skip(InvalidNotification("user_id", "not UTF-8"))
            return
        except TooLarge as error:
            self._skip(error)
            return
        if self._has_space(message):
            self._waiting_bytes += size
            self._lanes.put(message.user_id, message)
        else:
            self._drop("the store is away, and the buffer is full")

    def _has_space(self, message: _Message) -> bool:
        """An empty buffer takes any one message."""
        settings, waiting = self._settings, self._lanes.waiting
        is_full = waiting >= settings.buffer_messages
        return not waiting or not (is_full or self._waiting_bytes + message.size > settings.buffer_bytes)

    # -- storing ---------------------------------------------------------------------------------------------
    async def _work(self, message: _Message) -> None:
        try:
            if self._settings.skip_offline and not await self._is_online(message.user_id):
                self._note_refused("offline")
                return
            await self._store(self._parse(message), message.received_at)
        except (InvalidInput, KeyReused) as error:
            self._skip(error)
        except TenantGone:
            self._drop(NO_TENANT)
        except Exception:
            logger.exception("redis: a message could not be stored")
            self._note_refused("internal")
        finally:
            self._waiting_bytes -= message.size

    async def _is_online(self, user_id: str) -> bool:
        return bool(await self._online([(self._settings.tenant, user_id)]))

    def _parse(self, message: _Message) -> Publication:
        value = json_of(message.body, self.max_message_bytes)
        publication = parse_hub(message.user_id, value, self._settings.tenant, self.limits)
        return altered(
            publication,
            door=self.door,
            received_at=message.received_at,
            idempotency_key=field_key(value),
        )

    async def _store(self, publication: Publication, received_at: float) -> None:
        """Until it is stored; those of the same user wait behind it."""
        backoff = Backoff(max_s=STORE_RETRY_MAX_S)
        while await self._lease.covers(received_at):
            try:
                await self._notifier.notify(publication)
            except (StoreUnavailable, Busy, InProgress):
                await asyncio.sleep(backoff.next_s())
            else:
                self._note_stored()
                return
        # It came when the lease could not be renewed, and somebody else has it now, and with it the message.
        self._drop("another process has taken over")

    def _skip(self, error: ServerError) -> None:
        logger.info("redis: skipped a message: %s", error)
        self._note_refused(error.code)

    def _drop(self, why: str) -> None:
        """Say so once; how many there were is said when it is over."""
        if not self._dropped:
            logger.warning("redis: messages are dropped: %s", why)
        self._dropped += 1
        self._note_refused("dropped")

    def _note_stored(self) -> None:
        if self._dropped:
            logger.warning("redis: messages are stored again; %d were dropped", self._dropped)
            self._dropped = 0

    # -- health ----------------------------------------------------------------------------------------------
    async def probe(self) -> None:
        """Ask Redis, over the connection that is subscribed."""
        await super().probe()
        if self._connection is not None:
            pong = asyncio.get_running_loop().create_future()
            self._pongs.append(pong)
            await self._connection.send_command("PING")
            await pong

    def _answer_pings(self, trouble: Trouble | None) -> None:
        pongs, self._pongs = self._pongs, []
        for pong in pongs:
            if pong.done():
                continue
            if trouble is None:
                pong.set_result(None)
            else:
                pong.set_exception(trouble)

    def _trouble_of(self, error: Exception) -> str:
        return ACCESS_REFUSED if isinstance(error, REFUSALS) else NOT_CONNECTED

    def _why(self, error: Exception) -> str | None:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._settings.timeout_s:g} s"
        if isinstance(error, RedisError | OSError):
            return reason_of(error)
        return None
