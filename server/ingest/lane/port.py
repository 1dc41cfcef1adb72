"""The publishing port: all of its connections, and their end."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from server.ingest.door import Door
from server.ingest.lane.protocol import LaneConnection, Serving
from server.ingest.visits import BASE_HEADERS, Gate
from server.tasks import Tasks

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""Between looks for connections whose time is over."""


class PublishingPort:
    """`headers`: of every answer, whatever it is; `note`: told the name of the door, the status and the seconds of each
    answer."""

    def __init__(
        self,
        gate: Gate,
        doors: Iterable[Door],
        *,
        headers: Mapping[str, str],
        note: Callable[[str, int, float], None],
    ) -> None:
        by_path = {path: door for door in doors for path in door.paths}
        everywhere = {**headers, **BASE_HEADERS}
        self._connections: set[LaneConnection] = set()
        self._tasks = Tasks()
        self._is_stopping = False
        self._serving = Serving(
            gate=gate,
            doors=by_path,
            common={
                None: _lines(everywhere),
                **{door: _lines({**everywhere, **door.headers}) for door in by_path.values()},
            },
            note=note,
            is_stopping=lambda: self._is_stopping,
            tasks=self._tasks,
        )

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def serve(self, connection: socket.socket, address: Any, left: Callable[[], None]) -> None:
        """Take over an accepted connection, from that address; `left` is called when it is closed."""
        self._tasks.start(self._open(connection, left), "publishing connection")

    async def _open(self, connection: socket.socket, left: Callable[[], None]) -> None:
        def closed(lane: LaneConnection) -> None:
            self._connections.discard(lane)
            left()

        lane = LaneConnection(self._serving, closed)
        self._connections.add(lane)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: lane, connection)
        except OSError as exc:
            logger.debug("a caller was gone before it was served: %s", exc)
            connection.close()
            closed(lane)

    async def run(self) -> None:
        """Cut off whose time is over, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            present = time.monotonic()
            for lane in [each for each in self._connections if each.ends_at <= present]:
                lane.time_out()

    def stop(self) -> None:
        """End each connection with its next answer, which says so: were one closed that has nothing to answer, a
        request might just be on its way, and its caller would not know whether it was carried out."""
        self._is_stopping = True

    async def close(self) -> None:
        """Cut off all that is left. Idempotent."""
        self.stop()
        await self._tasks.cancel()
        for lane in list(self._connections):
            lane.time_out()


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
