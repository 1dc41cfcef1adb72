"""The publishing doors of the other systems: JSON in, the answers of their contracts out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from server.broadcaster import Broadcaster
from server.errors import BadCredentials, InvalidInput, InvalidNotification, NoCredentials, ServerError
from server.ingest.base import DoorHandler, Gate
from server.messages import Publication
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_broadcast, parse_internal, parse_service
from server.store import Stored


@dataclass(slots=True)
class PublishingDoors:
    """What the handlers need beside the gate. `max_body_bytes`: of a request. May be changed while the server runs."""

    notifier: Notifier
    broadcaster: Broadcaster
    max_body_bytes: int
    limits: FieldLimits


class _PublishingHandler(DoorHandler):
    def initialize(self, gate: Gate, doors: PublishingDoors) -> None:  # type: ignore[override]  # what the route holds
        super().initialize(gate)
        self._doors = doors
        self.max_body_bytes = doors.max_body_bytes

    async def check_early(self) -> None:
        # All that may hold a credential is in the headers: a stranger's body is not read.
        await self.admit(self.presented())

    async def still_admitted(self) -> str:
        """The tenant of the caller, who may have lost the right to publish while the body came. Raises
        `ServerError`."""
        return (await self._gate.publishers.identify(self.presented(), self.caller)).tenant

    async def notify(self, publication: Publication, key: str | None) -> Stored:
        """See `Notifier.notify`."""
        stored = await self._doors.notifier.notify(
            replace(publication, door=self.door, received_at=self.received_at, idempotency_key=key)
        )
        self.note_repeat(stored.is_repeat)
        return stored

    def status_of(self, error: ServerError) -> int:
        return 403 if isinstance(error, NoCredentials) else super().status_of(error)


class InternalHandler(_PublishingHandler):
    """`POST /api/realtime/internal/notify` (CONTRACT C4)."""

    door = "internal"

    async def post(self) -> None:
        """Publish to one or many users. 202 means: stored for all of them; telling them is under way."""
        try:
            tenant = await self.still_admitted()
            fields = self.json_fields(InvalidNotification)
            key = self.idempotency_key(fields)
            stored = await self.notify(parse_internal(fields, tenant, self._doors.limits), key)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer({"status": "queued", "id": stored.notification.nid}, 202)


class SendHandler(_PublishingHandler):
    """`POST /api/notifications/send/`, which two systems have: `{"user_id", "payload"}` is for one user (CONTRACT C3),
    `{"title", "message", "data"}` for everybody of the tenant (CONTRACT C5)."""

    door = "service"

    async def post(self) -> None:
        """Publish to one user, or to everybody."""
        try:
            tenant = await self.still_admitted()
            fields = self.json_fields(InvalidNotification)
            key = self.idempotency_key(fields)
            if _is_broadcast(fields):
                self.door = "broadcast"
                answer = await self._broadcast(fields, tenant, key)
            else:
                answer = await self._notify(fields, tenant, key)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer(answer)

    async def _broadcast(self, fields: dict[str, Any], tenant: str, key: str | None) -> dict[str, Any]:
        notification = parse_broadcast(fields, tenant, self._doors.limits)
        accepted = await self._doors.broadcaster.broadcast(notification, self.received_at, key)
        self.note_repeat(accepted.is_repeat)
        return {"status": "broadcasted", "id": accepted.notification.nid}

    async def _notify(self, fields: dict[str, Any], tenant: str, key: str | None) -> dict[str, Any]:
        await self.notify(parse_service(fields, tenant, self._doors.limits), key)
        return {"user_id": fields["user_id"], "payload": fields["payload"]}

    def problem(self, error: ServerError) -> dict[str, Any]:
        """Beside ours: `{"field": ["why"]}` as C3 has it, `{"detail": "Invalid API key"}` as C5 has it."""
        problem = super().problem(error)
        if isinstance(error, NoCredentials | BadCredentials):
            return problem | {"detail": "Invalid API key"}
        if isinstance(error, InvalidInput):
            # Where a field is called as one of ours, ours stays.
            return {error.field or "non_field_errors": [error.reason]} | problem
        return problem


def _is_broadcast(fields: dict[str, Any]) -> bool:
    return not ({"user_id", "payload"} & fields.keys()) and bool({"title", "message"} & fields.keys())


def routes(gate: Gate, doors: PublishingDoors) -> list[tuple[Any, ...]]:
    what = {"gate": gate, "doors": doors}
    return [
        (r"/api/notifications/send/?", SendHandler, what),
        (r"/api/realtime/internal/notify", InternalHandler, what),
    ]
