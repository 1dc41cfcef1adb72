"""server/conformance: this server keeps every rule, over each store; and a server that breaks one is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.conformance.client import Broken
from server.conformance.model import Fields, InboxModel
from server.conformance.run import BROKEN, KEPT, NOT_CHECKED, RULES, Outcome, check
from server.conformance.stage import DOORS, Stage
from server.conformance.target import Target
from tests.support.command import STORES, store_settings
from tests.support.feeds import add_key, metrics
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer
from tests.support.tampering import Frame, Tamper, tampering

WAIT_S = 30.0
"""For a server that is right: only the end of a hang."""

SHORT_S = 1.0
"""For one that is wrong: what it never says is waited for so long. To be wrong in another way is no harm."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("conformance")) as running:
        yield running


@pytest.fixture(scope="module")
def key(server: RunningServer) -> str:
    return add_key(server, "default", "conformance", "publish", "listen", "admin")


async def outcomes(
    url: str, key: str | None, *names: str, wait_s: float = WAIT_S, doors: tuple[str, ...] = DOORS
) -> list[Outcome]:
    target = Target(url, key, wait_s)
    try:
        return await check(target, doors=doors, names=names or None, within_s=600)
    finally:
        target.close()


def broken(found: list[Outcome]) -> list[str]:
    return [
        f"{each.rule} at {each.door}: {each.expected} | {each.seen}"
        for each in found
        if each.result == BROKEN
    ]


