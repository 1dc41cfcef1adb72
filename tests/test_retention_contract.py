"""What all stores promise about removing what has had its time."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import PIPE
from contextlib import aclosing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from server.errors import NotFound
from server.grants import DEFAULT_TENANT, FOREVER, Keep
from server.messages import EmailDuty, Mail, MailRecipient, Recipient, now
from server.revs import COUNTER_BITS
from server.store import Bounds, Broadcast, Horizon, MailOutcome, Once, RefusedMail, Removed, Store
from tests.support.store_content import content_of
from tests.support.stores import TENANT, USER, Place, make_notification, owe, put, put_many, whole_inbox

ROOT = Path(__file__).resolve().parents[1]

DAY = timedelta(days=1)
MAX_REV = (1 << 63) - 1


def bounds(
    *, before: datetime | None = None, rev_below: int = 0, deleted_before: datetime | None = None
) -> Bounds:
    return Bounds(before, rev_below, deleted_before or now() + DAY)


async def remove(store: Store, which: Bounds, limit: int = 100, tenant: str = TENANT) -> list[Removed]:
    """All steps that removed something."""
    async with aclosing(store.retention.remove(tenant, which, limit)) as steps:
        return [step async for step in steps if step.documents or step.tombstones or step.kept_from]


async def changes(store: Store, user_id: str = USER) -> list[str]:
    """The ids of all documents and tombstones of a user."""
    found = await store.changes(TENANT, user_id, after=(0, ""), limit=1000)
    return [each.id for each in found]


# -- what goes -----------------------------------------------------------------------------------------------


async def test_old_documents_go_whether_seen_or_deleted(store: Store) -> None:
    """Those created before, of this tenant only; the others stay as they are, revs too."""
    at = now()
    old = [await put(store, created_at=at - (3 + n) * DAY) for n in range(3)]
    await store.mark_seen(TENANT, USER, [old[0].id])
    await store.delete(TENANT, USER, [old[1].id])
    kept = [await put(store, created_at=at - 2 * DAY), await put(store)]
    others = await put(store, tenant="umbrella", created_at=at - 9 * DAY)
    position = await store.position()
    assert await remove(store, bounds(before=at - 2 * DAY)) == [Removed(2, 1, frozenset([USER]))]
    assert await whole_inbox(store) == kept[::-1]
    assert await changes(store) == [each.id for each in kept]
    assert await whole_inbox(store, tenant="umbrella") == [others]
    [counts] = (await store.counts(TENANT, [USER])).values()
    assert (counts.unseen, counts.total) == (2, 2)
    assert await store.restore(TENANT, USER, [old[1].id]) == await store.restore(TENANT, USER, ["0" * 24])
    assert all(each.rev <= position for each in await whole_inbox(store))


async def test_tombstones_go_by_their_rev(store: Store) -> None:
    """The documents that are not deleted stay, however old; and so do tombstones of a later change."""
    documents = await put_many(store, 4)
    first = await store.delete(TENANT, USER, [documents[0].id])
    second = await store.delete(TENANT, USER, [documents[1].id])
    assert first.rev is not None and second.rev is not None
    assert await remove(store, bounds(rev_below=first.rev)) == []
    assert await remove(store, bounds(rev_below=second.rev)) == [Removed(0, 1)]
    assert sorted(await changes(store)) == sorted(each.id for each in documents[1:])
    assert await remove(store, bounds(rev_below=MAX_REV, deleted_before=now() - DAY)) == []
    assert await remove(store, bounds(rev_below=MAX_REV)) == [Removed(0, 1)]
    assert await whole_inbox(store) == documents[:1:-1]


async def test_what_was_restored_is_no_tombstone(store: Store) -> None:
    """Whatever rev it had as one."""
    [document] = await put_many(store, 1)
    await store.delete(TENANT, USER, [document.id])
    await store.restore(TENANT, USER, [document.id])
    assert await remove(store, bounds(rev_below=MAX_REV)) == []
    assert len(await whole_inbox(store)) == 1


async def test_it_goes_in_steps(store: Store) -> None:
    """Of no more than the limit, over all users; who asks for no further one has had none."""
    at = now()
    for user_id in ("alice", "bob", "carol"):
        for n in range(7):
            await put(store, user_id, created_at=at - (9 + n) * DAY)
    which = bounds(before=at - 5 * DAY)
    async with aclosing(store.retention.remove(TENANT, which, 4)) as steps:
        first = await anext(steps)
        assert first.documents == 4
        left = sum([len(await whole_inbox(store, user_id)) for user_id in ("alice", "bob", "carol")])
        assert left == 21 - 4
    steps_made = await remove(store, which, 4)
    assert [step.documents for step in steps_made] == [4, 4, 4, 4, 1]
    assert frozenset[str]().union(first.users, *(step.users for step in steps_made)) == {
        "alice",
        "bob",
        "carol",
    }
    assert await remove(store, which, 4) == []


@pytest.mark.parametrize("users", [199, 200, 201, 501])
async def test_all_users_are_looked_through(store: Store, users: int) -> None:
    """However many they are."""
    at = now()
    recipients = [Recipient(f"user-{number:04}") for number in range(users)]
    await store.add(make_notification(created_at=at - 9 * DAY), recipients, None)
    assert sum(step.documents for step in await remove(store, bounds(before=at))) == users


# -- what belongs to it --------------------------------------------------------------------------------------


async def refuse_all(store: Store) -> None:
    """Settle all mail that is due as refused for good."""
    for job in await store.claim_mail(60, 100):
        refused = tuple(RefusedMail(each.user_id, each.email, 550, "no") for each in job.recipients)
        assert await store.settle_mail(job, MailOutcome(refused=refused))


@pytest.mark.parametrize("once", [None, Once("key", b"f" * 32, 60.0)], ids=["plain", "once"])
@pytest.mark.parametrize("users", [["alice"], ["alice", "bob", "carol"]], ids=["one", "several"])
async def test_nothing_is_left_of_a_notification(
    place: Place, store: Store, users: list[str], once: Once | None
) -> None:
    """With its last document go its text, and the mail that was refused."""
    at = now() - 9 * DAY
    empty = content_of(place)
    notification = make_notification(created_at=at, content="to be gone")
    duty = EmailDuty(
        Mail("subject", "to be gone"),
        tuple(MailRecipient(user_id, f"{user_id}@example.test", at) for user_id in users),
    )
    await store.add(notification, [Recipient(user_id) for user_id in users], duty, once)
    await refuse_all(store)
    assert (await store.mail_counts()).refused == len(users)
    await store.mark_seen(TENANT, users[0], [(await whole_inbox(store, users[0]))[0].id])
    assert sum(step.documents for step in await remove(store, bounds(before=now()), 2)) == len(users)
    assert (await store.mail_counts()).refused == 0
    left = content_of(place)
    for registers in ("users", "once"):
        left.pop(registers, None)
        empty.pop(registers, None)
    assert left == empty


@pytest.mark.parametrize("once", [None, Once("key", b"f" * 32, 60.0)], ids=["plain", "once"])
@pytest.mark.parametrize("users", [["alice"], ["alice", "bob", "carol"]], ids=["one", "several"])
async def test_what_mail_is_owed_for_stays(store: Store, users: list[str], once: Once | None) -> None:
    """The whole notification, tombstones too; its time is told, and the others are not held up by it."""
    at = now() - 9 * DAY
    duty = EmailDuty(
        Mail("subject", "content", forced=True),
        tuple(MailRecipient(user_id, f"{user_id}@example.test", at) for user_id in users),
    )
    recipients = [Recipient(user_id) for user_id in users]
    stored = await store.add(make_notification(created_at=at), recipients, duty, once)
    others = [await put(store, created_at=at - n * DAY) for n in range(5)]
    assert others
    await store.delete(TENANT, users[-1], [stored.documents[-1].id])
    steps = await remove(store, bounds(before=now(), rev_below=MAX_REV), 2)
    assert sum(step.documents for step in steps) == 5
    assert sum(step.tombstones for step in steps) == 0
    kept = [step.kept_from for step in steps if step.kept_from]
    # Of tombstones nobody has to be told.
    assert set(kept) == ({at} if len(users) > 1 else set())
    [job] = await store.claim_mail(60, 10)
    assert [each.user_id for each in job.recipients] == users
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    steps = await remove(store, bounds(before=now(), rev_below=MAX_REV), 2)
    assert sum(step.documents + step.tombstones for step in steps) == len(users)
    assert not [step for step in steps if step.kept_from]


async def test_an_open_broadcast_goes_on(store: Store) -> None:
    """Who has it already loses it, if it is that old; who has it not gets it all the same, and it goes in turn."""
    await put_many(store, 1, "alice")
    await put_many(store, 1, "bob")
    at = now()
    notification = make_notification(created_at=at - 9 * DAY, content="to all")
    await store.broadcasts.add(notification)
    await store.broadcasts.expand(notification, ["alice"])
    which = bounds(before=at - 5 * DAY)
    assert [step.documents for step in await remove(store, which)] == [1]
    claimed = await store.broadcasts.claim(60)
    assert isinstance(claimed, Broadcast)
    assert claimed.notification == notification
    [document] = await store.broadcasts.expand(notification, ["bob"])
    assert document.notification.content == "to all"
    assert await store.broadcasts.finish(claimed)
    assert [step.documents for step in await remove(store, which)] == [1]
    assert len(await whole_inbox(store, "bob")) == 1


async def test_what_others_owe_stays(store: Store) -> None:
    """A notification's mail is found by the notification, not by its user."""
    at = now() - 9 * DAY
    await owe(store, MailRecipient("alice", "alice@example.test", at), created_at=at, tenant="umbrella")
    await put(store, "alice", created_at=at)
    assert [step.documents for step in await remove(store, bounds(before=now()))] == [1]
    assert (await store.mail_counts()).due == 1


