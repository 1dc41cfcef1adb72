"""Tests of server/feed.py and server/stream_feed.py: what one connection is sent, and when, on a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from server import feed as module
from server import feed_screen as feed_screen_module
from server import inbox_feed
from server import screen as screen_module
from server.auth import Identity
from server.config import Limits as LimitSettings
from server.conversations import v2 as v2_module
from server.dialects import HubDialect
from server.feed import Feed, HubFeed, RealtimeFeed, ServiceFeed, TenantFeed
from server.feed_screen import FeedScreen
from server.grants import DEFAULT_TENANT
from server.inbox_feed import InboxFeed
from server.messages import (
    Added,
    Broadcasted,
    Document,
    Notification,
    Recipient,
    Seen,
    UnseenCount,
    altered,
    now,
)
from server.revs import span_of, to_wire
from server.rooms import NOBODY
from server.store import HUB, SERVICE
from server.stream_feed import StreamFeed
from server.wire import FAILED, REVOKED, SIGNED_OUT, SLOW, TOKEN_EXPIRED, TOO_MANY
from tests.support.core import ALICE, MAX_QUEUE_BYTES, Core, notification, open_core
from tests.support.feed_connection import FeedConnection, listen

WITH_BACKLOG = [HubFeed, RealtimeFeed, ServiceFeed]


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


def content(frame: Any) -> str:
    """Of the notification in a frame of any of these dialects."""
    payload = frame[1] if isinstance(frame, list) else frame.get("payload") or frame["value"]
    text: str = payload["content"]
    return text


async def contents(connection: FeedConnection, count: int) -> list[str]:
    return [content(frame) for frame in await connection.frames(count)]


async def caught_up(core: Core, connection: FeedConnection, user: str = "alice") -> None:
    """Return when what waited has been sent, and nothing else has come."""
    await core.notify(user, content="mark")
    assert await contents(connection, 1) == ["mark"]


async def use_for_the_first_time(core: Core, kind: type[Feed]) -> None:
    connection = listen(core, kind)
    await caught_up(core, connection)
    if kind is ServiceFeed:
        change = await core.inbox.mark_all_seen(ALICE)
        assert change.changed
    connection.go()
    await core.marks.write()


# -- joining -------------------------------------------------------------------------------------------------
async def test_whoever_may_not_be_there_is_closed_at_once(core: Core) -> None:
    """A tenant that is gone, a key that is, a sign-out since: decided anew, for the request was a while ago."""
    await core.tenants.sign_out(*ALICE)
    long_ago = now() - timedelta(minutes=1)
    for identity, reason in (
        ({"tenant": "ghost"}, REVOKED),
        ({"key_id": "f" * 24}, REVOKED),
        ({"issued_at": long_ago}, SIGNED_OUT),
    ):
        connection = listen(core, HubFeed, **identity)
        assert connection.reasons == [reason]
    assert core.rooms.user_count == 0
    assert not len(core.tasks)


async def test_a_sign_out_by_a_clock_that_is_ahead_keeps_out_nobody_who_comes_later(core: Core) -> None:
    """What this node proved after it heard of that counts; what was proved before, or elsewhere, does not."""
    early = now()
    await core.store.directory.sign_out(*ALICE, now() + timedelta(minutes=5))
    await core.tenants.open()
    await asyncio.sleep(0.005)  # times have milliseconds
    for identity, reasons in (
        ({"issued_at": early, "by_own_clock": True}, [SIGNED_OUT]),
        ({"issued_at": now()}, [SIGNED_OUT]),
        ({"issued_at": now(), "by_own_clock": True}, []),
        ({}, []),
    ):
        assert listen(core, HubFeed, **identity).reasons == reasons


@pytest.mark.parametrize("kind", WITH_BACKLOG)
async def test_a_user_has_only_so_many_connections(tmp_path: Path, kind: type[Feed]) -> None:
    """The one too many is closed, and takes no place; one that goes gives its place back."""
    async with open_core(tmp_path, LimitSettings(connections_per_user=1)) as core:
        first, second = listen(core, kind), listen(core, kind)
        assert (first.reasons, second.reasons) == ([], [TOO_MANY])
        first.go()
        assert listen(core, kind).reasons == []


async def test_the_connection_ends_with_the_token(core: Core) -> None:
    """When it ends, and not when it has been left before."""
    connection = listen(core, HubFeed, expires_at=now() + timedelta(milliseconds=20))
    left = listen(core, HubFeed, expires_at=now() + timedelta(milliseconds=20))
    left.go()
    async with asyncio.timeout(30):
        while not connection.is_closed:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
    assert (connection.reasons, left.reasons) == ([TOKEN_EXPIRED], [])


async def test_a_client_that_goes_leaves_nothing_behind(core: Core) -> None:
    """No room, no task, no place, nothing to settle; also amid what waited for it."""
    await core.fill("alice", 5)
    connection = listen(core, HubFeed, connection=FeedConnection(is_slow=True))
    await connection.queued()
    connection.go()
    async with asyncio.timeout(30):
        while len(core.tasks):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    assert core.rooms.user_count == 0
    assert not core.marks._unsettled
    assert core.limits._by_user == {}


# -- what waited ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", WITH_BACKLOG)
async def test_what_waited_comes_first_and_pushes_behind(core: Core, kind: type[Feed]) -> None:
    """In order and each once, though some come while the store is read, and are in what it returns."""
    await use_for_the_first_time(core, kind)
    waited = await core.fill("alice", 3)
    gate = core.store.hold("backlog")
    await core.notify("alice", content="before the reading")
    connection = listen(core, kind)
    await gate.reached()
    await core.notify("alice", content="after the reading")
    assert connection.received() == []
    gate.open()
    expected = [*(each.notification.content for each in waited), "before the reading", "after the reading"]
    assert await contents(connection, 5) == expected
    await caught_up(core, connection)


@pytest.mark.parametrize("kind", WITH_BACKLOG)
async def test_all_that_waited_comes_however_long_it_is(core: Core, kind: type[Feed]) -> None:
    """Though the store returns only as many long ones as go into a frame."""
    await use_for_the_first_time(core, kind)
    sent = [f"{number} {'x' * 40_000}" for number in range(5)]
    for text in sent:
        await core.notify("alice", content=text)
    connection = listen(core, kind)
    assert await contents(connection, 5) == sent
    await caught_up(core, connection)


@pytest.mark.parametrize("since", [None, 0])
async def test_a_stream_tells_of_all_however_long_it_is(core: Core, since: int | None) -> None:
    """What is unseen, and what has changed."""
    for _ in range(5):
        await core.notify("alice", content="x" * 40_000)
    stream = RawStream()
    stream.session = cast("Any", StreamFeed(stream, core.feeds, Identity(DEFAULT_TENANT, "alice"), since))
    assert [(await stream.next())[0] for _ in range(6)] == ["notification"] * 5 + ["count"]


async def test_each_frame_is_made_when_the_one_before_has_left(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many long ones not all are held, nor made in one go, for a client that reads slowly."""
    made: list[str] = []

    class Counting(HubDialect):
        def _text(self, notification: Notification) -> str:
            made.append(notification.content)
            return super()._text(notification)

    monkeypatch.setattr(HubFeed, "dialect", Counting())
    await core.fill("alice", 5)
    connection = listen(core, HubFeed, connection=FeedConnection(is_slow=True))
    for number in range(1, 6):
        await connection.queued()
        assert len(made) == number
        connection.take_one()


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_was_sent_is_not_sent_again(core: Core, kind: type[Feed]) -> None:
    """Whether it waited or was pushed; by its own way only; as soon as it has arrived, written down or not."""
    documents = await core.fill("alice", 3)
    first = listen(core, kind)
    assert await contents(first, 3) == [document.notification.content for document in documents]
    await caught_up(core, first)
    second = listen(core, kind)
    await caught_up(core, second)
    await core.marks.write()
    third = listen(core, kind)
    await caught_up(core, third)
    other = listen(core, RealtimeFeed if kind is HubFeed else HubFeed)
    assert len(await other.frames(6)) == 6


