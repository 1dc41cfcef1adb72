"""Tests of server/torture: what it finds when something is wrong, and that nothing is."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from pymongo import MongoClient

from server import cli
from server.torture import faults, house, leaks, run
from server.torture.children import Reaper
from server.torture.clients import ClientV2
from server.torture.feeds import HubFeed
from server.torture.house import Options
from server.torture.judging import Evidence, Finding, Inbox, View, judge
from server.torture.leaks import Holdings
from server.torture.ledger import DELETED, RESTORED, SEEN, UNSEEN, Changes, Ledger, Request
from server.torture.lines import SocketLine
from server.torture.mailbox import Taken, read_taken
from server.torture.node import Node
from server.torture.observed import open_shift, write_shift
from server.torture.publishers import NotifyDoor, address_of, publish_until_acknowledged
from server.torture.report import Progress, Result, table
from server.torture.run import Torture, tracebacks
from tests.support.available import is_ci
from tests.support.mongod import Mongod, mongod_binary
from tests.support.processes import wait_until

ROOT = Path(__file__).resolve().parents[1]

ALICE, BOB = "alice", "bob"

# -- the checks ----------------------------------------------------------------------------------------------


class Case:
    """Two requests that were acknowledged, one with a mail, and everything as it has to be."""

    def __init__(self) -> None:
        self.ledger, self.changes = Ledger(), Changes()
        self.first = self.ledger.open("notify", [ALICE, BOB], ["alice@example.invalid"])
        self.second = self.ledger.open("service", [ALICE])
        self.documents: dict[str, list[dict[str, Any]]] = {ALICE: [], BOB: []}
        for request in (self.first, self.second):
            self.ledger.acknowledge(request)
            for user in request.users:
                self.store(request.key, user)
        self.views: list[View] = []
        self.mails = [self.mail()]
        self.disturbed: list[tuple[float, float]] = []

    def store(self, key: str, user: str, *, seen: bool = False) -> dict[str, Any]:
        number = sum(map(len, self.documents.values()))
        document = {"_id": f"{user}-{number}", "title": key, "seen": seen, "rev": f"{number:016x}"}
        document["createdAt"] = f"2026-11-0{number + 1}"
        self.documents[user].append(document)
        return document

    def mail(self, at: float = 100.0, id_: str = "<1>", to: str = "alice@example.invalid") -> Taken:
        return Taken(at, id_, self.first.key, (to,))

    @property
    def findings(self) -> list[str]:
        """The kinds of all that is wrong."""
        inboxes = {user: Inbox(user, documents) for user, documents in self.documents.items()}
        evidence = Evidence(self.ledger, self.changes, inboxes, self.views, self.mails, self.disturbed)
        return [finding.kind for finding in judge(evidence)]


def test_nothing_wrong() -> None:
    """What is as it has to be is no finding."""
    case = Case()
    states = {each["_id"]: False for each in case.documents[ALICE]}
    keys = {case.first.key, case.second.key, "one that is gone"}
    case.views = [View("a", ALICE, states=states), View("b", ALICE, unseen=set(states), count=2, keys=keys)]
    assert case.findings == []


def _lose(case: Case) -> None:
    del case.documents[BOB][0]


def _repeat(case: Case) -> None:
    case.store(case.first.key, BOB)


def _show_twice(case: Case) -> None:
    case.documents[BOB].append(case.documents[BOB][0])


def _invent(case: Case) -> None:
    case.store("another", BOB)


def _misdeliver(case: Case) -> None:
    case.store(case.second.key, BOB)


def _forget_request(case: Case) -> None:
    case.ledger.open("notify", [])


def _refuse(case: Case) -> None:
    case.second.refusal = "400 no"


def _see(case: Case) -> None:
    case.documents[BOB][0]["seen"] = True


def _unsee(case: Case) -> None:
    document = case.documents[BOB][0]
    case.changes.ask(BOB, document["_id"], document["title"], SEEN)
    case.changes.settle(BOB, document["_id"], SEEN)


def _delete_in_vain(case: Case) -> None:
    document = case.documents[BOB][0]
    case.changes.ask(BOB, document["_id"], document["title"], DELETED)
    case.changes.settle(BOB, document["_id"], DELETED)


def _replace(case: Case) -> None:
    """A document that was changed goes, and another one takes its place."""
    document = case.documents[BOB][0]
    case.changes.ask(BOB, document["_id"], document["title"], UNSEEN)
    case.changes.settle(BOB, document["_id"], UNSEEN)
    case.documents[BOB][0] = document | {"_id": "another"}


def _leave_unseen(case: Case) -> None:
    case.changes.ask_all_seen(BOB)
    case.changes.settle_all_seen(BOB, "f" * 16)


def _differ(case: Case) -> None:
    case.views = [View("a", BOB, states={case.documents[BOB][0]["_id"]: True})]


def _miss(case: Case) -> None:
    case.views = [View("a", BOB, unseen=set())]


def _miscount(case: Case) -> None:
    case.views = [View("a", BOB, count=2)]


def _do_not_send(case: Case) -> None:
    case.views = [View("a", BOB, keys=set())]


def _do_not_mail(case: Case) -> None:
    case.mails = []


def _mail_again(case: Case) -> None:
    case.mails.append(case.mail(at=120.0))


def _mail_another(case: Case) -> None:
    case.mails.append(case.mail(to="bob@example.invalid"))


def _mail_with_another_id(case: Case) -> None:
    case.disturbed = [(99.0, 101.0)]
    case.mails.append(case.mail(id_="<2>"))


def _mail_what_nobody_asked_for(case: Case) -> None:
    case.mails.append(Taken(1.0, "<3>", "another", ("alice@example.invalid",)))


@pytest.mark.parametrize(
    ("break_it", "kinds"),
    [
        (_lose, ["lost"]),
        (_repeat, ["duplicated"]),
        (_show_twice, ["duplicated", "duplicated"]),
        (_invent, ["foreign"]),
        (_misdeliver, ["foreign"]),
        (_forget_request, ["refused"]),
        (_refuse, ["refused"]),
        (_see, ["changed"]),
        (_unsee, ["changed"]),
        (_delete_in_vain, ["changed"]),
        (_replace, ["lost"]),
        (_leave_unseen, ["changed"]),
        (_differ, ["differs"]),
        (_miss, ["differs"]),
        (_miscount, ["differs"]),
        (_do_not_send, ["differs"]),
        (_do_not_mail, ["mail"]),
        (_mail_again, ["mail"]),
        (_mail_another, ["mail"]),
        (_mail_with_another_id, ["mail"]),
        (_mail_what_nobody_asked_for, ["mail"]),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_each_wrong_is_found(break_it: Callable[[Case], None], kinds: list[str]) -> None:
    """By its kind, and as nothing else."""
    case = Case()
    break_it(case)
    assert case.findings == kinds


def test_a_mail_that_could_not_but_go_out_again() -> None:
    """When the server was killed soon after it was taken, nobody can know that it was."""
    case = Case()
    case.mails.append(case.mail(at=120.0))
    case.disturbed = [(103.0, 104.0)]
    assert case.findings == []
    case.disturbed = [(106.0, 107.0)]
    assert case.findings == ["mail"]
    case.disturbed = [(96.0, 97.9)]
    assert case.findings == ["mail"]
    case.disturbed = [(96.0, 98.0)]
    assert case.findings == []


def test_what_a_feed_is_not_owed() -> None:
    """What was created before its user first used it."""
    case = Case()
    case.views = [View("a", ALICE, keys={case.second.key}, since="2026-11-02")]
    assert case.findings == []
    case.views = [View("a", ALICE, keys={case.second.key}, since="2026-11-01")]
    assert case.findings == ["differs"]


def test_what_redis_passes_over_is_not_lost() -> None:
    """It was promised to nobody; twice it may not be there."""
    case = Case()
    request = case.ledger.open("redis", [BOB], is_kept=False)
    case.ledger.acknowledge(request)
    assert case.findings == []
    case.store(request.key, BOB)
    case.store(request.key, BOB)
    assert case.findings == ["duplicated"]


def test_a_change_that_was_not_answered() -> None:
    """May be made or not; one that was answered is."""
    case = Case()
    document = case.documents[BOB][0]
    case.changes.ask(BOB, document["_id"], document["title"], SEEN)
    assert case.findings == []
    document["seen"] = True
    assert case.findings == []
    case.changes.settle(BOB, document["_id"], SEEN)
    for after in (DELETED, RESTORED, DELETED):
        case.changes.ask(BOB, document["_id"], document["title"], after)
        assert case.changes.is_open(BOB, document["_id"])
        case.changes.settle(BOB, document["_id"], after)
    assert case.findings == ["changed"]
    case.documents[BOB].clear()
    assert case.findings == []


def test_all_seen_that_was_not_answered() -> None:
    """May be made, and its screens not be told; what is unseen they know all the same."""
    case = Case()
    [document] = case.documents[BOB]
    document["seen"] = True
    case.views = [View("a", BOB, unseen={document["_id"]})]
    case.changes.ask_all_seen(BOB)
    assert case.findings == []
    document["seen"], case.views = False, [View("a", BOB, unseen=set())]
    assert case.findings == ["differs"]
    document["seen"], case.views = True, [View("a", BOB, unseen={document["_id"]})]
    case.changes.settle_all_seen(BOB, "0")
    assert case.findings == ["differs"]


# -- leaks ---------------------------------------------------------------------------------------------------


def holdings(**fields: Any) -> Holdings:
    nothing: dict[str, Any] = {
        "files": {"socket": 5},
        "threads": 3,
        "memory_mib": 60.0,
        "tasks": ["sweep", "lane 1"],
        "connections": {"websocket": 0.0},
        "queues": {"commands": 0.0, "sockets": 3.0},
        "down": [],
    }
    return Holdings(**(nothing | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"files": {"socket": 10}},
        {"files": {"pooled socket": 200}},
        {"tasks": ["sweep", *(f"lane {number}" for number in range(9))]},
        {"connections": {"websocket": 1.0}},
        {"queues": {"commands": 1.0}},
        {"memory_mib": 400.0},
    ],
    ids=["sockets", "pool", "tasks", "connections", "queue", "memory"],
)
def test_a_leak_is_found(fields: dict[str, Any]) -> None:
    """What is more than in a fresh server, of each kind."""
    assert not list(leaks.leaked(holdings(), holdings()))
    [finding] = leaks.leaked(holdings(**fields), holdings())
    assert finding.kind == "leak"


class Busy:
    """Stands for a node. `lasting`: its tasks; `late`: those that come in the end; of others it
    has `passing` at a time, each of another kind every time it is looked at."""

    def __init__(self, *lasting: str, late: Sequence[str] = (), passing: int = 0) -> None:
        self.lasting = list(lasting)
        self.late = late
        self.passing = passing
        self.looks = 0

    async def figures(self) -> dict[str, float]:
        return {}

    def status(self) -> dict[str, str]:
        return {"Threads": "3", "VmRSS": "61440 kB"}

    async def tasks(self) -> list[str]:
        self.looks += 1
        late = self.late if self.looks == leaks.LOOKS else ()
        return [*self.lasting, *late] + [
            f"{'abcdefgh'[self.looks]}{each * 'x'}" for each in range(self.passing)
        ]

    def open_files(self) -> dict[str, int]:
        return {"socket": 5 + (self.passing if self.looks % 2 else 0)}


async def test_what_comes_and_goes_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is of it at one moment, as on a busy machine; what stays is one, also beside that."""
    monkeypatch.setattr(leaks, "LOOK_EVERY_S", 0.0)
    fresh = await leaks.what_there_may_be(cast("Node", Busy("sweep")), 1.0)
    for left in ([], [f"lane {number}" for number in range(9)]):
        used = await leaks.what_stays(cast("Node", Busy("sweep", *left, passing=20)), 1.0)
        assert [finding.what for finding in leaks.leaked(used, fresh)] == (
            ["tasks more than in a fresh server: lane (9)"] if left else []
        )


