"""`user …`: those of config.ini, those the server knows, and signing them out."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from datetime import datetime
from pathlib import Path

import pytest

from server.cli import users
from server.config import editor, load
from server.errors import InvalidConfig
from server.messages import now
from tests.support.backends import add_tenant, known
from tests.support.client import SocketClient
from tests.support.command import Command, in_store
from tests.support.config import HASH
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer
from tests.support.stores import read_sign_outs

FILE = Path("config.ini")


# -- user list -----------------------------------------------------------------------------------------------
def test_user_list(bare: Command) -> None:
    """Those of the form in force, by name; never a hash; no store is touched."""
    FILE.write_text(f"[USERS]\nzoe={HASH}\n[USERS-DEBUG]\nann={HASH}\n[USERS-RELEASE]\nbob={HASH}\n")
    assert bare("user", "list").out.splitlines() == ["ann", "zoe"]
    assert bare.must("user", "list") == ["ann", "zoe"]
    assert os.listdir() == ["config.ini"]


def test_a_config_without_users_lists_nobody(bare: Command) -> None:
    """Nor does no config."""
    assert (bare("user", "list").out, bare.must("user", "list")) == ("", [])


# -- user remove ---------------------------------------------------------------------------------------------
def test_user_remove(bare: Command) -> None:
    """Takes out the line, and leaves every other byte."""
    FILE.write_text(f"; mine\n[USERS-DEBUG]\nann = {HASH}\n; friends\nbob = {HASH}\n")
    outcome = bare("user", "remove", "ann")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith(
        "notification-server: ann is taken out of config.ini; a running server knows it"
    )
    assert FILE.read_text() == f"; mine\n[USERS-DEBUG]\n; friends\nbob = {HASH}\n"


def test_user_remove_looks_into_the_section_of_both_forms(bare: Command) -> None:
    """Else the user would still be there; that of the other form stays."""
    FILE.write_text(f"[USERS]\nann={HASH}\n[USERS-DEBUG]\nann={HASH}\n[USERS-RELEASE]\nann={HASH}\n")
    assert bare("user", "remove", "ann").code == 0
    assert FILE.read_text() == f"[USERS]\n[USERS-DEBUG]\n[USERS-RELEASE]\nann={HASH}\n"
    assert dict(load(FILE, {}).users) == {}


@pytest.mark.parametrize("name", ["ann", "BOB", "", "bob ", "; bob"])
def test_a_user_who_is_not_there_is_one_sentence(bare: Command, name: str) -> None:
    """Names have letter case; nothing changes."""
    text = f"[USERS-DEBUG]\nbob = {HASH}\n"
    FILE.write_text(text)
    outcome = bare("user", "remove", name)
    assert outcome.code == 1
    assert outcome.problem == f"config.ini: there is no user {name} in [USERS-DEBUG]"
    assert FILE.read_text() == text


def test_without_a_config_there_is_nobody_to_remove(bare: Command) -> None:
    """Which is the command line's fault."""
    outcome = bare("user", "remove", "ann")
    assert outcome.code == 2
    assert outcome.problem == "there is no config.ini in this folder; name the file by --config FILE"


# -- the editor ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[U]\nann=1\n", "[U]\n"),
        ("[U]\nann=1", "[U]\n"),
        ("[U]\nx=1\nann : 1\ny=2\n", "[U]\nx=1\ny=2\n"),
        ("[U]\nann=1\n  goes on\n\ton\ny=2\n", "[U]\ny=2\n"),
        ("[U]\nann=1\n\n; about y\ny=2\n", "[U]\n\n; about y\ny=2\n"),
        ("[U]\nann=1\n[B]\nann=2\n", "[U]\n[B]\nann=2\n"),
        ("[B]\nann=2\n[U]\nann=1\nAnn=3\n", "[B]\nann=2\n[U]\nAnn=3\n"),
        ("\ufeff[U]\r\nann=1\r\nbob=2\r\n", "\ufeff[U]\r\nbob=2\r\n"),
        ("[U]\n;ann=0\nann=1\n", "[U]\n;ann=0\n"),
        ("[U]\nx=1\n  ann=2\nann=1\n", "[U]\nx=1\n  ann=2\n"),
    ],
)
def test_a_line_is_taken_out_and_nothing_else_changes(bare: Command, before: str, after: str) -> None:
    """With the lines that go on its value, and without those that only look like it."""
    FILE.write_bytes(before.encode())
    assert editor.drop(FILE, "U", "ann")
    assert FILE.read_bytes().decode() == after


@pytest.mark.parametrize("before", ["", "[U]\n", "[B]\nann=1\n", "[U]\nAnn=1\n", "[U]\nx=1\n  ann=2\n"])
def test_what_is_not_there_is_not_taken_out(bare: Command, before: str) -> None:
    """The file is not even written."""
    FILE.write_text(before)
    written_at = FILE.stat().st_mtime_ns
    assert not editor.drop(FILE, "U", "ann")
    assert (FILE.read_text(), FILE.stat().st_mtime_ns) == (before, written_at)