async def test_what_did_not_arrive_is_sent_again(core: Core) -> None:
    """What lay in the queue of a connection that was cut off, of what waited and of pushes."""
    connection = listen(core, HubFeed, connection=FeedConnection(is_slow=True))
    async with asyncio.timeout(30):
        while len(core.tasks):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    for text in ("arrives", "is cut off", "is cut off, too"):
        await core.notify("alice", content=text)
    connection.take_one()
    connection.go()
    await core.marks.write()
    again = listen(core, HubFeed)
    assert await contents(again, 2) == ["is cut off", "is cut off, too"]
    await caught_up(core, again)


async def test_a_page_hears_of_what_another_was_sent_while_it_was_catching_up(core: Core) -> None:
    """A slow page with much that waits, beside one that is up to date: what is new reaches both, though it is marked as
    sent before the slow one gets that far."""
    up_to_date = listen(core, HubFeed)
    await caught_up(core, up_to_date)
    waited = await core.fill("alice", 150)
    slow = listen(core, HubFeed, connection=FeedConnection(is_slow=True))
    await slow.queued()
    await core.notify("alice", content="new")
    assert await contents(up_to_date, 1) == ["new"]
    await core.marks.write()
    slow.is_slow = False
    slow._take()
    expected = [*(each.notification.content for each in waited), "new"]
    assert await contents(slow, 151) == expected
    await core.notify("alice", content="last")
    assert await contents(slow, 1) == ["last"]


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_another_page_was_sent_keeps_its_place_among_what_is_listed(
    core: Core, kind: type[Feed]
) -> None:
    """Marked before this page reads what waits, so not in that, while what came after it is: the page that has just
    come is told of both in their order."""
    first = listen(core, kind)
    await caught_up(core, first)
    gate = core.store.hold("known_since")  # right before what waits is read
    second = listen(core, kind)
    await gate.reached()
    await core.notify("alice", content="one")
    assert await contents(first, 1) == ["one"]
    await core.marks.write()
    first.go()
    await core.notify("alice", content="two")
    await core.notify("alice", content="three")
    gate.open()
    assert await contents(second, 3) == ["one", "two", "three"]
    await caught_up(core, second)


