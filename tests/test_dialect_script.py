"""docs/conformance: the script is what a server sends, each rule in it can fail, and clients keep to it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.conformance.model import InboxModel
from tests.support.available import unavailable
from tests.support.dialect_script import FILE, SCENARIOS, recorded, steps

CLIENT = FILE.with_name("client.mjs")


async def test_the_script_is_what_the_server_sends() -> None:
    """Recorded anew it is the same: `python -m tests.support.dialect_script` where that is meant to change."""
    assert await recorded() == FILE.read_text(encoding="utf-8")


def _wrong(make: Callable[[], Any]) -> list[str]:
    """The steps after which a client has not what it should have."""
    found: list[str] = []
    client = make()
    for step in steps():
        if step["step"] == 1:
            client = make()
        for frame in step["frames"]:
            client.hear(frame["name"], frame["data"])
        if _state(client) != step["state"]:
            found.append(f"{step['scenario']} {step['step']}")
    return found


def _state(client: InboxModel) -> dict[str, Any]:
    must = [name for name, must in (("page", client.must_page), ("sync", client.must_sync)) if must]
    inbox = [[id_, seen] for id_, seen in client.inbox.items()]
    return {"inbox": inbox, "since": client.since, "counts": client.counts, "must": must}


def test_the_client_of_the_kit_keeps_to_it() -> None:
    """After each step."""
    assert _wrong(InboxModel) == []


@pytest.mark.node
def test_the_client_in_javascript_keeps_to_it(node: Path) -> None:
    """Run as docs/protocol.md says."""
    ended = subprocess.run([node, CLIENT], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{len(steps())} steps, all as they have to be\n"


@pytest.mark.node
def test_the_client_in_javascript_tells_what_is_wrong(node: Path, tmp_path: Path) -> None:
    """By the step, with both states; exit code 1."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    step = json.loads(lines[1])
    step["state"]["inbox"][0][1] = True
    file = tmp_path / "script.jsonl"
    file.write_text("\n".join([lines[0], json.dumps(step)]))
    ended = subprocess.run([node, CLIENT, file], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stdout.startswith(f"{step['scenario']}, step 2: {step['note']}\n  expected")


@pytest.mark.node
def test_the_client_for_pages_keeps_to_it(node: Path) -> None:
    """What it holds of an inbox: static/example/notifications/view.js."""
    script = Path(__file__).parent / "node" / "dialect_script.mjs"
    ended = subprocess.run([node, script, FILE], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


# -- clients that break a rule -------------------------------------------------------------------------------


class LastOneWins(InboxModel):
    def _take(self, document: Any) -> None:
        self.documents[document["_id"]] = dict(document)


class FirstOneWins(InboxModel):
    def _take(self, document: Any) -> None:
        if document["_id"] not in self.documents or "title" not in document:
            super()._take(document)


class ForgetsTombstones(InboxModel):
    def hear(self, name: str, data: Any) -> None:
        super().hear(name, data)
        self.documents = {id_: each for id_, each in self.documents.items() if not each["delete"]}


class ChangesTombstones(InboxModel):
    """By what was told of the document that they became again."""

    def _change(self, name: str, data: Any) -> None:
        super()._change(name, data)
        for id_ in data.get("ids", ()):
            if id_ in self.documents and "changed" not in data:
                self.documents[id_]["rev"] = max(self.documents[id_]["rev"], data["rev"] or "")


class KeepsOldRevs(InboxModel):
    """A change leaves the document its rev."""

    def _change(self, name: str, data: Any) -> None:
        before = {id_: each["rev"] for id_, each in self.documents.items()}
        super()._change(name, data)
        for id_, rev in before.items():
            self.documents[id_]["rev"] = rev


class TakesUptoAsRev(InboxModel):
    def _change(self, name: str, data: Any) -> None:
        super()._change(name, data)
        if data.get("all"):
            for each in self.documents.values():
                each["rev"] = max(each["rev"], f"{int(data['upto'], 16) + 2**40:016x}")


class SeesAllWhateverItsRev(InboxModel):
    def _change(self, name: str, data: Any) -> None:
        super()._change(name, {**data, "upto": "f" * 16} if data.get("all") else data)


class ForgetsWhatAllWasUpTo(InboxModel):
    def hear(self, name: str, data: Any) -> None:
        super().hear(name, data)
        self._all_seen_upto = ""


class DropsAllAtEachJoin(InboxModel):
    def _joined(self, data: Any) -> None:
        super()._joined(data)
        self.documents.clear()


class KeepsWhatItHasAtReset(InboxModel):
    def _sync(self, data: Any) -> None:
        before = dict(self.documents)
        super()._sync(data)
        self.documents = before | self.documents


class DoesNotReadAnew(InboxModel):
    def _sync(self, data: Any) -> None:
        super()._sync(data)
        self.must_page = False


class KnowsNoFloor(InboxModel):
    def _sync(self, data: Any) -> None:
        super()._sync({**data, "floor": None})


class DropsTheFloorItself(InboxModel):
    def _sync(self, data: Any) -> None:
        super()._sync(data)
        if data["floor"] is not None:
            kept = {id_: each for id_, each in self.documents.items() if each["createdAt"] > data["floor"]}
            self.documents = kept


class AdvancesByPushes(InboxModel):
    def hear(self, name: str, data: Any) -> None:
        super().hear(name, data)
        if name == "notification":
            self.since = data["rev"]


class WaitsForTheLastChunk(InboxModel):
    """With nothing to go on from before that."""

    def _sync(self, data: Any) -> None:
        since = self.since
        super()._sync(data)
        self.since = since if data["more"] else self.since


class ForgetsSinceAtJoin(InboxModel):
    def _joined(self, data: Any) -> None:
        super()._joined(data)
        self.since = data["since"]


class IsDeafToMissed(InboxModel):
    def hear(self, name: str, data: Any) -> None:
        if name != "missed":
            super().hear(name, data)


class CountsByItself(InboxModel):
    def hear(self, name: str, data: Any) -> None:
        super().hear(name, data)
        if name == "notification" and self.counts:
            self.counts = {**self.counts, "unseen": self.counts["unseen"] + 1}


class IsWholeAfterOnePage(InboxModel):
    def _content(self, data: Any) -> None:
        super()._content({**data, "older": False})


BROKEN = [
    LastOneWins,
    FirstOneWins,
    ForgetsTombstones,
    ChangesTombstones,
    KeepsOldRevs,
    TakesUptoAsRev,
    SeesAllWhateverItsRev,
    ForgetsWhatAllWasUpTo,
    DropsAllAtEachJoin,
    KeepsWhatItHasAtReset,
    DoesNotReadAnew,
    KnowsNoFloor,
    DropsTheFloorItself,
    AdvancesByPushes,
    WaitsForTheLastChunk,
    ForgetsSinceAtJoin,
    IsDeafToMissed,
    CountsByItself,
    IsWholeAfterOnePage,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_client_that_breaks_a_rule_is_caught(broken: type[InboxModel]) -> None:
    """By at least one step."""
    assert _wrong(broken)


def test_every_kind_of_frame_is_in_the_script() -> None:
    """And each scenario."""
    names = {frame["name"] for step in steps() for frame in step["frames"]}
    frames = "joined content sync notification restored seen unseen delete counts missed error bye ack"
    assert names >= set(frames.split())
    assert list(dict.fromkeys(step["scenario"] for step in steps())) == list(SCENARIOS)


@pytest.fixture
def node() -> Path:
    found = shutil.which("node")
    if found is None:
        unavailable("node", "node is not there")
    return Path(found)
