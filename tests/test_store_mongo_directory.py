"""What the directory on MongoDB promises beyond the contract of all stores (test_directory_contract.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo.database import Database

from server.errors import StartupError, StoreUnavailable
from server.grants import ALL_SCOPES, ApiKey, SignOut, Tenant, hash_secret, new_secret
from server.ids import new_id
from server.messages import Recipient, now
from server.store import STEP, mongo_sign_outs, mongo_tenants, mongo_users
from server.store.mongo import MongoStore
from server.store.mongo_beside import MongoBeside
from server.store.mongo_users import KnownUsers
from tests.support.mongo_stores import opened, original
from tests.support.mongod import MongoDatabase
from tests.support.ports import free_port
from tests.support.stores import make_notification, put, read_sign_outs

AT = now()

Raw = dict[str, Any]


@pytest.fixture
async def store(mongo_database: MongoDatabase) -> AsyncIterator[MongoStore]:
    async with opened(mongo_database) as store:
        yield store


def make_key(tenant: str = "acme", name: str = "first") -> ApiKey:
    return ApiKey(new_id(), tenant, name, hash_secret(new_secret()), ALL_SCOPES, AT)


async def add_tenant(store: MongoStore, name: str = "acme") -> None:
    await store.directory.add_tenant(Tenant(name, now()), make_key(name))


async def user_ids(store: MongoStore, tenant: str = "acme") -> list[str]:
    return [user.user_id for user in await store.directory.users(tenant, after=None, limit=100)]


async def erase(store: MongoStore, name: str = "acme") -> None:
    while await store.directory.erase_tenant(name, 100):
        pass


# -- opening -------------------------------------------------------------------------------------------------


async def test_of_several_nodes_one_founds_it(mongo_database: MongoDatabase) -> None:
    """There is one secret, and all of them see the same."""
    nodes = [MongoStore(mongo_database.url, mongo_database.name) for _ in range(4)]
    besides = [MongoBeside(mongo_database.url, mongo_database.name) for _ in range(4)]
    both = [*nodes, *besides]
    await asyncio.gather(*(each.open() for each in both))
    [first, *others] = [await each.directory.access() for each in both]
    assert len(first.secrets) == len(first.tenants) == 1
    assert others == [first] * 7
    for each in both:
        await each.close()


async def test_beside_the_servers_nothing_is_migrated(
    mongo_database: MongoDatabase, raw: Database[Raw]
) -> None:
    """The command line makes no indexes and changes no documents; the next server does."""
    raw["notifications"].insert_one(original())
    beside = MongoBeside(mongo_database.url, mongo_database.name)
    await beside.open()
    await beside.directory.add_tenant(Tenant("acme", AT), make_key())
    await beside.close()
    await beside.close()
    with pytest.raises(StoreUnavailable):
        await beside.directory.sequences()
    assert raw["notifications"].count_documents({"tenant": None}) == 1
    assert set(raw["notifications"].index_information()) == {"_id_"}
    async with opened(mongo_database) as store:
        assert [tenant.name for tenant in await store.directory.tenants()] == ["acme", "default"]


async def test_beside_what_is_not_there() -> None:
    """The errors of opening are those of the store, and it may be opened again."""
    beside = MongoBeside(f"mongodb://127.0.0.1:{free_port()}/", "inbox", timeout_s=0.3)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        await beside.open()
    await beside.close()
    with pytest.raises(StartupError, match=r"\[MONGODB\] url"):
        await MongoBeside("http://x", "inbox").open()


# -- tenants and keys ----------------------------------------------------------------------------------------


async def test_a_change_whose_number_got_lost(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is whole, and whoever reads sees it, though nothing told them to."""

    async def crash() -> None:
        raise StoreUnavailable()

    before = await store.directory.access()
    with monkeypatch.context() as patch:
        patch.setattr(store.directory, "_raise_sequence", crash)
        with pytest.raises(StoreUnavailable):
            await add_tenant(store)
    after = await store.directory.access()
    assert after.sequence == before.sequence
    assert [tenant.name for tenant in after.tenants] == ["acme", "default"]
    assert [key.name for key in after.keys] == ["first"]


async def test_what_looks_like_an_expression_is_none(store: MongoStore) -> None:
    """Neither in a key nor in a secret."""
    await add_tenant(store)
    odd = ApiKey("$x", "acme", "$$NOW", "$keys", ALL_SCOPES, AT)
    await store.directory.add_key(odd)
    assert odd in await store.directory.keys("acme")
    await store.directory.revoke_key("acme", "$$NOW", AT)


