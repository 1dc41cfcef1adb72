"""Whether the embedded store can write, found out by writing."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from server.errors import StoreUnavailable
from server.store.sqlite_errors import is_full

ROOM_BYTES = 1024 * 1024
"""What has to be free on the disk after something found no room there. Many notifications fit in it."""


class Ping:
    """A work of the writer of the file at `path`: returns if it can write. All methods are the writer's."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._had_no_room = False

    def note(self, error: Exception) -> None:
        """Something else could not be written for this."""
        self._had_no_room = self._had_no_room or is_full(error)

    def __call__(self, connection: sqlite3.Connection) -> None:
        """Raises `StoreUnavailable`."""
        # What this writes may still find room where a notification does not.
        if self._had_no_room and shutil.disk_usage(self._folder).free < ROOM_BYTES:
            raise StoreUnavailable("the disk is full")
        self._had_no_room = False
        # It must change something: SQLite does not write, nor sync, what stays as it is.
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'pings'")
