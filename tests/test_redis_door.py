"""The door of Redis: the real Redis, which is killed, frozen and secured; the clients that backends use."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from server import tasks as tasks_module
from server.checks import Trouble
from server.config.brokers import RedisHub
from server.errors import Busy, InProgress
from server.grants import DEFAULT_TENANT
from server.ingest import consumer
from server.ingest.consumer import Lease
from server.ingest.redis import RedisDoor
from server.redis_client import TURN
from server.store import Store
from server.tasks import Tasks
from tests.support.certificates import CertificateAuthority
from tests.support.consuming import (
    LIMITS,
    MAX_MESSAGE_BYTES,
    STOP_S,
    Behind,
    Heard,
    MemoryLeases,
    open_behind,
    quickly,
    running,
    said,
    until_said,
)
from tests.support.core import FragileStore
from tests.support.redis_server import RedisServer

GOOD = {"type": "notification", "payload": {"title": "New Order", "message": "You have a new order"}}


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with open_behind(tmp_path) as behind:
        yield behind


class Hub:
    """A Redis, and doors to it, with a prefix of this test's own."""

    def __init__(self, behind: Behind, server: RedisServer) -> None:
        self.behind = behind
        self.server = server
        self.leases = MemoryLeases()
        self.prefix = f"test_{uuid.uuid4().hex[:8]}"

    def door(self, *, holder: str = "us", lease_s: float = 30, **fields: Any) -> RedisDoor:
        record = RedisHub(**{"url": self.server.url(), "prefix": self.prefix, "timeout_s": 5.0} | fields)
        return RedisDoor(
            record,
            self.behind.notifier,
            Lease(self.leases, "redis", holder, lease_s),
            limits=LIMITS,
            max_message_bytes=MAX_MESSAGE_BYTES,
            online=self.behind.who_is_online,
            backoff=quickly(),
        )

    async def publish_one(self) -> None:
        """To alice, again until there is a subscriber."""
        while not self.server.publish(f"{self.prefix}:alice", json.dumps(GOOD)):  # noqa: ASYNC110  # Redis tells nobody
            await asyncio.sleep(0.01)

    async def publish(self, user: str | bytes, *messages: Any) -> None:
        """JSON values, or bytes as they are; to whoever is subscribed."""
        async with Redis.from_url(self.server.url(), protocol=2) as client:
            channel = f"{self.prefix}:".encode() + (user.encode() if isinstance(user, str) else user)
            for message in messages:
                await client.publish(channel, message if isinstance(message, bytes) else json.dumps(message))


@pytest.fixture
def hub(behind: Behind, redis_server: RedisServer) -> Hub:
    return Hub(behind, redis_server)


@pytest.fixture
def own_hub(behind: Behind, own_redis_server: RedisServer) -> Hub:
    return Hub(behind, own_redis_server)


# -- publishing ----------------------------------------------------------------------------------------------
async def test_a_message_becomes_a_notification(hub: Hub) -> None:
    """As the channel and the payload say it."""
    async with running(hub.behind, hub.door()) as heard:
        hub.server.publish(f"{hub.prefix}:alice", json.dumps(GOOD))
        await heard.stored(1)
    [document] = await hub.behind.inbox("alice")
    notification = document.notification
    assert (notification.type, notification.data) == ("notification", GOOD["payload"])
    assert (notification.title, notification.content) == ("New Order", "You have a new order")
    assert (heard.received, heard.refused) == (1, [])


async def test_all_behind_the_first_colon_is_the_user(hub: Hub) -> None:
    """Also further colons, blanks and what is not ASCII."""
    async with running(hub.behind, hub.door()) as heard:
        for user in ("a:b:c", " x ", "Zoë", "7"):
            await hub.publish(user, GOOD)
        await heard.stored(4)
    assert sorted(heard.users) == sorted(["a:b:c", " x ", "Zoë", "7"])


