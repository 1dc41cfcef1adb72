"""What every store promises of following an inbox, counting it, reading parts of it, and taking changes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.errors import StoreUnavailable
from server.ids import new_id
from server.messages import Document, EmailDuty, Mail, MailRecipient, Recipient, altered, now
from server.store import (
    ACKNOWLEDGED,
    HUB,
    MAX_TYPES,
    WAYS,
    Change,
    Counts,
    MailOutcome,
    Store,
    TypeCounts,
    Welcome,
)
from server.wire import are_all
from tests.support.stores import TENANT, USER, Place, make_notification, put, put_many

NOTHING = Change((), 0, None)
EMPTY = Counts(0, 0, {})

NOT_IDS = ["", "x", "0" * 23, "0" * 25, "z" * 24, "null", "\0" * 24, "é" * 24, " " * 24]

TYPES = {
    "empty": "",
    "spaces": "  \t ",
    "nul": "a\0b",
    "operator": "$where.$x",
    "quotes": "'\"`\\%_",
    "astral": "😀👩‍👩‍👧‍👦𝕏\U0010ffff",
    "long": "ß" * 500,
}


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


async def newest(store: Store, user_id: str = USER) -> list[Document]:
    return await store.newest(TENANT, user_id, before=None, limit=1000)


async def find(store: Store, id_: str) -> Document:
    [document] = await store.find(TENANT, USER, [id_])
    return document


async def counts(store: Store, user_id: str = USER) -> Counts:
    return (await store.counts(TENANT, [user_id]))[user_id]


def counts_of(documents: list[Document]) -> Counts:
    """What is to be counted if these are all."""
    kept = [each for each in documents if not each.deleted]
    types: dict[str, TypeCounts] = {}
    for each in kept:
        of_type = types.get(each.notification.type, TypeCounts(0, 0))
        types[each.notification.type] = TypeCounts(of_type.unseen + (not each.seen), of_type.total + 1)
    return Counts(sum(not each.seen for each in kept), len(kept), types)


# -- the epoch -----------------------------------------------------------------------------------------------


async def test_an_epoch_is_for_life(place: Place) -> None:
    """Known after the first open, the same ever after."""
    epochs = set()
    for _ in range(3):
        store = place.store()
        await store.open()
        epochs.add(store.epoch)
        await store.close()
        epochs.add(store.epoch)
    [epoch] = epochs
    assert len(epoch) == 24


async def test_nodes_agree_on_the_epoch(place: Place) -> None:
    """Also those that are the first to open the store, at the same time."""
    stores = [place.store() for _ in range(5 if place.is_shared else 1)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.epoch for store in stores}) == 1
    for store in stores:
        await store.close()


# -- long documents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"content": "x" * 40_000}, {"data": {"text": "é" * 40_000}}, {"data": [[[]]] * 8_000}],
    ids=["content", "data", "brackets"],
)
async def test_of_long_documents_no_more_are_read_than_are_told(store: Store, fields: dict[str, Any]) -> None:
    """As many as go into a frame, and one, by which it is known that there are more. Pages, and what is asked for by
    its id, come as a whole."""
    documents = await put_many(store, 5, **fields)
    found: list[Document] = []
    while some := await store.unseen(TENANT, USER, after=found[-1] if found else None, limit=100):
        assert len(some) <= 2
        assert are_all(some, 100) is (some[-1] == documents[-1] and len(some) == 1)
        found += some
    assert found == documents
    assert await store.newest(TENANT, USER, before=None, limit=100) == documents[:-3:-1]
    assert await store.newest(TENANT, USER, before=None, limit=100, seen=False) == documents[:-3:-1]
    assert await store.changes(TENANT, USER, after=(0, ""), limit=100) == documents[:2]
    welcome = await store.welcome(TENANT, USER, unseen=100, changes=100)
    assert (welcome.unseen, welcome.changes) == (documents[:2], documents[:2])
    assert (
        await store.deliveries.backlog(TENANT, USER, HUB, since=None, after=None, limit=100) == documents[:2]
    )
    assert await store.page(TENANT, USER, page=0, limit=100) == documents
    assert await store.find(TENANT, USER, ids(documents)) == documents


# -- the position --------------------------------------------------------------------------------------------


async def test_a_position_lies_between_what_was_and_what_comes(place: Place) -> None:
    """What changes after it was asked for has a higher rev, nothing that changed before has, also across restarts."""
    revs = [0]
    for _ in range(3):
        store = place.store()
        await store.open()
        document = await put(store)
        seen = await store.mark_seen(TENANT, USER, [document.id])
        position = await store.position()
        assert seen.rev is not None and revs[-1] < document.rev < seen.rev <= position
        assert await store.position() >= position
        unseen = await store.mark_unseen(TENANT, USER, [document.id])
        assert unseen.rev is not None and unseen.rev > position
        revs.append(await store.position())
        await store.close()
    assert revs == sorted(set(revs))


async def test_the_position_of_an_empty_store(store: Store) -> None:
    """The first document lies beyond it."""
    position = await store.position()
    assert position >= 0
    assert (await put(store)).rev > position


async def test_the_present_is_not_before_anybody_is_known(place: Place) -> None:
    """Whichever node has heard of them, and how: also if what its clock shows is yet to come."""
    nodes = [place.store() for _ in range(2 if place.is_shared else 1)]
    for node in nodes:
        await node.open()
    later = now() + timedelta(seconds=5 if place.is_shared else 0)
    await nodes[-1].directory.note_users({(TENANT, "joined"): later})
    await nodes[-1].add(make_notification(created_at=later), [Recipient("notified")], None)
    await asyncio.sleep(0.02)  # as far as a node can be sure of the clock of a database
    present = await nodes[0].present(TENANT)
    known = await nodes[0].directory.users(TENANT, after=None, limit=9)
    for node in nodes:
        await node.close()
    assert [user.user_id for user in known] == ["joined", "notified"]
    assert all(user.first_seen_at <= present for user in known)


async def test_nothing_appears_behind_a_position(store: Store) -> None:
    """While others change the inbox: what a read that begins after the position finds up to there (less the overlap) is
    all that there ever will be."""
    overlap = round(store.changes_overlap_s * 1000) << 16
    stop = asyncio.Event()

    async def change(number: int) -> None:
        while not stop.is_set():
            document = await put(store, type=str(number))
            await store.mark_seen(TENANT, USER, [document.id])
            await store.mark_unseen(TENANT, USER, [document.id])
            await store.delete(TENANT, USER, [document.id])
            await store.restore(TENANT, USER, [document.id])

    changing = [asyncio.create_task(change(number)) for number in range(8)]
    read: dict[int, set[tuple[int, str]]] = {}
    while len(read) < 20:
        position = await store.position()
        found = await store.changes(TENANT, USER, after=(0, ""), limit=100_000)
        read[position] = {(each.rev, each.id) for each in found if each.rev <= position - overlap}
    stop.set()
    await asyncio.gather(*changing)
    at_last = {
        (each.rev, each.id) for each in await store.changes(TENANT, USER, after=(0, ""), limit=100_000)
    }
    for position, found_then in read.items():
        assert {place for place in at_last if place[0] <= position - overlap} <= found_then


# -- counts --------------------------------------------------------------------------------------------------


async def test_counts_of_whom_nobody_notified(store: Store) -> None:
    """Every given user is in the answer."""
    assert await store.counts(TENANT, [USER, "bob"]) == {USER: EMPTY, "bob": EMPTY}
    assert await store.counts(TENANT, []) == {}


async def test_counts_by_type(store: Store) -> None:
    """Exact, and without tombstones, after each kind of change; other users' and tenants' are not among them."""
    documents = [await put(store, type=type_) for type_ in ("a", "b", "a", "c", "b", "a")]
    await put(store, "bob", type="a")
    await put(store, USER, "other", type="a")
    await store.mark_seen(TENANT, USER, ids([documents[0], documents[1]]))
    await store.delete(TENANT, USER, ids([documents[1], documents[2], documents[3]]))
    one = TypeCounts(1, 1)
    assert await counts(store) == Counts(2, 3, {"a": TypeCounts(1, 2), "b": one})
    await store.restore(TENANT, USER, ids([documents[1], documents[3]]))
    assert await counts(store) == Counts(3, 5, {"a": TypeCounts(1, 2), "b": TypeCounts(1, 2), "c": one})
    await store.mark_unseen(TENANT, USER, ids([documents[0], documents[1]]))
    assert await counts(store) == Counts(5, 5, {"a": TypeCounts(2, 2), "b": TypeCounts(2, 2), "c": one})
    await store.mark_all_seen(TENANT, USER, limit=100)
    assert await counts(store) == Counts(
        0, 5, {"a": TypeCounts(0, 2), "b": TypeCounts(0, 2), "c": TypeCounts(0, 1)}
    )
    assert await store.counts(TENANT, {"bob", "nobody"}) == {"bob": Counts(1, 1, {"a": one}), "nobody": EMPTY}
    assert await store.counts("other", [USER]) == {USER: Counts(1, 1, {"a": one})}


@pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
async def test_any_text_is_a_type(store: Store, type_: str) -> None:
    """It is counted, and found again, by exactly that text."""
    document = await put(store, type=type_)
    other = await put(store, type=f"{type_} ")
    assert (await counts(store)).types == {type_: TypeCounts(1, 1), f"{type_} ": TypeCounts(1, 1)}
    assert await store.newest(TENANT, USER, before=None, limit=9, type=type_) == [document]
    assert await store.newest(TENANT, USER, before=None, limit=9, type=f"{type_} ") == [other]


async def test_more_types_than_are_counted_one_by_one(store: Store) -> None:
    """Those with the most documents are, in that order, then in that of their names; the sums are of all."""
    types = [f"type-{number:03}" for number in range(MAX_TYPES + 5)]
    documents = [await put(store, type=type_) for type_ in types]
    more = [await put(store, type=type_) for type_ in (types[-1], types[-1], types[-3])]
    await store.mark_seen(TENANT, USER, ids([documents[0], documents[-2], more[0]]))
    found = await counts(store)
    assert (found.unseen, found.total) == (len(types), len(types) + 3)
    assert list(found.types) == [types[-1], types[-3], *types[: MAX_TYPES - 2]]
    assert found.types[types[-1]] == TypeCounts(2, 3)
    assert found.types[types[0]] == TypeCounts(0, 1)


async def test_counts_of_many_users(store: Store) -> None:
    """More than a statement takes; each has the own ones."""
    users = [f"user-{number}" for number in range(1200)]
    await store.add(make_notification(type="a"), [Recipient(user) for user in users], None)
    document = await put(store, users[7], type="b")
    await store.mark_seen(TENANT, users[7], [document.id])
    found = await store.counts(TENANT, [*users, "nobody"])
    a = {"a": TypeCounts(1, 1)}
    assert found.pop("nobody") == EMPTY
    assert found.pop(users[7]) == Counts(1, 2, {**a, "b": TypeCounts(0, 1)})
    assert found == {user: Counts(1, 1, a) for user in users if user != users[7]}


async def test_counts_are_exact_after_concurrent_changes(store: Store) -> None:
    """Of whatever was done at once, they are those of what is there."""
    documents = [await put(store, type="abc"[number % 3]) for number in range(40)]
    await asyncio.gather(
        *(put(store, type="d") for _ in range(10)),
        *(store.mark_seen(TENANT, USER, ids(documents[start : start + 12])) for start in range(0, 30, 6)),
        *(store.mark_unseen(TENANT, USER, ids(documents[start : start + 5])) for start in range(0, 40, 4)),
        *(store.delete(TENANT, USER, ids(documents[start : start + 3])) for start in range(20, 40, 2)),
        *(store.restore(TENANT, USER, ids(documents[start : start + 2])) for start in range(20, 40, 3)),
    )
    assert await counts(store) == counts_of(await newest(store))


# -- joining -------------------------------------------------------------------------------------------------


async def test_a_welcome_is_what_its_parts_find(store: Store) -> None:
    """Of each as much as was asked for, from where it was asked for."""
    documents = await put_many(store, 5, type="a")
    await store.mark_seen(TENANT, USER, ids(documents[:1]))
    await store.delete(TENANT, USER, ids(documents[1:2]))
    await put(store, "bob")
    known_since = await store.directory.known_since(TENANT, USER)
    assert known_since is not None
    assert await store.welcome(TENANT, USER) == Welcome(known_since)
    whole = await store.welcome(TENANT, USER, unseen=10, counts=True, changes=10)
    assert whole == Welcome(
        known_since,
        await store.unseen(TENANT, USER, after=None, limit=10),
        await counts(store),
        await store.changes(TENANT, USER, after=(0, ""), limit=10),
    )
    assert (len(whole.unseen), whole.counts.total, len(whole.changes)) == (3, 4, 5)
    after = (documents[3].rev, documents[3].id)
    some = await store.welcome(TENANT, USER, unseen=2, changes=2, after=after)
    assert some == Welcome(
        known_since, documents[2:4], changes=await store.changes(TENANT, USER, after=after, limit=2)
    )


async def test_the_welcome_of_whom_nobody_knows(store: Store) -> None:
    """Until their join is written down."""
    welcome = await store.welcome(TENANT, "nobody", unseen=1, counts=True, changes=1)
    assert (welcome.known_since, welcome.counts) == (None, EMPTY)
    assert not welcome.unseen
    assert not welcome.changes
    at = now()
    await store.directory.note_users({(TENANT, "nobody"): at})
    assert await store.welcome(TENANT, "nobody") == Welcome(at)


async def test_the_welcomes_of_many_at_once(store: Store) -> None:
    """Each gets what they asked for, and theirs."""
    for number in range(40):
        await put_many(store, number % 3, f"user{number}")
    asked = [
        store.welcome(TENANT, f"user{number}", unseen=number % 2, counts=True, changes=2)
        for number in range(40)
    ]
    for number, welcome in enumerate(await asyncio.gather(*asked)):
        assert welcome == await store.welcome(
            TENANT, f"user{number}", unseen=number % 2, counts=True, changes=2
        )
        assert {each.user_id for each in (*welcome.unseen, *welcome.changes)} <= {f"user{number}"}
        assert welcome.counts.total == number % 3


# -- parts of the inbox --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [None, False, True])
@pytest.mark.parametrize("type_", [None, "a", "b", "none"])
async def test_the_newest_of_a_kind(store: Store, type_: str | None, seen: bool | None) -> None:
    """By type and by whether they were seen, in the order of the inbox, page by page, before whatever document; without
    tombstones."""
    at = now()
    documents = [
        await put(store, type="aab"[number % 3], created_at=at - timedelta(milliseconds=number % 4))
        for number in range(24)
    ]
    await put(store, "bob", type="a")
    await store.mark_seen(TENANT, USER, ids(documents[::2]))
    await store.delete(TENANT, USER, ids(documents[5:9]))
    inbox = await newest(store)
    wanted = [
        each
        for each in inbox
        if type_ in (None, each.notification.type) and seen in (None, each.seen) and not each.deleted
    ]
    for limit in (1, 2, 5, 100):
        paged: list[Document] = []
        while some := await store.newest(
            TENANT, USER, before=paged[-1].id if paged else None, limit=limit, type=type_, seen=seen
        ):
            assert len(some) <= limit
            paged += some
        assert paged == wanted
    for mark in inbox:
        older = await store.newest(TENANT, USER, before=mark.id, limit=100, type=type_, seen=seen)
        assert older == [each for each in wanted if (each.created_at, each.id) < (mark.created_at, mark.id)]
    assert await store.newest(TENANT, USER, before=new_id(), limit=9, type=type_, seen=seen) == []


async def test_finding_documents(store: Store) -> None:
    """Those of the user, as they are now, tombstones too, in the order given, once each, however the id is written."""
    first, second, third = await put_many(store, 3)
    theirs = await put(store, "bob")
    await store.delete(TENANT, USER, [second.id])
    await store.mark_seen(TENANT, USER, [third.id])
    wanted = [third.id, new_id(), *NOT_IDS, second.id.upper(), theirs.id, first.id, third.id]
    found = await store.find(TENANT, USER, wanted)
    assert ids(found) == ids([third, second, first])
    assert [(each.seen, each.deleted, each.deleted_at is None) for each in found] == [
        (True, False, True),
        (False, True, False),
        (False, False, True),
    ]
    assert found[2] == first
    assert await store.find("other", USER, [first.id]) == []
    assert await store.find(TENANT, USER, []) == []
    assert ids(await store.find(TENANT, USER, [new_id() for _ in range(2500)] + [first.id])) == [first.id]


# -- all up to a rev -----------------------------------------------------------------------------------------


async def test_marking_all_up_to_a_rev(store: Store) -> None:
    """The oldest first, in batches; what came or changed since stays unseen."""
    documents = await put_many(store, 6)
    up_to = documents[4].rev
    await store.mark_seen(TENANT, USER, ids(documents[:2]))
    await store.mark_unseen(TENANT, USER, [documents[0].id])  # changed since
    changes = [await store.mark_all_seen(TENANT, USER, limit=2, up_to=up_to) for _ in range(3)]
    assert [each.ids for each in changes] == [tuple(ids(documents[2:4])), (documents[4].id,), ()]
    assert [each.changed for each in changes] == [2, 1, 0]
    assert changes[2] == NOTHING
    assert [each.seen for each in await newest(store)] == [False, True, True, True, True, False]
    assert (await counts(store)).unseen == 2


async def test_marking_all_up_to_any_number(store: Store) -> None:
    """Whatever 64 bits a client has sent, and more."""
    document = await put(store)
    for low in (-(2**64), -1, 0, 1, document.rev - 1):
        assert await store.mark_all_seen(TENANT, USER, limit=9, up_to=low) == NOTHING
    for high in (document.rev, 2**63 - 1, 2**63, 2**64):
        change = await store.mark_all_seen(TENANT, USER, limit=9, up_to=high)
        assert change == Change((document.id,), 1, change.rev)
        document = await put(store)
        await store.delete(TENANT, USER, [change.ids[0]])


async def test_marking_all_up_to_a_rev_while_others_do(store: Store) -> None:
    """Each document is changed by one of them, and none beyond."""
    documents = await put_many(store, 30)
    changes = await asyncio.gather(
        *(store.mark_all_seen(TENANT, USER, limit=30, up_to=documents[19].rev) for _ in range(4)),
        *(store.mark_seen(TENANT, USER, [each.id]) for each in documents[5:10]),
    )
    assert sum(each.changed for each in changes) == 20
    assert [each.seen for each in (await newest(store))[::-1]] == [True] * 20 + [False] * 10


# -- taking back ---------------------------------------------------------------------------------------------


async def test_marking_as_unseen(store: Store) -> None:
    """The documents are unseen from then on, with a new rev, one for all; nothing else of them changes."""
    first, second, third = await put_many(store, 3)
    await store.mark_seen(TENANT, USER, ids([first, third]))
    seen = {each.id: each for each in await newest(store)}
    change = await store.mark_unseen(TENANT, USER, [third.id, second.id, first.id, third.id])
    assert change == Change((third.id, second.id, first.id), 2, change.rev)
    assert change.rev is not None and change.rev > seen[first.id].rev
    for document in await newest(store):
        before = seen[document.id]
        if before.seen:
            assert document.updated_at >= before.updated_at
            before = altered(before, seen=False, rev=change.rev, updated_at=document.updated_at)
        assert document == before
    assert await store.unseen(TENANT, USER, after=None, limit=9) == [*(await newest(store))[::-1]]
    assert await store.mark_unseen(TENANT, USER, ids([first])) == Change((first.id,), 0, None)


async def test_restoring(store: Store) -> None:
    """Tombstones are documents again, where and as they were before, with a new rev, one for all."""
    documents = await put_many(store, 4)
    await store.mark_seen(TENANT, USER, [documents[1].id])
    before = await newest(store)
    deleted = await store.delete(TENANT, USER, ids(documents[:3]))
    change = await store.restore(TENANT, USER, [documents[1].id, documents[3].id, documents[0].id])
    assert change == Change((documents[1].id, documents[0].id), 2, change.rev)
    assert change.rev is not None and deleted.rev is not None and change.rev > deleted.rev
    inbox = await newest(store)
    assert ids(inbox) == ids([documents[3], documents[1], documents[0]])
    for document, was in zip(inbox[1:], [before[2], before[3]], strict=True):
        assert document.updated_at >= was.updated_at
        assert document == altered(was, rev=change.rev, updated_at=document.updated_at)
    assert inbox[0] == documents[3]
    assert await store.restore(TENANT, USER, ids(documents[:2])) == NOTHING
    found = await store.changes(TENANT, USER, after=(deleted.rev, "f" * 24), limit=9)
    assert sorted(ids(found)) == sorted(change.ids)
    assert await store.delete(TENANT, USER, [documents[0].id]) != NOTHING


async def test_what_was_deleted_is_not_unseen(store: Store) -> None:
    """It is none of the user's until it is restored, and then is as it was."""
    document = await put(store)
    await store.mark_seen(TENANT, USER, [document.id])
    await store.delete(TENANT, USER, [document.id])
    assert await store.mark_unseen(TENANT, USER, [document.id]) == NOTHING
    await store.restore(TENANT, USER, [document.id])
    assert (await find(store, document.id)).seen


