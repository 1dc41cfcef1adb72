"""What every store lets operators see and do of mail (`server.store.Outbox`), over all kinds of store.

The stores' clock is the real one: what is due was due a minute ago, what waits comes in an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from server.errors import NotFound
from server.ids import new_id
from server.messages import Mail, MailRecipient, now
from server.store import (
    MailCounts,
    MailJob,
    MailOutcome,
    Mails,
    MailState,
    Outbox,
    OutboxMail,
    PostponedMail,
    RefusedMail,
    Store,
)
from tests.support.stores import TENANT, Place, owe, put

LONG_S = 600.0
"""A lease that does not run out during a test."""

DUE, LEASED, WAITING, DEAD = MailState

ANSWER = "4.7.1 greylisted: \u2028 ü"
NO_USER = "5.1.1 no such user"


def to(user_id: str, in_s: float = -60.0, accepted_online: bool = False) -> MailRecipient:
    due_at = now() + timedelta(seconds=in_s)
    return MailRecipient(user_id, f"{user_id}@example.test", due_at, accepted_online)


async def settle(store: Store, job: MailJob, *, put_off: str = "", refused: str = "") -> None:
    """As the worker would: these users (words) are put off for an hour, or refused; the others have their mail."""
    later = now() + timedelta(hours=1)
    retry = tuple(
        PostponedMail(each.user_id, each.email, 451, ANSWER, later)
        for each in job.recipients
        if each.user_id in put_off.split()
    )
    dead = tuple(
        RefusedMail(each.user_id, each.email, 550, NO_USER)
        for each in job.recipients
        if each.user_id in refused.split()
    )
    done = {each.user_id for each in (*retry, *dead)}
    sent = tuple(each for each in job.recipients if each.user_id not in done)
    assert await store.settle_mail(job, MailOutcome(sent, refused=dead, retry=retry))


async def claimed(store: Store, recipients: int = 1000) -> MailJob:
    [job] = await store.claim_mail(LONG_S, 1, recipients)
    return job


async def all_states(store: Store, tenant: str = TENANT) -> str:
    """A notification of which a mail is in each of the states: that to the user of this name. Its id."""
    first = [to(name, -300) for name in ("dead", "retried", "sent")]
    later = [to("online", 3600, accepted_online=True), to("leased", -200), to("due", -100)]
    notification = await owe(store, *first, *later, tenant=tenant, mail=Mail("subject", "content"))
    await settle(store, await claimed(store, 3), put_off="retried", refused="dead")
    assert [each.user_id for each in (await claimed(store, 1)).recipients] == ["leased"]
    return notification.nid


def states(entries: list[OutboxMail]) -> dict[str, MailState]:
    return {entry.user_id: entry.state for entry in entries}


async def everything(outbox: Outbox, tenant: str = TENANT) -> dict[str, MailState]:
    return states(await outbox.entries(tenant, limit=1000))


@pytest.fixture
async def beside(place: Place, store: Store) -> AsyncIterator[Outbox]:
    """As the command line sees it, while a server has the store open."""
    beside = place.beside()
    await beside.open()
    yield beside.outbox
    await beside.close()


# -- looking -------------------------------------------------------------------------------------------------


async def test_an_empty_outbox(store: Store) -> None:
    """Nothing is owed: nothing is listed, found or changed."""
    document = await put(store)
    nid = document.notification.nid
    assert await store.outbox.entries(TENANT, limit=10) == []
    for unknown in (nid, new_id(), "nonsense", ""):
        with pytest.raises(NotFound):
            await store.outbox.find(TENANT, unknown)
        assert await store.outbox.entries(TENANT, nid=unknown, limit=10) == []
        assert await store.outbox.entries(TENANT, after=(unknown, "a"), limit=10) == []
        assert await store.outbox.retry(TENANT, {unknown: None}) == 0
        assert await store.outbox.drop(TENANT, {unknown: None}) == 0


async def test_each_state(store: Store, beside: Outbox) -> None:
    """In each state what belongs to it, with time, attempts and the last answer; from beside as from within."""
    began_at = now()
    nid = await all_states(store)
    ended_at = now()
    for outbox in (store.outbox, beside):
        entries = await outbox.entries(TENANT, limit=10)
        assert states(entries) == {
            "dead": DEAD,
            "due": DUE,
            "leased": LEASED,
            "online": WAITING,
            "retried": WAITING,
        }
        assert [entry.user_id for entry in entries] == sorted(states(entries))
        assert {entry.nid for entry in entries} == {nid}
        assert all(entry.email == f"{entry.user_id}@example.test" for entry in entries)
        dead, due, leased, online, retried = entries
        assert (dead.due_at, dead.attempts, dead.code, dead.reason) == (None, 1, 550, NO_USER)
        assert (retried.attempts, retried.code, retried.reason) == (1, 451, ANSWER)
        for entry in (dead, retried):
            assert entry.failed_at is not None and began_at <= entry.failed_at <= ended_at
        for entry in (due, leased, online):
            assert (entry.attempts, entry.failed_at, entry.code, entry.reason) == (0, None, None, None)
        assert due.due_at is not None and due.due_at < began_at
        assert online.due_at is not None and online.due_at > ended_at
        assert leased.leased_until is not None and leased.leased_until > ended_at
        assert {entry.leased_until for entry in (dead, due, online, retried)} == {None}


async def test_each_state_by_itself(store: Store) -> None:
    """Only what is in the state that was asked for."""
    await all_states(store)
    expected = {DUE: ["due"], LEASED: ["leased"], WAITING: ["online", "retried"], DEAD: ["dead"]}
    for state, users in expected.items():
        assert list(states(await store.outbox.entries(TENANT, state=state, limit=10))) == users


async def test_what_a_lapsed_lease_held_is_due(store: Store) -> None:
    """Whoever had it in hand has gone."""
    await owe(store, to("alice"))
    assert await store.claim_mail(0.0, 10)
    assert await everything(store.outbox) == {"alice": DUE}


async def test_a_notification(store: Store) -> None:
    """It is found with its text as long as one mail of it is owed or dead, whoever owns it."""
    mail = Mail("Grüße \U0001f600", "<b>שלום</b>", "plain", forced=True)
    for recipients in ([to("alice")], [to("alice"), to("bob")]):
        notification = await owe(store, *recipients, mail=mail)
        found = await store.outbox.find(TENANT, notification.nid)
        assert (found.nid, found.created_at, found.mail) == (notification.nid, notification.created_at, mail)
        await settle(store, await claimed(store), refused="alice")
        assert (await store.outbox.find(TENANT, notification.nid)).mail == mail
        with pytest.raises(NotFound):
            await store.outbox.find("other", notification.nid)
        assert await store.outbox.drop(TENANT, {notification.nid: None}) == 1
        with pytest.raises(NotFound):
            await store.outbox.find(TENANT, notification.nid)


@pytest.mark.parametrize("state", [None, WAITING])
async def test_page_by_page(store: Store, state: MailState | None) -> None:
    """Every mail once, in one order, whatever the size of a page, and whatever has left in between."""
    for number in range(7):
        users = [to(f"{letter}-{number}", 3600) for letter in "cabd"[: number % 4 + 1]]
        await owe(store, *users)
    whole = await store.outbox.entries(TENANT, state=state, limit=100)
    assert len(whole) == 16
    assert [entry.user_id[0] for entry in whole] == [
        letter for number in range(7) for letter in sorted("cabd"[: number % 4 + 1])
    ]
    for size in (1, 3, 16, 17):
        found: list[OutboxMail] = []
        after = None
        while page := await store.outbox.entries(TENANT, state=state, after=after, limit=size):
            assert len(page) <= size
            found += page
            after = (page[-1].nid, page[-1].user_id)
        assert found == whole
    fifth = whole[4]
    assert await store.outbox.drop(TENANT, {fifth.nid: None}) >= 1
    rest = await store.outbox.entries(TENANT, state=state, after=(fifth.nid, fifth.user_id), limit=100)
    assert rest == [entry for entry in whole[5:] if entry.nid != fifth.nid]


async def test_one_notification_page_by_page(store: Store) -> None:
    """Of that one only, from its own first user on."""
    await owe(store, to("alice"), to("bob"))
    wanted = await owe(store, to("alice"), to("bob"), to("carol"))
    await owe(store, to("alice"), to("bob"))
    nid = wanted.nid
    page = await store.outbox.entries(TENANT, nid=nid, limit=2)
    assert [(entry.nid, entry.user_id) for entry in page] == [(nid, "alice"), (nid, "bob")]
    page = await store.outbox.entries(TENANT, nid=nid, after=(nid, "bob"), limit=2)
    assert [(entry.nid, entry.user_id) for entry in page] == [(nid, "carol")]


async def test_tenants_see_their_own(store: Store) -> None:
    """Another tenant neither sees nor changes anything."""
    nid = await all_states(store)
    before = await everything(store.outbox)
    assert await store.outbox.entries("other", limit=10) == []
    assert await store.outbox.entries("other", nid=nid, limit=10) == []
    assert await store.outbox.retry("other", {nid: None}) == 0
    assert await store.outbox.drop("other", {nid: None}) == 0
    assert await everything(store.outbox) == before


# -- retrying ------------------------------------------------------------------------------------------------


async def test_retrying_all(store: Store, beside: Outbox) -> None:
    """What waits and what is dead is due now, as if never tried, with the last answer; the rest stays."""
    nid = await all_states(store)
    assert await beside.retry(TENANT, {nid: None}) == 3
    entries = await store.outbox.entries(TENANT, limit=10)
    assert states(entries) == {user: DUE for user in ("dead", "due", "online", "retried")} | {
        "leased": LEASED
    }
    kept = {entry.user_id: (entry.attempts, entry.code, entry.reason) for entry in entries if entry.failed_at}
    assert kept == {"dead": (0, 550, NO_USER), "retried": (0, 451, ANSWER)}
    assert await store.mail_counts() == MailCounts(due=5, refused=0)
    assert await beside.retry(TENANT, {nid: None}) == 0


@pytest.mark.parametrize("others", [(), ("bob",)], ids=["alone", "with others"])
async def test_a_dead_letter_is_mailed_after_all(store: Store, others: tuple[str, ...]) -> None:
    """With its text, its attempts anew, and only to those who had not got it."""
    mail = Mail("subject", "content " * 100)
    notification = await owe(store, to("alice"), *map(to, others), mail=mail)
    for _ in range(2):
        await settle(store, await claimed(store), refused="alice")
        assert await store.next_mail_due() is None
        assert await store.outbox.retry(TENANT, {notification.nid: ["alice", "nobody"]}) == 1
    job = await claimed(store)
    assert (job.nid, job.mail) == (notification.nid, mail)
    assert [(each.user_id, each.attempts, each.failing_since) for each in job.recipients] == [
        ("alice", 0, None)
    ]
    await settle(store, job)
    assert await everything(store.outbox) == {}
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_retrying_one_of_several(store: Store) -> None:
    """The others wait on."""
    notification = await owe(store, to("alice"), to("bob"), to("carol"))
    await settle(store, await claimed(store), put_off="alice bob", refused="carol")
    assert await store.outbox.retry(TENANT, {notification.nid: ["bob"]}) == 1
    assert await everything(store.outbox) == {"alice": WAITING, "bob": DUE, "carol": DEAD}
    due_at = await store.next_mail_due()
    assert due_at is not None and due_at <= now()
    assert [each.user_id for each in (await claimed(store)).recipients] == ["bob"]


async def test_retrying_many_notifications(store: Store) -> None:
    """In one call: of each those that were meant."""
    mails: dict[str, list[str]] = {}
    for number in range(5):
        notification = await owe(store, to(f"a{number}"), to(f"b{number}"))
        await settle(store, await claimed(store), refused=f"a{number} b{number}")
        mails[notification.nid] = [f"a{number}"]
    meant: Mails = {**mails, new_id(): None}
    assert await store.outbox.retry(TENANT, meant) == 5
    found = await everything(store.outbox)
    assert found == {f"a{n}": DUE for n in range(5)} | {f"b{n}": DEAD for n in range(5)}


# -- dropping ------------------------------------------------------------------------------------------------


async def test_dropping_all(store: Store, beside: Outbox) -> None:
    """All but what is in somebody's hands, who can still settle it."""
    notification = await owe(store, to("leased", -100), to("due"), to("online", 3600))
    job = await claimed(store, 1)
    assert await beside.drop(TENANT, {notification.nid: None}) == 2
    assert await everything(store.outbox) == {"leased": LEASED}
    await settle(store, job, put_off="leased")
    assert await beside.drop(TENANT, {notification.nid: None}) == 1
    assert await everything(store.outbox) == {}
    assert await store.next_mail_due() is None
    assert await store.mail_counts() == MailCounts(due=0, refused=0)


