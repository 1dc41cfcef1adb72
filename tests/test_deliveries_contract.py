"""What every store promises about what was sent and acknowledged (`server.store.Deliveries`), over all kinds of
store."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from server.errors import NotFound, StoreUnavailable
from server.grants import ALL_SCOPES, ApiKey, Tenant
from server.ids import new_id
from server.messages import Document, MailRecipient, Recipient, altered, now
from server.store import (
    ACKNOWLEDGED,
    EVENTS,
    HUB,
    SERVICE,
    WAYS,
    Deliveries,
    Delivery,
    MailOutcome,
    RefusedMail,
    Store,
)
from tests.support.stores import (
    TENANT,
    USER,
    Place,
    make_notification,
    owe,
    put,
    put_many,
    whole_inbox,
)

ME = (TENANT, USER)
AT = now()


@pytest.fixture
def deliveries(store: Store) -> Deliveries:
    return store.deliveries


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


async def backlog(store: Store, way: str | None = HUB, user_id: str = USER) -> list[Document]:
    return await store.deliveries.backlog(TENANT, user_id, way, since=None, after=None, limit=10_000)


async def of(store: Store, nid: str, tenant: str = TENANT) -> list[Delivery]:
    return await store.deliveries.of_notification(tenant, nid, after=None, limit=1000)


async def delivery(store: Store, document: Document) -> Delivery:
    """Of a document whose notification nobody else has."""
    [delivery] = await of(store, document.notification.nid)
    return delivery


async def test_what_is_not_open_yet_is_unavailable(place: Place) -> None:
    """Whatever is asked."""
    deliveries = place.store().deliveries
    for verb in (
        deliveries.begin(TENANT, USER, HUB, AT),
        deliveries.backlog(TENANT, USER, HUB, since=None, after=None, limit=1),
        deliveries.mark(HUB, {ME: [new_id()]}),
        deliveries.of_notification(TENANT, new_id(), after=None, limit=1),
    ):
        with pytest.raises(StoreUnavailable):
            await verb


# -- since when a way is used --------------------------------------------------------------------------------


async def test_a_way_begins_once(place: Place) -> None:
    """The first time counts, also after the store was closed, whatever is said later; each way, user and tenant has its
    own."""
    later = AT + timedelta(hours=1)
    store = place.store()
    await store.open()
    assert await store.deliveries.begin(TENANT, USER, HUB, AT) == AT
    assert await store.deliveries.begin(TENANT, USER, HUB, later) == AT
    assert await store.deliveries.begin(TENANT, USER, HUB, AT - timedelta(hours=1)) == AT
    for number, (tenant, user_id, way) in enumerate(
        [(TENANT, USER, SERVICE), (TENANT, "bob", HUB), ("other", USER, HUB)]
    ):
        at = later + timedelta(minutes=number)
        assert await store.deliveries.begin(tenant, user_id, way, at) == at
        assert await store.deliveries.begin(tenant, user_id, way, AT) == at
    await store.close()
    store = place.store()
    await store.open()
    assert await store.deliveries.begin(TENANT, USER, HUB, later) == AT
    await store.close()


async def test_a_way_begins_once_for_all(deliveries: Deliveries) -> None:
    """Connections that open at the same moment agree on the time."""
    times = [AT + timedelta(seconds=number) for number in range(20)]
    for way in WAYS:
        begun = await asyncio.gather(*(deliveries.begin(TENANT, USER, way, at) for at in times))
        assert len(set(begun)) == 1
        assert begun[0] in times


async def test_beginning_makes_nobody_known(store: Store) -> None:
    """Who only tried a way gets no broadcast."""
    await store.deliveries.begin(TENANT, USER, HUB, AT)
    assert await store.directory.users(TENANT, after=None, limit=10) == []


# -- what was not sent yet -----------------------------------------------------------------------------------


async def test_all_that_is_unseen_is_waiting_at_first(store: Store) -> None:
    """The oldest first, for each way; what was seen or deleted is not; nor is anybody else's."""
    first, seen, deleted, last = await put_many(store, 4)
    early = await put(store, created_at=first.created_at - timedelta(hours=1))
    await put(store, "bob")
    await put(store, USER, "other")
    await store.mark_seen(TENANT, USER, [seen.id])
    await store.delete(TENANT, USER, [deleted.id])
    for way in (*WAYS, None):
        assert await backlog(store, way) == [early, first, last]
    assert await backlog(store, user_id="nobody") == []


