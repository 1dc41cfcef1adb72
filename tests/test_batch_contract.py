"""What `Store.add_many` promises, by both stores: as `add` of each, and none of them stands or falls with another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from server.errors import KeyReused, StoreUnavailable, TooLarge
from server.messages import EmailDuty, Mail, MailRecipient, Notification, Recipient, altered, now
from server.store import Addition, MailCounts, Once, Store, Stored
from tests.support.stores import TENANT, Place, make_notification, whole_inbox


def addition(
    *users: str, once: Once | None = None, duty: EmailDuty | None = None, **fields: object
) -> Addition:
    return Addition(make_notification(**fields), [Recipient(user) for user in users], duty, once)


def once(key: str, fingerprint: bytes = b"f" * 32) -> Once:
    return Once(key, fingerprint, 3600.0)


def stored(outcomes: Sequence[Stored | Exception]) -> list[Stored]:
    """All of them, which are."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    assert len(found) == len(outcomes), outcomes
    return found


async def test_each_is_stored_for_its_users(store: Store) -> None:
    """And the answers are in the order of what was given; users that nobody knew are known then."""
    given = [
        addition("alice", content="1"),
        addition("bob", "alice", content="2"),
        addition("alice", content="3"),
    ]
    outcomes = stored(await store.add_many(given))
    assert [each.notification for each in outcomes] == [each.notification for each in given]
    assert [[document.user_id for document in each.documents] for each in outcomes] == [
        ["alice"],
        ["bob", "alice"],
        ["alice"],
    ]
    assert all(each.new == each.documents and not each.is_repeat for each in outcomes)
    kept = {document.id: document for user in ("alice", "bob") for document in await whole_inbox(store, user)}
    assert kept == {document.id: document for each in outcomes for document in each.documents}
    users = await store.directory.users(TENANT, after=None, limit=10)
    assert [user.user_id for user in users] == ["alice", "bob"]


async def test_revs_tell_them_apart(store: Store) -> None:
    """Whoever has one of them and asks what came after it gets all the others."""
    outcomes = stored(await store.add_many([addition("alice") for _ in range(20)]))
    documents = sorted((each.documents[0] for each in outcomes), key=lambda each: (each.rev, each.id))
    found = await store.changes(TENANT, "alice", after=(documents[9].rev, documents[9].id), limit=100)
    assert found == documents[10:]


async def test_nothing_at_all(store: Store) -> None:
    """Is no mistake."""
    assert list(await store.add_many([])) == []


async def test_a_mail_is_owed_for_each_that_owes_one(store: Store) -> None:
    """And for no other."""
    duty = EmailDuty(
        Mail("s", "c"), (MailRecipient("alice", "a@example.test", now() - timedelta(minutes=1)),)
    )
    await store.add_many([addition("alice", duty=duty), addition("alice"), addition("alice", duty=duty)])
    assert await store.mail_counts() == MailCounts(2, 0)


async def test_keys_within_one_call(store: Store) -> None:
    """The same request the second time is a repeat; another one by the same key is refused; the rest is stored."""
    first = addition("alice", once=once("k"), content="1")
    again = altered(first, notification=make_notification(content="1"))
    other = addition("bob", once=once("k", b"g" * 32))
    last = addition("bob", content="2")
    outcomes = await store.add_many([first, again, other, last])
    assert (
        isinstance(outcomes[0], Stored)
        and isinstance(outcomes[1], Stored)
        and isinstance(outcomes[3], Stored)
    )
    assert isinstance(outcomes[2], KeyReused)
    assert [each.is_repeat for each in (outcomes[0], outcomes[1], outcomes[3])] == [False, True, False]
    assert outcomes[1].notification.nid == outcomes[0].notification.nid
    assert (outcomes[1].documents, outcomes[1].new) == (outcomes[0].documents, [])
    assert len(await whole_inbox(store, "alice")) == len(await whole_inbox(store, "bob")) == 1


async def test_keys_from_one_call_to_the_next(store: Store) -> None:
    """They are those of `add`, too."""
    given = [addition("alice", once=once(f"k{number}"), content="c") for number in range(3)]
    outcomes = stored(await store.add_many(given))
    repeats = stored(
        await store.add_many([altered(each, notification=make_notification()) for each in given])
    )
    assert [each.notification.nid for each in repeats] == [each.notification.nid for each in outcomes]
    assert all(each.is_repeat for each in repeats)
    again = await store.add(make_notification(content="c"), given[1].recipients, None, once("k1"))
    assert again.is_repeat and again.documents == outcomes[1].documents
    assert len(await whole_inbox(store, "alice")) == 3


async def test_one_that_cannot_be_stored_is_alone_with_that(store: Store) -> None:
    """Wherever it stands, with and without keys; its key can be used for what is right."""
    broken = addition("alice", once=once("broken"), content="\ud800", data="x" * 17_000_000)
    given = [addition("alice"), broken, addition("alice", once=once("good")), addition("bob")]
    outcomes = await store.add_many(given)
    assert isinstance(outcomes[1], UnicodeEncodeError | TooLarge)
    stored([outcome for place, outcome in enumerate(outcomes) if place != 1])
    assert len(await whole_inbox(store, "alice")) == 2
    assert len(await whole_inbox(store, "bob")) == 1
    [outcome] = stored(await store.add_many([addition("alice", once=once("broken", b"g" * 32))]))
    assert not outcome.is_repeat


async def test_one_of_several_adds_at_once_that_cannot_be_stored(store: Store) -> None:
    """Comes back to its own caller only, though they share a transaction or a batch."""

    async def add(content: str) -> Stored:
        data = "x" * 17_000_000 if content == "\ud800" else None
        notification: Notification = make_notification(content=content, data=data)
        return await store.add(notification, [Recipient("alice")], None)

    contents = ["a", "b", "\ud800", "c"]
    outcomes = await asyncio.gather(*map(add, contents), return_exceptions=True)
    assert [isinstance(outcome, Stored) for outcome in outcomes] == [True, True, False, True]
    assert sorted(each.notification.content for each in await whole_inbox(store, "alice")) == ["a", "b", "c"]


async def test_what_was_stored_is_there_after_reopening(place: Place) -> None:
    """As of all that a store returns."""
    first = place.store()
    await first.open()
    documents = [
        each.documents[0] for each in stored(await first.add_many([addition("alice") for _ in range(50)]))
    ]
    await first.close()
    second = place.store()
    await second.open()
    assert sorted(await whole_inbox(second, "alice"), key=lambda each: each.id) == sorted(
        documents, key=lambda each: each.id
    )
    await second.close()


async def test_a_store_that_is_away(place: Place) -> None:
    """Says so of all of them."""
    store = place.store()
    with pytest.raises(StoreUnavailable):
        for outcome in await store.add_many([addition("alice")]):
            assert isinstance(outcome, StoreUnavailable)
            raise outcome
