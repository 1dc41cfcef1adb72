"""The settings of several nodes that serve together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.config import values
from server.config.brokers import REDIS_URL
from server.config.keys import setting

_PREFIX = values.matching(r"[A-Za-z0-9_.:-]{1,100}", "is not a prefix of up to 100 of A-Z a-z 0-9 . _ : -")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How nodes that share a store tell each other what is new.

    `backplane`: "local" for one node; else all of them have the same; "mongodb" for several workers if nothing is
    written. `redis_url`: with the number of the database;
    user and password may stand in it. `redis_ca`: a PEM file of the only authorities to trust; None: the system's.
    `prefix`: of channels, keys and collections; those of another store are kept apart in any case. `timeout_s`: for
    connecting, and for each answer.
    """

    backplane: Literal["local", "redis", "mongodb"] = setting(
        "local",
        values.choice({"local": "local", "redis": "redis", "mongodb": "mongodb"}),
        default_note="mongodb with several workers, else local",
    )
    redis_url: str = setting("", REDIS_URL, secret=True)
    redis_password: str = setting("", values.TEXT, secret=True)
    redis_ca: Path | None = setting(None, values.PATH)
    prefix: str = setting("notification_backplane", _PREFIX)
    # A node is taken for dead after three seconds, so it should know sooner whether it can speak.
    timeout_s: float = setting(2.0, values.seconds(0.1, 60))
