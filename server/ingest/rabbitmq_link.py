"""How RabbitMQ is reached: the connections, what is declared over them, and why they ended. Knows no notifications."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractQueue, TimeoutType
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from pamqp import commands, decode

from server.config.brokers import RabbitMQ

# They report each refused connection as an error, and with it addresses. What is wrong we say ourselves, and once.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

GOODBYE_S = 2.0
"""For each step of an orderly end; a broker that does not answer is left without."""


def _leniently(
    read: Callable[[bytes], tuple[int, Any]], size_of: Callable[[bytes], int]
) -> Callable[[bytes], tuple[int, Any]]:
    """`read`, but what it cannot read counts as not given. `size_of`: how many bytes that is."""

    def read_leniently(data: bytes) -> tuple[int, Any]:
        try:
            return read(data)
        except Exception:  # ValueError, OverflowError, OSError …: it depends on the value
            return size_of(data), None

    return read_leniently


# The broker looks at no text and no time in the properties of a message. Strictly read, one that is not UTF-8, or is in
# microseconds, would end the connection; the message would come again at once, and nothing behind it ever.
for _kind, _size_of in {
    "shortstr": lambda data: 1 + data[0],
    "table": lambda data: 4 + int.from_bytes(data[:4], "big"),
    "timestamp": lambda data: 8,
}.items():
    decode.METHODS[_kind] = _leniently(decode.METHODS[_kind], _size_of)

# A virtual host that is not there, or not for this user, is answered by Close, with the reason. aiormq would not look
# at it: it expects no answers but these, and says only where in memory the other one lies.
commands.Connection.Open.valid_responses = [*commands.Connection.Open.valid_responses, "Connection.Close"]


class _Connection(aio_pika.Connection):
    """Is closed when it could not be made: else that is left to the garbage collector, which may find no loop."""

    async def connect(self, timeout: TimeoutType = None) -> None:  # noqa: ASYNC109  # theirs
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


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


class Results:
    """Where it is told what became of messages, over a connection of its own: who publishes while the broker is short
    of memory is not read from any more, and then nothing would be acknowledged."""

    def __init__(self, settings: RabbitMQ, connection: AbstractConnection) -> None:
        self._settings = settings
        self._connection = connection
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        return not self._connection.is_closed

    async def publish(self, message: aio_pika.Message) -> None:
        """Return when the broker has taken it. Raises CONNECTION_EXCEPTIONS, among them DeliveryError: it does not take
        this one. What it does not allow at all ends the channel; the next call opens another one."""
        exchange = await self._exchange()
        await exchange.publish(message, self._settings.result_key, mandatory=False)

    async def _exchange(self) -> AbstractExchange:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._connection.channel(publisher_confirms=True)
            return await self._channel.get_exchange(self._settings.exchange, ensure=False)


@dataclass(frozen=True, slots=True)
class Link:
    """`channel`: the one that `queue` is consumed over."""

    channel: AbstractChannel
    queue: AbstractQueue
    results: Results


async def open_link(settings: RabbitMQ, stack: AsyncExitStack, end: End) -> Link:
    """Connect and declare; `stack` closes it. `end` hears when the broker has ended it. Raises
    CONNECTION_EXCEPTIONS."""
    connection = await _connect(settings, stack, end)
    channel = await connection.channel(publisher_confirms=False)
    channel.close_callbacks.add(lambda _, error: end.because(error))
    below = await channel.get_underlay_channel()
    below.on_consumer_cancel_callbacks.add(lambda _: end.because(ConnectionError("the queue was deleted")))
    await channel.set_qos(prefetch_count=settings.prefetch)
    dead = settings.dead_letter_exchange
    await _declare_exchange(settings, channel)
    queue = await channel.declare_queue(
        settings.queue, durable=True, arguments={"x-dead-letter-exchange": dead} if dead else {}
    )
    await queue.bind(settings.exchange, settings.routing_key)
    return Link(channel, queue, Results(settings, await _connect(settings, stack, end)))


async def bind_again(settings: RabbitMQ, link: Link) -> None:
    """Whoever deletes the exchange takes the binding along, and the queue would get nothing any more, without a word.
    Raises CONNECTION_EXCEPTIONS."""
    await _declare_exchange(settings, link.channel)
    await link.queue.bind(settings.exchange, settings.routing_key)


async def _declare_exchange(settings: RabbitMQ, channel: AbstractChannel) -> None:
    await channel.declare_exchange(
        settings.exchange, aio_pika.ExchangeType.DIRECT, durable=settings.exchange_durable
    )


async def _connect(settings: RabbitMQ, stack: AsyncExitStack, end: End) -> AbstractConnection:
    is_secured = settings.url.startswith("amqps:")
    connection = await aio_pika.connect(
        settings.url,
        ssl_context=ssl.create_default_context(cafile=settings.ca) if is_secured else None,
        timeout=settings.timeout_s,
        heartbeat=max(1, int(settings.timeout_s)),
        client_properties={"connection_name": "notification-server"},
        connection_class=_Connection,
    )
    stack.push_async_callback(_close, connection)
    connection.close_callbacks.add(lambda _, error: end.because(error))
    return connection


async def _close(connection: AbstractConnection) -> None:
    with suppress(*CONNECTION_EXCEPTIONS):
        async with asyncio.timeout(GOODBYE_S):
            await connection.close()
