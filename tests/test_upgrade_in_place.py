"""A store that the version before this one left is brought up where it is: everything is there, and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.grants import DEFAULT_TENANT
from server.messages import Recipient
from server.store import HUB, MailOutcome, MailState, Once, Store
from tests.support.client_v2 import ClientV2, client_v2
from tests.support.feeds import SETTINGS
from tests.support.old_stores import as_written, put_old_store
from tests.support.running_server import RunningServer
from tests.support.stores import MongoPlace, Place, SQLitePlace, make_notification, put, whole_inbox


@pytest.fixture
def old(place: Place) -> dict[str, Any]:
    """What was at `place` before."""
    return put_old_store(place)


async def open_store(place: Place) -> Store:
    # What is half stored is completed when it is older than any time-out.
    store = place.store(timeout_s=3)
    await store.open()
    return store


async def test_everything_is_still_there(place: Place, old: dict[str, Any]) -> None:
    """Inboxes with their revs, users, tenants, keys, secrets, sign-outs, deliveries and mail: as it was read before."""
    for _ in range(2):
        store = await open_store(place)
        for inbox, documents in old["inboxes"].items():
            tenant, user_id = inbox.split()
            assert as_written(await whole_inbox(store, user_id, tenant)) == documents
            changes = await store.changes(tenant, user_id, after=(0, ""), limit=100)
            assert as_written(changes) == old["changes"][inbox]
            [counts] = (await store.counts(tenant, [user_id])).values()
            assert (counts.total, counts.unseen) == (
                len(documents),
                sum(not document["seen"] for document in documents),
            )
        for tenant, users in old["users"].items():
            assert [
                each.user_id for each in await store.directory.users(tenant, after=None, limit=9)
            ] == users
        directory = store.directory
        access = await directory.access()
        assert [tenant.name for tenant in await directory.tenants()] == old["tenants"]
        assert [tenant.name for tenant in access.tenants] == old["active"]
        assert as_written(await directory.keys()) == old["keys"]
        assert as_written(access.secrets) == old["secrets"]
        assert as_written((await directory.sign_outs(None, 9)).sign_outs) == old["sign_outs"]
        backlog = await store.deliveries.backlog(
            DEFAULT_TENANT, "alice", HUB, since=None, after=None, limit=99
        )
        assert [each.id for each in backlog] == old["backlog"]
        deliveries = await store.deliveries.of_notification(
            DEFAULT_TENANT, old["delivery_nid"], after=None, limit=9
        )
        assert as_written(deliveries) == old["delivery"]
        assert as_written(await store.mail_counts()) == old["mail"]
        await store.close()


async def test_dead_letters_are_kept_with_their_reason(place: Place, old: dict[str, Any]) -> None:
    """As operators see them."""
    store = await open_store(place)
    dead = await store.outbox.entries(DEFAULT_TENANT, state=MailState.DEAD, limit=9)
    assert [(each.user_id, each.code) for each in dead] == [("bob", 550), ("bob", 550)]
    assert len(dead) == old["mail"]["refused"]
    await store.close()


async def test_what_was_under_way_goes_on(place: Place, old: dict[str, Any]) -> None:
    """What was half stored is completed, the broadcast comes to everybody, and each mail that was owed goes out."""
    store = await open_store(place)
    completed = {(each.user_id, each.notification.content) for each in await store.complete_intents()}
    is_mongo = isinstance(place, MongoPlace)
    assert completed == ({("gina", "half stored"), ("hugo", "half stored")} if is_mongo else set())
    broadcast = await store.broadcasts.claim(60)
    assert broadcast is not None
    assert broadcast.notification.content == "broadcast on its way"
    users = old["users"][DEFAULT_TENANT]
    new = await store.broadcasts.expand(broadcast.notification, users)
    assert [each.user_id for each in new] == [user_id for user_id in users if user_id != "bob"]
    assert await store.broadcasts.finish(broadcast)
    mailed = []
    for job in await store.claim_mail(60, 100):
        mailed += [recipient.user_id for recipient in job.recipients]
        assert await store.settle_mail(job, MailOutcome(sent=job.recipients))
    assert sorted(mailed) == ["carol", "carol", "fred", *(["gina"] if is_mongo else [])]
    assert (await store.mail_counts()).due == 0
    await store.close()


async def test_what_is_new_can_be_done_with_it(place: Place, old: dict[str, Any]) -> None:
    """Deletes are taken back, and seen becomes unseen; what is stored has higher revs; requests have their effect
    once."""
    store = await open_store(place)
    [tombstone] = [each for each in old["changes"]["default alice"] if each["deleted"]]
    [seen] = [each for each in old["changes"]["default alice"] if each["seen"]]
    await store.restore(DEFAULT_TENANT, "alice", [tombstone["id"]])
    await store.mark_unseen(DEFAULT_TENANT, "alice", [seen["id"]])
    [counts] = (await store.counts(DEFAULT_TENANT, ["alice"])).values()
    assert (counts.unseen, counts.total) == (6, 6)
    document = await put(store, "alice", DEFAULT_TENANT)
    last_rev = max(each["rev"] for changes in old["changes"].values() for each in changes)
    assert document.rev > last_rev
    once = Once("key", b"f" * 32, 60.0)
    for is_repeat in (False, True):
        stored = await store.add(make_notification(DEFAULT_TENANT), [Recipient("bob")], None, once)
        assert stored.is_repeat is is_repeat
    await store.close()


@pytest.fixture
def server(place: Place, tmp_path: Path) -> Iterator[RunningServer]:
    """Not started yet, on that store."""
    settings = dict(SETTINGS)
    if isinstance(place, MongoPlace):
        settings |= {"NOTIFY_MONGODB_URL": place.url, "NOTIFY_MONGODB_DB": place.db}
    else:
        assert isinstance(place, SQLitePlace)
        settings |= {"NOTIFY_APPLICATION_DATA": str(place.path.parent)}
    server = RunningServer(tmp_path, **settings)
    yield server
    if server.is_running:
        server.stop()


async def test_a_server_goes_on_with_it(place: Place, old: dict[str, Any], server: RunningServer) -> None:
    """Its users have their inboxes, catch up after a time away, and its keys are good."""
    server.start()
    async with client_v2(server, "fred") as client:
        model = client.model
        await heard_of(client, "mail in hand", "broadcast on its way")
    server.must_notify("fred", content="while away")
    server.restart()
    async with client_v2(server, "fred", model=model) as client:
        await client.sync()
        assert contents(client) == {"mail in hand", "broadcast on its way", "while away"}
        assert client.model.counts is not None
    sent = server.request(
        "POST",
        "/api/notifications/send/",
        b'{"user_id": "dora", "payload": {}}',
        {"Content-Type": "application/json", "X-API-Key": old["key"]},
    )
    assert sent.status == 200
    assert "ERROR" not in server.log


def contents(client: ClientV2) -> set[str]:
    return {each["content"] for each in client.model.documents.values() if not each["delete"]}


async def heard_of(client: ClientV2, *wanted: str) -> None:
    """Return when the client has these."""
    while contents(client) != set(wanted):
        await client.frame()
