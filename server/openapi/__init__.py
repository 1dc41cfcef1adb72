"""The OpenAPI 3.1 document of all HTTP routes. Its schemas are made from the types in `requests`, which validate what
comes in. No I/O.

Each route stands here by hand, once, with all its answers; tests hold the list against the routes of the application,
and the answers of the running server against the document. What `docs/api.md` says at length is said here in a line.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from server import __version__, requests, requests_batch, requests_v2
from server.openapi import inbox, listening, operating, outbox, publishing, users
from server.openapi.operating import MEDIA_TYPES
from server.openapi.parts import HEADERS, RESPONSES, SECURITY_SCHEMES, Json, ref

__all__ = ["MEDIA_TYPES", "document", "schemas"]

DESCRIPTION = """\
A self-hosted notification server with an inbox: stored first, pushed to every open screen, mailed to those away.

Not in this document: the session routes of SockJS below `/notification` and of Socket.IO below `/socket.io`, which are
those of their protocols (what travels in them, and over WebSockets, is in `docs/asyncapi.yaml`); and what only a server
in DEBUG answers, to callers on this machine (`/`, `/example/…`, `/demo/…`, and `/api/notifications/`, which leads to
the example page).

Routes that pages of other origins may call take `OPTIONS`, too, and those that operators ask take `HEAD`. Where a path
ends in `/` here, it may also do without. Any other method is answered by 405, any other path by 404.
"""

TAGS = {
    "Publish": "For backends. A notification is stored for each user, then pushed, then mailed to who is away.",
    "Users": "For backends: what they do for their users. For pages: tokens for a password.",
    "Mail": "For administrators: the mail that is owed, and the dead letters.",
    "Listen": "For clients. What is told, and how, is in `docs/asyncapi.yaml`.",
    "Operate": "For load balancers, monitoring and developers.",
}


def document() -> Json:
    """The whole of it, a JSON object."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "notification-server",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": publishing.PATHS
        | users.PATHS
        | outbox.PATHS
        | inbox.PATHS
        | listening.PATHS
        | operating.PATHS,
        "components": {
            "schemas": schemas(),
            "responses": RESPONSES,
            "headers": HEADERS,
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def schemas() -> dict[str, Json]:
    """JSON Schemas (draft 2020-12, as OpenAPI 3.1 has it) of all types in `requests`, `requests_v2` and
    `requests_batch`, and of forms, by name."""
    named = {**vars(requests), **vars(requests_v2), **vars(requests_batch)}
    kinds = [kind for kind in named.values() if isinstance(kind, type) and issubclass(kind, Struct)]
    _, found = msgspec.json.schema_components(
        [kind for kind in kinds if kind is not Struct], ref_template=ref("schemas", "{name}")["$ref"]
    )
    tidy = {name: _tidy(schema) for name, schema in found.items()}
    return tidy | {"NotifyForm": publishing.form_of_notify(tidy["NotifyRequest"])}


def _tidy(value: Any) -> Any:
    """`value` with descriptions that have no line breaks: those of docstrings are in the middle of sentences."""
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: re.sub(r"\s+", " ", each) if key == "description" and isinstance(each, str) else _tidy(each)
        for key, each in value.items()
    }
