"""The signals of the house, sent over PyDispatcher: how parts that only want to know hear of what happened.

Few and high up. Who carries a notification is called directly; who counts, or is woken, listens here. A
receiver is a plain function that does not block; it is held weakly, so its owner keeps it.
"""

from __future__ import annotations

import logging
from typing import Any

from pydispatch import robust

logger = logging.getLogger(__name__)

NOTIFICATION_STORED = "notification.stored"
"""After a notification and its mail duty are durable: `notification: Notification`, `documents: list[Document]`,
`duty: EmailDuty | None`."""

INBOX_CHANGED = "inbox.changed"
"""After inboxes changed: `rooms: Collection[Room]`."""

CONNECTION_OPENED = "connection.opened"
"""A client connected: `transport: str`."""

CONNECTION_CLOSED = "connection.closed"
"""A client is gone: `transport: str`, `reason: CloseReason | None` (None: it went by itself)."""


def tell(signal: str, sender: object, **what: Any) -> None:
    """Send a signal to all who listen. What a receiver raises is logged: it is no business of the sender, nor of the
    other receivers."""
    for receiver, answer in robust.sendRobust(signal, sender, **what):
        if isinstance(answer, Exception):
            logger.error("%r failed at the signal %s", receiver, signal, exc_info=answer)
