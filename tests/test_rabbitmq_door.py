"""The door of RabbitMQ: the real broker, which is killed, frozen and out of memory, and pika as the backend."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import UnroutableError

from server import tasks as tasks_module
from server.checks import Trouble
from server.config.brokers import RabbitMQ
from server.errors import InProgress
from server.grants import DEFAULT_TENANT
from server.ingest.rabbitmq import RabbitDoor
from server.ingest.rabbitmq_link import open_link
from server.messages import Document
from server.parsers import parse_service
from server.store import Store
from server.tasks import Tasks
from tests.support.certificates import CertificateAuthority
from tests.support.consuming import (
    LIMITS,
    MAX_MESSAGE_BYTES,
    Behind,
    open_behind,
    quickly,
    running,
    said,
    until_said,
)
from tests.support.processes import Process
from tests.support.rabbitmq import RabbitMQServer

ROOT = Path(__file__).resolve().parents[1]

GOOD = {"user_id": 1, "payload": {"additionalProp1": "string", "title": "Hello"}}


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with open_behind(tmp_path) as behind:
        yield behind


class Broker:
    """A RabbitMQ, and doors to it, with an exchange and queues of this test's own."""

    def __init__(self, behind: Behind, server: RabbitMQServer, *, name: str | None = None) -> None:
        self.behind = behind
        self.server = server
        self.exchange = name or f"exchange_{uuid.uuid4().hex[:8]}"
        self.queue = f"queue_{self.exchange}"
        self.results = f"results_{self.exchange}"

    def door(self, **fields: Any) -> RabbitDoor:
        defaults = {"url": self.server.url, "exchange": self.exchange, "queue": self.queue, "timeout_s": 5.0}
        return RabbitDoor(
            RabbitMQ(**defaults | fields),
            self.behind.notifier,
            cast("Store", self.behind.store),
            limits=LIMITS,
            max_message_bytes=MAX_MESSAGE_BYTES,
            backoff=quickly(),
        )

    # -- a backend -------------------------------------------------------------------------------------------
    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """With the exchange, and a queue that gets the results."""
        with pika.BlockingConnection(pika.URLParameters(self.server.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(self.exchange, "direct")
            channel.queue_declare(self.results, durable=True)
            channel.queue_bind(self.results, self.exchange, "notifications.result")
            channel.confirm_delivery()
            yield channel

    def publish(self, *messages: Any, **properties: Any) -> None:
        """JSON values, or bytes as they are; durable when this returns. Raises UnroutableError without a queue."""
        with self.channel() as channel:
            for message in messages:
                channel.basic_publish(
                    self.exchange,
                    "notifications.send",
                    message if isinstance(message, bytes) else json.dumps(message).encode(),
                    pika.BasicProperties(delivery_mode=2, **properties),
                    mandatory=True,
                )

    def declare(self) -> None:
        """The queue, as the door does."""
        with self.channel() as channel:
            channel.queue_declare(self.queue, durable=True)
            channel.queue_bind(self.queue, self.exchange, "notifications.send")

    def take_results(self, count: int, queue: str | None = None) -> list[tuple[Any, Any]]:
        """So many, waited for: the value and the properties of each."""
        taken: list[tuple[Any, Any]] = []
        with self.channel() as channel:
            for _, properties, body in channel.consume(
                queue or self.results, auto_ack=True, inactivity_timeout=30
            ):
                if body is None:
                    raise TimeoutError(f"only {len(taken)} results")
                taken.append((json.loads(body), properties))
                if len(taken) == count:
                    break
            channel.cancel()
        return taken

    async def results_of(self, count: int) -> list[Any]:
        return [value for value, _ in await asyncio.to_thread(self.take_results, count)]

    def waiting(self) -> int:
        """Messages in the queue that nobody has; what was given back counts again."""
        with self.channel() as channel:
            return channel.queue_declare(self.queue, passive=True).method.message_count


@pytest.fixture
def broker(behind: Behind, rabbitmq: RabbitMQServer) -> Broker:
    return Broker(behind, rabbitmq)


@pytest.fixture
def own_broker(behind: Behind, own_rabbitmq: RabbitMQServer) -> Broker:
    return Broker(behind, own_rabbitmq)


def numbered(count: int, user: str = "alice") -> list[dict[str, Any]]:
    return [{"user_id": user, "payload": {"body": str(number)}} for number in range(count)]


# -- publishing ----------------------------------------------------------------------------------------------
async def test_a_message_becomes_a_notification(broker: Broker) -> None:
    """Stored, answered with an echo, and out of the queue."""
    async with running(broker.behind, broker.door()) as heard:
        broker.publish(GOOD, correlation_id="nr 7")
        await heard.stored(1)
        [(result, properties)] = await asyncio.to_thread(broker.take_results, 1)
    assert result == GOOD
    assert (properties.correlation_id, properties.content_type) == ("nr 7", "application/json")
    [document] = await broker.behind.inbox("1")
    notification = document.notification
    assert (notification.type, notification.title, notification.data) == (
        "notification",
        "Hello",
        GOOD["payload"],
    )
    assert broker.waiting() == 0
    assert (heard.received, heard.refused) == (1, [])


async def test_a_message_with_an_id_is_stored_once(broker: Broker) -> None:
    """However often it is delivered or published: each is answered with the echo and acknowledged. The id of its
    properties may be any text; a field in the body counts over it."""
    keyed = {**GOOD, "idempotency_key": "key"}
    async with running(broker.behind, broker.door()) as heard:
        for _ in range(3):
            broker.publish(GOOD, message_id="nr 7 é")
        for number in range(3):
            broker.publish(keyed, message_id=str(number))
        broker.publish({**GOOD, "payload": "another"}, message_id="nr 7 é")
        broker.publish({**GOOD, "idempotency_key": "no key"})
        results = await broker.results_of(8)
        await heard.refusals(2)
    # Those that are refused wait for no store.
    assert results.count(GOOD) == 6
    assert sum("error" in result for result in results) == 2
    assert sorted(heard.refused) == ["idempotency_key_reused", "invalid"]
    assert len(await broker.behind.inbox("1")) == 2
    assert broker.waiting() == 0


async def test_what_is_in_progress_comes_again(broker: Broker) -> None:
    """The message goes back to the queue, and is stored once when the other one is done with it."""
    store = broker.behind.store
    async with running(broker.behind, broker.door()) as heard:
        store.failure = InProgress()
        broker.publish(GOOD, message_id="7")
        for _ in range(2):
            while await store.failed.get() != "add":
                pass
        store.is_back()
        await heard.stored(1)
        assert await broker.results_of(1) == [GOOD]
    assert len(await broker.behind.inbox("1")) == 1
    assert (broker.waiting(), heard.refused) == (0, [])


async def test_the_names_of_the_original_are_the_defaults(
    behind: Behind, own_rabbitmq: RabbitMQServer
) -> None:
    """Who declared its exchange first meets no contradiction; the queue keeps what comes while nobody is there."""
    broker = Broker(behind, own_rabbitmq, name="notifications_exchange")
    with broker.channel():  # declares it as the original does
        pass
    async with running(behind, broker.door(queue=RabbitMQ().queue)) as heard:
        broker.publish(GOOD)
        await heard.stored(1)
    broker.publish(GOOD)
    async with running(behind, broker.door(queue=RabbitMQ().queue)) as heard:
        await heard.stored(1)


async def test_users_messages_keep_their_order(broker: Broker) -> None:
    """Whatever else is stored at the same time."""
    async with running(broker.behind, broker.door(prefetch=20)) as heard:
        both = zip(numbered(50, "ann"), numbered(50, "bob"), strict=True)
        broker.publish(*(message for pair in both for message in pair))
        await heard.stored(100)
    for user in ("ann", "bob"):
        documents = await broker.behind.inbox(user)
        assert [d.notification.content for d in reversed(documents)] == [str(number) for number in range(50)]


async def test_several_share_a_queue(broker: Broker) -> None:
    """Each message goes to one of them."""
    async with (
        running(broker.behind, broker.door(prefetch=1)) as first,
        running(broker.behind, broker.door(prefetch=1)) as second,
    ):
        broker.publish(*numbered(40))
        await first.until(lambda: first.received + second.received >= 40)
        await first.stored(40)
    assert len(await broker.behind.inbox("alice")) == 40
    assert min(first.received, second.received) > 0


# -- what is wrong -------------------------------------------------------------------------------------------
BAD = {
    b"": "the message is not JSON",
    b"hello": "the message is not JSON",
    b"[]": "not an object",
    b'{"payload": 1}': "user_id: missing",
    b'{"user_id": true, "payload": 1}': "user_id: neither a text nor an integer",
    b'{"user_id": 1}': "payload: missing",
    b'{"user_id": 1, "payload": null}': "payload: null",
    b'{"user_id": 1, "payload": NaN}': "the message is not JSON",
    b'{"user_id": 1, "payload": "\xff"}': "the message is not UTF-8",
    b'{"user_id": 1, "payload": 1, "\\ud800": 1}': (
        "the name of a field is not valid Unicode (a lone surrogate)"
    ),
    b"[" * 4000: "nested too deeply",
    b"x" * 100_000: "the message is over the 5000 bytes allowed",
}


@pytest.mark.parametrize(("message", "why"), BAD.items(), ids=range(len(BAD)))
async def test_a_bad_message_is_answered_once_and_rejected(broker: Broker, message: bytes, why: str) -> None:
    """Counted; the next one is taken, and nothing comes again."""
    async with running(broker.behind, broker.door()) as heard:
        broker.publish(message, GOOD)
        await heard.stored(1)
        assert await broker.results_of(2) in ([{"error": why}, GOOD], [GOOD, {"error": why}])
    assert len(heard.refused) == 1
    assert heard.received == 2
    assert broker.waiting() == 0


async def test_more_bad_messages_than_are_fetched_do_not_stop_it(broker: Broker) -> None:
    """The original stalled after 20."""
    async with running(broker.behind, broker.door(prefetch=5)) as heard:
        broker.publish(*[b"?"] * 30, GOOD)
        await heard.stored(1)
        await heard.refusals(30)


async def test_rejected_messages_go_to_the_dead_letters(broker: Broker) -> None:
    """If there is an exchange for them; as they came."""
    dead = f"dead_{broker.exchange}"
    with broker.channel() as channel:
        channel.exchange_declare(dead, "fanout")
        channel.queue_declare(dead)
        channel.queue_bind(dead, dead)
        async with running(broker.behind, broker.door(dead_letter_exchange=dead)) as heard:
            broker.publish(b'{"user_id": 1}')
            await heard.refusals(1)
            [(value, _)] = await asyncio.to_thread(broker.take_results, 1, dead)
    assert value == {"user_id": 1}


async def test_what_nobody_foresaw_is_tried_twice(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Then it is answered and rejected: it is neither lost by a passing fault nor comes for ever."""
    async with running(broker.behind, broker.door()) as heard:
        broker.behind.store.failure = ZeroDivisionError()
        broker.publish(GOOD)
        await heard.refusals(1)
        assert await broker.results_of(1) == [{"error": "internal"}]
        broker.behind.store.is_back()
        broker.publish(GOOD)
        await heard.stored(1)
    assert broker.behind.store.calls.count("add") == 3
    assert heard.refused == ["internal"]
    assert caplog.text.count("ZeroDivisionError") == 2


PROPERTIES: dict[str, dict[str, Any]] = {
    "a time in microseconds": {"timestamp": 1_800_000_000_000_000},
    "the latest time of all": {"timestamp": 2**64 - 1},
    "a message id that is not UTF-8": {"message_id": b"\xff\xfe"},
    "a type that is not UTF-8": {"type": b"\xff"},
    "a header that is not UTF-8": {"headers": {b"\xff": 1}},
}


@pytest.mark.parametrize("properties", PROPERTIES.values(), ids=PROPERTIES)
async def test_odd_properties_hold_up_nobody(broker: Broker, properties: dict[str, Any]) -> None:
    """What the broker takes without looking at it ends no connection: the message is stored, and so is the next one."""
    async with running(broker.behind, broker.door()) as heard:
        broker.publish(GOOD, **{"correlation_id": "nr 7"} | properties)
        broker.publish({"user_id": "next", "payload": 1})
        await heard.stored(2)
        results = await asyncio.to_thread(broker.take_results, 2)
        assert heard.ups == [True]
    assert [properties.correlation_id for value, properties in results if value == GOOD] == ["nr 7"]
    assert sorted(heard.users) == ["1", "next"]
    assert broker.waiting() == 0


async def test_what_cannot_even_be_read_is_rejected(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours in reading a message leaves none behind that nobody answers; more of them than are fetched do not
    stop it."""

    def read(fields: Any, *_: Any) -> Any:
        if fields["user_id"] == "odd":
            raise ZeroDivisionError
        return parse_service(fields, "default", LIMITS)

    monkeypatch.setattr("server.ingest.rabbitmq.parse_service", read)
    async with running(broker.behind, broker.door(prefetch=2)) as heard:
        broker.publish(*[{"user_id": "odd", "payload": 1}] * 5, GOOD)
        await heard.stored(1)
        results = await broker.results_of(6)
    assert results.count({"error": "internal"}) == 5
    assert heard.refused == ["internal"] * 5
    assert broker.waiting() == 0
    assert caplog.text.count("a message could not be read") == 5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
messages = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({}, optional={"user_id": json_values, "payload": json_values}).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
)


async def test_nothing_that_is_published_ends_the_door(broker: Broker) -> None:
    """Every message is stored or refused, answered with a result, and out of the queue."""
    loop = asyncio.get_running_loop()
    async with running(broker.behind, broker.door()) as heard:

        async def count(total: int) -> None:
            await heard.until(lambda: len(heard.contents) + len(heard.refused) == total)

        total = 0

        @settings(max_examples=30, suppress_health_check=list(HealthCheck))
        @given(st.lists(messages, min_size=1, max_size=10))
        def examples(bodies: list[bytes]) -> None:
            nonlocal total
            broker.publish(*bodies)
            total += len(bodies)
            asyncio.run_coroutine_threadsafe(count(total), loop).result(60)
            assert heard.received == total
            assert len(broker.take_results(len(bodies))) == len(bodies)

        await asyncio.to_thread(examples)
        assert heard.ups == [True]
    assert broker.waiting() == 0


# -- the store goes and comes --------------------------------------------------------------------------------
async def test_a_store_that_would_be_fine_but_for_its_clock(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node says that it is not ready; what the store would take is fetched."""

    async def ping() -> None:
        raise Trouble("the clocks of this node and of MongoDB differ by 11 s")

    monkeypatch.setattr(broker.behind.store, "ping", ping)
    async with running(broker.behind, broker.door()) as heard:
        broker.publish(*numbered(3))
        await heard.stored(3)
    assert broker.waiting() == 0


async def test_messages_wait_in_the_queue_for_the_store(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """All in their order, none missing; the store is asked with growing delay, and nothing is fetched meanwhile."""
    caplog.set_level(logging.INFO)
    door = broker.door()
    async with running(broker.behind, door) as heard:
        broker.behind.store.goes_away()
        broker.publish(*numbered(100))
        await heard.down()
        for _ in range(3):
            await broker.behind.store.failed.get()
        await until_said(caplog, "not consuming")
        received = heard.received
        for _ in range(3):
            assert await broker.behind.store.failed.get() == "ping"
        assert heard.received == received
        assert broker.waiting() == 100
        with pytest.raises(Trouble, match="^the store is away$"):
            await door.probe()
        broker.behind.store.is_back()
        await heard.stored(100)
    contents = [d.notification.content for d in reversed(await broker.behind.inbox("alice"))]
    assert contents == [str(number) for number in range(100)]
    assert broker.waiting() == 0
    assert [line for line in said(caplog) if "store" in line] == [
        f"rabbitmq: not consuming from RabbitMQ at 127.0.0.1:{broker.server.port}: the store is away; trying again"
    ]


async def test_messages_wait_in_the_queue_for_their_tenant(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """What would be stored for one that is gone, the next of its name would see."""
    async with running(broker.behind, door := broker.door()) as heard:
        broker.behind.tenants.clear()
        broker.publish(*numbered(3))
        await heard.down()
        await until_said(caplog, "there is no tenant 'default'")
        with pytest.raises(Trouble, match="its tenant is not there"):
            await door.probe()
        assert heard.contents == [] and broker.waiting() == 3
        broker.behind.tenants.add(DEFAULT_TENANT)
        await heard.stored(3)
    assert sorted(heard.contents) == ["0", "1", "2"]


async def test_what_is_in_hand_is_counted(broker: Broker) -> None:
    """How many were fetched and wait to be stored is among the figures; nothing before it is connected."""
    door = broker.door()
    assert door.waiting == 0
    async with running(broker.behind, door) as heard:
        gate = broker.behind.store.hold("add")
        broker.publish(*numbered(2))
        await gate.reached()
        await heard.got(2)
        assert door.waiting == 2
        gate.open()
        await heard.stored(2)
    assert door.waiting == 0


async def test_a_stop_stores_what_is_in_hand(broker: Broker) -> None:
    """And acknowledges it; what was only fetched goes back."""
    async with running(broker.behind, broker.door()) as heard:
        gate = broker.behind.store.hold("add")
        broker.publish(*numbered(10))
        await gate.reached()
        await heard.got(10)
        asyncio.get_running_loop().call_later(0.2, gate.open)  # during the stop, with which this ends
    stored = len(await broker.behind.inbox("alice"))
    assert stored >= 1
    assert broker.waiting() == 10 - stored


async def test_nothing_of_it_is_left_though_a_cancellation_gets_lost(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a message is stored."""
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN_S", 0.01)
    tasks, before = Tasks(), asyncio.all_tasks()
    broker.declare()
    broker.publish(GOOD, GOOD)
    gate = broker.behind.store.hold("add", loses_cancellation=True)
    tasks.start(broker.door().run(), "rabbitmq")
    await gate.reached()
    async with asyncio.timeout(30):
        await tasks.cancel()
    assert gate.has_lost.is_set()
    left = asyncio.all_tasks() - before
    assert not [task for task in left if "server/" in task.get_coro().cr_code.co_filename]


async def test_nothing_is_acknowledged_before_it_is_stored(broker: Broker) -> None:
    """Who ends without a word while the store has not answered leaves the message to the next one."""
    door = broker.door()
    gate = broker.behind.store.hold("add")
    task = asyncio.create_task(door.run())
    broker.declare()
    broker.publish(GOOD)
    await gate.reached()
    task.cancel()
    await asyncio.wait([task])
    assert broker.waiting() == 1
    gate.open()
    async with running(broker.behind, broker.door()) as heard:
        await heard.stored(1)
    assert broker.waiting() == 0


async def test_a_server_that_is_killed_loses_nothing(broker: Broker, tmp_path: Path) -> None:
    """At whatever moment: what was not acknowledged comes again."""
    broker.declare()
    broker.publish(*(message | {"user_id": number % 20} for number, message in enumerate(numbered(300))))
    folder = tmp_path / "killed"
    folder.mkdir()
    module = ["-m", "tests.support.door_process"]
    argv = [sys.executable, *module, str(folder), broker.server.url, broker.exchange]
    process = Process(argv, log=folder / "log", cwd=ROOT)
    try:
        for count in (40, 90, 160, 230):
            process.start()
            await asyncio.to_thread(process.wait_for_output, f"stored {count}\n")
            process.kill()
    finally:
        process.kill()
    expected = {str(number) for number in range(300)}

    async def inboxes(behind: Behind) -> list[Document]:
        return [document for number in range(20) for document in await behind.inbox(str(number))]

    async with open_behind(folder) as behind:
        before = {document.notification.content for document in await inboxes(behind)}
        assert 160 < len(before) < 300, "it was killed while there was something to do"
        again = Broker(behind, broker.server, name=broker.exchange)
        async with running(behind, again.door()) as heard:
            await heard.until(lambda: before | set(heard.contents) == expected)
        documents = await inboxes(behind)
    assert {document.notification.content for document in documents} == expected
    assert len(documents) <= 300 + 4 * 10, "no more come twice than were fetched when it was killed"


# -- the broker goes and comes -------------------------------------------------------------------------------
async def test_a_killed_broker_is_waited_for(own_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """For ever; log, health and signal say it; nothing of its queue is lost."""
    caplog.set_level(logging.INFO)
    server, door = own_broker.server, own_broker.door()
    place = f"RabbitMQ at 127.0.0.1:{server.port}"
    async with running(own_broker.behind, door) as heard:
        await door.probe()
        gate = own_broker.behind.store.hold("add")
        own_broker.publish(*numbered(30))
        await gate.reached()
        server.kill()
        await heard.down()
        gate.open()
        with pytest.raises(Trouble, match="^not connected$"):
            await door.probe()
        await until_said(caplog, "Connection refused")
        await asyncio.to_thread(server.start)
        await heard.up()
        await door.probe()
        await heard.until(lambda: len(set(heard.contents)) == 30)
        own_broker.publish(GOOD)
        await heard.until(lambda: "1" in heard.users)
    stored = {document.notification.content for document in await own_broker.behind.inbox("alice")}
    assert stored == {str(number) for number in range(30)}
    assert own_broker.waiting() == 0
    lines = said(caplog)
    assert lines[0] == lines[-1] == f"rabbitmq: consuming from {place}"
    assert f"rabbitmq: not consuming from {place}: Connection refused; trying again" in lines
    assert len(lines) == len(set(lines)) + 1, "each change is said once"
    assert not [record for record in caplog.records if record.name.startswith(("aio_pika", "aiormq"))]


async def test_a_frozen_broker_is_waited_for(own_broker: Broker) -> None:
    """Health says that there is no answer; heartbeats end the connection, and then it is tried again."""
    server, door = own_broker.server, own_broker.door(timeout_s=1.0)
    async with running(own_broker.behind, door) as heard:
        server.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await door.probe()
        await heard.down()
        server.thaw()
        await heard.up()
        await asyncio.to_thread(own_broker.publish, *numbered(5))
        await heard.until(lambda: len(set(heard.contents)) == 5)


async def test_a_broker_without_memory_gets_its_acknowledgements(
    own_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes no results then; but messages are stored and leave its queue, so that it can recover."""
    own_broker.declare()
    own_broker.publish(*numbered(20))
    await asyncio.to_thread(own_broker.server.control, "set_vm_memory_high_watermark", "absolute", "1")
    async with running(own_broker.behind, own_broker.door(timeout_s=1.0)) as heard:
        await heard.stored(20)
        await until_said(caplog, "results are left out: the broker takes none")
    await asyncio.to_thread(own_broker.server.control, "set_vm_memory_high_watermark", "0.9")
    assert own_broker.waiting() == 0


async def test_what_is_too_long_is_not_kept_until_it_is_rejected(own_broker: Broker) -> None:
    """A broker that takes no results holds that up, and gives out as many as are fetched at a time."""
    size, count = 20 * MAX_MESSAGE_BYTES, 50
    own_broker.declare()
    own_broker.publish(*[b"x" * size] * count)
    await asyncio.to_thread(own_broker.server.control, "set_vm_memory_high_watermark", "absolute", "1")
    tracemalloc.start()
    try:
        async with running(own_broker.behind, own_broker.door(timeout_s=10.0)) as heard:
            await heard.refusals(count)
            assert tracemalloc.get_traced_memory()[0] < size * count / 4
    finally:
        tracemalloc.stop()


async def test_a_full_queue_of_results_repeats_nothing(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stored leaves the queue, though its result is refused; once there is space, results are told again."""
    full = f"full_{broker.exchange}"
    with broker.channel() as channel:
        channel.queue_declare(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.queue_bind(full, broker.exchange, "notifications.result")
        async with running(broker.behind, broker.door()) as heard:
            broker.publish(*numbered(5), b"?")
            await heard.stored(5)
            await heard.refusals(1)
            await until_said(caplog, "results are left out: a queue of results is full")
            channel.queue_delete(full)
            broker.publish(GOOD)
            while GOOD not in await results_so_far(broker):
                pass
            assert heard.ups == [True]
    assert sorted(heard.contents) == ["", *map(str, range(5))]
    assert heard.received == 7
    assert broker.waiting() == 0


async def test_who_may_not_publish_results_stores_all_the_same(
    own_broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each; when results are allowed they are published, over a channel that is opened anew."""
    monkeypatch.setattr("server.ingest.rabbitmq.RESULTS_PAUSE_S", 0.0)
    control = own_broker.server.control
    await asyncio.to_thread(control, "add_user", "reader", "secret")
    await asyncio.to_thread(control, "set_permissions", "reader", ".*", "^queue_", ".*")
    url = own_broker.server.url.replace("guest:guest", "reader:secret")
    async with running(own_broker.behind, own_broker.door(url=url)) as heard:
        own_broker.publish(*numbered(10))
        await heard.stored(10)
        await until_said(caplog, "results are left out: ACCESS_REFUSED")
        await asyncio.to_thread(control, "set_permissions", "reader", ".*", ".*", ".*")
        while not [value for value in await results_so_far(own_broker) if value == GOOD]:
            own_broker.publish(GOOD)
        assert heard.ups == [True]
    assert sorted(heard.contents)[-10:] == [str(number) for number in range(10)]
    assert own_broker.waiting() == 0
    assert "secret" not in caplog.text


async def results_so_far(broker: Broker) -> list[Any]:
    """What is there when nothing has come for a second."""

    def take() -> list[Any]:
        with broker.channel() as channel:
            taken = list(_until_silence(channel, broker.results))
            channel.cancel()
        return taken

    return await asyncio.to_thread(take)


def _until_silence(channel: BlockingChannel, queue: str) -> Iterator[Any]:
    for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=1):
        if body is None:
            return
        yield json.loads(body)


async def test_an_exchange_that_is_deleted_is_made_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the queue is bound to it anew, without an end of the connection."""
    monkeypatch.setattr("server.ingest.rabbitmq.BIND_EVERY_S", 0.05)
    async with running(broker.behind, broker.door()) as heard:
        with broker.channel() as channel:
            channel.exchange_delete(broker.exchange)
        while not heard.users:
            with suppress(UnroutableError):
                await asyncio.to_thread(broker.publish, GOOD)
                await heard.stored(1)
        assert heard.ups == [True]


async def test_a_queue_that_is_deleted_is_made_again(broker: Broker) -> None:
    """By connecting anew."""
    async with running(broker.behind, broker.door()) as heard:
        with broker.channel() as channel:
            channel.queue_delete(broker.queue)
        await heard.down()
        await heard.up()
        broker.publish(GOOD)
        await heard.stored(1)


async def test_an_exchange_that_is_declared_otherwise_is_said(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """With the key of the configuration; that key mends it. Health says it, too."""
    with pika.BlockingConnection(pika.URLParameters(broker.server.url)) as connection:
        connection.channel().exchange_declare(broker.exchange, "direct", durable=True)
    door = broker.door()
    async with running(broker.behind, door, is_awaited=False):
        await until_said(caplog, "PRECONDITION_FAILED")
        with pytest.raises(Trouble, match="^the exchange or the queue was declared otherwise$"):
            await door.probe()
    assert "set exchange_durable to how it was declared" in caplog.text
    async with running(broker.behind, broker.door(exchange_durable=True)):
        pass


async def test_a_queue_that_is_declared_otherwise_is_said(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to do about it; another name mends it."""
    with pika.BlockingConnection(pika.URLParameters(broker.server.url)) as connection:
        connection.channel().queue_declare(broker.queue, durable=True, arguments={"x-message-ttl": 1000})
    door = broker.door()
    async with running(broker.behind, door, is_awaited=False):
        await until_said(caplog, "PRECONDITION_FAILED")
        with pytest.raises(Trouble, match="^the exchange or the queue was declared otherwise$"):
            await door.probe()
    assert "x-message-ttl" in caplog.text
    assert "delete it, set queue to another name" in caplog.text
    assert "exchange_durable" not in caplog.text
    async with running(broker.behind, broker.door(queue=f"another_{broker.queue}")):
        pass


async def test_a_wrong_password_is_said(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Without being repeated; health says it, too."""
    door = broker.door(url=broker.server.url.replace("guest:guest", "guest:wr0ng"))
    async with running(broker.behind, door, is_awaited=False):
        await until_said(caplog, "ACCESS_REFUSED")
        with pytest.raises(Trouble, match="^access is refused$"):
            await door.probe()
    assert "wr0ng" not in caplog.text


async def test_a_virtual_host_that_is_not_there_is_said(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the broker, and once, however often it is tried; health says it, too."""
    tries = 0

    async def counted(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        return await open_link(*arguments)

    monkeypatch.setattr("server.ingest.rabbitmq.open_link", counted)
    door = broker.door(url=f"{broker.server.url}nowhere")
    async with running(broker.behind, door, is_awaited=False):
        await until_said(caplog)
        with pytest.raises(Trouble, match="^access is refused$"):
            await door.probe()
        while tries < 4:  # noqa: ASYNC110  # nobody is told of a try
            await asyncio.sleep(0.01)
    place = f"RabbitMQ at 127.0.0.1:{broker.server.port}"
    assert said(caplog) == [
        f"rabbitmq: not consuming from {place}: NOT_ALLOWED - vhost nowhere not found; trying again"
    ]


async def test_a_broker_that_is_stopped_says_so(own_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """In its own words: the number in front of them is none of the system's."""
    async with running(own_broker.behind, own_broker.door()) as heard:
        await asyncio.to_thread(own_broker.server.stop)
        await heard.down()
        await until_said(caplog, "CONNECTION_FORCED - broker forced connection closure")
    assert "Unknown error" not in caplog.text


@pytest.mark.servers
async def test_tls_is_verified(behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the authorities of `ca`, or of the system."""
    authority = CertificateAuthority(tmp_path / "ca")
    with RabbitMQServer(tls=(authority, authority.server_pair())) as server:
        broker = Broker(behind, server)
        async with running(behind, broker.door(url=server.tls_url, ca=authority.ca_file)) as heard:
            broker.publish(GOOD)
            await heard.stored(1)
        caplog.clear()
        async with running(behind, broker.door(url=server.tls_url), is_awaited=False):
            await until_said(caplog, "certificate verify failed")
