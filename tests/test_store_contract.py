"""What every store promises (`server.store.Store`), sentence by sentence, over all kinds of store.

Mail is tested in test_store_mail_contract.py.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from server.errors import StoreUnavailable
from server.ids import new_id
from server.messages import Document, EmailDuty, Mail, MailRecipient, Recipient, altered, now
from server.revs import COUNTER_BITS
from server.store import HUB, Broadcast, Change, MailJob, MailOutcome, Store
from tests.support.stores import (
    TENANT,
    USER,
    Place,
    make_notification,
    put,
    put_many,
)

NOTHING = Change((), 0, None)

NOT_IDS = ["", "x", "0" * 23, "0" * 25, "z" * 24, "null", "\0" * 24, "é" * 24, "😀" * 6, "0" * 12, " " * 24]


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


async def newest(store: Store, user_id: str = USER, tenant: str = TENANT, limit: int = 100) -> list[Document]:
    return await store.newest(tenant, user_id, before=None, limit=limit)


async def count(store: Store, user_id: str = USER, tenant: str = TENANT) -> int:
    return (await store.count_unseen(tenant, [user_id]))[user_id]


# -- opening and closing -------------------------------------------------------------------------------------


async def test_an_open_store_takes_writes(store: Store) -> None:
    """`ping` returns."""
    await store.ping()
    await store.ping()


async def test_an_empty_store_answers(store: Store) -> None:
    """Nobody's inbox is an empty one, not an error."""
    assert await newest(store) == []
    assert await store.page(TENANT, USER, page=0, limit=30) == []
    assert await store.unseen(TENANT, USER, after=None, limit=30) == []
    assert await store.count_unseen(TENANT, [USER]) == {USER: 0}
    assert await store.mark_all_seen(TENANT, USER, limit=30) == NOTHING
    assert await store.complete_intents() == []


async def test_what_was_stored_is_there_after_reopening(place: Place) -> None:
    """Documents, what was seen, what was deleted and all their fields survive."""
    store = place.store()
    await store.open()
    kept, seen, deleted = await put_many(store, 3, content="x", data={"a": [1]})
    await store.mark_seen(TENANT, USER, [seen.id])
    await store.delete(TENANT, USER, [deleted.id])
    before = await newest(store)
    await store.close()

    store = place.store()
    await store.open()
    assert await newest(store) == before
    assert ids(before) == [seen.id, kept.id]
    assert await count(store) == 1
    assert await store.delete(TENANT, USER, [deleted.id]) == NOTHING
    await store.close()


async def test_revs_rise_across_a_restart(place: Place) -> None:
    """A store opened again issues no rev that it, or the one before, has issued."""
    revs = []
    for _ in range(3):
        store = place.store()
        await store.open()
        revs += [document.rev for document in await put_many(store, 3)]
        await store.close()
    assert revs == sorted(set(revs))


async def test_closing_finishes_what_was_accepted(place: Place) -> None:
    """An add that was under way when the store closed is stored, or its caller is told otherwise."""
    store = place.store()
    await store.open()
    adding = [asyncio.create_task(put(store)) for _ in range(100)]
    await asyncio.sleep(0)
    await store.close()
    results = await asyncio.gather(*adding, return_exceptions=True)
    stored = [result for result in results if isinstance(result, Document)]
    assert all(isinstance(result, Document | StoreUnavailable) for result in results)

    store = place.store()
    await store.open()
    assert set(ids(stored)) <= set(ids(await newest(store, limit=1000)))
    await store.close()


async def test_closing_twice_is_closing_once(store: Store) -> None:
    """`close` is idempotent, also at the same time."""
    await asyncio.gather(store.close(), store.close())
    await store.close()


async def test_a_store_that_never_opened_can_be_closed(place: Place) -> None:
    """`close` before `open` does nothing."""
    await place.store().close()