async def test_what_a_fresh_server_has_only_begun_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just been started does not do at once all that it will always do."""
    monkeypatch.setattr(leaks, "LOOK_EVERY_S", 0.0)
    lanes = [f"lane {number}" for number in range(9)]
    used = await leaks.what_stays(cast("Node", Busy("sweep", *lanes)), 1.0)
    fresh = await leaks.what_there_may_be(cast("Node", Busy("sweep", late=lanes)), 1.0)
    assert not list(leaks.leaked(used, fresh))


def test_tracebacks_are_found() -> None:
    """In a log whose records are indented by a tab, by their last line."""
    log = (
        "2026 ERROR x: failed\n\tTraceback (most recent call last):\n\t  File a\n\t    b()\n\tValueError: no\n"
        "2026 INFO x: Traceback\nTraceback (most recent call last):\n  File a\nKeyError: 'x'\n"
    )
    assert tracebacks(log) == ["ValueError: no", "KeyError: 'x'"]


# -- the parts -----------------------------------------------------------------------------------------------


def test_mails_that_were_not_acknowledged(tmp_path: Path) -> None:
    """A line that was cut off is no mail; before the first there is no file."""
    path = tmp_path / "taken"
    assert read_taken(path) == []
    line = json.dumps({"at": 1.5, "id": "<1>", "subject": "s", "to": ["a", "b"]})
    path.write_text(f"{line}\n{line[:20]}")
    assert read_taken(path) == [Taken(1.5, "<1>", "s", ("a", "b"))]


def test_a_clock_is_shifted(tmp_path: Path) -> None:
    """For whoever looks at the file, at once, and in all that asks for the time."""
    write_shift(tmp_path, 0.0)
    shift = open_shift(tmp_path)
    write_shift(tmp_path, -3600.0)
    assert shift() == -3600.0
    code = (
        "import sys, time, pathlib; real = time.time();"
        "from server import messages, revs; from server.torture import observed;"
        "observed.shift_clocks(observed.open_shift(pathlib.Path(sys.argv[1])));"
        "print([round(each - real) for each in (time.time(), messages.now().timestamp(),"
        " (revs.RevClock().next() >> 16) / 1000)])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == pytest.approx([-3600] * 3, abs=30), done.stderr


def test_no_child_outlives_a_torture_that_is_killed() -> None:
    """Not even by SIGKILL."""
    code = (
        "import pathlib, sys, time; from server.torture.children import Child, Reaper;"
        "child = Child(Reaper(), ['sleep', '600'], log=pathlib.Path('/dev/null'), cwd=pathlib.Path('/'));"
        "child.start(); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    wait_until(lambda: not _is_alive(pid), "the child being killed")


def _is_alive(pid: int) -> bool:
    try:
        # A zombie, whom nobody asks for in a container without an init, is as good as gone.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_server_tells_its_tasks(tmp_path: Path) -> None:
    """At a signal that it does not take for an order."""
    reaper = Reaper()
    node = Node(reaper, tmp_path, {})
    try:
        await node.start()
        assert "sweep" in await node.tasks()
        node.child.signal(signal.SIGSTOP)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("server.torture.node.SOME_S", 0.0)
            with pytest.raises(OSError, match="nothing about its tasks"):
                await node.tasks()
    finally:
        await node.close()
        reaper.close()


# -- the whole -----------------------------------------------------------------------------------------------


class Planted:
    """What is done to a run behind its back, and what it has to say of that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.expected: dict[str, str] = {}
        """What is found, with its kind."""
        self._lines: list[SocketLine] = []
        break_things, settle, close = Torture.break_things, Torture.settle, Torture.close

        async def broken(torture: Torture) -> None:
            self.end_server(torture)
            await break_things(torture)

        async def settled(torture: Torture) -> None:
            wanted = [await self.ask(torture) for _ in range(5)]
            await settle(torture)
            self.harm_store(torture, *wanted[:3])
            self.harm_mail(torture, *wanted[3:])
            self.harm_clients(torture)
            await self.leave_connections(torture)

        async def closed(torture: Torture) -> None:
            for line in self._lines:
                line.close()
            await close(torture)

        monkeypatch.setattr(Torture, "break_things", broken)
        monkeypatch.setattr(Torture, "settle", settled)
        monkeypatch.setattr(Torture, "close", closed)

    @staticmethod
    async def ask(torture: Torture) -> str:
        """The key of a notification, with a mail, for a user without clients."""
        node, ledger, audience = torture.house.node, torture.house.ledger, torture.house.audience
        request = ledger.open("notify", audience.away[:1], [address_of(audience.away[0])])
        door = NotifyDoor(node, ledger, audience)
        await publish_until_acknowledged(door, request, ledger, random.Random(1))
        return request.key

    def end_server(self, torture: Torture) -> None:
        """As if it had done so itself."""
        torture.house.node.child.signal(signal.SIGKILL)
        self.expected["the server ended by itself, with -9"] = "broken"

    def harm_store(self, torture: Torture, lost: str, doubled: str, changed: str) -> None:
        """In its file, which the server knows nothing of."""
        of_title = "WHERE notification = (SELECT key FROM notifications WHERE title = ?)"
        columns = "notification, created_at, updated_at, rev, seen, deleted_at, marks, acked_at, type"
        path = torture.house.node.folder / "data" / "notifications.sqlite3"
        with closing(sqlite3.connect(path, timeout=10)) as store, store:
            statements = {
                f"DELETE FROM documents {of_title}": lost,
                f"INSERT INTO documents (user, id, {columns})"
                f" SELECT user, randomblob(12), {columns} FROM documents {of_title}": doubled,
                f"UPDATE documents SET seen = 1 {of_title}": changed,
            }
            for statement, key in statements.items():
                assert store.execute(statement, [key]).rowcount == 1
        user = torture.house.audience.away[0]
        self.expected[f"{lost} by notify: not in the inbox of {user}"] = "lost"
        self.expected[f"{doubled} by notify: 2 times in the inbox of {user}"] = "duplicated"
        self.expected[f"{changed} of {user} is seen"] = "changed"

    def harm_mail(self, torture: Torture, swallowed: str, again: str) -> None:
        """In what the mail server has written down."""
        taken, address = torture.house.mail.taken, address_of(torture.house.audience.away[0])
        lines = taken.read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["subject"] != swallowed]
        kept += [line for line in lines if json.loads(line)["subject"] == again]
        assert len(kept) == len(lines)
        taken.write_text("".join(kept))
        self.expected[f"{swallowed}: not mailed to {address}"] = "mail"
        self.expected[f"{again}: mailed again to {address}, without need"] = "mail"

    def harm_clients(self, torture: Torture) -> None:
        """In what they know."""
        told, fed = (
            next(each for each in torture.house.clients if type(each) is kind) for kind in (ClientV2, HubFeed)
        )
        document = next(iter(told.model.documents.values()))
        document |= {"seen": not document["seen"], "delete": False}
        self.expected[f"{told.name} has"] = "differs"
        [key, *_] = torture.house.ledger.requests  # which everybody has
        fed._keys.remove(key)
        self.expected[f"{fed.name} was never sent {key}"] = "differs"

    async def leave_connections(self, torture: Torture) -> None:
        """Of which the torture knows nothing."""
        self._lines = [await SocketLine.open(torture.house.node, "/ws/v2") for _ in range(6)]
        self.expected["6 connections (ws_v2) of clients that are gone"] = "leak"
        self.expected["descriptors of the kind socket more than in a fresh server"] = "leak"


