"""What every store promises about mail (`server.store.Store`), over all kinds of store.

The stores' clock is the real one: what is due was due a minute ago, what is not due comes in an hour, and a lease of no
seconds has run out at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from server.ids import new_id
from server.messages import EmailDuty, Mail, MailRecipient, Recipient, now
from server.store import MailCounts, MailJob, MailOutcome, PostponedMail, RefusedMail, Store
from tests.support.stores import TENANT, Place, make_notification, owe, put

LONG_S = 600.0
"""A lease that does not run out during a test."""


def past(seconds: float = 60.0) -> datetime:
    return now() - timedelta(seconds=seconds)


def future(seconds: float = 3600.0) -> datetime:
    return now() + timedelta(seconds=seconds)


def to(user_id: str, due_at: datetime | None = None, accepted_online: bool = False) -> MailRecipient:
    """Somebody who is owed a mail, since a minute unless told otherwise."""
    return MailRecipient(user_id, f"{user_id}@example.test", due_at or past(), accepted_online)


def users(job: MailJob) -> list[str]:
    return sorted(recipient.user_id for recipient in job.recipients)


async def claim(store: Store, lease_s: float = LONG_S, limit: int = 100) -> list[MailJob]:
    return await store.claim_mail(lease_s, limit)


async def test_no_mail_is_owed(store: Store) -> None:
    """A notification without a duty owes nothing."""
    await put(store)
    assert await claim(store) == []
    assert await store.next_mail_due() is None
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_a_claimed_job_holds_what_was_owed(store: Store) -> None:
    """Notification, text and recipients as they went in, any Unicode included."""
    mail = Mail("Grüße \U0001f600\0\u2028", "<b>שלום</b>\r\n" + "x" * 10_000, "plain", forced=True)
    recipients = (to("alice"), to("bób\0", past(5), accepted_online=True))
    notification = await owe(store, *recipients, mail=mail, created_at=past())
    [job] = await claim(store)
    assert (job.nid, job.tenant, job.created_at) == (notification.nid, TENANT, notification.created_at)
    assert job.mail == mail
    assert set(job.recipients) == set(recipients)
    assert len(job.recipients) == 2
    assert [recipient.attempts for recipient in job.recipients] == [0, 0]
    assert job.lease


async def test_a_single_recipient(store: Store) -> None:
    """One user, one mail: the commonest case, from the claim to the end."""
    await owe(store, to("alice"))
    assert await store.mail_counts() == MailCounts(due=1, refused=0)
    [job] = await claim(store)
    assert users(job) == ["alice"]
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert await claim(store) == []
    assert await store.next_mail_due() is None
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_recipients_of_the_notification_without_mail(store: Store) -> None:
    """Only those of the duty are owed a mail."""
    duty = EmailDuty(Mail("s", "c"), (to("alice"),))
    recipients = [
        Recipient("alice", "alice@example.test"),
        Recipient("bob"),
        Recipient("carol", "c@example.test"),
    ]
    await store.add(make_notification(), recipients, duty)
    [job] = await claim(store)
    assert users(job) == ["alice"]


async def test_many_recipients_are_one_job(store: Store) -> None:
    """A thousand recipients of one notification."""
    recipients = [to(f"user-{number}") for number in range(1000)]
    await owe(store, *recipients)
    [job] = await claim(store)
    assert set(job.recipients) == set(recipients)
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_a_job_of_some_recipients(store: Store) -> None:
    """A claim takes as many recipients as asked for, earliest due first; the others when that is settled."""
    await owe(store, to("alice", past(10)), to("bob", past(30)), to("carol", past(20)))
    [first] = await store.claim_mail(LONG_S, 10, 2)
    assert users(first) == ["bob", "carol"]
    assert await store.settle_mail(first, MailOutcome(sent=first.recipients))
    [second] = await store.claim_mail(LONG_S, 10, 2)
    assert users(second) == ["alice"]
    assert await store.settle_mail(second, MailOutcome(sent=second.recipients))
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_only_due_recipients_are_claimed(store: Store) -> None:
    """Those who come later stay owed, and are claimed for themselves when their time comes."""
    later = future()
    await owe(store, to("alice"), to("bob", later, accepted_online=True), to("carol"))
    [job] = await claim(store)
    assert users(job) == ["alice", "carol"]
    assert await claim(store) == []
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert await claim(store) == []
    assert await store.mail_counts() == MailCounts(due=1, refused=0)
    assert await store.next_mail_due() == later


async def test_nothing_is_due_yet(store: Store) -> None:
    """A mail that is not due is not claimed, and says when it will be."""
    sooner, later = future(60), future(120)
    await owe(store, to("alice", later))
    await owe(store, to("bob", sooner), to("carol", later))
    assert await claim(store) == []
    assert await store.next_mail_due() == sooner
    assert await store.mail_counts() == MailCounts(due=3, refused=0)


async def test_the_earliest_due_come_first(store: Store) -> None:
    """By the earliest of each notification's due recipients, `limit` notifications at a time."""
    ages = [30, 50, 10, 40, 20]
    for age in ages:
        await owe(store, to(f"late-{age}", past(1)), to(f"early-{age}", past(age)))
    claimed = [await claim(store, limit=2) for _ in range(4)]
    assert [[users(job)[0] for job in jobs] for jobs in claimed] == [
        ["early-50", "early-40"],
        ["early-30", "early-20"],
        ["early-10"],
        [],
    ]
    assert all(len(job.recipients) == 2 for jobs in claimed for job in jobs)