async def test_a_store_that_is_not_open_yet_is_unavailable(place: Place) -> None:
    """Reads and writes say so: a database that is not there at start is tried again later."""
    store = place.store()
    with pytest.raises(StoreUnavailable):
        await newest(store)
    with pytest.raises(StoreUnavailable):
        await put(store)


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    """Every verb says so."""
    document = await put(store)
    job = MailJob(new_id(), TENANT, now(), Mail("", ""), (), new_id())
    broadcast = Broadcast(make_notification(), None, new_id())
    await store.close()
    for verb in (
        store.ping(),
        store.add(make_notification(), [Recipient(USER)], None),
        store.newest(TENANT, USER, before=None, limit=1),
        store.page(TENANT, USER, page=0, limit=1),
        store.unseen(TENANT, USER, after=None, limit=1),
        store.count_unseen(TENANT, [USER]),
        store.mark_seen(TENANT, USER, [document.id]),
        store.mark_all_seen(TENANT, USER, limit=1),
        store.delete(TENANT, USER, [document.id]),
        store.claim_mail(1.0, 1),
        store.settle_mail(job, MailOutcome()),
        store.next_mail_due(),
        store.still_unseen(TENANT, new_id(), [USER]),
        store.mail_counts(),
        store.changes(TENANT, USER, after=(0, ""), limit=1),
        store.deliveries.begin(TENANT, USER, HUB, now()),
        store.deliveries.backlog(TENANT, USER, HUB, since=None, after=None, limit=1),
        store.deliveries.mark(HUB, {(TENANT, USER): [document.id]}),
        store.deliveries.of_notification(TENANT, document.notification.nid, after=None, limit=1),
        store.broadcasts.add(make_notification()),
        store.broadcasts.claim(1.0),
        store.broadcasts.expand(make_notification(), [USER]),
        store.broadcasts.advance(broadcast, USER, 1.0),
        store.broadcasts.finish(broadcast),
        store.broadcasts.open_of(TENANT, USER, since=now(), after=None, limit=1),
        store.broadcasts.give(USER, [make_notification()]),
        store.broadcasts.count_open(),
        store.leases.take("name", "holder", 1.0),
        store.leases.give_back("name", "holder"),
    ):
        with pytest.raises(StoreUnavailable):
            await verb


# -- adding --------------------------------------------------------------------------------------------------


async def test_a_fresh_document(store: Store) -> None:
    """It is new in every respect, and is read as it was returned."""
    notification = make_notification(content="c", type="t", title="T", url="u", icon="i", image="m", data=[1])
    [document] = (await store.add(notification, [Recipient(USER)], None)).documents
    assert document == Document(
        id=document.id,
        user_id=USER,
        notification=notification,
        created_at=notification.created_at,
        updated_at=notification.created_at,
        rev=document.rev,
    )
    assert len(document.id) == 24 and document.id == document.id.lower()
    assert document.rev > 0
    assert await newest(store) == [document]
    assert await store.page(TENANT, USER, page=0, limit=1) == [document]
    assert await store.unseen(TENANT, USER, after=None, limit=1) == [document]


async def test_documents_come_in_the_order_of_the_recipients(store: Store) -> None:
    """One document for each recipient, each with an id of its own, all with the same notification."""
    users = ["zoe", "alice", "mallory", "bob"]
    notification = make_notification(content="hello")
    documents = (await store.add(notification, [Recipient(user) for user in users], None)).documents
    assert [document.user_id for document in documents] == users
    assert len(set(ids(documents))) == 4
    assert all(document.notification is notification for document in documents)
    for document in documents:
        assert await newest(store, document.user_id) == [document]


async def test_a_thousand_recipients(store: Store) -> None:
    """Each has the document, and nobody has two."""
    users = [f"user-{number}" for number in range(1000)]
    documents = (await store.add(make_notification(), [Recipient(user) for user in users], None)).documents
    assert [document.user_id for document in documents] == users
    assert await store.count_unseen(TENANT, users) == dict.fromkeys(users, 1)
    for document in documents[::97]:
        assert await newest(store, document.user_id) == [document]


