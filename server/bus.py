"""The signals of the house, sent over PyDispatcher: how parts that only want to know hear of what happened.

Few and high up. Who carries a notification is called directly; who counts, or is woken, listens here. A
receiver is a plain function that does not block; it is held weakly, so its owner keeps it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

from pydispatch import dispatcher

logger = logging.getLogger(__name__)

NOTIFICATION_STORED = "notification.stored"
"""After a notification and its mail duty are durable: `publication: Publication`, `documents: list[Document]`,
`duty: EmailDuty | None`, `store_s: float` (how long the store took)."""

NOTIFICATION_REPLAYED = "notification.replayed"
"""A request came again after it had its effect, and was answered as at first: `publication: Publication`."""

NOTIFICATION_FAILED = "notification.failed"
"""A notification could not be stored: `publication: Publication`, `code: str` (that of the error)."""

NOTIFICATION_PUSHED = "notification.pushed"
"""A notification has been handed to all connections of its users on this node; not sent where there are none:
`publication: Publication`, `connections: int`, `push_s: float` (since it was stored), `total_s: float | None` (since
its request came in; None: not known)."""

REFUSED = "refused"
"""A door turned a caller away: `door: str`, `code: str` (that of the error), `tenant: str | None` (None: not known)."""

MESSAGE_RECEIVED = "message.received"
"""A door that fetches (Redis, RabbitMQ) got a message, whatever becomes of it: `door: str`."""

CONSUMER_CHANGED = "consumer.changed"
"""Such a door has begun to consume, or does so no more: `door: str`, `is_up: bool`."""

SIGNED_IN = "signed.in"
"""Somebody proved who they are: `method: str`, `tenant: str`, `took_s: float`."""

SIGN_IN_FAILED = "sign-in.failed"
"""Somebody did not: `code: str` (that of the error), `took_s: float`."""

ACCESS_CHANGED = "access.changed"
"""Tenants, keys or signing secrets changed, here or by another process: `tenants: Tenants`."""

USERS_SIGNED_OUT = "users.signed-out"
"""Users were signed out everywhere, here or by another process: `tenants: Tenants`, `sign_outs: Sequence[SignOut]`
(those not told of before)."""

THROTTLED = "throttled"
"""A limit held somebody up or turned them away: `limit: str` (its key in the configuration, or `guessing`)."""

MAIL_SETTLED = "mail.settled"
"""It is written down what became of a mail: `tenant: str`, `outcome: MailOutcome`."""

BROADCAST_HEARD = "broadcast.heard"
"""Another node has accepted a notification for everybody of a tenant: `notification: Notification`."""

INBOX_CHANGED = "inbox.changed"
"""After inboxes changed: `rooms: Collection[Room]`."""

DOCUMENTS_REMOVED = "documents.removed"
"""Some that have had their time are gone for good: `tenant: str`, `documents: int`, `tombstones: int` (those that were
deleted before)."""

CONNECTION_OPENED = "connection.opened"
"""A client connected: `transport: str`."""

CONNECTION_CLOSED = "connection.closed"
"""A client is gone: `transport: str`, `reason: CloseReason | None` (None: it went by itself)."""


def tell(signal: str, sender: object, **what: Any) -> None:
    """Send a signal to all who listen; each gets what it has parameters for (`**` takes all). What a receiver raises is
    logged: it is no business of the sender, nor of the other receivers."""
    telling(signal, sender)(**what)


def telling(signal: str, sender: object) -> Callable[..., None]:
    """`tell` for who says the same in a row, with the same fields each time: who listens, and to which of them, is
    looked up once, and is to be asked for again in the next turn of the loop."""
    receivers = [(receiver, _names(receiver)) for receiver in _receivers(signal, sender)]
    wanted: list[list[str] | None] = []  # of each receiver; None: all

    def say(**what: Any) -> None:
        if not wanted:
            for _, names in receivers:
                found = [name for name in (what if names is None else names) if name in what]
                wanted.append(None if len(found) == len(what) else found)
        for (receiver, _), fields in zip(receivers, wanted, strict=True):
            try:
                receiver(**(what if fields is None else {name: what[name] for name in fields}))
            except Exception:
                logger.exception("%r failed at the signal %s", receiver, signal)

    return say


def _receivers(signal: str, sender: object) -> list[Callable[..., Any]]:
    """Those of PyDispatcher's `getAllReceivers` that are alive, in its order, in a quarter of the time."""
    found: list[Callable[..., Any]] = []
    for who in (sender, dispatcher.Any):
        connected = dispatcher.connections.get(id(who))
        if not connected:
            continue
        for which in (signal, dispatcher.Any):
            for receiver in connected.get(which, ()):
                heard = receiver() if isinstance(receiver, dispatcher.WEAKREF_TYPES) else receiver
                if heard is not None and heard not in found:
                    found.append(heard)
    return found


def _names(receiver: Callable[..., Any]) -> tuple[str, ...] | None:
    # What PyDispatcher's own sending finds out anew each time takes longer than most receivers do.
    code: CodeType | None = getattr(getattr(receiver, "__func__", receiver), "__code__", None)
    return _parameters(code or type(receiver).__call__.__code__)


@lru_cache(256)
def _parameters(code: CodeType) -> tuple[str, ...] | None:
    """The names of a function's parameters, `self` among them if it has one; None: it takes any."""
    if code.co_flags & inspect.CO_VARKEYWORDS:
        return None
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