async def test_a_message_with_an_idempotency_key_is_stored_once(hub: Hub) -> None:
    """However often it is published, to that user; the same key for another message is refused, as is what is no key.
    The payload stays as it is."""
    keyed = {**GOOD, "idempotency_key": "order-7"}
    async with running(hub.behind, hub.door()) as heard:
        await hub.publish("alice", keyed, keyed, keyed)
        await hub.publish("alice", {**keyed, "payload": {"title": "Another"}})
        await hub.publish("alice", {**GOOD, "idempotency_key": "no key"}, {**GOOD, "idempotency_key": 7})
        await heard.refusals(3)
        await hub.publish("alice", GOOD)
        await heard.stored(2)
    assert heard.refused == ["idempotency_key_reused", "invalid", "invalid"]
    documents = await hub.behind.inbox("alice")
    assert [document.notification.data for document in documents] == [GOOD["payload"]] * 2


async def test_a_keyed_message_survives_a_store_that_is_away(hub: Hub) -> None:
    """It is tried until it is stored, once."""
    async with running(hub.behind, hub.door()) as heard:
        hub.behind.store.goes_away()
        await hub.publish("alice", {**GOOD, "idempotency_key": "key"})
        await hub.behind.store.failed.get()
        hub.behind.store.failure = InProgress()
        await hub.behind.store.failed.get()
        hub.behind.store.is_back()
        await heard.stored(1)
    assert len(await hub.behind.inbox("alice")) == 1
    assert heard.refused == []


async def test_a_server_that_is_busy_loses_nothing(hub: Hub) -> None:
    """What it cannot take for the moment is tried again."""
    async with running(hub.behind, hub.door()) as heard:
        hub.behind.store.failure = Busy("full")
        await hub.publish("alice", GOOD)
        await hub.behind.store.failed.get()
        hub.behind.store.is_back()
        await heard.stored(1)
    assert heard.refused == []


async def test_other_channels_are_not_listened_to(hub: Hub) -> None:
    """Neither a longer prefix nor the bare one."""
    async with running(hub.behind, hub.door()) as heard:
        assert hub.server.publish(hub.prefix, "{}") == 0
        assert hub.server.publish(f"x{hub.prefix}:alice", "{}") == 0
        await hub.publish("alice", GOOD)
        await heard.stored(1)
    assert heard.received == 1


async def test_users_messages_keep_their_order(hub: Hub) -> None:
    """Whatever else is stored at the same time."""
    async with running(hub.behind, hub.door()) as heard:
        for number in range(100):
            for user in ("ann", "bob", "cy"):
                await hub.publish(user, {"payload": {"body": f"{user} {number}"}})
        await heard.stored(300)
    for user in ("ann", "bob", "cy"):
        mine = [content for content in heard.contents if content.startswith(user)]
        assert mine == [f"{user} {number}" for number in range(100)]


async def test_who_is_offline_finds_it_later(hub: Hub) -> None:
    """Nobody has to be connected."""
    async with running(hub.behind, hub.door()) as heard:
        await hub.publish("bob", GOOD)
        await heard.stored(1)
    assert len(await hub.behind.inbox("bob")) == 1


async def test_who_is_offline_may_be_skipped(hub: Hub) -> None:
    """With the switch that does as the original did."""
    hub.behind.online.add("alice")
    async with running(hub.behind, hub.door(skip_offline=True)) as heard:
        await hub.publish("bob", GOOD)
        await hub.publish("alice", GOOD)
        await heard.stored(1)
        await heard.refusals(1)
    assert (heard.users, heard.refused) == (["alice"], ["offline"])


# -- what is wrong -------------------------------------------------------------------------------------------
BAD = {
    b"": "invalid",
    b"hello": "invalid",
    b"[]": "invalid",
    b'"text"': "invalid",
    b"null": "invalid",
    b'{"type": 7}': "invalid",
    b'{"payload": NaN}': "invalid",
    b'{"payload": 1e999}': "invalid",
    b'{"payload": ' + b"9" * 4999 + b"}": "too_large",
    b'{"payload": ' + b"9" * 4400 + b"}": "invalid",
    b'{"payload": "\\ud800"}': "invalid",
    b'{"payload": "\xff"}': "invalid",
    '{"payload": 1}'.encode("utf-16"): "invalid",
    b"[" * 4000: "invalid",
    b'{"payload": ' + b"[" * 2000 + b"]" * 2000 + b"}": "invalid",
    b'{"payload": "' + b"x" * 3000 + b'"}': "too_large",
    b"x" * 100_000: "too_large",
}


