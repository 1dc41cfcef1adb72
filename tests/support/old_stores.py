"""Stores as an earlier version left them, from tests/data: put where a test wants them, and what was in them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bson import json_util
from pymongo import IndexModel, MongoClient

from server.messages import Record
from tests.support.stores import MongoPlace, Place, SQLitePlace

FOLDER = Path(__file__).resolve().parents[1] / "data" / "store-3"

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def put_old_store(place: Place) -> dict[str, Any]:
    """Put it there, and let a day pass: all leases have run out, and all mail is due. What the earlier version read
    there before."""
    if isinstance(place, SQLitePlace):
        _put_file(place)
        return _expected("embedded")
    assert isinstance(place, MongoPlace)
    _put_database(place)
    return _expected("mongodb")


def _expected(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return fields


def _put_file(place: SQLitePlace) -> None:
    place.path.parent.mkdir(parents=True, exist_ok=True)
    place.path.write_bytes(gzip.decompress((FOLDER / "notifications.sqlite3.gz").read_bytes()))
    with closing(sqlite3.connect(place.path, isolation_level=None)) as connection:
        connection.execute("UPDATE mail_recipients SET due_at = 1")
        connection.execute("UPDATE mails SET due_at = 1 WHERE due_at IS NOT NULL")


def _put_database(place: MongoPlace) -> None:
    client: MongoClient[dict[str, Any]]
    with MongoClient(place.url, tz_aware=True) as client:
        database = client[place.db]
        for line in (FOLDER / "mongodb.jsonl").read_text().splitlines():
            collection, document = json_util.loads(line, json_options=json_util.CANONICAL_JSON_OPTIONS)
            database[collection].insert_one(document)
        for collection, indexes in json.loads((FOLDER / "mongodb-indexes.json").read_text()).items():
            database[collection].create_indexes([_index(each) for each in indexes])
        for collection in ("notifications", "notifications_intents"):
            for name in ("mail.due", "mail.leasedUntil", "mailDue", "openedAt"):
                database[collection].update_many({name: {"$exists": True}}, {"$set": {name: LONG_AGO}})
            database[collection].update_many(
                {"mail.recipients": {"$exists": True}}, {"$set": {"mail.recipients.$[].due": LONG_AGO}}
            )
        database["notifications_broadcasts"].update_many({}, {"$set": {"leasedUntil": LONG_AGO}})


def _index(fields: Mapping[str, Any]) -> IndexModel:
    options = {name: value for name, value in fields.items() if name not in ("key", "v")}
    return IndexModel(list(fields["key"].items()), **options)


def as_written(value: Any) -> Any:
    """As the JSON of `FOLDER` has it."""
    if isinstance(value, Record):
        return {name: as_written(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value):
        return {field.name: as_written(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, list | tuple):
        return [as_written(each) for each in value]
    if isinstance(value, frozenset):
        return sorted(as_written(each) for each in value)
    if isinstance(value, dict):
        return {name: as_written(each) for name, each in value.items()}
    return value
