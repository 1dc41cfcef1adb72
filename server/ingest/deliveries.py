"""`GET /api/notifications/{id}/deliveries`: how far a notification got with each of its users (CONTRACT C5)."""

from __future__ import annotations

from typing import Any

from server.errors import NotFound, ServerError
from server.grants import Scope
from server.ids import is_id
from server.ingest.base import Gate
from server.ingest.paging import PagedHandler
from server.store import Deliveries, Delivery
from server.wire import instant


class DeliveriesHandler(PagedHandler):
    door = "deliveries"
    scope = Scope.PUBLISH

    def initialize(self, gate: Gate, deliveries: Deliveries) -> None:  # type: ignore[override]  # what the route holds
        super().initialize(gate)
        self._deliveries = deliveries

    async def get(self, nid: str) -> None:
        """`{"id", "deliveries": [{"user_id", "status", "sent_at", "delivered_at", "failed_at"}], "next"}`, in the order
        of the users' ids; `failed` comes with a `reason`. `next` is what `after` must be for the next page, null if
        there is none."""
        try:
            grant = await self.admit(self.presented())
            if not is_id(nid):
                raise NotFound("there is no such notification")
            limit = self.limit()
            after = self.query("after")
            found = await self._deliveries.of_notification(grant.tenant, nid, after=after, limit=limit + 1)
        except ServerError as error:
            self.refuse(error)
        else:
            shown = [_fields(delivery) for delivery in found[:limit]]
            following = found[limit - 1].user_id if len(found) > limit else None
            self.answer({"id": nid, "deliveries": shown, "next": following})


def _fields(delivery: Delivery) -> dict[str, Any]:
    """`status`: delivered (a client acknowledged it, or it was seen or deleted), failed (never seen, and its mail was
    refused for good), else sent (stored in the inbox). Each has its time."""
    refused = delivery.refused
    status = "delivered" if delivery.delivered_at else "failed" if refused else "sent"
    is_failed = status == "failed"
    fields: dict[str, Any] = {
        "user_id": delivery.user_id,
        "status": status,
        "sent_at": instant(delivery.sent_at),
        "delivered_at": instant(delivery.delivered_at),
        "failed_at": instant(delivery.refused_at) if is_failed else None,
    }
    if is_failed and refused is not None:
        fields["reason"] = f"{refused.code} {refused.reason}"
    return fields


def routes(gate: Gate, deliveries: Deliveries) -> list[tuple[Any, ...]]:
    return [
        (
            r"/api/notifications/([^/]+)/deliveries/?",
            DeliveriesHandler,
            {"gate": gate, "deliveries": deliveries},
        )
    ]
