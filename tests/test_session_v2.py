"""Tests of server/conversations/v2.py, on the real core and store; only the transport is left out."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from server.conversations import v2 as module
from server.errors import StoreUnavailable
from server.messages import Added, Counted, Counts, Document, Seen, altered, now
from server.revs import to_wire
from server.session import Session
from tests.support.core import ALICE, MAX_PENDING, PAGE_LIMIT, Core, open_core
from tests.support.recording import Message, RecordingConnection

NOBODYS = "0123456789abcdef01234567"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


def say(connection: RecordingConnection, name: str, data: Any = None, id_: Any = None) -> None:
    """The client sends a command."""
    assert connection.session is not None
    message = {"name": name, "data": data} | ({} if id_ is None else {"id": id_})
    waiting = connection.session.receive(json.dumps(message))
    if inspect.iscoroutine(waiting):
        waiting.close()  # it sends on all the same


async def answer(connection: RecordingConnection, id_: Any) -> Message:
    """The next answer to a request; pushes before it are passed over."""
    while True:
        message = await connection.next()
        if message.beside.get("id") == id_:
            return message


async def ask(connection: RecordingConnection, name: str, data: Any = None) -> Message:
    """What a command is answered with."""
    ask.count += 1  # type: ignore[attr-defined]
    say(connection, name, data, ask.count)  # type: ignore[attr-defined]
    return await answer(connection, ask.count)  # type: ignore[attr-defined]


ask.count = 0  # type: ignore[attr-defined]


async def join(core: Core, login: str = "alice", **data: Any) -> tuple[RecordingConnection, Message]:
    connection = core.connect()
    proof = {} if "ticket" in data else {"login": login, "password": login}
    return connection, await ask(connection, "join", {**proof, "v": 2, **data})


def ids(documents: list[Any]) -> list[str]:
    return [each["_id"] if isinstance(each, dict) else each.id for each in documents]


# -- joining -------------------------------------------------------------------------------------------------


async def test_a_join_is_answered_once_with_all_that_a_client_needs(core: Core) -> None:
    """Its user, where it goes on from, how many documents there are, and a ticket; no document comes unasked."""
    await core.fill("alice", 3)
    connection, joined = await join(core)
    assert joined.name == "joined"
    data = joined.data
    assert (data["v"], data["user"], data["more"], data["floor"], data["heartbeat_s"]) == (
        2,
        "alice",
        False,
        None,
        25.0,
    )
    assert data["counts"] == {"unseen": 3, "total": 3, "types": {"": {"unseen": 3, "total": 3}}}
    assert data["since"]
    assert data["ticket"]
    assert (await ask(connection, "leave")).data == {}
    assert connection.received() == []


async def test_who_names_no_version_speaks_the_classic_dialect(core: Core) -> None:
    """Also on a connection on which dialect 2 was spoken before."""
    connection, _ = await join(core)
    say(connection, "join", {"login": "alice", "password": "alice"})
    assert [(await connection.next()).name for _ in range(2)] == ["notification", "count"]
    await core.notify("alice")
    assert isinstance((await connection.next()).data, list)


@pytest.mark.parametrize("version", [0, 3, "2", True, 2.0, []], ids=repr)
async def test_a_version_that_there_is_not_is_refused(core: Core, version: Any) -> None:
    """By its field, and the connection lives on."""
    connection = core.connect()
    say(connection, "join", {"login": "alice", "password": "alice", "v": version})
    assert (await connection.next()).data["field"] == "data.v"
    assert not connection.is_closed


async def test_a_door_for_dialect_2_alone_needs_no_version(core: Core) -> None:
    """And takes no other one."""
    connection = RecordingConnection()
    connection.session = Session(connection, core.services, only_version=2)
    refused = await ask(connection, "join", {"login": "alice", "password": "alice", "v": 1})
    assert (refused.name, refused.data["field"]) == ("error", "data.v")
    assert (await ask(connection, "join", {"login": "alice", "password": "alice"})).name == "joined"


async def test_a_join_that_fails_changes_nothing(core: Core) -> None:
    """Who was there stays, in the dialect they speak."""
    connection = await core.join("alice")
    refused = await ask(connection, "join", {"login": "bob", "password": "wrong", "v": 2})
    assert (refused.name, refused.data["code"], refused.data["retryable"]) == (
        "error",
        "bad_credentials",
        False,
    )
    await core.notify("alice")
    assert isinstance((await connection.next()).data, list)


async def test_without_a_user_there_is_only_join(core: Core) -> None:
    """Every other command is answered by an error with its id; a `ping` asks of nobody's inbox."""
    connection = RecordingConnection()
    connection.session = Session(connection, core.services, only_version=2)
    for name, data in COMMANDS.items():
        if name == "ping":
            assert (await ask(connection, name, data)).name == "pong"
        elif name != "leave":
            assert (await ask(connection, name, data)).data["code"] == "not_joined"


