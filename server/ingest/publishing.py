"""The publishing doors of the other systems: JSON in, the answers of their contracts out."""

from __future__ import annotations

from typing import Any

from server.errors import BadCredentials, InvalidInput, InvalidNotification, NoCredentials, ServerError
from server.ingest.door import Door
from server.ingest.visits import Answer, Visit, json_answer, json_object
from server.messages import Publication, altered
from server.parsers import parse_broadcast, parse_internal, parse_service
from server.store import Stored


class _JsonDoor(Door):
    async def _publish(self, visit: Visit, publication: Publication, key: str | None) -> Stored:
        """See `Notifier.notify`."""
        received_at = visit.incoming.received_at
        stored = await self._publishing.notifier.notify(
            altered(publication, door=self.name, received_at=received_at, idempotency_key=key)
        )
        visit.note_repeat(stored.is_repeat)
        return stored


class InternalDoor(_JsonDoor):
    """`POST /api/realtime/internal/notify` (CONTRACT C4)."""

    name = "internal"
    paths = ("/api/realtime/internal/notify",)

    async def carry_out(self, visit: Visit, body: bytes) -> Answer:
        """Publish to one or many users. 202 means: stored for all of them; telling them is under way."""
        tenant = await self.still_admitted(visit)
        fields = json_object(body, InvalidNotification)
        key = visit.idempotency_key(fields)
        stored = await self._publish(visit, parse_internal(fields, tenant, self._publishing.limits), key)
        return json_answer({"status": "queued", "id": stored.notification.nid}, 202)


class SendDoor(_JsonDoor):
    """`POST /api/notifications/send/`, which two systems have: `{"user_id", "payload"}` is for one user (CONTRACT C3),
    `{"title", "message", "data"}` for everybody of the tenant (CONTRACT C5)."""

    name = "service"
    paths = ("/api/notifications/send", "/api/notifications/send/")

    async def carry_out(self, visit: Visit, body: bytes) -> Answer:
        """Publish to one user, or to everybody."""
        tenant = await self.still_admitted(visit)
        fields = json_object(body, InvalidNotification)
        key = visit.idempotency_key(fields)
        if _is_broadcast(fields):
            visit.door = "broadcast"
            return json_answer(await self._broadcast(visit, fields, tenant, key))
        await self._publish(visit, parse_service(fields, tenant, self._publishing.limits), key)
        return json_answer({"user_id": fields["user_id"], "payload": fields["payload"]})

    async def _broadcast(
        self, visit: Visit, fields: dict[str, Any], tenant: str, key: str | None
    ) -> dict[str, Any]:
        notification = parse_broadcast(fields, tenant, self._publishing.limits)
        received_at = visit.incoming.received_at
        accepted = await self._publishing.broadcaster.broadcast(notification, received_at, key)
        visit.note_repeat(accepted.is_repeat)
        return {"status": "broadcasted", "id": accepted.notification.nid}

    def problem(self, error: ServerError, status: int) -> dict[str, Any]:
        """Beside ours: `{"field": ["why"]}` as C3 has it, `{"detail": "Invalid API key"}` as C5 has it."""
        problem = super().problem(error, status)
        if isinstance(error, NoCredentials | BadCredentials):
            return problem | {"detail": "Invalid API key"}
        if isinstance(error, InvalidInput):
            # Where a field is called as one of ours, ours stays.
            return {error.field or "non_field_errors": [error.reason]} | problem
        return problem


def _is_broadcast(fields: dict[str, Any]) -> bool:
    return not ({"user_id", "payload"} & fields.keys()) and bool({"title", "message"} & fields.keys())