async def test_dropping_dead_letters(store: Store) -> None:
    """They are forgotten; what the others are owed stays."""
    nid = await all_states(store)
    assert await store.outbox.drop(TENANT, {nid: ["dead", "retried"]}) == 2
    assert await everything(store.outbox) == {"due": DUE, "leased": LEASED, "online": WAITING}
    assert await store.mail_counts() == MailCounts(due=3, refused=0)


async def test_what_was_dropped_does_not_come_back(store: Store) -> None:
    """Not even when somebody whose lease has run out settles after all."""
    notification = await owe(store, to("alice"), to("bob"), to("carol"))
    [job] = await store.claim_mail(0.0, 1)
    assert await store.outbox.drop(TENANT, {notification.nid: ["alice", "bob"]}) == 2
    await settle(store, job, put_off="alice carol", refused="bob")
    assert await everything(store.outbox) == {"carol": WAITING}
    assert await store.mail_counts() == MailCounts(due=1, refused=0)


async def test_the_inbox_keeps_what_is_dropped(store: Store) -> None:
    """Dropping is about the mail only."""
    notification = await owe(store, to("alice"))
    assert await store.outbox.drop(TENANT, {notification.nid: None}) == 1
    [document] = await store.newest(TENANT, "alice", before=None, limit=10)
    assert document.notification.nid == notification.nid


