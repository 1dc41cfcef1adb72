"""Periodic work: completes notifications that were left half stored, and forgets what is old."""

from __future__ import annotations

import asyncio
import logging

from server.errors import StoreUnavailable
from server.notifier import Notifier
from server.outbox import OutboxWorker
from server.presence import Presence

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
"""Between looks for intents to complete and for what may be forgotten."""


async def sweep(notifier: Notifier, outbox: OutboxWorker, presence: Presence) -> None:
    """Look every `INTERVAL_S`, until cancelled. A round that fails is logged, and not the last."""
    while True:
        try:
            completed = await notifier.complete()
            if completed:
                logger.info("completed %d documents that were left half stored", completed)
                outbox.wake()  # a mail may be owed with them
            presence.sweep()
        except StoreUnavailable:
            logger.debug("the sweep waits for the store")
        except Exception:
            # A bug met by one round must not end all that follow.
            logger.exception("the sweep failed")
        await asyncio.sleep(INTERVAL_S)
