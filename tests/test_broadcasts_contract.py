"""What every store promises about broadcasts (`server.store.Broadcasts`), over all kinds of store.

Its clock is the real one; a lease of no length has run out at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from server.errors import NotFound, StoreUnavailable
from server.grants import ALL_SCOPES, ApiKey, Tenant
from server.ids import is_id, new_id
from server.messages import Document, Notification, Recipient, altered, now
from server.store import HUB, Broadcast, Broadcasts, Delivery, Store
from tests.support.stores import TENANT, Place, make_notification, put, whole_inbox

LONG_S = 600.0
"""A lease that does not run out during a test."""

AT = now()


@pytest.fixture
def broadcasts(store: Store) -> Broadcasts:
    return store.broadcasts


async def add(store: Store, tenant: str = TENANT, after_s: float = 0.0, **fields: object) -> Notification:
    """A broadcast, accepted so much later than others."""
    notification = make_notification(tenant, created_at=AT + timedelta(seconds=after_s), **fields)
    await store.broadcasts.add(notification)
    return notification


async def claim(store: Store, lease_s: float = LONG_S) -> Broadcast:
    broadcast = await store.broadcasts.claim(lease_s)
    assert broadcast is not None
    return broadcast


async def add_tenant(store: Store, name: str = TENANT) -> None:
    await store.directory.add_tenant(
        Tenant(name, AT), ApiKey(new_id(), name, "first", new_id(), ALL_SCOPES, AT)
    )


async def erase(store: Store, name: str = TENANT) -> int:
    total = 0
    while erased := await store.directory.erase_tenant(name, 3):
        total += erased
    return total


async def of(store: Store, notification: Notification) -> list[Delivery]:
    return await store.deliveries.of_notification(
        notification.tenant, notification.nid, after=None, limit=5000
    )


async def open_of(
    store: Store, tenant: str = TENANT, user_id: str = "new", since_s: float = 0.0, limit: int = 2
) -> list[Notification]:
    """What is open for a user, page by page."""
    found: list[Notification] = []
    since = AT + timedelta(seconds=since_s)
    while some := await store.broadcasts.open_of(
        tenant, user_id, since=since, after=found[-1] if found else None, limit=limit
    ):
        assert len(some) <= limit
        found += some
    return found


async def user_ids(store: Store, tenant: str = TENANT) -> list[str]:
    return [user.user_id for user in await store.directory.users(tenant, after=None, limit=5000)]


# -- accepted, claimed, finished -----------------------------------------------------------------------------


async def test_what_is_not_open_yet_is_unavailable(place: Place) -> None:
    """Whatever is asked."""
    broadcasts, broadcast = place.store().broadcasts, Broadcast(make_notification(), None, new_id())
    for verb in (
        broadcasts.add(broadcast.notification),
        broadcasts.claim(LONG_S),
        broadcasts.expand(broadcast.notification, ["a"]),
        broadcasts.advance(broadcast, "a", LONG_S),
        broadcasts.finish(broadcast),
        broadcasts.give("a", [broadcast.notification]),
        broadcasts.open_of(TENANT, "a", since=AT, after=None, limit=1),
        broadcasts.count_open(),
    ):
        with pytest.raises(StoreUnavailable):
            await verb


async def test_from_acceptance_to_the_end(store: Store) -> None:
    """It is claimed as it was accepted, goes on where it was, and is gone when everybody has it."""
    assert await store.broadcasts.claim(LONG_S) is None
    assert (await store.broadcasts.count_open(), await open_of(store, TENANT)) == (0, [])
    notification = await add(
        store,
        content="c\0 😀 $content",
        type="t",
        title="T",
        url="u",
        icon="i",
        image="m",
        data={"$a": [1, 2**70]},
    )
    assert await store.broadcasts.count_open() == 1
    assert await open_of(store, TENANT) == [notification]
    broadcast = await claim(store)
    assert (broadcast.notification, broadcast.after) == (notification, None)
    assert await store.broadcasts.claim(LONG_S) is None
    assert await open_of(store, TENANT) == [notification]
    assert await store.broadcasts.advance(broadcast, "$b", LONG_S)
    assert await store.broadcasts.claim(LONG_S) is None
    assert await store.broadcasts.advance(broadcast, "m", 0.0)
    again = await claim(store)
    assert (again.notification, again.after) == (notification, "m")
    assert await store.broadcasts.count_open() == 1
    assert await store.broadcasts.finish(again)
    assert (await store.broadcasts.count_open(), await open_of(store, TENANT)) == (0, [])
    assert await store.broadcasts.claim(LONG_S) is None


async def test_a_lost_lease_proves_nothing(store: Store) -> None:
    """Once somebody else has claimed it, or it is finished, the first holder can change nothing."""
    await add(store)
    first = await claim(store, 0.0)
    second = await claim(store)
    assert first.lease != second.lease
    assert not await store.broadcasts.advance(first, "z", LONG_S)
    assert not await store.broadcasts.finish(first)
    assert await store.broadcasts.advance(second, "a", LONG_S)
    assert await store.broadcasts.finish(second)
    for broadcast in (first, second):
        assert not await store.broadcasts.advance(broadcast, "z", LONG_S)
        assert not await store.broadcasts.finish(broadcast)


async def test_a_lease_that_ran_out_and_nobody_wanted(store: Store) -> None:
    """Its holder may go on, and has it again."""
    await add(store)
    broadcast = await claim(store, 0.0)
    assert await store.broadcasts.advance(broadcast, "a", LONG_S)
    assert await store.broadcasts.claim(LONG_S) is None
    assert await store.broadcasts.finish(broadcast)


async def test_the_oldest_is_claimed_first(store: Store) -> None:
    """Of whatever tenant; those that are leased are passed over until their time is over."""
    second, first = await add(store, "other", 2), await add(store, TENANT, 1)
    third = await add(store, TENANT, 3)
    claimed = [await claim(store, lease_s) for lease_s in (LONG_S, 0.0, LONG_S, LONG_S)]
    assert [each.notification for each in claimed] == [first, second, second, third]
    assert await store.broadcasts.claim(LONG_S) is None
    assert await open_of(store, TENANT) == [first, third]
    assert await open_of(store, "other") == [second]
    assert await open_of(store, "nobody") == []
    assert await store.broadcasts.count_open() == 3


async def test_tenants_that_are_passed_over(store: Store) -> None:
    """As if they had none; the oldest of the others is claimed."""
    mine, other = await add(store, TENANT), await add(store, "other", 1)
    third = await add(store, "th'ird $", 2)
    assert await store.broadcasts.claim(LONG_S, {TENANT, "other", "th'ird $", "nobody"}) is None
    for tenants, expected in (((TENANT, "other"), third), ({TENANT: 1}, other), ((), mine)):
        broadcast = await store.broadcasts.claim(LONG_S, tenants)
        assert broadcast is not None and broadcast.notification == expected


async def test_each_is_claimed_by_one(store: Store) -> None:
    """Of many who ask at once, and at most as many as there are."""
    notifications = [await add(store, TENANT, number) for number in range(5)]
    claimed = await asyncio.gather(*(store.broadcasts.claim(LONG_S) for _ in range(12)))
    nids = [each.notification.nid for each in claimed if each is not None]
    assert sorted(nids) == sorted(each.nid for each in notifications)


async def test_accepted_is_durable(place: Place) -> None:
    """It is there after the store was closed, with how far it was; where only one process can have the store open, what
    that one had claimed is free at once."""
    store = place.store()
    await store.open()
    notification = await add(store, data={"a": 1})
    lease_s = 0.0 if place.is_shared else LONG_S
    broadcast = await claim(store, lease_s)
    assert await store.broadcasts.advance(broadcast, "k", lease_s)
    await store.close()
    store = place.store()
    await store.open()
    again = await claim(store)
    assert (again.notification, again.after) == (notification, "k")
    assert not await store.broadcasts.finish(broadcast)
    await store.close()


async def test_leases_of_others_hold(place: Place) -> None:
    """What one node has claimed another does not get."""
    first, second = place.store(), place.store()
    await first.open()
    await add(first)
    broadcast = await claim(first)
    if place.is_shared:
        await second.open()
        assert await second.broadcasts.claim(LONG_S) is None
        assert await first.broadcasts.finish(broadcast)
    await second.close()
    await first.close()


# -- documents -----------------------------------------------------------------------------------------------


async def test_everybody_gets_an_ordinary_document(store: Store) -> None:
    """As one that was added: its times are those of the acceptance, its rev is new, its user known, in whatever ways
    they listen."""
    before = await put(store, "bob")
    notification = await add(store, TENANT, -60, content="hello", data=[1])
    users = ["zoe", "bob", "nobody knew", ""]
    documents = await store.broadcasts.expand(notification, users)
    assert [each.user_id for each in documents] == users
    assert len({each.id for each in documents}) == len(users)
    for document in documents:
        at = notification.created_at
        assert document == Document(document.id, document.user_id, notification, at, at, document.rev)
        assert is_id(document.id)
        assert document.rev > before.rev
        assert document in await whole_inbox(store, document.user_id)
        assert document in await store.unseen(TENANT, document.user_id, after=None, limit=10)
        assert document in await store.changes(TENANT, document.user_id, after=(before.rev, ""), limit=10)
        assert document in await store.deliveries.backlog(
            TENANT, document.user_id, HUB, since=None, after=None, limit=10
        )
    assert await store.count_unseen(TENANT, users) == {"zoe": 1, "bob": 2, "nobody knew": 1, "": 1}
    assert await user_ids(store) == sorted(users)
    known = {each.user_id: each for each in await store.directory.users(TENANT, after=None, limit=10)}
    assert known["zoe"].first_seen_at == notification.created_at
    assert known["zoe"].last_seen_at is None

    zoes = documents[0]
    assert (await store.mark_seen(TENANT, "zoe", [zoes.id])).changed == 1
    [seen] = await whole_inbox(store, "zoe")
    assert seen == altered(zoes, seen=True, rev=seen.rev, updated_at=seen.updated_at)
    assert (await store.delete(TENANT, "zoe", [zoes.id])).changed == 1
    assert await whole_inbox(store, "zoe") == []


async def test_nobody_gets_two(store: Store) -> None:
    """However often it is stored; also who has seen or deleted theirs. The new ones come in the order of the users."""
    notification = await add(store)
    documents = await store.broadcasts.expand(notification, ["a", "b", "c"])
    await store.mark_seen(TENANT, "a", [documents[0].id])
    await store.delete(TENANT, "b", [documents[1].id])
    assert await store.broadcasts.expand(notification, ["a", "b", "c"]) == []
    assert await store.broadcasts.expand(notification, []) == []
    new = await store.broadcasts.expand(notification, ["z", "c", "d", "b", "a", "0"])
    assert [each.user_id for each in new] == ["z", "d", "0"]
    assert await whole_inbox(store, "b") == []
    assert [each.user_id for each in await of(store, notification)] == ["0", "a", "b", "c", "d", "z"]


async def test_who_was_notified_otherwise_has_it(store: Store) -> None:
    """A document of the same notification that came by `add` is one."""
    notification = make_notification()
    [document] = (await store.add(notification, [Recipient("a")], None)).documents
    [other] = await store.broadcasts.expand(notification, ["a", "b"])
    assert other.user_id == "b"
    assert await whole_inbox(store, "a") == [document]


async def test_several_at_once(store: Store) -> None:
    """Each document is stored once, and is new to one of them."""
    notification = await add(store)
    users = [f"user-{number:03}" for number in range(200)]
    portions = [users[start : start + 80] for start in (0, 20, 40, 60, 120)] * 3
    new = await asyncio.gather(*(store.broadcasts.expand(notification, some) for some in portions))
    found = [document.user_id for some in new for document in some]
    assert sorted(found) == users
    for some, portion in zip(new, portions, strict=True):
        places = [portion.index(document.user_id) for document in some]
        assert places == sorted(places)
    assert [each.user_id for each in await of(store, notification)] == users


async def test_several_nodes_at_once(place: Place) -> None:
    """The same, where several processes have the store open."""
    stores = [place.store() for _ in range(3 if place.is_shared else 1)]
    for store in stores:
        await store.open()
    notification = await add(stores[0])
    users = [f"user-{number:03}" for number in range(300)]
    new = await asyncio.gather(
        *(store.broadcasts.expand(notification, users) for store in stores for _ in range(2))
    )
    assert sorted(document.user_id for some in new for document in some) == users
    assert [each.user_id for each in await of(stores[0], notification)] == users
    for store in stores:
        await store.close()


async def test_thousands(store: Store) -> None:
    """More users than go into one statement or batch."""
    notification = await add(store)
    users = [f"user-{number:04}" for number in range(2500)]
    assert [each.user_id for each in await store.broadcasts.expand(notification, users[::2])] == users[::2]
    assert [each.user_id for each in await store.broadcasts.expand(notification, users)] == users[1::2]
    assert len({each.user_id for each in await of(store, notification)}) == 2500


async def test_the_same_user_of_two_tenants(store: Store) -> None:
    """And of two broadcasts of the same moment: each has a document of its own."""
    notifications = [await add(store), await add(store), await add(store, "other")]
    documents = [(await store.broadcasts.expand(each, ["a"]))[0] for each in notifications]
    assert len({each.id for each in documents}) == 3
    assert len(await whole_inbox(store, "a")) == 2
    assert await whole_inbox(store, "a", "other") == documents[2:]


async def test_after_the_end(store: Store) -> None:
    """Who joins at that moment gets theirs all the same, whether anybody had one or not."""
    for users in (["a"], []):
        notification = await add(store, content="late")
        await store.broadcasts.expand(notification, users)
        assert await store.broadcasts.finish(await claim(store))
        [document] = await store.broadcasts.expand(notification, ["late"])
        assert document.notification == notification
        assert await store.broadcasts.expand(notification, [*users, "late"]) == []
        assert document in await whole_inbox(store, "late")
    assert await store.broadcasts.count_open() == 0


async def test_how_far_it_got(store: Store) -> None:
    """As long as it is open, nobody has it yet; one that ended with nobody is gone."""
    notification = await add(store)
    assert await of(store, notification) == []
    with pytest.raises(NotFound):
        await of(store, altered(notification, tenant="other"))
    assert await store.broadcasts.finish(await claim(store))
    with pytest.raises(NotFound):
        await of(store, notification)


# -- who joins -------------------------------------------------------------------------------------------------


async def test_a_user_is_given_what_is_open(store: Store) -> None:
    """One document each, in their order, as by `expand`, of what was accepted since then; of what they have, seen or
    deleted, too, they are given nothing."""
    notifications = [await add(store, TENANT, number, content=str(number)) for number in range(7)]
    await add(store, "other")
    documents = [*await store.broadcasts.expand(notifications[1], ["a", "b"])]
    documents += await store.broadcasts.expand(notifications[4], ["a"])
    documents += await store.broadcasts.expand(notifications[5], ["a"])
    await store.mark_seen(TENANT, "a", [documents[2].id])
    await store.delete(TENANT, "a", [documents[3].id])
    assert await open_of(store, user_id="new") == notifications
    assert await open_of(store, user_id="b") == [notifications[0], *notifications[2:]]
    lacking = [notifications[place] for place in (0, 2, 3, 6)]
    assert await open_of(store, user_id="a") == lacking
    assert await open_of(store, user_id="a", since_s=2) == lacking[1:]
    assert await open_of(store, user_id="a", since_s=2.001) == lacking[2:]

    given = await store.broadcasts.give("a", notifications)
    assert [each.notification for each in given] == lacking
    for document in given:
        at = document.notification.created_at
        assert document == Document(document.id, "a", document.notification, at, at, document.rev)
        assert document in await whole_inbox(store, "a")
        assert (await of(store, document.notification))[0].user_id == "a"
    assert await store.broadcasts.give("a", notifications) == []
    assert await store.broadcasts.give("a", []) == []
    assert await open_of(store, user_id="a") == []
    for notification in notifications:
        new = await store.broadcasts.expand(notification, ["a", "b", "c"])
        assert "a" not in [each.user_id for each in new]
    assert len(await whole_inbox(store, "a")) == 6


async def test_pages_of_what_is_open(store: Store) -> None:
    """Many of the same moment are each in one page; what ends meanwhile is in the way of none."""
    notifications = [await add(store, TENANT, number // 10) for number in range(40)]
    found: list[Notification] = []
    while some := await store.broadcasts.open_of(
        TENANT, "a", since=AT, after=found[-1] if found else None, limit=7
    ):
        found += some
        await store.broadcasts.give("a", some)
        assert await store.broadcasts.finish(await claim(store))
    assert [each.created_at for each in found] == sorted(each.created_at for each in found)
    assert sorted(each.nid for each in found) == sorted(each.nid for each in notifications)
    assert len(await whole_inbox(store, "a")) == 40


async def test_given_and_expanded_at_once(store: Store) -> None:
    """Each document is stored once, and is new to one of them."""
    notifications = [await add(store, TENANT, number) for number in range(20)]
    users = [f"user-{number}" for number in range(5)]
    new = await asyncio.gather(
        *(store.broadcasts.give(user, notifications) for user in users * 2),
        *(store.broadcasts.expand(notification, users) for notification in notifications),
    )
    found = Counter((each.user_id, each.notification.nid) for some in new for each in some)
    assert found == {(user, each.nid): 1 for user in users for each in notifications}
    assert await store.count_unseen(TENANT, users) == dict.fromkeys(users, 20)


# -- removed tenants -----------------------------------------------------------------------------------------


async def test_a_removed_tenants_broadcasts_rest(store: Store) -> None:
    """They are not claimed nor counted, and who is at one stops; the others' go on."""
    await add_tenant(store)
    begun, _, theirs = await add(store), await add(store, TENANT, 1), await add(store, "other", 2)
    broadcast = await claim(store)
    assert broadcast.notification == begun
    await store.directory.remove_tenant(TENANT, now())
    assert not await store.broadcasts.advance(broadcast, "a", LONG_S)
    assert await store.broadcasts.count_open() == 1
    assert (await claim(store)).notification == theirs
    assert await store.broadcasts.claim(LONG_S) is None
    late = await add(store, TENANT, 3)
    assert await store.broadcasts.claim(LONG_S) is None
    assert late in await open_of(store, TENANT)


