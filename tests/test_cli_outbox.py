"""`outbox …`: on both stores, without a server and beside one."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.cli import outbox
from server.config import load
from server.ids import new_id
from server.messages import Mail, MailRecipient, now
from server.store import MailOutcome, PostponedMail, RefusedMail, Store
from server.wiring import make_store
from tests.support.backends import add_tenant, known
from tests.support.command import Command
from tests.support.running_server import RunningServer
from tests.support.smtp_sink import SMTPSink
from tests.support.stores import owe

GREYLISTED = "4.7.1 greylisted, come back\tlater; " + "x" * 60


def to(user_id: str, in_s: float) -> MailRecipient:
    return MailRecipient(user_id, f"{user_id}@example.test", now() + timedelta(seconds=in_s))


async def fill_store(store: Store, tenant: str) -> str:
    """A notification of which one mail is dead, one waits, one is leased, one is due; its id."""
    recipients = [to("dead", -300), to("waits", -300), to("leased", -200), to("due", -100)]
    mail = Mail(f"For {tenant}\u2028!", "content")
    notification = await owe(store, *recipients, tenant=tenant, mail=mail)
    [job] = await store.claim_mail(600.0, 1, 2)
    by_name = {each.user_id: each for each in job.recipients}
    dead, waits = by_name["dead"], by_name["waits"]
    outcome = MailOutcome(
        refused=(RefusedMail(dead.user_id, dead.email, 550, "no such user"),),
        retry=(PostponedMail(waits.user_id, waits.email, 451, GREYLISTED, now() + timedelta(days=1)),),
    )
    assert await store.settle_mail(job, outcome)
    [job] = await store.claim_mail(600.0, 1, 1)
    assert [each.user_id for each in job.recipients] == ["leased"]
    return notification.nid


def fill(tenant: str) -> str:
    async def run() -> str:
        store = make_store(load(None, os.environ))
        await store.open()
        try:
            return await fill_store(store, tenant)
        finally:
            await store.close()

    return asyncio.run(run())


@pytest.fixture
def nid(command: Command) -> str:
    command.must("tenant", "add", "acme")
    return fill("acme")


def states(command: Command, *arguments: str) -> dict[str, str]:
    return {mail["user_id"]: mail["state"] for mail in command.must("outbox", "list", *arguments)}


@pytest.fixture
def left() -> dict[str, str]:
    """What `fill` leaves."""
    return {"dead": "dead", "due": "due", "leased": "leased", "waits": "waiting"}


# -- list ----------------------------------------------------------------------------------------------------
def test_an_empty_list(command: Command) -> None:
    """A heading, and nothing below it."""
    outcome = command("outbox", "list")
    assert outcome.out.split() == "TENANT NOTIFICATION USER E-MAIL STATE TIME ATTEMPTS LAST ANSWER".split()
    assert (outcome.code, outcome.err) == (0, "")
    assert command.must("outbox", "list") == []


def test_list(command: Command, nid: str, left: dict[str, str]) -> None:
    """Each mail on its line, with the last answer, whatever was in that."""
    assert states(command) == left
    heading, *lines = command("outbox", "list").out.splitlines()
    rows = {line.split()[2]: line for line in lines}
    assert set(rows) == set(left)
    assert rows["dead"].split()[:5] == ["acme", nid, "dead", "dead@example.test", "dead"]
    assert rows["dead"].endswith("550 no such user")
    shown = rows["waits"].partition("451 ")[2]
    assert shown.startswith("4.7.1 greylisted, come back\\tlater") and shown.endswith("…")
    at = heading.index("TIME")
    for line in lines:
        datetime.strptime(line[at : at + 17], "%Y-%m-%d %H:%MZ")


def test_list_as_json(command: Command, nid: str) -> None:
    """All there is to know of each."""
    [mail] = command.must("outbox", "list", "--state", "waiting")
    due_at, failed_at = (datetime.fromisoformat(mail.pop(name)) for name in ("due_at", "failed_at"))
    assert failed_at <= now() < due_at
    assert mail == {
        "tenant": "acme",
        "notification": nid,
        "user_id": "waits",
        "email": "waits@example.test",
        "state": "waiting",
        "leased_until": None,
        "attempts": 1,
        "code": 451,
        "reason": GREYLISTED,
    }


def test_list_by_tenant_and_up_to_a_limit(
    command: Command, nid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all active tenants, or of one; who sees a part only is told so."""
    monkeypatch.setattr(outbox, "PER_PAGE", 3)
    command.must("tenant", "add", "zoo")
    zoo = fill("zoo")
    assert len(command.must("outbox", "list")) == 8
    assert {mail["notification"] for mail in command.must("outbox", "list", "--tenant", "zoo")} == {zoo}
    outcome = command("outbox", "list", "--limit", "5", "--json")
    assert len(outcome.json()) == 5
    assert outcome.err == "notification-server: these are the first 5; there are more (--limit)\n"
    assert command("outbox", "list", "--limit", "8").err == ""
    command.must("tenant", "remove", "zoo", "--yes")
    assert {mail["tenant"] for mail in command.must("outbox", "list")} == {"acme"}
    outcome = command("outbox", "list", "--tenant", "zoo")
    assert (outcome.code, outcome.problem) == (1, "there is no tenant 'zoo'")


