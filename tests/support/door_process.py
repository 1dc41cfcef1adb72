"""The door of RabbitMQ in a process of its own, with an embedded store, to be killed at any moment:
`python -m tests.support.door_process FOLDER URL EXCHANGE`. Prints a line for each notification that is stored."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

from pydispatch import dispatcher

from server.bus import NOTIFICATION_STORED
from server.config.brokers import RabbitMQ
from server.ingest.rabbitmq import RabbitDoor
from server.store import Store
from tests.support.consuming import LIMITS, MAX_MESSAGE_BYTES, open_behind, quickly


def _print_stored(publication: Any) -> None:
    print("stored", publication.notification.content, flush=True)


async def _run(folder: str, url: str, exchange: str) -> None:
    async with open_behind(Path(folder)) as behind:
        dispatcher.connect(_print_stored, NOTIFICATION_STORED, sender=behind.notifier)
        settings = RabbitMQ(url=url, exchange=exchange, queue=f"queue_{exchange}", prefetch=10)
        store = cast("Store", behind.store)
        door = RabbitDoor(
            settings,
            behind.notifier,
            store,
            limits=LIMITS,
            max_message_bytes=MAX_MESSAGE_BYTES,
            backoff=quickly(),
        )
        await door.run()


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
