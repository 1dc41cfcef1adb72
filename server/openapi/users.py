"""The routes about users: tokens, and signing out."""

from __future__ import annotations

from server.openapi.parts import (
    BACKEND,
    DOOR_HEADERS,
    PROBLEMS,
    REQUEST_ID,
    USER_ID,
    Json,
    answer,
    any_of,
    json_answer,
    json_body,
    media,
    operation,
    path_parameter,
    problem,
    problem_example,
)
from server.requests import (
    LoginAnswer,
    LoginRequest,
    RefreshAnswer,
    RefreshRequest,
    TokenAnswer,
    TokenRequest,
    VerifyRequest,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjoiYWxpY2UifQ.c2lnbmF0dXJl"

TOKENS: Json = operation(
    "Users",
    "Make a token by which a user joins",
    description="For API keys with the scope `listen` only: the token is void once its key is.",
    body=json_body(TokenRequest, {"user_id": "alice", "expires_in": 600}),
    security=BACKEND,
    answers={
        200: json_answer(
            "The token",
            TokenAnswer,
            {"token": JWT, "expires_at": "2030-01-31T12:10:00.000Z"},
            DOOR_HEADERS,
        ),
        **PROBLEMS,
    },
)

SIGN_OUT: Json = operation(
    "Users",
    "Sign a user out everywhere",
    description="Ends all connections of the user, on every node, within a second, and voids the tokens made for them"
    " so far. Needs the scope `admin`.",
    parameters=[path_parameter("user_id", "Whom", USER_ID)],
    security=BACKEND,
    answers={204: answer("Done", headers=DOOR_HEADERS), **PROBLEMS},
)


def _invalid(name: str) -> Json:
    return problem(
        "A field is wrong: `field` names it, and a key of that name holds a list with the reason",
        problem_example(400, "invalid", f"{name}: missing", **{name: ["missing"]}, field=name),
    )


def _wrong(description: str, detail: str, title: str = "bad_credentials", **beside: str) -> Json:
    challenge: Json = {"required": True, "schema": {"type": "string"}, "example": 'Bearer realm="api"'}
    example = problem_example(401, title, detail, **beside)
    return problem(description, example, **{"WWW-Authenticate": challenge})


_TOKEN_WRONG = _wrong(
    "The token is wrong, or has ended", "Token is invalid or expired", code="token_not_valid"
)

_TROUBLES: dict[int, Json] = {status: PROBLEMS[status] for status in (413, 415, 429, 503)}

OBTAIN: Json = operation(
    "Users",
    "Tokens for a password",
    body=json_body(LoginRequest, {"username": "alice", "password": "alice"}),
    answers={
        200: json_answer(
            "The tokens", LoginAnswer, {"refresh": JWT, "access": JWT, "identity": JWT}, REQUEST_ID
        ),
        400: _invalid("username"),
        401: _wrong(
            "Nobody has this name and password", "No active account found with the given credentials"
        ),
        **_TROUBLES,
    },
)

REFRESH: Json = operation(
    "Users",
    "New tokens for a refresh token",
    body=json_body(RefreshRequest, {"refresh": JWT}),
    answers={
        200: json_answer("The tokens", RefreshAnswer, {"access": JWT, "identity": JWT}, REQUEST_ID),
        400: _invalid("refresh"),
        401: _TOKEN_WRONG,
        **_TROUBLES,
    },
)

VERIFY: Json = operation(
    "Users",
    "Whether a token counts",
    body=json_body(VerifyRequest, {"token": JWT}),
    answers={
        200: answer(
            "It does", {"application/json": media({"type": "object", "maxProperties": 0}, {})}, REQUEST_ID
        ),
        400: _invalid("token"),
        401: _TOKEN_WRONG,
        **_TROUBLES,
    },
)

IS_AUTHENTICATED: Json = operation(
    "Users",
    "Whether the caller's token counts",
    security=any_of("User"),
    answers={
        200: answer("It does", headers=REQUEST_ID),
        401: _wrong(
            "There is no token, or it does not count",
            "Authentication credentials were not provided.",
            title="no_credentials",
        ),
        **_TROUBLES,
    },
)

PATHS: Json = {
    "/api/v2/tokens": {"post": TOKENS},
    "/api/v2/users/{user_id}/sign-out": {"post": SIGN_OUT},
    "/api/users/token/": {"post": OBTAIN},
    "/api/users/token/refresh/": {"post": REFRESH},
    "/api/users/token/verify/": {"post": VERIFY},
    "/api/users/is-authenticated/": {"get": IS_AUTHENTICATED},
}
