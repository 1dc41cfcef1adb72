"""The sections of the doors that fetch: what loads, what is reported, what is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.config.brokers import RabbitMQ, RedisHub
from server.config.shown import shown
from tests.support.config import Folder

REDIS = "[REDIS_HUB]\nurl=redis://127.0.0.1\n"
RABBIT = "[RABBITMQ]\nurl=amqp://127.0.0.1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "ca.pem").touch()
    return Folder(tmp_path)


def test_both_doors_are_shut_by_default(folder: Folder) -> None:
    """Nobody's broker is asked by accident."""
    config = folder.load()
    assert (config.redis_hub, config.rabbitmq) == (None, None)


def test_an_address_opens_a_door(folder: Folder) -> None:
    """All else has the defaults of the systems whose place the doors take."""
    config = folder.load(REDIS + RABBIT)
    assert config.redis_hub == RedisHub(url="redis://127.0.0.1")
    assert config.rabbitmq == RabbitMQ(url="amqp://127.0.0.1")
    assert config.warnings == ()


def test_the_environment_opens_a_door(folder: Folder) -> None:
    """Without a file, or over it."""
    config = folder.load("", NOTIFY_REDIS_HUB_URL="rediss://h:1/2", NOTIFY_RABBITMQ_URL="amqps://u:p@h/v%2Fw")
    assert config.redis_hub is not None
    assert config.rabbitmq is not None
    assert (config.redis_hub.url, config.rabbitmq.url) == ("rediss://h:1/2", "amqps://u:p@h/v%2Fw")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[REDIS_HUB]\nprefix=x", "[REDIS_HUB] url: is missing, so there is no broker to ask"),
        ("[REDIS_HUB]\nurl=localhost:6379", "[REDIS_HUB] url: is not an address such as redis://127.0.0.1:6379/0"),
        ("[REDIS_HUB]\nurl=redis://:top-secret@h/x", "[REDIS_HUB] url: is not an address such as"),
        ("[REDIS_HUB]\nurl=rediss://h/0?ssl_cert_reqs=none", "[REDIS_HUB] url: is not an address such as"),
        ("[REDIS_HUB]\nurl=redis://h:99999", "[REDIS_HUB] url: has a port that is not within 1 to 65535"),
        (f"{REDIS}ca=ca.pem", "[REDIS_HUB] ca: is not used, since url begins with redis://"),
        ("[REDIS_HUB]\nurl=rediss://h\nca=no.pem", "[REDIS_HUB] ca: there is no file "),
        (f"{REDIS}prefix=user*", "[REDIS_HUB] prefix: is not a prefix"),
        (f"{REDIS}prefix=a:b", "[REDIS_HUB] prefix: is not a prefix"),
        (f"{REDIS}tenant=Acme Inc", "[REDIS_HUB] tenant: 'Acme Inc' is not a tenant's name"),
        (f"{REDIS}buffer_messages=0", "[REDIS_HUB] buffer_messages: 0 is not within 1 to 1000000"),
        (
            "[REDIS_HUB]\nurl=redis://:top-secret@localhost\npassword=top-secret",
            "[REDIS_HUB] password: contradicts the one in url",
        ),
        ("[RABBITMQ]\nqueue=x", "[RABBITMQ] url: is missing, so there is no broker to ask"),
        ("[RABBITMQ]\nurl=http://h", "[RABBITMQ] url: is not an address such as amqp://"),
        ("[RABBITMQ]\nurl=amqps://h/?no_verify_ssl=1", "[RABBITMQ] url: is not an address such as"),
        (f"{RABBIT}exchange=amq.direct", "[RABBITMQ] exchange: is not a name that RabbitMQ takes"),
        (f"{RABBIT}queue={'x' * 128}", "[RABBITMQ] queue: is not a name that RabbitMQ takes"),
        (f"{RABBIT}prefetch=0", "[RABBITMQ] prefetch: 0 is not within 1 to 10000"),
        (f"{RABBIT}result_key=notifications.send", "[RABBITMQ] result_key: is the routing_key too"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_reported(folder: Folder, text: str, problem: str) -> None:
    """Without repeating what may be a password."""
    [found] = folder.problems(text)
    assert found.startswith(f"config.ini: {problem}")
    assert "top-secret" not in found


@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ("[REDIS_HUB]\nurl=redis://:p@h.example.org", True),
        ("[REDIS_HUB]\nurl=redis://h.example.org\npassword=p", True),
        ("[REDIS_HUB]\nurl=rediss://:p@h.example.org", False),
        ("[REDIS_HUB]\nurl=redis://:p@127.0.0.1", False),
        ("[REDIS_HUB]\nurl=redis://h.example.org", False),
        ("[RABBITMQ]\nurl=amqp://u:p@h.example.org", True),
        ("[RABBITMQ]\nurl=amqps://u:p@h.example.org", False),
        ("[RABBITMQ]\nurl=amqp://u:p@localhost", False),
    ],
)
def test_a_password_in_the_clear_is_a_warning(folder: Folder, text: str, is_warned: bool) -> None:
    """Where others can listen."""
    section = text[1 : text.index("]")]
    reason = "is without TLS, so the password goes to h.example.org in the clear"
    assert folder.warnings(text) == [f"config.ini: [{section}] url: {reason}"] * is_warned


def test_what_is_shown_loads_as_the_same(folder: Folder) -> None:
    """Passwords are masked."""
    text = "[REDIS_HUB]\nurl=rediss://h:1/2\nca=ca.pem\nskip_offline=yes\nbuffer_bytes=1 MiB\n"
    text += "[RABBITMQ]\nurl=amqps://h/v\ndead_letter_exchange=dead\n"
    config = folder.load(text)
    assert replace(folder.load(shown(config)), warnings=()) == replace(config, warnings=())
    masked = shown(
        folder.load(
            "[REDIS_HUB]\nurl=redis://127.0.0.1\npassword=top\n[RABBITMQ]\nurl=amqp://u:top@localhost/"
        )
    )
    assert "password = ***" in masked
    assert "url = amqp://***@localhost/" in masked
    assert "top" not in masked


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://[::1]:6379/15", "redis://u:p%40@h", "rediss://:p@h:1/"]
)
def test_redis_addresses(folder: Folder, url: str) -> None:
    """With and without user, port and database."""
    config = folder.load(f"[REDIS_HUB]\nurl={url}")
    assert config.redis_hub is not None
    assert config.redis_hub.url == url
    assert "p%40" not in repr(config)