# -- horizons ------------------------------------------------------------------------------------------------


async def test_horizons_never_go_back(store: Store) -> None:
    """Neither part, whatever the other is; and they outlive the store being closed."""
    assert await store.retention.horizons() == {}
    at = now()
    rev = 5 << COUNTER_BITS
    await store.retention.raise_horizon(DEFAULT_TENANT, Horizon(None, rev))
    assert await store.retention.horizons() == {DEFAULT_TENANT: Horizon(None, rev)}
    await store.retention.raise_horizon(DEFAULT_TENANT, Horizon(at))
    await store.retention.raise_horizon(DEFAULT_TENANT, Horizon(at - DAY, rev - 1))
    assert await store.retention.horizons() == {DEFAULT_TENANT: Horizon(at, rev)}
    await store.close()
    await store.open()
    assert await store.retention.horizons() == {DEFAULT_TENANT: Horizon(at, rev)}


async def test_a_tenant_that_is_not_there_gets_no_horizon(store: Store) -> None:
    """The next one of its name would have it."""
    await store.retention.raise_horizon("nobody", Horizon(now(), 7))
    assert await store.retention.horizons() == {}


async def test_a_tenant_has_rules_of_its_own(place: Place, store: Store) -> None:
    """Each change raises the sequence, so that servers hear of it; the horizon stays."""
    before = await store.directory.access()
    assert before.tenants[0].keep == Keep()
    await store.retention.raise_horizon(DEFAULT_TENANT, Horizon(None, 7))
    beside = place.beside()
    await beside.open()
    await beside.directory.set_keep(DEFAULT_TENANT, Keep(90 * 86_400, FOREVER))
    await beside.close()
    after = await store.directory.access()
    assert after.sequence > before.sequence
    assert after.tenants[0].keep == Keep(90 * 86_400, FOREVER)
    assert (await store.directory.tenants())[0].keep == Keep(90 * 86_400, FOREVER)
    assert await store.retention.horizons() == {DEFAULT_TENANT: Horizon(None, 7)}
    with pytest.raises(NotFound):
        await store.directory.set_keep("nobody", Keep())


