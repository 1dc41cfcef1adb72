"""`tenant …`, `key …`, `secret …`: on both stores, with a server beside them and without."""

from __future__ import annotations

import asyncio
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.cli import access
from server.config import load
from server.grants import ALL_SCOPES, hash_secret
from server.messages import MailRecipient, now
from server.store import MailOutcome, RefusedMail
from server.wiring import EMBEDDED_FILE, make_store
from tests.support.backends import add_tenant
from tests.support.command import Command, in_store
from tests.support.leftovers import leftovers
from tests.support.ordinary_user import as_ordinary_user
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer
from tests.support.sqlite_v1 import make_v1
from tests.support.stores import owe, put_many

BAD_NAMES = ["", "Acme", "a b", "-a", ".a", "a/b", "ä", "none", "x" * 65, "a\n", "\udcff"]


def is_key(text: str) -> bool:
    """43 characters of the URL-safe alphabet: 256 bits."""
    return re.fullmatch(r"[A-Za-z0-9_-]{43}", text) is not None


def names(tenants: list[dict[str, Any]]) -> list[str]:
    return [tenant["tenant"] for tenant in tenants]


def typed(monkeypatch: pytest.MonkeyPatch, text: str, *, at_terminal: bool = True) -> None:
    stdin = io.StringIO(text)
    monkeypatch.setattr(stdin, "isatty", lambda: at_terminal)
    monkeypatch.setattr(sys, "stdin", stdin)


def fill(tenant: str, count: int) -> None:
    """So many documents of a tenant, stored by a server's own store: one is seen, one deleted, a mail was refused, and
    two users are owed one. Beside them somebody who only joined, and somebody who was signed out."""

    asyncio.run(fill_store(tenant, count))


async def fill_store(tenant: str, count: int) -> None:
    store = make_store(load(None, os.environ))
    await store.open()
    try:
        documents = await put_many(store, count - 3, "alice", tenant=tenant)
        await store.mark_seen(tenant, "alice", [documents[0].id])
        await store.delete(tenant, "alice", [documents[-1].id])
        carol = MailRecipient("carol", f"carol@{tenant}.test", now())
        await owe(store, carol, tenant=tenant, content=f"content of {tenant}")
        for job in await store.claim_mail(60.0, 10):
            refused = RefusedMail("carol", carol.email, 550, f"no {tenant} here")
            assert await store.settle_mail(job, MailOutcome(refused=(refused,)))
        later = now() + timedelta(days=1)
        owed = [MailRecipient(user, f"{user}@{tenant}.test", later) for user in ("bob", "frank")]
        await owe(store, *owed, tenant=tenant)
        await store.directory.note_users({(tenant, "dave"): now()})
        await store.directory.sign_out(tenant, "erin", now())
    finally:
        await store.close()


def traces(tenant: str) -> list[str]:
    """What only a tenant had, after `fill`."""
    return [tenant, f"carol@{tenant}.test", f"bob@{tenant}.test", f"content of {tenant}", f"no {tenant} here"]


# -- tenants -------------------------------------------------------------------------------------------------
def test_tenant_add_prints_its_first_key(command: Command) -> None:
    """The key alone on standard output, for a pipe; it may do everything, and only its hash is kept."""
    outcome = command("tenant", "add", "acme")
    secret = outcome.out.removesuffix("\n")
    assert is_key(secret)
    assert outcome.err == (
        "notification-server: tenant acme is there; above is its first key, which is shown only now\n"
    )
    [key] = in_store(lambda directory: directory.keys("acme"))
    assert (key.hashed, key.scopes, key.name) == (hash_secret(secret), ALL_SCOPES, "first")


