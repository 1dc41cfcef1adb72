from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydispatch import dispatcher

from server import outbox
from server.bus import MAIL_SETTLED
from server.config import Email
from server.errors import StartupError, StoreUnavailable
from server.ids import new_id
from server.mail_folder import MailFolder
from server.mailing import ALONE_AFTER, DAY_S, SENDING_SHARE, backoff_s
from server.messages import EmailDuty, Mail, MailRecipient, Notification, Recipient, now
from server.outbox import OutboxWorker
from server.rates import Rate
from server.smtp import SMTPTransport
from server.store import MAX_JOB_RECIPIENTS, MailCounts, MailJob, MailOutcome, MailState
from server.store.sqlite import SQLiteStore
from tests.support.ports import free_port
from tests.support.smtp_sink import SMTPSink

LEASE_S = 60.0


class Clock:
    """The store's and the worker's; goes with the real one, and jumps."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return now() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


class Store(SQLiteStore):
    """The real one; tells what was settled, and fails or waits on demand."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path, clock=clock, monotonic=lambda: clock().timestamp())
        self.failing: set[str] = set()
        self.failed = asyncio.Event()
        self.claims = 0
        self.limits: list[int] = []
        self.accepted_s_ago: float | None = None
        self.found_nothing = asyncio.Event()
        self.claimed = asyncio.Event()
        self.may_claim = asyncio.Event()
        self.may_claim.set()
        self.at_settling = asyncio.Event()
        self.may_settle = asyncio.Event()
        self.may_settle.set()
        self._outcomes: asyncio.Queue[MailOutcome] = asyncio.Queue()

    def _maybe_fail(self, verb: str) -> None:
        if verb in self.failing:
            self.failed.set()
            raise StoreUnavailable()

    async def claim_mail(
        self, lease_s: float, limit: int, recipients: int = MAX_JOB_RECIPIENTS
    ) -> list[MailJob]:
        self.claims += 1
        self.limits.append(limit)
        self._maybe_fail("claim_mail")
        if "bug" in self.failing:
            self.failed.set()
            raise RuntimeError("a bug")
        jobs = await super().claim_mail(lease_s, limit, recipients)
        if jobs:
            self.claimed.set()
            await self.may_claim.wait()
        return [replace(job, accepted_s_ago=self.accepted_s_ago) for job in jobs]

    async def next_mail_due(self) -> datetime | None:
        due_at = await super().next_mail_due()
        if due_at is None:
            self.found_nothing.set()
        return due_at

    async def still_unseen(self, tenant: str, nid: str, user_ids: Collection[str]) -> set[str]:
        self._maybe_fail("still_unseen")
        return await super().still_unseen(tenant, nid, user_ids)

    async def settle_mail(self, job: MailJob, outcome: MailOutcome) -> bool:
        self.at_settling.set()
        await self.may_settle.wait()
        self._maybe_fail("settle_mail")
        is_settled = await super().settle_mail(job, outcome)
        self._outcomes.put_nowait(outcome)
        return is_settled

    async def outcome(self) -> MailOutcome:
        """What was settled next."""
        async with asyncio.timeout(20):
            return await self._outcomes.get()