UNDOING = {"unseen": ("mark_seen", "mark_unseen"), "restore": ("delete", "restore")}


@pytest.mark.parametrize(("do", "undo"), UNDOING.values(), ids=UNDOING)
async def test_foreign_ids_are_none_of_the_users(store: Store, do: str, undo: str) -> None:
    """Unknown and malformed ids, other users' and other tenants' are left out, and what they name stays as it is."""
    mine, theirs = await put(store), await put(store, "bob")
    elsewhere = await put(store, USER, "other")
    for each in (mine, theirs, elsewhere):
        await getattr(store, do)(each.notification.tenant, each.user_id, [each.id])
    before = await store.find(TENANT, "bob", [theirs.id]), await store.find("other", USER, [elsewhere.id])
    foreign = [theirs.id, elsewhere.id, new_id(), mine.notification.nid, *NOT_IDS]
    assert await getattr(store, undo)(TENANT, USER, foreign) == NOTHING
    assert await getattr(store, undo)(TENANT, USER, []) == NOTHING
    many = [new_id() for _ in range(2500)]
    change = await getattr(store, undo)(TENANT, USER, [*foreign, *many, mine.id.upper(), *foreign])
    assert change == Change((mine.id,), 1, change.rev)
    assert before == (
        await store.find(TENANT, "bob", [theirs.id]),
        await store.find("other", USER, [elsewhere.id]),
    )


