"""Notifications from RabbitMQ (CONTRACT C3): messages of a durable queue, which are acknowledged when they are stored.

A message is stored, its result is published, and then it is acknowledged. Whatever ends in between, the broker delivers
it again, so that none is lost: a message with a `message_id` is stored once all the same, one without may be stored
twice. While the store is away nothing is fetched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelPreconditionFailed

from server.config.doors import RabbitMQ
from server.errors import Busy, InProgress, InvalidInput, KeyReused, ServerError, StoreUnavailable
from server.idempotency import field_key
from server.ingest.consumer import Backoff, Consumer, Lanes, first_of, json_of, reason_of
from server.ingest.rabbitmq_link import GOODBYE_S, End, Link, open_link
from server.messages import Publication
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_service
from server.store import Store

logger = logging.getLogger(__name__)

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}

RESULTS_PAUSE_S = 30.0
"""How long no result is published after one could not be: a broker that is short of memory or disk takes nothing (its
"alarm"), and messages must be acknowledged all the same, or it would never recover."""

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
        self._link: Link | None = None
        self._session: _Session | None = None

    @property
    def waiting(self) -> int:
        """How many fetched messages wait to be stored."""
        return self._session.waiting if self._session else 0

    async def _consume(self) -> None:
        await self._store.ping()  # else each try would fetch what it has to give back
        end = End()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._settings.timeout_s):
                link = await open_link(self._settings, stack, end)
                session = _Session(self, self._notifier, self._settings, link, end)
                stack.push_async_callback(session.close)
                await session.begin()
            self._link, self._session = link, session
            self._note_up()
            try:
                await first_of(end.wait(), self._stopping.wait())
            except Exception:  # not when cancelled: then there is no time left
                await session.finish()
                raise
            else:
                await session.finish()
            finally:
                self._link = self._session = None

    async def probe(self) -> None:
        """Ask the broker, over the channel that consumes."""
        await super().probe()
        if self._link is not None:
            await self._link.channel.set_qos(prefetch_count=self._settings.prefetch)

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
        publication = replace(publication, door=self.door, received_at=received_at, idempotency_key=key)
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
        if isinstance(error, CONNECTION_EXCEPTIONS):
            why = reason_of(error)
            hint = "; is exchange_durable right, and dead_letter_exchange that of the queue?"
            return why + hint if isinstance(error, ChannelPreconditionFailed) else why
        return None


class _Session:
    """What is done over one link until `end`, which this makes come when the store goes away."""

    def __init__(
        self, door: RabbitDoor, notifier: Notifier, settings: RabbitMQ, link: Link, end: End
    ) -> None:
        self._door = door
        self._notifier = notifier
        self._settings = settings
        self._link = link
        self._end = end
        self._results_after = 0.0
        self._tag = ""
        self._lanes = Lanes(self._work)
        self._working = asyncio.create_task(self._lanes.run(), name="rabbitmq lanes")

    @property
    def waiting(self) -> int:
        return self._lanes.waiting

    async def begin(self) -> None:
        self._tag = await self._link.queue.consume(self._take)

    async def finish(self) -> None:
        """Fetch no more; what is in hand is stored and acknowledged, what waits goes back to the queue, in its
        order."""
        self._end.because(None)
        with suppress(*CONNECTION_EXCEPTIONS):
            async with asyncio.timeout(GOODBYE_S):
                await self._link.queue.cancel(self._tag)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.timeout_s):
                await self._lanes.idle()

    async def close(self) -> None:
        self._working.cancel()
        await asyncio.wait([self._working])

    # -- working ---------------------------------------------------------------------------------------------
    async def _take(self, message: AbstractIncomingMessage) -> None:
        task = self._door.read(message)
        user_id = task.publication.recipients[0].user_id if task.publication else ""
        self._lanes.put(user_id, task)

    async def _work(self, task: _Task) -> None:
        if self._end:
            return  # unacknowledged, so that it comes again
        try:
            await self._settle(task)
        except (StoreUnavailable, Busy) as error:
            self._end.because(error)
        except CONNECTION_EXCEPTIONS as error:
            self._end.because(error)

    async def _settle(self, task: _Task) -> None:
        if task.publication is None:
            await self._refuse(task.message, task.result)
            return
        try:
            await self._notifier.notify(task.publication)
        except (StoreUnavailable, Busy):
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
        """Publish the result. A broker that does not take it holds up no message."""
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
                await self._link.results.publish(answer, self._settings.result_key, mandatory=False)
        except TimeoutError:
            self._results_after = time.monotonic() + RESULTS_PAUSE_S
            logger.warning(
                "rabbitmq: the broker takes no results; they are left out for %g s", RESULTS_PAUSE_S
            )