async def test_what_is_marked_waits_no_longer(store: Store) -> None:
    """In that way; in the others it does."""
    documents = await put_many(store, 8)
    for number, document in enumerate(documents):  # every combination
        for bit, way in enumerate(WAYS):
            if number >> bit & 1:
                await store.deliveries.mark(way, {ME: [document.id]})
    for bit, way in enumerate(WAYS):
        expected = [each for number, each in enumerate(documents) if not number >> bit & 1]
        assert await backlog(store, way) == expected
    assert await backlog(store, None) == documents
    assert await whole_inbox(store) == documents[::-1]
    assert await store.unseen(TENANT, USER, after=None, limit=100) == documents
    assert await store.unseen(TENANT, USER, after=documents[2], limit=3) == documents[3:6]
    assert await store.count_unseen(TENANT, [USER]) == {USER: 8}
    assert (await store.mark_all_seen(TENANT, USER, limit=5)).ids == tuple(ids(documents[:5]))
    assert await backlog(store, WAYS[0]) == documents[6:7]


async def test_a_backlog_in_portions(store: Store) -> None:
    """After the position of the last, whatever is marked meanwhile; ties of time by their ids."""
    at = now()
    documents = [
        *[await put(store, created_at=at - timedelta(seconds=1)) for _ in range(3)],
        *[await put(store, created_at=at) for _ in range(5)],
    ]
    documents.sort(key=lambda each: (each.created_at, each.id))
    await store.deliveries.mark(EVENTS, {ME: [documents[1].id, documents[6].id]})
    await store.deliveries.mark(SERVICE, {ME: [documents[2].id]})
    waiting = [each for number, each in enumerate(documents) if number not in (1, 6)]
    found: list[Document] = []
    while some := await store.deliveries.backlog(
        TENANT, USER, EVENTS, since=None, after=found[-1] if found else None, limit=2
    ):
        await store.deliveries.mark(EVENTS, {ME: ids(some)})
        found += some
    assert found == waiting


async def test_a_backlog_since(store: Store) -> None:
    """What was created at that very time belongs to it; of `since` and `after` the later counts."""
    times = [AT + timedelta(milliseconds=number) for number in range(4)]
    documents = [await put(store, created_at=at) for at in times]

    async def waiting(since: int, after: int | None = None) -> list[Document]:
        return await store.deliveries.backlog(
            TENANT,
            USER,
            HUB,
            since=times[since],
            after=None if after is None else documents[after],
            limit=10,
        )

    assert await waiting(0) == documents
    assert await waiting(2) == documents[2:]
    assert await waiting(2, after=0) == documents[2:]
    assert await waiting(1, after=2) == documents[3:]
    assert await waiting(1, after=1) == documents[2:]


async def test_thousands_are_marked(store: Store) -> None:
    """At once, of many users; and a few that are new are found behind them."""
    users = [f"user-{number}" for number in range(50)]
    documents: dict[tuple[str, str], list[str]] = {(TENANT, user): [] for user in users}
    for _ in range(40):
        stored = await store.add(make_notification(), [Recipient(user) for user in users], None)
        for each in stored.documents:
            documents[TENANT, each.user_id].append(each.id)
    await store.deliveries.mark(HUB, documents)
    assert [await backlog(store, HUB, user) for user in users] == [[]] * 50
    new = await put(store, users[7])
    assert await backlog(store, HUB, users[7]) == [new]
    assert len(await backlog(store, SERVICE, users[7])) == 41


# -- marking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_mark_changes_nothing_in_the_inbox(way: str, store: Store) -> None:
    """Neither rev nor times of the document, nor those of a document that changes afterwards."""
    document, other = await put_many(store, 2)
    await store.deliveries.mark(way, {ME: [document.id]})
    await store.deliveries.mark(way, {ME: [document.id, other.id]})
    assert await whole_inbox(store) == [other, document]
    assert await store.changes(TENANT, USER, after=(0, ""), limit=10) == [document, other]
    change = await store.mark_seen(TENANT, USER, [document.id])
    [_, seen] = await whole_inbox(store)
    assert seen == altered(document, seen=True, rev=change.rev, updated_at=seen.updated_at)


async def test_only_the_users_own_are_marked(store: Store) -> None:
    """Malformed, unknown, deleted and other users' ids are passed over, and nothing at all is fine."""
    mine = await put(store)
    theirs, namesakes = await put(store, "bob"), await put(store, USER, "other")
    strange = ["", "x", "z" * 24, "0" * 24, new_id(), theirs.id, namesakes.id, mine.notification.nid]
    await store.deliveries.mark(HUB, {})
    await store.deliveries.mark(HUB, {ME: []})
    await store.deliveries.mark(HUB, {ME: strange, (TENANT, "nobody"): [mine.id]})
    assert await backlog(store) == [mine]
    assert await backlog(store, user_id="bob") == [theirs]
    await store.deliveries.mark(HUB, {ME: [*strange, mine.id, mine.id], (TENANT, "bob"): {theirs.id}})
    assert await backlog(store) == await backlog(store, user_id="bob") == []
    assert await store.deliveries.backlog("other", USER, HUB, since=None, after=None, limit=9) == [namesakes]