async def test_many_recipients_of_whom_some_are_new(store: Store) -> None:
    """Each gets the one document that is returned in their place, be they known or not, in whichever order."""
    users = [f"user-{number}" for number in range(1200)]
    await store.add(make_notification(), [Recipient(user) for user in users[100:900]], None)
    later = make_notification(content="later")
    documents = (await store.add(later, [Recipient(user) for user in reversed(users)], None)).documents
    assert [document.user_id for document in documents] == users[::-1]
    counts = await store.count_unseen(TENANT, users)
    assert [counts[user] for user in users] == [1] * 100 + [2] * 800 + [1] * 300
    for document in documents[::60]:
        found = await newest(store, document.user_id)
        assert [each for each in found if each.notification.nid == later.nid] == [document]


async def test_ids_of_many_recipients_may_be_any_text(store: Store) -> None:
    """What means something in JSON or SQL means nothing in them, and none stands for another."""
    odd = ["a", "a\0b", '"', "\\", "\\u0000", "a\\u0000b", "a\nb", "ü", "😀", "1", "1.0", "null", "'", " a"]
    users = odd + [f"user-{number}" for number in range(600)]
    for chosen in (users, [user for user in users if "\0" not in user], users):
        stored = await store.add(make_notification(), [Recipient(user) for user in chosen], None)
        for document in stored.documents[: len(odd)]:
            assert (await newest(store, document.user_id))[0] == document
    counts = await store.count_unseen(TENANT, users)
    assert [counts[user] for user in users] == [2 if "\0" in user else 3 for user in users]


async def test_concurrent_adds(store: Store) -> None:
    """Fifty callers at once: each has its own answer, and all of it is stored exactly once."""

    async def add(number: int) -> list[Document]:
        recipients = [Recipient(USER), Recipient(f"other-{number}")][: 1 + number % 2]
        return (await store.add(make_notification(content=str(number)), recipients, None)).documents

    added = await asyncio.gather(*map(add, range(50)))
    assert [documents[0].notification.content for documents in added] == [str(n) for n in range(50)]
    stored = await newest(store)
    assert sorted(ids(stored)) == sorted(documents[0].id for documents in added)
    for documents in added[1::2]:
        assert await newest(store, documents[1].user_id) == [documents[1]]


TEXTS = {
    "empty": "",
    "spaces": "  \t\r\n ",
    "quotes": "'\"`\\%_$.{}[]();--",
    "nul": "a\0b\0",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85",
    "astral": "😀👩‍👩‍👧‍👦𝕏\U0010ffff",
    "rtl": "שלום مرحبا \u202e\u200f",
    "separators": "\u2028\u2029\ufeff\u00a0\u200b",
    "combining": "e\u0301 é \u1100\u1161",
    "noncharacters": "\ufffd\ufffe\uffff\ufdd0",
    "operators": "$where",
    "long": "ß" * 65536,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_texts_come_back_as_they_went_in(store: Store, text: str) -> None:
    """Any Unicode in any field, unchanged and not normalised."""
    short = text[:300]
    tenant, user_id = f"t{short}", f"u{short}"
    fields = dict.fromkeys(("type", "title", "url", "icon", "image"), short)
    notification = make_notification(tenant, content=text, data={f"k{short}": text}, **fields)
    [document] = (await store.add(notification, [Recipient(user_id)], None)).documents
    assert await newest(store, user_id, tenant) == [document]
    assert (await newest(store, user_id, tenant))[0].notification == notification
    assert await count(store, user_id, tenant) == 1
    assert await count(store, f"u{short}\0", tenant) == 0
    assert (await store.mark_seen(tenant, user_id, [document.id])).changed == 1


DATA: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    0.1,
    -1.5e300,
    5e-324,
    1.0,
    "",
    "null",
    [],
    {},
    [[], {}, None, [None]],
    {
        "": "",
        "a.b": 1,
        "$set": {"$x": 1},
        "_id": 1,
        "nested": {"list": [1, 2.5, "x", None, {"deep": [True]}]},
    },
    {"z": 1, "a": 2, "m": 3},
]


