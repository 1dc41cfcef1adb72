"""The command line's way into the embedded store: beside a running server, before one ever ran, and where it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.errors import NotFound, StartupError, StoreUnavailable
from server.folder_lock import FolderLock
from server.grants import DEFAULT_TENANT, ApiKey, Tenant, hash_secret, new_secret
from server.ids import new_id
from server.messages import Recipient, now
from server.store.sqlite import SQLiteStore
from server.store.sqlite_beside import SQLiteBeside
from server.store.sqlite_schema import VERSION
from tests.support.ordinary_user import as_ordinary_user
from tests.support.sqlite_v1 import make_v1
from tests.support.stores import SQLitePlace, make_notification, put, whole_inbox

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "notifications.sqlite3"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteBeside]:
    beside = SQLiteBeside(path)
    await beside.open()
    try:
        yield beside
    finally:
        await beside.close()


async def add_tenant(beside: SQLiteBeside | SQLiteStore, name: str) -> None:
    key = ApiKey(new_id(), name, "first", hash_secret(new_secret()), frozenset(), now())
    await beside.directory.add_tenant(Tenant(name, now()), key)


async def names(path: Path) -> list[str]:
    """Of the tenants that a server finds."""
    store = SQLiteStore(path)
    await store.open()
    tenants = await store.directory.tenants()
    await store.close()
    return [tenant.name for tenant in tenants]


def set_version(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """As by a server."""
    lock = FolderLock(folder)
    lock.acquire()
    yield
    lock.release()


# -- without a server ----------------------------------------------------------------------------------------


async def test_before_a_server_ever_ran(path: Path) -> None:
    """The file is made, for its owner only; the server finds what was done."""
    async with opened(path) as beside:
        assert beside.name == f"embedded ({path})"
        await add_tenant(beside, "acme")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert await names(path) == ["acme", DEFAULT_TENANT]


async def test_an_older_file_without_a_server(path: Path) -> None:
    """Is left as it is, for that server to bring up to date, which may take long: the sentence says so."""
    make_v1(path, 10)
    before = path.read_bytes()
    with pytest.raises(StartupError) as refusal:
        await SQLiteBeside(path).open()
    assert str(refusal.value) == (
        f"{path} is of an older version: start the server once, which brings it up to date"
    )
    assert path.read_bytes() == before
    assert await names(path) == [DEFAULT_TENANT]
    async with opened(path) as beside:
        assert len(await beside.directory.users(DEFAULT_TENANT, after=None, limit=20)) == 10


async def test_a_server_starts_in_the_meantime(path: Path) -> None:
    """The folder is not held any more once the file is open."""
    async with opened(path) as beside:
        store = SQLiteStore(path)
        await store.open()
        await add_tenant(beside, "acme")
        assert len((await store.directory.access()).tenants) == 2
        await store.close()
        await add_tenant(beside, "other")
    assert await names(path) == ["acme", DEFAULT_TENANT, "other"]


async def test_closing_twice_is_closing_once(path: Path) -> None:
    """Also if it never opened; then nothing can be asked."""
    beside = SQLiteBeside(path)
    await beside.close()
    for verb in (beside.directory.access(), beside.directory.forget_sign_outs(now())):
        with pytest.raises(StoreUnavailable):
            await verb
    await beside.open()
    await beside.close()
    await beside.close()


# -- where it cannot -----------------------------------------------------------------------------------------


async def test_an_older_file_that_a_server_has(path: Path) -> None:
    """That server does not know of tenants: nothing is touched."""
    make_v1(path, 10)
    before = path.read_bytes()
    with held(path.parent):
        with pytest.raises(StartupError) as refusal:
            await SQLiteBeside(path).open()
        assert str(refusal.value) == (
            f"{path} is of an older version, and so is the running server; restart it first"
        )
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["missing", "empty", "half upgraded"])
async def test_a_server_that_is_starting(kind: str, path: Path) -> None:
    """It is making the file, or bringing it up to date: try again."""
    path.parent.mkdir()
    if kind == "empty":
        path.touch()
    if kind == "half upgraded":
        async with opened(path):
            pass
        set_version(path, 1)
    with held(path.parent):
        with pytest.raises(StoreUnavailable, match="still starting"):
            await SQLiteBeside(path).open()
        assert path.exists() == (kind != "missing")
    if kind == "half upgraded":
        assert await names(path) == [DEFAULT_TENANT]
    async with opened(path) as beside:
        await add_tenant(beside, "acme")


async def test_a_newer_file(path: Path) -> None:
    """It is named, and left as it is."""
    async with opened(path):
        pass
    set_version(path, VERSION + 1)
    with pytest.raises(StartupError, match=f"{path} was written by a newer notification server"):
        await SQLiteBeside(path).open()


async def test_somebody_elses_file(path: Path) -> None:
    """A database of another program, or none at all, is named and left as it is."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE precious (x)")
    before = path.read_bytes()
    with pytest.raises(StartupError, match="not one of the notification server"):
        await SQLiteBeside(path).open()
    assert path.read_bytes() == before
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(StartupError, match=f"{path} cannot be opened: file is not a database"):
        await SQLiteBeside(path).open()
    assert path.read_bytes() == b"precious" * 1000