@pytest.mark.parametrize("way", WAYS)
async def test_what_comes_back_was_sent(way: str, store: Store) -> None:
    """A mark that is written after the document was seen, or deleted, counts when that is taken back."""
    seen, deleted = documents = await put_many(store, 2)
    await store.mark_seen(TENANT, USER, [seen.id])
    await store.delete(TENANT, USER, [deleted.id])
    before = [await delivery(store, each) for each in documents]
    await asyncio.sleep(0.002)
    await store.deliveries.mark(way, {ME: ids(documents)})
    assert [await delivery(store, each) for each in documents] == before
    await store.mark_unseen(TENANT, USER, [seen.id])
    await store.restore(TENANT, USER, [deleted.id])
    assert await backlog(store, way) == []
    assert len(await store.unseen(TENANT, USER, after=None, limit=10)) == 2


async def test_marking_at_once(store: Store) -> None:
    """In several ways, while documents are added and seen: no mark and no change is lost."""
    documents = await put_many(store, 30)
    some = [ids(documents[start : start + 10]) for start in range(0, 30, 5)]
    await asyncio.gather(
        *(store.deliveries.mark(way, {ME: each}) for way in (HUB, EVENTS) for each in some),
        store.mark_seen(TENANT, USER, ids(documents[:3])),
        *(put(store) for _ in range(10)),
    )
    unseen = await store.unseen(TENANT, USER, after=None, limit=100)
    assert len(unseen) == 37
    new = [each for each in unseen if each.id not in ids(documents)]
    assert await backlog(store, HUB) == await backlog(store, EVENTS) == new
    assert await backlog(store, SERVICE) == unseen


# -- what was delivered --------------------------------------------------------------------------------------


async def test_how_far_it_got(store: Store) -> None:
    """Stored, acknowledged, seen, or deleted, of each user, in the order of their ids; sent is not delivered."""
    notification = make_notification()
    users = ["zoe", "acks", "deletes", "sees", "is sent", ""]
    stored = await store.add(notification, [Recipient(user) for user in users], None)
    documents = dict(zip(users, stored.documents, strict=True))
    before = now()
    await store.deliveries.mark(ACKNOWLEDGED, {(TENANT, "acks"): [documents["acks"].id]})
    for way in (HUB, EVENTS):
        await store.deliveries.mark(way, {(TENANT, "is sent"): [documents["is sent"].id]})
    await store.mark_seen(TENANT, "sees", [documents["sees"].id])
    await store.delete(TENANT, "deletes", [documents["deletes"].id])

    found = await of(store, notification.nid)
    assert [each.user_id for each in found] == sorted(users)
    assert {each.sent_at for each in found} == {notification.created_at}
    assert {each.refused for each in found} == {None}
    delivered = {each.user_id: each.delivered_at for each in found if each.delivered_at is not None}
    assert delivered.keys() == {"acks", "deletes", "sees"}
    assert all(timedelta(0) <= at - before < timedelta(minutes=1) for at in delivered.values())


async def test_the_first_delivery_counts(store: Store) -> None:
    """Acknowledged, then seen, then deleted: the time stays that of the first; so it does if it was seen first."""
    acked, acked_too, seen, seen_too = documents = await put_many(store, 4)
    await store.deliveries.mark(ACKNOWLEDGED, {ME: [acked.id, acked_too.id]})
    await store.mark_seen(TENANT, USER, [seen.id])
    first = [await delivery(store, each) for each in documents]
    assert [each.delivered_at is None for each in first] == [False, False, False, True]
    await until_later(first)
    await store.mark_seen(TENANT, USER, [acked.id])
    assert (await store.mark_all_seen(TENANT, USER, limit=10)).ids == (acked_too.id, seen_too.id)
    first[3] = await delivery(store, seen_too)
    assert first[3].delivered_at is not None
    await until_later(first)
    await store.deliveries.mark(ACKNOWLEDGED, {ME: ids(documents)})
    await store.delete(TENANT, USER, ids(documents))
    await store.deliveries.mark(ACKNOWLEDGED, {ME: ids(documents)})
    assert [await delivery(store, each) for each in documents] == first


