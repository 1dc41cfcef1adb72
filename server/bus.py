"""The signals of the house, sent over PyDispatcher: how parts that only want to know hear of what happened.

Few and high up. Who carries a notification is called directly; who counts, or is woken, listens here. A
receiver is a plain function that does not block and does not raise; it is held weakly, so its owner keeps it.
"""

from __future__ import annotations

NOTIFICATION_STORED = "notification.stored"
"""After a notification and its mail duty are durable: `notification: Notification`, `documents: list[Document]`,
`duty: EmailDuty | None`."""

INBOX_CHANGED = "inbox.changed"
"""After inboxes changed: `rooms: Collection[Room]`."""

CONNECTION_OPENED = "connection.opened"
"""A client connected: `transport: str`."""

CONNECTION_CLOSED = "connection.closed"
"""A client is gone: `transport: str`, `reason: CloseReason | None` (None: it went by itself)."""
