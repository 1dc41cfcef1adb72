"""The doors that fetch notifications from a broker, as far as they are configured."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from server.checks import Probe
from server.config import Config
from server.doors import field_limits
from server.notifier import Notifier
from server.presence import Presence
from server.store import Store
from server.tasks import Tasks

if TYPE_CHECKING:
    from server.ingest.rabbitmq import RabbitDoor
    from server.ingest.redis import RedisDoor


class Consumers:
    """All of a node; none are imported that are not configured."""

    def __init__(
        self,
        config: Config,
        store: Store,
        notifier: Notifier,
        presence: Presence,
        lease_holder: str | None = None,
    ) -> None:
        """`lease_holder`: by which name to hold leases; None: one that nobody has had."""
        self.doors: list[RedisDoor | RabbitDoor] = []
        limits, size = field_limits(config), config.limits.body_bytes
        if config.redis_hub is not None:
            from server.ingest.consumer import Lease
            from server.ingest.redis import RedisDoor

            holder = lease_holder or f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
            lease = Lease(store.leases, "redis", holder)
            self.doors.append(
                RedisDoor(
                    config.redis_hub,
                    notifier,
                    lease,
                    limits=limits,
                    max_message_bytes=size,
                    online=presence.online,
                )
            )
        if config.rabbitmq is not None:
            from server.ingest.rabbitmq import RabbitDoor

            self.doors.append(
                RabbitDoor(config.rabbitmq, notifier, store, limits=limits, max_message_bytes=size)
            )

    @property
    def probes(self) -> Mapping[str, Probe]:
        """How each is asked how it is, by name."""
        return {door.door: door.probe for door in self.doors}

    @property
    def queues(self) -> Mapping[str, Callable[[], int]]:
        """How much waits in each, by name."""
        return {door.door: partial(getattr, door, "waiting") for door in self.doors}

    def start(self, tasks: Tasks) -> None:
        for door in self.doors:
            tasks.start(door.run(), door.door)

    def apply(self, config: Config) -> None:
        """Go by changed limits from now on."""
        for door in self.doors:
            door.limits, door.max_message_bytes = field_limits(config), config.limits.body_bytes

    async def stop(self, deadline_s: float) -> None:
        """Fetch no more; let what was fetched be stored for so many seconds."""
        await asyncio.gather(*(door.stop(deadline_s) for door in self.doors))