@pytest.mark.parametrize(("message", "code"), BAD.items(), ids=range(len(BAD)))
async def test_a_bad_message_is_skipped(
    hub: Hub, message: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, and logged without its content; the next one is taken."""
    caplog.set_level(logging.INFO)
    async with running(hub.behind, hub.door()) as heard:
        await hub.publish("alice", message, {"payload": {"body": "good"}})
        await heard.stored(1)
    assert (heard.refused, heard.contents) == ([code], ["good"])
    [line] = [line for line in said(caplog) if line.startswith("redis: skipped a message: ")]
    assert "xxxx" not in line and "9999" not in line and "hello" not in line


@pytest.mark.parametrize("user", ["", b"\xff", "x" * 1025], ids=["none", "not UTF-8", "too long"])
async def test_a_channel_that_names_no_user_is_skipped(hub: Hub, user: str | bytes) -> None:
    """As a bad message is."""
    async with running(hub.behind, hub.door()) as heard:
        await hub.publish(user, GOOD)
        await heard.refusals(1)
        await hub.publish("alice", GOOD)
        await heard.stored(1)
    assert heard.users == ["alice"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
messages = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({}, optional={"type": json_values, "payload": json_values}).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
)


async def test_nothing_that_is_published_ends_the_door(hub: Hub) -> None:
    """Every message is stored or refused, and counted once."""
    loop = asyncio.get_running_loop()
    async with running(hub.behind, hub.door()) as heard:

        async def check(user: bytes, body: bytes) -> None:
            before = len(heard.contents) + len(heard.refused)
            await hub.publish(user, body)
            await heard.until(lambda: len(heard.contents) + len(heard.refused) > before)
            assert heard.received == before + 1 == len(heard.contents) + len(heard.refused)

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from([b"alice", b"a:b", b"\xff\xfe", b"*"]), messages)
        def examples(user: bytes, body: bytes) -> None:
            asyncio.run_coroutine_threadsafe(check(user, body), loop).result(60)

        await asyncio.to_thread(examples)
        await hub.publish("alice", {"payload": {"body": "still here"}})
        await heard.until(lambda: "still here" in heard.contents)


# -- Redis goes and comes ------------------------------------------------------------------------------------
async def test_a_killed_redis_is_waited_for(own_hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """For ever; the log says each change once, health what is wrong, and the signal when."""
    caplog.set_level(logging.INFO)
    door = own_hub.door()
    place = f"Redis at 127.0.0.1:{own_hub.server.port}"
    async with running(own_hub.behind, door) as heard:
        await door.probe()
        own_hub.server.kill()
        await heard.down()
        with pytest.raises(Trouble, match="^not connected$"):
            await door.probe()
        await until_said(caplog, "Connection refused")
        await asyncio.sleep(0.5)  # several tries, of which nothing more is said
        await asyncio.to_thread(own_hub.server.start)
        await heard.up()
        await door.probe()
        await own_hub.publish("alice", GOOD)
        await heard.stored(1)
    assert heard.ups == [True, False, True, False]
    consuming, lost, refused, again = said(caplog)
    assert consuming == again == f"redis: consuming from {place}"
    assert lost.startswith(f"redis: not consuming from {place}: ") and lost.endswith("; trying again")
    assert refused == f"redis: not consuming from {place}: Connection refused; trying again"


async def test_a_redis_that_is_away_at_first_is_waited_for(own_hub: Hub) -> None:
    """The door needs nobody to be there when it begins."""
    own_hub.server.kill()
    async with running(own_hub.behind, own_hub.door(), is_awaited=False) as heard:
        await asyncio.to_thread(own_hub.server.start)
        await heard.up()
        await own_hub.publish("alice", GOOD)
        await heard.stored(1)


async def test_a_short_freeze_loses_nothing(own_hub: Hub) -> None:
    """The connection is kept; health says that there is no answer."""
    door = own_hub.door(timeout_s=30.0)
    async with running(own_hub.behind, door) as heard:
        own_hub.server.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await door.probe()
        own_hub.server.thaw()
        await own_hub.publish("alice", GOOD)
        await heard.stored(1)
        await door.probe()
    assert heard.ups == [True, False]


async def test_who_asks_as_the_connection_ends_is_told(own_hub: Hub) -> None:
    """And does not wait for an answer that never comes."""
    door = own_hub.door(timeout_s=30.0)
    async with running(own_hub.behind, door):
        own_hub.server.freeze()
        asking = asyncio.create_task(door.probe())
        await asyncio.sleep(0)
        own_hub.server.kill()
        async with asyncio.timeout(20):
            with pytest.raises(Trouble, match="^not connected$"):
                await asking


async def test_a_silent_redis_is_left(own_hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """Who does not answer when asked is as good as gone; it is tried again until it is back."""
    async with running(own_hub.behind, own_hub.door(timeout_s=0.2)) as heard:
        own_hub.server.freeze()
        await heard.down()
        own_hub.server.thaw()
        await heard.up()
        await own_hub.publish("alice", GOOD)
        await heard.stored(1)
    assert any("no answer within 0.2 s" in line for line in said(caplog))


async def test_silence_is_no_reason_to_leave(own_hub: Hub) -> None:
    """Who has nothing to say is asked now and then, and answers."""
    async with running(own_hub.behind, own_hub.door(timeout_s=0.1)) as heard:
        async with Redis.from_url(own_hub.server.url(), protocol=2) as client:
            stats = {"cmdstat_ping": {"calls": 0}}
            while stats["cmdstat_ping"]["calls"] < 5:
                await asyncio.sleep(0.05)
                stats |= await client.info("commandstats")
    assert heard.ups == [True, False]


async def test_messages_without_end_leave_time_for_others(own_hub: Hub) -> None:
    """A full socket is read without waiting, and the loop has its turns all the same."""
    door = own_hub.door(buffer_messages=1_000_000, buffer_bytes=1024 * 1024 * 1024)
    read_in_a_turn: list[int] = []

    async def count(heard: Heard) -> None:
        while True:
            before = heard.received
            await asyncio.sleep(0)
            read_in_a_turn.append(heard.received - before)

    async with running(own_hub.behind, door) as heard:
        own_hub.server.freeze()
        script = "for i = 1, 2000 do redis.call('PUBLISH', KEYS[1], ARGV[1]) end"
        argv = ("EVAL", script, "1", f"{own_hub.prefix}:alice", json.dumps(GOOD))
        publishing = asyncio.create_task(asyncio.to_thread(own_hub.server.run, *argv))
        counting = asyncio.create_task(count(heard))
        own_hub.server.thaw()
        await publishing
        await heard.got(2000)
        counting.cancel()
        assert sum(read_in_a_turn) >= 2000 - TURN
        assert max(read_in_a_turn) <= 2 * TURN
        await heard.stored(2000)


# -- security ------------------------------------------------------------------------------------------------
@pytest.mark.servers
async def test_a_password_is_sent(behind: Behind, caplog: pytest.LogCaptureFixture) -> None:
    """From the address or by itself; a wrong one is said, without being repeated."""
    with RedisServer(password="a b:c/ü%") as server:
        hub = Hub(behind, server)
        address = f"redis://127.0.0.1:{server.port}"
        for fields in (
            {"url": f"{address}/", "password": "a b:c/ü%"},
            {"url": f"redis://:a%20b%3Ac%2F%C3%BC%25@127.0.0.1:{server.port}"},
        ):
            async with running(behind, hub.door(**fields)):
                pass
        caplog.clear()
        for wrong in ({}, {"password": "wr0ng"}):
            door = hub.door(url=address, **wrong)
            async with running(behind, door, is_awaited=False):
                await until_said(caplog)
                with pytest.raises(Trouble, match="^access is refused$"):
                    await door.probe()
            assert "wr0ng" not in caplog.text
            assert "uthentication" in caplog.text or "invalid" in caplog.text
            caplog.clear()


@pytest.mark.servers
async def test_tls_is_verified(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the authorities of `ca`, or of the system."""
    authority = CertificateAuthority(tmp_path / "ca")
    with RedisServer(tls=(authority, authority.server_pair())) as server:
        hub = Hub(behind, server)
        async with running(behind, hub.door(ca=authority.ca_file)) as heard:
            server.publish(f"{hub.prefix}:alice", json.dumps(GOOD))
            await heard.stored(1)
        caplog.clear()
        async with running(behind, hub.door(), is_awaited=False):
            await until_said(caplog)
        assert "certificate" in caplog.text.lower()


async def test_a_database_that_is_not_there_is_said(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """One that is there is used."""
    async with running(hub.behind, hub.door(url=hub.server.url(3))):
        pass
    caplog.clear()
    async with running(hub.behind, hub.door(url=hub.server.url(99)), is_awaited=False):
        await until_said(caplog)
    assert "DB index is out of range" in caplog.text


# -- the store goes and comes --------------------------------------------------------------------------------
async def test_messages_wait_for_the_store(hub: Hub) -> None:
    """In their order, none missing and none twice."""
    door = hub.door()
    async with running(hub.behind, door) as heard:
        hub.behind.store.goes_away()
        await hub.publish("alice", *({"payload": {"body": str(number)}} for number in range(20)))
        await heard.got(20)
        await hub.behind.store.failed.get()
        assert door.waiting == 20
        hub.behind.store.is_back()
        await heard.stored(20)
    assert heard.contents == [str(number) for number in range(20)]
    assert heard.refused == []


@pytest.mark.parametrize(
    "bound", [{"buffer_messages": 5}, {"buffer_bytes": 5 * (40 + len("test_01234567:alice"))}]
)
async def test_what_the_buffer_cannot_hold_is_dropped(
    hub: Hub, bound: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The newest; counted, and said once, with their number when it is over."""
    caplog.set_level(logging.INFO)
    async with running(hub.behind, hub.door(**bound)) as heard:
        hub.behind.store.goes_away()
        bodies = [b'{"payload": {"body": "number %8d"}}' % number for number in range(8)]
        assert {len(body) for body in bodies} == {40}
        await hub.publish("alice", *bodies)
        await heard.refusals(3)
        hub.behind.store.is_back()
        await heard.stored(5)
        await hub.publish("alice", GOOD)
        await heard.stored(6)
    assert heard.refused == ["dropped"] * 3
    assert heard.contents[:5] == [f"number {number:8d}" for number in range(5)]
    assert [line for line in said(caplog) if "dropped" in line] == [
        "redis: messages are dropped: the store is away, and the buffer is full",
        "redis: messages are stored again; 3 were dropped",
    ]


async def test_what_is_stored_leaves_the_buffer(hub: Hub) -> None:
    """Its bytes are free for others; and an empty one takes any message."""
    size = len(f"{hub.prefix}:alice") + len(json.dumps(GOOD))
    async with running(hub.behind, hub.door(buffer_bytes=2 * size)) as heard:
        for count in range(1, 6):
            await hub.publish("alice", GOOD)
            await heard.stored(count)
        await hub.publish("alice", {**GOOD, "ignored": "x" * 2 * size})
        await heard.stored(6)
        hub.behind.store.goes_away()
        await hub.publish("alice", GOOD, GOOD)
        await heard.got(8)
        hub.behind.store.is_back()
        await heard.stored(8)
    assert heard.refused == []


async def test_what_is_too_large_takes_no_place_in_the_buffer(hub: Hub) -> None:
    """Neither by its body nor by the name of its channel: what comes behind it is stored."""
    async with running(hub.behind, hub.door(buffer_bytes=8000)) as heard:
        hub.behind.store.goes_away()
        await hub.publish("alice", GOOD, b"x" * 20_000)
        await hub.publish("x" * 20_000, GOOD)
        await hub.publish("alice", GOOD)
        await heard.got(4)
        hub.behind.store.is_back()
        await heard.stored(2)
    assert heard.refused == ["too_large", "too_large"]


async def test_names_of_channels_count_in_the_buffer(hub: Hub) -> None:
    """They may be as long as messages."""
    async with running(hub.behind, hub.door(buffer_bytes=500)) as heard:
        hub.behind.store.goes_away()
        for number in range(3):
            await hub.publish(f"{number}" * 200, {})
        await heard.got(3)
        assert heard.refused == ["dropped"]
        hub.behind.store.is_back()
        await heard.stored(2)


async def test_what_nobody_foresaw_is_counted(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """And said; the next message is stored."""
    async with running(hub.behind, hub.door()) as heard:
        hub.behind.store.failure = ZeroDivisionError()
        await hub.publish("alice", GOOD)
        await heard.refusals(1)
        hub.behind.store.is_back()
        await hub.publish("alice", GOOD)
        await heard.stored(1)
    assert heard.refused == ["internal"]
    assert caplog.text.count("ZeroDivisionError") == 1


async def test_a_stop_stores_what_was_received(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """And fetches nothing more. Not before may another one fetch, who would store a user's next message before those
    that wait here."""
    stored: list[int] = []
    give_back = hub.leases.give_back

    async def count_first(name: str, holder: str) -> None:
        stored.append(len(heard.contents))
        await give_back(name, holder)

    monkeypatch.setattr(hub.leases, "give_back", count_first)
    async with running(hub.behind, hub.door()) as heard:
        gate = hub.behind.store.hold("add")
        await hub.publish("alice", GOOD, GOOD)
        await gate.reached()
        await heard.got(2)
        asyncio.get_running_loop().call_later(0.1, gate.open)  # during the stop, with which this ends
    assert stored == [2]
    assert hub.server.publish(f"{hub.prefix}:alice", "{}") == 0


async def test_a_stop_ends_though_the_store_is_away(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """After its time, with a word about what is lost."""
    door = hub.door()
    task = asyncio.create_task(door.run())
    hub.behind.store.goes_away()
    await hub.publish_one()
    await hub.behind.store.failed.get()
    await door.stop(0.1)
    task.cancel()
    await asyncio.wait([task])
    assert "1 messages could not be stored in time" in caplog.text
    assert not hub.leases.held


async def test_it_comes_back_though_a_cancellation_gets_lost(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the connection breaks while the lease is renewed."""
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN_S", 0.01)
    leases = FragileStore(cast("Store", hub.leases))
    hub.leases = cast("MemoryLeases", leases)
    async with running(hub.behind, hub.door(lease_s=0.3)) as heard:
        gate = leases.hold("take", loses_cancellation=True)
        await gate.reached()
        hub.server.run("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(30):
            await gate.has_lost.wait()
            gate.open()
            await hub.publish_one()
        await heard.stored(1)


async def test_nothing_of_it_is_left_though_a_cancellation_gets_lost(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a message is stored."""
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN_S", 0.01)
    tasks, before = Tasks(), asyncio.all_tasks()
    gate = hub.behind.store.hold("add", loses_cancellation=True)
    tasks.start(hub.door().run(), "redis")
    await hub.publish_one()
    await hub.publish("alice", GOOD)
    await gate.reached()
    async with asyncio.timeout(30):
        await tasks.cancel()
    assert gate.has_lost.is_set()
    assert asyncio.all_tasks() <= before


# -- the lease -----------------------------------------------------------------------------------------------
async def test_one_of_many_consumes(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """The next one takes over when it stops, and says so; waiting for that is no trouble."""
    caplog.set_level(logging.INFO)
    first, second = hub.door(holder="first"), hub.door(holder="second", lease_s=0.3)
    async with running(hub.behind, first) as heard:
        waiting = asyncio.create_task(second.run())
        await until_said(caplog, "another process consumes")
        await second.probe()
        await hub.publish("alice", GOOD)
        await heard.stored(1)
    await hub.publish_one()
    await second.stop(STOP_S)
    await waiting
    assert len(await hub.behind.inbox("alice")) == 2


async def test_a_lease_that_was_given_back_is_soon_taken_up(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However seldom it has to be renewed: nobody listens meanwhile."""
    monkeypatch.setattr(consumer, "STANDBY_S", 0.01)
    caplog.set_level(logging.INFO)
    first, second = (hub.door(holder=holder, lease_s=1e6) for holder in ("first", "second"))
    async with running(hub.behind, first):
        waiting = asyncio.create_task(second.run())
        await until_said(caplog, "another process consumes")
    await hub.publish_one()
    await second.stop(STOP_S)
    await waiting
    assert len(await hub.behind.inbox("alice")) == 1


async def test_who_loses_the_lease_stops(hub: Hub) -> None:
    """And takes up again when it is free."""
    async with running(hub.behind, hub.door(lease_s=0.3)) as heard:
        hub.leases.give_to("redis", "other")
        await heard.down()
        assert hub.server.publish(f"{hub.prefix}:alice", json.dumps(GOOD)) == 0
        hub.leases.held.clear()
        await heard.up()
        await hub.publish("alice", GOOD)
        await heard.stored(1)


async def test_nothing_is_stored_for_a_tenant_that_is_gone(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one of its name would see it. The door says so, and waits for one."""
    async with running(hub.behind, hub.door(lease_s=0.3)) as heard:
        hub.behind.tenants.clear()
        await hub.publish("alice", GOOD)
        await heard.refusals(1)
        await heard.down()
        await until_said(caplog, "there is no tenant 'default'")
        hub.behind.tenants.add(DEFAULT_TENANT)
        await heard.up()
        await hub.publish("alice", GOOD)
        await heard.stored(1)
    assert heard.refused == ["dropped"]
    assert len(await hub.behind.inbox("alice")) == 1


async def test_a_store_that_is_away_takes_no_lease(hub: Hub) -> None:
    """Nobody else can get it either: what comes is kept, and stored when the store is back."""
    async with running(hub.behind, hub.door(lease_s=0.1)) as heard:
        hub.leases.is_away = True
        hub.behind.store.goes_away()
        await asyncio.sleep(0.3)  # the lease runs out
        await hub.publish("alice", GOOD)
        await hub.behind.store.failed.get()
        hub.behind.store.is_back()
        hub.leases.is_away = False
        await heard.stored(1)
    assert heard.refused == []


async def test_who_cannot_ask_for_the_lease_says_so(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody consumes then, and neither log nor health says that somebody did."""
    caplog.set_level(logging.INFO)
    hub.leases.is_away = True
    door = hub.door()
    async with running(hub.behind, door, is_awaited=False) as heard:
        await until_said(caplog, "not consuming")
        with pytest.raises(Trouble, match="^the store is away$"):
            await door.probe()
        hub.leases.is_away = False
        await heard.up()
    assert "another process" not in caplog.text


async def test_what_another_one_has_is_not_stored_twice(hub: Hub) -> None:
    """What came while we could not know whose it was is theirs, if they have the lease now."""
    async with running(hub.behind, hub.door(lease_s=0.2)) as heard:
        hub.leases.is_away = True
        hub.behind.store.goes_away()
        await asyncio.sleep(0.3)  # the lease runs out
        await hub.publish("alice", GOOD)
        await hub.behind.store.failed.get()
        hub.leases.give_to("redis", "other")
        hub.leases.is_away = False
        hub.behind.store.is_back()
        await heard.refusals(1)
        await heard.down()
    assert (heard.refused, heard.contents) == (["dropped"], [])


async def test_the_lease_is_given_back(hub: Hub) -> None:
    """So that the next one need not wait for its end."""
    async with running(hub.behind, hub.door()):
        assert hub.leases.held["redis"][0] == "us"
    assert not hub.leases.held
