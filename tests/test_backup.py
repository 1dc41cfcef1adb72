"""Backups are whole and of one moment, though servers go on; what is restored is another inbox to clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from server.errors import StartupError
from server.grants import DEFAULT_TENANT
from server.ids import new_id
from server.messages import MailRecipient, now
from server.store import Store, backup
from server.sync import KeepsAll, Sync
from tests.support.client_v2 import client_v2
from tests.support.command import Command, no_variables
from tests.support.feeds import SETTINGS
from tests.support.full_disk import no_file_larger_than
from tests.support.mongod import Mongod
from tests.support.old_stores import put_old_store
from tests.support.running_server import RunningServer
from tests.support.stores import (
    TENANT,
    MongoPlace,
    Place,
    SQLitePlace,
    fresh_place,
    owe,
    put,
    put_many,
    whole_inbox,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    no_variables(monkeypatch, folder)
    return Command(capsys)


def use(place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let the configuration name this place; the variables."""
    if isinstance(place, SQLitePlace):
        variables = {"NOTIFY_APPLICATION_DATA": str(place.path.parent)}
    else:
        assert isinstance(place, MongoPlace)
        variables = {"NOTIFY_MONGODB_URL": place.url, "NOTIFY_MONGODB_DB": place.db}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@contextmanager
def another(place: Place, tmp_path: Path) -> Iterator[Place]:
    """An empty one of the same kind."""
    if isinstance(place, SQLitePlace):
        yield SQLitePlace(tmp_path / "other" / "notifications.sqlite3")
        return
    assert isinstance(place, MongoPlace)
    other = MongoPlace(place.url, f"test_{uuid.uuid4().hex[:16]}")
    try:
        yield other
    finally:
        client: MongoClient[dict[str, Any]]
        with MongoClient(place.url) as client:
            client.drop_database(other.db)


def offline(place: Place) -> list[str]:
    """What a standalone MongoDB needs."""
    is_standalone = isinstance(place, MongoPlace) and "replicaSet" not in place.url
    return ["--offline"] if is_standalone else []


async def open_store(place: Place) -> Store:
    store = place.store()
    await store.open()
    return store


