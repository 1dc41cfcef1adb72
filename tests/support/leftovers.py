"""What a store still holds of a tenant, as its database says it: not asked through the code that is tested."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from server.wiring import EMBEDDED_FILE

_PARENTS = {
    ("documents", "user"): "users",
    ("documents", "notification"): "notifications",
    ("mails", "notification"): "notifications",
    ("mail_recipients", "notification"): "notifications",
    ("refused_mail", "notification"): "notifications",
    ("orphans", "notification"): "notifications",
}
"""Columns of the embedded store that hold the `key` of another table."""


def leftovers(settings: Mapping[str, str], data: Path, *values: str) -> list[str]:
    """The tables (collections) with a row (document) that holds one of these values: a tenant's name, or what only it
    had; and those with rows whose parent is gone. `settings`: as of `store_settings`; `data`: the folder of the
    embedded store."""
    if "NOTIFY_MONGODB_URL" in settings:
        return _in_mongodb(settings["NOTIFY_MONGODB_URL"], settings["NOTIFY_MONGODB_DB"], values)
    return _in_file(data / EMBEDDED_FILE, values)


def _in_file(path: Path, values: Iterable[str]) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        assert {child for child, _ in _PARENTS} | set(_PARENTS.values()) <= set(names)
        return [
            *_holding(((name, connection.execute(f"SELECT * FROM {name}")) for name in names), values),
            *(
                f"{child} without {parent}"
                for (child, column), parent in _PARENTS.items()
                if connection.execute(
                    f"SELECT 1 FROM {child} WHERE {column} NOT IN (SELECT key FROM {parent})"
                ).fetchone()
            ),
        ]


def _in_mongodb(url: str, db: str, values: Iterable[str]) -> list[str]:
    client: MongoClient[dict[str, Any]]
    # Without a monitor of its own that may be about to connect when the client is closed.
    with MongoClient(url, directConnection=True, serverMonitoringMode="poll") as client:
        names = client[db].list_collection_names()
        assert names, "an empty database holds nothing of anybody"
        return list(_holding(((name, client[db][name].find()) for name in names), values))


def _holding(tables: Iterable[tuple[str, Iterable[Any]]], values: Iterable[str]) -> Iterator[str]:
    wanted = frozenset(values)
    for name, rows in tables:
        if any(not wanted.isdisjoint(_texts(row)) for row in rows):
            yield name


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
