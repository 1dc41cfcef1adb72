"""What every store promises about tenants, keys, known users and sign-outs (`server.store.Directory`), over all kinds
of store.

The stores' clock is the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.errors import Conflict, NotFound, StoreUnavailable
from server.grants import (
    ALL_SCOPES,
    DEFAULT_TENANT,
    ApiKey,
    KnownUser,
    Scope,
    SigningSecret,
    SignOut,
    Tenant,
    hash_secret,
    new_secret,
)
from server.ids import new_id
from server.messages import EmailDuty, Mail, MailRecipient, Recipient, now
from server.store import STEP, Directory, MailCounts, MailOutcome, PostponedMail, RefusedMail, Store
from tests.support.stores import (
    Beside,
    Place,
    make_notification,
    owe,
    put,
    read_sign_outs,
    whole_inbox,
)

LONG_S = 600.0
"""A lease that does not run out during a test."""

AT = now()


@pytest.fixture
def directory(store: Store) -> Directory:
    return store.directory


@pytest.fixture
async def beside(place: Place, store: Store) -> AsyncIterator[Directory]:
    """The way in for another process, while `store` is open."""
    beside: Beside = place.beside()
    await beside.open()
    yield beside.directory
    await beside.close()


def later(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def make_key(tenant: str, name: str = "first", **fields: Any) -> ApiKey:
    return ApiKey(
        **{
            "id": new_id(),
            "tenant": tenant,
            "name": name,
            "hashed": hash_secret(new_secret()),
            "scopes": ALL_SCOPES,
            "created_at": AT,
            **fields,
        }
    )


async def add_tenant(directory: Directory, name: str, created_at: datetime = AT) -> tuple[Tenant, ApiKey]:
    tenant, key = Tenant(name, created_at), make_key(name)
    await directory.add_tenant(tenant, key)
    return tenant, key


async def add_key(directory: Directory, tenant: str, name: str, **fields: Any) -> ApiKey:
    key = make_key(tenant, name, **fields)
    await directory.add_key(key)
    return key


async def erase(directory: Directory, name: str, limit: int = 1000) -> list[int]:
    """Until nothing is left; what each call said."""
    erased = [await directory.erase_tenant(name, limit)]
    while erased[-1]:
        erased.append(await directory.erase_tenant(name, limit))
    return erased


async def names(directory: Directory) -> list[str]:
    """Of the active tenants."""
    return [tenant.name for tenant in (await directory.access()).tenants]


async def sign_outs(directory: Directory) -> list[SignOut]:
    """Of all tenants, by tenant and user."""
    found, _ = await read_sign_outs(directory)
    return sorted(found, key=lambda each: (each.tenant, each.user_id))


async def user_ids(directory: Directory, tenant: str) -> list[str]:
    return [user.user_id for user in await directory.users(tenant, after=None, limit=1000)]


def to(user_id: str) -> MailRecipient:
    """Somebody who is owed a mail since a minute."""
    return MailRecipient(user_id, f"{user_id}@example.test", now() - timedelta(minutes=1))


# -- at first ------------------------------------------------------------------------------------------------


async def test_a_new_store_has_the_default_tenant_and_a_secret(directory: Directory) -> None:
    """And nobody has a key, is known, or was signed out."""
    access = await directory.access()
    [tenant], [secret] = access.tenants, access.secrets
    assert (tenant.name, tenant.removed_at) == (DEFAULT_TENANT, None)
    assert len(secret.secret) == 43
    assert secret.retired_at is None
    for created_at in (tenant.created_at, secret.created_at):
        assert abs(created_at - now()) < timedelta(minutes=5)
    assert access.keys == ()
    assert await sign_outs(directory) == []
    assert access.sequence == (await directory.sequences()).access
    assert await directory.tenants() == [tenant]
    assert await directory.keys() == []
    assert await directory.users(DEFAULT_TENANT, after=None, limit=10) == []


async def test_it_is_there_after_reopening(place: Place) -> None:
    """All of it, with all its fields, and no second secret."""
    store = place.store()
    await store.open()
    await add_tenant(store.directory, "acme")
    key = await add_key(
        store.directory, "acme", "ci", scopes=frozenset({Scope.PUBLISH}), expires_at=later(3600)
    )
    await store.directory.note_key_use({key.id: later(5)})
    await store.directory.note_users({("acme", "alice"): later(6)})
    await store.directory.sign_out("acme", "bob", later(7))
    before = await store.directory.access(), await store.directory.keys(), await store.directory.sequences()
    await store.close()

    store = place.store()
    await store.open()
    after = await store.directory.access(), await store.directory.keys(), await store.directory.sequences()
    assert after == before
    assert await user_ids(store.directory, "acme") == ["alice"]
    assert await sign_outs(store.directory) == [SignOut("acme", "bob", later(7))]
    await store.close()


async def test_what_is_not_open_yet_is_unavailable(place: Place) -> None:
    """Each verb says so."""
    directory = place.store().directory
    for verb in (
        directory.sequences(),
        directory.access(),
        directory.tenants(),
        directory.add_tenant(Tenant("acme", AT), make_key("acme")),
        directory.remove_tenant("acme", AT),
        directory.erase_tenant("acme", 1),
        directory.keys(),
        directory.add_key(make_key("acme")),
        directory.revoke_key("acme", "ci", AT),
        directory.note_key_use({"x": AT}),
        directory.note_users({("acme", "alice"): AT}),
        directory.users("acme", after=None, limit=1),
        directory.known_since("acme", "alice"),
        directory.sign_out("acme", "alice", AT),
        directory.sign_outs(None, 1),
        directory.forget_sign_outs(AT),
        directory.add_secret(make_secret(AT), retire_others_at=AT),
    ):
        with pytest.raises(StoreUnavailable):
            await verb


# -- the sequence --------------------------------------------------------------------------------------------

Verb = Callable[[Directory], Awaitable[object]]

CHANGES: dict[str, Verb] = {
    "add_tenant": lambda d: add_tenant(d, "new"),
    "remove_tenant": lambda d: d.remove_tenant("acme", later(1)),
    "add_key": lambda d: add_key(d, "acme", "second"),
    "revoke_key": lambda d: d.revoke_key("acme", "first", later(1)),
    "add_secret": lambda d: d.add_secret(make_secret(now()), retire_others_at=in_(3600)),
}

OTHERS: dict[str, Verb] = {
    "sequences": lambda d: d.sequences(),
    "access": lambda d: d.access(),
    "tenants": lambda d: d.tenants(),
    "keys": lambda d: d.keys(),
    "users": lambda d: d.users("acme", after=None, limit=10),
    "known_since": lambda d: d.known_since("acme", "alice"),
    "note_key_use": lambda d: d.note_key_use({"0" * 24: later(1)}),
    "note_users": lambda d: d.note_users({("acme", "alice"): later(1)}),
    "sign_outs": lambda d: d.sign_outs(None, 10),
    "forget_sign_outs": lambda d: d.forget_sign_outs(later(1)),
}


@pytest.mark.parametrize("verb", CHANGES)
async def test_a_change_raises_the_sequence(verb: str, directory: Directory, beside: Directory) -> None:
    """Made here or by another process, and the new state comes with the new number."""
    await add_tenant(directory, "acme")
    before = await directory.access()
    await CHANGES[verb](beside)
    after = await directory.access()
    assert after.sequence > before.sequence
    assert replace(after, sequence=before.sequence) != before
    sequences = await directory.sequences()
    assert await beside.sequences() == sequences
    assert (sequences.access, sequences.sign_outs) == (after.sequence, 0)


async def test_a_sign_out_raises_its_own_sequence(directory: Directory, beside: Directory) -> None:
    """Made here or by another process. Servers read nothing else for it: there may be very many."""
    before = await directory.sequences()
    for number, side in enumerate((beside, directory, beside)):
        await side.sign_out("acme", "alice", later(-number))
        sequences = await directory.sequences()
        assert sequences.sign_outs > before.sign_outs
        assert replace(before, sign_outs=sequences.sign_outs) == sequences == await beside.sequences()
        before = sequences


@pytest.mark.parametrize("verb", OTHERS)
async def test_what_is_not_of_access_leaves_the_sequence(verb: str, directory: Directory) -> None:
    """Or servers would load everything anew for every user who joins."""
    _, key = await add_tenant(directory, "acme")
    before = await directory.sequences()
    await OTHERS[verb](directory)
    await directory.note_key_use({key.id: later(1)})
    assert await directory.sequences() == before


async def test_changes_from_both_sides(directory: Directory, beside: Directory) -> None:
    """None is lost, none shares its number with another."""
    before = await directory.sequences()
    sides = [directory, beside] * 10
    await asyncio.gather(*(add_tenant(side, f"tenant-{number}") for number, side in enumerate(sides)))
    assert len(await names(directory)) == 21
    assert len(await directory.keys()) == 20
    sequences = await directory.sequences()
    assert await beside.sequences() == sequences
    assert sequences.access >= before.access + 20


# -- tenants -------------------------------------------------------------------------------------------------


async def test_a_tenant_is_added_with_its_first_key(directory: Directory) -> None:
    """Both are there at once."""
    tenant, key = await add_tenant(directory, "acme", later(-10))
    access = await directory.access()
    assert tenant in access.tenants
    assert access.keys == (key,)
    assert await directory.keys("acme") == [key]


async def test_tenants_come_by_name(directory: Directory) -> None:
    """Those removed, too."""
    for name in ("zoo", "b.c", "b-c", "b_c", "0"):
        await add_tenant(directory, name)
    await directory.remove_tenant("b_c", later(1))
    assert [tenant.name for tenant in await directory.tenants()] == sorted(
        ["zoo", "b.c", "b-c", "b_c", "0", DEFAULT_TENANT]
    )


async def test_a_name_is_taken_once(directory: Directory) -> None:
    """The second tenant of a name is refused, with its key; the first has what it had."""
    tenant, key = await add_tenant(directory, "acme")
    before = await directory.access()
    for name in ("acme", DEFAULT_TENANT):
        with pytest.raises(Conflict, match=name):
            await directory.add_tenant(Tenant(name, later(1)), make_key(name, "second"))
    assert await directory.access() == before
    assert await directory.keys() == [key]
    assert tenant in await directory.tenants()


async def test_of_two_at_once_one_wins(directory: Directory, beside: Directory) -> None:
    """The other is told of the conflict, and leaves no key behind."""
    results = await asyncio.gather(
        *(add_tenant(side, "acme") for side in [directory, beside] * 5), return_exceptions=True
    )
    [(tenant, key)] = [result for result in results if not isinstance(result, BaseException)]
    assert sum(isinstance(result, Conflict) for result in results) == 9
    assert tenant in await directory.tenants()
    assert await directory.keys("acme") == [key]


async def test_a_removed_tenant_has_no_access(directory: Directory) -> None:
    """Its keys are revoked, those revoked before as of then; the others' are as they were."""
    tenant, first = await add_tenant(directory, "acme")
    second = await add_key(directory, "acme", "second", created_at=later(1))
    _, theirs = await add_tenant(directory, "other")
    await directory.revoke_key("acme", "first", later(5))
    await directory.remove_tenant("acme", later(10))
    access = await directory.access()
    assert [tenant.name for tenant in access.tenants] == [DEFAULT_TENANT, "other"]
    assert access.keys == (theirs,)
    assert replace(tenant, removed_at=later(10)) in await directory.tenants()
    assert await directory.keys("acme") == [
        replace(first, revoked_at=later(5)),
        replace(second, revoked_at=later(10)),
    ]