COMMANDS: dict[str, Any] = {
    "sync": {"since": "x"},
    "content": {},
    "seen": {"ids": []},
    "unseen": {"ids": []},
    "delete": {"ids": []},
    "restore": {"ids": []},
    "ack": {"ids": []},
    "counts": None,
    "ping": None,
    "leave": None,
}


async def test_a_join_waits_for_a_store_that_is_away(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that it waits, again and again; one answer comes when the store is back."""
    monkeypatch.setattr(module, "JOIN_RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(module, "DELAYED_AFTER_S", 0.01)
    monkeypatch.setattr(module, "DELAYED_EACH_S", 0.01)
    core.store.goes_away()
    connection = core.connect()
    say(connection, "join", {"login": "alice", "password": "alice", "v": 2}, 1)
    for _ in range(3):
        told = await connection.next()
        assert (told.name, told.data["code"]) == ("delayed", "store_unavailable")
    core.store.is_back()
    assert (await answer(connection, 1)).name == "joined"
    await core.notify("alice")
    assert "delayed" not in [(await connection.next()).name, *(told.name for told in connection.received())]


async def test_a_join_that_waits_for_a_store_that_hangs_is_told_so(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the store's time is over: nobody is to take the connection for dead."""
    monkeypatch.setattr(module, "DELAYED_AFTER_S", 0.01)
    gate = core.store.hold("welcome")
    connection = core.connect()
    say(connection, "join", {"login": "alice", "password": "alice", "v": 2}, 1)
    assert (await connection.next()).name == "delayed"
    gate.open()
    assert (await answer(connection, 1)).name == "joined"


# -- tickets -------------------------------------------------------------------------------------------------


async def test_a_ticket_is_as_good_as_a_password(core: Core) -> None:
    """And gets the next ticket."""
    _, first = await join(core)
    _, second = await join(core, ticket=first.data["ticket"])
    assert second.data["user"] == "alice"
    _, third = await join(core, ticket=second.data["ticket"])
    assert third.data["user"] == "alice"


async def test_a_sign_out_ends_the_tickets_from_before(core: Core) -> None:
    """Not those from after."""
    _, joined = await join(core)
    await core.tenants.sign_out(*ALICE)
    _, refused = await join(core, ticket=joined.data["ticket"])
    assert refused.data["code"] == "bad_credentials"
    _, joined = await join(core)
    _, again = await join(core, ticket=joined.data["ticket"])
    assert again.name == "joined"


@pytest.mark.parametrize("ticket", ["x", "a.b.c"])
async def test_what_is_no_ticket_is_refused(core: Core, ticket: str) -> None:
    """As a wrong token is."""
    _, refused = await join(core, ticket=ticket)
    assert refused.data["code"] == "bad_credentials"


async def test_a_ticket_is_no_token_and_a_token_is_no_ticket(core: Core) -> None:
    """Though the same secret signs them."""
    _, joined = await join(core)
    connection = core.connect()
    refused = await ask(connection, "join", {"token": joined.data["ticket"], "v": 2})
    assert refused.data["code"] == "bad_credentials"
    token, _ = core.tokens.make("default", "alice", "", 60)
    _, refused = await join(core, ticket=token)
    assert refused.data["code"] == "bad_credentials"


# -- reading -------------------------------------------------------------------------------------------------


async def test_pages_come_newest_first_as_objects(core: Core) -> None:
    """From before the last one of the page before, until there are no older ones."""
    documents = await core.fill("alice", PAGE_LIMIT + 2)
    connection, _ = await join(core)
    first = (await ask(connection, "content")).data
    assert ids(first["documents"]) == ids(documents[:1:-1])
    assert first["older"]
    second = (await ask(connection, "content", {"before": ids(first["documents"])[-1]})).data
    assert (ids(second["documents"]), second["older"]) == (ids(documents[1::-1]), False)
    assert first["documents"][0]["_userId"] == "alice"


async def test_pages_may_be_of_one_type_and_of_the_unseen(core: Core) -> None:
    """Either, both, or none."""
    [a], [b], [c] = [await core.notify("alice", type=type_) for type_ in ("order", "order", "chat")]
    connection, _ = await join(core)
    await ask(connection, "seen", {"ids": [a.id]})

    async def found(**which: Any) -> list[str]:
        return ids((await ask(connection, "content", which)).data["documents"])

    assert await found(type="order") == ids([b, a])
    assert await found(seen=False) == ids([c, b])
    assert await found(type="order", seen=True) == ids([a])
    assert await found(type="none") == []


async def test_counts_are_told_when_asked(core: Core) -> None:
    """All of them, by their types."""
    await core.notify("alice", type="order")
    connection, _ = await join(core)
    counts = (await ask(connection, "counts")).data
    assert counts == {"unseen": 1, "total": 1, "types": {"order": {"unseen": 1, "total": 1}}}


# -- catching up ---------------------------------------------------------------------------------------------


async def test_a_sync_brings_all_that_changed_since(core: Core) -> None:
    """New, seen and deleted documents, as they are now; and where to go on from."""
    old = await core.fill("alice", 3)
    first, joined = await join(core)
    new = await core.fill("alice", 1)
    await core.inbox.mark_seen(ALICE, (old[0].id,))
    await core.inbox.delete(ALICE, (old[1].id,))
    synced = (await ask(first, "sync", {"since": joined.data["since"]})).data
    assert {each["_id"]: (each["seen"], each["delete"]) for each in synced["documents"]} == {
        new[0].id: (False, False),
        old[0].id: (True, False),
        old[1].id: (False, True),
    }
    assert (synced["more"], synced["reset"], synced["floor"]) == (False, False, None)
    again = (await ask(first, "sync", {"since": synced["upto"]})).data
    assert (again["documents"], again["reset"]) == ([], False)


async def test_a_long_sync_comes_in_chunks(core: Core) -> None:
    """All but the last say that there is more; who is cut off goes on from the last one that they have."""
    connection, joined = await join(core)
    documents = await core.fill("alice", 250)
    chunks = []
    say(connection, "sync", {"since": joined.data["since"]}, "s")
    while not chunks or chunks[-1]["more"]:
        chunks.append((await answer(connection, "s")).data)
    assert [len(each["documents"]) for each in chunks] == [100, 100, 50]
    assert [id_ for chunk in chunks for id_ in ids(chunk["documents"])] == ids(
        sorted(documents, key=lambda d: d.rev)
    )
    rest = (await ask(connection, "sync", {"since": chunks[1]["upto"]})).data
    assert ids(rest["documents"]) == ids(chunks[2]["documents"])


async def test_a_sync_of_long_ones_comes_in_small_chunks(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long by their payloads, too. Once that shows, little more is read than fits into one."""
    connection, joined = await join(core)
    documents = [(await core.notify("alice", data={"text": "x" * 60_000}))[0] for _ in range(4)]
    read_at_most: list[int] = []
    changes = core.store.changes

    async def counted(*room: str, after: tuple[int, str], limit: int) -> Sequence[Document]:
        read_at_most.append(limit)
        return await changes(*room, after=after, limit=limit)

    monkeypatch.setattr(core.store, "changes", counted)
    say(connection, "sync", {"since": joined.data["since"]}, "s")
    chunks = []
    while not chunks or chunks[-1]["more"]:
        chunks.append((await answer(connection, "s")).data)
    assert [ids(each["documents"]) for each in chunks] == [[document.id] for document in documents]
    assert read_at_most == [100, 2, 2, 2]


async def test_a_join_with_since_is_followed_by_what_changed(core: Core) -> None:
    """Under the same id; the answer to the join gives nothing to go on from before that has come."""
    first, joined = await join(core)
    first.go()
    [document] = await core.notify("alice")
    second = core.connect()
    say(second, "join", {"login": "alice", "password": "alice", "v": 2, "since": joined.data["since"]}, 1)
    again, synced = await second.next(), await second.next()
    assert (again.name, again.data["more"], again.data["since"]) == ("joined", True, None)
    assert (synced.name, synced.beside["id"], ids(synced.data["documents"])) == ("sync", 1, [document.id])


@pytest.mark.parametrize("since", ["x", "another.0000000000000001", "."])
async def test_a_since_of_another_inbox_is_answered_by_reset(core: Core, since: str) -> None:
    """With where to go on from when all has been read anew."""
    connection, _ = await join(core)
    await core.notify("alice")
    synced = (await ask(connection, "sync", {"since": since})).data
    assert (synced["reset"], synced["documents"], synced["more"]) == (True, [], False)
    assert (await ask(connection, "sync", {"since": synced["upto"]})).data["documents"] == []


async def test_a_since_from_the_future_is_answered_by_reset(core: Core) -> None:
    """The inbox was put back to an earlier state, as by a backup."""
    connection, joined = await join(core)
    epoch = joined.data["since"].partition(".")[0]
    for place in ("f" * 16, f"{'0' * 16}.{'0' * 24}.{'f' * 16}"):
        assert (await ask(connection, "sync", {"since": f"{epoch}.{place}"})).data["reset"]


class Kept:
    """A retention of one day, which has dropped everything with a rev below `oldest`."""

    def __init__(self, oldest: int) -> None:
        self.oldest = oldest
        self.from_ = now() - timedelta(days=1)

    def floor(self, tenant: str) -> Any:
        return self.from_

    def oldest_since(self, tenant: str) -> int:
        return self.oldest


async def test_a_since_older_than_the_tombstones_is_answered_by_reset(core: Core) -> None:
    """Each sync says what is kept, so that what is older is dropped without a word."""
    connection, joined = await join(core)
    [document] = await core.fill("alice", 1)
    core.services.sync._retention = kept = Kept(document.rev + 1)
    assert (await ask(connection, "sync", {"since": joined.data["since"]})).data["reset"]
    kept.oldest = 0
    synced = (await ask(connection, "sync", {"since": joined.data["since"]})).data
    assert not synced["reset"]
    assert synced["floor"] == kept.from_.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_pushes_wait_behind_the_chunk_that_is_being_read(core: Core) -> None:
    """And come with a rev above: a stale read never overtakes a fresh push."""
    connection, joined = await join(core)
    [document] = await core.notify("alice")
    await connection.next()
    gate = core.store.hold("changes")
    say(connection, "sync", {"since": joined.data["since"]}, 1)
    await gate.reached()
    await core.inbox.mark_seen(ALICE, (document.id,))
    await core.backplane.flushed()
    assert connection.received() == []
    gate.open()
    chunk, push = await connection.next(), await connection.next()
    assert (chunk.name, chunk.data["documents"][0]["seen"]) == ("sync", False)
    assert (push.name, push.data["ids"]) == ("seen", [document.id])
    assert push.data["rev"] > chunk.data["documents"][0]["rev"]


async def test_what_waited_during_a_join_is_not_lost_in_the_sync_behind_it(core: Core) -> None:
    """From the moment of the join on, every push comes."""
    _, joined = await join(core)
    gate = core.store.hold("welcome")
    connection = core.connect()
    say(connection, "join", {"login": "alice", "password": "alice", "v": 2, "since": joined.data["since"]}, 1)
    await gate.reached()
    [document] = await core.notify("alice")
    core.backplane.publish([(ALICE, Counted(Counts(7, 7, {})))])
    await core.backplane.flushed()
    gate.open()
    first, second, push = [await connection.next() for _ in range(3)]
    assert (first.name, second.name, second.data["documents"]) == ("joined", "sync", [])
    assert (push.name, push.data["_id"]) == ("notification", document.id)
    assert push.data["rev"] > second.data["upto"].partition(".")[2]
    assert (await connection.next()).data == {"unseen": 7, "total": 7, "types": {}}


@pytest.mark.parametrize("since", [False, True], ids=["fresh", "since"])
async def test_the_join_of_a_known_user_asks_the_store_once(core: Core, since: bool) -> None:
    """For all that it tells: waking a thread, or another machine, costs more than what is read."""
    [document] = await core.fill("alice", 1)
    _, before = await join(core)
    await core.broadcaster._look()
    core.store.calls.clear()
    told = {"since": before.data["since"]} if since else {}
    connection, joined = await join(core, **told)
    assert joined.data["counts"]["unseen"] == 1
    if since:
        assert (await connection.next()).name == "sync"
    assert [verb for verb in core.store.calls if verb != "position"] == ["welcome"]


async def test_what_comes_while_a_new_user_is_written_down_is_pushed(core: Core) -> None:
    """Their inbox was read before that: nothing falls between."""
    await core.broadcaster._look()
    gate, connection = core.store.hold("welcome"), core.connect()
    async with core.tenants._writing:  # as while others are written down
        say(connection, "join", {"login": "alice", "password": "alice", "v": 2}, 1)
        await gate.reached()
        gate.open()
        [document] = await core.notify("alice")
    joined, push = await connection.next(), await connection.next()
    assert (joined.name, joined.data["counts"]["total"]) == ("joined", 0)
    assert (push.name, push.data["_id"]) == ("notification", document.id)
    assert push.data["rev"] > joined.data["since"].partition(".")[2]


async def test_now_and_then_a_connection_is_told_how_far_it_is(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unasked, with a fresh ticket, and with what has changed and was not pushed."""
    monkeypatch.setattr(module, "REFRESH_S", 0.01)
    connection, joined = await join(core)
    quiet = await connection.next()
    assert (quiet.name, quiet.data["documents"], quiet.beside) == ("sync", [], {})
    _, again = await join(core, ticket=quiet.data["ticket"])
    assert again.name == "joined"
    [document] = await core.fill("alice", 1)
    while not (synced := await connection.next()).data["documents"]:
        pass
    assert ids(synced.data["documents"]) == [document.id]


async def test_nothing_is_told_of_a_store_that_is_away(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unasked; it is tried again."""
    monkeypatch.setattr(module, "REFRESH_S", 0.01)
    connection, _ = await join(core)
    core.store.goes_away()
    for _ in range(3):
        await core.store.failed.get()
    connection.received()
    core.store.is_back()
    assert (await connection.next()).name == "sync"


# -- changing ------------------------------------------------------------------------------------------------


async def test_a_change_is_answered_with_what_it_really_changed(core: Core) -> None:
    """By its id; every screen of the user is told, the asker's before its answer."""
    [a], [b] = await core.fill("alice", 1), await core.fill("alice", 1)
    asker, _ = await join(core)
    other, _ = await join(core)
    await core.inbox.mark_seen(ALICE, (a.id,))
    first = await other.next()
    assert (first.name, first.data["ids"]) == ("seen", [a.id])
    asker.received()

    say(asker, "seen", {"ids": [a.id, b.id, NOBODYS, "nonsense"]}, 1)
    push, answered = await asker.next(), await asker.next()
    assert (push.name, push.data["ids"], push.beside) == ("seen", [b.id], {})
    assert (answered.data, answered.beside) == ({**push.data, "more": False}, {"id": 1})
    assert (await other.next()) == push
    assert (await ask(asker, "seen", {"ids": [a.id]})).data == {"ids": [], "rev": None, "more": False}


async def test_everything_can_be_taken_back(core: Core) -> None:
    """Seen by unseen, deleted by restored; a restored document comes whole, as it was."""
    [document] = await core.notify("alice", content="hello")
    connection, _ = await join(core)
    for name, pushed in (("seen", "seen"), ("unseen", "unseen"), ("seen", "seen"), ("delete", "delete")):
        say(connection, name, {"ids": [document.id]}, 1)
        push, answered = await connection.next(), await connection.next()
        assert (push.name, push.data["ids"], answered.data["ids"]) == (pushed, [document.id], [document.id])
    [other] = await core.fill("alice", 1)
    await core.inbox.delete(ALICE, (other.id,))
    connection.received()
    say(connection, "restore", {"ids": [document.id, other.id, NOBODYS]}, 2)
    push, second, answered = [await connection.next() for _ in range(3)]
    assert push.name == second.name == "restored"
    assert (push.data["content"], push.data["seen"], push.data["delete"]) == ("hello", True, False)
    assert (second.data["_id"], second.data["seen"]) == (other.id, False)
    assert answered.data == {"ids": [document.id, other.id], "rev": push.data["rev"], "more": False}


async def test_classic_clients_hear_of_what_is_restored_and_not_of_what_is_unseen(core: Core) -> None:
    """As of a notification; of the other by its count."""
    [document] = await core.notify("alice")
    connection, _ = await join(core)
    classic = await _classic(core)
    for name in ("seen", "unseen", "delete", "restore"):
        await ask(connection, name, {"ids": [document.id]})
    told = [await classic.next() for _ in range(3)]
    assert [message.name for message in told] == ["seen", "delete", "notification"]
    assert told[2].ids == [document.id]


async def test_many_ids_are_changed_in_batches(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with an answer of its own, the last of which says so."""
    monkeypatch.setattr("server.conversations.classic.CHANGES_PER_BATCH", 2)
    documents = await core.fill("alice", 5)
    connection, _ = await join(core)
    say(connection, "delete", {"ids": ids(documents)}, 1)
    answers = [(await answer(connection, 1)).data for _ in range(3)]
    assert [id_ for each in answers for id_ in each["ids"]] == ids(documents)
    assert [each["more"] for each in answers] == [True, True, False]


async def test_all_up_to_a_rev_become_seen_with_one_frame(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; classic clients are told the ids. What is newer stays unseen."""
    monkeypatch.setattr("server.inbox.CHANGES_PER_BATCH", 3)
    documents = await core.fill("alice", 7)
    connection, _ = await join(core)
    classic = await _classic(core)
    upto = max(each.rev for each in documents)
    [newer] = await core.notify("alice")
    say(connection, "seen", {"all": True, "upto": to_wire(upto)}, 1)
    push, answered = await _next_of(connection, "seen"), await connection.next()
    assert push.data == {"all": True, "upto": to_wire(upto)}
    assert answered.data == {"all": True, "upto": to_wire(upto), "changed": 7}
    told = [(await _next_of(classic, "seen")).data for _ in range(3)]
    assert sorted(id_ for each in told for id_ in each) == sorted(ids(documents))
    assert (await ask(connection, "counts")).data["unseen"] == 1


async def _classic(core: Core) -> RecordingConnection:
    """A classic client of alice, who has read the welcome."""
    return await core.join("alice")


async def _next_of(connection: RecordingConnection, name: str) -> Message:
    while (message := await connection.next()).name != name:
        pass
    return message


async def test_all_without_a_rev_is_all_there_is_now(core: Core) -> None:
    """A rev from the future is no more than that."""
    for data in ({"all": True}, {"all": True, "upto": "f" * 16}):
        await core.fill("alice", 2)
        connection, _ = await join(core)
        answered = (await ask(connection, "seen", data)).data
        assert answered["changed"] == 2
        assert answered["upto"] < "f" * 16


async def test_who_is_not_told_of_a_change_is_told_to_sync(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store went away in the middle of marking all."""
    monkeypatch.setattr("server.inbox.CHANGES_PER_BATCH", 1)
    await core.fill("alice", 2)
    connection, _ = await join(core)
    gate = core.store.hold("mark_all_seen")
    say(connection, "seen", {"all": True}, 1)
    await gate.reached()
    core.store.goes_away()
    gate.open()
    missed, refused = await connection.next(), await connection.next()
    assert (missed.name, missed.beside) == ("missed", {})
    assert (refused.name, refused.data["code"], refused.data["retryable"]) == (
        "error",
        "store_unavailable",
        True,
    )


async def test_a_change_that_came_through_without_an_answer_is_found(core: Core) -> None:
    """Every screen is told to look, before the asker is told that nobody knows: else it would show what is gone, and
    asking again would change nothing any more."""
    [document] = await core.fill("alice", 1)
    asker, joined = await join(core)
    other, _ = await join(core)

    async def lose_the_answer() -> None:
        raise StoreUnavailable

    core.store.delay = lose_the_answer
    say(asker, "delete", {"ids": [document.id]}, 1)
    assert [(await asker.next()).name for _ in range(2)] == ["missed", "error"]
    assert (await other.next()).name == "missed"
    core.store.delay = None
    found = await ask(asker, "sync", {"since": joined.data["since"]})
    assert [(each["_id"], each["delete"]) for each in found.data["documents"]] == [(document.id, True)]


async def test_an_acknowledgement_is_no_change(core: Core) -> None:
    """It is remembered when it is answered."""
    [document] = await core.notify("alice")
    connection, joined = await join(core)
    assert (await ask(connection, "ack", {"ids": [document.id, "nonsense"]})).data == {"ids": [document.id]}
    [delivery] = await core.store.deliveries.of_notification(
        "default", document.notification.nid, after=None, limit=10
    )
    assert delivery.delivered_at is not None
    assert (await ask(connection, "sync", {"since": joined.data["since"]})).data["documents"] == []


async def test_changes_asked_for_before_the_connection_ended_are_made(core: Core) -> None:
    """People click and close."""
    [document] = await core.notify("alice")
    connection, _ = await join(core)
    gate = core.store.hold("counts")
    say(connection, "counts", None, 1)
    await gate.reached()
    say(connection, "delete", {"ids": [document.id]}, 2)
    say(connection, "content", {}, 3)
    connection.go()
    gate.open()
    await core.tasks.finish(deadline_s=30)
    assert await core.inbox.newest(ALICE, before=None, limit=10) == []


# -- what is pushed ------------------------------------------------------------------------------------------


async def test_documents_are_pushed_as_objects(core: Core) -> None:
    """The same as they are read."""
    connection, _ = await join(core)
    [document] = await core.notify("alice", content="é\u2028", data={"a": [1]})
    push = await connection.next()
    read = (await ask(connection, "content")).data["documents"]
    assert (push.name, push.data) == ("notification", read[0])
    assert push.data["rev"] == to_wire(document.rev)


async def test_a_push_below_what_was_answered_is_dropped(core: Core) -> None:
    """The rev decides."""
    connection, _ = await join(core)
    [document] = await core.fill("alice", 1)
    await ask(connection, "content")
    frames = core.services.dialect_v2
    session = connection.session
    assert session is not None
    fresh = altered(document, rev=document.rev + 1)
    for event in (Added(document), Seen((document.id,), document.rev), Added(fresh)):
        frame = frames.frame(event)
        assert frame is not None
        session.screen.push([(event, frame)], frame)
    assert (await connection.next()).data["rev"] == to_wire(fresh.rev)
    assert connection.received() == []


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "field", "id_"),
    [
        ({"name": "sync", "id": 1, "data": {}}, "data.since", 1),
        ({"name": "sync", "id": 1, "data": {"since": ""}}, "data.since", 1),
        ({"name": "content", "id": "x", "data": {"before": "y"}}, "data.before", "x"),
        ({"name": "content", "id": 2, "data": {"limit": 0}}, "data.limit", 2),
        ({"name": "content", "id": 2, "data": {"seen": 1}}, "data.seen", 2),
        ({"name": "content", "id": 2, "data": {"type": 1}}, "data.type", 2),
        ({"name": "seen", "id": 3, "data": {"all": 1}}, "data.all", 3),
        ({"name": "seen", "id": 3, "data": {"all": True, "upto": 7}}, "data.upto", 3),
        ({"name": "shout", "id": 4}, "name", 4),
        ({"id": 6}, "name", 6),
        ({"name": ["counts"], "id": 6, "data": {}}, "name", 6),
        ({"name": "delete", "id": 5, "data": []}, "data", 5),
        ({"name": "counts", "id": {}}, "id", None),
        ({"name": "counts", "id": True}, "id", None),
        ({"name": "counts", "id": 2**53}, "id", None),
    ],
    ids=str,
)
async def test_a_command_that_is_wrong_is_answered_with_its_field(
    core: Core, message: Any, field: str, id_: Any
) -> None:
    """And its id, if that could be read."""
    connection, _ = await join(core)
    assert connection.session is not None
    connection.session.receive(json.dumps(message))
    refused = await connection.next()
    assert (refused.name, refused.data["code"], refused.data["field"]) == ("error", "invalid", field)
    assert refused.beside.get("id") == id_


async def test_too_many_commands_are_refused_with_their_ids(core: Core) -> None:
    """As many as were not carried out."""
    connection, _ = await join(core)
    gate = core.store.hold("counts")
    for number in range(2 * MAX_PENDING + 2):
        say(connection, "counts", None, number)
    refused = await connection.next()
    assert (refused.data["code"], refused.data["retryable"]) == ("busy", True)
    assert refused.beside["id"] == 2 * MAX_PENDING
    gate.open()
    for number in range(2 * MAX_PENDING):
        await answer(connection, number)


async def test_requests_without_an_id_are_answered_without_one(core: Core) -> None:
    """In their order."""
    connection, _ = await join(core)
    say(connection, "counts")
    say(connection, "content")
    assert [(await connection.next()).name for _ in range(2)] == ["counts", "content"]


async def test_a_session_leaves_nothing_behind(core: Core) -> None:
    """No timer, no room."""
    connection, _ = await join(core)
    conversation = connection.session._conversation  # type: ignore[union-attr]
    connection.go()
    assert conversation._refreshing is None
    assert not core.rooms.is_online(ALICE)
    await asyncio.sleep(0)
