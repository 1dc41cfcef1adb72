"""The way into the embedded store for a process beside the server: the command line. Tenants, keys, sign-outs and mail
only.

The file is opened without holding its folder, whether a server runs or not. SQLite keeps the two apart, transaction by
transaction; the server finds what was changed by asking for the sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from server import messages
from server.errors import StartupError, StoreUnavailable
from server.folder_lock import FolderInUse, FolderLock
from server.store import Directory, Outbox
from server.store.sqlite_directory import SQLiteDirectory
from server.store.sqlite_errors import cannot_open
from server.store.sqlite_outbox import SQLiteOutbox
from server.store.sqlite_schema import VERSION, complete, open_reader, open_writer, version_of
from server.store.sqlite_threads import Readers, Work, Writer, within
from server.store.sqlite_upgrade import is_being_upgraded, open_upgraded

T = TypeVar("T")

PAUSE_S = 0.02
"""After each transaction, so that a long row of them leaves room for the server's."""


class SQLiteBeside:
    """Opens and closes like a store, but has a `directory` and an `outbox` only. A file that is missing is made if no
    server has the folder. One of an earlier version is left to the server: that may take long, and there is no way back
    from it."""

    def __init__(
        self, path: Path, *, timeout_s: float = 10.0, clock: Callable[[], datetime] = messages.now
    ) -> None:
        """As of `SQLiteStore`."""
        self.name = f"embedded ({path})"
        self.directory: Directory = SQLiteDirectory(self._write, self._read, clock)
        self.outbox: Outbox = SQLiteOutbox(self._write, self._read, clock)
        self._path = path
        self._timeout_s = timeout_s
        self._busy_timeout_s = timeout_s / 2  # so that a lock is what is reported, not the time-out
        self._clock = clock
        self._writer: Writer | None = None
        self._readers: Readers | None = None

    async def open(self) -> None:
        """Raises `StartupError` if the file cannot be used (no permission, not ours, of another version) and
        `StoreUnavailable` if it cannot be used yet."""
        writer, reader = await asyncio.to_thread(self._connect)
        self._writer = Writer(writer, lambda _: None, self._busy_timeout_s)
        self._readers = Readers([reader], self._timeout_s)

    async def close(self) -> None:
        """Finish what was begun, then let go. Idempotent."""
        if self._readers is not None:
            await self._readers.close()
        if self._writer is not None:
            await self._writer.close()

    def _connect(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        try:
            writer = self._open_current() or self._make()
            try:
                return writer, open_reader(self._path, self._busy_timeout_s)
            except BaseException:
                writer.close()
                raise
        except (OSError, sqlite3.Error) as exc:
            raise cannot_open(self._path, exc) from exc

    def _open_current(self) -> sqlite3.Connection | None:
        """A connection to a file of this version; None if there is none, or of an earlier one."""
        if not self._path.exists():
            return None
        with contextlib.ExitStack() as undo:
            connection = open_writer(self._path, self._busy_timeout_s)
            undo.callback(connection.close)
            if version_of(connection) != VERSION:
                return None
            complete(connection)
            undo.pop_all()
            return connection

    def _make(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as undo:
            lock = FolderLock(self._path.parent)
            try:
                lock.acquire()
            except FolderInUse:
                return self._open_used()
            undo.callback(lock.release)
            if self._is_older():
                raise StartupError(
                    f"{self._path} is of an older version: start the server once, which brings it up to date"
                )
            return open_upgraded(self._path, self._busy_timeout_s, self._clock(), lambda: False)

    def _is_older(self) -> bool:
        if not self._path.exists():
            return False
        with contextlib.closing(open_writer(self._path, self._busy_timeout_s)) as connection:
            return 0 < version_of(connection) < VERSION

    def _open_used(self) -> sqlite3.Connection:
        """While a server holds the folder."""
        connection = self._open_current()  # it may have come up to date in the meantime
        if connection is not None:
            return connection
        if self._path.exists():
            with contextlib.closing(open_writer(self._path, self._busy_timeout_s)) as connection:
                is_served_as_it_is = not is_being_upgraded(connection)
            if is_served_as_it_is:
                raise StartupError(
                    f"{self._path} is of an older version, and so is the running server; restart it first"
                )
        raise StoreUnavailable(f"the server is still starting with {self._path}; try again")

    async def _write(self, work: Work[T], /) -> T:
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        result = await within(self._timeout_s, self._writer.submit(work))
        await asyncio.sleep(PAUSE_S)
        return result

    def _read(self, work: Work[T], /) -> Awaitable[T]:
        if self._readers is None:
            raise StoreUnavailable("the store is not open")
        return self._readers.submit(work)


def active_tenants(path: Path) -> frozenset[str] | None:
    """Their names, as the file has them, which stays as it is, as do those beside it. None: that cannot be known, as
    there is no file of this version, or it cannot be read."""
    # Without a log there is nobody at work, and nothing to be found elsewhere than in the file.
    log = path.with_name(f"{path.name}-wal")
    try:
        how = "mode=ro" if log.exists() else "mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True)) as connection:
            if version_of(connection) != VERSION:
                return None
            found = connection.execute("SELECT name FROM tenants WHERE removed_at IS NULL")
            return frozenset(name for (name,) in found)
    except (OSError, sqlite3.Error):
        return None