@pytest.fixture
def quiet() -> Iterator[None]:
    """The loggers that a torture silences speak again after it."""
    loggers = [logging.getLogger(name) for name in run.NOISY]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_what_is_planted_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of it, as what it is, in a real server; and nothing else. The exit code is 1, and the folder is kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(house.PLANS, "short", house.Plan(1, 1, 2, 0.2, 0.2))
    monkeypatch.setattr(house.House, "_if_found", lambda *_: None)
    monkeypatch.setattr(run, "TOLD_WITHIN_S", 1.0)  # what was planted never comes right
    monkeypatch.setattr(leaks, "QUIET_WITHIN_S", 15.0)
    planted = Planted(monkeypatch)
    assert cli.main(["torture", "--seed", "1", "--only", "cut clients", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    found = {each["what"]: each["kind"] for each in result["findings"]}
    for text, kind in planted.expected.items():
        [what] = [what for what in found if text in what] or [f"not found: {text}; but {found}"]
        assert found.pop(what, what) == kind
    assert found == {}
    assert (result["ok"], result["counts"]["lost"]) == (False, 1)
    [kept] = tmp_path.iterdir()
    assert result["folder"] == str(kept)
    assert json.loads((kept / "result.json").read_text()) == result
    assert {"ledger.jsonl", "server.log"} <= {each.name for each in kept.iterdir()}
    _no_process_is_left_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGTERM, "starting"), (signal.SIGINT, "cut clients")],
    ids=["starting", "broken"],
)
def test_interrupted(number: signal.Signals, when: str, tmp_path: Path, mongod_replica_set: Mongod) -> None:
    """By Ctrl-C, or SIGTERM: no process, no file and no database is left; exit code 130."""
    argv = ["--rounds", "1000", "--only", "cut clients", "--store", "mongodb"]
    with _started(tmp_path, *argv, "--mongodb-url", mongod_replica_set.url) as torture:
        assert torture.stderr is not None
        while when not in (line := torture.stderr.readline()):
            assert line
        torture.send_signal(number)
        said, errors = torture.communicate(timeout=60)
    assert (torture.returncode, said) == (130, ""), errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
    _no_process_is_left_of(tmp_path)
    with MongoClient[dict[str, Any]](mongod_replica_set.url) as client:
        assert not [name for name in client.list_database_names() if name.startswith("torture_")]