async def test_what_was_listed_does_not_come_again_as_a_push(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what was pushed before, and listed long after: the push that waits is dropped when its document is
    shown."""
    monkeypatch.setattr(screen_module, "REMEMBERED_S", -60)  # so much later is it
    await core.fill("alice", 100)
    slow = listen(core, HubFeed, connection=FeedConnection(is_slow=True))
    await slow.queued()
    await core.notify("alice", content="new")
    [screen] = core.rooms._members[ALICE]
    assert len(screen._held) == 1  # type: ignore[attr-defined]  # it waits
    slow.is_slow = False
    slow._take()
    assert (await contents(slow, 101))[-1] == "new"
    await core.notify("alice", content="last")
    assert await contents(slow, 1) == ["last"]


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_was_listed_does_not_come_again_as_what_became_of_it(core: Core, kind: type[Feed]) -> None:
    """The push comes late, when the document has been seen and unseen: it tells of it with a later rev."""
    connection = listen(core, kind)
    [document] = await core.fill("alice", 1)
    connection.session.missed(now())  # type: ignore[union-attr]
    assert await contents(connection, 1) == [document.notification.content]
    core.backplane.publish([(ALICE, Added(altered(document, rev=document.rev + 1)))])
    await caught_up(core, connection)


async def store_untold(core: Core, content: str) -> None:
    """For alice, who is told nothing of it."""
    await core.store.add(notification(content), [Recipient("alice")], None)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_was_missed_comes_behind_what_is_being_listed(core: Core, kind: type[Feed]) -> None:
    """However slowly that is read."""
    waited = await core.fill("alice", 5)
    slow = listen(core, kind, connection=FeedConnection(is_slow=True))
    await slow.queued()
    await store_untold(core, "missed")
    slow.session.missed(now())  # type: ignore[union-attr]
    await asyncio.sleep(0.05)  # nothing of it comes as long as the listing waits
    slow.is_slow = False
    slow._take()
    assert await contents(slow, 6) == [*(each.notification.content for each in waited), "missed"]
    await caught_up(core, slow)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_comes_while_what_was_missed_is_read(core: Core, kind: type[Feed]) -> None:
    """Pushes wait behind that; what is missed meanwhile is read anew."""
    connection = listen(core, kind)
    await caught_up(core, connection)
    gate = core.store.hold("backlog")
    await store_untold(core, "missed")
    connection.session.missed(now())  # type: ignore[union-attr]
    await gate.reached()
    await core.notify("alice", content="pushed")
    await store_untold(core, "missed, too")
    connection.session.missed(now())  # type: ignore[union-attr]
    gate.open()
    assert await contents(connection, 3) == ["missed", "pushed", "missed, too"]
    await caught_up(core, connection)


async def test_what_comes_while_a_stream_reads_what_it_missed(core: Core) -> None:
    """As for the other dialects."""
    since = now() - timedelta(seconds=1)
    connection = Stream()
    feed = StreamFeed(connection, core.feeds, Identity(*ALICE), None)
    connection.session = cast("Any", feed)
    assert await connection.next() == {"unseen": 0}  # type: ignore[comparison-overlap]  # JSON
    gate = core.store.hold("changes")
    await store_untold(core, "missed")
    feed.missed(since)
    await gate.reached()
    await core.notify("alice", content="pushed")
    await store_untold(core, "missed, too")
    feed.missed(since)
    gate.open()
    told: list[str] = []
    while "missed, too" not in told:
        event: Any = await connection.next()
        told += [event["content"]] if "content" in event else []
    assert list(dict.fromkeys(told)) == ["missed", "pushed", "missed, too"]


async def test_a_client_that_goes_while_it_has_missed_something_leaves_nothing_behind(core: Core) -> None:
    """Neither the reading that was under way, nor the one that would follow it."""
    gate = core.store.hold("backlog")
    connection = listen(core, HubFeed)
    await gate.reached()
    connection.session.missed(now())  # type: ignore[union-attr]
    await asyncio.sleep(0)
    connection.go()
    async with asyncio.timeout(30):
        while len(core.tasks):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)


async def store_long_ago(core: Core, content: str) -> Document:
    """Of alice, and told to nobody."""
    long_ago = altered(notification(content), created_at=now() - timedelta(minutes=1))
    stored = await core.store.add(long_ago, [Recipient("alice")], None)
    return altered(stored.documents[0], rev=stored.documents[0].rev - span_of(60))


async def list_again(core: Core, connection: FeedConnection) -> None:
    """Return when what is unseen has been read once more."""
    connection.session.missed(now())  # type: ignore[union-attr]
    async with asyncio.timeout(30):
        while len(core.tasks):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)


def much_later(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """What listings have shown is forgotten."""
    monkeypatch.setattr(screen_module, "REMEMBERED_S", -60)
    [screen] = core.rooms.members(ALICE)
    cast("FeedScreen", screen)._prune()


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_is_told_long_after_it_was_stored_comes_once(
    core: Core, kind: type[Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when the store did not say in time that it has it: to who was there all the time, and not again to who
    has listed it since, though that was too long ago to be remembered."""
    there = listen(core, kind)
    await caught_up(core, there)
    told_late = [(ALICE, Added(await store_long_ago(core, "is told late")))]
    core.backplane.publish(told_late)
    assert await contents(there, 1) == ["is told late"]
    much_later(core, monkeypatch)
    core.backplane.publish(told_late)
    await caught_up(core, there)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_was_accepted_long_ago_and_stored_just_now_is_told_as_ever(
    core: Core, kind: type[Feed]
) -> None:
    """A long broadcast comes to each in their turn, and nothing is read for it."""
    there = listen(core, kind)
    await caught_up(core, there)
    document = await store_long_ago(core, "is new")
    calls = len(core.store.calls)
    core.backplane.publish([(ALICE, Added(altered(document, rev=document.rev + span_of(60))))])
    assert await contents(there, 1) == ["is new"]
    assert core.store.calls[calls:] == []
    await caught_up(core, there)


@pytest.mark.parametrize("is_as_stored", [False, True], ids=["as it was", "as it is"])
@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_was_listed_long_ago_and_is_unseen_again_does_not_come_when_it_is_told_late(
    core: Core, kind: type[Feed], is_as_stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what it is told as was changed a moment ago."""
    there = listen(core, kind)
    await caught_up(core, there)
    document = await store_long_ago(core, "is told late")
    await list_again(core, there)
    assert await contents(there, 1) == ["is told late"]
    much_later(core, monkeypatch)
    await core.inbox.see(ALICE, (document.id,))
    await core.inbox.mark_unseen(ALICE, (document.id,))
    [stored] = await core.store.find(*ALICE, [document.id])
    core.backplane.publish([(ALICE, Added(stored if is_as_stored else document))])
    await caught_up(core, there)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_is_told_in_time_together_with_something_late_comes_as_it_is_told(
    core: Core, kind: type[Feed]
) -> None:
    """Also if nobody would list it, since it has been seen meanwhile."""
    there = listen(core, kind)
    await caught_up(core, there)
    late = await store_long_ago(core, "is told late")
    [in_time] = await core.fill("alice", 1)
    await core.inbox.see(ALICE, (in_time.id,))
    core.backplane.publish([(ALICE, Added(document)) for document in (late, in_time)])
    assert sorted(await contents(there, 2)) == ["0", "is told late"]
    await caught_up(core, there)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed])
async def test_what_was_missed_comes_though_another_page_was_sent_it(core: Core, kind: type[Feed]) -> None:
    """As on another node while the way between them was cut: this page is told of all that it was not told of, once and
    in its order, and of nothing from before it was opened. Seen is seen."""
    way = kind.way
    assert way is not None
    await core.store.deliveries.mark(way, {ALICE: [each.id for each in await core.fill("alice", 1)]})
    page = listen(core, kind)
    await caught_up(core, page)
    before = now()
    elsewhere = await core.fill("alice", 150)
    await core.store.deliveries.mark(way, {ALICE: [each.id for each in elsewhere[::2]]})
    await core.inbox.mark_seen(ALICE, (elsewhere[4].id,))
    for number in range(90):
        await core.notify("alice", content=f"told {number}")
        assert await contents(page, 1) == [f"told {number}"]
    later = await core.fill("alice", 1)
    expected = [each.notification.content for each in (*elsewhere[:4], *elsewhere[5:], *later)]
    for expected_now in (expected, []):
        page.session.missed(before)  # type: ignore[union-attr]
        assert await contents(page, len(expected_now)) == expected_now
        await caught_up(core, page)


async def test_who_was_told_of_more_than_is_remembered_is_not_told_again(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then what another page was sent before that stays with that one."""
    monkeypatch.setattr(feed_screen_module, "MAX_REMEMBERED", 2)
    page = listen(core, HubFeed)
    await caught_up(core, page)
    before = now()
    for number in range(4):
        await core.notify("alice", content=str(number))
    assert await contents(page, 4) == ["0", "1", "2", "3"]
    [elsewhere] = await core.fill("alice", 1)
    await core.store.deliveries.mark(HUB, {ALICE: [elsewhere.id]})
    page.session.missed(before)  # type: ignore[union-attr]
    assert await contents(page, 1) == [elsewhere.notification.content]
    await caught_up(core, page)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed, ServiceFeed])
