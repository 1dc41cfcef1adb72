"""The inbox for those who poll, and the socket of dialect 2."""

from __future__ import annotations

from server.openapi.listening import ACCESS, BEFORE, EVENT_PROBLEMS, listening_problem
from server.openapi.parts import (
    JSON,
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
    problem_example,
)
from server.requests_v2 import (
    InboxAllSeen,
    InboxChange,
    InboxChanged,
    InboxChanges,
    InboxPage,
    InboxRemoval,
)

_DOCUMENT: Json = {
    "_id": "6740c0ffee0123456789abcd",
    "_userId": "alice",
    "nid": "6740c0ffee0123456789abcc",
    "type": "order",
    "title": "Order",
    "content": "Your order is on its way",
    "url": "",
    "icon": "",
    "image": "",
    "createdAt": "2026-11-21T09:30:00.123Z",
    "updatedAt": "2026-11-21T09:30:00.123Z",
    "deletedAt": None,
    "delete": False,
    "seen": False,
    "rev": "019349b2c3d40000",
}

_SINCE = "6740c0ffee0123456789abce.019349b2c3d40000"

_PROBLEMS: dict[int, Json] = {
    **EVENT_PROBLEMS,
    400: listening_problem(
        "A field is wrong, and `field` names it",
        problem_example(400, "invalid", "limit: not an integer above 0", field="limit"),
    ),
}

_CHANGING: dict[int, Json] = {
    **_PROBLEMS,
    413: listening_problem(
        "Too many ids, or too large a body",
        problem_example(413, "too_large", "ids: more than 500", field="ids"),
    ),
}

_TAG: Json = {"ETag": {"schema": TEXT, "required": True, "example": f'W/"0123456789abcdef.{_SINCE}"'}}

READ: Json = operation(
    "Listen",
    "A user's inbox: a page, or what has changed",
    description="With `since` what has changed since then, else documents, newest first.",
    parameters=[
        parameter("query", "before", "Only what is older than this document", TEXT),
        parameter("query", "limit", "How many documents at most; 100 is the most there are", TEXT),
        parameter("query", "type", "Of this type only", TEXT),
        parameter("query", "seen", "`true` or `false`: only those that are, or are not", TEXT),
        parameter("query", "since", "A token that the server gave", TEXT),
        parameter("header", "If-None-Match", "The ETag of the last answer", TEXT),
    ],
    security=any_of("User"),
    answers={
        200: answer(
            "A page, or changes",
            {
                JSON: media(
                    {"anyOf": [of_type(InboxPage), of_type(InboxChanges)]},
                    {"documents": [_DOCUMENT], "older": False},
                )
            },
            ACCESS | _TAG,
        ),
        304: answer("Nothing has changed since that answer", headers=ACCESS | _TAG),
        **_PROBLEMS,
    },
)

CHANGE: Json = operation(
    "Listen",
    "Mark documents seen or unseen, delete or restore them",
    body=json_body(InboxChange, {"ids": ["6740c0ffee0123456789abcd"], "seen": True}),
    security=any_of("User"),
    answers={
        200: answer(
            "What really changed",
            {
                JSON: media(
                    {"anyOf": [of_type(InboxChanged), of_type(InboxAllSeen)]},
                    {"ids": ["6740c0ffee0123456789abcd"], "rev": "019349b2c3d40001"},
                )
            },
            ACCESS,
        ),
        **_CHANGING,
    },
)

REMOVE: Json = operation(
    "Listen",
    "Delete documents",
    body=json_body(InboxRemoval, {"ids": ["6740c0ffee0123456789abcd"]}),
    security=any_of("User"),
    answers={
        200: json_answer(
            "What really changed",
            InboxChanged,
            {"ids": ["6740c0ffee0123456789abcd"], "rev": "019349b2c3d40001"},
            ACCESS,
        ),
        **_CHANGING,
    },
)

SOCKET: Json = operation(
    "Listen",
    "A WebSocket for dialect 2",
    description="Who is listening is said by `join`, see docs/protocol.md.",
    answers={
        **BEFORE,
        403: answer("Pages of this origin may not connect", BEFORE[429]["content"]),
    },
)

PATHS: Json = {
    "/api/v2/inbox": {"get": READ, "patch": CHANGE, "delete": REMOVE},
    "/ws/v2": {"get": SOCKET},
}
