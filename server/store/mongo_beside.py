"""The way to the directory and the outbox of a store for another process, such as the command line, while servers run
on it or not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from server import messages
from server.store import Directory, Outbox
from server.store.mongo_connection import Connection
from server.store.mongo_directory import MongoDirectory
from server.store.mongo_mail import MailDuties
from server.store.mongo_outbox import MongoOutbox
from server.store.mongo_users import KnownUsers


class MongoBeside:
    """`directory` and `outbox` of the `MongoStore` with the same arguments, from `open` to `close`: it makes no
    indexes, and brings nothing up to this version, so it takes no longer than the connection."""

    def __init__(
        self,
        url: str,
        db: str,
        *,
        collection: str | None = None,
        timeout_s: float = 10.0,
        clock: Callable[[], datetime] = messages.now,
    ) -> None:
        self._connection = Connection(url, db, collection, timeout_s)
        users, mail = KnownUsers(self._connection), MailDuties(self._connection, clock)
        self._directory = MongoDirectory(self._connection, users, mail, clock)
        self.directory: Directory = self._directory
        self.outbox: Outbox = MongoOutbox(self._connection)
        self.name = self._connection.name

    async def open(self) -> None:
        """Raises as `Store.open`."""
        await self._connection.open()
        try:
            with self._connection.opening():
                await self._directory.found()
        except BaseException:
            await self._connection.disconnect()
            raise

    async def close(self) -> None:
        """Idempotent."""
        await self._connection.drain()
        await self._connection.disconnect()