async def test_a_leased_job_is_not_claimed_again(store: Store) -> None:
    """Until its lease runs out it is owed, but nobody else's."""
    await owe(store, to("alice"))
    started_at = now()
    [job] = await claim(store)
    assert await claim(store) == []
    assert await store.mail_counts() == MailCounts(due=1, refused=0)
    due_at = await store.next_mail_due()
    assert due_at is not None and due_at >= started_at + timedelta(seconds=LONG_S)
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))


async def test_a_lapsed_lease_may_be_claimed_again(store: Store) -> None:
    """With another lease; whoever held it before can no longer settle, and changes nothing by trying."""
    await owe(store, to("alice"), to("bob"))
    [lapsed] = await claim(store, lease_s=0.0)
    assert await store.next_mail_due() is not None
    [job] = await claim(store)
    assert users(job) == ["alice", "bob"]
    assert job.lease != lapsed.lease
    assert [recipient.attempts for recipient in job.recipients] == [0, 0]

    outcome = MailOutcome(sent=lapsed.recipients[:1], refused=(refused(lapsed.recipients[1]),))
    assert not await store.settle_mail(lapsed, outcome)
    assert await store.mail_counts() == MailCounts(due=2, refused=0)
    assert await claim(store) == []
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_a_lapsed_lease_that_nobody_took_still_settles(store: Store) -> None:
    """Late is not lost: as long as nobody else has claimed the job, what became of it counts."""
    await owe(store, to("alice"))
    await owe(store, to("bob", past(120)))
    first, second = await claim(store, lease_s=0.0)
    [again] = await claim(store, limit=1)
    assert users(again) == users(first) == ["bob"]
    assert await store.settle_mail(second, MailOutcome(sent=second.recipients))
    assert await claim(store) == []
    assert await store.mail_counts() == MailCounts(due=1, refused=0)


async def test_a_lapsed_job_keeps_its_place(store: Store) -> None:
    """It is as early as it was due, not as its lease ended."""
    await owe(store, to("early", past(30)))
    await claim(store, lease_s=0.0)
    await owe(store, to("late", past(10)))
    assert [users(job) for job in await claim(store)] == [["early"], ["late"]]


async def test_settling_twice(store: Store) -> None:
    """The second time there is nothing left to settle."""
    await owe(store, to("alice"))
    [job] = await claim(store)
    outcome = MailOutcome(retry=put_off(job.recipients, past()))
    assert await store.settle_mail(job, outcome)
    assert not await store.settle_mail(job, outcome)
    [job] = await claim(store)
    assert job.recipients[0].attempts == 1


async def test_settling_what_was_never_claimed(store: Store) -> None:
    """A lease that was never given proves nothing."""
    notification = await owe(store, to("alice"))
    [job] = await claim(store)
    for nid, lease in ((notification.nid, new_id()), (new_id(), job.lease), (new_id(), new_id())):
        forged = MailJob(nid, TENANT, now(), job.mail, job.recipients, lease)
        assert not await store.settle_mail(forged, MailOutcome(sent=job.recipients))
    assert await store.mail_counts() == MailCounts(due=1, refused=0)
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))


def put_off(recipients: Iterable[MailRecipient], retry_at: datetime) -> tuple[PostponedMail, ...]:
    return tuple(
        PostponedMail(each.user_id, each.email, 451, "4.7.1 later: \u2028 ü", retry_at) for each in recipients
    )