# -- at the same time ----------------------------------------------------------------------------------------


async def test_operators_beside_the_worker(store: Store, beside: Outbox) -> None:
    """However their changes meet, each mail is settled once or dropped, and none is done both or neither."""
    users = [f"user-{number:02}" for number in range(60)]
    notification = await owe(store, *(to(user, -float(number)) for number, user in enumerate(users)))
    nid = notification.nid
    settled: list[str] = []

    async def work() -> None:
        while jobs := await store.claim_mail(LONG_S, 1, 3):
            [job] = jobs
            half = job.recipients[: len(job.recipients) // 2]
            later = now() + timedelta(hours=1)
            retry = tuple(PostponedMail(each.user_id, each.email, 451, ANSWER, later) for each in half)
            sent = job.recipients[len(half) :]
            assert await store.settle_mail(job, MailOutcome(sent, retry=retry))
            settled.extend(each.user_id for each in sent)

    dropped = 0

    async def meddle() -> None:
        nonlocal dropped
        for user in users[::2]:
            dropped += await beside.drop(TENANT, {nid: [user]})
            await beside.retry(TENANT, {nid: users[1::2]})

    await asyncio.gather(work(), meddle())
    left = await everything(store.outbox)
    assert len(settled) == len(set(settled))
    assert not set(settled) & set(left)
    assert len(settled) + len(left) + dropped == len(users)
    assert (await store.mail_counts()).due == len(left)


async def test_dead_letters_survive_reopening(place: Place) -> None:
    """With their text."""
    store = place.store()
    await store.open()
    notification = await owe(store, to("alice"), to("bob"))
    await settle(store, await claimed(store), refused="alice")
    await store.close()
    store = place.store()
    await store.open()
    assert await everything(store.outbox) == {"alice": DEAD}
    assert await store.outbox.retry(TENANT, {notification.nid: None}) == 1
    assert (await claimed(store)).mail == Mail("subject", "content")
    await store.close()
