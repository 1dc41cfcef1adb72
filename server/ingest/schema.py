"""`/api/schema/` and `/api/docs/`: the OpenAPI document, and a page that shows it, without anything from elsewhere."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tornado.web import StaticFileHandler

from server.accept import best_offer
from server.methods import LeadingHandler, MethodNamingHandler
from server.openapi import MEDIA_TYPES, document

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
"""Swagger UI sets styles in the page; no script stands there, and it asks nobody but this server."""

FORMATS = {b"json": "application/json", b"yaml": "application/yaml"}


@cache
def _text() -> str:
    """JSON, without escapes: so it is YAML, too (YAML 1.2 section 1.3)."""
    return json.dumps(document(), indent=1, ensure_ascii=False)


class SchemaHandler(MethodNamingHandler):
    """`GET /api/schema/`: the document; as `?format=` or `Accept` wants it called."""

    door = "schema"

    def get(self) -> None:
        wanted = FORMATS.get(self.request.query_arguments.get("format", [b""])[-1])
        media_type = wanted or best_offer(self.request.headers.get("Accept", ""), MEDIA_TYPES)
        self.set_header("Content-Type", media_type)
        self.set_header("Vary", "Accept")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Access-Control-Allow-Origin", "*")  # nothing in it is a secret
        self.finish(_text())

    head = get


class DocsHandler(MethodNamingHandler, StaticFileHandler):
    """`GET /api/docs/`: the page and its files."""

    door = "schema"

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.set_header("Cache-Control", "no-cache")


def routes(folder: Path, *, has_example: bool) -> list[tuple[Any, ...]]:
    """`folder`: where the page is. `has_example`: whether there is an example page: `/api/notifications/`, the demo
    page of the Django service (CONTRACT C3), leads to it."""
    files = {"path": str(folder), "default_filename": "index.html"}
    demo = (r"/api/notifications/?", LeadingHandler, {"url": "/", "permanent": False})
    return [
        (r"/api/schema/?", SchemaHandler),
        (r"/api/docs/?()", DocsHandler, files),
        (r"/api/docs/(docs\.css|docs\.js|swagger-ui\.css|swagger-ui-bundle\.js)", DocsHandler, files),
        *([demo] if has_example else []),
    ]
