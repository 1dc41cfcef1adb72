"""The embedded store: one SQLite file in the data folder, for a server that is one process. Keeps the `Store` contract.

How it lies on disk is in `sqlite_schema`, how older files come to that in `sqlite_upgrade`, what the verbs do there in
`sqlite_adding`, `sqlite_reading`, `sqlite_changing` and `sqlite_mail`, and who does it in `sqlite_threads`. Tenants
and keys are in `sqlite_directory`, what was sent in `sqlite_deliveries`, notifications for everybody in
`sqlite_broadcasts`."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from server import messages
from server.errors import StoreUnavailable
from server.flights import Gathering, Turns
from server.folder_lock import FolderLock
from server.messages import Document, EmailDuty, Notification, Recipient
from server.moments import Moments
from server.revs import COUNTER_BITS, RevClock
from server.store import (
    MAX_JOB_RECIPIENTS,
    Addition,
    Broadcasts,
    Change,
    Counts,
    Deliveries,
    Directory,
    Leases,
    MailCounts,
    MailJob,
    MailOutcome,
    Once,
    Outbox,
    Retention,
    Stored,
    Welcome,
)
from server.store import sqlite_broadcasts as broadcasts
from server.store import sqlite_changing as changing
from server.store import sqlite_mail as mail
from server.store import sqlite_reading as reading
from server.store.sqlite_access import latest_known_since
from server.store.sqlite_adding import Adder, Additions, Outcome
from server.store.sqlite_broadcasts import SQLiteBroadcasts
from server.store.sqlite_deliveries import SQLiteDeliveries
from server.store.sqlite_directory import SQLiteDirectory
from server.store.sqlite_errors import cannot_open
from server.store.sqlite_leases import SQLiteLeases
from server.store.sqlite_outbox import SQLiteOutbox
from server.store.sqlite_ping import Ping
from server.store.sqlite_retention import SQLiteRetention
from server.store.sqlite_schema import open_reader, to_ms
from server.store.sqlite_threads import MAX_WAITING, Readers, Work, Writer, within
from server.store.sqlite_upgrade import open_upgraded

T = TypeVar("T")

READERS = 2
"""Threads that read: one long read, such as the counts of 10,000 users, does not hold up the short ones."""

MAX_UNHEARD = 10_000
"""Documents of timed-out adds that are remembered."""


class SQLiteStore:
    """See `Store`. While it is open, it holds the folder of its file against other processes."""

    changes_overlap_s = 0.0
    """Revs are given out by the one thread that writes."""

    def __init__(
        self,
        path: Path,
        *,
        timeout_s: float = 10.0,
        clock: Callable[[], datetime] = messages.now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`path` is the database file. `timeout_s` bounds each verb. `clock` is the store's clock: aware UTC, whole
        milliseconds; where `monotonic` does not go as far, it was set."""
        self.name = f"embedded ({path})"
        self.epoch = ""
        self.directory: Directory = SQLiteDirectory(self._write, self._read, clock)
        self.deliveries: Deliveries = SQLiteDeliveries(self._write, self._read, clock)
        self.broadcasts: Broadcasts = SQLiteBroadcasts(
            self._write, self._write_documents, self._read, clock, lambda: self._revs.next()
        )
        self._leases = SQLiteLeases(self._write, clock)
        self.leases: Leases = self._leases
        self.outbox: Outbox = SQLiteOutbox(self._write, self._read, clock)
        self.retention: Retention = SQLiteRetention(self._write, self._read, clock)
        self._path = path
        self._timeout_s = timeout_s
        self._busy_timeout_s = timeout_s / 2  # so that a lock is what is reported, not the time-out
        self._clock = clock
        self._moments = Moments(clock, monotonic)
        self._clock_set_s = 0.0
        self._lock = FolderLock(path.parent)
        self._ping = Ping(path)
        self._revs = RevClock()
        self._stored_rev = self._visible_rev = 0
        self._file: tuple[int, int] | None = None
        self._unheard: deque[Document] = deque(maxlen=MAX_UNHEARD)
        self._turns: Turns[tuple[str, str]] = Turns(timeout_s)
        self._welcomes = Gathering("welcomes", self._read_welcomes)
        self._writer: Writer | None = None
        self._additions: Additions | None = None
        self._readers: Readers | None = None

    async def open(self) -> None:
        """See `Store.open`."""
        is_given_up = threading.Event()
        connecting = asyncio.ensure_future(asyncio.to_thread(self._connect, is_given_up.is_set))
        try:
            writer, readers = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            is_given_up.set()
            await asyncio.wait([connecting], timeout=self._timeout_s)
            raise
        self._writer = Writer(
            writer, self._store_rev, self._busy_timeout_s, self._after_commit, self._begin, self._ping.note
        )
        adder = Adder(lambda count: self._revs.take(count), self._clock)
        self._additions = Additions(self._writer, adder, self._unheard.extend, self._timeout_s)
        self._readers = Readers(readers, self._timeout_s)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._welcomes.finish(self._timeout_s)
        if self._readers is not None:
            await self._readers.close()
        if self._additions is not None:
            self._additions.send()
        if self._writer is not None:
            await self._writer.close()
        self._lock.release()

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._write(self._ping)

    # -- storing ---------------------------------------------------------------------------------------------
    async def add(
        self,
        notification: Notification,
        recipients: Sequence[Recipient],
        duty: EmailDuty | None,
        once: Once | None = None,
    ) -> Stored:
        """See `Store.add`."""

        addition = Addition(notification, recipients, duty, once)
        if once is None:
            return await self._open_additions.put(addition)
        async with self._turns.take((notification.tenant, once.key)) as timeout_s:
            return await within(timeout_s, self._open_additions.put(addition))

    async def add_many(self, additions: Sequence[Addition]) -> list[Outcome]:
        """See `Store.add_many`. Of the same requests at once none has to wait for its turn: one thread writes."""
        return await within(self._timeout_s, self._open_additions.put_all(additions))

    @property
    def _open_additions(self) -> Additions:
        if self._additions is None:
            raise StoreUnavailable("the store is not open")
        return self._additions

    async def complete_intents(self) -> list[Document]:
        """See `Store.complete_intents`. A transaction leaves nothing half done: these are the documents of works that
        timed out and came through after all, of which nobody has told their users."""
        documents = list(self._unheard)
        self._unheard.clear()
        return documents

    # -- reading ---------------------------------------------------------------------------------------------
    async def newest(
        self,
        tenant: str,
        user_id: str,
        *,
        before: str | None,
        limit: int,
        type: str | None = None,
        seen: bool | None = None,
    ) -> list[Document]:
        """See `Store.newest`."""
        return await self._read(lambda c: reading.newest(c, tenant, user_id, before, limit, type, seen))

    async def page(self, tenant: str, user_id: str, *, page: int, limit: int) -> list[Document]:
        """See `Store.page`."""
        return await self._read(lambda c: reading.page(c, tenant, user_id, page, limit))

    async def unseen(
        self, tenant: str, user_id: str, *, after: Document | None, limit: int
    ) -> list[Document]:
        """See `Store.unseen`."""
        return await self._read(lambda c: reading.unseen(c, tenant, user_id, after, limit))

    async def changes(
        self, tenant: str, user_id: str, *, after: tuple[int, str], limit: int
    ) -> list[Document]:
        """See `Store.changes`."""
        return await self._read(lambda c: reading.changes(c, tenant, user_id, after, limit))

    async def find(self, tenant: str, user_id: str, ids: Sequence[str]) -> list[Document]:
        """See `Store.find`."""
        return await self._read(lambda c: reading.find(c, tenant, user_id, ids))

    async def position(self) -> int:
        """See `Store.position`. A read that begins later finds all that has a rev up to this, since revs are issued by
        the transactions, one after the other, that make them visible; and nobody else changes the inboxes of this
        file."""
        if self._readers is None or self._readers.is_closing:
            raise StoreUnavailable("the store is not open")
        return self._visible_rev

    def position_at(self, instant: datetime) -> int:
        return to_ms(instant) << COUNTER_BITS

    async def present(self, tenant: str) -> datetime:
        """See `Store.present`: the clock may have been set back since somebody joined, or was notified. To look at all
        users (a tenth of a second for a million) is little work beside a broadcast."""
        return max(self._clock(), await self._read(lambda c: latest_known_since(c, tenant)))

    async def counts(self, tenant: str, user_ids: Collection[str]) -> dict[str, Counts]:
        """See `Store.counts`."""
        return await self._read(lambda c: reading.counts(c, tenant, user_ids))

    async def count_unseen(self, tenant: str, user_ids: Collection[str]) -> dict[str, int]:
        """See `Store.count_unseen`."""
        return await self._read(lambda c: reading.count_unseen(c, tenant, user_ids))

    async def welcome(
        self,
        tenant: str,
        user_id: str,
        *,
        unseen: int = 0,
        counts: bool = False,
        changes: int = 0,
        after: tuple[int, str] = (0, ""),
    ) -> Welcome:
        """See `Store.welcome`."""
        if len(self._welcomes) >= MAX_WAITING:
            raise StoreUnavailable("the store has too much to do; try again")
        return await self._welcomes.put((tenant, user_id, unseen, counts, changes, after))

    async def _read_welcomes(self, asked: Sequence[reading.WelcomeAsked]) -> list[Welcome | Exception]:
        """To wake a thread, and the loop again, costs several times what it costs to read one."""
        return await self._read(lambda c: reading.welcomes(c, asked))

    # -- changing --------------------------------------------------------------------------------------------
    async def mark_seen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """See `Store.mark_seen`."""
        return await self._write(
            lambda c: changing.mark_seen(c, tenant, user_id, ids, self._clock(), self._revs.next)
        )

    async def mark_all_seen(
        self, tenant: str, user_id: str, *, limit: int, up_to: int | None = None
    ) -> Change:
        """See `Store.mark_all_seen`."""
        return await self._write(
            lambda c: changing.mark_all_seen(c, tenant, user_id, limit, up_to, self._clock(), self._revs.next)
        )

    async def mark_unseen(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """See `Store.mark_unseen`."""
        return await self._write(
            lambda c: changing.mark_unseen(c, tenant, user_id, ids, self._clock(), self._revs.next)
        )

    async def delete(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """See `Store.delete`."""
        return await self._write(
            lambda c: changing.delete(c, tenant, user_id, ids, self._clock(), self._revs.next)
        )

    async def restore(self, tenant: str, user_id: str, ids: Sequence[str]) -> Change:
        """See `Store.restore`."""
        return await self._write(
            lambda c: changing.restore(c, tenant, user_id, ids, self._clock(), self._revs.next)
        )

    # -- mail ------------------------------------------------------------------------------------------------
    async def claim_mail(
        self, lease_s: float, limit: int, recipients: int = MAX_JOB_RECIPIENTS
    ) -> list[MailJob]:
        """See `Store.claim_mail`."""
        return await self._write(lambda c: mail.claim(c, self._clock(), lease_s, limit, recipients))

    async def settle_mail(self, job: MailJob, outcome: MailOutcome) -> bool:
        """See `Store.settle_mail`."""
        return await self._write(lambda c: mail.settle(c, job, outcome, self._clock()))

    async def next_mail_due(self) -> datetime | None:
        """See `Store.next_mail_due`."""
        return await self._read(mail.next_due)

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        """See `Store.still_unseen`."""
        return await self._read(lambda c: reading.still_unseen(c, tenant, nid, user_ids))

    async def mail_counts(self) -> MailCounts:
        """See `Store.mail_counts`."""
        return await self._read(mail.counts)

    # -- the connections -------------------------------------------------------------------------------------
    def _connect(
        self, is_given_up: Callable[[], bool]
    ) -> tuple[sqlite3.Connection, list[sqlite3.Connection]]:
        """The connection that writes and those that read."""
        with contextlib.ExitStack() as undo:
            self._lock.acquire()
            undo.callback(self._lock.release)
            try:
                writer = open_upgraded(self._path, self._busy_timeout_s, self._clock(), is_given_up)
                undo.callback(writer.close)
                readers = []
                for _ in range(READERS):
                    readers.append(open_reader(self._path, self._busy_timeout_s))
                    undo.callback(readers[-1].close)
                file = _identity(self._path)
                last_rev = reading.position(writer)
                epoch = reading.epoch(writer)
                # The folder is ours alone, so whoever claimed something before us was killed: it need not wait.
                writer.execute("BEGIN IMMEDIATE")
                mail.end_leases(writer, self._clock())
                broadcasts.end_leases(writer)
                writer.execute("COMMIT")
            except (OSError, sqlite3.Error) as exc:
                raise cannot_open(self._path, exc) from exc
            if is_given_up():
                raise StoreUnavailable("nobody waits for the store any more")
            undo.pop_all()
        self.epoch = epoch
        self._file = file
        self._stored_rev = self._visible_rev = last_rev
        self._revs = RevClock(self._stored_rev, lambda: to_ms(self._clock()))
        self._leases.free()
        return writer, readers

    def _store_rev(self, connection: sqlite3.Connection) -> None:
        """Before each commit: no rev may be issued again after a restart, even if the clock has stepped back."""
        if self._revs.last != self._stored_rev:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'last_rev'", (self._revs.last,))
            self._stored_rev = self._revs.last

    def _begin(self, connection: sqlite3.Connection) -> None:
        """First in each transaction."""
        # SQLite would go on writing to a file that nobody can open again.
        if _identity(self._path) != self._file:
            raise StoreUnavailable(
                "the data file was removed or replaced while the server ran; it has to be restarted"
            )
        self._follow_clock(connection)

    def _follow_clock(self, connection: sqlite3.Connection) -> None:
        """What waits for a time waits no longer, nor shorter, if the clock was set."""
        self._clock_set_s += self._moments.note()
        if self._clock_set_s:
            mail.follow_clock(connection, self._clock(), self._clock_set_s)

    def _after_commit(self) -> None:
        self._visible_rev = self._stored_rev
        self._clock_set_s = 0.0

    async def _write_documents(self, work: Work[list[Document]]) -> list[Document]:
        """Users are to hear of the new documents that this returns, also if they come too late for the caller."""
        return await self._write(work, self._unheard.extend)

    async def _write(
        self, work: Work[T], unheard: Callable[[T], None] | None = None, timeout_s: float | None = None
    ) -> T:
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await within(timeout_s, self._writer.submit(work, unheard))

    def _read(self, work: Work[T]) -> Awaitable[T]:
        if self._readers is None:
            raise StoreUnavailable("the store is not open")
        return self._readers.submit(work)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file this is, whatever its name; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