# -- idempotency keys ----------------------------------------------------------------------------------------


async def test_keys_that_have_had_their_time_are_forgotten(store: Store) -> None:
    """The others are known."""
    for number, keep_s in enumerate((-60.0, -60.0, -60.0, 60.0)):
        await store.add(
            make_notification(), [Recipient(USER)], None, Once(f"key {number}", b"f" * 32, keep_s)
        )
    forgotten = 1
    while forgotten:
        forgotten = await store.retention.forget_keys(2)
        assert forgotten <= 2
    once = Once("key 3", b"f" * 32, 60.0)
    assert (await store.add(make_notification(), [Recipient(USER)], None, once)).is_repeat


# -- in the midst of everything ------------------------------------------------------------------------------


async def test_beside_readers_and_writers(store: Store) -> None:
    """Documents come, are seen, deleted and restored meanwhile; nothing young goes, and nothing old stays."""
    at = now()
    users = [f"user-{number}" for number in range(5)]
    young = {user_id: [await put(store, user_id) for _ in range(5)] for user_id in users}
    is_over = asyncio.Event()

    async def change(user_id: str) -> None:
        while not is_over.is_set():
            await put(store, user_id, created_at=at - 9 * DAY)
            [some] = random.sample(young[user_id], 1)
            await store.delete(TENANT, user_id, [some.id])
            await store.restore(TENANT, user_id, [some.id])
            await whole_inbox(store, user_id)

    async with asyncio.TaskGroup() as tasks:
        for user_id in users:
            tasks.create_task(change(user_id))
        removed = 0
        while removed < 100:
            steps = await remove(
                store, bounds(before=at - DAY, rev_below=MAX_REV, deleted_before=at - DAY), 3
            )
            removed += sum(step.documents for step in steps)
        is_over.set()
    await remove(store, bounds(before=at - DAY))
    for user_id in users:
        found = await whole_inbox(store, user_id)
        assert [each.id for each in found] == [each.id for each in reversed(young[user_id])]