@pytest.mark.parametrize(("do", "undo"), UNDOING.values(), ids=UNDOING)
async def test_of_several_one_takes_it_back(store: Store, do: str, undo: str) -> None:
    """At the same time; all of its documents have its rev."""
    documents = ids(await put_many(store, 5))
    await getattr(store, do)(TENANT, USER, documents)
    changes = await asyncio.gather(*(getattr(store, undo)(TENANT, USER, documents) for _ in range(5)))
    assert sum(each.changed for each in changes) == 5
    assert {each.rev for each in await newest(store)} <= {each.rev for each in changes}
    assert await counts(store) == Counts(5, 5, {"": TypeCounts(5, 5)})


async def test_devices_that_disagree(store: Store) -> None:
    """While some see what others do not, and delete what others restore, every change that says so has changed that
    many, and the last one holds."""
    documents = ids(await put_many(store, 10))
    verbs = [store.mark_seen, store.mark_unseen, store.delete, store.restore]
    changes = await asyncio.gather(*(verb(TENANT, USER, documents) for _ in range(5) for verb in verbs))
    for change in changes:
        assert (change.rev is None) == (change.changed == 0)
        assert change.changed <= len(change.ids) <= 10
    revs = [each.rev for each in changes if each.rev is not None]
    assert len(revs) == len(set(revs))
    found = await store.find(TENANT, USER, documents)
    assert {each.rev for each in found} <= set(revs)
    assert await counts(store) == counts_of(found)