@pytest.mark.parametrize("data", DATA, ids=repr)
async def test_data_comes_back_as_it_went_in(store: Store, data: Any) -> None:
    """Any JSON value, with its types and the order of its fields."""
    await put(store, data=data)
    [document] = await newest(store)
    assert repr(document.notification.data) == repr(data)


async def test_deeply_nested_data_comes_back(store: Store) -> None:
    """Fifty levels deep."""
    data: Any = "bottom"
    for _ in range(25):
        data = {"in": [data]}
    await put(store, data=data)
    [document] = await newest(store)
    assert document.notification.data == data


async def test_tenants_are_apart(store: Store) -> None:
    """The same user id in two tenants is two users, for every verb."""
    ours, theirs = await put(store, tenant="ours"), await put(store, tenant="theirs")
    assert await newest(store, tenant="ours") == [ours]
    assert await store.page("theirs", USER, page=0, limit=10) == [theirs]
    assert await store.mark_seen("ours", USER, [theirs.id]) == NOTHING
    assert await store.delete("ours", USER, [theirs.id]) == NOTHING
    assert await store.newest("ours", USER, before=theirs.id, limit=10) == []
    assert (await store.mark_all_seen("ours", USER, limit=10)).ids == (ours.id,)
    assert await count(store, tenant="ours") == 0
    assert await count(store, tenant="theirs") == 1
    assert await store.unseen("theirs", USER, after=None, limit=10) == [theirs]
    assert await store.still_unseen("ours", theirs.notification.nid, [USER]) == set()


async def test_user_ids_are_compared_exactly(store: Store) -> None:
    """Case, spaces, accents and what looks like a pattern or a number tell users apart."""
    users = [
        "alice",
        "Alice",
        "alice ",
        " alice",
        "al%",
        "al*",
        "1",
        "01",
        "1.0",
        "e\u0301",
        "\u00e9",
        "$ne",
        "",
    ]
    documents = {user: await put(store, user) for user in users}
    for user, document in documents.items():
        assert await newest(store, user) == [document]
    assert await store.count_unseen(TENANT, users) == dict.fromkeys(users, 1)


# -- reading -------------------------------------------------------------------------------------------------


async def put_with_ties(store: Store) -> list[Document]:
    """Documents in the order of (created_at, id), stored in another one; three share each created_at."""
    at = now()
    instants = [at - timedelta(milliseconds=age) for age in (1, 0, 2, 1, 2, 0, 0, 2, 1)]
    documents = [await put(store, created_at=instant) for instant in instants]
    return sorted(documents, key=lambda document: (document.created_at, document.id))


async def test_newest_first_by_created_at_and_id(store: Store) -> None:
    """Not in the order of storing; ties are in the order of ids."""
    documents = await put_with_ties(store)
    assert await newest(store) == documents[::-1]
    assert await newest(store, limit=2) == documents[::-1][:2]


async def test_paging_by_the_last_document_seen(store: Store) -> None:
    """Pages `before` the last one's id give each document once, ties at the borders or not."""
    documents = await put_with_ties(store)
    for limit in (1, 2, 4, 9):
        paged: list[Document] = []
        while some := await store.newest(TENANT, USER, before=paged[-1].id if paged else None, limit=limit):
            paged += some
        assert paged == documents[::-1]


async def test_paging_before_a_deleted_document(store: Store) -> None:
    """A document deleted between two pages still marks the place."""
    documents = await put_many(store, 5)
    await store.delete(TENANT, USER, [documents[2].id])
    older = await store.newest(TENANT, USER, before=documents[2].id, limit=10)
    assert older == [documents[1], documents[0]]


async def test_paging_before_what_is_not_the_users(store: Store) -> None:
    """Unknown ids, malformed ids, and another user's: nothing."""
    await put(store)
    other = await put(store, "bob")
    for before in (other.id, new_id(), *NOT_IDS):
        assert await store.newest(TENANT, USER, before=before, limit=10) == []


