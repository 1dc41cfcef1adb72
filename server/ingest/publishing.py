"""The publishing doors of the other systems: JSON in, the answers of their contracts out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from server.broadcaster import Broadcaster
from server.errors import (
    BadCredentials,
    InvalidInput,
    InvalidNotification,
    NoCredentials,
    Refused,
    ServerError,
)
from server.ingest.base import DoorHandler, Gate
from server.notifier import Notifier
from server.parsers import FieldLimits, parse_broadcast, parse_internal, parse_service


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


class InternalHandler(_PublishingHandler):
    """`POST /api/realtime/internal/notify` (CONTRACT C4)."""

    door = "internal"

    async def post(self) -> None:
        """Publish to one or many users. 202 means: stored for all of them; telling them is under way."""
        try:
            grant = await self.admit(self.presented())
            fields = self.json_fields(InvalidNotification)
            publication = parse_internal(fields, grant.tenant, self._doors.limits)
            await self._doors.notifier.notify(
                replace(publication, door=self.door, received_at=self.received_at)
            )
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer({"status": "queued", "id": publication.notification.nid}, 202)

    def status_of(self, error: ServerError) -> int:
        return 403 if isinstance(error, NoCredentials) else super().status_of(error)


class SendHandler(_PublishingHandler):
    """`POST /api/notifications/send/`, which two systems have: `{"user_id", "payload"}` is for one user (CONTRACT C3),
    `{"title", "message", "data"}` for everybody of the tenant (CONTRACT C5)."""

    door = "service"
    _fields: dict[str, Any] | None = None

    async def post(self) -> None:
        """Publish to one user, or to everybody."""
        try:
            broken = self._read()
            grant = await self.admit(self.presented())
            if broken is not None:
                raise broken
            answer = await self._publish(self._fields or {}, grant.tenant)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer(answer)

    def _read(self) -> ServerError | None:
        """Read the fields, and so which of the two it is. What is wrong with them is told to who may publish only."""
        try:
            self._fields = self.json_fields(InvalidNotification)
        except InvalidNotification as error:
            return error
        if self._is_broadcast:
            self.door = "broadcast"
        return None

    @property
    def _is_broadcast(self) -> bool:
        fields = self._fields or {}
        return not ({"user_id", "payload"} & fields.keys()) and bool({"title", "message"} & fields.keys())

    async def _publish(self, fields: dict[str, Any], tenant: str) -> dict[str, Any]:
        doors = self._doors
        if self._is_broadcast:
            notification = parse_broadcast(fields, tenant, doors.limits)
            await doors.broadcaster.broadcast(notification, self.received_at)
            return {"status": "broadcasted", "id": notification.nid}
        publication = parse_service(fields, tenant, doors.limits)
        await doors.notifier.notify(replace(publication, door=self.door, received_at=self.received_at))
        return {"user_id": fields["user_id"], "payload": fields["payload"]}

    # -- refusing --------------------------------------------------------------------------------------------
    def status_of(self, error: ServerError) -> int:
        is_nobody = isinstance(error, NoCredentials) and self._is_broadcast
        return 403 if is_nobody else super().status_of(error)

    def problem(self, error: ServerError) -> dict[str, Any]:
        """Beside ours: `{"field": ["why"]}` as C3 has it, `{"detail": "Invalid API key"}` as C5 has it."""
        problem = super().problem(error)
        if self._is_broadcast:
            is_key_wrong = isinstance(error, NoCredentials | BadCredentials)
            return problem | {"detail": "Invalid API key"} if is_key_wrong else problem
        if isinstance(error, InvalidInput) and not isinstance(error, Refused):
            return {error.field.partition("[")[0] or "non_field_errors": [error.reason]} | problem
        return problem


def routes(gate: Gate, doors: PublishingDoors) -> list[tuple[Any, ...]]:
    what = {"gate": gate, "doors": doors}
    return [
        (r"/api/notifications/send/?", SendHandler, what),
        (r"/api/realtime/internal/notify", InternalHandler, what),
    ]