async def test_very_many_revoked_keys(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten before the tenant's document gets too large; those in use never are."""
    monkeypatch.setattr(mongo_tenants, "MAX_REVOKED_KEYS", 3)
    await add_tenant(store)
    for number in range(8):
        await store.directory.add_key(make_key(name=str(number)))
        if number % 2:
            await store.directory.revoke_key("acme", str(number), AT)
    await store.directory.add_key(make_key(name="last"))
    names = {key.name: key.revoked_at for key in await store.directory.keys("acme")}
    assert names == dict.fromkeys("0246") | dict.fromkeys("357", AT) | {"first": None, "last": None}


# -- users ---------------------------------------------------------------------------------------------------


def count_uses(raw: Database[Raw]) -> int:
    """Of the register, reading and writing, since profiling began."""
    return raw["system.profile"].count_documents({"ns": f"{raw.name}.notifications_users"})


async def test_known_users_cost_nothing(store: MongoStore, raw: Database[Raw]) -> None:
    """The register is not asked about who was notified before."""
    users = [Recipient(f"user-{number}") for number in range(10)]
    await put(store, "user-0")
    await store.add(make_notification(), users, None)
    raw.command("profile", 2)
    await asyncio.gather(*(put(store, user.user_id) for user in users))
    await store.add(make_notification(), users, None)
    assert count_uses(raw) == 0
    await store.add(make_notification(), [*users, Recipient("new")], None)
    raw.command("profile", 0)
    assert count_uses(raw) == 2
    assert len(await user_ids(store)) == 11


async def test_new_users_share_round_trips(store: MongoStore, raw: Database[Raw]) -> None:
    """Those of concurrent requests are written together, as their documents are."""
    raw.command("profile", 2)
    await asyncio.gather(*(put(store, f"user-{number}") for number in range(100)))
    raw.command("profile", 0)
    assert len(await user_ids(store)) == 100
    assert count_uses(raw) < 10


@pytest.mark.parametrize("recipients", [1, 3])
async def test_who_cannot_be_registered_is_not_notified(
    store: MongoStore, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch, recipients: int
) -> None:
    """Nothing is stored then, and nothing completed later; afterwards it is as if it had not been tried."""
    users = [Recipient(f"user-{number}") for number in range(recipients)]

    async def fail(*_: object) -> None:
        raise StoreUnavailable()

    with monkeypatch.context() as patch:
        patch.setattr(KnownUsers, "_insert_missing", fail)
        with pytest.raises(StoreUnavailable):
            await store.add(make_notification(), users, None)
    assert raw["notifications"].count_documents({}) == raw["notifications_intents"].count_documents({}) == 0
    await store.add(make_notification(), users, None)
    assert len(await user_ids(store)) == recipients


async def test_only_so_many_users_are_remembered(
    store: MongoStore, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those notified last; the others are asked for again, which changes nothing."""
    monkeypatch.setattr(mongo_users, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(mongo_users, "CHUNK_USERS", 2)
    await store.add(make_notification(), [Recipient(user) for user in "abcde"], None)
    before = await store.directory.users("acme", after=None, limit=10)
    await put(store, "c")
    await put(store, "f")
    raw.command("profile", 2)
    for user in "cef":
        await put(store, user)
    assert count_uses(raw) == 0
    await put(store, "d")
    raw.command("profile", 0)
    assert count_uses(raw) == 1
    assert (await store.directory.users("acme", after=None, limit=10))[:5] == before


async def test_two_nodes_register_a_user_at_once(mongo_database: MongoDatabase, store: MongoStore) -> None:
    """The user is there once, since one of the times, and with the last join."""
    async with opened(mongo_database) as other:
        for number in range(20):
            user, at = f"user-{number:02}", AT - timedelta(seconds=number)
            await asyncio.gather(
                put(store, user, created_at=at),
                put(other, user, created_at=AT),
                other.directory.note_users({("acme", user): AT}),
            )
    known = await store.directory.users("acme", after=None, limit=100)
    assert [user.user_id for user in known] == [f"user-{number:02}" for number in range(20)]
    for number, user in enumerate(known):
        assert user.first_seen_at in (AT - timedelta(seconds=number), AT)
    assert {user.last_seen_at for user in known} == {AT}


async def test_users_of_a_name_that_was_free_again(mongo_database: MongoDatabase, store: MongoStore) -> None:
    """A node that knew them of the tenant before registers them anew, as soon as it has seen that it is another."""
    await store.directory.access()
    await add_tenant(store)
    await store.directory.access()
    await put(store, "alice")
    async with opened(mongo_database) as other:
        await other.directory.remove_tenant("acme", AT)
        await erase(other)
        assert await user_ids(store) == []
        await asyncio.sleep(0.002)  # made at another time
        await add_tenant(other)
    await store.directory.access()
    await put(store, "alice")
    assert await user_ids(store) == ["alice"]


# -- removed tenants -----------------------------------------------------------------------------------------


async def leave_open(
    store: MongoStore, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch, tenant: str
) -> str:
    """A notification whose writer ended before its documents, long ago; its nid."""
    notification = make_notification(tenant)

    async def crash(*_: object) -> bool:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(store._adding, "_insert_missing", crash)
        with pytest.raises(asyncio.CancelledError):
            await store.add(notification, [Recipient("alice"), Recipient("bob")], None)
    raw["notifications_intents"].update_many({}, {"$set": {"openedAt": now() - timedelta(hours=1)}})
    return notification.nid


async def test_a_removed_tenants_intents_are_dropped(
    store: MongoStore, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left half done is not completed any more; the others' is."""
    await add_tenant(store)
    await leave_open(store, raw, monkeypatch, "acme")
    theirs = await leave_open(store, raw, monkeypatch, "other")
    await store.directory.remove_tenant("acme", AT)
    completed = await store.complete_intents()
    assert [document.notification.nid for document in completed] == [theirs] * 2
    assert raw["notifications_intents"].count_documents({}) == 0
    assert raw["notifications"].count_documents({"tenant": "acme"}) == 0


async def test_erasing_takes_what_was_left_half_done(
    store: MongoStore, raw: Database[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was set aside; no collection has anything of the tenant any more."""
    await add_tenant(store)
    await leave_open(store, raw, monkeypatch, "acme")
    await leave_open(store, raw, monkeypatch, "acme")
    aside = {"$unset": {"openedAt": ""}, "$set": {"failedAt": now()}}
    raw["notifications_intents"].update_one({}, aside)
    await store.directory.sign_out("acme", "alice", AT)
    await store.directory.note_users({("acme", f"user-{number}"): AT for number in range(250)})
    await store.directory.remove_tenant("acme", AT)
    await erase(store)
    for name in raw.list_collection_names():
        assert not [each for each in raw[name].find() if "acme" in str(each)], name


async def test_a_removal_whose_mail_is_not_withdrawn_in_time(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Has succeeded all the same."""

    async def fail(*_: object) -> None:
        raise StoreUnavailable()

    await add_tenant(store)
    monkeypatch.setattr(store._mail, "withdraw", fail)
    await store.directory.remove_tenant("acme", AT)
    assert [tenant.name for tenant in (await store.directory.access()).tenants] == ["default"]


# -- signing out ---------------------------------------------------------------------------------------------


async def test_sign_outs_of_an_earlier_version_count(store: MongoStore, raw: Database[Raw]) -> None:
    """Those that do not say when they were written; signed out again, they do."""
    earlier = [{"_id": {"tenant": "acme", "userId": str(number)}, "at": AT} for number in range(10)]
    raw["notifications_sign_outs"].insert_many(earlier)
    found, after = await read_sign_outs(store.directory, limit=3)
    assert set(found) == {SignOut("acme", str(number), AT) for number in range(10)}
    again = AT + timedelta(seconds=1)
    await store.directory.sign_out("acme", "7", again)
    assert (await read_sign_outs(store.directory, after))[0] == [SignOut("acme", "7", again)]


async def test_what_is_seen_late_is_not_missed(store: MongoStore, raw: Database[Raw]) -> None:
    """Nor what was written by a clock that is a little behind; what was written long ago is not read again."""
    clock = raw.client.admin.command("hello")["localTime"]
    _, after = await read_sign_outs(store.directory)
    sign_outs = [
        {
            "_id": {"tenant": "acme", "userId": user_id},
            "at": AT,
            "writtenAt": clock - mongo_sign_outs.OVERLAP + timedelta(seconds=seconds),
        }
        for user_id, seconds in (("late", 5), ("old", -5))
    ]
    raw["notifications_sign_outs"].insert_many(sign_outs)
    assert (await read_sign_outs(store.directory, after))[0] == [SignOut("acme", "late", AT)]


async def test_many_written_in_one_moment(store: MongoStore, raw: Database[Raw]) -> None:
    """Come page by page, each once."""
    _, after = await read_sign_outs(store.directory)
    clock = raw.client.admin.command("hello")["localTime"]
    users = [str(number) for number in range(20)]
    raw["notifications_sign_outs"].insert_many(
        [{"_id": {"tenant": "acme", "userId": user}, "at": AT, "writtenAt": clock} for user in users]
    )
    found, _ = await read_sign_outs(store.directory, after, limit=3)
    assert sorted(each.user_id for each in found) == sorted(users)


async def test_two_nodes_sign_out_the_same_user(mongo_database: MongoDatabase, store: MongoStore) -> None:
    """At the same moment: the later instant counts, or that of who came after it, and both have done it."""
    async with opened(mongo_database) as other:
        for number in range(20):
            await asyncio.gather(
                store.directory.sign_out("acme", str(number), AT),
                other.directory.sign_out("acme", str(number), AT + timedelta(seconds=1)),
            )
    found, _ = await read_sign_outs(store.directory)
    later = AT + timedelta(seconds=1)
    assert {each.user_id for each in found} == {str(number) for number in range(20)}
    assert {each.at for each in found} <= {later, later + STEP}


async def test_a_sign_out_whose_number_got_lost(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is there for whoever reads what is new."""

    async def crash(which: str) -> None:
        raise StoreUnavailable()

    _, after = await read_sign_outs(store.directory)
    before = await store.directory.sequences()
    with monkeypatch.context() as patch:
        patch.setattr(store.directory, "_raise_sequence", crash)
        with pytest.raises(StoreUnavailable):
            await store.directory.sign_out("acme", "alice", AT)
    assert await store.directory.sequences() == before
    assert (await read_sign_outs(store.directory, after))[0] == [SignOut("acme", "alice", AT)]