# -- show ----------------------------------------------------------------------------------------------------
def test_show(command: Command, nid: str, left: dict[str, str]) -> None:
    """The subject, and all that is left of it with whole answers; the content is nobody's business."""
    shown = command.must("outbox", "show", nid)
    assert (shown["tenant"], shown["notification"], shown["subject"], shown["forced"]) == (
        "acme",
        nid,
        "For acme\u2028!",
        False,
    )
    assert {mail["user_id"]: mail["state"] for mail in shown["mails"]} == left
    outcome = command("outbox", "show", nid, "--tenant", "acme")
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"notification  {nid} of tenant acme, ")
    assert lines[1] == "subject       For acme\\u2028!"
    assert lines[2].split()[:2] == ["USER", "E-MAIL"]
    assert lines[-1].endswith(GREYLISTED.replace("\t", "\\t"))
    assert "content" not in outcome.out
    assert "there are more" in command("outbox", "show", nid, "--limit", "1").err


@pytest.mark.parametrize("verb", ["show", "retry", "drop"])
def test_what_is_not_there(command: Command, nid: str, verb: str) -> None:
    """Is one sentence."""
    for arguments in ((new_id(),), ("a b",), (nid, "--tenant", "default")):
        outcome = command("outbox", verb, *arguments)
        assert outcome.code == 1
        assert outcome.problem == f"there is no mail of a notification {arguments[0]} in the outbox"


# -- retry ---------------------------------------------------------------------------------------------------
def test_retry(command: Command, nid: str, left: dict[str, str]) -> None:
    """One of them, those in a state, or all that are not going out anyway."""
    outcome = command("outbox", "retry", nid, "--user", "dead")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == (
        "notification-server: 1 mail is due now; running servers send what is due within seconds\n"
    )
    left["dead"] = "due"
    assert states(command) == left
    assert command.must("outbox", "retry", nid, "--state", "dead") == {"retried": 0}
    assert command.must("outbox", "retry", nid) == {"retried": 1}
    assert states(command) == left | {"waits": "due"}


