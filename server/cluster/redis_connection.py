"""Connections to Redis, for commands and for what is pushed. What channels and keys mean is up to `redis`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import RedisError

from server import reasons
from server.cluster.link import ACCESS_REFUSED, LinkDown
from server.config import Cluster
from server.redis_client import REFUSALS, address_of, make_connection, pushed

PING_S = 1.0
"""After so long a silence Redis is asked whether it is there; after as long again it is not."""

COMMANDS_AT_ONCE = 500
"""Written in one go."""


class _Place:
    """One connection to the Redis of the settings, made anew by each `connect`."""

    def __init__(self, settings: Cluster) -> None:
        self._settings = settings
        self.name = f"Redis at {address_of(settings.redis_url)}"
        self._connection: Connection | None = None

    async def connect(self) -> None:
        """Raises `RedisError`, OSError, TimeoutError."""
        settings = self._settings
        connection = make_connection(
            settings.redis_url,
            password=settings.redis_password,
            ca=settings.redis_ca,
            timeout_s=settings.timeout_s,
        )
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]  # of redis-py
        except BaseException:
            await _hang_up(connection)
            raise
        # Not before: while it is introduced, whoever else uses it would read the answers to that.
        self._connection = connection

    async def disconnect(self) -> None:
        """Idempotent; does not raise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _hang_up(connection)


class Commands(_Place):
    """Commands, one lot after the other."""

    def __init__(self, settings: Cluster) -> None:
        super().__init__(settings)
        self._turn = asyncio.Lock()

    async def execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Carry them out in this order; their answers. Raises `LinkDown`: any of them may have been carried out."""
        answers: list[Any] = []
        for start in range(0, len(commands), COMMANDS_AT_ONCE):
            async with self._turn:
                answers += await self._execute(commands[start : start + COMMANDS_AT_ONCE])
        return answers

    async def _execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection
        if connection is None or not connection.is_connected:
            raise LinkDown("not connected")
        try:
            packed = connection.pack_commands(commands)
            async with asyncio.timeout(self._settings.timeout_s):
                await connection.send_packed_command(packed, check_health=False)
                return [await connection.read_response(disable_decoding=True) for _ in commands]
        except (RedisError, OSError) as error:
            await _hang_up(connection)
            raise LinkDown(reason_of(error) or "failed") from error
        except BaseException:
            # Cut off in the middle: the next command would get the answers to this one.
            await _hang_up(connection)
            raise


class Subscription(_Place):
    """What is pushed over channels. `heard_at`: all that Redis sent until then has come. What comes now may have been
    on its way for long, and more of it may be lost: Redis cuts off who is slow to read."""

    def __init__(self, settings: Cluster) -> None:
        super().__init__(settings)
        self.heard_at = datetime.now(UTC)

    async def follow(self, channels: Sequence[bytes]) -> None:
        """Raises as `connect`."""
        await self._say("SUBSCRIBE", *channels)

    async def let_go(self, channels: Sequence[bytes]) -> None:
        """As `follow`."""
        await self._say("UNSUBSCRIBE", *channels)

    async def ask(self) -> None:
        """As `follow`, which it has to come behind. The answer comes behind all that was sent before."""
        await self._say("PING", datetime.now(UTC).isoformat())

    async def _say(self, *command: str | bytes) -> None:
        if self._connection is None:
            raise LinkDown("not connected")
        await self._connection.send_command(*command)

    async def pushed(self) -> AsyncIterator[list[Any]]:
        """All that comes but answers to `ask`, until the connection ends or is silent although asked. Raises as
        `connect`, or `LinkDown`."""
        if self._connection is None:
            raise LinkDown("not connected")
        async for message in pushed(self._connection, PING_S):
            match message:
                case [b"pong", bytes() as asked_at] if asked_at:
                    self.heard_at = datetime.fromisoformat(asked_at.decode())
                case _:
                    yield message


async def _hang_up(connection: Connection) -> None:
    with suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


def reason_of(error: Exception) -> str | None:
    """What an error means, for the log: no secrets. None: it was not to be expected."""
    if any(isinstance(each, REFUSALS) for each in reasons.causes(error)):
        return ACCESS_REFUSED
    if reason := reasons.of_system(error):
        return reason
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, RedisError | OSError | LinkDown):
        return reasons.in_one_line(str(error)) or "failed"
    return None