def test_tenant_add_as_json(command: Command) -> None:
    """One object, with the key in it."""
    outcome = command("tenant", "add", "acme", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    tenant = outcome.json()
    assert tenant["tenant"] == "acme"
    assert tenant["removed_at"] is None
    assert is_key(tenant["key"]["secret"])
    assert tenant["key"]["scopes"] == ["publish", "listen", "admin"]
    assert tenant["created_at"].endswith("Z")


def test_a_tenants_name_can_be_taken_once(command: Command) -> None:
    """Also that of a removed one whose data is still there; erasing frees it. The second try changes nothing."""
    command.must("tenant", "add", "acme")
    before = command.must("key", "list", "acme")
    outcome = command("tenant", "add", "acme")
    assert outcome.code == 1
    assert "'acme'" in outcome.problem
    assert command.must("key", "list", "acme") == before
    command.must("tenant", "remove", "acme", "--yes")
    outcome = command("tenant", "add", "acme")
    assert outcome.code == 1
    assert "removed" in outcome.problem
    command.must("tenant", "remove", "acme", "--yes", "--erase")
    assert command("tenant", "add", "acme").code == 0


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused(bare: Command, name: str) -> None:
    """With one sentence that says what is one, before any store is touched."""
    for arguments in (
        ("tenant", "add", name),
        ("tenant", "remove", name, "--yes"),
        ("key", "add", name, "ci"),
        ("key", "add", "acme", name),
        ("key", "revoke", "acme", name),
        ("key", "revoke", name, "ci"),
    ):
        # What begins with a dash would be an option.
        outcome = bare(*arguments[:2], *(["--", *arguments[2:]] if name.startswith("-") else arguments[2:]))
        if "remove" in arguments and name.startswith("-"):
            continue
        assert outcome.code == 2
        assert "is not a name: up to 64 of a-z 0-9 . _ -" in outcome.problem
    assert os.listdir() == []


def test_tenant_list(command: Command) -> None:
    """The active ones by name; with --all those removed, too."""
    for name in ("zoo", "acme"):
        command.must("tenant", "add", name)
    command.must("tenant", "remove", "zoo", "--yes")
    assert names(command.must("tenant", "list")) == ["acme", "default"]
    every = command.must("tenant", "list", "--all")
    assert names(every) == ["acme", "default", "zoo"]
    assert [tenant["removed_at"] is None for tenant in every] == [True, True, False]
    lines = command("tenant", "list").out.splitlines()
    assert lines[0].split() == ["NAME", "CREATED", "KEEP", "KEEP", "DELETED"]
    assert [line.split()[0] for line in lines[1:]] == ["acme", "default"]
    lines = command("tenant", "list", "--all").out.splitlines()
    assert lines[0].split() == ["NAME", "CREATED", "KEEP", "KEEP", "DELETED", "REMOVED"]
    assert lines[1].endswith("-")
    assert lines[3].endswith("Z")


def test_a_removed_tenants_keys_are_revoked(command: Command) -> None:
    """Its data stays, which is said."""
    command.must("tenant", "add", "acme")
    fill("acme", 4)
    outcome = command("tenant", "remove", "acme", "--yes")
    assert (outcome.code, outcome.out) == (0, "")
    assert "its data is still there" in outcome.err
    [key] = command.must("key", "list", "acme", "--all")
    assert key["revoked_at"] is not None
    assert len(command.must("user", "known", "--tenant", "acme")) == 5


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yes please\n"])
def test_tenant_remove_asks_first(command: Command, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """At a terminal; whatever is no yes is a no."""
    command.must("tenant", "add", "acme")
    typed(monkeypatch, answer)
    outcome = command("tenant", "remove", "acme")
    assert outcome.code == 2
    assert outcome.err == ("Remove the tenant acme? [y/N] notification-server: nothing was changed\n")
    assert "acme" in names(command.must("tenant", "list"))
    typed(monkeypatch, "Y\n")
    assert command("tenant", "remove", "acme").code == 0
    assert "acme" not in names(command.must("tenant", "list"))


def test_without_a_terminal_removing_takes_a_yes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that would hang, or take what is piped in for an answer, is told."""
    command.must("tenant", "add", "acme")
    typed(monkeypatch, "y\n", at_terminal=False)
    outcome = command("tenant", "remove", "acme", "--erase")
    assert outcome.code == 2
    assert outcome.problem == "Remove the tenant acme, and erase all it has? Say --yes if that is meant."
    assert "acme" in names(command.must("tenant", "list"))


@pytest.mark.parametrize("options", [["--yes"], ["--yes", "--erase"]])
def test_the_tenant_default_cannot_be_removed(command: Command, options: list[str]) -> None:
    """All that names no tenant is its."""
    outcome = command("tenant", "remove", "default", *options)
    assert outcome.code == 1
    assert outcome.problem == "the tenant default cannot be removed"
    assert names(command.must("tenant", "list")) == ["default"]


def test_erasing_leaves_nothing(
    command: Command, store_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row of it, in steps, whose progress is told; the others keep what they have."""
    monkeypatch.setattr(access, "ERASED_PER_STEP", 3)
    for name in ("acme", "zoo"):
        command.must("tenant", "add", name)
        fill(name, 7)
    everywhere = leftovers(store_variables, Path("data"), *traces("acme"))
    others = leftovers(store_variables, Path("data"), *traces("zoo"))
    assert len(everywhere) >= 5
    outcome = command("tenant", "remove", "acme", "--erase", "--yes")
    assert (outcome.code, outcome.out) == (0, "")
    waiting, first, *_, last = outcome.err.splitlines()
    assert "waiting until every running server has heard" in waiting
    assert first == "notification-server: 3 documents erased …"
    assert last == "notification-server: tenant acme is removed and erased (7 documents)"
    assert "acme" not in names(command.must("tenant", "list", "--all"))
    assert command.must("key", "list", "--all")[0]["tenant"] == "zoo"
    assert leftovers(store_variables, Path("data"), *traces("acme")) == []
    assert leftovers(store_variables, Path("data"), *traces("zoo")) == others
    command.must("tenant", "add", "acme")
    assert command.must("user", "known", "--tenant", "acme") == []


def test_what_servers_store_until_they_hear_is_erased_too(
    command: Command, store_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is erased before they all had time to hear of the removal."""
    command.must("tenant", "add", "acme")
    until_heard = access._until_heard

    async def still_writing(removed_at: datetime) -> None:
        await fill_store("acme", 5)
        await until_heard(removed_at)

    monkeypatch.setattr(access, "_until_heard", still_writing)
    outcome = command("tenant", "remove", "acme", "--erase", "--yes", "--json")
    assert outcome.json()["erased_documents"] == 5
    assert "waiting until every running server has heard" in outcome.err
    assert leftovers(store_variables, Path("data"), *traces("acme")) == []


def test_what_was_removed_before_can_be_erased(
    command: Command, store_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is left of an erasing that was broken off; who heard long ago is not waited for."""
    command.must("tenant", "add", "acme")
    fill("acme", 7)
    command.must("tenant", "remove", "acme", "--yes")
    monkeypatch.setattr(access, "HEARD_AFTER", timedelta(0))
    assert in_store(lambda directory: directory.erase_tenant("acme", 3)) == 3
    outcome = command("tenant", "remove", "acme", "--erase", "--yes")
    assert outcome.err.splitlines()[-1] == (
        "notification-server: tenant acme is removed and erased (4 documents)"
    )
    assert "waiting" not in outcome.err
    assert leftovers(store_variables, Path("data"), *traces("acme")) == []


def test_erasing_as_json(command: Command) -> None:
    """Says how many documents were erased, null where none were to be; the progress stands apart."""
    command.must("tenant", "add", "acme")
    fill("acme", 4)
    assert command.must("tenant", "remove", "acme", "--yes") == {"tenant": "acme", "erased_documents": None}
    outcome = command("tenant", "remove", "acme", "--yes", "--erase", "--json")
    assert outcome.json() == {"tenant": "acme", "erased_documents": 4}
    assert "4 documents erased …" in outcome.err


# -- keys ----------------------------------------------------------------------------------------------------
def test_key_add_prints_the_key(command: Command) -> None:
    """The key alone on standard output; it may publish unless more is said."""
    outcome = command("key", "add", "default", "ci")
    secret = outcome.out.removesuffix("\n")
    assert is_key(secret)
    assert outcome.err == (
        "notification-server: key ci of tenant default (publish) is shown only now; only its hash is kept\n"
    )
    [key] = in_store(lambda directory: directory.keys("default"))
    assert key.hashed == hash_secret(secret)
    assert key.expires_at is None


def test_key_add_as_json(command: Command) -> None:
    """With what was asked for."""
    key = command.must(
        "key", "add", "default", "app", "--scope", "admin", "--scope", "listen", "--expires", "2100-01-31"
    )
    secret = key.pop("secret")
    assert is_key(secret)
    assert key["scopes"] == ["listen", "admin"]
    assert key["expires_at"] == "2100-01-31T00:00:00Z"
    assert [key] == command.must("key", "list")


@pytest.mark.parametrize(
    ("text", "life"),
    [
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("2w", timedelta(weeks=2)),
        ("1y", timedelta(days=365)),
    ],
)
def test_a_key_may_end_after_a_while(bare: Command, text: str, life: timedelta) -> None:
    """Counted from now."""
    before = now()
    bare.must("key", "add", "default", "ci", "--expires", text)
    [key] = in_store(lambda directory: directory.keys())
    assert key.expires_at is not None
    assert before + life <= key.expires_at <= now() + life


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2100-01-31", "2100-01-31T00:00:00Z"),
        ("2100-01-31T12:30", "2100-01-31T12:30:00Z"),
        ("2100-01-31T12:30+02:00", "2100-01-31T10:30:00Z"),
    ],
)
def test_a_key_may_end_at_a_date(bare: Command, text: str, instant: str) -> None:
    """In UTC unless it says otherwise."""
    assert bare.must("key", "add", "default", "ci", "--expires", text)["expires_at"] == instant


@pytest.mark.parametrize(
    "text",
    ["soon", "0d", "1.5d", "-1d", "1 d", "2100-13-01", "9999-12-31T23:59-14:00", "999999y", "2020-01-31"],
)
def test_what_is_no_end_is_refused(bare: Command, text: str) -> None:
    """One in the past as well; no store is touched."""
    outcome = bare("key", "add", "default", "ci", f"--expires={text}")
    assert outcome.code == 2
    assert outcome.problem.startswith(repr(text))
    assert os.listdir() == []


def test_a_keys_name_can_be_taken_once(command: Command) -> None:
    """Among those of its tenant that are not revoked."""
    command.must("tenant", "add", "acme")
    command.must("key", "add", "acme", "ci")
    command.must("key", "add", "default", "ci")
    outcome = command("key", "add", "acme", "ci")
    assert outcome.code == 1
    assert "'ci'" in outcome.problem
    command.must("key", "revoke", "acme", "ci")
    command.must("key", "add", "acme", "ci")


@pytest.mark.parametrize(
    "arguments",
    [
        ["tenant", "remove", "nobody", "--yes"],
        ["tenant", "remove", "nobody", "--yes", "--erase"],
        ["key", "add", "nobody", "ci"],
        ["key", "list", "nobody"],
        ["key", "revoke", "nobody", "ci"],
        ["user", "known", "--tenant", "nobody"],
        ["user", "sign-out", "alice", "--tenant", "nobody"],
    ],
    ids=" ".join,
)
def test_an_unknown_tenant_is_one_sentence(command: Command, arguments: list[str]) -> None:
    """That names it."""
    outcome = command(*arguments)
    assert outcome.code == 1
    assert "'nobody'" in outcome.problem


def test_key_list_never_shows_a_secret(command: Command) -> None:
    """Nor its hash; neither as a table nor as JSON."""
    secrets = [
        command.must("tenant", "add", "acme")["key"]["secret"],
        command.must("key", "add", "acme", "ci")["secret"],
    ]
    secrets += [hash_secret(secret) for secret in secrets]
    for arguments in (["key", "list"], ["key", "list", "acme"], ["key", "list", "--all"]):
        said = command(*arguments).out + command(*arguments, "--json").out
        assert "ci" in said
        assert not any(secret in said for secret in secrets)


def test_key_list(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that open something, by tenant and age; with --all also the others."""
    command.must("tenant", "add", "acme")
    for name in ("z", "a", "old", "gone"):
        command.must("key", "add", "default", name, *(["--expires", "1m"] if name == "old" else []))
    command.must("key", "revoke", "default", "gone")
    monkeypatch.setattr(access, "now", lambda: now() + timedelta(minutes=2))
    assert [(key["tenant"], key["name"]) for key in command.must("key", "list")] == [
        ("acme", "first"), ("default", "z"), ("default", "a"),
    ]  # fmt: skip
    assert [key["name"] for key in command.must("key", "list", "acme")] == ["first"]
    assert {key["name"] for key in command.must("key", "list", "default", "--all")} == {
        "z",
        "a",
        "old",
        "gone",
    }
    lines = command("key", "list", "acme").out.splitlines()
    assert lines[0].split() == ["TENANT", "NAME", "SCOPES", "CREATED", "LAST", "USED", "EXPIRES"]
    assert lines[1].startswith("acme    first  publish listen admin  20")
    assert command("key", "list", "--all").out.splitlines()[0].endswith("REVOKED")


def test_key_revoke(command: Command) -> None:
    """Says which key it was; there is nothing to revoke twice."""
    command.must("key", "add", "default", "ci")
    command.must("key", "add", "default", "app")
    revoked = command.must("key", "revoke", "default", "ci")
    assert (revoked["tenant"], revoked["name"]) == ("default", "ci")
    assert revoked["revoked_at"] is not None
    outcome = command("key", "revoke", "default", "ci")
    assert outcome.code == 1
    assert "'ci'" in outcome.problem
    outcome = command("key", "revoke", "default", "app")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("notification-server: key app of tenant default is revoked")


# -- secrets -------------------------------------------------------------------------------------------------
def test_secret_rotate(command: Command) -> None:
    """The newest signs; those before stay good for as long as a token may live, or end at once. None is shown."""
    [first] = in_store(lambda directory: directory.access()).secrets
    outcome = command("secret", "rotate")
    assert (outcome.code, outcome.out) == (0, "")
    assert "stay good until they end" in outcome.err
    second, old = in_store(lambda directory: directory.access()).secrets
    assert (old.id, old.secret) == (first.id, first.secret)
    assert second.secret != first.secret
    assert old.retired_at is not None
    assert timedelta(days=29) < old.retired_at - now() <= timedelta(days=30)
    outcome = command("secret", "rotate", "--at-once")
    assert outcome.code == 0
    [third] = in_store(lambda directory: directory.access()).secrets
    assert third.secret not in (first.secret, second.secret)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """That everybody may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        folder.chmod(0o755)
        yield folder


# -- a store of an older version -----------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [["tenant", "list"], ["key", "add", "default", "ci"]], ids=" ".join)
def test_a_store_of_an_older_version_is_the_servers_to_upgrade(bare: Command, arguments: list[str]) -> None:
    """That may take long, and an older server could not use it any more: no command does it on the side."""
    path = Path.cwd() / "data" / EMBEDDED_FILE
    make_v1(path, 10)
    before = path.read_bytes()
    outcome = bare(*arguments, "--json")
    assert outcome.code == 1
    assert outcome.problem == (
        f"{path} is of an older version: start the server once, which brings it up to date"
    )
    assert path.read_bytes() == before


# -- what can be wrong ---------------------------------------------------------------------------------------
def test_the_first_command_makes_the_store(bare: Command) -> None:
    """For its user alone; it says so, since somebody may stand in the wrong folder. Root hears what to do next."""
    outcome = bare("tenant", "list")
    assert outcome.code == 0
    data = Path.cwd() / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    lines = outcome.err.splitlines()
    assert lines[0] == (
        f"notification-server: {data} had no store, so one was made; a server with another data folder will not know it"
    )
    if os.geteuid() == 0:
        assert lines[1:] == [
            f"notification-server: it belongs to root; if the server is another user's: chown -R USER {data}"
        ]
    assert bare("tenant", "list").err == ""


def test_a_store_that_may_not_be_written_is_one_sentence(
    bare: Command, monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    """That says whose it is, if it is somebody else's."""
    monkeypatch.chdir(open_folder)
    bare("tenant", "list")
    Path("data/notifications.sqlite3").chmod(0o444)
    Path("data").chmod(0o555)
    with as_ordinary_user():
        outcome = bare("tenant", "add", "acme")
    assert outcome.code == 1
    assert "notifications.sqlite3" in outcome.problem
    assert ("data belongs to root: be that user" in outcome.problem) == (os.geteuid() == 0)


def test_a_folder_that_cannot_be_made_is_one_sentence(
    bare: Command, monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    """Of a user who may not write where it should be."""
    monkeypatch.chdir(open_folder)
    open_folder.chmod(0o555)
    with as_ordinary_user():
        outcome = bare("tenant", "add", "acme")
    assert outcome.code == 1
    assert "data" in outcome.problem
    assert "permission denied" in outcome.problem
    assert os.listdir() == []


@pytest.mark.parametrize("where", ["data", "data/notifications.sqlite3"])
def test_what_is_no_store_is_one_sentence(bare: Command, where: str) -> None:
    """A file where the folder should be, or another file in its place; it stays as it is."""
    Path(where).parent.mkdir(exist_ok=True)
    Path(where).write_text("mine, and no database of yours" * 100)
    before = Path(where).read_bytes()
    outcome = bare("tenant", "add", "acme")
    assert outcome.code == 1
    assert "data" in outcome.problem
    assert Path(where).read_bytes() == before


def test_a_mongodb_that_is_away_is_one_sentence(bare: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the password of its address; no embedded store is made in its place."""
    monkeypatch.setenv("NOTIFY_MONGODB_URL", f"mongodb://me:s3cret@127.0.0.1:{free_port()}/")
    monkeypatch.setenv("NOTIFY_MONGODB_TIMEOUT_S", "0.3")
    outcome = bare("tenant", "list")
    assert outcome.code == 1
    assert "MongoDB" in outcome.problem or "store" in outcome.problem
    assert "s3cret" not in outcome.problem
    assert os.listdir() == []


# -- beside a server -----------------------------------------------------------------------------------------
def test_beside_a_running_server(store_variables: dict[str, str], tmp_path: Path) -> None:
    """What is changed in its store counts there at once, and is there after its end, however that came."""
    with RunningServer(tmp_path, **store_variables) as server:
        acme = add_tenant(server, "acme")
        wait_until(lambda: acme.notify("alice").status == 200, "the new key being good")
        server.kill()
        assert [key["name"] for key in server.must_run("key", "list", "acme")] == ["first"]
        server.start()
        assert acme.notify("alice").status == 200
        server.must_run("key", "revoke", "acme", "first")
        wait_until(lambda: acme.notify("alice").status == 400, "the key being revoked")
        server.stop()
        [key] = server.must_run("key", "list", "acme", "--all")
        assert key["last_used_at"] is not None
        assert [user["user_id"] for user in server.must_run("user", "known", "--tenant", "acme")] == ["alice"]


# -- for how long things are kept ----------------------------------------------------------------------------


def test_tenant_set(command: Command) -> None:
    """One or both; what is not named stays as it was, `default` takes it back."""
    command.must("tenant", "add", "acme")
    assert command.must("tenant", "list")[0]["keep"] == "default"
    changed = command.must("tenant", "set", "acme", "--keep", "12w")
    assert (changed["keep"], changed["keep_deleted"]) == ("84d", "default")
    changed = command.must("tenant", "set", "acme", "--keep-deleted", "Forever")
    assert (changed["keep"], changed["keep_deleted"]) == ("84d", "forever")
    [acme, default] = command.must("tenant", "list")
    assert (acme["keep"], acme["keep_deleted"], default["keep"]) == ("84d", "forever", "default")
    assert command("tenant", "list").out.splitlines()[1].split()[-2:] == ["84d", "forever"]
    outcome = command("tenant", "set", "acme", "--keep", "default")
    assert outcome.problem == (
        "tenant acme: notifications are kept as the configuration says, deleted ones for ever; what is older goes"
        " within hours"
    )
    command.must("tenant", "remove", "acme", "--erase", "--yes")
    command.must("tenant", "add", "acme")
    assert command.must("tenant", "list")[0]["keep_deleted"] == "default"


def test_tenant_set_that_cannot_be_done(command: Command) -> None:
    """With the option, or the tenant, that is wrong."""
    assert command("tenant", "set", "acme", "--keep", "90d").problem == "there is no active tenant 'acme'"
    assert command("tenant", "set", "acme").problem == (
        "nothing is to be set; say --keep, --keep-deleted, or both"
    )
    for text, reason in (
        ("90", "'90' is not a time such as 90d or 12w; nor is it 'forever' or 'default'"),
        ("1h", "'1h' is not within 1d to 36500d; nor is it 'forever' or 'default'"),
    ):
        outcome = command("tenant", "set", "default", "--keep-deleted", text)
        assert (outcome.code, outcome.problem) == (2, f"--keep-deleted: {reason}")
