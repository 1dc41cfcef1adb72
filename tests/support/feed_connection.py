"""A connection without a transport, as `recording`, for clients that only listen."""

from __future__ import annotations

import json
from typing import Any, cast

from server.auth import Identity
from server.feed import Feed
from server.grants import DEFAULT_TENANT
from tests.support.core import Core
from tests.support.recording import RecordingConnection


class FeedConnection(RecordingConnection):
    """Its messages are JSON of any kind."""

    def _take(self) -> None:
        while self.queue:
            self.take_one()

    def take_one(self) -> None:
        """Let the oldest frame arrive."""
        for message in json.loads(f"[{self.queue.popleft().text}]"):
            self._read.put_nowait(message)
        self._wake()

    async def frames(self, count: int) -> list[Any]:
        return [await self.next() for _ in range(count)]


def listen(
    core: Core,
    kind: type[Feed],
    user: str = "alice",
    connection: FeedConnection | None = None,
    *,
    tenant: str = DEFAULT_TENANT,
    **identity: Any,
) -> FeedConnection:
    """A client of this kind has connected."""
    connection = connection or FeedConnection()
    feed = kind(connection, core.feeds, Identity(tenant, user, **identity))
    connection.session = cast("Any", feed)
    if connection.is_closed:  # as a transport does it
        feed.closed()
    return connection
