"""What the embedded store does beyond the contract: its folder and file, its clock, its threads, and trouble with
the disk."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import stat
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.errors import StartupError, StoreUnavailable
from server.flights import QUIET_TURNS
from server.grants import ApiKey, Tenant
from server.ids import new_id
from server.messages import Document, MailRecipient, Recipient, now
from server.store import (
    WAYS,
    Addition,
    MailOutcome,
    Once,
    PostponedMail,
    RefusedMail,
    Welcome,
    sqlite_adding,
    sqlite_broadcasts,
    sqlite_deliveries,
    sqlite_documents,
    sqlite_mail,
    sqlite_ping,
    sqlite_reading,
    sqlite_threads,
)
from server.store import sqlite as sqlite_module
from server.store.sqlite import SQLiteStore
from server.store.sqlite_schema import VERSION
from server.store.sqlite_threads import Readers, Writer
from tests.support.full_disk import no_file_larger_than
from tests.support.stores import TENANT, USER, make_notification, owe, put, put_many, whole_inbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "notifications.sqlite3"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    await store.open()
    yield store
    await store.close()


@contextlib.contextmanager
def another_program(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of somebody else's."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


async def create(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.close()


# -- folder and file -----------------------------------------------------------------------------------------


async def test_it_is_named_by_its_file(path: Path) -> None:
    """For the line that the server prints at start."""
    assert SQLiteStore(path).name == f"embedded ({path})"


async def test_only_the_owner_can_read_it(path: Path) -> None:
    """The folder, the file and the log beside it hold mail addresses, even in a folder that was there before."""
    path.parent.mkdir(mode=0o755)
    store = SQLiteStore(path)
    await store.open()
    await put(store)
    files = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await store.close()


async def test_closing_leaves_one_file(path: Path, store: SQLiteStore) -> None:
    """The log is copied into the database, so that a copy of that one file is a backup."""
    await put(store)
    await store.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["lock", path.name]


async def test_every_commit_reaches_the_disk(store: SQLiteStore) -> None:
    """Not only the system's cache, which a power cut would empty: the log is synced at each commit."""
    assert store._writer is not None

    def settings(connection: sqlite3.Connection) -> list[object]:
        return [
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]

    full = 2
    assert await store._writer.submit(settings) == ["wal", full]


async def test_a_folder_in_use(path: Path, store: SQLiteStore) -> None:
    """A second store in the folder does not start; the first one goes on."""
    with pytest.raises(StartupError, match=f"data folder {path.parent} is in use"):
        await SQLiteStore(path).open()
    await put(store)


async def test_a_failed_opening_holds_nothing(path: Path) -> None:
    """Once the reason is gone, the same store opens."""
    await create(path)
    store = SQLiteStore(path)
    with another_program(path) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(StartupError, match=r"newer notification server \(its schema is 99"):
        await store.open()
    with another_program(path) as other:
        other.execute(f"PRAGMA user_version = {VERSION}")
    await store.open()
    await put(store)
    await store.close()


async def test_a_file_that_is_no_database(path: Path) -> None:
    """It is named, and left as it is."""
    path.parent.mkdir()
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(StartupError, match=f"{path} cannot be opened: file is not a database"):
        await SQLiteStore(path).open()
    assert path.read_bytes() == b"precious" * 1000


async def test_a_folder_where_the_file_should_be(path: Path) -> None:
    """It is named."""
    path.mkdir(parents=True)
    with pytest.raises(StartupError, match=f"{path} cannot be opened: .*"):
        await SQLiteStore(path).open()


async def test_somebody_elses_database(path: Path) -> None:
    """It is named, and left as it is."""
    path.parent.mkdir()
    with another_program(path) as other:
        other.execute("CREATE TABLE precious (x)")
    before = path.read_bytes()
    with pytest.raises(StartupError, match=f"{path} is a database, but not one of the notification server"):
        await SQLiteStore(path).open()
    assert path.read_bytes() == before


async def test_opening_a_locked_file(path: Path) -> None:
    """Another program has it to itself for the moment: not there yet."""
    await create(path)
    store = SQLiteStore(path, timeout_s=0.1)
    with another_program(path) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked by another program"):
            await store.open()
    await store.open()
    await put(store)
    await store.close()


async def test_an_epoch_is_for_life(path: Path, tmp_path: Path) -> None:
    """Each store has one of its own, and keeps it."""

    async def epoch(path: Path) -> str:
        await create(path)
        with another_program(path) as other:
            return str(other.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0])

    first = await epoch(path)
    assert len(first) == 24
    assert await epoch(path) == first
    assert await epoch(tmp_path / "other" / "n.sqlite3") != first


def plan_of(connection: sqlite3.Connection, statement: str) -> list[str]:
    """The steps in which SQLite carries out a statement."""
    named = dict.fromkeys(re.findall(r":(\w+)", statement), 0)
    values = named or [0] * statement.count("?")
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


