"""The settings of the doors that fetch notifications from a broker: Redis and RabbitMQ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.config import values
from server.config.keys import KIB, MIB, setting
from server.grants import DEFAULT_TENANT, is_name


def _tenant(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} is not a tenant's name (up to 64 of a-z 0-9 . _ -)")
    return text


_TENANT = values.Kind(_tenant)

# What can follow a host is left out on purpose: options in an address could switch off what keeps it safe.
_PLACE = r"([^\s/?#@]*@)?(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?"
REDIS_URL = values.matching(
    rf"rediss?://{_PLACE}(/[0-9]{{0,5}})?",
    "is not an address such as redis://127.0.0.1:6379/0, or rediss:// for TLS (the number: of the database)",
)
AMQP_URL = values.matching(
    rf"amqps?://{_PLACE}(/[^\s/?#]*)?",
    "is not an address such as amqp://user:password@127.0.0.1:5672/, or amqps:// for TLS (behind the slash: the "
    "virtual host, percent-encoded)",
)
# Glob characters would make it a pattern for more than it says (Redis, "PSUBSCRIBE").
_PREFIX = values.matching(r"[A-Za-z0-9_.-]{1,100}", "is not a prefix of up to 100 of A-Z a-z 0-9 . _ -")
_NAME = values.matching(
    r"(?!amq\.)[\x21-\x7e]{1,127}",
    "is not a name that RabbitMQ takes (up to 127 ASCII characters, not amq.…)",
)
_KEY = values.matching(r"[\x21-\x7e]{1,127}", "is not a routing key (up to 127 ASCII characters)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisHub:
    """Notifications that backends publish in Redis, to the channels `prefix:user id` (CONTRACT C2).

    `url`: with the number of the database; user and password may stand in it. `ca`: a PEM file of the only authorities
    to trust; None: the system's. `skip_offline`: do not store what is for a user who has no connection, as the original
    did. `buffer_messages`, `buffer_bytes`: what may wait for the store; more is dropped, since Redis cannot be asked
    again. `timeout_s`: for connecting, and for the answers of a connection.
    """

    url: str = setting("", REDIS_URL, secret=True)
    password: str = setting("", values.TEXT, secret=True)
    ca: Path | None = setting(None, values.PATH)
    prefix: str = setting("user_noti", _PREFIX)
    tenant: str = setting(DEFAULT_TENANT, _TENANT)
    skip_offline: bool = setting(False, values.BOOLEAN)
    buffer_messages: int = setting(10_000, values.integer(1, 1_000_000))
    buffer_bytes: int = setting(16 * MIB, values.size(KIB, 1024 * MIB))
    timeout_s: float = setting(10.0, values.seconds(0.1, 60))


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitMQ:
    """Notifications that backends publish in RabbitMQ (CONTRACT C3).

    `exchange_durable`: as those declare it who publish; the original did not, and RabbitMQ refuses whoever says
    otherwise (406). `queue`: durable; several servers share it. `dead_letter_exchange`: where what is refused goes;
    None: nowhere. `prefetch`: how many messages are fetched ahead. `timeout_s`: for connecting, and for each answer;
    also the interval of heartbeats, in whole seconds.
    """

    url: str = setting("", AMQP_URL, secret=True)
    ca: Path | None = setting(None, values.PATH)
    exchange: str = setting("notifications_exchange", _NAME)
    exchange_durable: bool = setting(False, values.BOOLEAN)
    routing_key: str = setting("notifications.send", _KEY)
    result_key: str = setting("notifications.result", _KEY)
    queue: str = setting("notification-server", _NAME)
    dead_letter_exchange: str | None = setting(None, _NAME)
    prefetch: int = setting(100, values.integer(1, 10_000))
    tenant: str = setting(DEFAULT_TENANT, _TENANT)
    timeout_s: float = setting(10.0, values.seconds(0.1, 60))
