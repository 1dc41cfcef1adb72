"""The items of `POST /api/v2/notifications` and what they are answered, as types: for the OpenAPI document. What comes
in is checked in `parsers`, item by item."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from server.requests import IdempotencyKey, Problem, UserRef


class BatchItem(Struct):
    """A notification of a batch: as `NotifyRequest`, with `data`, and with at least one user."""

    content: Annotated[str, Meta(examples=["It arrives tomorrow."])]
    users: Annotated[list[UserRef], Meta(min_length=1, examples=[[{"id": "alice"}]])]
    type: str = ""
    title: str = ""
    url: str = ""
    icon: str = ""
    image: str = ""
    data: Annotated[Any, Meta(description="Any JSON value")] = None
    email_send: Annotated[bool, Meta(description="Mail the users who are away")] = False
    email_force: Annotated[bool, Meta(description="Mail all users, wherever they are")] = False
    email_subject: str = ""
    email_content: str = ""
    email_type: str = "text/html"
    email_mime: str = "1.0"
    idempotency_key: IdempotencyKey = None


class BatchOutcome(Struct):
    """What became of an item. `index`: its place in the request, from 0. `status`: as of a request of its own: 200, and
    it is stored for all its users, or that of its `problem`."""

    index: Annotated[int, Meta(ge=0)]
    status: int
    id: Annotated[str | UnsetType, Meta(description="Of the notification, if it is stored")] = UNSET
    replayed: Annotated[
        Literal[True] | UnsetType, Meta(description="It was stored when the same item came before")
    ] = UNSET
    problem: Problem | UnsetType = UNSET
