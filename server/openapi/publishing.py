"""The routes by which backends publish."""

from __future__ import annotations

import json

from server.idempotency import KEY_PATTERN
from server.openapi.parts import (
    DOOR_HEADERS,
    HTML,
    IDEMPOTENCY_KEY,
    JSON,
    NID,
    ONCE,
    PROBLEM,
    PROBLEMS,
    PUBLISHED_HEADERS,
    PUBLISHER,
    TEXT,
    Json,
    answer,
    any_of,
    json_answer,
    json_body,
    media,
    of_type,
    operation,
    parameter,
    path_parameter,
    problem,
    problem_example,
    ref,
)
from server.requests import (
    BroadcastAnswer,
    BroadcastRequest,
    DeliveriesAnswer,
    InternalAnswer,
    InternalRequest,
    NotifyRequest,
    ServiceAnswer,
    ServiceRequest,
)
from server.requests_batch import BatchItem, BatchOutcome

ID = "6740c0ffee0123456789abcc"

NDJSON = "application/x-ndjson"


def _lines(values: list[Json]) -> str:
    return "".join(f"{json.dumps(value)}\n" for value in values)


NOTIFY_EXAMPLE: Json = {
    "title": "Order shipped",
    "content": "It arrives tomorrow.",
    "url": "https://shop.example/orders/7",
    "type": "order",
    "users": [{"id": "alice"}, {"id": 2, "email": "two@example.test"}],
    "email_send": False,
}

NOTIFY_FORM_EXAMPLE: Json = {
    "title": "Order shipped",
    "content": "It arrives tomorrow.",
    "users": '[{"id": "alice"}]',
}


def form_of_notify(request: Json) -> Json:
    """The schema of a form, from that of `NotifyRequest`: booleans are words, and `users` is JSON in a text."""
    properties = dict(request["properties"])
    properties["users"] = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": {"type": "array", "items": ref("schemas", "UserRef")},
        "default": "[]",
        "examples": ['[{"id": "alice"}]'],
    }
    properties["idempotency_key"] = {"type": "string", "pattern": KEY_PATTERN}
    for name in ("email_send", "email_force"):
        properties[name] = {
            "type": "string",
            "description": f"{properties[name]['description']}; true for 1, true, True, yes and Yes",
            "default": "false",
        }
    return {
        "title": "NotifyForm",
        "description": "The fields of NotifyRequest as texts; of several values of a field the last one wins",
        "type": "object",
        "properties": properties,
    }


NOTIFY: Json = operation(
    "Publish",
    "Publish to any number of users",
    description="Fields come as a form, as JSON or in the query; the body's count over the query's. `content` is"
    " required. Texts are stripped of surrounding white space. Without users, nothing is stored.",
    parameters=[
        parameter(
            "query", "fields", "The same fields as in a form", ref("schemas", "NotifyForm"), is_required=False
        )
        | {"style": "form", "explode": True, "example": {}},
        IDEMPOTENCY_KEY,
    ],
    body={
        "content": {
            JSON: media(of_type(NotifyRequest), NOTIFY_EXAMPLE),
            "application/x-www-form-urlencoded": media(ref("schemas", "NotifyForm"), NOTIFY_FORM_EXAMPLE),
            "multipart/form-data": media(ref("schemas", "NotifyForm"), NOTIFY_FORM_EXAMPLE),
        }
    },
    security=[*PUBLISHER, *any_of("apikey")],
    answers={
        200: answer(
            "Every user's document, and the mail that is owed, are on disk. Pushes are under way.",
            headers=PUBLISHED_HEADERS,
        ),
        400: answer(
            "A field is wrong, and `field` names it; or the credential is wrong, or missing where config.ini has an"
            " `apikey`",
            {
                PROBLEM: media(
                    ref("schemas", "Problem"),
                    problem_example(400, "invalid", "users[2].id: missing", field="users[2].id"),
                ),
                HTML: media(
                    {"type": "string", "const": "<html><body>API Key refused</body></html>"},
                    "<html><body>API Key refused</body></html>",
                ),
            },
            DOOR_HEADERS,
        ),
        403: problem(
            "The credential is not for publishing; or none came, and the caller is not surely on this machine",
            problem_example(403, "no_credentials", "a key is needed"),
        ),
        **{status: PROBLEMS[status] for status in (413, 415, 429, 503)},
        **ONCE,
    },
)