# -- what clients were sent ----------------------------------------------------------------------------------


async def backlogs(store: Store) -> dict[str, list[str]]:
    return {
        way: ids(await store.deliveries.backlog(TENANT, USER, way, since=None, after=None, limit=9))
        for way in WAYS
    }


@pytest.mark.parametrize(("do", "undo"), UNDOING.values(), ids=UNDOING)
@pytest.mark.parametrize("way", WAYS)
async def test_what_comes_back_is_not_sent_again(store: Store, way: str, do: str, undo: str) -> None:
    """It keeps its marks: it waits only for ways in which it was not sent."""
    document = await put(store)
    await store.deliveries.mark(way, {(TENANT, USER): [document.id]})
    await getattr(store, do)(TENANT, USER, [document.id])
    await getattr(store, undo)(TENANT, USER, [document.id])
    waiting = {each: [] if each == way else [document.id] for each in WAYS}
    assert await backlogs(store) == waiting


@pytest.mark.parametrize(("do", "undo"), UNDOING.values(), ids=UNDOING)
@pytest.mark.parametrize("is_acknowledged", [False, True], ids=["only", "acknowledged-before"])
async def test_what_comes_back_stays_delivered(
    store: Store, is_acknowledged: bool, do: str, undo: str
) -> None:
    """Since it was seen, deleted or acknowledged first, whatever comes after."""
    document = await put(store)

    async def delivered_at() -> datetime | None:
        nid = document.notification.nid
        [delivery] = await store.deliveries.of_notification(TENANT, nid, after=None, limit=9)
        return delivery.delivered_at

    assert await delivered_at() is None
    if is_acknowledged:
        await store.deliveries.mark(ACKNOWLEDGED, {(TENANT, USER): [document.id]})
    else:
        await getattr(store, do)(TENANT, USER, [document.id])
    at = await delivered_at()
    assert at is not None
    for _ in range(2):
        await getattr(store, do)(TENANT, USER, [document.id])
        await asyncio.sleep(0.002)  # the clock counts milliseconds
        await getattr(store, undo)(TENANT, USER, [document.id])
        await asyncio.sleep(0.002)
        assert await delivered_at() == at