async def test_removing_what_is_not_there(directory: Directory) -> None:
    """Unknown or removed already: not found, and nothing changes."""
    await add_tenant(directory, "acme")
    await directory.remove_tenant("acme", later(1))
    before = await directory.access(), await directory.tenants()
    for name in ("acme", "nobody", ""):
        with pytest.raises(NotFound):
            await directory.remove_tenant(name, later(2))
    assert (await directory.access(), await directory.tenants()) == before


async def test_a_removed_tenants_data_stays(store: Store, directory: Directory) -> None:
    """And its name is taken, until it is erased."""
    await add_tenant(directory, "acme")
    document = await put(store, "alice", "acme")
    await directory.remove_tenant("acme", later(1))
    assert await whole_inbox(store, "alice", "acme") == [document]
    assert await user_ids(directory, "acme") == ["alice"]
    with pytest.raises(Conflict, match="acme"):
        await add_tenant(directory, "acme")


# -- erasing -------------------------------------------------------------------------------------------------


async def test_only_a_removed_tenant_is_erased(store: Store, directory: Directory) -> None:
    """An active one is not, nor one that never was."""
    await add_tenant(directory, "acme")
    document = await put(store, "alice", "acme")
    for name in ("acme", DEFAULT_TENANT, "nobody", ""):
        with pytest.raises(NotFound):
            await directory.erase_tenant(name, 100)
    assert await whole_inbox(store, "alice", "acme") == [document]