SEND: Json = operation(
    "Publish",
    "Publish to one user, or to everybody of the tenant",
    description="`user_id` and `payload` are for one user; `title` and `message` for everybody whom the tenant knows,"
    " and for every client that listens with its key.",
    parameters=[IDEMPOTENCY_KEY],
    body={
        "required": True,
        "content": {
            JSON: {
                "schema": {"anyOf": [of_type(ServiceRequest), of_type(BroadcastRequest)]},
                "examples": {
                    "one user": {
                        "value": {"user_id": "alice", "payload": {"title": "Order shipped", "order": 7}}
                    },
                    "everybody": {
                        "value": {"title": "Maintenance", "message": "Tonight at ten", "data": {"hours": 2}}
                    },
                },
            }
        },
    },
    security=PUBLISHER,
    answers={
        200: answer(
            "Stored for the user, and echoed; or on disk, and on its way to everybody",
            {
                JSON: {
                    "schema": {"anyOf": [of_type(ServiceAnswer), of_type(BroadcastAnswer)]},
                    "examples": {
                        "one user": {
                            "value": {"user_id": "alice", "payload": {"title": "Order shipped", "order": 7}}
                        },
                        "everybody": {"value": {"status": "broadcasted", "id": ID}},
                    },
                }
            },
            PUBLISHED_HEADERS,
        ),
        400: problem(
            "A field is wrong: `field` names it, and a key of that name holds a list with the reason",
            problem_example(400, "invalid", "payload: missing", field="payload", payload=["missing"]),
        ),
        403: problem(
            "There is no credential, it is wrong, or it does not allow this",
            problem_example(403, "bad_credentials", "Invalid API key"),
        ),
        **{status: PROBLEMS[status] for status in (413, 415, 429, 503)},
        **ONCE,
    },
)

INTERNAL: Json = operation(
    "Publish",
    "Publish a payload to one or many users",
    parameters=[IDEMPOTENCY_KEY],
    body=json_body(
        InternalRequest, {"userIds": ["alice", 7], "payload": {"type": "booking", "title": "Confirmed"}}
    ),
    security=PUBLISHER,
    answers={
        202: json_answer(
            "Stored for all of them; telling them is under way",
            InternalAnswer,
            {"status": "queued", "id": ID},
            PUBLISHED_HEADERS,
        ),
        **{status: PROBLEMS[status] for status in (400, 403, 413, 415, 429, 503)},
        **ONCE,
    },
)

BATCH_EXAMPLE: list[Json] = [
    {"content": "It arrives tomorrow.", "users": [{"id": "alice"}], "idempotency_key": "order-7"},
    {"content": "It arrives today.", "users": []},
]

BATCH_ANSWER: list[Json] = [
    {"index": 0, "status": 200, "id": ID},
    {
        "index": 1,
        "status": 400,
        "problem": problem_example(400, "invalid", "users: missing", field="users"),
    },
]

BATCH: Json = operation(
    "Publish",
    "Publish many notifications, each to users of its own",
    description="As a JSON array, or as NDJSON: one JSON object a line, empty lines are passed over. Each stands for"
    " itself, counts as a request of its key, and may have an `idempotency_key`; the answer has the same form and"
    " order. When the store goes away, or the server stops, the rest has that as its problem.",
    body={
        "required": True,
        "content": {
            JSON: media(
                {"type": "array", "items": of_type(BatchItem), "maxItems": 20_000}, BATCH_EXAMPLE[:1]
            ),
            NDJSON: media({"type": "string"}, _lines(BATCH_EXAMPLE[:1])),
        },
    },
    security=PUBLISHER,
    answers={
        200: answer(
            "What became of each item",
            {
                JSON: media({"type": "array", "items": of_type(BatchOutcome)}, BATCH_ANSWER),
                NDJSON: media({"type": "string"}, _lines(BATCH_ANSWER)),
            },
            DOOR_HEADERS,
        ),
        **{status: PROBLEMS[status] for status in (400, 401, 403, 413, 415, 429, 503)},
    },
)

DELIVERIES: Json = operation(
    "Publish",
    "How far a notification got with each of its users",
    parameters=[
        path_parameter("id", "The `id` of a broadcast or an internal request, the `nid` of a document", NID),
        parameter("query", "after", "The `next` of the page before", TEXT),
        parameter(
            "query",
            "limit",
            "Users of a page",
            {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
        ),
    ],
    security=PUBLISHER,
    answers={
        200: json_answer(
            "A page of users",
            DeliveriesAnswer,
            {
                "id": ID,
                "deliveries": [
                    {
                        "user_id": "alice",
                        "status": "delivered",
                        "sent_at": "2030-01-31T12:00:00.000Z",
                        "delivered_at": "2030-01-31T12:00:02.500Z",
                        "failed_at": None,
                    },
                    {
                        "user_id": "bob",
                        "status": "failed",
                        "sent_at": "2030-01-31T12:00:00.000Z",
                        "delivered_at": None,
                        "failed_at": "2030-01-31T12:01:00.000Z",
                        "reason": "550 no such user here",
                    },
                ],
                "next": None,
            },
            DOOR_HEADERS,
        ),
        404: ref("responses", "NotFound"),
        **PROBLEMS,
    },
)

PATHS: Json = {
    "/notify": {"post": NOTIFY},
    "/api/v2/notifications": {"post": BATCH},
    "/api/notifications/send/": {"post": SEND},
    "/api/realtime/internal/notify": {"post": INTERNAL},
    "/api/notifications/{id}/deliveries": {"get": DELIVERIES},
}
