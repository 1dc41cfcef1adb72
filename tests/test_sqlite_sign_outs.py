"""Tests of server/store/sqlite_sign_outs.py: what the embedded store promises of sign-outs beyond the contract of all
stores (test_directory_contract.py)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from server.grants import DEFAULT_TENANT, SignOut
from server.messages import now
from server.store import Directory, sqlite_sign_outs
from server.store.sqlite import SQLiteStore
from server.store.sqlite_beside import SQLiteBeside
from server.store.sqlite_schema import to_ms
from tests.support.stores import read_sign_outs

AT = now()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notifications.sqlite3"


@pytest.fixture
async def directory(path: Path) -> AsyncIterator[Directory]:
    store = SQLiteStore(path)
    await store.open()
    yield store.directory
    await store.close()


def execute(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """As another process does."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def signed_out(user_id: str, seconds: float = 0) -> SignOut:
    return SignOut(DEFAULT_TENANT, user_id, AT + timedelta(seconds=seconds))


async def sign_out(directory: Directory, *users: str) -> None:
    for user_id in users:
        await directory.sign_out(DEFAULT_TENANT, user_id, AT)


async def test_each_is_read_once(directory: Directory) -> None:
    """In the order in which they were written down; where nothing is new, nothing is read."""
    await sign_out(directory, "alice", "bob")
    _, after = await read_sign_outs(directory)
    for users in (["zoe", "alice"], [], ["carol"]):
        await sign_out(directory, *users)
        page = await directory.sign_outs(after, 10)
        after = page.cursor
        assert [each.user_id for each in page.sign_outs] == users


async def test_who_comes_from_far_back_reads_all(
    directory: Directory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the latest only."""
    monkeypatch.setattr(sqlite_sign_outs, "LOGGED", 5)
    await sign_out(directory, "alice")
    _, after = await read_sign_outs(directory)
    await sign_out(directory, "a", "b", "c", "d", "e")
    assert len((await directory.sign_outs(after, 10)).sign_outs) == 5
    await sign_out(directory, "f")
    assert execute(path, "SELECT count(*) FROM sign_out_log") == [(5,)]
    found, after = await read_sign_outs(directory, after, 2)
    assert sorted(each.user_id for each in found) == ["a", "alice", "b", "c", "d", "e", "f"]
    await sign_out(directory, "g")
    assert [each.user_id for each in (await read_sign_outs(directory, after))[0]] == ["g"]


async def test_a_file_that_was_put_back(directory: Directory, path: Path) -> None:
    """As from a backup: its numbers are below those that were read, and say nothing."""
    await sign_out(directory, "alice", "bob", "carol")
    _, after = await read_sign_outs(directory)
    execute(path, "DELETE FROM sign_out_log WHERE number > 1")
    execute(path, "UPDATE meta SET value = 1 WHERE name = 'sign_out_sequence'")
    await sign_out(directory, "zoe")
    found, _ = await read_sign_outs(directory, after)
    assert signed_out("zoe") in found


async def test_an_erased_tenant_leaves_nothing(directory: Directory, path: Path) -> None:
    """In no table; numbers are not given out twice all the same."""
    await sign_out(directory, "alice")
    for number in range(3):
        execute(path, "INSERT INTO sign_outs VALUES ('gone', ?, 0)", str(number))
    await directory.sign_out("gone", "bob", AT)
    before = await directory.sequences()
    execute(path, "INSERT INTO tenants VALUES ('gone', 0, 1)")
    while await directory.erase_tenant("gone", 2):
        pass
    for table in ("sign_outs", "sign_out_log"):
        assert execute(path, f"SELECT DISTINCT tenant FROM {table}") == [(DEFAULT_TENANT,)]  # noqa: S608
    _, after = await read_sign_outs(directory)
    await sign_out(directory, "zoe")
    assert (await directory.sequences()).sign_outs == before.sign_outs + 1
    assert (await read_sign_outs(directory, after))[0] == [signed_out("zoe")]


@pytest.mark.parametrize("opens", [SQLiteStore, SQLiteBeside])
async def test_a_file_without_the_log(path: Path, opens: type[SQLiteStore] | type[SQLiteBeside]) -> None:
    """As it was before there was one: those who are signed out in it stay so, new ones come to that, and whoever knows
    no log goes on with it."""
    old = SQLiteStore(path)
    await old.open()
    await old.close()
    execute(path, "DROP TABLE sign_out_log")
    execute(path, "DROP INDEX sign_outs_at")
    execute(path, "DELETE FROM meta WHERE name = 'sign_out_sequence'")
    insert = "INSERT INTO sign_outs VALUES (?, ?, ?)"
    execute(path, insert, DEFAULT_TENANT, "alice", to_ms(AT))
    store = opens(path)
    await store.open()
    assert (await store.directory.sequences()).sign_outs == 0
    found, after = await read_sign_outs(store.directory)
    assert found == [signed_out("alice")]
    await sign_out(store.directory, "bob")
    execute(path, insert, DEFAULT_TENANT, "carol", to_ms(AT))
    assert (await read_sign_outs(store.directory, after))[0] == [signed_out("bob")]
    assert len((await read_sign_outs(store.directory))[0]) == 3
    await store.close()
    await store.open()
    assert (await store.directory.sequences()).sign_outs == 1
    await store.close()


async def test_no_verb_looks_at_all_rows(directory: Directory, path: Path) -> None:
    """Each finds its rows by an index, and needs no sorting; but for erasing in the log, which is bounded."""
    plans = []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        page = sqlite_sign_outs.page(connection, None, 10)
        sqlite_sign_outs.page(connection, page.cursor, 10)
        sqlite_sign_outs.sign_out(connection, "acme", "alice", AT)
        sqlite_sign_outs.forget(connection, AT, 10)
        sqlite_sign_outs.erase(connection, "acme", 10)
        connection.set_trace_callback(None)
        for statement in statements:
            if statement.startswith(("SELECT", "UPDATE", "DELETE")):
                plans += [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert len(plans) > 5
    assert [plan for plan in plans if "SCAN" in plan or "B-TREE" in plan] == ["SCAN sign_out_log"]