async def test_erasing_step_by_step(store: Store, directory: Directory) -> None:
    """About `limit` documents a call, the seen and the deleted ones, too; 0 when nothing is left; then not found."""
    await add_tenant(directory, "acme")
    documents = [await put(store, f"user-{number % 4}", "acme") for number in range(20)]
    await store.mark_seen("acme", "user-1", [documents[1].id])
    await store.delete("acme", "user-2", [documents[2].id])
    everyone = [Recipient(f"user-{number}") for number in range(10)]
    await store.add(make_notification("acme"), everyone, None)
    await directory.remove_tenant("acme", later(1))
    erased = await erase(directory, "acme", 7)
    assert sum(erased) == 30
    assert len(erased) > 3
    assert await directory.tenants() == list((await directory.access()).tenants)
    with pytest.raises(NotFound):
        await directory.erase_tenant("acme", 7)


async def test_erasing_an_empty_tenant(directory: Directory) -> None:
    """One call does it."""
    await add_tenant(directory, "acme")
    await directory.remove_tenant("acme", later(1))
    assert await erase(directory, "acme") == [0]
    assert await names(directory) == [DEFAULT_TENANT]


async def test_an_erased_name_is_free(store: Store, directory: Directory) -> None:
    """Who takes it finds nothing of the one before: no documents, users, keys, counts or mail."""
    await add_tenant(directory, "acme")
    await put(store, "alice", "acme")
    await owe(store, to("alice"), tenant="acme")
    await directory.note_users({("acme", "bob"): later(1)})
    await directory.sign_out("acme", "alice", later(1))
    await directory.remove_tenant("acme", later(2))
    await erase(directory, "acme")

    tenant, key = await add_tenant(directory, "acme", later(3))
    access = await directory.access()
    assert (access.tenants[0], access.keys) == (tenant, (key,))
    assert await sign_outs(directory) == []
    assert await directory.keys("acme") == [key]
    assert await directory.users("acme", after=None, limit=10) == []
    assert await whole_inbox(store, "alice", "acme") == []
    assert await store.count_unseen("acme", ["alice", "bob"]) == {"alice": 0, "bob": 0}
    assert await store.next_mail_due() is None
    assert await store.mail_counts() == MailCounts(0, 0)
    document = await put(store, "alice", "acme")
    assert await whole_inbox(store, "alice", "acme") == [document]


