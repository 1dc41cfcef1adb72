"""What the settings of the doors that fetch from a broker mean together."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import urlsplit

from server.config.doors import RabbitMQ, RedisHub
from server.config.reader import Reading
from server.config.values import is_loopback

Record = TypeVar("Record", RedisHub, RabbitMQ)


def redis_hub(reading: Reading) -> RedisHub | None:
    """None: nothing of it is written."""
    record = _record(reading, "REDIS_HUB", RedisHub)
    if record is not None and record.password and urlsplit(record.url).password:
        reading.problem("REDIS_HUB", "password", "contradicts the one in url; remove one of them")
    return record


def rabbitmq(reading: Reading) -> RabbitMQ | None:
    """None: nothing of it is written."""
    record = _record(reading, "RABBITMQ", RabbitMQ)
    if record is not None and record.routing_key == record.result_key:
        reason = "is the routing_key too, so that every result would be taken for a notification"
        reading.problem("RABBITMQ", "result_key", reason)
    return record


def _record(reading: Reading, section: str, make: type[Record]) -> Record | None:
    values = reading.fields(section, reading.values(section))
    if not values:
        return None
    record = make(**values)
    if record.url:
        _check_url(reading, section, record)
    elif not reading.is_written(section, "url"):
        reading.problem(section, "url", "is missing, so there is no broker to ask")
    return record


def _check_url(reading: Reading, section: str, record: Record) -> None:
    url = urlsplit(record.url)
    try:
        port_is_valid = url.port is None or url.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid:
        reading.problem(section, "url", "has a port that is not within 1 to 65535")
    is_secured = url.scheme in ("rediss", "amqps")
    if record.ca is not None and not is_secured:
        reading.problem(section, "ca", f"is not used, since url begins with {url.scheme}://")
    elif record.ca is not None and not record.ca.is_file():
        reading.problem(section, "ca", f"there is no file {record.ca}")
    has_password = bool(url.password or getattr(record, "password", ""))
    if has_password and not is_secured and not is_loopback(url.hostname or ""):
        reading.warn(section, "url", f"is without TLS, so the password goes to {url.hostname} in the clear")
