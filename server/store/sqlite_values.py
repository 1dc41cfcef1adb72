"""Many values for one statement of SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from server.store.sqlite_schema import id_bytes

IDS_PER_STATEMENT = 500
"""SQLite takes 999 variables in a statement by default before 3.32, and more gain nothing."""


def id_list(ids: Sequence[str]) -> list[bytes]:
    """Those that have the form of an id, in the order given, once each."""
    return list(dict.fromkeys(raw for raw in map(id_bytes, ids) if raw is not None))


def portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many of them at a time as go into one statement."""
    for start in range(0, len(values), IDS_PER_STATEMENT):
        yield values[start : start + IDS_PER_STATEMENT]


def question_marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
