"""The answers of `/api/v2/inbox`, and what is asked of it, as types: for the OpenAPI document. What they mean is in
docs/protocol.md; what comes in is checked in `commands_v2`, as on a socket."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

Id = Annotated[str, Meta(pattern="^[0-9a-f]{24}$", examples=["6740c0ffee0123456789abcd"])]
Rev = Annotated[str, Meta(pattern="^[0-9a-f]{16}$", examples=["019349b2c3d40000"])]
Time = Annotated[str, Meta(examples=["2026-11-21T09:30:00.123Z"])]
Ids = Annotated[list[str], Meta(max_length=500)]


class InboxDocument(Struct):
    """A notification in a user's inbox. Of two states of one, that with the greater `rev` is the later."""

    id: Id = field(name="_id")
    user_id: str = field(name="_userId")
    nid: Id
    type: str
    title: str
    content: str
    url: str
    icon: str
    image: str
    created_at: Time = field(name="createdAt")
    updated_at: Time = field(name="updatedAt")
    deleted_at: Time | None = field(name="deletedAt")
    delete: bool
    seen: bool
    rev: Rev
    data: Any | UnsetType = UNSET


class InboxTypeCounts(Struct):
    """How many documents of one type there are."""

    unseen: int
    total: int


class InboxCounts(Struct):
    """How many documents there are; by types those of the types with the most."""

    unseen: int
    total: int
    types: dict[str, InboxTypeCounts]


class InboxPage(Struct):
    """Documents, newest first. `older`: whether there are more behind them. The first page also says how many there
    are, and from where on changes may be asked for."""

    documents: list[InboxDocument]
    older: bool
    since: str | UnsetType = UNSET
    counts: InboxCounts | UnsetType = UNSET
    floor: Time | None | UnsetType = UNSET


class InboxChanges(Struct):
    """What has changed, tombstones too. `upto` is the next `since`, at once if there is `more`. What was created before
    `floor` is kept no longer. `reset`: drop everything, read all pages, and go on from `upto`."""

    documents: list[InboxDocument]
    more: bool
    upto: str
    floor: Time | None
    reset: bool


class InboxChange(Struct):
    """Either `seen` or `deleted`, of documents or (`seen: true` alone) of all up to the rev `upto`."""

    ids: Ids | UnsetType = UNSET
    all: Literal[True] | UnsetType = UNSET
    upto: Rev | None | UnsetType = UNSET
    seen: bool | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET


class InboxRemoval(Struct):
    """Documents to delete."""

    ids: Ids


class InboxChanged(Struct):
    """Which documents really changed, and their new rev; null: none did."""

    ids: list[Id]
    rev: Rev | None


class InboxAllSeen(Struct):
    """How many documents became seen, of those with a rev up to `upto`."""

    all: Literal[True]
    upto: Rev
    changed: int
