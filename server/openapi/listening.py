"""The routes by which clients listen: who may come in is answered here, before the upgrade or the first event."""

from __future__ import annotations

from server.openapi.parts import (
    JSON,
    PROBLEM,
    RETRY_AFTER,
    TEXT,
    USER_ID,
    Json,
    answer,
    any_of,
    json_answer,
    media,
    of_type,
    operation,
    parameter,
    path_parameter,
    problem_example,
    ref,
)
from server.requests import FeedRefusal, TenantRefusal, TicketAnswer

UPGRADED = answer("The connection is a WebSocket from now on")

NO_UPGRADE = answer(
    "The request does not ask for an upgrade to a WebSocket as RFC 6455 wants it",
    {
        PROBLEM: media(
            ref("schemas", "Problem"),
            problem_example(
                400, "bad_request", "the headers Connection and Sec-WebSocket-Key ask for no upgrade"
            ),
        )
    },
)

UPGRADE_REQUIRED = answer(
    "The request asks for no upgrade to a WebSocket, or for another version than 13",
    {
        PROBLEM: media(
            ref("schemas", "Problem"),
            problem_example(
                426, "upgrade_required", "only WebSocket connections are served here, of version 13"
            ),
        )
    },
    {
        "Upgrade": {"schema": {"const": "websocket"}, "required": True},
        "Sec-WebSocket-Version": {"schema": {"const": "13"}, "required": True},
    },
)

TOO_MANY = json_answer(
    "More connections than this address may open",
    FeedRefusal,
    {"error": "too many connections from this address; slow down"},
    RETRY_AFTER,
)

UNAVAILABLE = json_answer(
    "What decides about tokens cannot be asked now", FeedRefusal, {"error": "the key server does not answer"}
)

BEFORE: dict[int, Json] = {
    101: UPGRADED,
    400: NO_UPGRADE,
    426: UPGRADE_REQUIRED,
    429: TOO_MANY,
    503: UNAVAILABLE,
}

HUB: Json = operation(
    "Listen",
    "A WebSocket, as of the Redis hub",
    parameters=[parameter("query", "token", "A token that says who is listening", TEXT)],
    security=any_of("token"),
    answers={
        **BEFORE,
        401: json_answer(
            "There is no token, or it does not count", FeedRefusal, {"error": "missing token parameter"}
        ),
        403: json_answer(
            "Pages of this origin may not connect",
            FeedRefusal,
            {"error": "pages of this origin may not connect"},
        ),
    },
)

SERVICE: Json = operation(
    "Listen",
    "A WebSocket, as of the Django service",
    parameters=[
        path_parameter("user_id", "The user of the token", USER_ID),
        parameter("query", "token", "An identity token, or another that says who is listening", TEXT),
    ],
    security=any_of("token"),
    answers={
        **BEFORE,
        403: json_answer(
            "There is no token, it does not count, or it is another user's",
            FeedRefusal,
            {"error": "a token is needed"},
        ),
    },
)


def _detail(description: str, detail: str, headers: Json | None = None) -> Json:
    return answer(description, {JSON: media(of_type(TenantRefusal), {"detail": detail})}, headers)


TENANT: Json = operation(
    "Listen",
    "A WebSocket for what is for everybody of a tenant",
    parameters=[parameter("query", "api_key", "A key with the scope broadcasts or listen", TEXT)],
    security=any_of("api_key"),
    answers={
        **BEFORE,
        403: _detail(
            "There is no key, it is wrong, or has neither the scope broadcasts nor listen", "Invalid API key"
        ),
        429: _detail(
            "More connections than this address may open", "too many connections; slow down", RETRY_AFTER
        ),
        503: _detail("The server cannot decide about the key now", "the store does not answer; try again"),
    },
)

ACCESS: Json = {
    "Access-Control-Allow-Origin": {"schema": TEXT},
    "Access-Control-Allow-Credentials": {"schema": {"const": "true"}},
}
"""For pages of allowed origins."""


def listening_problem(description: str, example: Json, headers: Json | None = None) -> Json:
    return answer(description, {PROBLEM: media(ref("schemas", "Problem"), example)}, ACCESS | (headers or {}))


EVENT_PROBLEMS: dict[int, Json] = {
    401: listening_problem(
        "There is no token, it does not count, or the ticket is used up",
        problem_example(401, "no_credentials", "a token is needed: Authorization: Bearer …, or ?ticket=…"),
        {"WWW-Authenticate": {"schema": TEXT, "required": True, "example": 'Bearer realm="notifications"'}},
    ),
    403: listening_problem(
        "Pages of this origin may not connect",
        problem_example(403, "refused", "pages of this origin may not connect"),
    ),
    429: listening_problem(
        "More connections than this user or address may open",
        problem_example(429, "rate_limited", "too many connections; slow down"),
        RETRY_AFTER,
    ),
    503: listening_problem(
        "The store, or what decides about tokens, does not answer now",
        problem_example(503, "auth_unavailable", "the key server does not answer"),
        RETRY_AFTER,
    ),
}

EVENTS: Json = operation(
    "Listen",
    "Server-Sent Events",
    description="First all unseen notifications, oldest first; or, to who comes back, what has changed since.",
    parameters=[
        parameter("query", "ticket", "In place of `Authorization`, which `EventSource` cannot set", TEXT),
        parameter("header", "Last-Event-ID", "The id of the last event that was read", TEXT),
        parameter("query", "last_event_id", "The same, for who can set no header", TEXT),
        parameter("query", "v", "The dialect: 1 (which is so if none is named), or 2", TEXT),
        parameter("query", "since", "Of dialect 2: how far the client is", TEXT),
    ],
    security=any_of("User", "ticket"),
    answers={
        200: answer("Events, without an end", {"text/event-stream": media(TEXT)}, ACCESS),
        400: listening_problem(
            "There is no such dialect",
            problem_example(400, "invalid", "v: known are 1 and 2", field="v"),
        ),
        **EVENT_PROBLEMS,
    },
)

TICKET: Json = operation(
    "Listen",
    "A ticket for the events, good once and not for long",
    security=any_of("User"),
    answers={
        200: json_answer(
            "The ticket",
            TicketAnswer,
            {"ticket": "iQ2b0Xn7VYVd7v1o1lKq0m3yqjQ0cQkX2x4m9bq8Z3A", "expires_in": 30},
            ACCESS,
        ),
        **EVENT_PROBLEMS,
    },
)

PATHS: Json = {
    "/events": {"get": EVENTS},
    "/events/ticket": {"post": TICKET},
    "/ws": {"get": HUB},
    "/ws/notifications/{user_id}/": {"get": SERVICE},
    "/ws/notify/": {"get": TENANT},
}