def figure(server: RunningServer, name: str) -> float:
    """Over all doors; those that have no connection are left out."""
    lines = [line for line in metrics(server).splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", STORES)
async def test_this_server_keeps_every_rule(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """At each door, and nothing is left open."""
    with store_settings(kind, request) as settings, RunningServer(tmp_path, **settings) as server:
        found = await outcomes(server.url, add_key(server, "default", "all", "publish", "listen", "admin"))
        assert broken(found) == []
        assert {each.result for each in found} == {KEPT}
        assert len(found) == sum(len(rule.doors) for rule in RULES)
        assert figure(server, "notification_connections_opened_total") > len(RULES)
        wait_until(lambda: figure(server, "notification_connections") == 0, "all connections being closed")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_without_a_key_the_demo_users_serve(tmp_path: Path) -> None:
    """Rules that need a token, or a sign-out, are not checked."""
    with RunningServer(tmp_path) as server:
        found = await outcomes(server.url, None)
    assert broken(found) == []
    left_out = {(each.rule, each.door) for each in found if each.result == NOT_CHECKED}
    others = {(rule.name, door) for rule in RULES for door in rule.doors if door in ("events", "rest")}
    sockets = {(name, door) for name in ("sign-out", "token-end") for door in ("sockjs", "ws_v2")}
    assert left_out == others | sockets


async def test_a_device_at_another_node_hears_of_a_change_a_moment_later(
    server: RunningServer, key: str
) -> None:
    """Which breaks no rule; never to hear of it does."""
    stage = Stage(Target(server.url, key, wait_s=10), "ws_v2")
    user = await stage.user()
    device, late = await stage.join(user), await stage.join(user)
    await stage.target.publish(user, "new")
    await stage.must_have_all(device, user)
    # What is pushed to this one takes until it has asked a second time.
    await late.ask("counts")
    known, late.model = late.model, InboxModel()
    ask, asked = late.ask, 0

    async def ask_late(name: str, data: Fields | None = None) -> Fields:
        nonlocal asked
        asked += 1
        if asked == 2:
            late.model = known
        return await ask(name, data)

    late.ask = ask_late  # type: ignore[method-assign]
    await stage.must_have_all(late, user)
    asked, late.model = 2, InboxModel()
    with pytest.raises(Broken):
        await stage.must_have_all(late, user)
    await stage.close()


async def test_rules_have_names_of_their_own() -> None:
    """By which they are asked for."""
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert len({rule.text for rule in RULES}) == len(RULES)


async def test_the_proxy_of_these_tests_is_right_by_itself(server: RunningServer, key: str) -> None:
    """Else it would be the proxy that is caught."""
    async with tampering(server.port) as url:
        found = await outcomes(url, key, *{rule for _, rule in WRONG}, doors=("ws_v2", "events", "rest"))
        assert broken(found) == []
        assert {each.result for each in found} == {KEPT}


# -- wrong servers -------------------------------------------------------------------------------------------


class NoRev(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "notification":
            del frame["data"]["rev"]
        return [frame]


class StalePush(Tamper):
    """The first push of a document comes once more, behind a change of it."""

    def __init__(self) -> None:
        self._first: Frame | None = None

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "notification":
            self._first = self._first or frame
        elif frame["name"] == "seen" and "id" not in frame and self._first:
            return [frame, self._first]
        return [frame]


class StaleChange(Tamper):
    """A change is told after what was answered since."""

    def __init__(self) -> None:
        self._held: list[Frame] = []

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "seen" and "id" not in frame:
            self._held.append(frame)
        elif frame["name"] in ("content", "sync"):
            held, self._held = self._held, []
            return [frame, *held]
        return [frame]


class DelayedForNothing(Tamper):
    """Who waits for no answer to a join is told to wait."""

    def frame(self, frame: Frame) -> list[Frame]:
        delayed = {"name": "delayed", "data": {"code": "store_unavailable", "message": "wait"}}
        return [frame, delayed] if frame["name"] == "joined" else [frame]


class RepeatedChunk(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        return [frame, frame] if frame["name"] == "sync" and frame["data"]["more"] else [frame]


class LostChunk(Tamper):
    """The first one of several."""

    def __init__(self) -> None:
        self._is_first = True

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "sync" and frame["data"]["more"] and self._is_first:
            self._is_first = False
            return []
        return [frame]


class EarlyEnd(Tamper):
    """What a sync says first is said to be all."""

    def __init__(self) -> None:
        self._ended: set[Any] = set()

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] != "sync":
            return [frame]
        if frame["id"] in self._ended:
            return []
        if frame["data"]["more"]:
            self._ended.add(frame["id"])
        return [{**frame, "data": {**frame["data"], "more": False}}]


class NoTombstones(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "sync":
            frame["data"]["documents"] = [each for each in frame["data"]["documents"] if not each["delete"]]
        return [frame]


class WrongOrderOfChanges(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "sync":
            frame["data"]["documents"].reverse()
        return [frame]


class StuckUpto(Tamper):
    """Chunks do not say where they go on."""

    def __init__(self) -> None:
        self._upto: str | None = None

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "sync":
            self._upto = self._upto or frame["data"]["upto"]
            frame["data"]["upto"] = self._upto
        return [frame]


class TrustsPushes(Tamper):
    """What was pushed is not told again."""

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "sync" and not frame["data"]["more"]:
            frame["data"]["documents"] = []
        return [frame]


class NoReset(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "sync":
            frame["data"]["reset"] = False
        return [frame]


class EarlySince(Tamper):
    """A join with `since` gives something to go on from before what has changed has come."""

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "joined" and frame["data"]["more"]:
            frame["data"]["since"] = "0123456789abcdef01234567.0000000000000001"
        return [frame]


class WrongCounts(Tamper):
    """Of all types they are right."""

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "counts":
            frame["data"]["unseen"] += 1
        return [frame]


class CountsBehind(Tamper):
    """Each push has the counts of the one before."""

    def __init__(self) -> None:
        self._last: Frame | None = None

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] != "counts" or "id" in frame:
            return [frame]
        last, self._last = self._last, frame
        return [last] if last else []


class NoCounts(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        return [] if frame["name"] == "counts" and "id" not in frame else [frame]


class LostPush(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        return [] if frame["name"] == "delete" and "id" not in frame else [frame]


class AnswerBeforePush(Tamper):
    def __init__(self) -> None:
        self._held: list[Frame] = []

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] in ("unseen", "restored") and "id" not in frame:
            self._held.append(frame)
            return []
        held, self._held = self._held, []
        return [frame, *held]


class AnswerTwice(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        return [frame, frame] if frame["name"] == "counts" and "id" in frame else [frame]


class AnswersInAnotherOrder(Tamper):
    """A page comes behind the answer to the next command."""

    def __init__(self) -> None:
        self._held: list[Frame] = []

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "content" and frame.get("id") == "text as id":
            self._held.append(frame)
            return []
        if "id" in frame:
            held, self._held = self._held, []
            return [frame, *held]
        return [frame]


class OtherId(Tamper):
    """What was a number comes back as a text."""

    def frame(self, frame: Frame) -> list[Frame]:
        return [{**frame, "id": str(frame["id"])}] if isinstance(frame.get("id"), int) else [frame]


class TellsAllIds(Tamper):
    """A change is answered with what was asked for, and not with what it really changed."""

    def __init__(self) -> None:
        self._asked: dict[Any, Any] = {}

    def command(self, command: Frame) -> list[Frame]:
        data = command.get("data")
        self._asked[str(command.get("id"))] = data.get("ids") if isinstance(data, dict) else None
        return [command]

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "seen" and "id" in frame and not frame["data"].get("all"):
            frame["data"]["ids"] = [each for each in self._asked[str(frame["id"])] if len(each) == 24]
        return [frame]


class AnotherRev(Tamper):
    """The answer has not the rev that is pushed."""

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "delete" and "id" in frame and frame["data"]["rev"]:
            frame["data"]["rev"] = "f" * 16
        return [frame]


class AllHasNoBound(Tamper):
    """Everything becomes seen."""

    def command(self, command: Frame) -> list[Frame]:
        data = command.get("data")
        if isinstance(data, dict) and data.get("all") is True:
            data.pop("upto", None)
        return [command]


class AllIsToldWithoutBound(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "seen" and "id" not in frame and frame["data"].get("all"):
            frame["data"]["upto"] = "f" * 16
        return [frame]


class RestoredUnseen(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "restored":
            frame["data"]["seen"] = False
        return [frame]


class OldestFirst(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "content":
            frame["data"]["documents"].reverse()
        return [frame]


class NeverOlder(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "content":
            frame["data"]["older"] = False
        return [frame]


class NoFilter(Tamper):
    def command(self, command: Frame) -> list[Frame]:
        if command.get("name") == "content" and isinstance(command.get("data"), dict):
            command["data"].pop("seen", None)
        return [command]


class TextBroken(Tamper):
    """What is not ASCII is lost."""

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "notification":
            frame["data"]["content"] = frame["data"]["content"].encode("ascii", "replace").decode()
        return [frame]


class NoTicket(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "joined":
            frame["data"]["ticket"] = None
        return [frame]


class PushesAfterLeave(Tamper):
    """A command is not heard."""

    def __init__(self) -> None:
        self._left: list[Any] = []

    def command(self, command: Frame) -> list[Frame]:
        if command.get("name") != "leave":
            return [command]
        self._left.append(command.get("id"))
        return [{"name": "counts", "id": command.get("id")}]

    def frame(self, frame: Frame) -> list[Frame]:
        return [{**frame, "name": "leave", "data": {}}] if frame.get("id") in self._left else [frame]


class DocumentsUnasked(Tamper):
    """As the classic dialect has it."""

    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] != "joined":
            return [frame]
        document = {
            **dict.fromkeys(("_id", "nid"), "0" * 24),
            **dict.fromkeys(("type", "title", "content", "url", "icon", "image"), ""),
            **dict.fromkeys(("createdAt", "updatedAt"), "2026-11-21T09:30:00.123Z"),
            **{"_userId": "x", "deletedAt": None, "delete": False, "seen": False, "rev": "0" * 15 + "1"},
        }
        return [frame, {"name": "notification", "data": document}]


class NoField(Tamper):
    def frame(self, frame: Frame) -> list[Frame]:
        if frame["name"] == "error":
            frame["data"].pop("field", None)
        return [frame]


class OtherCloseCode(Tamper):
    def close_code(self, code: int) -> int:
        return 1000


class LeakedId(Tamper):
    """Pushes of a stream have an id, from which one could not go on."""

    def event(self, id_: str | None, frame: Frame) -> list[tuple[str | None, Frame]]:
        return [("x" if frame["name"] == "notification" else id_, frame)]


class NoIdOfASync(Tamper):
    def event(self, id_: str | None, frame: Frame) -> list[tuple[str | None, Frame]]:
        return [(None if frame["name"] == "sync" else id_, frame)]


class DeafStream(Tamper):
    """Of what is asked for elsewhere it tells nothing."""

    def event(self, id_: str | None, frame: Frame) -> list[tuple[str | None, Frame]]:
        return [] if frame["name"] == "unseen" else [(id_, frame)]


class AlwaysUnchanged(Tamper):
    """304 to whoever was answered once."""

    def __init__(self) -> None:
        self._is_known = False

    def request(self, method: str, path: str, headers: dict[str, str]) -> None:
        self._is_known = len(headers.get("If-None-Match", "")) > 30

    def reply(
        self, method: str, path: str, status: int, headers: dict[str, str], fields: Any
    ) -> tuple[int, Any]:
        return (304, None) if self._is_known else (status, fields)


class NeverUnchanged(Tamper):
    def request(self, method: str, path: str, headers: dict[str, str]) -> None:
        headers.pop("If-None-Match", None)


class PollsLoseTombstones(Tamper):
    def reply(
        self, method: str, path: str, status: int, headers: dict[str, str], fields: Any
    ) -> tuple[int, Any]:
        if "since=" in path and fields and "documents" in fields:
            fields["documents"] = [each for each in fields["documents"] if not each["delete"]]
        return status, fields


class NoProblems(Tamper):
    """Refusals are not those of RFC 9457."""

    def reply(
        self, method: str, path: str, status: int, headers: dict[str, str], fields: Any
    ) -> tuple[int, Any]:
        if status >= 400:
            headers["Content-Type"] = "application/json"
            return status, {"error": "refused"}
        return status, fields


class ChangesNothing(Tamper):
    """Over HTTP, and says it did."""

    def reply(
        self, method: str, path: str, status: int, headers: dict[str, str], fields: Any
    ) -> tuple[int, Any]:
        if method in ("PATCH", "DELETE") and fields and fields.get("rev"):
            fields["rev"] = "0" * 16
        return status, fields


WRONG: list[tuple[Callable[[], Tamper], str]] = [
    (NoRev, "documents"),
    (StalePush, "counts"),
    (StaleChange, "restored"),
    (DelayedForNothing, "join"),
    (RepeatedChunk, "chunks"),
    (LostChunk, "chunks"),
    (EarlyEnd, "chunks"),
    (NoTombstones, "changes-come"),
    (NoTombstones, "away"),
    (WrongOrderOfChanges, "away"),
    (StuckUpto, "chunks"),
    (TrustsPushes, "pushes-and-since"),
    (NoReset, "reset"),
    (EarlySince, "join-with-since"),
    (WrongCounts, "counts"),
    (CountsBehind, "counts"),
    (NoCounts, "counts"),
    (LostPush, "changes"),
    (AnswerBeforePush, "changes"),
    (AnswerTwice, "order"),
    (AnswersInAnotherOrder, "order"),
    (OtherId, "join"),
    (TellsAllIds, "really-changed"),
    (AnotherRev, "changes"),
    (AllHasNoBound, "all-up-to"),
    (AllIsToldWithoutBound, "all-up-to"),
    (RestoredUnseen, "restored"),
    (OldestFirst, "pages"),
    (NeverOlder, "pages"),
    (NoFilter, "filters"),
    (TextBroken, "documents"),
    (NoTicket, "tickets"),
    (PushesAfterLeave, "leave"),
    (DocumentsUnasked, "join"),
    (NoField, "refusals"),
    (OtherCloseCode, "sign-out"),
    (LeakedId, "stream"),
    (NoIdOfASync, "stream-goes-on"),
    (DeafStream, "stream-of-changes"),
    (AlwaysUnchanged, "etag"),
    (NeverUnchanged, "etag"),
    (PollsLoseTombstones, "polled-changes"),
    (NoProblems, "refused-requests"),
    (ChangesNothing, "asked-changes"),
]
"""And a rule by which each is caught."""


@pytest.mark.parametrize(
    ("make", "rule"), WRONG, ids=lambda each: each if isinstance(each, str) else each.__name__
)
async def test_a_server_that_breaks_a_rule_is_caught(
    server: RunningServer, key: str, make: Callable[[], Tamper], rule: str
) -> None:
    """By that rule."""
    async with tampering(server.port, make) as url:
        found = await outcomes(url, key, rule, wait_s=SHORT_S, doors=("ws_v2", "events", "rest"))
    assert [each.result for each in found] == [BROKEN], found
    assert found[0].expected
    assert found[0].seen