async def test_erased_with_its_tenant(store: Store) -> None:
    """Those without documents, those with some, and the documents; the next tenant of that name has none."""
    await add_tenant(store)
    notifications = [await add(store, TENANT, number) for number in range(8)]
    for number, notification in enumerate(notifications):
        await store.broadcasts.expand(notification, [f"user-{each}" for each in range(number)])
    theirs = await add(store, "other", 9)
    [kept] = await store.broadcasts.expand(theirs, ["user-1"])
    broadcast = await claim(store)
    await store.directory.remove_tenant(TENANT, now())
    assert await erase(store) == sum(range(8))
    assert not await store.broadcasts.finish(broadcast)
    await add_tenant(store)
    assert await open_of(store, TENANT) == []
    assert await store.broadcasts.count_open() == 1
    assert await user_ids(store) == []
    for notification in notifications:
        with pytest.raises(NotFound):
            await of(store, notification)
    assert (await claim(store)).notification == theirs
    assert await whole_inbox(store, "user-1", "other") == [kept]
    new = await add(store)
    [document] = await store.broadcasts.expand(new, ["user-1"])
    assert document.notification == new
    assert await whole_inbox(store, "user-1") == [document]


async def test_erasing_beside_who_expands(store: Store) -> None:
    """What is stored for a removed tenant between two steps is erased by the next."""
    await add_tenant(store)
    notification = await add(store)
    for number in range(20):
        await store.broadcasts.expand(notification, [f"user-{number}"])
    await store.directory.remove_tenant(TENANT, now())
    number = 20
    while await store.directory.erase_tenant(TENANT, 5):
        if number < 24:
            await store.broadcasts.expand(notification, [f"user-{number}"])
            number += 1
    assert number == 24
    with pytest.raises(NotFound):
        await of(store, notification)
    assert await user_ids(store) == []
    assert TENANT not in [tenant.name for tenant in await store.directory.tenants()]
