"""What the settings of several nodes mean together."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from server.config.cluster import Cluster
from server.config.reader import Reading
from server.config.rules_brokers import check_address


def cluster(reading: Reading, workers: int, *, is_embedded: bool) -> Cluster:
    """`workers`: each is a node, even where they share a machine. `is_embedded`: whether the store is a file of this
    process alone."""
    record = Cluster(**reading.fields("CLUSTER", reading.values("CLUSTER")))
    if workers > 1:
        record = _of_several(reading, record, workers, is_embedded)
    if record.backplane != "local" and is_embedded:
        reason = (
            f"{record.backplane} is for nodes that share a store, and the embedded store is for one process;"
            " set url of [MONGODB], or backplane=local"
        )
        reading.problem("CLUSTER", "backplane", reason)
    if record.backplane == "redis":
        _check_redis(reading, record)
    return record


def _of_several(reading: Reading, record: Cluster, workers: int, is_embedded: bool) -> Cluster:
    """Workers that did not tell each other what is new would push to a part of a user's connections only."""
    if is_embedded:
        reason = (
            f"{workers} workers need a store that they can share, and the embedded store is for one process;"
            " set url of [MONGODB], or workers=1"
        )
        reading.problem("APPLICATION", "workers", reason)
    elif not reading.is_written("CLUSTER", "backplane"):
        return replace(record, backplane="mongodb")  # which they share anyway
    elif record.backplane == "local":
        reason = (
            f"local is for one process, and there are {workers} workers;"
            " set backplane=redis or backplane=mongodb, or workers=1"
        )
        reading.problem("CLUSTER", "backplane", reason)
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