async def test_numbered_pages_are_oldest_first(store: Store) -> None:
    """Page 0 is the oldest; the last may be short; beyond are empty ones, however far."""
    documents = await put_with_ties(store)
    pages = [await store.page(TENANT, USER, page=number, limit=4) for number in range(4)]
    assert pages == [documents[:4], documents[4:8], documents[8:], []]
    assert await store.page(TENANT, USER, page=1_000_000, limit=100) == []


async def test_numbered_pages_leave_out_what_was_deleted(store: Store) -> None:
    """Deleted documents take no place in a page."""
    documents = await put_many(store, 6)
    await store.delete(TENANT, USER, [documents[0].id, documents[3].id])
    pages = [await store.page(TENANT, USER, page=number, limit=2) for number in range(3)]
    assert [ids(page) for page in pages] == [
        ids([documents[1], documents[2]]),
        ids([documents[4], documents[5]]),
        [],
    ]


async def test_unseen_oldest_first(store: Store) -> None:
    """By (created_at, id), without what was seen or deleted."""
    documents = await put_with_ties(store)
    await store.mark_seen(TENANT, USER, [documents[1].id])
    await store.delete(TENANT, USER, [documents[4].id])
    left = [document for number, document in enumerate(documents) if number not in (1, 4)]
    assert await store.unseen(TENANT, USER, after=None, limit=100) == left
    assert await store.unseen(TENANT, USER, after=None, limit=3) == left[:3]


async def test_unseen_after_a_document(store: Store) -> None:
    """Chunks `after` the last document give each once; that one may have been seen or deleted meanwhile."""
    documents = await put_with_ties(store)
    chunked: list[Document] = []
    while some := await store.unseen(TENANT, USER, after=chunked[-1] if chunked else None, limit=2):
        chunked += some
        await store.mark_seen(TENANT, USER, [some[0].id])
        await store.delete(TENANT, USER, [some[-1].id])
    assert ids(chunked) == ids(documents)


async def test_counts_of_many_users(store: Store) -> None:
    """Every given user is in the answer, also one who has nothing, and nobody else."""
    await put_many(store, 3)
    await put(store, "bob")
    assert await store.count_unseen(TENANT, {USER, "bob", "carol"}) == {USER: 3, "bob": 1, "carol": 0}
    assert await store.count_unseen(TENANT, []) == {}
    many = [f"nobody-{number}" for number in range(3000)]
    assert await store.count_unseen(TENANT, [*many, USER]) == {**dict.fromkeys(many, 0), USER: 3}


async def test_counts_are_exact_after_concurrent_changes(store: Store) -> None:
    """Adding, seeing and deleting at once, the count is that of the unseen documents."""
    documents = await put_many(store, 40)
    await asyncio.gather(
        *(put(store) for _ in range(20)),
        *(store.mark_seen(TENANT, USER, ids(documents[start : start + 12])) for start in range(0, 30, 6)),
        *(store.delete(TENANT, USER, ids(documents[start : start + 3])) for start in range(20, 40, 2)),
        store.mark_all_seen(TENANT, USER, limit=5),
    )
    unseen = await store.unseen(TENANT, USER, after=None, limit=1000)
    assert await count(store) == len(unseen)
    assert len([each for each in await newest(store, limit=1000) if not each.seen]) == len(unseen)
    assert (await store.mark_all_seen(TENANT, USER, limit=1000)).changed == len(unseen)
    assert await count(store) == 0


# -- changing ------------------------------------------------------------------------------------------------


async def test_marking_as_seen(store: Store) -> None:
    """The documents are seen from then on, with a new rev and a new updated_at; nothing else of them changes."""
    first, second, third = await put_many(store, 3)
    change = await store.mark_seen(TENANT, USER, [third.id, first.id])
    assert change == Change((third.id, first.id), 2, change.rev)
    assert change.rev is not None and change.rev > third.rev

    inbox = await newest(store)
    assert [document.seen for document in inbox] == [True, False, True]
    for before, after in zip((third, second, first), inbox, strict=True):
        if after.seen:
            assert after.updated_at >= before.updated_at
            assert after == altered(before, seen=True, rev=change.rev, updated_at=after.updated_at)
        else:
            assert after == before


