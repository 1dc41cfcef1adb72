"""What the settings of the doors that fetch from a broker mean together."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from server.config.brokers import RabbitMQ, RedisHub
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
        check_address(reading, section, record.url, getattr(record, "password", ""), record.ca)
    elif not reading.is_written(section, "url"):
        reading.problem(section, "url", "is missing, so there is no broker to ask")
    return record


def check_address(
    reading: Reading, section: str, address: str, password: str, ca: Path | None, prefix: str = ""
) -> None:
    """`prefix`: what the names of the keys `url`, `password` and `ca` begin with."""
    url = urlsplit(address)
    try:
        port_is_valid = url.port is None or url.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid:
        reading.problem(section, f"{prefix}url", "has a port that is not within 1 to 65535")
    is_secured = url.scheme in ("rediss", "amqps")
    if ca is not None and not is_secured:
        reading.problem(section, f"{prefix}ca", f"is not used, since {prefix}url begins with {url.scheme}://")
    elif ca is not None and not ca.is_file():
        reading.problem(section, f"{prefix}ca", f"there is no file {ca}")
    if (url.password or password) and not is_secured and not is_loopback(url.hostname or ""):
        reason = f"is without TLS, so the password goes to {url.hostname} in the clear"
        reading.warn(section, f"{prefix}url", reason)
