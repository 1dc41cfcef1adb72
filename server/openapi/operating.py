"""The routes that operators, pages and developers ask: health, figures, client files, this document."""

from __future__ import annotations

from server.openapi.parts import (
    BACKEND,
    HTML,
    JSON,
    PROBLEM,
    RETRY_AFTER,
    TEXT,
    Json,
    answer,
    any_of,
    json_answer,
    media,
    of_type,
    operation,
    parameter,
    problem_example,
    ref,
)
from server.requests import Alive, Figures, Health, Readiness

AT = "2030-01-31T12:00:00.000Z"

READINESS: Json = {
    "status": "degraded",
    "dependencies": {
        "store": {"status": "up", "latency_ms": 0.412},
        "mail": {"status": "down", "latency_ms": 0.009, "reason": "mail does not go out; the log says why"},
    },
}

HEALTH: Json = {
    "status": "healthy",
    "timestamp": AT,
    "redis": {"status": "not_configured", "ping_ms": None},
    "websocket": {"active_connections": 412, "total_unique_users": 240},
    "uptime_seconds": 86400,
    "store": {"status": "connected", "ping_ms": 0.412},
    "mail": {"status": "connected", "ping_ms": 0.009},
}

FIGURES: Json = {
    "service": "notification-server",
    "timestamp": AT,
    "uptime_seconds": 86400,
    "connections": {"active": 412, "total_unique_users": 240},
    "messages": {"received_from_redis": 0, "sent_to_clients": 18234, "failed": 2},
}


def _problem(description: str, example: Json, headers: Json | None = None) -> Json:
    """Of routes that are no doors: without a request id and limits."""
    return answer(description, {PROBLEM: media(ref("schemas", "Problem"), example)}, headers)


METRICS: Json = operation(
    "Operate",
    "Figures: JSON, or Prometheus's text for who asks for that",
    description="By tenant for callers from inside and for keys with the scope `admin`, for all others added up.",
    parameters=[
        parameter(
            "header",
            "Accept",
            "Which of them",
            {
                "type": "string",
                "examples": ["application/json", "text/plain", "application/openmetrics-text"],
            },
        )
    ],
    security=[*BACKEND, *any_of("")],
    answers={
        200: answer(
            "The figures",
            {
                JSON: media(of_type(Figures), FIGURES),
                "text/plain": media(TEXT),
                "application/openmetrics-text": media(TEXT),
            },
        ),
        403: _problem(
            "The credential is wrong; or there is none, and `public_metrics` is false",
            problem_example(403, "bad_credentials", "the key is wrong, expired or revoked"),
        ),
        429: _problem(
            "Too many wrong credentials",
            problem_example(429, "rate_limited", "too many requests; slow down"),
            RETRY_AFTER,
        ),
        503: _problem(
            "What decides about credentials cannot be asked now",
            problem_example(503, "auth_unavailable", "the key server does not answer"),
        ),
    },
)


def _file(summary: str, media_type: str, tag: str = "Operate") -> Json:
    """A file that browsers may keep."""
    return operation(
        tag,
        summary,
        answers={
            200: answer(
                "The file",
                {media_type: media(TEXT)},
                {"Etag": {"schema": TEXT}, "Last-Modified": {"schema": TEXT}},
            ),
            206: answer("The part of it that `Range` asks for", {media_type: media(TEXT)}),
            304: answer("Unchanged, says `If-None-Match` or `If-Modified-Since`"),
            416: answer("There is no such part"),
        },
    )


MEDIA_TYPES = (
    JSON,
    "application/vnd.oai.openapi+json",
    "application/yaml",
    "application/vnd.oai.openapi",
)
"""By which the document itself may be asked for; the first is the default."""

SCHEMA: Json = operation(
    "Operate",
    "This document",
    description="JSON, which is YAML as well (YAML 1.2 section 1.3): who asks for YAML gets it by that name.",
    parameters=[parameter("query", "format", "Counts over `Accept`", {"enum": ["json", "yaml"]})],
    answers={
        200: answer(
            "The document",
            {name: media({"type": "object"}) for name in MEDIA_TYPES},
        ),
        304: answer("Unchanged, says `If-None-Match`"),
    },
)

PATHS: Json = {
    "/healthz": {
        "get": operation(
            "Operate",
            "Whether the process is alive",
            {200: json_answer("It is", Alive, {"status": "ok"})},
        )
    },
    "/readyz": {
        "get": operation(
            "Operate",
            "Whether clients should be sent to this node",
            {
                200: json_answer("Yes", Readiness, READINESS),
                503: json_answer("No", Readiness, {"status": "starting", "dependencies": {}}),
            },
        )
    },
    "/health": {
        "get": operation(
            "Operate",
            "How this node is, as of the Redis hub",
            {
                200: json_answer("Well", Health, HEALTH),
                503: json_answer(
                    "The store is down, or the node starts or stops", Health, HEALTH | {"status": "degraded"}
                ),
            },
        )
    },
    "/metrics": {"get": METRICS},
    "/client/notifications.js": {"get": _file("The client for pages", "text/javascript", "Listen")},
    "/client/sockjs.min.js": {"get": _file("The SockJS client", "text/javascript", "Listen")},
    "/api/schema/": {"get": SCHEMA},
    "/api/docs/": {"get": _file("This document as a page", HTML)},
    "/api/docs/docs.js": {"get": _file("The script of that page", "text/javascript")},
    "/api/docs/docs.css": {"get": _file("The style of that page", "text/css")},
    "/api/docs/swagger-ui-bundle.js": {"get": _file("Swagger UI, which shows it", "text/javascript")},
    "/api/docs/swagger-ui.css": {"get": _file("The style of Swagger UI", "text/css")},
}