def test_taking_out_what_would_change_more_is_refused(bare: Command) -> None:
    """Here the value goes on behind an empty line, where it cannot be told from what follows."""
    before = "[U]\nann=1\n\n  2\nbob=1\n"
    FILE.write_text(before)
    with pytest.raises(InvalidConfig, match="change it yourself"):
        editor.drop(FILE, "U", "ann")
    assert FILE.read_text() == before


def test_the_file_keeps_its_mode(bare: Command) -> None:
    """It holds secrets."""
    FILE.write_text("[U]\nann=1\n")
    FILE.chmod(0o600)
    assert editor.drop(FILE, "U", "ann")
    assert stat.S_IMODE(FILE.stat().st_mode) == 0o600
    assert os.listdir() == ["config.ini"]


# -- user known ----------------------------------------------------------------------------------------------
def test_user_known(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a tenant, however many, by id; whatever is in an id, it stays on its line."""
    monkeypatch.setattr(users, "KNOWN_PER_PAGE", 2)
    command.must("tenant", "add", "acme")
    seen_at = now()
    ids = ["alice", "bob", "carol", "d\ne\x1b[2J", "émile"]
    in_store(lambda directory: directory.note_users({("acme", id_): seen_at for id_ in ids}))
    known_users = command.must("user", "known", "--tenant", "acme")
    assert [user["user_id"] for user in known_users] == ids
    shown_at = seen_at.replace(microsecond=0)
    assert {datetime.fromisoformat(user["last_seen_at"]) for user in known_users} == {shown_at}
    lines = command("user", "known", "--tenant", "acme").out.splitlines()
    assert lines[0].split() == ["USER", "FIRST", "SEEN", "LAST", "JOINED"]
    assert [line.split()[0] for line in lines[1:]] == ["alice", "bob", "carol", "d\\ne\\x1b[2J", "émile"]
    assert command.must("user", "known") == []


# -- user sign-out -------------------------------------------------------------------------------------------
def test_user_sign_out(command: Command) -> None:
    """Of that tenant only; the user need not be known."""
    command.must("tenant", "add", "acme")
    before = now()
    outcome = command("user", "sign-out", "alice", "--tenant", "acme")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == (
        "notification-server: alice of tenant acme is signed out everywhere within a second\n"
    )
    [sign_out], _ = in_store(read_sign_outs)
    assert (sign_out.tenant, sign_out.user_id) == ("acme", "alice")
    assert before <= sign_out.at <= now()


def test_nobody_of_a_removed_tenant_is_signed_out(command: Command) -> None:
    """Nobody of it is in."""
    command.must("tenant", "add", "acme")
    command.must("tenant", "remove", "acme", "--yes")
    outcome = command("user", "sign-out", "alice", "--tenant", "acme")
    assert outcome.code == 1
    assert outcome.problem == "there is no tenant 'acme'"


@pytest.mark.parametrize("user", ["", "x" * 1025, "\udcff"], ids=["empty", "long", "no Unicode"])
def test_what_is_no_user_id_is_refused(bare: Command, user: str) -> None:
    """No store is touched."""
    outcome = bare("user", "sign-out", user)
    assert outcome.code == 2
    assert outcome.problem.startswith("USER-ID: is ")
    assert os.listdir() == []


# -- beside a server -----------------------------------------------------------------------------------------
async def test_users_come_and_go_with_sighup(tmp_path: Path) -> None:
    """A user who is added joins after it; one who is removed is out after it, and does not come back."""
    (tmp_path / "config.ini").write_text("[USERS-DEBUG]\n")
    with RunningServer(tmp_path) as server:
        assert server.run("user", "add", "ann", "--write", stdin="s3cret\n").returncode == 0
        await reload(server, 1)
        async with SocketClient(server) as client:
            await client.join("ann", "s3cret")
            assert server.run("user", "remove", "ann").returncode == 0
            await reload(server, 2)
            assert await client.closed() == (3501, "signed_out")
        async with SocketClient(server) as client:
            assert (await client.refusal("join", {"login": "ann", "password": "s3cret"}))["code"] == (
                "bad_credentials"
            )


async def reload(server: RunningServer, times: int) -> None:
    """SIGHUP, and wait until the configuration was reread so often."""
    server.signal(signal.SIGHUP)
    await asyncio.to_thread(
        wait_until,
        lambda: server.log.count("the configuration and the files that it names were reread") == times,
        "the reload",
    )


async def test_the_known_are_those_notified_and_those_who_joined(
    store_variables: dict[str, str], tmp_path: Path
) -> None:
    """Of each tenant its own."""
    with RunningServer(tmp_path, **store_variables) as server:
        acme = known(add_tenant(server, "acme"))
        acme.must_notify("alice")
        async with SocketClient(server) as client:
            await client.join_by_token(acme.token("bob"))

            def bob_is_known() -> bool:
                users_ = server.must_run("user", "known", "--tenant", "acme")
                return [user["user_id"] for user in users_] == ["alice", "bob"]

            await asyncio.to_thread(wait_until, bob_is_known, "bob being written down")
        [alice, bob] = server.must_run("user", "known", "--tenant", "acme")
        assert alice["last_seen_at"] is None
        assert bob["last_seen_at"] is not None
        assert server.must_run("user", "known") == []