async def test_each_read_has_its_index(store: SQLiteStore, path: Path) -> None:
    """No read sorts, and none walks through more than it returns, however much is stored."""
    await put_many(store, 3)
    with another_program(path) as other:
        search = "SEARCH d USING INDEX {} (user=? AND (created_at,id){}(?,?))"
        assert search.format("inbox_with_types", "<") in plan_of(other, sqlite_reading.NEWEST)
        changes = "SEARCH d USING INDEX changes (user=? AND (rev,id)>(?,?))"
        assert changes in plan_of(other, sqlite_reading.CHANGES)
        inbox = "SEARCH documents USING COVERING INDEX inbox_with_types (user=?{})"
        assert inbox.format("") in plan_of(other, sqlite_reading.PAGE)
        assert inbox.format(" AND (created_at,id)<(?,?)") in plan_of(other, sqlite_reading.NEWEST_OF)
        assert inbox.format("") in plan_of(other, sqlite_reading.COUNTS)
        assert "SEARCH d USING PRIMARY KEY (user=? AND id=?)" in plan_of(
            other, f"{sqlite_reading.FIND} IN (?, ?)"
        )
        assert "SEARCH meta USING PRIMARY KEY (name=?)" in plan_of(other, sqlite_reading.POSITION)
        assert "SEARCH d USING COVERING INDEX unseen_with_revs (user=?)" in plan_of(
            other, sqlite_reading.COUNT
        )
        of_notification = "SEARCH d USING INDEX of_notification (notification=? AND user=?)"
        assert of_notification in plan_of(other, f"{sqlite_reading.STILL_UNSEEN} IN (?, ?)")
        for statement in (sqlite_reading.NEWEST, sqlite_reading.CHANGES):
            assert not [step for step in plan_of(other, statement) if step.startswith(("SCAN", "USE TEMP"))]
        for statement, search in (
            (sqlite_mail.DUE, "SEARCH m USING COVERING INDEX mails_due (due_at<?)"),
            (sqlite_mail.NEXT_DUE, "SEARCH m USING COVERING INDEX mails_due (due_at>?)"),
            (sqlite_mail.NEXT_LAPSE, "SEARCH m USING COVERING INDEX mails_leased (leased_until>?)"),
        ):
            assert search in plan_of(other, statement)
            assert not [step for step in plan_of(other, statement) if step.startswith("USE TEMP")]


async def test_what_is_marked_is_not_stepped_over(store: SQLiteStore, path: Path) -> None:
    """The oldest unseen, in whatever ways they were sent, and those not sent in one way: the series of each value of
    the marks is found in the index, and they are merged; only what is returned is looked up and sorted."""
    await put(store)
    series = "SEARCH documents USING COVERING INDEX unseen_with_revs (user=? AND marks=? AND (created_at,id)>(?,?))"
    merged = [series] * (1 << len(WAYS))
    unmarked = merged[::2]
    with another_program(path) as other:

        def searches(statement: str) -> list[str]:
            return [
                step
                for step in plan_of(other, statement)
                if step.startswith(("SEARCH documents", "SCAN documents"))
            ]

        for statement in (sqlite_reading.OLDEST_UNSEEN, sqlite_reading.OLDEST_UNSEEN_UP_TO):
            assert searches(statement) == merged
            assert "USE TEMP B-TREE FOR ORDER BY" not in plan_of(other, statement)
        for way, statement in sqlite_deliveries.BACKLOG.items():
            assert searches(statement) == (merged if way is None else unmarked)
            assert plan_of(other, statement).count("USE TEMP B-TREE FOR ORDER BY") == 1  # of what is returned
            assert "SEARCH d USING PRIMARY KEY (user=? AND id=?)" in plan_of(other, statement)


async def test_deliveries_and_broadcasts_have_their_indexes(store: SQLiteStore, path: Path) -> None:
    """Marking looks at what is marked; deliveries at the documents of the notification, or at users in their order; a
    claim at the oldest broadcast first."""
    await put(store)
    with another_program(path) as other:
        assert "SEARCH documents USING PRIMARY KEY (user=? AND id=?)" in plan_of(
            other, sqlite_deliveries.MARK
        )
        assert "SEARCH d USING INDEX of_notification (notification=?)" in plan_of(
            other, sqlite_deliveries.OF_FEW
        )
        assert plan_of(other, sqlite_deliveries.OF_MANY) == [
            "SEARCH u USING COVERING INDEX sqlite_autoindex_users_1 (tenant=? AND user_id>?)",
            "SEARCH d USING INDEX of_notification (notification=? AND user=?)",
            "SEARCH r USING PRIMARY KEY (notification=? AND user_id=?) LEFT-JOIN",
        ]
        assert plan_of(other, f"{sqlite_broadcasts.HAVING} IN (?, ?)") == [
            "SEARCH u USING COVERING INDEX sqlite_autoindex_users_1 (tenant=? AND user_id=?)",
            "SEARCH d USING COVERING INDEX of_notification (notification=? AND user=?)",
        ]
        next_ = sqlite_broadcasts.NEXT.format("?, ?")
        assert "SCAN broadcasts USING INDEX broadcasts_by_age" in plan_of(other, next_)
        open_of = plan_of(other, sqlite_broadcasts.OPEN_OF)
        assert "SEARCH b USING COVERING INDEX broadcasts_of_tenant (tenant=? AND created_at>?)" in open_of
        assert "SEARCH d USING COVERING INDEX of_notification (notification=? AND user=?)" in open_of
        for statement in (next_, sqlite_broadcasts.OPEN_OF):
            assert not [step for step in plan_of(other, statement) if step.startswith("USE TEMP")]


