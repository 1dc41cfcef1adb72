"""Tests of server/notifier.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydispatch import dispatcher

from server.bus import (
    INBOX_CHANGED,
    NOTIFICATION_FAILED,
    NOTIFICATION_PUSHED,
    NOTIFICATION_REPLAYED,
    NOTIFICATION_STORED,
)
from server.errors import Busy, KeyReused, StoreUnavailable, TenantGone
from server.grants import DEFAULT_TENANT
from server.messages import (
    Document,
    EmailDuty,
    Mail,
    MailRecipient,
    Publication,
    Recipient,
    UnseenCount,
    altered,
)
from server.notifier import Notifier
from server.rooms import Room
from server.store import Store
from tests.support.core import ALICE, BOB, Core, notification, open_core, publication


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path) as core:
        yield core


class Ear:
    """Hears what is said over the bus."""

    def __init__(self) -> None:
        self.stored: list[tuple[Publication, list[Document], EmailDuty | None]] = []
        self.store_s: list[float] = []
        self.failed: list[tuple[Publication, str]] = []
        self.replayed: list[Publication] = []
        self.pushed: list[tuple[Publication, int]] = []
        self.pushed_s: list[tuple[float, float | None]] = []
        self.changed: list[list[Room]] = []

    def hear_stored(
        self,
        publication: Publication,
        documents: list[Document],
        duty: EmailDuty | None,
        store_s: float,
    ) -> None:
        self.stored.append((publication, documents, duty))
        self.store_s.append(store_s)

    def hear_failed(self, publication: Publication, code: str) -> None:
        self.failed.append((publication, code))

    def hear_replayed(self, publication: Publication) -> None:
        self.replayed.append(publication)

    def hear_pushed(
        self, publication: Publication, connections: int, push_s: float, total_s: float | None
    ) -> None:
        self.pushed.append((publication, connections))
        self.pushed_s.append((push_s, total_s))

    def hear_changed(self, rooms: list[Room]) -> None:
        self.changed.append(list(rooms))


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    signals = {
        NOTIFICATION_STORED: ear.hear_stored,
        NOTIFICATION_FAILED: ear.hear_failed,
        NOTIFICATION_REPLAYED: ear.hear_replayed,
        NOTIFICATION_PUSHED: ear.hear_pushed,
        INBOX_CHANGED: ear.hear_changed,
    }
    for signal, receiver in signals.items():
        dispatcher.connect(receiver, signal)
    yield ear
    for signal, receiver in signals.items():
        dispatcher.disconnect(receiver, signal)


async def test_a_notification_is_stored_pushed_and_told_over_the_bus(core: Core, ear: Ear) -> None:
    """One document a user, in the order of the recipients; all screens of each of them, and nobody else's."""
    alice, again, bob = await core.join("alice"), await core.join("alice"), await core.join("bob")
    for_both = publication("bob", "alice", content="hello")
    documents = (await core.notifier.notify(for_both)).documents
    assert [document.user_id for document in documents] == ["bob", "alice"]
    assert await core.inbox.page(BOB, page=0, limit=9) == documents[:1]
    assert await core.inbox.page(ALICE, page=0, limit=9) == documents[1:]
    await core.backplane.flushed()
    assert [(await connection.next()).ids for connection in (bob, alice, again)] == [
        [documents[0].id],
        [documents[1].id],
        [documents[1].id],
    ]
    assert ear.stored == [(for_both, documents, None)]
    assert ear.changed == [[BOB, ALICE]]
    await core.notify("alice")
    assert not bob.received()


async def test_nobody_sees_what_the_store_did_not_take(core: Core, ear: Ear) -> None:
    """Stored before pushed: a store that is away leaves no trace on any screen."""
    alice = await core.join("alice")
    core.store.goes_away()
    with pytest.raises(StoreUnavailable):
        await core.notifier.notify(publication("alice"))
    await core.backplane.flushed()
    assert not alice.received()
    assert (ear.stored, ear.changed, ear.pushed) == ([], [], [])
    [(_, code)] = ear.failed
    assert code == "store_unavailable"


async def test_the_bus_is_told_when_all_connections_have_it(core: Core, ear: Ear) -> None:
    """How many they were and how long that took: since it was stored, and since the request came in, if that is
    known. Of a notification for who is away there is nothing to tell."""
    for user in ("alice", "alice", "bob"):
        await core.join(user)
    came_in = time.monotonic() - 1000
    for_all = publication("bob", "alice", "nobody here")
    timed = altered(publication("bob"), received_at=came_in)
    for each in (for_all, timed, publication("nobody here")):
        await core.notifier.notify(each)
    await core.backplane.flushed()
    assert ear.pushed == [(for_all, 3), (timed, 1)]
    (push_s, unknown), (_, total_s) = ear.pushed_s
    assert 0 <= push_s < 1000
    assert unknown is None
    assert total_s is not None and total_s >= 1000
    assert len(ear.store_s) == 3 and all(store_s > 0 for store_s in ear.store_s)