@pytest.mark.parametrize("kind", ["file", "folder", "no folder"])
async def test_without_permission(kind: str) -> None:
    """As another user than the server's: the sentence names what cannot be used."""
    folder = Path(tempfile.mkdtemp(prefix="test-beside-"))
    path = folder / "data" / "notifications.sqlite3"
    if kind != "no folder":
        async with opened(path):
            pass
    folder.chmod(0o555)
    if kind == "file":
        path.parent.chmod(0o755)
        path.chmod(0o400)
    elif kind == "folder":
        path.parent.chmod(0)
    named = path.parent if kind == "no folder" else path
    with as_ordinary_user(), pytest.raises(StartupError, match=f"{named} cannot be .*: permission denied"):
        await SQLiteBeside(path).open()
    folder.chmod(0o755)
    if kind != "no folder":
        path.parent.chmod(0o755)
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
    folder.rmdir()


# -- beside a server -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def busy_server(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that has the store open and adds to it as fast as it can; it prints each that is stored."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.store_load",
        *SQLitePlace(path).arguments(),
        cwd=ROOT,
        stdout=PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline()
    reading = asyncio.create_task(_read(process.stdout))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def _read(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass


async def count_documents(beside: SQLiteBeside) -> int:
    assert beside._readers is not None
    return await beside._readers.submit(
        lambda c: int(c.execute("SELECT count(*) FROM documents").fetchone()[0])
    )


async def test_beside_a_server_that_writes_all_the_time(path: Path) -> None:
    """Both get their turn: every change is made, and the server stores more during it."""
    async with busy_server(path) as server, opened(path) as beside:
        for number in range(10):
            before = await count_documents(beside)
            await add_tenant(beside, f"tenant-{number}")
            await beside.directory.remove_tenant(f"tenant-{number}", now())
            assert await beside.directory.erase_tenant(f"tenant-{number}", 100) == 0
            while await count_documents(beside) <= before:
                pass
        assert server.returncode is None
        await add_tenant(beside, "acme")
    assert await names(path) == ["acme", DEFAULT_TENANT]


async def test_a_running_server_sees_it(path: Path) -> None:
    """At the next question for the sequences."""
    store = SQLiteStore(path)
    await store.open()
    await put(store)
    before = await store.directory.sequences()
    async with opened(path) as beside:
        await add_tenant(beside, "acme")
        assert (await store.directory.sequences()).access > before.access
        assert [key.tenant for key in (await store.directory.access()).keys] == ["acme"]
        await beside.directory.revoke_key("acme", "first", now())
        assert (await store.directory.access()).keys == ()
    await put(store)
    await store.close()


ERASE = """
import asyncio, sys
from pathlib import Path
from server.store.sqlite_beside import SQLiteBeside
async def main():
    beside = SQLiteBeside(Path(sys.argv[1]))
    await beside.open()
    while erased := await beside.directory.erase_tenant("acme", 50):
        print(erased, flush=True)
asyncio.run(main())
"""


async def test_killed_while_it_erases(path: Path) -> None:
    """The server goes on, whatever was under way; the rest is erased when it is asked for again."""
    store = SQLiteStore(path)
    await store.open()
    await add_tenant(store, "acme")
    for _ in range(20):
        await store.add(make_notification("acme"), [Recipient(str(number)) for number in range(200)], None)
    await store.directory.remove_tenant("acme", now())
    erasing = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ERASE, str(path), cwd=ROOT, stdout=PIPE
    )
    assert erasing.stdout is not None
    erased = 0
    for _ in range(3):
        erased += int(await erasing.stdout.readline())
    erasing.kill()
    rest, _ = await erasing.communicate()
    document = await put(store, "alice", "other")
    async with opened(path) as beside:
        assert 0 < await count_documents(beside) - 1 <= 4000 - erased - sum(map(int, rest.split()))
        while await beside.directory.erase_tenant("acme", 1000):
            pass
        assert await count_documents(beside) == 1
        with pytest.raises(NotFound):
            await beside.directory.erase_tenant("acme", 1000)
    assert await whole_inbox(store, "alice", "other") == [document]
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table in ("notifications", "users"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)
        for table in ("orphans", "mails", "api_keys"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