async def test_marking_again_changes_nothing(store: Store) -> None:
    """The ids are the user's all the same, but there is no new rev."""
    first, second = await put_many(store, 2)
    await store.mark_seen(TENANT, USER, [first.id])
    before = await newest(store)
    assert await store.mark_seen(TENANT, USER, [first.id]) == Change((first.id,), 0, None)
    assert await newest(store) == before

    mixed = await store.mark_seen(TENANT, USER, [first.id, second.id])
    assert (mixed.ids, mixed.changed) == ((first.id, second.id), 1)
    after = await newest(store)
    assert [document.rev for document in after] == [mixed.rev, before[1].rev]


async def test_repeated_ids_count_once(store: Store) -> None:
    """In the order in which they came first."""
    first, second = await put_many(store, 2)
    seen = await store.mark_seen(TENANT, USER, [second.id, first.id, second.id, first.id])
    assert (seen.ids, seen.changed) == ((second.id, first.id), 2)
    deleted = await store.delete(TENANT, USER, [first.id, first.id])
    assert (deleted.ids, deleted.changed) == ((first.id,), 1)


async def test_foreign_ids_are_none_of_the_users(store: Store) -> None:
    """Unknown, malformed, deleted and other users' ids are left out, and what they name stays as it is."""
    mine, gone = await put_many(store, 2)
    theirs = await put(store, "bob")
    await store.delete(TENANT, USER, [gone.id])
    foreign = [theirs.id, gone.id, new_id(), mine.notification.nid, *NOT_IDS]
    assert await store.mark_seen(TENANT, USER, foreign) == NOTHING
    assert await store.delete(TENANT, USER, foreign) == NOTHING
    assert await newest(store, "bob") == [theirs]
    change = await store.mark_seen(TENANT, USER, [*foreign, mine.id, *foreign])
    assert (change.ids, change.changed) == ((mine.id,), 1)


@pytest.mark.parametrize("verb", ["mark_seen", "delete"])
async def test_no_ids(store: Store, verb: str) -> None:
    """Nothing happens."""
    await put(store)
    assert await getattr(store, verb)(TENANT, USER, []) == NOTHING
    assert await count(store) == 1


async def test_thousands_of_ids(store: Store) -> None:
    """More ids than a statement takes are one change."""
    documents = await put_many(store, 3)
    many = [new_id() for _ in range(2500)]
    change = await store.mark_seen(TENANT, USER, [documents[0].id, *many, documents[2].id])
    assert (change.ids, change.changed) == ((documents[0].id, documents[2].id), 2)
    change = await store.delete(TENANT, USER, [documents[2].id, *many, documents[1].id])
    assert (change.ids, change.changed) == ((documents[2].id, documents[1].id), 2)


async def test_marking_all_as_seen_in_batches(store: Store) -> None:
    """The oldest first, `limit` at a time, until fewer change; other users' stay unseen."""
    documents = await put_with_ties(store)
    await put(store, "bob")
    await store.mark_seen(TENANT, USER, [documents[1].id])
    await store.delete(TENANT, USER, [documents[2].id])
    left = ids([documents[0], *documents[3:]])
    changes = [await store.mark_all_seen(TENANT, USER, limit=3) for _ in range(4)]
    assert [list(change.ids) for change in changes] == [left[:3], left[3:6], left[6:], []]
    assert [change.changed for change in changes] == [3, 3, 1, 0]
    assert changes[3] == NOTHING
    assert await count(store) == 0
    assert await count(store, "bob") == 1
    revs = {document.id: document.rev for document in await newest(store)}
    assert all(revs[id_] == change.rev for change in changes for id_ in change.ids)


