"""How RabbitMQ is reached: the connections, what is declared over them, and why they ended. Knows no notifications."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from server.config.doors import RabbitMQ

# They report each refused connection as an error, and with it addresses. What is wrong we say ourselves, and once.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

GOODBYE_S = 2.0
"""For each step of an orderly end; a broker that does not answer is left without."""


class End:
    """That something is over, and why; the first reason counts."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._error: Exception | None = None

    def __bool__(self) -> bool:
        return self._event.is_set()

    def because(self, error: BaseException | None) -> None:
        """None: nobody said why."""
        if not self._event.is_set():
            self._error = (
                error if isinstance(error, Exception) else ConnectionError("the connection was closed")
            )
            self._event.set()

    async def wait(self) -> None:
        """Raises why."""
        await self._event.wait()
        assert self._error is not None  # noqa: S101  # set before the event
        raise self._error


@dataclass(frozen=True, slots=True)
class Link:
    """`channel`: the one that `queue` is consumed over. `results`: the exchange, over a connection of its own: who
    publishes while the broker is short of memory is not read from any more, and then nothing would be acknowledged."""

    channel: AbstractChannel
    queue: AbstractQueue
    results: AbstractExchange


async def open_link(settings: RabbitMQ, stack: AsyncExitStack, end: End) -> Link:
    """Connect and declare; `stack` closes it. `end` hears when the broker has ended it. Raises
    CONNECTION_EXCEPTIONS."""
    channel = await _open_channel(settings, stack, end, publisher_confirms=False)
    await channel.set_qos(prefetch_count=settings.prefetch)
    exchange = await channel.declare_exchange(
        settings.exchange, aio_pika.ExchangeType.DIRECT, durable=settings.exchange_durable
    )
    dead = settings.dead_letter_exchange
    queue = await channel.declare_queue(
        settings.queue, durable=True, arguments={"x-dead-letter-exchange": dead} if dead else {}
    )
    await queue.bind(exchange, settings.routing_key)
    results = await _open_channel(settings, stack, end, publisher_confirms=True)
    return Link(channel, queue, await results.get_exchange(settings.exchange, ensure=False))


async def _open_channel(
    settings: RabbitMQ, stack: AsyncExitStack, end: End, *, publisher_confirms: bool
) -> AbstractChannel:
    """On a connection of its own."""

    def closed(_: object, error: BaseException | None) -> None:
        end.because(error)

    is_secured = settings.url.startswith("amqps:")
    connection = await aio_pika.connect(
        settings.url,
        ssl_context=ssl.create_default_context(cafile=settings.ca) if is_secured else None,
        timeout=settings.timeout_s,
        heartbeat=max(1, int(settings.timeout_s)),
        client_properties={"connection_name": "notification-server"},
    )
    stack.push_async_callback(_close, connection)
    connection.close_callbacks.add(closed)
    channel = await connection.channel(publisher_confirms=publisher_confirms)
    channel.close_callbacks.add(closed)
    below = await channel.get_underlay_channel()
    below.on_consumer_cancel_callbacks.add(lambda _: end.because(ConnectionError("the queue was deleted")))
    return channel


async def _close(connection: AbstractConnection) -> None:
    with suppress(*CONNECTION_EXCEPTIONS):
        async with asyncio.timeout(GOODBYE_S):
            await connection.close()
