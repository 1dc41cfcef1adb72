"""The tenant of what comes from a broker, which has no credential that could name one."""

from __future__ import annotations

import json
from pathlib import Path

import pika
import pytest

from tests.support.feeds import SETTINGS, add_tenant, hub_path, listening
from tests.support.processes import wait_until
from tests.support.rabbitmq import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer

pytestmark = pytest.mark.servers

EXCHANGE = "exchange_of_a_tenant"
QUEUE = "queue_of_a_tenant"


async def test_it_is_that_of_the_configuration(
    tmp_path: Path, redis_server: RedisServer, rabbitmq: RabbitMQServer
) -> None:
    """A user of that tenant is told, as soon as there is one; one with the same id in another tenant is not."""
    settings = {
        "REDIS_HUB_URL": redis_server.url(),
        "REDIS_HUB_PREFIX": "of_a_tenant",
        "REDIS_HUB_TENANT": "acme",
        "RABBITMQ_URL": rabbitmq.url,
        "RABBITMQ_EXCHANGE": EXCHANGE,
        "RABBITMQ_QUEUE": QUEUE,
        "RABBITMQ_TENANT": "acme",
    }
    with RunningServer(
        tmp_path, **SETTINGS, **{f"NOTIFY_{name}": value for name, value in settings.items()}
    ) as server:
        for broker in ("Redis", "RabbitMQ"):
            missing = f"not consuming from {broker}"
            wait_until(lambda missing=missing: missing in server.log, f"{broker} waiting for its tenant")
        assert server.log.count("there is no tenant 'acme'") == 2
        add_tenant(server, "acme")
        for broker in ("Redis", "RabbitMQ"):
            wait_until(
                lambda name=broker: f": consuming from {name}" in server.log, f"{broker} being consumed"
            )
        async with (
            listening(server, hub_path("alice", tenant="acme")) as hers,
            listening(server, hub_path("alice")) as others,
        ):
            redis_server.publish("of_a_tenant:alice", json.dumps({"payload": "by Redis"}))
            assert (await hers.frame())["payload"] == "by Redis"
            _publish(rabbitmq, {"user_id": "alice", "payload": "by RabbitMQ"})
            assert (await hers.frame())["payload"] == "by RabbitMQ"
            server.must_notify("alice", content="for the other one")
            assert (await others.frame())["payload"] == {"content": "for the other one"}


def _publish(broker: RabbitMQServer, message: object) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(EXCHANGE, "notifications.send", json.dumps(message).encode(), mandatory=True)
