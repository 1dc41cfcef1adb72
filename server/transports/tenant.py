"""`/ws/notify/?api_key=`: clients of the multi-tenant service (CONTRACT C5), who get what is for everybody of a
tenant."""

from __future__ import annotations

from typing import Any

from server.auth import Identity
from server.errors import BadCredentials, NoCredentials, Refused, ServerError
from server.feed import TenantFeed
from server.grants import Scope
from server.publishers import Presented
from server.rooms import NOBODY
from server.transports.feeds import FeedDoors, FeedWebSocket


class TenantHandler(FeedWebSocket):
    door = transport = "tenant"
    feed_class = TenantFeed

    async def who(self) -> Identity:
        key = self.query_text("api_key")
        if not key:
            raise NoCredentials("a key is needed: ?api_key=…")
        doors = self.doors
        grant = await doors.publishers.identify(Presented(None, key, None, None), self.caller)
        if not (grant.allows(Scope.BROADCASTS) or grant.allows(Scope.LISTEN)):
            raise BadCredentials("this key has neither the scope broadcasts nor listen")
        expires_at = None
        if grant.key_id is not None:
            expires_at = doors.services.tenants.key_expires_at(grant.key_id)
        return Identity(grant.tenant, NOBODY, expires_at=expires_at, key_id=grant.key_id)

    def refuse(self, error: ServerError) -> None:
        is_key_wrong = isinstance(error, NoCredentials | BadCredentials)
        self.answer(
            403 if isinstance(error, Refused) else error.http_status,
            {"detail": "Invalid API key" if is_key_wrong else str(error)},
        )


def routes(doors: FeedDoors) -> list[tuple[Any, ...]]:
    return [(r"/ws/notify/?", TenantHandler, {"doors": doors})]
