"""Ids of notifications and documents: ObjectIds, carried through the server as 24 lower-case hexadecimal
digits."""

from __future__ import annotations

from bson import ObjectId


def new_id() -> str:
    """A fresh id. Unique over processes and nodes; ids made later in one process sort later."""
    return str(ObjectId())


def is_id(text: object) -> bool:
    """Whether `text` has the form of an id. Says nothing about whether anything has it."""
    return isinstance(text, str) and len(text) == 24 and ObjectId.is_valid(text)