# -- clock and revs ------------------------------------------------------------------------------------------


class Clock:
    """Stands still unless set."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)

    def __call__(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    def step(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


async def test_no_rev_repeats_when_the_clock_steps_back(path: Path) -> None:
    """Not even across a restart, and not the rev of what was deleted."""
    clock = Clock()
    revs: list[int | None] = []
    for step in (0, -3600, 0, -7200):
        clock.step(step)
        store = SQLiteStore(path, clock=clock)
        await store.open()
        document = await put(store)
        revs += [document.rev, (await store.delete(TENANT, USER, [document.id])).rev]
        await store.close()
    numbers = [rev for rev in revs if rev is not None]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 8


async def test_revs_tell_the_time(path: Path) -> None:
    """Milliseconds above 16 bits of counter."""
    clock = Clock()
    store = SQLiteStore(path, clock=clock)
    await store.open()
    first, second = await put_many(store, 2)
    assert first.rev == int(clock.at.timestamp() * 1000) << 16
    assert second.rev == first.rev + 1
    await store.close()


async def test_changes_bear_the_stores_time(path: Path) -> None:
    """`updated_at` is when it was changed, by the store's clock."""
    clock = Clock()
    store = SQLiteStore(path, clock=clock)
    await store.open()
    document = await put(store, created_at=clock())
    clock.step(1.5)
    await store.mark_seen(TENANT, USER, [document.id])
    [seen] = await whole_inbox(store)
    assert (seen.created_at, seen.updated_at) == (document.created_at, clock.at)
    await store.close()


async def test_due_and_lease_times_to_the_millisecond(path: Path) -> None:
    """Due when the clock reaches the due time; free again when it reaches the end of the lease."""
    clock = Clock()
    store = SQLiteStore(path, clock=clock, monotonic=clock.monotonic)
    await store.open()
    due_at = clock.at + timedelta(seconds=10)
    await owe(store, MailRecipient("alice", "a@example.test", due_at))
    clock.step(9.999)
    assert await store.claim_mail(30.0, 1) == []
    clock.step(0.001)
    assert len(await store.claim_mail(30.0, 1)) == 1
    assert await store.next_mail_due() == due_at + timedelta(seconds=30)
    clock.step(29.999)
    assert await store.claim_mail(30.0, 1) == []
    clock.step(0.001)
    [job] = await store.claim_mail(30.0, 1)
    assert job.recipients[0].due_at == due_at
    await store.close()


async def test_a_lapsed_lease_beside_one_that_holds(path: Path) -> None:
    """Recipients of one notification can be leased apart, and fall free apart."""
    clock = Clock()
    store = SQLiteStore(path, clock=clock, monotonic=clock.monotonic)
    await store.open()
    recipients = [MailRecipient(str(n), f"{n}@x.test", clock.at + timedelta(seconds=n)) for n in range(2)]
    await owe(store, *recipients)
    [first] = await store.claim_mail(10.0, 10)
    clock.step(1)
    [second] = await store.claim_mail(10.0, 10)
    assert (first.recipients, second.recipients) == ((recipients[0],), (recipients[1],))
    clock.step(9)
    assert await store.next_mail_due() == clock.at
    [again] = await store.claim_mail(10.0, 10)
    assert again.recipients == first.recipients
    assert await store.settle_mail(second, MailOutcome(sent=second.recipients))
    assert not await store.settle_mail(first, MailOutcome(sent=first.recipients))
    assert await store.settle_mail(again, MailOutcome(sent=again.recipients))
    assert await store.next_mail_due() is None
    await store.close()


async def test_a_refusal_is_kept_with_its_reason(store: SQLiteStore, path: Path) -> None:
    """Who, what the mail server said, and when: an operator can look it up. The text stays, for a retry."""
    started_at = now()
    await owe(store, MailRecipient("alice", "a@example.test", started_at))
    [job] = await store.claim_mail(30.0, 1)
    refusal = RefusedMail("alice", "a@example.test", 550, "no such user")
    assert await store.settle_mail(job, MailOutcome(refused=(refusal,)))
    with another_program(path) as other:
        [row] = other.execute("SELECT user_id, email, code, reason, refused_at FROM refused_mail")
        assert other.execute("SELECT count(*), max(due_at) FROM mails").fetchone() == (1, None)
    assert row[:4] == ("alice", "a@example.test", 550, "no such user")
    assert row[4] >= started_at.timestamp() * 1000