# -- mail ----------------------------------------------------------------------------------------------------


async def test_mail_is_decided_by_what_the_document_is_then(store: Store) -> None:
    """Who is asked about when the mail is claimed has it unseen, if it is so then; nobody is owed a second mail."""
    users = ["unseen", "restored", "restored-seen", "seen", "deleted"]
    duty = EmailDuty(Mail("s", "c"), tuple(MailRecipient(user, f"{user}@x.test", now()) for user in users))
    notification = make_notification()
    stored = await store.add(notification, [Recipient(user, f"{user}@x.test") for user in users], duty)
    document = {each.user_id: [each.id] for each in stored.documents}
    for user in ("unseen", "restored-seen", "seen"):
        await store.mark_seen(TENANT, user, document[user])
    for user in ("restored", "restored-seen", "deleted"):
        await store.delete(TENANT, user, document[user])
    assert await store.still_unseen(TENANT, notification.nid, users) == set()
    await store.mark_unseen(TENANT, "unseen", document["unseen"])
    for user in ("restored", "restored-seen"):
        await store.restore(TENANT, user, document[user])
    assert await store.still_unseen(TENANT, notification.nid, users) == {"unseen", "restored"}

    [job] = await store.claim_mail(60.0, 10)
    assert {each.user_id for each in job.recipients} == set(users)
    assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    for user in users:
        await store.mark_seen(TENANT, user, document[user])
        await store.mark_unseen(TENANT, user, document[user])
        await store.delete(TENANT, user, document[user])
        await store.restore(TENANT, user, document[user])
    assert (await store.mail_counts()).due == 0
    assert await store.next_mail_due() is None


