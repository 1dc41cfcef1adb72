"""Ids of notifications and documents: ObjectIds, carried through the server as 24 lower-case hexadecimal
digits.

A tenant's ids tell nothing of the other tenants. The usual ObjectIds of one process share one counter: the gap between
two of them is how many were made in between, whoever for. Here each tenant has a series of its own.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import time
from collections.abc import Iterator
from functools import lru_cache

from server.grants import DEFAULT_TENANT

MAX_SERIES = 10_000
"""Tenants whose series are kept; one that comes back later than so many others begins a new one."""

_COUNTER_MASK = 0xFFFFFF


def new_id(tenant: str = DEFAULT_TENANT) -> str:
    """A fresh id. Unique over processes, nodes and tenants; those made later for a tenant in one process sort later.
    May be called from any thread."""
    chance, counter = _series(tenant)
    return f"{int(time.time()):08x}{chance}{next(counter) & _COUNTER_MASK:06x}"


def new_ids(count: int, tenant: str = DEFAULT_TENANT) -> list[str]:
    """As many fresh ids, in their order."""
    chance, counter = _series(tenant)
    prefix = f"{int(time.time()):08x}{chance}"
    return [f"{prefix}{number & _COUNTER_MASK:06x}" for number in itertools.islice(counter, count)]


@lru_cache(MAX_SERIES)
def _series(tenant: str) -> tuple[str, Iterator[int]]:
    """What follows the 4 bytes of seconds: 5 bytes of chance, and a counter of 3 bytes that starts anywhere."""
    return secrets.token_hex(5), itertools.count(secrets.randbelow(_COUNTER_MASK))


# A child must not go on with the series of its parent.
os.register_at_fork(after_in_child=_series.cache_clear)


_ID = re.compile(r"[0-9a-fA-F]{24}")


def is_id(text: object) -> bool:
    """Whether `text` has the form of an id. Says nothing about whether anything has it."""
    # bson's own check takes three times as long, and a client may ask about tens of thousands at once.
    return isinstance(text, str) and _ID.fullmatch(text) is not None