class Signs:
    """Signs of life of the users named."""

    def __init__(self, *alive: str) -> None:
        self.alive = alive
        self.asked: list[tuple[str, str, datetime, float | None]] = []

    async def alive_since(
        self, tenant: str, user_ids: Collection[str], instant: datetime, ago_s: float | None
    ) -> set[str]:
        self.asked += [(tenant, user_id, instant, ago_s) for user_id in user_ids]
        return set(self.alive) & set(user_ids)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    store = Store(tmp_path / "notifications.sqlite3", clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def sink() -> AsyncIterator[SMTPSink]:
    with SMTPSink() as sink:
        yield sink


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_FIRST_S", "PAUSE_MAX_S", "MIN_SLEEP_S", "SETTLE_RETRY_S"):
        monkeypatch.setattr(outbox, name, 0.01)


def email(sink: SMTPSink | int, **settings: Any) -> Email:
    port = sink if isinstance(sink, int) else sink.port
    return replace(
        Email(host="127.0.0.1", port=port, security="none", sender="notify@example.org", lease_s=LEASE_S),
        **settings,
    )


def worker_for(store: Store, clock: Clock, settings: Email, signs: Signs | None = None) -> OutboxWorker:
    return OutboxWorker(store, SMTPTransport(settings), signs or Signs(), settings, clock=clock)


@asynccontextmanager
async def running(worker: OutboxWorker) -> AsyncIterator[OutboxWorker]:
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.stop(20)
        await task


def to(*user_ids: str, due_in_s: float = 0, accepted_online: bool = False) -> list[MailRecipient]:
    due_at = now() + timedelta(seconds=due_in_s)
    return [MailRecipient(user, f"{user}@example.org", due_at, accepted_online) for user in user_ids]


async def owe(
    store: Store, *recipients: MailRecipient, mail: Mail | None = None, created_at: datetime | None = None
) -> str:
    """Store a notification that these users are owed a mail for; its id."""
    notification = Notification(new_id(), "t", created_at or now(), "content")
    duty = EmailDuty(mail or Mail("Subject", "<p>Hello</p>"), recipients)
    users = [Recipient(recipient.user_id, recipient.email) for recipient in recipients]
    await store.add(notification, users, duty)
    return notification.nid


async def document_of(store: Store, user_id: str) -> str:
    [document] = await store.newest("t", user_id, before=None, limit=1)
    return document.id


# -- how fast ------------------------------------------------------------------------------------------------


async def test_no_faster_than_the_rate(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """What is over the rate stays owed, of one notification as of several, and waits without a lease."""
    await owe(store, *to("ann", "ben"))
    await owe(store, *to("cat", "dan", "eve", due_in_s=-1))
    async with running(worker_for(store, clock, email(sink, rate=Rate(4, 3600.0)))):
        outcomes = [await store.outcome() for _ in range(2)]
        assert sorted(len(outcome.sent) for outcome in outcomes) == [1, 3]
        assert await store.mail_counts() == MailCounts(due=1, refused=0)
        [job] = await store.claim_mail(LEASE_S, 10)
        assert [recipient.user_id for recipient in job.recipients] == ["ben"]
    assert len(sink.mails) == 2


async def test_as_the_rate_allows_more_it_goes_on(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None
) -> None:
    """All are mailed in the end, each once, and none faster than allowed."""
    await owe(store, *to("ann", "ben", "cat", "dan", "eve"))
    async with running(worker_for(store, clock, email(sink, rate=Rate(2, 0.2)))):
        mailed: list[str] = []
        while len(mailed) < 5:
            recipients = (await sink.next_mail()).recipients
            assert len(recipients) <= 2
            mailed += recipients
    assert len(set(mailed)) == len(mailed) == 5


# -- who gets it ---------------------------------------------------------------------------------------------


async def test_everybody_away_gets_one_message(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """One message goes to all who are owed it, and then it is owed no more."""
    nid = await owe(store, *to("ann", "ben"))
    async with running(worker_for(store, clock, email(sink))) as worker:
        mail = await sink.next_mail()
        outcome = await store.outcome()
    assert mail.recipients == ["ann@example.org", "ben@example.org"]
    assert f"Message-ID: <{nid}@example.org>".encode() in mail.content
    assert [recipient.user_id for recipient in outcome.sent] == ["ann", "ben"]
    assert await store.next_mail_due() is None
    assert (worker.sent, worker.refused, worker.retried, worker.dropped) == (2, 0, 0, 0)


async def test_the_bus_is_told_what_became_of_a_mail(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """With the tenant, once it is written down."""
    told: list[tuple[str, MailOutcome]] = []

    def hear(tenant: str, outcome: MailOutcome) -> None:
        told.append((tenant, outcome))

    await owe(store, *to("ann", "ben"))
    worker = worker_for(store, clock, email(sink))
    dispatcher.connect(hear, MAIL_SETTLED, sender=worker)
    async with running(worker):
        outcome = await store.outcome()
    dispatcher.disconnect(hear, MAIL_SETTLED, sender=worker)
    assert told == [("t", outcome)]


@pytest.mark.parametrize("change", ["mark_seen", "delete"])
async def test_seen_or_deleted_meanwhile(store: Store, sink: SMTPSink, clock: Clock, change: str) -> None:
    """Who has seen or deleted the notification gets no mail for it."""
    await owe(store, *to("ann", "ben"))
    await getattr(store, change)("t", "ann", [await document_of(store, "ann")])
    async with running(worker_for(store, clock, email(sink))) as worker:
        outcome = await store.outcome()
    assert [recipient.user_id for recipient in outcome.dropped] == ["ann"]
    assert sink.mails[0].recipients == ["ben@example.org"]
    assert (worker.sent, worker.dropped) == (1, 1)


async def test_nobody_left(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """When nobody is owed the mail any more, the mail server is not even called."""
    await owe(store, *to("ann"))
    await store.mark_seen("t", "ann", [await document_of(store, "ann")])
    async with running(worker_for(store, clock, email(sink))):
        outcome = await store.outcome()
    assert len(outcome.dropped) == 1
    assert sink.connections == 0
    assert await store.next_mail_due() is None


async def test_forced(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A forced mail goes to everybody, seen or not, online or not."""
    await owe(
        store, *to("ann"), *to("ben", accepted_online=True), mail=Mail("Subject", "content", forced=True)
    )
    await store.mark_seen("t", "ann", [await document_of(store, "ann")])
    async with running(worker_for(store, clock, email(sink), Signs("ann", "ben"))):
        mail = await sink.next_mail()
    assert mail.recipients == ["ann@example.org", "ben@example.org"]


@pytest.mark.parametrize("ago_s", [None, 50.0], ids=["by the clock of the node", "by one that nodes share"])
async def test_an_open_socket_is_not_a_reader(
    store: Store, sink: SMTPSink, clock: Clock, ago_s: float | None
) -> None:
    """Of those who were online, the mail goes to those whose connections have been silent since."""
    store.accepted_s_ago = ago_s
    created_at = now()
    await owe(store, *to("ann", "ben", accepted_online=True), *to("cat"), created_at=created_at)
    signs = Signs("ann", "cat")
    async with running(worker_for(store, clock, email(sink), signs)):
        outcome = await store.outcome()
    assert sink.mails[0].recipients == ["ben@example.org", "cat@example.org"]
    assert [recipient.user_id for recipient in outcome.dropped] == ["ann"]
    assert signs.asked == [("t", "ann", created_at, ago_s), ("t", "ben", created_at, ago_s)]


async def test_shared_address(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """Users who share an address get the mail once, in whatever form the address was given."""
    [ann], [ben] = to("ann"), to("ben")
    await owe(store, ann, replace(ben, email="ann@EXAMPLE.org"))
    async with running(worker_for(store, clock, email(sink))):
        outcome = await store.outcome()
    assert sink.mails[0].recipients == ["ann@example.org"]
    assert len(outcome.sent) == 2


# -- when it is due ------------------------------------------------------------------------------------------


async def test_woken(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A mail that comes to be owed goes out as soon as the worker is told."""
    async with running(worker_for(store, clock, email(sink))) as worker:
        await store.found_nothing.wait()
        await owe(store, *to("ann"))
        worker.wake()
        await sink.next_mail()


async def test_sent_when_due(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A mail that is due later goes out then, by itself, and those already due do not wait for it."""
    await owe(store, *to("ann"), *to("ben", due_in_s=0.7))
    async with running(worker_for(store, clock, email(sink))):
        assert (await sink.next_mail()).recipients == ["ann@example.org"]
        assert (await sink.next_mail()).recipients == ["ben@example.org"]


async def test_left_by_another_worker(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail that nobody told this worker of is found by looking now and then."""
    monkeypatch.setattr(outbox, "MAX_SLEEP_S", 0.05)
    async with running(worker_for(store, clock, email(sink))):
        await store.found_nothing.wait()
        await owe(store, *to("ann"))
        await sink.next_mail()


# -- refusals ------------------------------------------------------------------------------------------------


async def test_refused_for_good(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """Who is refused for good is kept with the server's words; the others have their mail."""
    sink.replies = {"ann@example.org": "550 5.1.1 no such user"}
    await owe(store, *to("ann", "ben"))
    async with running(worker_for(store, clock, email(sink))) as worker:
        outcome = await store.outcome()
    [refused] = outcome.refused
    assert (refused.user_id, refused.email, refused.code, refused.reason) == (
        "ann",
        "ann@example.org",
        550,
        "5.1.1 no such user",
    )
    assert [recipient.user_id for recipient in outcome.sent] == ["ben"]
    counts = await store.mail_counts()
    assert (counts.due, counts.refused) == (0, 1)
    assert (worker.sent, worker.refused) == (1, 1)


async def test_not_an_address(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """What is no address is refused here, and stops nobody else's mail."""
    [ann] = to("ann")
    await owe(store, replace(ann, email="ann@example.org>\r\nRCPT TO:<eve@example.org"), *to("ben"))
    async with running(worker_for(store, clock, email(sink))):
        outcome = await store.outcome()
    assert [(refused.user_id, refused.code, refused.reason) for refused in outcome.refused] == [
        ("ann", 0, "not an e-mail address")
    ]
    assert sink.mails[0].recipients == ["ben@example.org"]


async def test_no_address_at_all(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A mail that has nobody to go to does not reach the mail server."""
    [ann] = to("ann")
    await owe(store, replace(ann, email="nowhere"))
    async with running(worker_for(store, clock, email(sink))):
        assert len((await store.outcome()).refused) == 1
    assert sink.connections == 0


async def test_growing_delay(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A temporary refusal is tried again after a delay that grows up to its bound, until it passes."""
    sink.replies = {"ann@example.org": "451 4.7.1 greylisted"}
    settings = email(sink, retry_first_s=100.0, retry_max_s=1000.0)
    await owe(store, *to("ann", "ben"))
    delays = []
    async with running(worker_for(store, clock, settings)) as worker:
        for _ in range(6):
            before = clock()
            outcome = await store.outcome()
            [postponed] = outcome.retry
            assert (postponed.user_id, postponed.code, postponed.is_untried) == ("ann", 451, False)
            delays.append((postponed.retry_at - before).total_seconds())
            clock.advance(delays[-1])
            worker.wake()
        sink.replies.clear()
        assert len((await store.outcome()).sent) == 1
    for delay, bound in zip(delays, (100, 200, 400, 800, 1000, 1000), strict=True):
        assert bound / 2 - 1 <= delay <= bound + 20
    assert len(set(delays)) == len(delays)
    assert [mail.recipients for mail in sink.mails] == [["ben@example.org"], ["ann@example.org"]]
    assert sink.mails[0].content == sink.mails[1].content
    assert (worker.sent, worker.retried) == (2, 6)


async def test_gives_up(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """When the mail server has put somebody off for days the mail is given up, and kept with the last answer."""
    sink.replies = {"ann@example.org": "451 4.7.1 greylisted"}
    settings = email(sink, retry_first_s=2 * DAY_S, retry_max_s=2 * DAY_S, give_up_after_s=5 * DAY_S)
    await owe(store, *to("ann"))
    put_off_for = timedelta()
    async with running(worker_for(store, clock, settings)) as worker:
        while (outcome := await store.outcome()).retry:
            [postponed] = outcome.retry
            put_off_for += postponed.retry_at - clock()
            clock.advance((postponed.retry_at - clock()).total_seconds() + 1)
            worker.wake()
    [refused] = outcome.refused
    assert refused.code == 451
    assert refused.reason == "gave up after 5 days; the last answer: 4.7.1 greylisted"
    assert timedelta(days=5) < put_off_for < timedelta(days=7, minutes=1)
    assert outcome.retry == () and await store.next_mail_due() is None


async def test_only_the_mail_server_can_make_it_give_up(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """Not that this server, or the mail server, was not there for longer than a mail may be put off."""
    sink.replies = {"ann@example.org": "451 4.7.1 greylisted"}
    settings = email(sink, retry_first_s=1.0, retry_max_s=1.0, give_up_after_s=5 * DAY_S)
    await owe(store, *to("ann"))
    async with running(worker_for(store, clock, settings)) as worker:
        for _ in range(3):
            assert (await store.outcome()).retry
            clock.advance(10 * DAY_S)
            worker.wake()
        sink.replies.clear()
        while not (outcome := await store.outcome()).sent:
            assert outcome.retry
            clock.advance(10)
            worker.wake()


async def test_giving_up_is_about_each_recipient(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """Who comes late has as many days as those before."""
    sink.replies = dict.fromkeys(("ann@example.org", "ben@example.org"), "451 4.7.1 greylisted")
    settings = email(sink, retry_first_s=1000.0, retry_max_s=1000.0, give_up_after_s=100.0)
    await owe(store, *to("ann"), *to("ben", due_in_s=900))
    async with running(worker_for(store, clock, settings)) as worker:
        assert [each.user_id for each in (await store.outcome()).retry] == ["ann"]
        clock.advance(1001)
        worker.wake()
        outcome = await store.outcome()
    assert [each.user_id for each in outcome.refused] == ["ann"]
    assert [each.user_id for each in outcome.retry] == ["ben"]


async def test_an_outage_ends_no_mail(store: Store, clock: Clock, no_pauses: None) -> None:
    """However long the mail server is away: no attempt is counted, and the retry stays near."""
    port = free_port()
    settings = email(port, retry_first_s=10.0, give_up_after_s=1.0)
    nid = await owe(store, *to("ann"))
    async with running(worker_for(store, clock, settings)) as worker:
        for _ in range(4):
            before = clock()
            [postponed] = (await store.outcome()).retry
            assert postponed.is_untried
            assert postponed.retry_at - before < timedelta(seconds=10 + 20)
            clock.advance(DAY_S)
            worker.wake()
    [entry] = await store.outbox.entries("t", nid=nid, limit=10)
    assert (entry.attempts, entry.code) == (0, 0)
    assert entry.reason and entry.reason.startswith(f"no connection to 127.0.0.1:{port}")


async def test_an_outage_ends_no_mail_that_was_put_off_before(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None
) -> None:
    """Though its time would be over: the mail server has not said so."""
    sink.replies = {"ann@example.org": "451 4.7.1 greylisted"}
    settings = email(sink, retry_first_s=1000.0, retry_max_s=1000.0, give_up_after_s=100.0)
    await owe(store, *to("ann"))
    async with running(worker_for(store, clock, settings)) as worker:
        [postponed] = (await store.outcome()).retry
        assert not postponed.is_untried
        sink.cut_at = "MAIL"
        clock.advance(1001)
        worker.wake()
        [postponed] = (await store.outcome()).retry
        assert postponed.is_untried


async def test_what_one_message_was_refused_for_holds_after_the_next(
    store: Store, sink: SMTPSink, clock: Clock
) -> None:
    """Whoever was put off by the message to all is not taken for mailed because one that went apart went out."""
    ann, ben = to("ann", "ben")
    sink.replies = {ann.email: "451 4.7.1 greylisted"}
    settings = email(sink, retry_first_s=10.0, retry_max_s=10.0)
    await owe(store, ann, replace(ben, due_at=ben.due_at + timedelta(seconds=25)))
    async with running(worker_for(store, clock, settings)) as worker:
        for seconds in (10, 20):
            assert [each.user_id for each in (await store.outcome()).retry] == ["ann"]
            clock.advance(seconds)
            if seconds == 20:
                sink.replies = {ben.email: "451 4.7.1 greylisted"}
            worker.wake()
        outcome = await store.outcome()
    assert [each.user_id for each in outcome.sent] == ["ann"]
    assert [each.user_id for each in outcome.retry] == ["ben"]


async def test_who_was_put_off_together_goes_together_again(
    store: Store, sink: SMTPSink, clock: Clock
) -> None:
    """In one message, not one for each."""
    sink.replies = {f"{user}@example.org": "451 4.7.1 greylisted" for user in ("ann", "ben", "cat")}
    await owe(store, *to("ann", "ben", "cat"))
    async with running(worker_for(store, clock, email(sink))) as worker:
        [due_at] = {each.retry_at for each in (await store.outcome()).retry}
        sink.replies.clear()
        clock.advance((due_at - clock()).total_seconds())
        worker.wake()
        assert len((await store.outcome()).sent) == 3
    assert len(sink.mails) == 1


@pytest.mark.parametrize("failures", [1, 10, 100, 100_000])
def test_a_delay_has_a_bound(failures: int) -> None:
    """Also after an outage of weeks, however short the first one is."""
    assert 30 <= backoff_s(random.Random(1), failures, 60.0, 60.0) <= 60
    assert backoff_s(random.Random(1), failures, 1.0, 60.0) <= 60


async def test_an_outage_ends_an_attempt_with_several_messages(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None
) -> None:
    """Those who would be mailed alone are not come to, and are tried again as soon as if it were the first time."""
    users = ("ann", "ben", "cat")
    sink.replies = {f"{user}@example.org": "451 4.7.1 greylisted" for user in users}
    first_s = 1000.0
    settings = email(sink, retry_first_s=first_s, retry_max_s=1e6)
    await owe(store, *to(*users))
    async with running(worker_for(store, clock, settings)) as worker:
        for round_ in range(1, ALONE_AFTER + 1):
            assert len((await store.outcome()).retry) == len(users)
            connections = sink.connections
            sink.cut_at = "MAIL" if round_ == ALONE_AFTER else None
            clock.advance(4 * first_s)
            worker.wake()
        postponed = (await store.outcome()).retry
    assert [each.is_untried for each in postponed] == [True] * len(users)
    assert max(each.retry_at for each in postponed) <= clock() + timedelta(seconds=first_s)
    assert sink.connections <= connections + 1


async def test_what_may_not_be_answered_in_time_is_not_begun(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When too little of a lease is left the mail waits for another: no attempt is counted, and nothing is out."""
    monkeypatch.setattr("server.mailing.BEGIN_SHARE", 0.0)
    await owe(store, *to("ann"))
    async with running(worker_for(store, clock, email(sink))) as worker:
        [postponed] = (await store.outcome()).retry
        assert postponed.is_untried and not worker.has_outage
        assert sink.connections == 0


async def test_one_of_a_thousand_is_retried_alone(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """Nobody waits for the one who is put off, nobody gets the mail twice, and the last answer is kept."""
    users = [f"user{number}" for number in range(1000)]
    flaky = "user500@example.org"
    sink.replies = {flaky: "451 4.7.1 greylisted"}
    nid = await owe(store, *to(*users))
    async with running(worker_for(store, clock, email(sink))) as worker:
        outcome = await store.outcome()
        assert (len(outcome.sent), [each.email for each in outcome.retry]) == (999, [flaky])
        [entry] = await store.outbox.entries("t", nid=nid, limit=10)
        assert (entry.state, entry.attempts, entry.reason) == (MailState.WAITING, 1, "4.7.1 greylisted")
        sink.replies.clear()
        clock.advance(3600)
        worker.wake()
        assert [each.email for each in (await store.outcome()).sent] == [flaky]
    assert sink.mails[-1].recipients == [flaky]
    assert {mail.content for mail in sink.mails} == {sink.mails[0].content}
    mailed = Counter(address for mail in sink.mails for address in mail.recipients)
    assert mailed == Counter(f"{user}@example.org" for user in users)


async def test_who_breaks_connections_holds_up_nobody(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None
) -> None:
    """All others are mailed once, also those of the same notification; each in a message apart in the end."""
    sink.cut_recipients = {"user3@example.org"}
    others = {f"user{number}@example.org" for number in range(20)} - sink.cut_recipients
    await owe(store, *to(*(f"user{number}" for number in range(20))))
    await owe(store, *to("ann"))
    settings = email(sink, recipients_per_message=5, retry_first_s=10.0, retry_max_s=10.0)
    async with running(worker_for(store, clock, settings)) as worker:
        while {address for mail in sink.mails for address in mail.recipients} != others | {"ann@example.org"}:
            await store.outcome()
            clock.advance(10)
            worker.wake()
    assert max(Counter(address for mail in sink.mails for address in mail.recipients).values()) == 1


@pytest.mark.parametrize("due_in_s", [12, 25], ids=["claimed first", "claimed last"])
async def test_an_address_that_failed_for_one_user_is_mailed_alone_for_all(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None, due_in_s: float
) -> None:
    """Whoever shares it, though the mail was never tried for them: it breaks no message to others."""
    [ann] = to("ann")
    [ben, cat] = to("ben", "cat", due_in_s=due_in_s)
    await owe(store, ann, replace(ben, email=ann.email), cat)
    sink.replies = {ann.email: "451 4.7.1 greylisted"}
    settings = email(sink, retry_first_s=10.0, retry_max_s=10.0)
    async with running(worker_for(store, clock, settings)) as worker:
        for seconds in (10, 20):
            assert [each.user_id for each in (await store.outcome()).retry] == ["ann"]
            clock.advance(seconds)
            if seconds == 20:
                sink.cut_recipients = {ann.email}
            worker.wake()
        outcome = await store.outcome()
        assert [each.user_id for each in outcome.sent] == ["cat"]
        assert {each.user_id for each in outcome.retry} == {"ann", "ben"}
    assert [mail.recipients for mail in sink.mails] == [[cat.email]]


async def test_what_an_operator_lets_be_retried(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead letter goes out after all, without anybody waking the worker; however old, it may fail again first."""
    monkeypatch.setattr(outbox, "MAX_SLEEP_S", 0.05)
    sink.replies = {"ann@example.org": "550 5.1.1 no such user"}
    nid = await owe(store, *to("ann"), created_at=now() - timedelta(days=30))
    settings = email(sink, retry_first_s=0.01, retry_max_s=0.01)
    async with running(worker_for(store, clock, settings)):
        assert (await store.outcome()).refused
        sink.replies = {"ann@example.org": "451 4.7.1 greylisted"}
        assert await store.outbox.retry("t", {nid: None}) == 1
        for _ in range(3):
            assert (await store.outcome()).retry
        sink.replies.clear()
        await sink.next_mail()


async def test_what_an_operator_drops_is_not_mailed(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """What a worker has in hand goes its way, the rest does not."""
    nid = await owe(store, *to("ann"), *to("ben", due_in_s=60))
    store.may_settle.clear()
    async with running(worker_for(store, clock, email(sink))) as worker:
        await store.at_settling.wait()
        assert await store.outbox.drop("t", {nid: None}) == 1
        store.may_settle.set()
        assert [each.user_id for each in (await store.outcome()).sent] == ["ann"]
        clock.advance(61)
        worker.wake()
        await store.found_nothing.wait()
    assert [mail.recipients for mail in sink.mails] == [["ann@example.org"]]


async def test_an_old_mail_gets_its_chance(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A mail that grew old while this server was down is not given up at the first failure."""
    sink.replies = {"ann@example.org": "451 4.7.1 greylisted"}
    await owe(store, *to("ann"), created_at=now() - timedelta(days=30))
    async with running(worker_for(store, clock, email(sink))):
        assert (await store.outcome()).retry


# -- when something breaks -----------------------------------------------------------------------------------


async def test_outage(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture, no_pauses: None) -> None:
    """While the mail server is away nothing is lost; when it is back, all goes out, and the log has told both."""
    caplog.set_level(logging.INFO, "server.outbox")
    port = free_port()
    settings = email(port, retry_first_s=0.01, retry_max_s=0.01)
    for user in ("ann", "ben", "cat"):
        await owe(store, *to(user))
    async with running(worker_for(store, clock, settings)) as worker:
        assert not worker.has_outage
        for _ in range(8):
            assert (await store.outcome()).retry
        assert worker.has_outage
        with SMTPSink(port=port) as sink:
            arrived = {(await sink.next_mail()).recipients[0] for _ in range(3)}
    assert not worker.has_outage
    assert arrived == {"ann@example.org", "ben@example.org", "cat@example.org"}
    told = [record.getMessage() for record in caplog.records if "to retry" not in record.getMessage()]
    assert told[0].startswith(f"mail does not go out (SMTP 127.0.0.1:{port} (not encrypted)): no connection")
    assert told[1:] == [f"mail goes out again (SMTP 127.0.0.1:{port} (not encrypted))"]


async def test_an_outage_is_not_hammered(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed connection the other mails keep their turn, whoever wakes the worker."""
    monkeypatch.setattr(outbox, "PAUSE_FIRST_S", 60.0)
    sink.replies = {"EHLO": "421 4.3.2 shutting down"}
    for number in range(10):
        await owe(store, *to(f"user{number}"))
    async with running(worker_for(store, clock, email(sink, concurrency=4))) as worker:
        for _ in range(4):
            assert (await store.outcome()).retry
        claims = store.claims
        for _ in range(5):
            worker.wake()
            await store.ping()
        assert store.claims == claims
        assert sink.connections == 4


async def test_an_outage_is_probed_by_one_mail(store: Store, clock: Clock, no_pauses: None) -> None:
    """However many hands there are; the first ones have found it together, which is one failure."""
    for number in range(8):
        await owe(store, *to(f"user{number}"))
    settings = email(free_port(), concurrency=4, retry_first_s=1000.0)
    async with running(worker_for(store, clock, settings)) as worker:
        for _ in range(8):
            assert (await store.outcome()).retry
        assert worker.has_outage
    assert store.limits[:5] == [4, 1, 1, 1, 1]


async def test_an_outage_that_several_hands_see_is_one(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause after it is the first one."""
    pauses = []

    def noted(rng: Any, failures: int, *_: float) -> float:
        pauses.append(failures)
        return 3600.0

    monkeypatch.setattr(outbox, "backoff_s", noted)
    sink.replies = {"EHLO": "421 4.3.2 shutting down"}
    for number in range(4):
        await owe(store, *to(f"user{number}"))
    async with running(worker_for(store, clock, email(sink, concurrency=4))):
        for _ in range(4):
            assert (await store.outcome()).retry
    assert pauses == [0]


async def test_a_mail_that_goes_out_ends_the_pause(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was on its way when another one seemed to show an outage."""
    monkeypatch.setattr(outbox, "PAUSE_FIRST_S", 3600.0)
    sink.looks_for_s, sink.cut_recipients = 2.0, {"ben@example.org"}
    await owe(store, *to("ann"))
    async with running(worker_for(store, clock, email(sink, concurrency=2))) as worker:
        await store.claimed.wait()
        await owe(store, *to("ben"))
        worker.wake()
        assert (await store.outcome()).retry
        sink.looks_for_s = 0.0
        assert (await store.outcome()).sent
        await owe(store, *to("cat"))
        worker.wake()
        assert (await store.outcome()).sent


async def test_needs_the_operator(
    store: Store, sink: SMTPSink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault that does not pass by itself is an error in the log; neither it nor anything else tells secrets."""
    caplog.set_level(logging.DEBUG, "server")
    settings = email(sink, login="us", password="open-sesame")
    await owe(store, *to("ann"), mail=Mail("Sub-ject", "Con-tent"))
    async with running(worker_for(store, clock, settings)):
        assert (await store.outcome()).retry
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "mail does not go out" in record.getMessage()
    for secret in ("open-sesame", "ann@example.org", "Sub-ject", "Con-tent"):
        assert secret not in caplog.text


async def test_one_bad_mail(
    store: Store, sink: SMTPSink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A mail that makes us stumble is logged by its notification and put off; the others go out."""
    nid = await owe(store, *to("ann"), mail=Mail("Subject", "content", subtype="no/subtype"))
    await owe(store, *to("ben"))
    async with running(worker_for(store, clock, email(sink, concurrency=1))):
        assert (await store.outcome()).retry
        assert (await sink.next_mail()).recipients == ["ben@example.org"]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert nid in record.getMessage()


async def test_a_stuck_mail_holds_up_nobody(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """While one mail waits for the mail server, the next ones go out."""
    sink.hang_at = "RCPT"
    await owe(store, *to("ann"))
    async with running(worker_for(store, clock, email(sink, concurrency=2, timeout_s=3.0))) as worker:
        await sink.stuck.wait()
        sink.hang_at = None
        await owe(store, *to("ben"))
        worker.wake()
        assert (await store.outcome()).sent[0].user_id == "ben"


async def test_no_more_hands_than_configured(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """There are never more connections than configured, and all mails get their turn."""
    store.may_settle.clear()
    for number in range(6):
        await owe(store, *to(f"user{number}"))
    async with running(worker_for(store, clock, email(sink, concurrency=2))) as worker:
        await sink.next_mail()
        await sink.next_mail()
        worker.wake()
        await store.ping()
        assert sink.connections == 2
        store.may_settle.set()
        for _ in range(4):
            await sink.next_mail()


# -- crashes and restarts ------------------------------------------------------------------------------------


async def test_crash_between_sending_and_settling(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A mail that was sent and not settled is sent again when its lease is over: repeated, not lost."""
    await owe(store, *to("ann"))
    store.may_settle.clear()
    crashing = worker_for(store, clock, email(sink))
    task = asyncio.create_task(crashing.run())
    first = await sink.next_mail()
    await store.at_settling.wait()
    await crashing.stop(0)
    await task
    store.may_settle.set()

    async with running(worker_for(store, clock, email(sink))) as worker:
        assert await store.claim_mail(LEASE_S, 10) == []
        clock.advance(LEASE_S + 1)
        worker.wake()
        second = await sink.next_mail()
        assert len((await store.outcome()).sent) == 1
    assert second == first
    assert await store.next_mail_due() is None


async def test_restart(tmp_path: Path, sink: SMTPSink, clock: Clock) -> None:
    """Mail owed when the server went down goes out after its next start."""
    path = tmp_path / "notifications.sqlite3"
    before = Store(path, clock)
    await before.open()
    await owe(before, *to("ann"))
    await before.close()
    after = Store(path, clock)
    await after.open()
    async with running(worker_for(after, clock, email(sink))):
        assert (await sink.next_mail()).recipients == ["ann@example.org"]
    await after.close()


async def test_outlived_lease(
    store: Store, sink: SMTPSink, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that settles too late changes nothing that another has done since, and says so."""
    nid = await owe(store, *to("ann"))
    store.may_settle.clear()
    async with running(worker_for(store, clock, email(sink))):
        await store.at_settling.wait()
        clock.advance(LEASE_S + 1)
        [job] = await store.claim_mail(LEASE_S, 10)
        store.may_settle.set()
        await store.outcome()
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert f"mailing notification {nid} outlived its lease" in caplog.text


async def test_a_lease_begins_before_the_claim_is_answered(
    store: Store, sink: SMTPSink, clock: Clock
) -> None:
    """What is left of it when that comes so late is for settling: a mail still on its way at its end would go out
    twice."""
    await owe(store, *to("ann"))
    store.may_claim.clear()
    async with running(worker_for(store, clock, email(sink, lease_s=1.0))):
        await store.claimed.wait()
        await asyncio.sleep(SENDING_SHARE)
        store.may_claim.set()
        [postponed] = (await store.outcome()).retry
        assert postponed.is_untried
    assert not sink.mails


@pytest.mark.parametrize("verb", ["claim_mail", "bug"])
async def test_store_away_when_claiming(
    store: Store, sink: SMTPSink, clock: Clock, verb: str, no_pauses: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a store that is away nor a bug ends the worker: it goes on when that is over."""
    await owe(store, *to("ann"))
    store.failing = {verb}
    async with running(worker_for(store, clock, email(sink))):
        await store.failed.wait()
        store.failed.clear()
        await store.failed.wait()
        store.failing.clear()
        await sink.next_mail()
    assert caplog.records


async def test_store_away_when_settling(store: Store, sink: SMTPSink, clock: Clock, no_pauses: None) -> None:
    """What was sent is settled when the store is back, so that it is not sent again."""
    await owe(store, *to("ann"))
    store.failing = {"settle_mail"}
    async with running(worker_for(store, clock, email(sink))):
        await store.failed.wait()
        store.failing.clear()
        assert len((await store.outcome()).sent) == 1
    assert len(sink.mails) == 1


async def test_store_away_for_a_whole_lease(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be settled while its lease held is sent again."""
    nid = await owe(store, *to("ann"))
    store.failing = {"settle_mail"}
    async with running(worker_for(store, clock, email(sink, lease_s=1.0))):
        await sink.next_mail()
        await sink.next_mail()
        store.failing.clear()
        assert len((await store.outcome()).sent) == 1
    assert f"mail for notification {nid} waits for the store" in caplog.text


async def test_store_away_when_asked_who_is_left(
    store: Store, sink: SMTPSink, clock: Clock, no_pauses: None
) -> None:
    """Without an answer nobody is mailed too early: the mail waits for its lease to end."""
    await owe(store, *to("ann"))
    store.failing = {"still_unseen"}
    async with running(worker_for(store, clock, email(sink))) as worker:
        await store.failed.wait()
        store.failing.clear()
        assert sink.connections == 0
        clock.advance(LEASE_S + 1)
        worker.wake()
        await sink.next_mail()


# -- stopping ------------------------------------------------------------------------------------------------


async def test_stop_lets_the_mail_in_hand_be_settled(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """Stopping waits for what is being sent and claims no more."""
    await owe(store, *to("ann"))
    store.may_settle.clear()
    worker = worker_for(store, clock, email(sink))
    task = asyncio.create_task(worker.run())
    await store.at_settling.wait()
    await owe(store, *to("ben"))
    stopping = asyncio.create_task(worker.stop(20))
    worker.wake()
    await task
    store.may_settle.set()
    await stopping
    assert [recipient.user_id for recipient in (await store.outcome()).sent] == ["ann"]
    assert len(sink.mails) == 1


async def test_stop_does_not_wait_for_ever(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """What does not end by the deadline is dropped, still owed, and stopping again is no harm."""
    sink.hang_at = "MAIL"
    await owe(store, *to("ann"))
    worker = worker_for(store, clock, email(sink))
    task = asyncio.create_task(worker.run())
    await sink.stuck.wait()
    await worker.stop(0.05)
    await worker.stop(0.05)
    await task
    assert (await store.mail_counts()).due == 1


async def test_stop_says_goodbye(
    store: Store, sink: SMTPSink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the connection that is kept for the next mail."""
    monkeypatch.setattr("server.smtp.KEEP_S", 3600.0)
    await owe(store, *to("ann"))
    async with running(worker_for(store, clock, email(sink))):
        assert (await store.outcome()).sent
    async with asyncio.timeout(20):
        await sink.quitted.wait()


async def test_stop_before_the_start(store: Store, sink: SMTPSink, clock: Clock) -> None:
    """A worker that never ran stops at once."""
    worker = worker_for(store, clock, email(sink))
    await worker.stop(20)
    await worker.run()
    assert store.claims == 0


# -- the rest ------------------------------------------------------------------------------------------------


async def test_into_the_folder(store: Store, clock: Clock, tmp_path: Path) -> None:
    """Without a mail server the mail becomes one file, whether the users were away or silent."""
    mails = MailFolder(tmp_path / "mail")
    await owe(store, *to("ann"), *to("ben", due_in_s=0.7, accepted_online=True))
    async with running(OutboxWorker(store, mails, Signs(), Email(), clock=clock)):
        await store.outcome()
        await store.outcome()
    [mail] = await mails.list_newest(10)
    assert mail["to"] == ["ann@example.org", "ben@example.org"]
    assert mail["from"] == "notifications@localhost"


async def test_bad_sender(store: Store) -> None:
    """A sender that is no address stops the start, and says how to write one."""
    with pytest.raises(StartupError, match=r"\[EMAIL\] sender: not an e-mail address; write"):
        OutboxWorker(store, MailFolder(Path("mail")), Signs(), Email(sender="nobody"))