def test_retry_of_all(command: Command, nid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every tenant, in small steps."""
    monkeypatch.setattr(outbox, "PER_CHANGE", 1)
    command.must("tenant", "add", "zoo")
    fill("zoo")
    assert command.must("outbox", "retry", "--all", "--state", "dead") == {"retried": 2}
    assert command.must("outbox", "retry", "--all", "--tenant", "zoo") == {"retried": 1}
    assert command.must("outbox", "retry", "--all") == {"retried": 1}


# -- drop ----------------------------------------------------------------------------------------------------
def test_drop(command: Command, nid: str, left: dict[str, str]) -> None:
    """One without a question; several only if that is meant; what is being sent is left."""
    outcome = command("outbox", "drop", nid, "--user", "due")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "notification-server: 1 mail is dropped\n")
    del left["due"]
    outcome = command("outbox", "drop", nid)
    assert (outcome.code, outcome.problem) == (
        2,
        "Drop 2 mails? Nobody gets them. Say --yes if that is meant.",
    )
    assert states(command) == left
    assert command.must("outbox", "drop", nid, "--yes") == {"dropped": 2}
    assert states(command) == {"leased": "leased"}
    assert command.must("outbox", "drop", nid, "--yes") == {"dropped": 0}


def test_drop_of_all_dead_letters(command: Command, nid: str, left: dict[str, str]) -> None:
    """What may still be delivered stays."""
    assert command.must("outbox", "drop", "--all", "--state", "dead", "--yes") == {"dropped": 1}
    del left["dead"]
    assert states(command) == left


@pytest.mark.parametrize("verb", ["retry", "drop"])
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "say either NOTIFICATION or --all"),
        (("6740c0ffee0123456789abcc", "--all"), "say either NOTIFICATION or --all"),
        (("--all", "--user", "ann"), "--user: goes with NOTIFICATION, not with --all"),
    ],
    ids=["nothing", "both", "user of all"],
)
def test_what_is_meant_must_be_said(
    bare: Command, verb: str, arguments: tuple[str, ...], problem: str
) -> None:
    """No store is touched."""
    outcome = bare("outbox", verb, *arguments)
    assert (outcome.code, outcome.problem) == (2, problem)
    assert os.listdir() == []


def test_a_limit_is_at_least_one(bare: Command) -> None:
    """Else nothing would be shown."""
    outcome = bare("outbox", "list", "--limit", "0")
    assert (outcome.code, outcome.problem) == (2, "--limit: less than 1")


# -- beside a server -----------------------------------------------------------------------------------------
async def test_a_running_server_hears_of_it(store_variables: dict[str, str], tmp_path: Path) -> None:
    """A dead letter that is retried goes out within seconds; one that waits and is dropped never does."""
    with SMTPSink() as sink:
        sink.replies = {
            "ann@example.test": "550 5.1.1 no such user",
            "ben@example.test": "451 4.7.1 greylisted",
        }
        settings = {
            "NOTIFY_EMAIL_HOST": f"127.0.0.1:{sink.port}",
            "NOTIFY_EMAIL_TLS": "none",
            "NOTIFY_EMAIL_SENDER": "notify@example.org",
        }
        server = RunningServer(tmp_path, **store_variables, **settings)
        await asyncio.to_thread(server.start)
        try:
            await beside(server, sink)
        finally:
            await asyncio.to_thread(server.stop)


async def beside(server: RunningServer, sink: SMTPSink) -> None:
    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(server.must_run, "outbox", *arguments)

    def publish() -> None:
        acme = known(add_tenant(server, "acme"))
        users = [{"id": name, "email": f"{name}@example.test"} for name in ("ann", "ben", "cat")]
        body = {"users": users, "content": "hello", "email_send": True}
        assert acme.post("/notify", body).status == 200

    await asyncio.to_thread(publish)
    assert (await sink.next_mail()).recipients == ["cat@example.test"]
    async with asyncio.timeout(30):
        while {mail["state"] for mail in await run("list")} != {"dead", "waiting"}:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.1)
    ann, ben = await run("list")
    assert (ann["reason"], ben["reason"]) == ("5.1.1 no such user", "4.7.1 greylisted")
    sink.replies.clear()
    assert await run("drop", ben["notification"], "--user", "ben") == {"dropped": 1}
    assert await run("retry", ann["notification"]) == {"retried": 1}
    assert (await sink.next_mail()).recipients == ["ann@example.test"]
    async with asyncio.timeout(30):
        while await run("list"):  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.1)
