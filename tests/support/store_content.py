"""How much a store holds, as its database says it: not asked through the code that is tested."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from pymongo import MongoClient

from tests.support.stores import MongoPlace, Place, SQLitePlace


def content_of(place: Place) -> dict[str, int]:
    """The number of rows of each table, or documents of each collection, that has any. What only counts or remembers
    for the server itself is left out."""
    if isinstance(place, SQLitePlace):
        return _of_file(place)
    assert isinstance(place, MongoPlace)
    return _of_database(place)


def _of_file(place: SQLitePlace) -> dict[str, int]:
    with closing(sqlite3.connect(f"file:{place.path}?mode=ro", uri=True)) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
    return _without_own(counts)


def _of_database(place: MongoPlace) -> dict[str, int]:
    client: MongoClient[dict[str, Any]]
    with MongoClient(place.url, directConnection=True, serverMonitoringMode="poll") as client:
        database = client[place.db]
        counts = {
            name.removeprefix("notifications_"): database[name].count_documents({})
            for name in database.list_collection_names()
        }
    return _without_own(counts)


def _without_own(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count and name not in ("meta", "leases")}