def refused(recipient: MailRecipient) -> RefusedMail:
    return RefusedMail(recipient.user_id, recipient.email, 550, "5.1.1 no such user: \u2028 ü")


async def test_dropped_mail_is_done(store: Store) -> None:
    """As if it had been sent."""
    await owe(store, to("alice"), to("bob"))
    [job] = await claim(store)
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients[:1], dropped=job.recipients[1:]))
    assert await store.mail_counts() == MailCounts(due=0, refused=0)
    assert await store.next_mail_due() is None


async def test_refused_mail_is_kept_and_not_tried_again(store: Store) -> None:
    """It is no longer owed, but counted."""
    await owe(store, to("alice"), to("bob"))
    await owe(store, to("carol"))
    jobs = await claim(store)
    for job in jobs:
        outcome = MailOutcome(refused=tuple(map(refused, job.recipients)))
        assert await store.settle_mail(job, outcome)
    assert await store.mail_counts() == MailCounts(due=0, refused=3)
    assert await claim(store) == []
    assert await store.next_mail_due() is None


async def test_retried_mail_is_due_again(store: Store) -> None:
    """At `retry_at`, with each one's attempts counted; those who had theirs are not in it any more."""
    await owe(store, to("alice"), to("bob", accepted_online=True), to("carol"), to("dave"))
    again_at = past(1)
    for attempts in range(3):
        [job] = await claim(store)
        assert {recipient.attempts for recipient in job.recipients} == {attempts}
        assert {each.failing_since is None for each in job.recipients} == {attempts == 0}
        retry = tuple(each for each in job.recipients if each.user_id in ("bob", "carol"))
        rest = [each for each in job.recipients if each not in retry]
        sent = tuple(each for each in rest if each.user_id == "alice")
        failed = tuple(refused(each) for each in rest if each.user_id == "dave")
        assert len(sent) == len(failed) == (attempts == 0)
        assert await store.settle_mail(
            job, MailOutcome(sent=sent, refused=failed, retry=put_off(retry, again_at))
        )
        assert await store.mail_counts() == MailCounts(due=2, refused=1)
        assert await store.next_mail_due() == again_at
    [job] = await claim(store)
    assert {replace(recipient, attempts=0, failing_since=None) for recipient in job.recipients} == {
        to("bob", again_at, accepted_online=True),
        to("carol", again_at),
    }
    later = future()
    assert await store.settle_mail(job, MailOutcome(retry=put_off(job.recipients, later)))
    assert await claim(store) == []
    assert await store.next_mail_due() == later


async def test_attempts_are_counted_for_each_recipient(store: Store) -> None:
    """Of a thousand, those who were put off are claimed alone; who was not come to, or comes later, has had no
    attempt."""
    many = [to(f"user-{number:03}") for number in range(997)]
    notification = await owe(store, *many, to("flaky"), to("unlucky"), to("late", future()))
    [job] = await claim(store)
    flaky, unlucky = (each for each in job.recipients if each.user_id in ("flaky", "unlucky"))
    sent = tuple(each for each in job.recipients if each not in (flaky, unlucky))
    tried, untried = put_off((flaky, unlucky), past(1))
    assert await store.settle_mail(job, MailOutcome(sent, retry=(tried, replace(untried, is_untried=True))))
    assert await store.outbox.retry(TENANT, {notification.nid: ["late"]}) == 1
    [job] = await claim(store)
    attempts = {each.user_id: (each.attempts, each.failing_since is None) for each in job.recipients}
    assert attempts == {"flaky": (1, False), "unlucky": (0, True), "late": (0, True)}


async def test_only_what_the_mail_server_asks_for_counts_as_put_off(store: Store) -> None:
    """Not that a mail was late, nor how long it was put off because there was no mail server."""
    await owe(store, to("alice", past(3600)))
    [job] = await claim(store)
    put_off_for = timedelta()
    for retry_at, is_untried in ((past(1000), False), (past(500), True), (past(200), False)):
        [retry] = put_off(job.recipients, retry_at)
        began_at = now()
        assert await store.settle_mail(job, MailOutcome(retry=(replace(retry, is_untried=is_untried),)))
        ended_at = now()
        [job] = await claim(store)
        [alice] = job.recipients
        assert alice.failing_since is not None
        before, put_off_for = put_off_for, alice.due_at - alice.failing_since
        if is_untried:
            assert put_off_for == before
        else:
            assert before + (retry_at - ended_at) <= put_off_for <= before + (retry_at - began_at)