async def test_erasing_one_harms_no_other(store: Store, directory: Directory) -> None:
    """The same users, a key of the same name, mail and sign-outs of another tenant are all still there."""
    for name in ("acme", "other"):
        await add_tenant(directory, name)
        await put(store, "alice", name)
        await owe(store, to("alice"), tenant=name)
        await directory.sign_out(name, "alice", later(1))
        await directory.note_users({(name, "bob"): later(1)})
    before = await whole_inbox(store, "alice", "other")
    [users, keys] = (
        await directory.users("other", after=None, limit=10),
        await directory.keys("other"),
    )
    await directory.remove_tenant("acme", later(2))
    await erase(directory, "acme", 1)
    assert len(before) == 2
    assert await whole_inbox(store, "alice", "other") == before
    assert await store.count_unseen("other", ["alice"]) == {"alice": 2}
    assert await directory.users("other", after=None, limit=10) == users
    assert await directory.keys("other") == keys
    assert await sign_outs(directory) == [SignOut("other", "alice", later(1))]
    assert (await directory.access()).keys == tuple(keys)
    [job] = await store.claim_mail(LONG_S, 10)
    assert job.tenant == "other"


async def test_new_documents_while_an_old_tenant_is_erased(store: Store, directory: Directory) -> None:
    """Those of others, stored between two steps, keep their texts."""
    await add_tenant(directory, "acme")
    for _ in range(10):
        await store.add(make_notification("acme"), [Recipient("alice"), Recipient("bob")], None)
    await directory.remove_tenant("acme", later(1))
    kept = []
    while await directory.erase_tenant("acme", 3):
        kept.append(await put(store, "alice", "other", content=f"number {len(kept)}"))
    assert await whole_inbox(store, "alice", "other") == kept[::-1]
    assert len(kept) > 3


async def test_erasing_beside_a_server_that_writes(
    store: Store, directory: Directory, beside: Directory
) -> None:
    """The server's adds go on, and lose nothing."""
    await add_tenant(directory, "acme")
    for _ in range(20):
        await store.add(make_notification("acme"), [Recipient(str(n)) for n in range(20)], None)
    await directory.remove_tenant("acme", later(1))
    kept = []

    async def write() -> None:
        while not erasing.done():
            kept.append(await put(store, "alice", "other"))

    erasing = asyncio.create_task(erase(beside, "acme", 50))
    await asyncio.gather(erasing, write())
    assert sum(erasing.result()) == 400
    assert await whole_inbox(store, "alice", "other") == kept[::-1]
    assert await user_ids(directory, "acme") == []


