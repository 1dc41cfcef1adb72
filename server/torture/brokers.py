"""Backends that publish by a broker: RabbitMQ with confirms and a `message_id`, which keeps what it has confirmed; and
Redis, which keeps nothing: what it passes on while nobody can take it is gone."""

from __future__ import annotations

import asyncio
import json
import random

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError

from server.torture.ledger import Ledger, Request
from server.torture.publishers import Audience, size_of, text_of
from server.torture.services import RabbitMQ, Redis

ANSWER_WITHIN_S = 5.0

AGAIN = 0.3
"""How often a message is published once more although it was taken: the key has to see to it."""


def _message(request: Request) -> dict[str, object]:
    return {"title": request.key, "content": text_of(request)}


class RabbitPublisher:
    """CONTRACT C3 by RabbitMQ."""

    name = "rabbitmq"

    def __init__(self, broker: RabbitMQ, ledger: Ledger, audience: Audience) -> None:
        self._broker = broker
        self._ledger = ledger
        self._audience = audience
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    def open(self, rng: random.Random) -> Request:
        return self._ledger.open(self.name, [rng.choice(self._audience.everybody)], size=size_of(rng))

    async def publish(self, request: Request, rng: random.Random) -> bool:
        """Acknowledged is what the broker has confirmed, and routed to the queue."""
        body = json.dumps({"user_id": request.users[0], "payload": _message(request)}).encode()
        message = aio_pika.Message(
            body, message_id=request.key, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
        )
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                channel = await self._open_channel()
                exchange = await channel.get_exchange("notifications_exchange", ensure=False)
                await exchange.publish(message, "notifications.send", mandatory=True)
                if rng.random() < AGAIN:
                    await exchange.publish(message, "notifications.send", mandatory=True)
        except DeliveryError:
            return False  # the queue is not there yet
        except (*CONNECTION_EXCEPTIONS, TimeoutError):
            await self.close()
            return False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return False  # it was the library that cancelled what it waited for: the connection is gone
        return True

    async def waiting(self) -> int | None:
        """How many messages are in the queue; None: that is not known now."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                channel = await self._open_channel()
                queue = await channel.declare_queue("notification-server", passive=True)
                return queue.declaration_result.message_count or 0
        except (*CONNECTION_EXCEPTIONS, TimeoutError):
            await self.close()
            return None

    async def _open_channel(self) -> AbstractChannel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                await self.close()
                self._connection = await aio_pika.connect(self._broker.url)
                self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            return self._channel

    async def close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is None:
            return
        try:
            async with asyncio.timeout(1.0):
                await connection.close()
        except (*CONNECTION_EXCEPTIONS, TimeoutError):
            pass  # it is gone


class RedisPublisher:
    """CONTRACT C2. Acknowledged is what Redis has passed on to somebody; that is no promise."""

    name = "redis"

    def __init__(self, redis: Redis, ledger: Ledger, audience: Audience) -> None:
        self._redis = redis
        self._ledger = ledger
        self._audience = audience

    def open(self, rng: random.Random) -> Request:
        user = rng.choice(self._audience.everybody)
        return self._ledger.open(self.name, [user], is_kept=False, size=size_of(rng))

    async def publish(self, request: Request, rng: random.Random) -> bool:
        said = {"type": "torture", "payload": _message(request), "idempotency_key": request.key}
        channel, body = f"user_noti:{request.users[0]}".encode(), json.dumps(said).encode()
        times = 1 + (rng.random() < AGAIN)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return [await self._publish(channel, body) for _ in range(times)][0] > 0
        except (OSError, EOFError, ValueError):  # a TimeoutError, too
            return False

    async def _publish(self, channel: bytes, body: bytes) -> int:
        """How many took it (RESP)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._redis.port)
        try:
            words = (b"PUBLISH", channel, body)
            writer.write(b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
            return int((await reader.readline()).removeprefix(b":"))
        finally:
            writer.close()