async def test_nobody_sees_it_before_it_is_durable(core: Core) -> None:
    """The push waits for the store's answer."""
    alice, gate = await core.join("alice"), core.store.hold("add")
    notifying = asyncio.ensure_future(core.notifier.notify(publication("alice")))
    await gate.reached()
    await core.backplane.flushed()
    assert not alice.received()
    gate.open()
    await notifying
    assert (await alice.next()).name == "notification"


async def test_a_notification_for_nobody_is_not_stored(core: Core, ear: Ear) -> None:
    """C1: an empty list of users is answered well, and that is all."""
    assert (await core.notifier.notify(publication())).documents == []
    assert "add" not in core.store.calls
    assert (ear.stored, ear.changed) == ([], [])


async def test_new_notifications_wait_while_fan_out_is_behind(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not stored before there is room for their pushes: publishing does not outrun fan-out for ever."""
    monkeypatch.setattr("server.backplane.MAX_BACKLOG", 0)
    await core.join("alice")
    waiting = asyncio.ensure_future(core.notifier.notify(publication("alice")))
    core.backplane.publish([(ALICE, UnseenCount(7))])
    await asyncio.sleep(0)
    assert "add" not in core.store.calls
    assert len((await waiting).documents) == 1


# -- the same request again ----------------------------------------------------------------------------------
def again(first: Publication) -> Publication:
    """The same, as a door reads it when it comes again."""
    fresh = notification(first.notification.content)
    return altered(first, notification=fresh)


async def test_a_repeat_is_answered_and_told_to_nobody(core: Core, ear: Ear) -> None:
    """With the first notification and its documents; the bus hears that it was a repeat, and of no mail."""
    alice = await core.join("alice")
    recipients = (Recipient("alice", "alice@example.test"), Recipient("bob"))
    first = Publication(notification("text"), recipients, Mail("s", "c"), idempotency_key="key")
    stored = await core.notifier.notify(first)
    repeat = again(first)
    answer = await core.notifier.notify(repeat)
    await core.backplane.flushed()
    assert (stored.is_repeat, answer.is_repeat) == (False, True)
    assert answer.notification == stored.notification == first.notification
    assert (answer.documents, answer.new) == (stored.documents, [])
    assert ear.replayed == [repeat]
    assert len(ear.stored) == len(ear.changed) == len(ear.pushed) == 1
    assert [message.ids for message in alice.received() if message.name == "notification"] == [
        [stored.documents[0].id]
    ]


async def test_after_a_failure_the_same_request_is_carried_out(core: Core, ear: Ear) -> None:
    """It was no repeat, since nothing had been stored."""
    first = altered(publication("alice"), idempotency_key="key")
    core.store.goes_away()
    with pytest.raises(StoreUnavailable):
        await core.notifier.notify(first)
    core.store.is_back()
    assert not (await core.notifier.notify(again(first))).is_repeat
    assert (len(ear.stored), len(ear.failed), ear.replayed) == (1, 1, [])


async def test_keys_are_remembered_for_as_long_as_is_said(core: Core) -> None:
    """Which may change while the server runs."""
    first = altered(publication("alice"), idempotency_key="key")
    core.notifier.keep_keys_s = 0.001
    await core.notifier.notify(first)
    await asyncio.sleep(0.01)
    core.notifier.keep_keys_s = 60
    assert not (await core.notifier.notify(again(first))).is_repeat
    assert (await core.notifier.notify(again(first))).is_repeat
    with pytest.raises(KeyReused):
        await core.notifier.notify(altered(publication("bob"), idempotency_key="key"))


# -- the duty to mail ----------------------------------------------------------------------------------------
PRESENT = Recipient("alice", "alice@example.test")
ABSENT = Recipient("bob", "bob@example.test")
WITHOUT_ADDRESS = Recipient("carol")


async def _duty(core: Core, mail: Mail | None, *recipients: Recipient) -> EmailDuty | None:
    """What is stored with a notification for these, while alice is online."""
    duties: list[EmailDuty | None] = []

    def hear(duty: EmailDuty | None) -> None:
        duties.append(duty)

    await core.join("alice")
    dispatcher.connect(hear, NOTIFICATION_STORED)
    await core.notifier.notify(Publication(notification("text"), recipients, mail))
    dispatcher.disconnect(hear, NOTIFICATION_STORED)
    return duties[0]


async def _claimable(core: Core) -> list[Any]:
    return list(await core.store.claim_mail(60, 10))


async def test_who_is_away_is_owed_a_mail_at_once_and_who_is_here_later(core: Core) -> None:
    """An open connection puts the mail off until the push must have been noticed; without an address there is none."""
    mail = Mail("subject", "text")
    duty = await _duty(core, mail, PRESENT, WITHOUT_ADDRESS, ABSENT)
    [job] = await _claimable(core)
    later = job.created_at + timedelta(seconds=core.presence.away_after_s)
    here = MailRecipient("alice", "alice@example.test", later, accepted_online=True)
    away = MailRecipient("bob", "bob@example.test", job.created_at)
    assert duty == EmailDuty(mail, (here, away))
    assert job.recipients == (away,)
    assert await core.store.next_mail_due() is not None


async def test_a_forced_mail_is_owed_to_all_at_once(core: Core) -> None:
    """Online or not."""
    duty = await _duty(core, Mail("subject", "text", forced=True), PRESENT, ABSENT)
    [job] = await _claimable(core)
    assert duty is not None
    assert duty.recipients == job.recipients
    assert [(each.user_id, each.due_at, each.accepted_online) for each in duty.recipients] == [
        ("alice", job.created_at, False),
        ("bob", job.created_at, False),
    ]


async def test_nothing_is_stored_for_a_tenant_that_goes_while_it_is_asked_who_is_here(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other nodes may take a second to answer, for each mail of a batch: in that time a tenant can be removed, and
    erased."""
    tenants = {DEFAULT_TENANT}
    notifier = Notifier(
        cast("Store", core.store), core.backplane, core.presence, lambda tenant: tenant in tenants
    )

    async def online(rooms: Collection[Room]) -> set[Room]:
        tenants.clear()
        return set()

    monkeypatch.setattr(core.presence, "online", online)
    mailed = Publication(notification("text"), (ABSENT,), Mail("subject", "text"))
    with pytest.raises(TenantGone):
        await notifier.notify(mailed)
    tenants.add(DEFAULT_TENANT)
    with pytest.raises(TenantGone):
        await notifier.notify_many([mailed])
    assert core.store.calls == []


@pytest.mark.parametrize(
    ("mail", "recipient"),
    [(None, ABSENT), (Mail("subject", "text"), WITHOUT_ADDRESS)],
    ids=["unasked", "nowhere"],
)
async def test_no_duty_where_nobody_is_to_be_mailed(
    core: Core, mail: Mail | None, recipient: Recipient
) -> None:
    """Not asked for, or no address."""
    assert await _duty(core, mail, recipient) is None
    assert await _claimable(core) == []


# -- completing, closing -------------------------------------------------------------------------------------
async def test_what_a_crash_left_half_stored_is_completed_and_pushed(
    core: Core, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Screens and counts hear of it as of anything new. (The embedded store never leaves anything: its answer is
    made up here.)"""
    alice = await core.join("alice")
    documents = await core.fill("alice", 2)

    async def completed() -> list[Document]:
        return documents

    monkeypatch.setattr(core.store, "complete_intents", completed, raising=False)
    assert await core.notifier.complete() == 2
    await core.backplane.flushed()
    assert [message.ids for message in alice.received()] == [[documents[0].id], [documents[1].id]]
    assert ear.changed == [[ALICE, ALICE]]


async def test_nothing_to_complete_is_nothing_to_tell(core: Core) -> None:
    """The usual case."""
    alice = await core.join("alice")
    assert await core.notifier.complete() == 0
    await core.backplane.flushed()
    assert not alice.received()


async def test_close_waits_for_what_came_before_and_refuses_what_comes_after(core: Core) -> None:
    """Nothing accepted is dropped; who comes too late is told to try again."""
    gate = core.store.hold("add")
    accepted = [asyncio.ensure_future(core.notifier.notify(publication(user))) for user in ("alice", "bob")]
    await gate.reached()
    closing = asyncio.ensure_future(core.notifier.close())
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await core.notifier.notify(publication("alice"))
    with pytest.raises(Busy):
        await core.notifier.notify(publication())
    assert not closing.done()
    gate.open()
    await closing
    assert [len(stored.documents) for stored in await asyncio.gather(*accepted)] == [1, 1]
    await core.notifier.close()


async def test_a_failed_notification_does_not_keep_close_waiting(core: Core) -> None:
    """What ended in an error is answered for, too."""
    core.store.goes_away()
    with pytest.raises(StoreUnavailable):
        await core.notifier.notify(publication("alice"))
    async with asyncio.timeout(30):
        await core.notifier.close()


async def test_the_operator_hears_once_that_nothing_can_be_stored(
    core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    """And once that it can again, with the store's reason and without content."""
    caplog.set_level("WARNING", "server.notifier")
    core.store.failure = StoreUnavailable("database or disk is full")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await core.notify("alice", content="secret")
    core.store.is_back()
    for _ in range(3):
        await core.notify("alice", content="secret")
    assert [record.getMessage() for record in caplog.records] == [
        "notifications cannot be stored: database or disk is full",
        "notifications are stored again",
    ]