# -- a removed tenant's mail ---------------------------------------------------------------------------------


async def test_a_removed_tenant_is_owed_no_mail(store: Store, directory: Directory) -> None:
    """What it was owed is neither claimed nor due; the others' is."""
    await add_tenant(directory, "acme")
    await owe(store, to("alice"), to("bob"), tenant="acme")
    await directory.remove_tenant("acme", later(1))
    assert await store.next_mail_due() is None
    assert await store.claim_mail(LONG_S, 10) == []
    theirs = to("alice")
    notification = await owe(store, theirs, tenant="other")
    assert await store.next_mail_due() == theirs.due_at
    assert [job.nid for job in await store.claim_mail(LONG_S, 10)] == [notification.nid]


async def test_much_mail_of_a_removed_tenant_is_in_nobodys_way(store: Store, directory: Directory) -> None:
    """A claim for a few finds those of the others behind it."""
    await add_tenant(directory, "acme")
    for _ in range(30):
        await owe(store, to("alice"), tenant="acme")
    mine = await owe(store, to("alice"), tenant="other")
    await directory.remove_tenant("acme", later(1))
    assert [job.nid for job in await store.claim_mail(LONG_S, 2)] == [mine.nid]


async def test_mail_that_comes_after_the_removal(store: Store, directory: Directory) -> None:
    """From a server that has not heard of it yet: stored, and not sent either."""
    await add_tenant(directory, "acme")
    await directory.remove_tenant("acme", later(1))
    await owe(store, to("alice"), tenant="acme")
    assert await store.claim_mail(LONG_S, 10) == []
    assert await store.next_mail_due() is None
    assert await erase(directory, "acme") == [1, 0]
    assert await store.mail_counts() == MailCounts(0, 0)


async def test_a_mail_on_its_way_at_the_removal(store: Store, directory: Directory) -> None:
    """Can be settled; what is to be tried again is not."""
    await add_tenant(directory, "acme")
    recipients = tuple(to(user_id) for user_id in ("alice", "bob", "carol"))
    await owe(store, *recipients, tenant="acme")
    [job] = await store.claim_mail(LONG_S, 10)
    await directory.remove_tenant("acme", later(1))
    alice, bob, carol = job.recipients
    refused = RefusedMail(bob.user_id, bob.email, 550, "no")
    postponed = PostponedMail(carol.user_id, carol.email, 451, "later", now())
    outcome = MailOutcome(sent=(alice,), refused=(refused,), retry=(postponed,))
    assert await store.settle_mail(job, outcome)
    assert await store.next_mail_due() is None
    assert await store.claim_mail(LONG_S, 10) == []
    await erase(directory, "acme")
    assert await store.mail_counts() == MailCounts(0, 0)
    assert not await store.settle_mail(job, MailOutcome(sent=job.recipients))


async def test_a_lease_that_lapses_after_the_removal(store: Store, directory: Directory) -> None:
    """Whoever held it is gone; nobody takes it over."""
    await add_tenant(directory, "acme")
    await owe(store, to("alice"), tenant="acme")
    assert len(await store.claim_mail(0.0, 10)) == 1
    await directory.remove_tenant("acme", later(1))
    assert await store.claim_mail(LONG_S, 10) == []
    assert await store.next_mail_due() is None


async def test_a_removed_tenants_inbox_can_still_be_asked(store: Store, directory: Directory) -> None:
    """`still_unseen` knows no tenants' ends."""
    await add_tenant(directory, "acme")
    notification = make_notification("acme")
    duty = EmailDuty(Mail("subject", "content"), (to("alice"),))
    await store.add(notification, [Recipient("alice"), Recipient("bob")], duty)
    await directory.remove_tenant("acme", later(1))
    assert await store.still_unseen("acme", notification.nid, ["alice", "bob", "carol"]) == {"alice", "bob"}


# -- keys ----------------------------------------------------------------------------------------------------


async def test_keys_come_by_tenant_then_age(directory: Directory) -> None:
    """Of one tenant or of all, the revoked and the expired ones, too."""
    [_, zoo], [_, acme] = [await add_tenant(directory, name) for name in ("zoo", "acme")]
    older = await add_key(directory, "acme", "older", created_at=later(-5), expires_at=later(-1))
    newer = await add_key(directory, "acme", "newer", created_at=later(5))
    old = await directory.revoke_key("acme", "older", later(6))
    assert old == replace(older, revoked_at=later(6))
    assert await directory.keys("acme") == [old, acme, newer]
    assert await directory.keys() == [old, acme, newer, zoo]
    assert await directory.keys("nobody") == []


