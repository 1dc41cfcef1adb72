"""A running server whose publishing doors are asked on the publishing port."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.ingest.batch import BatchDoor
from server.ingest.notify import NotifyDoor
from server.ingest.publishing import InternalDoor, SendDoor
from tests.support.ports import free_port
from tests.support.running_server import RunningServer

PATHS = {path for door in (NotifyDoor, SendDoor, InternalDoor, BatchDoor) for path in door.paths}


class LaneServer(RunningServer):
    """`port` is the publishing port; what is not published goes to the main one."""

    def __init__(
        self, folder: Path, *, port: int | None = None, arguments: Sequence[str] = (), **settings: str
    ) -> None:
        lane = free_port()
        super().__init__(
            folder, port=port, arguments=arguments, NOTIFY_APPLICATION_PUBLISH_PORT=str(lane), **settings
        )
        self.main_port, self.port = self.port, lane

    def port_of(self, path: str) -> int:
        return self.port if urlsplit(path).path in PATHS else self.main_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.main_port}"

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.main_port}/notification/websocket"


PORTS = [pytest.param(RunningServer, id="main-port"), pytest.param(LaneServer, id="publishing-port")]
"""For fixtures: by which port a server is asked to publish."""
