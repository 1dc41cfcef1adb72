"""Files of earlier versions of the embedded store come up to this one, wherever that is interrupted.

The interruption is SIGKILL of a process, or a caller that gives up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from server.errors import StoreUnavailable
from server.grants import DEFAULT_TENANT, KnownUser
from server.messages import Document, now
from server.store import ACKNOWLEDGED, HUB, Counts, TypeCounts, sqlite_schema, sqlite_upgrade
from server.store.sqlite import SQLiteStore
from server.store.sqlite_schema import VERSION, from_ms
from tests.support.sqlite_v1 import first_ms, make_v1, user_id
from tests.support.sqlite_v2 import make_v2
from tests.support.sqlite_v3 import make_v3
from tests.support.stores import put, whole_inbox

ROOT = Path(__file__).resolve().parents[1]

MAKERS = {"v1": make_v1, "v2": make_v2, "v3": make_v3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "notifications.sqlite3"


async def open_and_close(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.close()


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def version(path: Path) -> object:
    return rows(path, "PRAGMA user_version")[0][0]


def count_first_seen(path: Path) -> int:
    """Of how many users it is found out already."""
    [(count,)] = rows(path, "SELECT count(*) FROM users WHERE first_seen_at > 0")
    assert isinstance(count, int)
    return count


def shape(path: Path) -> object:
    """All tables with their columns, and all indexes."""
    names = [str(name) for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return (
        {name: rows(path, f"PRAGMA table_xinfo({name})") for name in names},
        sorted(rows(path, "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index'"), key=repr),
    )


async def check(path: Path, users: int) -> None:
    """The file of one of the `MAKERS` is of this version, with all that was in it."""
    store = SQLiteStore(path)
    await store.open()
    known = await store.directory.users(DEFAULT_TENANT, after=None, limit=users + 1)
    assert known == [
        KnownUser(DEFAULT_TENANT, user_id(number), from_ms(first_ms(number)), None) for number in range(users)
    ]
    for number in (0, users - 1):
        inbox = await whole_inbox(store, user_id(number), DEFAULT_TENANT)
        assert [(each.notification.content, each.seen) for each in inbox] == [
            (f"{number}/2", False),
            (f"{number}/1", True),
        ]
        [unseen, seen] = inbox
        for document, delivered_at in ((unseen, None), (seen, seen.updated_at)):
            nid = document.notification.nid
            [delivery] = await store.deliveries.of_notification(DEFAULT_TENANT, nid, after=None, limit=10)
            assert (delivery.user_id, delivery.delivered_at) == (user_id(number), delivered_at)
        waiting = await store.deliveries.backlog(
            DEFAULT_TENANT, user_id(number), HUB, since=None, after=None, limit=10
        )
        assert waiting == [unseen]
        counts = await store.counts(DEFAULT_TENANT, [user_id(number)])
        assert counts == {user_id(number): Counts(1, 2, {"": TypeCounts(1, 2)})}
    assert (await store.mail_counts()).due == 3
    access = await store.directory.access()
    assert [tenant.name for tenant in access.tenants] == [DEFAULT_TENANT]
    [secret] = access.secrets
    assert len(secret.secret) == 43  # as `token_urlsafe` writes 32 bytes
    assert access.keys == ()
    await store.close()
    assert version(path) == VERSION


@pytest.mark.parametrize("old", MAKERS)
async def test_an_older_file(old: str, path: Path) -> None:
    """Its documents and users belong to the tenant `default`, who were first seen when their first document was made,
    whether or not they deleted it. What was seen was delivered when it was seen; the rest was sent in no way."""
    MAKERS[old](path, 30)
    await open_and_close(path)
    await check(path, 30)


async def test_what_is_deleted_that_was_seen_before(path: Path) -> None:
    """It keeps the time of its delivery; what was not seen is delivered by being deleted."""
    make_v2(path, 1)
    store = SQLiteStore(path)
    await store.open()
    unseen, seen = await whole_inbox(store, user_id(0), DEFAULT_TENANT)
    await store.delete(DEFAULT_TENANT, user_id(0), [seen.id, unseen.id])

    async def delivered_at(document: Document) -> datetime | None:
        nid = document.notification.nid
        [delivery] = await store.deliveries.of_notification(DEFAULT_TENANT, nid, after=None, limit=10)
        return delivery.delivered_at

    [unseen_now, _] = await store.changes(DEFAULT_TENANT, user_id(0), after=(99, ""), limit=2)
    assert await delivered_at(seen) == seen.updated_at
    assert await delivered_at(unseen) == unseen_now.deleted_at != unseen.updated_at
    await store.close()


@pytest.mark.parametrize("old", MAKERS)
async def test_an_older_file_without_documents(old: str, path: Path) -> None:
    """Nobody was ever notified."""
    MAKERS[old](path, 0, 0)
    await open_and_close(path)
    assert version(path) == VERSION
    assert rows(path, "SELECT name FROM tenants") == [(DEFAULT_TENANT,)]


@pytest.mark.parametrize("old", MAKERS)
async def test_old_and_new_files_are_alike(old: str, path: Path, tmp_path: Path) -> None:
    """The same tables, columns and indexes."""
    MAKERS[old](path, 3)
    await open_and_close(path)
    new = tmp_path / "new" / "notifications.sqlite3"
    await open_and_close(new)
    assert shape(path) == shape(new)


async def test_an_upgraded_file_takes_more(path: Path) -> None:
    """Users who were there keep their first time, new ones get theirs; revs go on."""
    make_v1(path, 2)
    store = SQLiteStore(path)
    await store.open()
    at = now()
    document = await put(store, user_id(0), DEFAULT_TENANT, created_at=at)
    await put(store, "zoe", DEFAULT_TENANT, created_at=at)
    assert document.rev > 99
    assert [
        user.first_seen_at for user in await store.directory.users(DEFAULT_TENANT, after=None, limit=9)
    ] == [
        from_ms(first_ms(0)),
        from_ms(first_ms(1)),
        at,
    ]
    await store.close()


async def test_the_log_says_how_far_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the beginning, now and then, and at the end; nothing where nothing is to do."""
    make_v1(path, 40)
    monkeypatch.setattr(sqlite_upgrade, "USERS_PER_STEP", 10)
    monkeypatch.setattr(sqlite_upgrade, "DOCUMENTS_PER_STEP", 60)
    monkeypatch.setattr(sqlite_upgrade, "REPORT_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "server"):
        await open_and_close(path)
        await open_and_close(path)
    assert caplog.messages == [
        f"bringing {path} up to date: 40 users",
        f"bringing {path} up to date: 0 of 40 users (0 %)",
        f"bringing {path} up to date: 10 of 40 users (25 %)",
        f"bringing {path} up to date: 20 of 40 users (50 %)",
        f"bringing {path} up to date: 30 of 40 users (75 %)",
        f"bringing {path} up to date: the documents of 40 users",
        f"bringing {path} up to date: the documents of 0 of 40 users (0 %)",
        f"bringing {path} up to date: the documents of 20 of 40 users (50 %)",
        f"bringing {path} up to date: the documents of 40 of 40 users (100 %)",
        f"bringing {path} up to date: making the index inbox_with_types",
        f"bringing {path} up to date: making the index unseen_with_revs",
        f"bringing {path} up to date: making the index of_notification",
        f"bringing {path} up to date: making the index tombstones",
        f"brought {path} up to date",
    ]


# -- interrupted ---------------------------------------------------------------------------------------------

UPGRADE_AND_SAY = """
import asyncio, logging, sys
from pathlib import Path
from server.store import sqlite_upgrade
from server.store.sqlite import SQLiteStore
sqlite_upgrade.USERS_PER_STEP = 5
sqlite_upgrade.REPORT_EVERY_S = 0.0
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    await store.open()
    await store.close()
asyncio.run(main())
"""


async def test_killed_on_the_way(path: Path) -> None:
    """SIGKILL while users are written down, more than once: what is done is kept, and the next start goes on."""
    users = 20_000
    make_v1(path, users)
    done = [0]
    for _ in range(2):
        # It says each step, and there are more than fit into the pipe: it cannot come to the end unread.
        upgrading = await asyncio.create_subprocess_exec(
            sys.executable, "-c", UPGRADE_AND_SAY, str(path), cwd=ROOT, stdout=PIPE, limit=1024
        )
        assert upgrading.stdout is not None
        for _ in range(done[-1] // 5 + 20):  # those that were done before, and some more
            assert await upgrading.stdout.readline()
        upgrading.kill()
        await upgrading.communicate()
        assert version(path) == 1
        done.append(count_first_seen(path))
    assert 0 < done[1] < done[2] < users
    await open_and_close(path)
    await check(path, users)


KILL_AT_EACH_STATEMENT = """
import os, shutil, signal, sys
from pathlib import Path
from server.messages import now
from server.store import sqlite_schema, sqlite_upgrade
from tests.support.sqlite_v1 import make_v1
from tests.support.sqlite_v2 import make_v2
from tests.support.sqlite_v3 import make_v3

sqlite_upgrade.USERS_PER_STEP = 4
sqlite_upgrade.DOCUMENTS_PER_STEP = 7
folder = Path(sys.argv[1])
if sys.argv[2] != "new":
    {"v1": make_v1, "v2": make_v2, "v3": make_v3}[sys.argv[2]](folder / "original", 10)
connect = sqlite_schema._connect

def upgrade_and_die(path, statement):
    left = statement
    def count(text):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def traced(*arguments):
        connection = connect(*arguments)
        connection.set_trace_callback(count)
        return connection
    sqlite_schema._connect = traced
    sqlite_upgrade.open_upgraded(path, 1.0, now(), lambda: False).close()

for statement in range(1000):
    path = folder / f"killed-{statement}"
    if sys.argv[2] != "new":
        shutil.copy(folder / "original", path)
    child = os.fork()
    if child == 0:
        upgrade_and_die(path, statement)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(statement)
"""


@pytest.mark.parametrize("kind", [*MAKERS, "new"])
async def test_killed_at_any_statement(kind: str, tmp_path: Path) -> None:
    """Before each of the statements that make a file or bring an old one up to date: opened again, it is whole."""
    output = subprocess.run(
        [sys.executable, "-c", KILL_AT_EACH_STATEMENT, str(tmp_path), kind],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    statements = int(output.stdout)
    assert statements > 15
    [whole] = tmp_path.glob(f"killed-{statements}")
    assert version(whole) == VERSION
    interrupted = 0
    for number in range(statements):
        path = tmp_path / f"killed-{number}"
        interrupted += path.exists() and version(path) != VERSION
        await open_and_close(path)
        assert shape(path) == shape(whole)
        if kind != "new":
            await check(path, 10)
    assert interrupted > 10


async def test_given_up_on_the_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told to end while it starts lets go of folder and file within a step; the next one goes on."""
    make_v1(path, 40)
    monkeypatch.setattr(sqlite_upgrade, "USERS_PER_STEP", 10)
    loop = asyncio.get_running_loop()
    asked: list[bool] = []
    find_first_seen = sqlite_upgrade._find_first_seen

    def find_first_seen_until_cancelled(
        connection: sqlite3.Connection, path: Path, at: datetime, is_given_up: Callable[[], bool]
    ) -> None:
        def is_given_up_before_the_second() -> bool:
            asked.append(is_given_up())
            if len(asked) == 2:
                loop.call_soon_threadsafe(opening.cancel)
                while not is_given_up():
                    time.sleep(0.001)
            return is_given_up()

        find_first_seen(connection, path, at, is_given_up_before_the_second)

    monkeypatch.setattr(sqlite_upgrade, "_find_first_seen", find_first_seen_until_cancelled)
    store = SQLiteStore(path)
    opening = asyncio.create_task(store.open())
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert asked == [False, False]
    assert (version(path), count_first_seen(path)) == (1, 10)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    monkeypatch.undo()
    await check(path, 40)


async def test_given_up_while_it_makes_an_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one step that takes long ends within moments, too."""
    make_v2(path, 2000)
    monkeypatch.setattr(sqlite_upgrade, "STEPS_BETWEEN_QUESTIONS", 1000)
    asked = itertools.count()
    with pytest.raises(StoreUnavailable, match="goes on at the next start"):
        sqlite_upgrade.open_upgraded(path, 1.0, now(), lambda: next(asked) == 5)
    assert next(asked) == 6
    assert version(path) == 2
    assert rows(path, "SELECT name FROM sqlite_master WHERE name IN ('unseen', 'unseen_with_revs')") == [
        ("unseen",)
    ]
    await check(path, 2000)


def set_types(path: Path) -> None:
    """As an earlier version knew them: of notifications only."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE notifications SET type = 'type-' || (key % 4)")


async def check_types(path: Path, users: int) -> None:
    """Each document is found by the type of its notification, which is what is counted."""
    store = SQLiteStore(path)
    await store.open()
    types = set()
    for user in map(user_id, range(users)):
        inbox = await whole_inbox(store, user, DEFAULT_TENANT)
        [counts] = (await store.counts(DEFAULT_TENANT, [user])).values()
        assert counts.total == len(inbox) == 2
        for document in inbox:
            type_ = document.notification.type
            of_type = await store.newest(DEFAULT_TENANT, user, before=None, limit=9, type=type_)
            assert of_type == [document]
            assert counts.types[type_] == TypeCounts(not document.seen, 1)
            types.add(type_)
    assert types == {f"type-{number}" for number in range(4)}
    await store.close()


@pytest.mark.parametrize("old", MAKERS)
async def test_documents_get_the_type_of_their_notification(
    old: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In portions, whatever users they are of; tombstones, too."""
    MAKERS[old](path, 30)
    set_types(path)
    monkeypatch.setattr(sqlite_upgrade, "DOCUMENTS_PER_STEP", 7)
    await open_and_close(path)
    await check_types(path, 30)
    lacking = "SELECT count(*) FROM documents d JOIN notifications n ON n.key = notification WHERE d.type IS NOT n.type"
    assert rows(path, lacking) == [(0,)]


async def test_types_are_found_by_the_primary_key(path: Path) -> None:
    """Each portion reads its own documents only."""
    await open_and_close(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        plan = [
            row[3]
            for row in connection.execute(f"EXPLAIN QUERY PLAN {sqlite_upgrade.FIND_TYPES}", (0, b"", 1, b""))
        ]
    assert plan[0] == "SEARCH documents USING PRIMARY KEY ((user,id)>(?,?) AND (user,id)<(?,?))"


async def test_given_up_while_it_finds_types(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is kept, and the next start goes on."""
    make_v3(path, 30)
    set_types(path)
    monkeypatch.setattr(sqlite_upgrade, "DOCUMENTS_PER_STEP", 7)
    asked = itertools.count()
    with pytest.raises(StoreUnavailable, match="goes on at the next start"):
        sqlite_upgrade.open_upgraded(path, 1.0, now(), lambda: next(asked) == 5)
    assert version(path) == 3
    assert rows(path, "SELECT count(*) FROM documents WHERE type IS NOT NULL") == [(35,)]
    await check_types(path, 30)


async def test_version_3_in_between(path: Path) -> None:
    """What that version adds and changes, in a file that was not brought up quite, is there afterwards: even if only
    the last step was left."""
    make_v3(path, 2)
    set_types(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE documents ADD COLUMN type TEXT")
        sqlite_upgrade._find_types(connection, path, lambda: False)
        connection.execute(sqlite_schema.INDEXES["inbox_with_types"])
        assert version(path) == 3
        connection.execute(
            "INSERT INTO documents (user, id, notification, created_at, updated_at, rev)"
            " VALUES (1, x'000000000000000000000001', 5, 5, 5, 200)"
        )
        connection.execute("UPDATE documents SET seen = 1, rev = 201 WHERE user = 2")
    store = SQLiteStore(path)
    await store.open()
    one, seen = TypeCounts(1, 1), TypeCounts(0, 1)
    assert await store.counts(DEFAULT_TENANT, [user_id(0), user_id(1)]) == {
        user_id(0): Counts(2, 3, {"type-1": one, "type-2": seen, "type-3": one}),
        user_id(1): Counts(0, 2, {"type-1": seen, "type-2": seen}),
    }
    await store.close()


async def test_what_was_seen_before_deliveries_were_remembered_comes_back(path: Path) -> None:
    """It stays delivered when it was seen or deleted, though no longer seen, and no longer deleted."""
    make_v2(path, 1)
    store = SQLiteStore(path)
    await store.open()
    [tombstone] = [
        each
        for each in await store.changes(DEFAULT_TENANT, user_id(0), after=(0, ""), limit=9)
        if each.deleted
    ]
    _, seen = await whole_inbox(store, user_id(0), DEFAULT_TENANT)
    await store.mark_unseen(DEFAULT_TENANT, user_id(0), [seen.id])
    await store.restore(DEFAULT_TENANT, user_id(0), [tombstone.id])
    for document in (seen, tombstone):
        nid = document.notification.nid
        [delivery] = await store.deliveries.of_notification(DEFAULT_TENANT, nid, after=None, limit=9)
        assert delivery.delivered_at == document.updated_at
    await store.close()


async def test_what_was_seen_before_deliveries_were_remembered_is_acknowledged_once_more(path: Path) -> None:
    """By a client that did not hear of it: it stays delivered when it was seen or deleted, and what was neither is
    delivered now."""
    make_v2(path, 1)
    store = SQLiteStore(path)
    await store.open()
    documents = await store.changes(DEFAULT_TENANT, user_id(0), after=(0, ""), limit=9)
    before = now()
    room = (DEFAULT_TENANT, user_id(0))
    await store.deliveries.mark(ACKNOWLEDGED, {room: [document.id for document in documents]})
    assert sorted((document.seen, document.deleted) for document in documents) == [
        (False, False),
        (False, True),
        (True, False),
    ]
    for document in documents:
        nid = document.notification.nid
        [delivery] = await store.deliveries.of_notification(DEFAULT_TENANT, nid, after=None, limit=9)
        assert delivery.delivered_at is not None
        if document.seen or document.deleted:
            assert delivery.delivered_at == document.updated_at
        else:
            assert delivery.delivered_at >= before
        # nor does that change when it comes back
        await store.restore(*room, [document.id])
        await store.mark_unseen(*room, [document.id])
        assert await store.deliveries.of_notification(DEFAULT_TENANT, nid, after=None, limit=9) == [delivery]
    await store.close()


async def test_version_2_in_between(path: Path) -> None:
    """What that version adds and sees, in a file that was not brought up quite, is there afterwards."""
    make_v2(path, 2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        sqlite_upgrade._add_broadcasts(connection)
        assert version(path) == 2
        [(id_,)] = connection.execute(
            "UPDATE documents SET seen = 1, updated_at = 1700000009999, rev = 50"
            " WHERE user = 2 AND seen = 0 AND deleted_at IS NULL RETURNING hex(id)"
        ).fetchall()
        connection.execute(
            "INSERT INTO documents (user, id, notification, created_at, updated_at, rev)"
            " VALUES (2, x'00', 1, 5, 5, 51)"
        )
    store = SQLiteStore(path)
    await store.open()
    new, *_ = await store.changes(DEFAULT_TENANT, user_id(1), after=(50, "f" * 24), limit=9)
    [seen] = [each for each in await whole_inbox(store, user_id(1), DEFAULT_TENANT) if each.id == id_.lower()]
    nid = seen.notification.nid
    [delivery] = await store.deliveries.of_notification(DEFAULT_TENANT, nid, after=None, limit=9)
    assert delivery.delivered_at == seen.updated_at == from_ms(1_700_000_009_999)
    waiting = await store.deliveries.backlog(DEFAULT_TENANT, user_id(1), HUB, since=None, after=None, limit=9)
    assert waiting == [new]
    await store.close()


async def test_an_earlier_server_in_between(path: Path) -> None:
    """Until the end the earlier version can go on with the file: a user that it adds is found, too."""
    make_v1(path, 40)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(StoreUnavailable, match="goes on at the next start"):
            sqlite_upgrade._upgrade(connection, path, now(), lambda: True)
        connection.execute("INSERT INTO users (tenant, user_id) VALUES ('default', 'zoe')")
        connection.execute(
            "INSERT INTO documents (user, id, notification, created_at, updated_at, rev)"
            " VALUES (41, x'00', 1, ?, 0, 1)",
            (first_ms(40),),
        )
    store = SQLiteStore(path)
    await store.open()
    [*_, zoe] = await store.directory.users(DEFAULT_TENANT, after=None, limit=50)
    assert zoe == KnownUser(DEFAULT_TENANT, "zoe", from_ms(first_ms(40)), None)
    await store.close()
