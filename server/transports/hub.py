"""`/ws?token=`: clients of the Redis hub (CONTRACT C2)."""

from __future__ import annotations

from typing import Any

from server.auth import Identity
from server.errors import BadCredentials, NoCredentials, ServerError
from server.feed import HubFeed
from server.transports.feeds import FeedDoors, FeedWebSocket


class HubHandler(FeedWebSocket):
    door = transport = "hub"
    feed_class = HubFeed

    async def who(self) -> Identity:
        return await self._of_token(self.query_text("token"), "missing token parameter")

    def refuse(self, error: ServerError) -> None:
        if isinstance(error, NoCredentials):
            self.answer(401, {"error": "missing token parameter"})
        elif isinstance(error, BadCredentials):
            self.answer(401, {"error": "invalid or expired token"})
        else:
            self.answer(error.http_status, {"error": str(error)})


def routes(doors: FeedDoors) -> list[tuple[Any, ...]]:
    return [(r"/ws", HubHandler, {"doors": doors})]
