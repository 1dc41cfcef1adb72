"""What the settings of several nodes mean together."""

from __future__ import annotations

from urllib.parse import urlsplit

from server.config.cluster import Cluster
from server.config.reader import Reading
from server.config.rules_doors import check_address


def cluster(reading: Reading, *, is_embedded: bool) -> Cluster:
    """`is_embedded`: whether the store is a file of this process alone."""
    record = Cluster(**reading.fields("CLUSTER", reading.values("CLUSTER")))
    if record.backplane != "local" and is_embedded:
        reason = (
            f"{record.backplane} is for nodes that share a store, and the embedded store is for one process;"
            " set url of [MONGODB], or backplane=local"
        )
        reading.problem("CLUSTER", "backplane", reason)
    if record.backplane == "redis":
        _check_redis(reading, record)
    return record


def _check_redis(reading: Reading, record: Cluster) -> None:
    if not record.redis_url:
        if not reading.is_written("CLUSTER", "redis_url"):
            reading.problem("CLUSTER", "redis_url", "is missing, so there is no Redis for the backplane")
        return
    check_address(
        reading, "CLUSTER", record.redis_url, record.redis_password, record.redis_ca, prefix="redis_"
    )
    if record.redis_password and _has_password(record.redis_url):
        reading.problem("CLUSTER", "redis_password", "contradicts the one in redis_url; remove one of them")


def _has_password(url: str) -> bool:
    return bool(urlsplit(url).password)