async def test_what_was_told_does_not_come_again_though_the_clock_of_who_stored_it_is_ahead(
    core: Core, kind: type[Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what is of the same instant as the last that is remembered no more."""
    monkeypatch.setattr(feed_screen_module, "MAX_REMEMBERED", 2)
    page = listen(core, kind)
    await caught_up(core, page)
    before, ahead = now(), now() + timedelta(seconds=5)
    for number in range(4):
        new = altered(notification(str(number)), created_at=ahead)
        [document] = (await core.store.add(new, [Recipient("alice")], None)).documents
        await core.store.deliveries.mark(kind.marked_as, {ALICE: [document.id]})  # type: ignore[attr-defined]
        core.backplane.publish([(ALICE, Added(document))])
        assert await contents(page, 1) == [str(number)]
    await core.marks.write()
    page.session.missed(before)  # type: ignore[union-attr]
    await list_again(core, page)
    await caught_up(core, page)


async def test_too_many_pushes_behind_what_waited_close_the_connection(core: Core) -> None:
    """As slow. What it has not got comes at the next connect."""
    await core.fill("alice", 2)
    slow = listen(core, HubFeed, connection=FeedConnection(is_slow=True))
    await slow.queued()
    for _ in range(3):
        await core.notify("alice", content="x" * (MAX_QUEUE_BYTES // 2))
    assert slow.reasons == [SLOW]
    assert len(await listen(core, HubFeed).frames(5)) == 5


async def test_while_the_store_is_away_what_waited_waits(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """And comes when it is back."""
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)
    [document] = await core.fill("alice", 1)
    core.store.goes_away()
    connection = listen(core, HubFeed)
    for _ in range(3):
        await asyncio.wait_for(core.store.failed.get(), 30)
    core.store.is_back()
    assert await contents(connection, 1) == [document.notification.content]
    assert connection.reasons == []


class Stream(FeedConnection):
    """Server-Sent Events: its messages are their data."""

    def take_one(self) -> None:
        _, _, data = self.queue.popleft().text.rpartition("data: ")
        self._read.put_nowait(json.loads(data))
        self._wake()


class RawStream(FeedConnection):
    """The same, with name and id."""

    def take_one(self) -> None:
        event = dict(line.split(": ", 1) for line in self.queue.popleft().text.strip().splitlines())
        self._read.put_nowait([event["event"], event.get("id")])
        self._wake()


async def test_where_a_stream_goes_on_from_is_before_what_changed_while_it_was_read(core: Core) -> None:
    """Or whoever is cut off after the count would never hear of the change."""
    [first, *_] = await core.fill("alice", 100)
    slow = RawStream(is_slow=True)
    feed = StreamFeed(slow, core.feeds, Identity(DEFAULT_TENANT, "alice"), since=None)
    slow.session = cast("Any", feed)
    await slow.queued()
    await core.inbox.mark_seen(ALICE, [first.id])
    await core.notify("alice", content="is listed, too")
    slow.is_slow = False
    slow._take()
    events = [await slow.next() for _ in range(103)]
    [(_, upto)] = [event for event in events if event[0] == "count"][:1]
    [(_, changed)] = [event for event in events if event[0] == "seen"]
    assert upto < changed


async def test_a_stream_is_not_closed_as_slow_for_what_it_will_list(core: Core) -> None:
    """However much is pushed meanwhile: it has not been sent anything of that yet, and comes to it."""
    await core.fill("alice", 150)
    slow = RawStream(is_slow=True)
    slow.session = cast("Any", StreamFeed(slow, core.feeds, Identity(*ALICE), since=None))
    await slow.queued()
    for _ in range(4):
        await core.notify("alice", content="x" * (MAX_QUEUE_BYTES // 2))
    assert slow.reasons == []
    slow.is_slow = False
    slow._take()
    told = [await slow.next() for _ in range(155)]
    assert [name for name, _ in told] == ["notification"] * 154 + ["count"]  # type: ignore[misc]


async def test_a_stream_that_goes_on_is_told_what_may_have_become_visible_late(core: Core) -> None:
    """What it knows already comes once more; nothing is passed over."""
    documents = await core.fill("alice", 3)
    core.store.changes_overlap_s = 30.0
    connection = RawStream()
    StreamFeed(connection, core.feeds, Identity(*ALICE), since=documents[-1].rev)
    told = [await connection.next() for _ in documents]
    assert [id_ for _, id_ in told] == [to_wire(document.rev) for document in documents]  # type: ignore[misc]


async def test_who_waits_for_the_store_is_told_so_in_dialect_2(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, until what they came for is there."""
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(v2_module, "DELAYED_AFTER_S", 0.01)
    monkeypatch.setattr(v2_module, "DELAYED_EACH_S", 0.01)
    core.store.goes_away()
    connection = Stream()
    feed = InboxFeed(connection, core.feeds, Identity(DEFAULT_TENANT, "alice"), since=None)
    connection.session = cast("Any", feed)
    told = [frame["name"] for frame in await connection.frames(3)]
    core.store.is_back()
    while told[-1] != "joined":
        told.append((await connection.next())["name"])  # type: ignore[index]  # JSON
    assert set(told[:-1]) == {"delayed"}


def dialect_2(core: Core, since: str | None = None) -> tuple[FeedConnection, InboxFeed]:
    """A stream of it that has just been opened."""
    connection = Stream()
    feed = InboxFeed(connection, core.feeds, Identity(*ALICE), since)
    connection.session = cast("Any", feed)
    return connection, feed


async def test_a_stream_of_dialect_2_says_now_and_then_how_far_it_is(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes twice by that, and nothing is held up behind it, though the store was away; until it is closed."""
    since = str(await core.services.sync.now())
    documents = await core.fill("alice", 3)
    core.services.sync.chunk_documents = 2
    monkeypatch.setattr(inbox_feed, "REFRESH_S", 0.01)
    connection, feed = dialect_2(core, since)
    told: list[str] = []
    refreshed = 0
    while refreshed < 3:
        frame: Any = await connection.next()
        if frame["name"] == "sync":
            told += [document["_id"] for document in frame["data"]["documents"]]
            refreshed += not frame["data"]["documents"]
    assert told == [document.id for document in documents]
    core.store.goes_away()
    async with asyncio.timeout(30):
        await core.store.failed.get()
    monkeypatch.setattr(inbox_feed, "REFRESH_S", 1e9)
    async with asyncio.timeout(30):
        await core.store.failed.get()
    core.store.is_back()
    core.backplane.publish([(ALICE, Seen((documents[0].id,), documents[-1].rev + 1))])
    while (await connection.next())["name"] != "seen":  # type: ignore[index]  # JSON
        pass
    connection.go()
    assert feed._refreshing is not None and feed._refreshing.cancelled()


async def test_what_was_missed_is_told_in_place_of_the_next_refresh(core: Core) -> None:
    """Else there would be one more now and then, each time that something is missed."""
    connection, feed = dialect_2(core)
    assert (await connection.next())["name"] == "joined"  # type: ignore[index]  # JSON
    before = feed._refreshing
    feed.missed(now())
    assert (await connection.next())["name"] == "sync"  # type: ignore[index]  # JSON
    assert before is not None and before.cancelled()


async def test_a_bug_in_a_refresh_closes_the_connection(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client comes back."""
    monkeypatch.setattr(inbox_feed, "REFRESH_S", 0.01)
    connection, _ = dialect_2(core)
    assert (await connection.next())["name"] == "joined"  # type: ignore[index]  # JSON
    core.store.failure = RuntimeError("a bug")
    async with asyncio.timeout(30):
        while not connection.is_closed:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    assert connection.reasons == [FAILED]


async def test_a_bug_closes_the_connection(core: Core, caplog: pytest.LogCaptureFixture) -> None:
    """With a code by which the client comes back; the log has it."""
    core.store.failure = RuntimeError("a bug")
    connection = listen(core, HubFeed)
    async with asyncio.timeout(30):
        while not connection.is_closed:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    assert connection.reasons == [FAILED]
    assert [record.getMessage() for record in caplog.records] == [
        "what waited for a client could not be sent"
    ]


# -- CONTRACT C3 ---------------------------------------------------------------------------------------------
async def test_what_was_pushed_before_the_first_use_is_written_down_is_to_be_acknowledged(core: Core) -> None:
    """The first use begins when the connection opens: what comes while the store is slow belongs to it."""
    core.broadcaster._open_count = 1  # so that the feed asks something else first
    gate = core.store.hold("known_since")
    connection = listen(core, ServiceFeed)
    await gate.reached()
    await core.notify("alice", content="early")
    gate.open()
    assert await contents(connection, 1) == ["early"]
    connection.go()
    assert await contents(listen(core, ServiceFeed), 1) == ["early"]


async def test_who_goes_at_once_has_used_the_dialect(core: Core) -> None:
    """What comes after that waits to be acknowledged."""
    listen(core, ServiceFeed).go()
    async with asyncio.timeout(30):
        while len(core.tasks):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)
    await core.fill("alice", 1)
    assert await contents(listen(core, ServiceFeed), 1) == ["0"]


async def test_an_acknowledgement_counts_at_once(core: Core) -> None:
    """For a connect a moment later, though it is not written down yet."""
    first = listen(core, ServiceFeed)
    await core.notify("alice", content="c")
    frame: Any = await first.next()
    assert first.session is not None
    first.session.receive(f'{{"type":"message_ack","key":"{frame["key"]}"}}')
    assert core.marks.waiting == 1
    await caught_up(core, listen(core, ServiceFeed))


async def test_what_was_missed_comes_though_another_page_has_acknowledged_it(core: Core) -> None:
    """On another node, as this one was cut off. What this page was sent does not come again, acknowledged or not."""
    page = listen(core, ServiceFeed)
    await caught_up(core, page)
    before = now()
    [acknowledged] = await core.notify("alice", content="acknowledged")
    await core.notify("alice", content="not acknowledged")
    assert await contents(page, 2) == ["acknowledged", "not acknowledged"]
    page.session.receive(json.dumps({"type": "message_ack", "key": acknowledged.id}))  # type: ignore[union-attr]
    elsewhere = await core.fill("alice", 2)
    await core.store.deliveries.mark(SERVICE, {ALICE: [elsewhere[0].id]})
    page.session.missed(before)  # type: ignore[union-attr]
    assert await contents(page, 2) == [each.notification.content for each in elsewhere]
    await caught_up(core, page)


async def test_what_was_listed_does_not_come_again_as_missed_however_much_it_was(core: Core) -> None:
    """Though it is not acknowledged, and a gap may begin before it."""
    await caught_up(core, listen(core, ServiceFeed))  # from now on all is to be acknowledged
    before = now()
    documents = await core.fill("alice", 150)
    page = listen(core, ServiceFeed)
    listed = await contents(page, 151)
    assert sorted(listed) == sorted(["mark", *(each.notification.content for each in documents)])
    page.session.missed(before)  # type: ignore[union-attr]
    await caught_up(core, page)


@pytest.mark.parametrize("kind", [HubFeed, RealtimeFeed, ServiceFeed])
async def test_what_was_accepted_long_ago_and_stored_while_a_page_could_not_be_told_comes(
    core: Core, kind: type[Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a long broadcast; but nothing that was there already, and was changed meanwhile."""
    await core.store.deliveries.begin(*ALICE, SERVICE, now() - timedelta(hours=1))
    page = listen(core, kind)
    await caught_up(core, page)
    changed = await store_long_ago(core, "is changed")
    await list_again(core, page)
    assert await contents(page, 1) == ["is changed"]
    much_later(core, monkeypatch)
    page.session._told._documents.pop()  # type: ignore[union-attr]
    await core.marks.write()
    await core.inbox.see(ALICE, (changed.id,))
    await core.inbox.mark_unseen(ALICE, (changed.id,))
    await store_long_ago(core, "is stored late")
    page.session.missed(now() - timedelta(seconds=1))  # type: ignore[union-attr]
    assert await contents(page, 1) == ["is stored late"]
    await caught_up(core, page)


async def test_what_was_acknowledged_before_a_page_came_does_not_come_as_missed(core: Core) -> None:
    """However long it had taken to be stored."""
    await core.store.deliveries.begin(*ALICE, SERVICE, now() - timedelta(hours=1))
    document = await store_long_ago(core, "is stored late")
    await core.store.deliveries.mark(SERVICE, {ALICE: [document.id]})
    await asyncio.sleep(0.01)  # into another millisecond
    page = listen(core, ServiceFeed)
    await caught_up(core, page)
    page.session.missed(now() - timedelta(seconds=1))  # type: ignore[union-attr]
    await list_again(core, page)
    await caught_up(core, page)


async def test_acknowledged_and_seen_are_not_the_same(core: Core) -> None:
    """Acknowledging changes nothing in the inbox, and no screen hears of it."""
    connection = listen(core, ServiceFeed)
    [document] = await core.notify("alice", content="c")
    assert connection.session is not None
    connection.session.receive(f'{{"type":"message_ack","key":"{document.id}"}}')
    await core.marks.write()
    [found] = await core.store.newest(*ALICE, before=None, limit=10)
    assert (found.seen, found.rev) == (False, document.rev)


async def all_done(core: Core) -> None:
    async with asyncio.timeout(30):
        while len(core.tasks):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)


@pytest.mark.parametrize("kind", WITH_BACKLOG)
async def test_who_only_listens_is_known_to_the_tenant(core: Core, kind: type[Feed]) -> None:
    """As soon as they have come: what is for everybody is for them, too, though they have gone by then."""
    listen(core, kind, "bob")
    await all_done(core)
    users = await core.store.directory.users(DEFAULT_TENANT, after=None, limit=10)
    assert [user.user_id for user in users] == ["bob"]


# -- CONTRACT C5 ---------------------------------------------------------------------------------------------
async def test_a_client_without_a_user_hears_of_broadcasts_only(core: Core) -> None:
    """Nothing waits for it, and it is nobody whom the tenant knows."""
    await core.fill("alice", 1)
    connection = listen(core, TenantFeed, NOBODY)
    await all_done(core)
    room = (DEFAULT_TENANT, NOBODY)
    told = notification(content="M", title="T")
    core.backplane.publish([(room, event) for event in (UnseenCount(1), Seen(("a",), 1), Broadcasted(told))])
    frame: Any = await connection.next()
    assert (frame["title"], frame["message"]) == ("T", "M")
    assert core.rooms.users_of(DEFAULT_TENANT) == []
    await core.tenants.write_down()
    users = await core.store.directory.users(DEFAULT_TENANT, after=None, limit=10)
    assert [user.user_id for user in users] == ["alice"]
