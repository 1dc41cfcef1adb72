"""What a publishing door is, whatever its requests come over: `handlers` brings those of the main port, `lane` those of
the publishing port."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from server.broadcaster import Broadcaster
from server.errors import NoCredentials, ServerError
from server.ingest.visits import Answer, Visit, problem_of, refusal
from server.notifier import Notifier
from server.parsers import FieldLimits


@dataclass(slots=True)
class Publishing:
    """What the doors need beside the gate. `max_body_bytes`: of a request. May be changed while the server runs."""

    notifier: Notifier
    broadcaster: Broadcaster
    max_body_bytes: int
    limits: FieldLimits


class Door(ABC):
    """Takes one dialect of requests. One for all requests: what belongs to one of them is in its visit."""

    name: str
    """For figures and logs."""
    paths: tuple[str, ...]
    """Where it is."""
    methods: tuple[str, ...] = ("POST",)
    """`OPTIONS` among them: the preflight of pages of other origins is answered."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Of all of its answers."""
    checks_all = False
    """Whether `carry_out` does all that `check_early` does, which then need not be asked of a request that is there as
    a whole."""

    def __init__(self, publishing: Publishing) -> None:
        self._publishing = publishing

    @property
    def max_body_bytes(self) -> int:
        return self._publishing.max_body_bytes

    async def check_early(self, visit: Visit) -> None:
        """Refuse, before the body is read, whom it could not help. Raises `ServerError`."""
        # Mostly, all that may hold a credential is in the headers: a stranger's body is not read.
        await visit.admit(visit.presented())

    @abstractmethod
    async def carry_out(self, visit: Visit, body: bytes) -> Answer:
        """Publish; a good answer means that it is stored. Raises `ServerError`."""

    def refuse(self, visit: Visit, error: ServerError) -> Answer:
        """What is answered in place of it; noted for figures and logs."""
        visit.note_refusal(error)
        status = self.status_of(error)
        return refusal(error, status, self.problem(error, status))

    def status_of(self, error: ServerError) -> int:
        """The HTTP status that the error is answered with."""
        return 403 if isinstance(error, NoCredentials) else error.http_status

    def problem(self, error: ServerError, status: int) -> dict[str, Any]:
        """What is wrong. A door whose contract has other words puts those beside it."""
        return problem_of(error, status)

    async def still_admitted(self, visit: Visit) -> str:
        """The tenant of the caller, who may have lost the right to publish while the body came, or was carried out.
        Raises `ServerError`."""
        return (await visit.gate.publishers.identify(visit.presented(), visit.caller)).tenant