async def until_later(deliveries: list[Delivery]) -> None:
    """Until the clock shows another time than these."""
    last = max(each.delivered_at for each in deliveries if each.delivered_at is not None)
    while now() <= last:  # noqa: ASYNC110 - it is the clock that is waited for
        await asyncio.sleep(0.001)


async def test_an_acknowledged_document_is_still_unseen(store: Store) -> None:
    """To the inbox nothing happened."""
    document = await put(store)
    await store.deliveries.mark(ACKNOWLEDGED, {ME: [document.id]})
    assert await store.unseen(TENANT, USER, after=None, limit=10) == [document]
    assert await store.still_unseen(TENANT, document.notification.nid, [USER]) == {USER}
    assert await backlog(store, SERVICE) == []
    assert await backlog(store, HUB) == [document]


@pytest.mark.parametrize("count", [3, 1500])
async def test_deliveries_in_portions(count: int, store: Store) -> None:
    """Of few users and of many, among others of the tenant, beyond the given one; behind the last there are none."""
    users = [f"user-{number:04}" for number in range(count)]
    for other in ("user-0000x", "user-0001x", "zoe"):
        await put(store, other)
    notification = make_notification()
    await store.add(notification, [Recipient(user) for user in users[::-1]], None)
    found: list[str] = []
    while some := await store.deliveries.of_notification(
        TENANT, notification.nid, after=found[-1] if found else None, limit=max(count // 2, 2)
    ):
        found += [each.user_id for each in some]
    assert found == users
    assert await store.deliveries.of_notification(TENANT, notification.nid, after="zoe", limit=1) == []


async def test_a_mail_that_was_refused(store: Store) -> None:
    """With the server's answer and the time, of that user only; whether the notification had one user or several."""
    due_at = now() - timedelta(minutes=1)
    alice, bob = (MailRecipient(user, f"{user}@example.test", due_at) for user in ("alice", "bob"))
    single, both = await owe(store, alice), await owe(store, alice, bob)
    refused = RefusedMail("alice", "alice@example.test", 550, "no such user")
    jobs = await store.claim_mail(600.0, 10)
    assert len(jobs) == 2
    before = now()
    for job in jobs:
        sent = tuple(each for each in job.recipients if each.user_id == "bob")
        assert await store.settle_mail(job, MailOutcome(sent=sent, refused=(refused,)))
    assert [each.refused for each in await of(store, single.nid)] == [refused]
    assert [each.refused for each in await of(store, both.nid)] == [refused, None]
    [mine] = await of(store, single.nid)
    assert [each.refused_at for each in await of(store, both.nid)][1] is None
    for at in (mine.refused_at, (await of(store, both.nid))[0].refused_at):
        assert at is not None and before <= at <= now() and at.microsecond % 1000 == 0
    [other] = await of(store, (await put(store)).notification.nid)
    assert (other.refused, other.refused_at) == (None, None)


async def test_a_notification_that_is_not_there(store: Store) -> None:
    """Unknown, malformed, another tenant's; but a deleted document is one."""
    document = await put(store)
    await store.delete(TENANT, USER, [document.id])
    assert (await delivery(store, document)).user_id == USER
    for nid in (new_id(), document.id, "", "x" * 24):
        with pytest.raises(NotFound):
            await of(store, nid)
    with pytest.raises(NotFound):
        await of(store, document.notification.nid, "other")


async def test_erased_with_its_tenant(store: Store) -> None:
    """The next tenant of that name finds no deliveries, and begins every way anew."""

    async def add_tenant() -> None:
        await store.directory.add_tenant(
            Tenant("gone", AT), ApiKey(new_id(), "gone", "first", new_id(), ALL_SCOPES, AT)
        )

    await add_tenant()
    later = AT + timedelta(hours=1)
    for number in range(20):
        await store.deliveries.begin("gone", f"user-{number}", HUB, AT)
    await store.deliveries.begin(TENANT, "user-3", HUB, AT)
    document = await put(store, "user-3", "gone")
    await store.deliveries.mark(ACKNOWLEDGED, {("gone", "user-3"): [document.id]})
    await store.directory.remove_tenant("gone", now())
    while await store.directory.erase_tenant("gone", 7):
        pass
    await add_tenant()
    with pytest.raises(NotFound):
        await of(store, document.notification.nid, "gone")
    for number in range(20):
        assert await store.deliveries.begin("gone", f"user-{number}", HUB, later) == later
    assert await store.deliveries.begin(TENANT, "user-3", HUB, later) == AT