async def test_a_removed_tenants_mail_is_out_of_the_index(store: SQLiteStore, path: Path) -> None:
    """However much there is of it, the look for due mail does not step over it."""
    due = now()
    key = ApiKey(new_id(), "acme", "first", "0" * 64, frozenset(), due)
    await store.directory.add_tenant(Tenant("acme", due), key)
    for _ in range(3):
        await owe(store, MailRecipient("alice", "a@example.test", due), tenant="acme")
    await owe(store, MailRecipient("alice", "a@example.test", due), tenant="other")
    await store.claim_mail(600.0, 1)
    await store.directory.remove_tenant("acme", due)
    with another_program(path) as other:
        in_index = other.execute(
            "SELECT count(*) FROM mails WHERE due_at IS NOT NULL OR leased_until IS NOT NULL"
        )
        assert in_index.fetchone() == (1,)


# -- trouble -------------------------------------------------------------------------------------------------


async def test_a_mistake_harms_only_its_own_request(store: SQLiteStore) -> None:
    """Of requests that share a transaction, one fails and is undone; the others are stored."""
    taken = (await put(store)).notification
    recipients = [Recipient(USER)]
    results = await asyncio.gather(
        *(put(store) for _ in range(10)),
        store.add(taken, recipients, None),
        *(put(store) for _ in range(10)),
        return_exceptions=True,
    )
    assert [type(result) for result in results if isinstance(result, Exception)] == [sqlite3.IntegrityError]
    assert isinstance(results[10], sqlite3.IntegrityError)
    assert len(await whole_inbox(store)) == 21


async def test_half_an_add_is_undone(store: SQLiteStore) -> None:
    """The documents before the one that failed are not there either."""
    notification = make_notification()
    twice = [Recipient("alice"), Recipient("bob"), Recipient("\ud800")]
    with pytest.raises(UnicodeEncodeError):
        await store.add(notification, twice, None)
    assert await whole_inbox(store, "alice") == []
    assert await store.count_unseen(TENANT, ["alice", "bob"]) == {"alice": 0, "bob": 0}
    await store.add(notification, twice[:2], None)


async def test_a_disk_that_takes_no_more(store: SQLiteStore) -> None:
    """Says so; reads go on; writes do again as soon as there is space, with nothing lost and nothing half there."""
    kept = []
    with no_file_larger_than(2 * 1024 * 1024):
        with pytest.raises(StoreUnavailable) as refusal:
            for _ in range(100):
                kept.append(await put(store, content="x" * 65536))
        assert isinstance(refusal.value.__cause__, sqlite3.OperationalError)
        results = await asyncio.gather(
            *(put(store, content="x" * 65536) for _ in range(5)), return_exceptions=True
        )
        assert {type(result) for result in results} == {StoreUnavailable}
        assert [document.id for document in await whole_inbox(store)] == [each.id for each in kept[::-1]]
    kept.append(await put(store, content="x" * 65536))
    await store.ping()
    assert [document.id for document in await whole_inbox(store)] == [each.id for each in kept[::-1]]