async def test_access_has_the_keys_that_are_not_revoked(directory: Directory) -> None:
    """Also those that have expired."""
    _, acme = await add_tenant(directory, "acme")
    expired = await add_key(
        directory, "acme", "expired", created_at=later(1), expires_at=AT - timedelta(days=1)
    )
    await add_key(directory, "acme", "revoked")
    await directory.revoke_key("acme", "revoked", later(1))
    assert (await directory.access()).keys == (acme, expired)


@pytest.mark.parametrize("scopes", [frozenset(), frozenset({Scope.LISTEN}), ALL_SCOPES])
async def test_a_key_keeps_its_fields(scopes: frozenset[Scope], directory: Directory) -> None:
    """Whatever its scopes; a key may also be made for the default tenant."""
    key = await add_key(directory, DEFAULT_TENANT, "ci", scopes=scopes, expires_at=later(1.234))
    assert await directory.keys() == [key]
    assert (await directory.access()).keys == (key,)


async def test_scopes_of_a_later_version_allow_nothing(directory: Directory) -> None:
    """Nor do they keep a server from following what else is added, and revoked."""
    key = await add_key(directory, DEFAULT_TENANT, "later", scopes=frozenset({"publish", "of-later"}))
    assert (await directory.access()).keys == (replace(key, scopes=frozenset({Scope.PUBLISH})),)


async def test_a_key_needs_an_active_tenant(directory: Directory) -> None:
    """One that is unknown or removed gets none."""
    await add_tenant(directory, "gone")
    await directory.remove_tenant("gone", later(1))
    before = await directory.keys()
    for tenant in ("gone", "nobody"):
        with pytest.raises(NotFound, match=tenant):
            await directory.add_key(make_key(tenant, "second"))
    assert await directory.keys() == before


