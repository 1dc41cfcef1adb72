"""Publish at a notification-server from Python: `Client`, `AsyncClient`, and `notify_user_by_id` for those who come
from the Django service. docs/integrations/python.md of the server shows how."""

from __future__ import annotations

import atexit
import functools
import os
from typing import Any

from notification_client.client import AsyncClient, Client
from notification_client.errors import (
    AnswerLost,
    Invalid,
    NotFound,
    NotificationError,
    RateLimited,
    Refused,
    TooLarge,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
)
from notification_client.protocol import VERSION as __version__
from notification_client.protocol import Delivery, Recipient, Retries, Token

__all__ = [
    "AnswerLost",
    "AsyncClient",
    "Client",
    "Delivery",
    "Invalid",
    "NotFound",
    "NotificationError",
    "RateLimited",
    "Recipient",
    "Refused",
    "Retries",
    "Token",
    "TooLarge",
    "Unavailable",
    "UnexpectedAnswer",
    "Unreachable",
    "__version__",
    "notify_user_by_id",
]


def notify_user_by_id(user_id: str | int, message: Any) -> None:
    """Store `message` (any JSON but null) for the user and show it on their screens. When this returns, it is stored.

    The server's address comes from the environment variable NOTIFICATION_URL, the API key from NOTIFICATION_KEY (none:
    without a key), both read at the first call. Blocks; may be called from any thread and after a fork. Raises
    `NotificationError`, and ValueError where NOTIFICATION_URL is not set or cannot be an address.
    """
    _client().notify_user_by_id(user_id, message)


@functools.cache
def _client() -> Client:
    url = os.environ.get("NOTIFICATION_URL")
    if not url:
        raise ValueError("NOTIFICATION_URL is not set: the server's address, as in http://127.0.0.1:8587")
    client = Client(url, key=os.environ.get("NOTIFICATION_KEY") or None)
    atexit.register(client.close)
    return client
