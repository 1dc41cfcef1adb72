"""The publishing doors on the main port, over Tornado's `RequestHandler`; on the publishing port: see `lane`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from server.errors import ServerError
from server.ingest.base import DoorHandler
from server.ingest.door import Door
from server.ingest.visits import Answer, Gate


class PublishingHandler(DoorHandler):
    """Brings requests to a door."""

    def initialize(self, gate: Gate, door: Door) -> None:  # type: ignore[override]  # what the route holds
        self._door = door
        self.door = door.name
        super().initialize(gate)
        self.max_body_bytes = door.max_body_bytes
        self.set_default_headers()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        # Tornado asks before `initialize`, and once more where it gives an error of its own.
        door: Door | None = getattr(self, "_door", None)
        for name, value in door.headers.items() if door else ():
            self.set_header(name, value)

    async def check_early(self) -> None:
        await self._door.check_early(self.visit)

    async def post(self) -> None:
        """Publish."""
        try:
            answer = await self._door.carry_out(self.visit, bytes(self._body))
        except ServerError as error:
            self.refuse(error)
        else:
            self.give(answer)

    def refuse(self, error: ServerError) -> None:
        """As the door has it."""
        self.give(self._door.refuse(self.visit, error))

    def give(self, answer: Answer) -> None:
        """See `DoorHandler.give`."""
        self.door = self.visit.door  # it may have turned out to be another
        super().give(answer)


class PreflightHandler(PublishingHandler):
    """With an answer to the preflight of a page of another origin."""

    def options(self) -> None:
        self.set_status(204)


def routes(gate: Gate, doors: Iterable[Door]) -> list[tuple[Any, ...]]:
    """Those of these doors."""
    return [
        (
            pattern,
            PreflightHandler if "OPTIONS" in door.methods else PublishingHandler,
            {"gate": gate, "door": door},
        )
        for door in doors
        for pattern in _patterns(door.paths)
    ]


def _patterns(paths: Collection[str]) -> list[str]:
    """Of paths of which some may also be without the slash at their end."""
    return [
        f"{path}/?" if f"{path}/" in paths else path
        for path in paths
        if not (path.endswith("/") and path[:-1] in paths)
    ]