async def take(run: Command, *arguments: str) -> dict[str, object]:
    outcome = await asyncio.to_thread(run, "backup", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    fields: dict[str, object] = outcome.json()
    return fields


async def restore(run: Command, *arguments: str) -> str:
    """What it says."""
    outcome = await asyncio.to_thread(run, "restore", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome.problem


# -- what is in it -------------------------------------------------------------------------------------------


async def test_all_is_there_again(
    place: Place, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inboxes with their revs, tombstones, mail, tenants, keys: as at the time of the backup. The epoch is another."""
    old = put_old_store(place)
    store = await open_store(place)
    await put_many(store, 3, "alice")
    [gone, *_] = await whole_inbox(store, "alice")
    await store.delete(TENANT, "alice", [gone.id])
    at = now()
    await owe(store, MailRecipient("bob", "bob@example.test", at), MailRecipient("eve", "e@example.test", at))
    use(place, monkeypatch)
    manifest = await take(run, str(tmp_path / "backup"), *offline(place))
    await put(store, "alice")
    inbox = await store.changes(TENANT, "alice", after=(0, ""), limit=99)
    with another(place, tmp_path) as other:
        use(other, monkeypatch)
        said = await restore(run, str(tmp_path / "backup"))
        assert said.endswith("start the servers: clients read their inboxes anew")
        assert f"as of {manifest['taken_at']}" in said
        restored = await open_store(other)
        found = await restored.changes(TENANT, "alice", after=(0, ""), limit=99)
        assert found == [each for each in inbox if each.id in {kept.id for kept in found}]
        assert len(found) == len(inbox) - 1 == 3
        for user_id in old["users"][DEFAULT_TENANT]:
            assert await whole_inbox(restored, user_id, DEFAULT_TENANT) == await whole_inbox(
                store, user_id, DEFAULT_TENANT
            )
        assert await restored.mail_counts() == await store.mail_counts()
        assert await restored.directory.tenants() == await store.directory.tenants()
        assert await restored.directory.keys() == await store.directory.keys()
        assert (await restored.directory.access()).secrets == (await store.directory.access()).secrets
        assert restored.epoch not in ("", store.epoch)
        await restored.close()
    await store.close()


async def backed_up_under_load(place: Place, run: Command, folder: Path) -> tuple[list[str], str]:
    """Take one while a process adds as fast as it can: its lines before that began, and one from after it."""
    argv = [sys.executable, "-m", "tests.support.store_load", *place.arguments()]
    load = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=PIPE)
    assert load.stdout is not None
    lines: list[str] = []
    try:
        while len(lines) < 100:
            lines.append((await load.stdout.readline()).decode())
            assert lines[-1], "the load ended by itself"
        before = list(lines)

        taking = asyncio.create_task(take(run, str(folder)))
        after = 0
        while after < 100:  # it is not held up by the backup, and goes on after it
            lines.append((await load.stdout.readline()).decode())
            assert lines[-1], "the load ended by itself"
            after += taking.done()
        await taking
    finally:
        load.kill()
        await load.communicate()
    return before, lines[-1]


@pytest.mark.parametrize("kind", ["sqlite", "mongo-replica-set"])
async def test_taken_under_load(
    kind: str,
    request: pytest.FixtureRequest,
    run: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was acknowledged before is in it, and each notification that is in it is so for all of its users, or is
    completed as after a crash."""
    with fresh_place(kind, request) as place, another(place, tmp_path) as other:
        store = await open_store(place)
        await store.close()
        use(place, monkeypatch)
        before, later = await backed_up_under_load(place, run, tmp_path / "backup")
        use(other, monkeypatch)
        await restore(run, str(tmp_path / "backup"))
        restored = other.store(timeout_s=1)
        await restored.open()
        await complete_all(restored)
        users = [f"user-{number}" for number in range(10)]
        inboxes = [await whole_inbox(restored, user_id) for user_id in users]
        found = {each.id: each for inbox in inboxes for each in inbox}
        acknowledged = [pair.split(":") for line in before for pair in line.split()[1:]]
        assert all(found[id_].user_id == user_id for user_id, id_ in acknowledged)
        having: dict[str, set[str]] = {}
        for document in found.values():
            having.setdefault(document.notification.nid, set()).add(document.user_id)
        for document in found.values():
            assert having[document.notification.nid] == set(document.notification.content.split())
        assert later.split()[0] not in having
        await restored.close()


async def complete_all(store: Store) -> None:
    """What is half stored, when that is older than any time-out."""
    connection = getattr(store, "_connection", None)
    async with asyncio.timeout(30):
        while connection is not None and await connection.intents.count_documents(
            {"openedAt": {"$exists": True}}
        ):
            await store.complete_intents()
            await asyncio.sleep(0.1)


# -- clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "mongo-replica-set"])
async def test_clients_read_anew(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whatever they know from after the backup: after the restore they have the inbox as it is."""
    with fresh_place(kind, request) as place, another(place, tmp_path) as other:
        folder = tmp_path / "node"
        folder.mkdir()
        settings = dict(SETTINGS)
        if isinstance(place, MongoPlace):
            settings |= {"NOTIFY_MONGODB_URL": place.url, "NOTIFY_MONGODB_DB": place.db}
        server = RunningServer(folder, **settings)
        await asyncio.to_thread(server.start)
        for number in range(3):
            server.must_notify("alice", content=f"before {number}")
        assert server.run("backup", str(tmp_path / "backup")).returncode == 0
        async with client_v2(server, "alice") as client:
            server.must_notify("alice", content="after")
            pushed = await client.push("notification")
            await client.ask("delete", {"ids": [sorted(client.model.documents)[0]]})
            assert pushed["_id"] in client.model.documents
            model = client.model
        await asyncio.to_thread(server.stop)
        if isinstance(place, MongoPlace) and isinstance(other, MongoPlace):
            server = RunningServer(folder, **{**settings, "NOTIFY_MONGODB_DB": other.db})
        else:
            server.data.rename(tmp_path / "moved away")
        assert server.run("restore", str(tmp_path / "backup")).returncode == 0
        await asyncio.to_thread(server.start)
        server.must_notify("alice", content="and then")
        async with client_v2(server, "alice", model=model) as client:
            if client.model.since is not None:
                await client.sync()
            known = {each["content"] for each in client.model.documents.values() if not each["delete"]}
            assert known == {"before 0", "before 1", "before 2", "and then"}
        await asyncio.to_thread(server.stop)


async def test_an_old_since_is_none_after_a_new_epoch(
    place: Place, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the store was put back by other means."""
    store = await open_store(place)
    await put_many(store, 3, "alice")
    since = str(await Sync(store, KeepsAll()).now())
    await store.close()
    use(place, monkeypatch)
    assert "start the servers" in await restore(run, "--new-epoch")
    await store.open()
    assert (await Sync(store, KeepsAll()).read((TENANT, "alice"), since)).reset
    assert len(await whole_inbox(store, "alice")) == 3
    await store.close()


# -- what is refused -----------------------------------------------------------------------------------------


async def test_nothing_is_overwritten(
    place: Place, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a store, nor a backup, nor anything else in the folder of one."""
    store = await open_store(place)
    [document] = await put_many(store, 1, "alice")
    await store.close()
    use(place, monkeypatch)
    folder = str(tmp_path / "backup")
    await take(run, folder, *offline(place))
    refused = await asyncio.to_thread(run, "backup", folder, *offline(place))
    assert (refused.code, refused.problem) == (
        1,
        f"{folder} is not empty; a backup takes a folder of its own",
    )
    refused = await asyncio.to_thread(run, "restore", folder)
    assert refused.code == 1
    assert "a backup is not restored over a store" in refused.problem
    await store.open()
    assert await whole_inbox(store, "alice") == [document]
    await store.close()


async def test_what_is_no_backup(
    place: Place, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not finished, one of another kind of store, one that is damaged: nothing is restored."""
    store = await open_store(place)
    await put_many(store, 3, "alice")
    await store.close()
    use(place, monkeypatch)
    folder = tmp_path / "backup"
    await take(run, str(folder), *offline(place))
    manifest = (folder / "backup.json").read_text()
    with another(place, tmp_path) as other:
        use(other, monkeypatch)
        for text, reason in (
            (None, f"{folder} is no backup, or one that was not finished"),
            ("", f"{folder} is no backup, or one that was not finished"),
            ("{}", f"{folder / 'backup.json'} is damaged"),
            (
                json.dumps(json.loads(manifest) | {"store": "paper"}),
                f"{folder} is a backup of another kind of store",
            ),
        ):
            (folder / "backup.json").unlink(missing_ok=True)
            if text is not None:
                (folder / "backup.json").write_text(text)
            refused = await asyncio.to_thread(run, "restore", str(folder))
            assert refused.code == 1
            assert refused.problem.startswith(reason)
        (folder / "backup.json").write_text(manifest)
        biggest = max(set(folder.iterdir()) - {folder / "backup.json"}, key=lambda path: path.stat().st_size)
        whole = biggest.read_bytes()
        half = len(whole) // 2
        for damaged in (whole[:half], whole[:half] + b"?" + whole[half + 1 :]):
            biggest.write_bytes(damaged)
            refused = await asyncio.to_thread(run, "restore", str(folder))
            assert refused.code == 1
            assert refused.problem == f"{biggest} is damaged: it is not what it was when the backup was taken"
        biggest.unlink()
        refused = await asyncio.to_thread(run, "restore", str(folder))
        assert refused.code == 1
        assert "\n" not in refused.problem
        biggest.write_bytes(whole)
        await restore(run, str(folder))


async def test_a_backup_of_an_earlier_version_is_restored(
    place: Place, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say what its files were."""
    store = await open_store(place)
    await put(store, "alice")
    await store.close()
    use(place, monkeypatch)
    folder = tmp_path / "backup"
    await take(run, str(folder), *offline(place))
    manifest = json.loads((folder / "backup.json").read_text())
    del manifest["files"]
    (folder / "backup.json").write_text(json.dumps(manifest))
    with another(place, tmp_path) as other:
        use(other, monkeypatch)
        await restore(run, str(folder))


async def test_on_a_full_disk_nothing_is_left(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which file is the one, and goes well when there is room again: a backup into the same folder, and a
    restore."""
    place = SQLitePlace(tmp_path / "data" / "notifications.sqlite3")
    store = await open_store(place)
    await put_many(store, 100, "alice", data="x" * 4000)
    await store.close()
    use(place, monkeypatch)
    folder = tmp_path / "backup"
    with no_file_larger_than(100_000):
        failed = await asyncio.to_thread(run, "backup", str(folder))
    assert failed.code == 1
    assert failed.problem.startswith(f"{place.path} cannot be copied to {folder / place.path.name}: ")
    assert list(folder.iterdir()) == []
    await take(run, str(folder))
    other = SQLitePlace(tmp_path / "other" / "notifications.sqlite3")
    use(other, monkeypatch)
    with no_file_larger_than(100_000):
        failed = await asyncio.to_thread(run, "restore", str(folder))
    assert (failed.code, failed.problem) == (1, f"{folder} cannot be restored: File too large")
    assert [file.name for file in other.path.parent.iterdir()] == ["lock"]
    await restore(run, str(folder))


def test_of_two_backups_at_once_one_gets_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other, which found it empty too, is refused, and leaves what is there."""
    folder = tmp_path / "backup"
    with backup.new_folder(folder):
        backup.create(folder / "documents.bson").close()
        monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))  # as it was when the other looked
        with pytest.raises(StartupError, match="is not empty"), backup.new_folder(folder):
            backup.create(folder / "documents.bson").close()
        monkeypatch.undo()
        assert sorted(os.listdir(folder)) == ["backup.json", "documents.bson"]


@pytest.mark.parametrize("arguments", [[], ["somewhere", "--new-epoch"]], ids=["nothing", "both"])
def test_either_a_folder_or_a_new_epoch(run: Command, arguments: list[str]) -> None:
    """Exactly one of them is meant."""
    outcome = run("restore", *arguments)
    assert (outcome.code, outcome.problem) == (2, "name either the FOLDER of a backup, or --new-epoch")


def test_a_standalone_mongodb_is_of_no_one_moment(
    mongod_standalone: Mongod, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless nobody writes."""
    use(MongoPlace(mongod_standalone.url, f"test_{new_id()}"), monkeypatch)
    outcome = run("backup", str(tmp_path / "backup"))
    assert outcome.code == 1
    assert "say --offline, or make it a replica set of one member" in outcome.problem


# -- the file ------------------------------------------------------------------------------------------------


async def test_a_running_server_holds_its_folder(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is put into it, and its epoch stays."""
    place = SQLitePlace(tmp_path / "data" / "notifications.sqlite3")
    store = await open_store(place)
    use(place, monkeypatch)
    await take(run, str(tmp_path / "backup"))
    epoch = store.epoch
    for arguments in (["--new-epoch"], [str(tmp_path / "backup")]):
        outcome = await asyncio.to_thread(run, "restore", *arguments)
        assert outcome.code == 1
        assert "is in use by another notification server" in outcome.problem
    await store.close()
    await store.open()
    assert store.epoch == epoch
    await store.close()


def test_a_store_that_is_not_there(run: Command, tmp_path: Path) -> None:
    """Is not made."""
    for arguments in (["backup", str(tmp_path / "backup")], ["restore", "--new-epoch"]):
        outcome = run(*arguments)
        assert outcome.code == 1
        assert "there is no store" in outcome.problem
    assert not (Path.cwd() / "data" / "notifications.sqlite3").exists()


async def test_a_backup_is_one_file_for_its_owner(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be moved as it is, and read by SQLite's own tools."""
    place = SQLitePlace(tmp_path / "data" / "notifications.sqlite3")
    store = await open_store(place)
    await put(store, "alice")
    use(place, monkeypatch)
    folder = tmp_path / "backup"
    await take(run, str(folder))
    await store.close()
    assert sorted(path.name for path in folder.iterdir()) == ["backup.json", "notifications.sqlite3"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    with closing(
        sqlite3.connect(f"file:{folder}/notifications.sqlite3?mode=ro&immutable=1", uri=True)
    ) as copy:
        assert copy.execute("SELECT count(*) FROM documents").fetchone() == (1,)


async def test_a_restore_that_was_interrupted(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves no store behind, and is done again."""
    place = SQLitePlace(tmp_path / "data" / "notifications.sqlite3")
    store = await open_store(place)
    await put(store, "alice")
    await store.close()
    use(place, monkeypatch)
    await take(run, str(tmp_path / "backup"))
    shutil.rmtree(place.path.parent)
    place.path.parent.mkdir()
    (place.path.parent / "notifications.sqlite3.restoring").write_bytes(b"half")
    await restore(run, str(tmp_path / "backup"))
    await store.open()
    assert len(await whole_inbox(store, "alice")) == 1
    await store.close()
    assert not list(place.path.parent.glob("*.restoring*"))