async def test_concurrent_marks_of_all_change_each_once(store: Store) -> None:
    """Several screens mark all at once: each document is changed by one of them."""
    documents = await put_many(store, 30)
    changes = await asyncio.gather(*(store.mark_all_seen(TENANT, USER, limit=30) for _ in range(5)))
    assert sum(change.changed for change in changes) == 30
    assert await count(store) == 0
    revs = {document.id: document.rev for document in await newest(store)}
    assert set(revs) == set(ids(documents))
    assert set(revs.values()) <= {change.rev for change in changes}


async def test_deleting(store: Store) -> None:
    """A deleted document is nowhere any more, whether it was seen or not, and cannot come back by being seen."""
    seen, unseen, kept = await put_many(store, 3)
    await store.mark_seen(TENANT, USER, [seen.id])
    change = await store.delete(TENANT, USER, [unseen.id, seen.id])
    assert change == Change((unseen.id, seen.id), 2, change.rev)
    assert change.rev is not None and change.rev > kept.rev

    assert await newest(store) == [kept]
    assert await store.page(TENANT, USER, page=0, limit=10) == [kept]
    assert await store.unseen(TENANT, USER, after=None, limit=10) == [kept]
    assert await count(store) == 1
    assert await store.mark_seen(TENANT, USER, [unseen.id, seen.id]) == NOTHING
    assert await store.delete(TENANT, USER, [unseen.id, seen.id]) == NOTHING
    assert (await store.mark_all_seen(TENANT, USER, limit=10)).ids == (kept.id,)
    assert await newest(store) != []


async def test_deleting_concurrently_deletes_once(store: Store) -> None:
    """Of several callers, one deletes."""
    document = await put(store)
    changes = await asyncio.gather(*(store.delete(TENANT, USER, [document.id]) for _ in range(5)))
    assert sum(change.changed for change in changes) == 1
    assert await newest(store) == []


async def test_each_change_has_a_greater_rev(store: Store) -> None:
    """Revs rise with every change, whoever's document it is, and fit 64 bits."""
    revs: list[int | None] = []
    for user_id in (USER, "bob", USER):
        document = await put(store, user_id)
        revs.append(document.rev)
        revs.append((await store.mark_seen(TENANT, user_id, [document.id])).rev)
        await put(store, user_id)
        revs.append((await store.mark_all_seen(TENANT, user_id, limit=10)).rev)
        revs.append((await store.delete(TENANT, user_id, [document.id])).rev)
    numbers = [rev for rev in revs if rev is not None]
    assert len(numbers) == len(revs)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 2**63


# -- what has changed ----------------------------------------------------------------------------------------


async def all_changes(
    store: Store, after: tuple[int, str] = (0, ""), limit: int = 100, user_id: str = USER
) -> list[Document]:
    """Portion by portion."""
    found: list[Document] = []
    while some := await store.changes(TENANT, user_id, after=after, limit=limit):
        found += some
        after = (some[-1].rev, some[-1].id)
    return found


async def test_changes_come_in_their_order(store: Store) -> None:
    """Each document where it was changed last, as it is now, tombstones included; nobody else's."""
    first, second, third = await put_many(store, 3)
    await put(store, "bob")
    await put(store, USER, "other")
    assert await all_changes(store) == [first, second, third]
    seen = await store.mark_seen(TENANT, USER, [first.id])
    deleted = await store.delete(TENANT, USER, [second.id])
    unchanged, now_seen, tombstone = await all_changes(store)
    assert unchanged == third
    assert now_seen == altered(first, seen=True, rev=seen.rev, updated_at=now_seen.updated_at)
    at = tombstone.updated_at
    assert tombstone == altered(second, deleted=True, deleted_at=at, rev=deleted.rev, updated_at=at)
    assert await all_changes(store, user_id="nobody") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_changes_in_portions(limit: int, store: Store) -> None:
    """Many with one rev, too: nothing is missing, nothing twice."""
    documents = await put_many(store, 5)
    notification = make_notification()
    documents += (await store.add(notification, [Recipient(USER), Recipient("bob")], None)).documents
    await store.mark_all_seen(TENANT, USER, limit=4)
    await store.delete(TENANT, USER, [documents[0].id, documents[5].id])
    found = await all_changes(store, limit=limit)
    assert sorted(ids(found)) == sorted(each.id for each in documents if each.user_id == USER)
    places = [(each.rev, each.id) for each in found]
    assert places == sorted(places)
    assert len({rev for rev, _ in places}) == 3