async def test_a_retry_joins_those_who_come_due(store: Store) -> None:
    """Recipients of one notification that are due at the same time are one job, whyever they are due."""
    await owe(store, to("alice", past(60)), to("bob", past(30)), to("carol", future()))
    [job] = await claim(store)
    assert await store.settle_mail(
        job, MailOutcome(sent=job.recipients[:1], retry=put_off(job.recipients[1:], past(1)))
    )
    [job] = await claim(store)
    assert len(job.recipients) == 1
    assert await store.settle_mail(job, MailOutcome(retry=put_off(job.recipients, future(1800))))
    assert await claim(store) == []
    assert await store.mail_counts() == MailCounts(due=2, refused=0)


async def test_one_user_in_many_mails(store: Store) -> None:
    """Each notification owes its own mail."""
    notifications = [await owe(store, to("alice")) for _ in range(5)]
    jobs = await claim(store)
    assert {job.nid for job in jobs} == {notification.nid for notification in notifications}
    assert len({job.lease for job in jobs}) == 5
    assert await store.settle_mail(jobs[0], MailOutcome(sent=jobs[0].recipients))
    assert await store.mail_counts() == MailCounts(due=4, refused=0)


async def test_the_inbox_does_not_decide_about_mail(store: Store) -> None:
    """What was seen or deleted is claimed all the same: dropping it is up to the claimer."""
    duty = EmailDuty(Mail("s", "c"), (to("alice"), to("bob")))
    stored = await store.add(make_notification(), [Recipient("alice"), Recipient("bob")], duty)
    documents = stored.documents
    await store.mark_seen(TENANT, "alice", [documents[0].id])
    await store.delete(TENANT, "bob", [documents[1].id])
    [job] = await claim(store)
    assert users(job) == ["alice", "bob"]


async def test_concurrent_claimers_share_nothing(place: Place, store: Store) -> None:
    """Every recipient is claimed by one of them; on several nodes too, where the store can be shared."""
    for number in range(30):
        await owe(store, to(f"a{number}"), to(f"b{number}"))
    other = store
    if place.is_shared:
        other = place.store()
        await other.open()
    claims = await asyncio.gather(*(node.claim_mail(LONG_S, 4) for node in [store, other] * 5))
    claims += [await claim(store)]
    claimed = [(job.nid, user) for jobs in claims for job in jobs for user in users(job)]
    assert len(claimed) == len(set(claimed)) == 60
    if other is not store:
        await other.close()


async def test_concurrent_settling(store: Store) -> None:
    """Jobs settled at once do not disturb each other."""
    for number in range(20):
        await owe(store, to(f"a{number}"), to(f"b{number}"))
    jobs = await claim(store)
    outcomes = [
        MailOutcome(sent=job.recipients[:1], retry=put_off(job.recipients[1:], past(1))) for job in jobs
    ]
    assert all(await asyncio.gather(*map(store.settle_mail, jobs, outcomes)))
    assert await store.mail_counts() == MailCounts(due=20, refused=0)
    jobs = await claim(store)
    assert [len(job.recipients) for job in jobs] == [1] * 20


async def test_mail_survives_reopening(place: Place) -> None:
    """What is owed or refused is so after a restart. What was leased is free at once where nobody else can hold it,
    else when the lease ends."""
    store = place.store()
    await store.open()
    await owe(store, to("alice", past(30)), to("bob", past(30)))
    await owe(store, to("carol", past(20)))
    await owe(store, to("dave", past(10)))
    [first] = await claim(store, limit=1)
    [leased] = await claim(store, limit=1)
    outcome = MailOutcome(
        refused=(refused(first.recipients[0]),), retry=put_off(first.recipients[1:], past(40))
    )
    assert await store.settle_mail(first, outcome)
    await store.close()

    store = place.store()
    await store.open()
    assert await store.mail_counts() == MailCounts(due=3, refused=1)
    again = [(job.recipients[0].user_id, job.recipients[0].attempts) for job in await claim(store)]
    freed = [] if place.is_shared else [("carol", 0)]
    assert again == [(first.recipients[1].user_id, 1), *freed, ("dave", 0)]
    assert await store.settle_mail(leased, MailOutcome(sent=leased.recipients)) == place.is_shared
    await store.close()