async def test_a_keys_name_is_its_own(directory: Directory, beside: Directory) -> None:
    """Within its tenant, until it is revoked; also of several at once, only one gets it."""
    await add_tenant(directory, "acme")
    await add_tenant(directory, "other")
    results = await asyncio.gather(
        *(add_key(side, "acme", "ci") for side in [directory, beside] * 5), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 9
    with pytest.raises(Conflict, match="ci"):
        await add_key(directory, "acme", "ci")
    await add_key(directory, "other", "ci")
    for _ in range(2):
        await directory.revoke_key("acme", "ci", later(1))
        await add_key(directory, "acme", "ci")
    assert [key.name for key in await directory.keys("acme")].count("ci") == 3


async def test_revoking_what_is_not_there(directory: Directory) -> None:
    """Another tenant's, or revoked already: not found, and nothing changes."""
    await add_tenant(directory, "acme")
    await add_tenant(directory, "other")
    await add_key(directory, "other", "ci")
    await directory.revoke_key("acme", "first", later(1))
    before = await directory.access(), await directory.keys()
    for tenant, name in (("acme", "first"), ("acme", "ci"), ("nobody", "first"), ("", "")):
        with pytest.raises(NotFound):
            await directory.revoke_key(tenant, name, later(2))
    assert (await directory.access(), await directory.keys()) == before


async def test_the_last_use_of_a_key(directory: Directory) -> None:
    """The latest counts, whatever the order in which servers report; unknown keys are none."""
    _, first = await add_tenant(directory, "acme")
    second = await add_key(directory, "acme", "second", created_at=later(1))
    await directory.note_key_use({first.id: later(10), second.id: later(5), new_id(): later(5)})
    await directory.note_key_use({first.id: later(9), second.id: later(6)})
    await directory.note_key_use({})
    assert await directory.keys("acme") == [
        replace(first, last_used_at=later(10)),
        replace(second, last_used_at=later(6)),
    ]


# -- users ---------------------------------------------------------------------------------------------------


async def test_who_is_notified_is_known(store: Store, directory: Directory) -> None:
    """Since their first notification; each user once, each in their own tenant."""
    first = make_notification("acme", created_at=later(-20))
    await store.add(first, [Recipient("alice")], None)
    second = make_notification("acme", created_at=later(-10))
    await store.add(second, [Recipient("bob"), Recipient("alice")], None)
    await put(store, "alice", "other", created_at=later(-5))
    assert await directory.users("acme", after=None, limit=10) == [
        KnownUser("acme", "alice", later(-20), None),
        KnownUser("acme", "bob", later(-10), None),
    ]
    assert await directory.users("other", after=None, limit=10) == [
        KnownUser("other", "alice", later(-5), None)
    ]


async def test_who_has_joined_is_known(store: Store, directory: Directory) -> None:
    """Since then if they were never notified; the latest join counts, whatever the order in which servers report."""
    await put(store, "alice", "acme", created_at=later(-20))
    await directory.note_users(
        {("acme", "alice"): later(10), ("acme", "bob"): later(11), ("other", "bob"): later(30)}
    )
    await directory.note_users({("acme", "alice"): later(5), ("acme", "bob"): later(20)})
    await directory.note_users({})
    await put(store, "bob", "acme", created_at=later(40))
    assert await directory.users("acme", after=None, limit=10) == [
        KnownUser("acme", "alice", later(-20), later(10)),
        KnownUser("acme", "bob", later(11), later(20)),
    ]


async def test_many_join_at_once(directory: Directory) -> None:
    """As after a restart."""
    await directory.note_users({("acme", f"{number:05}"): later(number - 3600) for number in range(3000)})
    assert len(await directory.users("acme", after=None, limit=5000)) == 3000
    [last] = await directory.users("acme", after="02998", limit=10)
    assert last == KnownUser("acme", "02999", later(2999 - 3600), later(2999 - 3600))


async def test_users_come_page_by_page(store: Store, directory: Directory) -> None:
    """In the order of their ids' code points; `after` need not be a user."""
    ids = ["", "A", "a", "a\0", "a b", "aa", "ä", "ﬀ", "😀", "10", "9", "$x", "a.b"]
    await store.add(make_notification("acme"), [Recipient(id_) for id_ in ids], None)
    await put(store, "aaa", "other")
    pages, after = [], None
    while page := await directory.users("acme", after=after, limit=4):
        pages.append([user.user_id for user in page])
        after = pages[-1][-1]
    assert sum(pages, []) == sorted(ids)
    assert [len(page) for page in pages] == [4, 4, 4, 1]
    beyond = await directory.users("acme", after="aaa", limit=1)
    assert [user.user_id for user in beyond] == ["ä"]
    assert await directory.users("nobody", after=None, limit=4) == []


# -- signing out ---------------------------------------------------------------------------------------------


async def test_since_when_a_user_is_known(directory: Directory) -> None:
    """Since they joined first; nobody else of the same id in another tenant."""
    await add_tenant(directory, "acme")
    assert await directory.known_since("acme", "alice") is None
    await directory.note_users({("acme", "alice"): later(5)})
    await directory.note_users({("acme", "alice"): later(9)})
    assert await directory.known_since("acme", "alice") == later(5)
    assert await directory.known_since("default", "alice") is None


async def test_the_last_sign_out_of_each_user_counts(directory: Directory) -> None:
    """Each that is written down is later than those before it, whatever the clock of its writer says."""
    for seconds in (5, 9, 7):
        await directory.sign_out("acme", "alice", later(seconds))
    await directory.sign_out("acme", "bob", later(1))
    await directory.sign_out("other", "alice", later(2))
    assert await sign_outs(directory) == [
        SignOut("acme", "alice", later(9) + STEP),
        SignOut("acme", "bob", later(1)),
        SignOut("other", "alice", later(2)),
    ]


async def test_whoever_is_signed_out(directory: Directory) -> None:
    """Whatever they are called."""
    users = ["", "$x", "$$NOW", "a.b", "a\0", "😀", "x" * 1024]
    for user in users:
        await directory.sign_out("acme", user, AT)
    assert sorted(each.user_id for each in await sign_outs(directory)) == sorted(users)


@pytest.mark.parametrize("limit", [1, 3, 4, 1000])
async def test_sign_outs_come_page_by_page(limit: int, directory: Directory) -> None:
    """However large the pages are, and also if a page ends where all do; another time nothing is left but what may be
    in doubt."""
    expected = []
    for number in range(12):
        tenant, user_id = f"tenant-{number % 3}", f"user-{number:02}"
        await directory.sign_out(tenant, user_id, later(number))
        expected.append(SignOut(tenant, user_id, later(number)))
    found, after = await read_sign_outs(directory, limit=limit)
    assert sorted(found, key=str) == sorted(expected, key=str)
    again, _ = await read_sign_outs(directory, after, limit)
    assert set(again) <= set(expected)


async def test_new_sign_outs_come_after_the_cursor(directory: Directory, beside: Directory) -> None:
    """Made by whichever side, of users who are new or were signed out before; at whatever time they are said to be."""
    for number in range(5):
        await directory.sign_out("acme", f"user-{number}", AT)
    _, after = await read_sign_outs(directory)
    for side, user_id, at in (
        (directory, "new", later(-86400)),
        (beside, "user-0", later(5)),
        (directory, "user-4", later(86400)),
    ):
        await side.sign_out("acme", user_id, at)
        found, after = await read_sign_outs(directory, after)
        assert SignOut("acme", user_id, at) in found


async def test_who_is_signed_out_while_all_are_read_is_not_missed(directory: Directory) -> None:
    """Whether the reading has passed that user or not."""
    for number in range(6):
        await directory.sign_out("acme", f"user-{number}", AT)
    page = await directory.sign_outs(None, 3)
    passed = page.sign_outs[0].user_id
    [ahead] = (
        {f"user-{number}" for number in range(6)}
        - {each.user_id for each in page.sign_outs}
        - {
            "user-4",
            "user-5",
        }
    )
    for user_id in (passed, ahead):
        await directory.sign_out("acme", user_id, later(1))
    rest, after = await read_sign_outs(directory, page.cursor, 3)
    new, _ = await read_sign_outs(directory, after, 3)
    found = {*rest, *new}
    assert {SignOut("acme", passed, later(1)), SignOut("acme", ahead, later(1))} <= found


async def test_reading_goes_on_while_many_are_signed_out(directory: Directory, beside: Directory) -> None:
    """By both sides: whoever goes from cursor to cursor ends with all of them."""
    seen: set[SignOut] = set()

    async def sign_out(side: Directory, tenant: str) -> None:
        for number in range(40):
            await side.sign_out(tenant, f"user-{number % 30}", later(number))

    writing = asyncio.gather(sign_out(directory, "acme"), sign_out(beside, "other"))
    found, after = await read_sign_outs(directory)
    while True:
        is_over = writing.done()
        seen.update(found)
        if is_over:
            break
        found, after = await read_sign_outs(directory, after, 7)
    found, _ = await read_sign_outs(directory, after, 7)
    await writing
    assert set(await sign_outs(directory)) <= seen | set(found)
    assert len(seen | set(found)) >= 60


async def test_old_sign_outs_are_forgotten(directory: Directory) -> None:
    """Those from before the instant only."""
    for seconds, user_id in enumerate(("alice", "bob", "carol")):
        await directory.sign_out("acme", user_id, later(seconds))
    await directory.forget_sign_outs(later(1))
    assert [each.user_id for each in await sign_outs(directory)] == ["bob", "carol"]


async def test_very_many_old_sign_outs_are_forgotten(directory: Directory) -> None:
    """However many those are."""
    for start in range(0, 2500, 100):  # not all at once: that would be a test of how long the store may take
        users = (f"user-{number}" for number in range(start, start + 100))
        await asyncio.gather(*(directory.sign_out("acme", user, AT) for user in users))
    await directory.sign_out("acme", "last", later(1))
    await directory.forget_sign_outs(later(1))
    assert [each.user_id for each in await sign_outs(directory)] == ["last"]


# -- signing secrets -----------------------------------------------------------------------------------------


def in_(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


def make_secret(created_at: datetime) -> SigningSecret:
    return SigningSecret(new_id(), new_secret(), created_at)


async def test_the_newest_secret_comes_first(directory: Directory) -> None:
    """The others are good until they retire, and never longer than was said before."""
    [first] = (await directory.access()).secrets
    second, third = make_secret(in_(10)), make_secret(in_(20))
    soon, late = in_(1000), in_(2000)
    await directory.add_secret(second, retire_others_at=soon)
    await directory.add_secret(third, retire_others_at=late)
    assert (await directory.access()).secrets == (
        third,
        replace(second, retired_at=late),
        replace(first, retired_at=soon),
    )


async def test_a_secret_added_later_is_the_newest(directory: Directory) -> None:
    """Even if made in the same millisecond."""
    at = in_(10)
    secrets = [make_secret(at) for _ in range(5)]
    for secret in secrets:
        await directory.add_secret(secret, retire_others_at=in_(1000))
    assert [secret.id for secret in (await directory.access()).secrets[:5]] == [
        secret.id for secret in secrets[::-1]
    ]


async def test_a_retired_secret_is_gone(directory: Directory) -> None:
    """Also if its end is set to an earlier time than before."""
    second, third = make_secret(in_(10)), make_secret(in_(20))
    await directory.add_secret(second, retire_others_at=in_(1000))
    await directory.add_secret(third, retire_others_at=in_(-1))
    assert (await directory.access()).secrets == (third,)