async def test_changes_after_a_place(store: Store) -> None:
    """It need not be that of a document; whatever 64 bits a client has sent."""
    first, second = await put_many(store, 2)
    assert await all_changes(store, (first.rev, first.id)) == [second]
    assert await all_changes(store, (first.rev, "")) == [first, second]
    assert await all_changes(store, (first.rev, "f" * 24)) == [second]
    assert await all_changes(store, (first.rev + 1, "")) == [second]
    assert await all_changes(store, (second.rev, second.id)) == []
    for low in ((-1, ""), (-(2**64), "f" * 24), (0, "f" * 24), (first.rev, "x")):
        assert await all_changes(store, low) == [first, second]
    for high in (2**63 - 1, 2**63, 2**64):
        assert await all_changes(store, (high, "")) == []


async def test_nothing_changes_behind_who_follows(store: Store) -> None:
    """Reading from the overlap before the last place on, while others change the inbox, one ends with the inbox."""
    known: dict[str, Document] = {}
    documents = await put_many(store, 10)
    overlap = round(store.changes_overlap_s * 1000) << COUNTER_BITS
    assert store.changes_overlap_s in (0.0, 30.0)

    async def change() -> None:
        await asyncio.gather(
            *(put(store) for _ in range(30)),
            *(store.mark_seen(TENANT, USER, [each.id]) for each in documents[:5]),
            *(store.delete(TENANT, USER, [each.id]) for each in documents[3:8]),
        )

    changing = asyncio.create_task(change())
    last = 0
    is_over = False
    while not is_over:
        is_over = changing.done()
        for document in await all_changes(store, (last - overlap, ""), limit=7):
            if document.id not in known or known[document.id].rev < document.rev:
                known[document.id] = document
        last = max(each.rev for each in known.values())
    await changing
    alive = sorted((each for each in known.values() if not each.deleted), key=lambda each: each.id)
    assert alive == sorted(await newest(store, limit=1000), key=lambda each: each.id)
    assert len(alive) == 35


# -- who has not seen a notification -------------------------------------------------------------------------


async def test_who_has_a_notification_unseen(store: Store) -> None:
    """Those asked about who have it neither seen nor deleted; not those who never had it."""
    notification = make_notification()
    users = ["alice", "bob", "carol", "dave"]
    documents = (await store.add(notification, [Recipient(user) for user in users], None)).documents
    await put(store, "erin", created_at=notification.created_at)
    await put(store, "bob", created_at=notification.created_at)
    await store.mark_seen(TENANT, "bob", [documents[1].id])
    await store.delete(TENANT, "carol", [documents[2].id])

    async def unseen_by(*user_ids: str) -> set[str]:
        return await store.still_unseen(TENANT, notification.nid, user_ids)

    assert await unseen_by("alice", "bob", "carol", "erin", "nobody") == {"alice"}
    assert await unseen_by(*users) == {"alice", "dave"}
    assert await unseen_by() == set()
    assert await store.still_unseen(TENANT, new_id(), users) == set()
    assert await store.still_unseen("other", notification.nid, users) == set()


async def test_who_of_thousands_has_a_notification_unseen(store: Store) -> None:
    """More users than a statement takes."""
    users = [f"user-{number}" for number in range(1500)]
    duty = EmailDuty(Mail("", ""), tuple(MailRecipient(user, f"{user}@x.test", now()) for user in users))
    recipients = [Recipient(user, f"{user}@x.test") for user in users]
    documents = (await store.add(make_notification(), recipients, duty)).documents
    await store.mark_seen(TENANT, users[0], [documents[0].id])
    unseen = await store.still_unseen(TENANT, documents[0].notification.nid, [*users, "nobody"])
    assert unseen == set(users[1:])