@contextmanager
def _started(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, whose temporary folder is here."""
    settings = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "MONGODB_BIN": str(mongod_binary())}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "server", "torture", *arguments],
        cwd=tmp_path,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as torture:
        try:
            yield torture
        except BaseException:
            torture.send_signal(signal.SIGTERM)
            torture.communicate(timeout=30)
            raise


@pytest.mark.parametrize(("findings", "code"), [([], 0), ([Finding("lost", "x")], 1)], ids=["well", "lost"])
def test_the_exit_code(
    findings: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Says whether anything was found, and so do the table and the JSON."""

    async def torture(options: Options, progress: Progress) -> Result:
        return Result(options.seed, options.plan, options.store, findings=findings)

    monkeypatch.setattr(run, "torture", torture)
    assert cli.main(["torture", "--seed", "7"]) == code
    said = capsys.readouterr().out
    assert ("FAILED" in said, "LOST: x" in said) == (bool(code), bool(code))
    assert cli.main(["torture", "--seed", "7", "--json"]) == code
    fields = json.loads(capsys.readouterr().out)
    assert (fields["ok"], fields["counts"]["lost"], fields["seed"]) == (not code, code, 7)


def test_what_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Is said, and nothing is started."""
    assert cli.main(["torture", "--rounds", "-1"]) == 2
    assert cli.main(["torture", "--mongodb-url", "mongodb://x"]) == 2
    assert "needs --store mongodb" in capsys.readouterr().err
    assert cli.main(["torture", "--nodes", "0"]) == 2
    assert cli.main(["torture", "--nodes", "3", "--store", "embedded"]) == 2
    assert "the embedded store is for one" in capsys.readouterr().err
    assert cli.main(["torture", "--backplane", "redis"]) == 2
    assert "needs --nodes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "kill everybody"], "there is no fault kill everybody"),
        (["--store", "mongodb"], "there is no mongod"),
    ],
    ids=["fault", "mongod"],
)
def test_what_is_not_there(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Is said before anything is started, and no folder is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(run, "NOISY", ())
    monkeypatch.setenv("MONGODB_BIN", str(tmp_path / "mongod"))
    assert cli.main(["torture", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_aiosmtpd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence says what is missing, and how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["torture"]) == 1
    assert "pip install aiosmtpd" in capsys.readouterr().err


def test_a_long_list_of_findings() -> None:
    """Is cut, and says so."""
    result = Result(1, "short", "embedded", findings=[Finding("lost", str(number)) for number in range(30)])
    assert "and 10 more" in table(result)


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["embedded", "mongodb"])
def test_the_short_plan(store: str, tmp_path: Path) -> None:
    """Nothing is lost and nothing comes twice, whatever is broken; and nothing is left behind by the torture."""
    with _started(tmp_path, "--store", store, "--json") as torture:
        said, _ = torture.communicate(timeout=560)
    result = json.loads(said)
    assert (torture.returncode, result["findings"]) == (0, []), (result["seed"], result["folder"])
    assert result["acknowledged"] == result["requests"] > 100
    kinds = {
        "kill server",
        "restart server",
        "freeze server",
        "cut clients",
        "clients stop reading",
        "clock back",
    }
    kinds |= {"full disk"} if store == "embedded" else {"kill mongod", "freeze mongod"}
    assert kinds <= result["faults"].keys()
    assert not is_ci() or result["left_out"] == []
    assert not list(tmp_path.iterdir())
    _no_process_is_left_of(tmp_path)


FAULTS = {
    "redis": (
        24,
        [{"cut off from redis"}, {"kill server", "kill mongod", "cut off from mongod", "kill redis"}],
    ),
    "mongodb": (4, [{"kill server"}, {"kill server", "kill mongod", "cut off from mongod"}]),
}
"""For each backplane a seed, and what it has in the first round and in the second."""


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backplane", FAULTS)
def test_three_nodes(backplane: str, tmp_path: Path) -> None:
    """Each way between nodes, over a replica set of three: nothing is lost and nothing comes twice, whether one thing
    is broken or several are at once."""
    seed, (first, second) = FAULTS[backplane]
    only = [word for fault in sorted(first | second) for word in ("--only", fault)]
    arguments = [
        "--nodes",
        "3",
        "--backplane",
        backplane,
        "--rounds",
        "2",
        "--seed",
        str(seed),
        *only,
        "--json",
    ]
    with _started(tmp_path, *arguments) as torture:
        said, errors = torture.communicate(timeout=560)
    assert said, errors
    result = json.loads(said)
    assert (torture.returncode, result["findings"]) == (0, []), result["folder"]
    assert result["faults"].keys() == first | second
    assert result["acknowledged"] == result["requests"] > 50
    assert result["store"] == f"mongodb, 3 nodes over {backplane}"
    assert not list(tmp_path.iterdir())
    _no_process_is_left_of(tmp_path)


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("quiet")
# pymongo 4.20 forgets the socket of an attempt to connect that its own close cancels.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_node_that_reads_nothing_after_a_gap_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By those of its clients that cannot ask what they missed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MONGODB_BIN", str(mongod_binary()))
    monkeypatch.setattr(Node, "launcher", "tests.support.deaf_node")
    # So many users that some of their connections are on the node that is cut off.
    monkeypatch.setitem(house.PLANS, "short", house.Plan(1, 3, 4, 0.1, 0.2))
    monkeypatch.setattr(house, "RabbitMQ", NotInstalled)
    monkeypatch.setattr(run, "TOLD_WITHIN_S", 1.0)  # what was planted never comes right
    monkeypatch.setattr(Torture, "_look_for_leaks", AsyncNothing())
    monkeypatch.setattr(faults, "CUT_OFF_S", (4.0, 5.0))
    assert cli.main(["torture", "--nodes", "2", "--seed", "1", "--only", "cut off from redis", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    found = result["findings"]
    assert {each["kind"] for each in found} == {"differs"}, found
    _no_process_is_left_of(tmp_path)


class NotInstalled:
    name = "rabbitmq"

    @staticmethod
    def program() -> None:
        return None


class AsyncNothing:
    async def __call__(self) -> None:
        """Nothing."""


def _no_process_is_left_of(folder: Path) -> None:
    """But for a moment: what RabbitMQ starts epmd by ends by itself."""
    wait_until(lambda: not _processes_of(folder), "all processes having ended")


def _processes_of(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and process.name != str(os.getpid()):
            found.append(command)
    return found


def test_requests_are_told_apart() -> None:
    """Each has a key of its own, and is found by it."""
    ledger = Ledger()
    requests = [ledger.open("notify", [ALICE]) for _ in range(3)]
    assert [ledger.requests[each.key] for each in requests] == requests
    later = requests[2]
    later.sent_at = 50.0
    later.acknowledged_at = 51.0
    assert ledger.first_acknowledged_after(49.0, ["notify"]) == 51.0
    assert ledger.first_acknowledged_after(49.0, ["redis"]) is None
    assert isinstance(later, Request)
