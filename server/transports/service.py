"""`/ws/notifications/{user_id}/?token=`: clients of the Django service (CONTRACT C3)."""

from __future__ import annotations

from typing import Any

from server.auth import Identity
from server.errors import BadCredentials, Refused, ServerError
from server.feed import ServiceFeed
from server.transports.feeds import FeedDoors, FeedWebSocket


class ServiceHandler(FeedWebSocket):
    door = transport = "service"
    feed_class = ServiceFeed

    async def who(self) -> Identity:
        identity = await self._of_token(self.query_text("token"), "a token is needed")
        if identity.user_id != self.path_args[0]:
            raise BadCredentials("the token is another user's")
        return identity

    def refuse(self, error: ServerError) -> None:
        # The service knew no other refusal than its framework's.
        self.answer(403 if isinstance(error, Refused) else error.http_status, {"error": str(error)})


def routes(doors: FeedDoors) -> list[tuple[Any, ...]]:
    return [(r"/ws/notifications/([^/]+)/?", ServiceHandler, {"doors": doors})]
