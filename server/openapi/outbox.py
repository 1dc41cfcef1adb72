"""The routes about mail: what is owed, and the dead letters."""

from __future__ import annotations

from server.openapi.parts import (
    BACKEND,
    DOOR_HEADERS,
    NID,
    PROBLEMS,
    TEXT,
    USER_ID,
    Json,
    json_answer,
    operation,
    parameter,
    path_parameter,
    ref,
)
from server.requests import DroppedAnswer, OutboxAnswer, OutboxNotificationAnswer, RetriedAnswer

ID = "6740c0ffee0123456789abcc"

_ID = path_parameter("id", "The notification", NID)
_USER = parameter("query", "user_id", "Only the mail to this user", USER_ID)
_PAGING = [
    parameter("query", "after", "The `next` of the page before", TEXT),
    parameter(
        "query",
        "limit",
        "Mails of a page",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    ),
]
_DEAD: Json = {
    "id": ID,
    "user_id": "bob",
    "email": "bob@example.test",
    "state": "dead",
    "due_at": None,
    "leased_until": None,
    "attempts": 1,
    "failed_at": "2030-01-31T12:01:00.000Z",
    "code": 550,
    "reason": "no such user here",
}
_NOT_FOUND: dict[int, Json] = {404: ref("responses", "NotFound")}

LIST: Json = operation(
    "Mail",
    "The mail that is owed, and the dead letters",
    description="About in the order of the notifications. Needs the scope `admin`, as all of these.",
    parameters=[
        parameter(
            "query",
            "state",
            "Only mails in this state",
            {"enum": ["due", "leased", "waiting", "dead"], "type": "string"},
        ),
        *_PAGING,
    ],
    security=BACKEND,
    answers={
        200: json_answer("A page of mails", OutboxAnswer, {"mails": [_DEAD], "next": None}, DOOR_HEADERS),
        **PROBLEMS,
    },
)

SHOW: Json = operation(
    "Mail",
    "The mail of one notification",
    parameters=[_ID, *_PAGING],
    security=BACKEND,
    answers={
        200: json_answer(
            "A page of its mails",
            OutboxNotificationAnswer,
            {
                "id": ID,
                "created_at": "2030-01-31T12:00:00.000Z",
                "subject": "Order shipped",
                "forced": False,
                "mails": [_DEAD],
                "next": None,
            },
            DOOR_HEADERS,
        ),
        **PROBLEMS,
        **_NOT_FOUND,
    },
)

RETRY: Json = operation(
    "Mail",
    "Try mail again that waits or is dead",
    description="It is due now, as if it had never been tried; what is being sent is left alone.",
    parameters=[_ID, _USER],
    security=BACKEND,
    answers={
        200: json_answer("Done", RetriedAnswer, {"retried": 1}, DOOR_HEADERS),
        **PROBLEMS,
        **_NOT_FOUND,
    },
)

DROP: Json = operation(
    "Mail",
    "Owe mail no longer",
    description="Dead letters are forgotten; what is being sent is left alone; the inboxes keep the notification.",
    parameters=[_ID, _USER],
    security=BACKEND,
    answers={
        200: json_answer("Done", DroppedAnswer, {"dropped": 1}, DOOR_HEADERS),
        **PROBLEMS,
        **_NOT_FOUND,
    },
)

PATHS: Json = {
    "/api/outbox": {"get": LIST},
    "/api/outbox/{id}": {"get": SHOW, "delete": DROP},
    "/api/outbox/{id}/retry": {"post": RETRY},
}