# -- following -----------------------------------------------------------------------------------------------


async def test_who_follows_ends_with_the_inbox(store: Store) -> None:
    """From a position on, with the inbox as read after it: whatever others do meanwhile, taking over each change that
    is newer than what one has leads to the state of the inbox."""
    documents = await put_many(store, 10, type="a")
    await store.delete(TENANT, USER, [documents[0].id])
    overlap = round(store.changes_overlap_s * 1000) << 16
    position = await store.position()
    known = {each.id: each for each in await newest(store)}

    async def change() -> None:
        verbs = [store.mark_seen, store.mark_unseen, store.delete, store.restore]
        await asyncio.gather(
            *(put(store, type="b") for _ in range(20)),
            *(
                verb(TENANT, USER, ids(documents[start : start + 4]))
                for start in range(0, 10, 3)
                for verb in verbs
            ),
            store.mark_all_seen(TENANT, USER, limit=5, up_to=position),
        )

    changing = asyncio.create_task(change())
    is_over = False
    while not is_over:
        is_over = changing.done()
        upto = await store.position()
        after = (position - overlap, "")
        while some := await store.changes(TENANT, USER, after=after, limit=7):
            for each in some:
                if each.id not in known or known[each.id].rev < each.rev:
                    known[each.id] = each
            after = (some[-1].rev, some[-1].id)
        position = upto
    await changing
    alive = {each.id: each for each in known.values() if not each.deleted}
    inbox = await newest(store)
    assert alive == {each.id: each for each in inbox}
    assert await counts(store) == counts_of(inbox)


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    """Every verb says so."""
    verbs: list[Callable[[], Awaitable[object]]] = [
        store.position,
        lambda: store.counts(TENANT, [USER]),
        lambda: store.newest(TENANT, USER, before=None, limit=1, type="a", seen=True),
        lambda: store.find(TENANT, USER, [new_id()]),
        lambda: store.welcome(TENANT, USER, unseen=1, counts=True, changes=1),
        lambda: store.mark_all_seen(TENANT, USER, limit=1, up_to=1),
        lambda: store.mark_unseen(TENANT, USER, [new_id()]),
        lambda: store.restore(TENANT, USER, [new_id()]),
    ]
    await store.close()
    for verb in verbs:
        with pytest.raises(StoreUnavailable):
            await verb()