REMOVE_FOR_EVER = """
import asyncio, os, random, sys
from datetime import timedelta
from server.messages import now
from server.store import Bounds
from tests.support.stores import TENANT, place_of

async def main():
    store = place_of(sys.argv[1:]).store()
    await store.open()
    bounds = Bounds(now() - timedelta(days=1), 0, now())
    async for step in store.retention.remove(TENANT, bounds, 2):
        os.write(1, f"{step.documents}\\n".encode())
        await asyncio.sleep(random.random() / 50)  # so that it has not come to the end when it is killed
asyncio.run(main())
"""


async def test_killed_in_the_middle(place: Place) -> None:
    """SIGKILL after some of the steps: what is there is whole, and the next one removes the rest."""
    at = now() - 9 * DAY
    users = [f"user-{number}" for number in range(3)]
    store = place.store()
    await store.open()
    empty = content_of(place)
    for number in range(40):
        recipients = [Recipient(user_id) for user_id in (users if number % 2 else users[:1])]
        await store.add(make_notification(created_at=at + number * timedelta(seconds=1)), recipients, None)
    await store.close()
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", REMOVE_FOR_EVER, *place.arguments(), cwd=ROOT, stdout=PIPE
        )
        assert process.stdout is not None
        for _ in range(random.randint(1, 6)):
            assert await process.stdout.readline()
        process.kill()
        await process.communicate()
    await store.open()
    left = sum([len(await whole_inbox(store, user_id)) for user_id in users])
    assert 0 < left < 80
    steps = await remove(store, bounds(before=now()))
    assert sum(step.documents for step in steps) == left
    await store.close()
    content, registered = content_of(place), empty.get("users")
    assert content.pop("users") != registered
    empty.pop("users", None)
    assert content == empty