async def test_a_ping_on_a_full_disk(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails from the first notification on that found no room, though its own write would find some, until there is
    room for notifications; one that took more than that leaves the store usable."""
    free = 0
    monkeypatch.setattr(sqlite_ping.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(ZeroDivisionError):
        await store._write(lambda _: 1 / 0)
    await store.ping()  # that says nothing of the disk
    [pages] = await store._write(lambda c: c.execute("PRAGMA page_count").fetchone())
    await store._write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await put(store, content="x" * 65536)
    for free in (0, sqlite_ping.ROOM_BYTES - 1):  # noqa: B007  # the disk says so
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            await store.ping()
    free = sqlite_ping.ROOM_BYTES
    await store.ping()
    free = 0
    await store.ping()


@pytest.mark.parametrize("another", [False, True])
async def test_a_file_that_is_removed_or_replaced(store: SQLiteStore, path: Path, another: bool) -> None:
    """What went on being written there would be lost with the process."""
    await put(store)
    path.rename(path.with_suffix(".away"))
    if another:
        path.write_bytes(path.with_suffix(".away").read_bytes())
    with pytest.raises(StoreUnavailable, match="was removed or replaced while the server ran"):
        await put(store)
    with pytest.raises(StoreUnavailable, match="has to be restarted"):
        await store.ping()
    path.with_suffix(".away").replace(path)
    await put(store)
    assert await store.count_unseen(TENANT, [USER]) == {USER: 2}


async def test_a_locked_file(path: Path) -> None:
    """While another program writes, requests fail in time and are not stored later; afterwards all is well."""
    store = SQLiteStore(path, timeout_s=1.0)
    await store.open()
    with another_program(path) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(*(put(store) for _ in range(5)), store.ping(), return_exceptions=True)
        assert {type(result) for result in results} == {StoreUnavailable}
        assert await whole_inbox(store) == []
    document = await put(store)
    assert await whole_inbox(store) == [document]
    await store.close()


async def test_reads_do_not_wait_for_writes(store: SQLiteStore, path: Path) -> None:
    """Another one's write, or a long one of our own, holds up no reader."""
    document = await put(store)
    with another_program(path) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(put(store))
        await asyncio.sleep(0)
        assert await whole_inbox(store) == [document]
        assert not waiting.done()
        other.execute("ROLLBACK")
    await waiting


@pytest.mark.parametrize("is_batch", [False, True])
async def test_an_add_that_came_through_after_its_time(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, is_batch: bool
) -> None:
    """Its documents are handed out once by `complete_intents`, so that their users hear of them."""
    monkeypatch.setattr(sqlite_threads, "MAX_TRANSACTION_S", 60.0)
    assert store._writer is not None
    first, second = Blocker(), Blocker()
    blocked = [store._writer.submit(first)]
    await first.runs()
    batch = [Addition(make_notification(), [Recipient(USER)], None)]
    adding = asyncio.ensure_future(store.add_many(batch) if is_batch else put(store))
    never_begun = asyncio.create_task(put(store))
    for _ in range(QUIET_TURNS + 2):  # until what is added is handed to the writer
        await asyncio.sleep(0)
    never_begun.cancel()
    blocked.append(store._writer.submit(second))
    first.let_go()
    await second.runs()
    adding.cancel()
    await asyncio.gather(adding, never_begun, return_exceptions=True)
    assert await store.complete_intents() == []
    second.let_go()
    await asyncio.gather(*blocked)
    documents = await store.complete_intents()
    assert len(documents) == 1
    assert await whole_inbox(store) == documents
    assert await store.complete_intents() == []


async def test_leases_end_with_the_process(path: Path) -> None:
    """Also if the same object opens the file again; closed, it answers nobody."""
    store = SQLiteStore(path)
    await store.open()
    assert await store.leases.take("hub", "a", 600.0)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.leases.take("hub", "a", 600.0)
    await store.open()
    assert await store.leases.take("hub", "b", 600.0)
    await store.close()


async def test_an_expansion_that_came_through_after_its_time(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its documents are handed out once by `complete_intents`; who asks again gets those that are still missing."""
    monkeypatch.setattr(sqlite_threads, "MAX_TRANSACTION_S", 60.0)
    assert store._writer is not None
    notification = make_notification()
    await store.broadcasts.add(notification)
    blocker = Blocker()
    blocked = [store._writer.submit(blocker)]
    await blocker.runs()
    expanding = asyncio.create_task(store.broadcasts.expand(notification, ["a", "b"]))
    await asyncio.sleep(0)
    waits = Blocker()
    blocked.append(store._writer.submit(waits))
    blocker.let_go()
    await waits.runs()
    expanding.cancel()
    await asyncio.gather(expanding, return_exceptions=True)
    waits.let_go()
    await asyncio.gather(*blocked)
    [third] = await store.broadcasts.expand(notification, ["a", "b", "c"])
    assert third.user_id == "c"
    assert [document.user_id for document in await store.complete_intents()] == ["a", "b"]
    assert await store.complete_intents() == []


# -- threads -------------------------------------------------------------------------------------------------


def memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


@pytest.fixture
async def writer() -> AsyncIterator[Writer]:
    """A writer with a table `t`."""
    writer = Writer(memory(), lambda _: None)
    await writer.submit(lambda c: c.execute("CREATE TABLE t (x)"))
    yield writer
    await writer.close()


class Blocker:
    """A work that keeps its thread until it is let go."""

    def __init__(self) -> None:
        self._runs = threading.Event()
        self._may_go = threading.Event()

    def __call__(self, _: sqlite3.Connection) -> None:
        self._runs.set()
        assert self._may_go.wait(30)

    async def runs(self) -> None:
        assert await asyncio.to_thread(self._runs.wait, 30)

    def let_go(self) -> None:
        self._may_go.set()


def insert(value: int) -> sqlite_threads.Work[None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (?)", (value,))

    return work


def values(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY rowid")]


async def test_waiting_works_share_a_transaction(writer: Writer) -> None:
    """What has come together while one was done is committed together, in order."""
    commits: list[int] = []
    counting = Writer(memory(), lambda c: commits.append(c.total_changes))
    blocker = Blocker()
    first = counting.submit(blocker)
    await blocker.runs()
    rest = [counting.submit(lambda c: c.execute("SELECT 1").fetchone()) for _ in range(20)]
    blocker.let_go()
    await asyncio.gather(first, *rest)
    assert len(commits) <= 2  # the blocker may have taken longer than a transaction may last
    await counting.close()


def lose_the_transaction(connection: sqlite3.Connection, *_: object) -> list[Document]:
    """As SQLite does after some errors of the disk."""
    connection.execute("ROLLBACK")
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


async def test_with_a_transaction_that_is_lost_goes_all_that_is_in_it(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told of anything else but that the store is unavailable."""
    monkeypatch.setattr(sqlite_threads, "MAX_TRANSACTION_S", 60.0)
    blocker = Blocker()
    first = writer.submit(blocker)
    await blocker.runs()
    lost = [writer.submit(insert(1)), writer.submit(lose_the_transaction)]
    blocker.let_go()
    outcomes = await asyncio.gather(first, *lost, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    await writer.submit(insert(2))
    assert await writer.submit(values) == [2]


async def test_additions_whose_transaction_is_lost(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can be tried again, each of them; and what is done with, well or not, is in nobody's way."""
    monkeypatch.setattr(sqlite_adding, "MAX_WAITING", 2)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_documents, "add_all", lose_the_transaction)
            outcomes = await asyncio.gather(put(store), put(store), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 2
        await asyncio.gather(put(store), put(store))


async def test_a_work_nobody_waits_for_is_left_out(writer: Writer) -> None:
    """If its caller gave up before it began; one that has begun is done."""
    blocker = Blocker()
    first = writer.submit(blocker)
    await blocker.runs()
    abandoned, kept = writer.submit(insert(1)), writer.submit(insert(2))
    abandoned.cancel()
    first.cancel()
    blocker.let_go()
    await kept
    assert await writer.submit(values) == [2]


async def test_a_full_writer_refuses(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and takes more as soon as it has done some."""
    monkeypatch.setattr(sqlite_threads, "MAX_WAITING", 3)
    blocker = Blocker()
    first = writer.submit(blocker)
    await blocker.runs()
    waiting = [writer.submit(insert(number)) for number in range(3)]
    with pytest.raises(StoreUnavailable, match="too much to do"):
        writer.submit(insert(3))
    blocker.let_go()
    await asyncio.gather(first, *waiting)
    await writer.submit(insert(4))
    assert await writer.submit(values) == [0, 1, 2, 4]


async def test_a_transaction_that_cannot_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody in it is told that something was stored; the next one is a new chance."""
    failures = [sqlite3.OperationalError("disk I/O error")]
    failures[0].sqlite_errorcode = sqlite3.SQLITE_IOERR

    def fail_once(connection: sqlite3.Connection) -> None:
        if failures and connection.total_changes:
            raise failures.pop()

    writer = Writer(memory(), fail_once)
    await writer.submit(lambda c: c.execute("CREATE TABLE t (x)"))
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        await writer.submit(insert(1))
    await writer.submit(insert(2))
    assert await writer.submit(values) == [2]
    await writer.close()


async def test_a_work_that_loses_the_transaction(writer: Writer) -> None:
    """Some errors of the disk undo all: those who were in it are told, and the writer lives on."""

    def lose(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")
        raise ZeroDivisionError

    blocker = Blocker()
    blocked = writer.submit(blocker)
    await blocker.runs()
    works = [writer.submit(insert(1)), writer.submit(lose), writer.submit(insert(2))]
    blocker.let_go()
    results = await asyncio.gather(blocked, *works, return_exceptions=True)
    stored = await writer.submit(values)
    assert isinstance(results[2], ZeroDivisionError)
    assert [isinstance(result, ZeroDivisionError) for result in results].count(True) >= 1
    assert stored == [number for number, result in ((1, results[1]), (2, results[3])) if result is None]


async def test_closing_a_writer_does_what_waits(writer: Writer) -> None:
    """Then it takes nothing more."""
    blocker = Blocker()
    blocked = writer.submit(blocker)
    await blocker.runs()
    last = [writer.submit(insert(number)) for number in range(10)]
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="closed"):
        writer.submit(insert(11))
    blocker.let_go()
    await closing
    await asyncio.gather(blocked, *last)


async def test_full_readers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and take more as soon as they have done some."""
    monkeypatch.setattr(sqlite_threads, "MAX_WAITING", 2)
    readers = Readers([memory()], timeout_s=60)
    blocker = Blocker()
    first = readers.submit(blocker)
    await blocker.runs()
    second = readers.submit(lambda c: 2)
    with pytest.raises(StoreUnavailable, match="too much to do"):
        readers.submit(lambda c: 3)
    blocker.let_go()
    await first
    assert await second == 2
    assert await readers.submit(lambda c: 4) == 4
    await readers.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        readers.submit(lambda c: 5)


async def test_too_many_welcomes_are_refused(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, though they would go on together."""
    monkeypatch.setattr(sqlite_module, "MAX_WAITING", 3)
    welcomes = [asyncio.ensure_future(store.welcome(TENANT, USER)) for _ in range(5)]
    outcomes = await asyncio.gather(*welcomes, return_exceptions=True)
    assert outcomes[:3] == [Welcome(None)] * 3
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes[3:])
    assert await store.welcome(TENANT, USER) == Welcome(None)


async def test_what_cannot_be_read_of_one_user_is_no_business_of_others(
    store: SQLiteStore, path: Path
) -> None:
    """Though their welcomes are read together."""
    await put(store, USER)
    await put(store, "other")
    with another_program(path) as connection:
        connection.execute(
            "UPDATE notifications SET data = '{' WHERE key = (SELECT min(notification) FROM documents)"
        )
    welcomes = [store.welcome(TENANT, user, unseen=1, counts=True) for user in (USER, "other", "nobody")]
    broken, other, nobody = await asyncio.gather(*welcomes, return_exceptions=True)
    assert isinstance(broken, ValueError)
    assert isinstance(other, Welcome)
    assert [each.user_id for each in other.unseen] == ["other"]
    assert nobody == Welcome(None)


async def test_what_cannot_be_read_holds_up_no_reader(store: SQLiteStore, path: Path) -> None:
    """It sees what is stored from then on, even while the error is looked at."""
    await put_many(store, 3)
    with another_program(path) as connection:
        connection.execute("UPDATE notifications SET data = '{' WHERE key = 1")
    errors = []
    for _ in range(sqlite_module.READERS):
        with pytest.raises(ValueError) as error:  # noqa: PT011  # of json
            await store.unseen(TENANT, USER, after=None, limit=10)
        errors.append(error.value)
    await put(store)
    for _ in range(2 * sqlite_module.READERS):
        assert await store.count_unseen(TENANT, [USER]) == {USER: 4}
    assert errors


async def test_what_is_repeated_is_not_read_for_each_of_its_users(store: SQLiteStore) -> None:
    """However long it is, and however many they are."""
    notification = make_notification(content="x" * 1_000_000)
    recipients = [Recipient(f"user{number}") for number in range(100)]
    once = Once("key", b"", keep_s=60)
    first = await store.add(notification, recipients, None, once)
    tracemalloc.start()
    try:
        again = await store.add(notification, recipients, None, once)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again.is_repeat
    assert again.documents == first.documents
    assert peak < 20_000_000


async def test_closing_reads_the_welcomes_that_were_asked_for(path: Path) -> None:
    """Who asks afterwards is refused."""
    await create(path)
    store = SQLiteStore(path)
    await store.open()
    asked = asyncio.ensure_future(store.welcome(TENANT, USER))
    await asyncio.sleep(0)
    await store.close()
    assert await asked == Welcome(None)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.welcome(TENANT, USER)


async def test_closing_readers_does_what_waits() -> None:
    """Whichever of the threads are busy."""
    readers = Readers([memory(), memory()], timeout_s=60)
    blocker = Blocker()
    blocked = readers.submit(blocker)
    await blocker.runs()
    last = [readers.submit(lambda c, number=number: number) for number in range(10)]
    closing = asyncio.create_task(readers.close())
    assert await asyncio.gather(*last) == list(range(10))
    assert not closing.done()
    blocker.let_go()
    await closing
    await blocked
    await readers.close()


async def test_a_read_nobody_waits_for_is_left_out() -> None:
    """It was cancelled before it began."""
    readers, done = Readers([memory()], timeout_s=60), []
    blocker = Blocker()
    blocked = readers.submit(blocker)
    await blocker.runs()
    readers.submit(lambda _: done.append("cancelled")).cancel()
    last = readers.submit(lambda _: done.append("last"))
    blocker.let_go()
    await asyncio.gather(blocked, last)
    assert done == ["last"]
    await readers.close()


async def test_a_read_that_takes_too_long_is_given_up() -> None:
    """Whether it has begun or waits behind another; what waits is left out then. The same goes for a later one."""
    readers, done = Readers([memory()], timeout_s=0.05), []
    blocker = Blocker()
    blocked = readers.submit(blocker)
    await blocker.runs()
    waiting = readers.submit(lambda _: done.append("waiting"))
    for given_up in (blocked, waiting):
        with pytest.raises(StoreUnavailable):
            await given_up
    with pytest.raises(StoreUnavailable):
        await readers.submit(lambda _: done.append("later"))
    blocker.let_go()
    await readers.close()
    assert done == []


@pytest.mark.parametrize("kind", ["reader", "writer"])
async def test_closing_can_be_given_up(path: Path, kind: str) -> None:
    """While a thread hangs; it is none that the end of the process waits for."""
    store = SQLiteStore(path)
    await store.open()
    assert store._readers is not None and store._writer is not None
    blocker = Blocker()
    blocked = (store._readers if kind == "reader" else store._writer).submit(blocker)
    await blocker.runs()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing], timeout=5)
    assert closing.cancelled()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("sqlite-"))
    blocker.let_go()
    await blocked
    await store.close()


async def test_readers_cannot_write(store: SQLiteStore) -> None:
    """Their connections refuse."""
    assert store._readers is not None
    with pytest.raises(StoreUnavailable, match="readonly"):
        await store._readers.submit(lambda c: c.execute("DELETE FROM documents"))


# -- the clock is set ----------------------------------------------------------------------------------------


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Sets the wall clock anew, so much ahead of what it showed at first."""
    showed_ns = time.time_ns

    def set_(ahead: timedelta) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: showed_ns() + int(ahead.total_seconds()) * 10**9)

    return set_


async def due_in(store: SQLiteStore) -> timedelta:
    due_at = await store.next_mail_due()
    assert due_at is not None
    return due_at - now()


SETTINGS = [timedelta(hours=1), timedelta(0), timedelta(hours=-1), timedelta(days=9), timedelta(0)]
NEARLY = timedelta(minutes=10)


async def test_mail_waits_as_long_as_it_was_to(
    store: SQLiteStore, set_clock: Callable[[timedelta], None]
) -> None:
    """Whatever the wall clock is set to meanwhile, ahead and back."""
    await owe(store, MailRecipient("alice", "a@example.test", now() + timedelta(minutes=30)))
    for ahead in SETTINGS:
        set_clock(ahead)
        assert await store.claim_mail(60, 9) == []
        assert abs(await due_in(store) - timedelta(minutes=30)) < NEARLY


async def test_the_present_is_not_before_anybody_is_known_though_the_clock_was_set_back(
    store: SQLiteStore, set_clock: Callable[[timedelta], None]
) -> None:
    """Else a broadcast would pass over who had only joined, and been notified of nothing. Users of other tenants, of
    whom there may be very many, are not looked at."""
    known_since = now()
    await store.directory.note_users({(TENANT, "joined"): known_since})
    set_clock(timedelta(hours=-1))
    assert await store.present(TENANT) >= known_since
    assert await store.present("other") < known_since


async def test_what_is_due_stays_due(store: SQLiteStore, set_clock: Callable[[timedelta], None]) -> None:
    """Also if it had only just become so; and so does what is new."""
    await owe(store, MailRecipient("alice", "a@example.test", now() - timedelta(minutes=30)))
    set_clock(timedelta(hours=-1))
    [job] = await store.claim_mail(60, 9)
    await store.settle_mail(job, MailOutcome(sent=job.recipients))
    await owe(store, MailRecipient("alice", "a@example.test", now()))
    assert len(await store.claim_mail(60, 9)) == 1


async def test_a_lease_lasts_as_long_as_it_was_to(
    store: SQLiteStore, set_clock: Callable[[timedelta], None]
) -> None:
    """Else a mail would go out twice, or be stuck; and nobody is given up any sooner, or later."""
    await owe(store, MailRecipient("alice", "a@example.test", now()))
    [job] = await store.claim_mail(60, 9)
    retry = PostponedMail("alice", "a@example.test", 451, "later", now(), is_untried=False)
    assert await store.settle_mail(job, MailOutcome(retry=(retry,)))
    [job] = await store.claim_mail(1800, 9)
    for ahead in SETTINGS:
        set_clock(ahead)
        assert await store.claim_mail(60, 9) == []
        assert abs(await due_in(store) - timedelta(minutes=30)) < NEARLY
    set_clock(timedelta(days=9))
    assert await store.settle_mail(job, MailOutcome(retry=(replace(retry, retry_at=now()),)))
    [job] = await store.claim_mail(60, 9)
    [alice] = job.recipients
    assert alice.failing_since is not None
    assert abs(alice.due_at - alice.failing_since) < NEARLY


async def test_how_long_mail_was_put_off_is_not_for_the_clock_to_say(
    store: SQLiteStore, path: Path, set_clock: Callable[[timedelta], None]
) -> None:
    """Whatever it is set to while the next try is to come: nobody is given up any sooner, or later."""
    await owe(store, MailRecipient("alice", "a@example.test", now()))
    [job] = await store.claim_mail(60, 9)
    again_at = now() + timedelta(minutes=30)
    retry = PostponedMail("alice", "a@example.test", 451, "later", again_at, is_untried=False)
    assert await store.settle_mail(job, MailOutcome(retry=(retry,)))
    with another_program(path) as connection:
        put_off_for = "SELECT due_at - failing_since FROM mail_recipients"
        [before] = connection.execute(put_off_for).fetchone()
        assert before > 0
        for ahead in SETTINGS:
            set_clock(ahead)
            assert await store.claim_mail(60, 9) == []
            assert connection.execute(put_off_for).fetchone() == (before,)


async def test_a_transaction_that_is_done_again_follows_the_clock_all_the_same(
    store: SQLiteStore, set_clock: Callable[[timedelta], None]
) -> None:
    """What it did before is undone with all the rest; and the clock is followed once."""
    await owe(store, MailRecipient("alice", "a@example.test", now() + timedelta(minutes=30)))
    set_clock(timedelta(hours=1))

    def fail(_: sqlite3.Connection) -> None:
        raise ValueError

    results = await asyncio.gather(store.ping(), store._write(fail), store.ping(), return_exceptions=True)
    assert [type(each) for each in results] == [type(None), ValueError, type(None)]
    assert abs(await due_in(store) - timedelta(minutes=30)) < NEARLY
