"""Notifications from RabbitMQ (CONTRACT C3): messages of a durable queue, which are acknowledged when they are stored.

A message is stored, its result is published, and then it is acknowledged. Whatever ends in between, the broker delivers
it again, so that none is lost: a message with a `message_id` is stored once all the same, one without may be stored
twice. A result that cannot be published is left out: what is stored is acknowledged. While the store is away nothing is
fetched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelPreconditionFailed, DeliveryError

from server.checks import Trouble
from server.config.brokers import RabbitMQ
from server.errors import (
    Busy,
    InProgress,
    InvalidInput,
    KeyReused,
    ServerError,
    StoreUnavailable,
    TenantGone,
)
from server.idempotency import field_key
from server.ingest.consumer import (
    ACCESS_REFUSED,
    NOT_CONNECTED,
    Backoff,
    Consumer,
    Lanes,
    json_of,
    reason_of,
)
from server.ingest.rabbitmq_link import GOODBYE_S, End, Link, bind_again, open_link
from server.messages import Publication, altered
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_service
from server.store import Store
from server.tasks import first_of

logger = logging.getLogger(__name__)

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}

BIND_EVERY_S = 10.0
"""How often the binding of the queue is renewed."""

RESULTS_PAUSE_S = 30.0
"""How long no result is published after one could not be: a broker that is short of memory or disk takes nothing (its
"alarm"), and messages must be acknowledged all the same, or it would never recover."""

HINTS = {
    "for exchange": "set exchange_durable to how it was declared, or exchange to another name",
    "for queue": "delete it, set queue to another name, or dead_letter_exchange to that of the queue",
}
"""What to do about what is declared otherwise, by what the broker says of it."""

DECLARED_OTHERWISE = "the exchange or the queue was declared otherwise"
"""What is wrong then, in words for anybody."""

INTERNAL = {"error": "internal"}


@dataclass(frozen=True, slots=True)
class _Task:
    """A message, and what is in it: a valid publication and the result to tell, or what is wrong."""

    message: AbstractIncomingMessage
    publication: Publication | None
    result: dict[str, Any]


class RabbitDoor(Consumer):
    """`limits`, `max_message_bytes`: of one message; may be changed while the server runs. `run` and `stop` are those
    of every consumer."""

    door = "rabbitmq"

    def __init__(
        self,
        settings: RabbitMQ,
        notifier: Notifier,
        store: Store,
        *,
        limits: FieldLimits,
        max_message_bytes: int,
        backoff: Backoff | None = None,
    ) -> None:
        url = urlsplit(settings.url)
        port = url.port or DEFAULT_PORTS[url.scheme]
        super().__init__(f"RabbitMQ at {url.hostname}:{port}", settings.tenant, backoff)
        self.limits = limits
        self.max_message_bytes = max_message_bytes
        self._settings = settings
        self._notifier = notifier
        self._store = store
        self._session: _Session | None = None

    @property
    def waiting(self) -> int:
        return 0 if self._session is None else self._session.waiting

    async def _consume(self) -> None:
        # Else each try would fetch what it has to give back.
        self._notifier.check_tenant(self._settings.tenant)
        with suppress(Trouble):  # it is there all the same
            await self._store.ping()
        end = End()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._settings.timeout_s):
                link = await open_link(self._settings, stack, end)
            session = _Session(self, self._notifier, self._settings, link, end)
            await first_of(self._fetch(session, end), session.work())

    async def _fetch(self, session: _Session, end: End) -> None:
        async with asyncio.timeout(self._settings.timeout_s):
            await session.begin()
        self._session = session
        self._note_up()
        try:
            await first_of(end.wait(), self._keep_bound(session.link), self._stopping.wait())
        except Exception:  # not when cancelled: then there is no time left
            await session.finish()
            raise
        else:
            await session.finish()
        finally:
            self._session = None

    async def _keep_bound(self, link: Link) -> None:
        while True:
            await asyncio.sleep(BIND_EVERY_S)
            async with asyncio.timeout(self._settings.timeout_s):
                await bind_again(self._settings, link)

    async def probe(self) -> None:
        """Ask the broker, over the channel that consumes."""
        await super().probe()
        if self._session is not None:
            await self._session.link.channel.set_qos(prefetch_count=self._settings.prefetch)

    def read(self, message: AbstractIncomingMessage) -> _Task:
        """What a message says; counts, and says in the log, what is wrong with it."""
        self._note_received()
        received_at = time.monotonic()
        try:
            fields = json_of(message.body, self.max_message_bytes)
            publication = parse_service(fields, self._settings.tenant, self.limits)
            # Whatever text its publisher tells it from others by.
            key = field_key(fields) or message.message_id or None
        except InvalidInput as error:
            return _Task(message, None, self.refusal(error))
        except Exception:
            # Left alone it would be neither acknowledged nor rejected, and such as it would use up the prefetch.
            logger.exception("rabbitmq: a message could not be read")
            self.note_failure()
            return _Task(message, None, INTERNAL)
        publication = altered(publication, door=self.door, received_at=received_at, idempotency_key=key)
        return _Task(message, publication, {name: fields[name] for name in ("user_id", "payload")})

    def refusal(self, error: ServerError) -> dict[str, Any]:
        """The result of a message that becomes no notification; counts it, and says so in the log."""
        logger.info("rabbitmq: refused a message: %s", error)
        self._note_refused(error.code)
        return {"error": str(error)}

    def note_failure(self) -> None:
        """A message that is well-formed could not be stored, though the store is well."""
        self._note_refused("internal")

    def _why(self, error: Exception) -> str | None:
        if isinstance(error, Busy):
            return str(error)
        if isinstance(error, TimeoutError):
            return f"no answer within {self._settings.timeout_s:g} s"
        if isinstance(error, ChannelPreconditionFailed):
            why = reason_of(error)
            return "; ".join([why, *(hint for part, hint in HINTS.items() if part in why)])
        if isinstance(error, CONNECTION_EXCEPTIONS):
            return reason_of(error)
        return None

    def _trouble_of(self, error: Exception) -> str:
        if isinstance(error, ChannelPreconditionFailed):
            return DECLARED_OTHERWISE
        # As the broker calls a wrong password and what a user may not touch, and a virtual host that is not theirs.
        is_refused = any(word in str(error) for word in ("ACCESS_REFUSED", "NOT_ALLOWED"))
        return ACCESS_REFUSED if is_refused else NOT_CONNECTED


class _Session:
    """What is done over one link until `end`, which this makes come when the store goes away."""

    def __init__(
        self, door: RabbitDoor, notifier: Notifier, settings: RabbitMQ, link: Link, end: End
    ) -> None:
        self._door = door
        self._notifier = notifier
        self._settings = settings
        self.link = link
        self._end = end
        self._results_after = 0.0
        self._are_results_taken = True
        self._tag = ""
        self._lanes = Lanes(self._work)

    @property
    def waiting(self) -> int:
        return self._lanes.waiting

    async def work(self) -> None:
        """Store what is fetched, until cancelled."""
        await self._lanes.run()

    async def begin(self) -> None:
        self._tag = await self.link.queue.consume(self._take)

    async def finish(self) -> None:
        """Fetch no more; what is in hand is stored and acknowledged, what waits goes back to the queue, in its
        order."""
        self._end.because(None)
        with suppress(*CONNECTION_EXCEPTIONS):
            async with asyncio.timeout(GOODBYE_S):
                await self.link.queue.cancel(self._tag)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.timeout_s):
                await self._lanes.idle()

    # -- working ---------------------------------------------------------------------------------------------
    async def _take(self, message: AbstractIncomingMessage) -> None:
        task = self._door.read(message)
        # The broker allows far longer ones than we do, and as many as are fetched may wait to be rejected.
        message.body = b""  # type: ignore[misc]  # all that there are have it
        user_id = task.publication.recipients[0].user_id if task.publication else ""
        self._lanes.put(user_id, task)

    async def _work(self, task: _Task) -> None:
        if self._end:
            return  # unacknowledged, so that it comes again
        try:
            await self._settle(task)
        except (StoreUnavailable, TenantGone, Busy) as error:
            self._end.because(error)
        except CONNECTION_EXCEPTIONS as error:
            self._end.because(error)

    async def _settle(self, task: _Task) -> None:
        if task.publication is None:
            await self._refuse(task.message, task.result)
            return
        try:
            await self._notifier.notify(task.publication)
        except (StoreUnavailable, TenantGone, Busy):
            raise
        except InProgress:
            # Having waited for as long as the store may take, so that it does not come and go all the time.
            await task.message.reject(requeue=True)
            return
        except KeyReused as error:
            await self._refuse(task.message, self._door.refusal(error))
            return
        except Exception:
            await self._give_up(task.message)
            return
        await self._tell(task.message, task.result)
        await task.message.ack()

    async def _give_up(self, message: AbstractIncomingMessage) -> None:
        """What nobody foresaw is tried twice: it must neither be lost by a passing fault nor come for ever."""
        logger.exception("rabbitmq: a message could not be stored")
        if message.redelivered:
            self._door.note_failure()
            await self._refuse(message, INTERNAL)
        else:
            await message.reject(requeue=True)

    async def _refuse(self, message: AbstractIncomingMessage, result: dict[str, Any]) -> None:
        await self._tell(message, result)
        await message.reject(requeue=False)

    async def _tell(self, message: AbstractIncomingMessage, result: dict[str, Any]) -> None:
        """Publish the result; does not raise. What is stored is acknowledged also without it, or it would come again,
        and be stored again, for as long as the broker takes no results."""
        if time.monotonic() < self._results_after:
            return
        answer = Message(
            json.dumps(result).encode(),
            content_type="application/json",
            correlation_id=message.correlation_id or message.message_id,
            delivery_mode=DeliveryMode.PERSISTENT,
        )
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self.link.results.publish(answer)
        except DeliveryError:
            self._note_results("a queue of results is full")
        except TimeoutError:
            self._pause_results("the broker takes none")
        except CONNECTION_EXCEPTIONS as error:
            if not self.link.results.is_connected:
                self._end.because(error)
            else:
                self._pause_results(reason_of(error))
        else:
            self._are_results_taken = True

    def _pause_results(self, why: str) -> None:
        self._results_after = time.monotonic() + RESULTS_PAUSE_S
        self._note_results(why)

    def _note_results(self, why: str) -> None:
        """Say so once, until one is taken again."""
        if self._are_results_taken:
            self._are_results_taken = False
            logger.warning("rabbitmq: results are left out: %s", why)
