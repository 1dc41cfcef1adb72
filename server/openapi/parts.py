"""What the routes of the OpenAPI document are made of: operations, bodies, answers, headers, credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

Json = dict[str, Any]

JSON = "application/json"
PROBLEM = "application/problem+json"
HTML = "text/html"


def ref(section: str, name: str) -> Json:
    """A reference to one of the document's components."""
    return {"$ref": f"#/components/{section}/{name}"}


def of_type(kind: type[Struct]) -> Json:
    """A reference to the schema of a type in `requests`."""
    return ref("schemas", kind.__name__)


# -- operations ----------------------------------------------------------------------------------------------


def operation(
    tag: str,
    summary: str,
    answers: Mapping[int, Json],
    *,
    description: str = "",
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    security: Sequence[Json] = (),
) -> Json:
    """One method of a path. `answers`: by status; `security`: of these credentials one is needed."""
    fields: Json = {"tags": [tag], "summary": summary}
    if description:
        fields["description"] = description
    if parameters:
        fields["parameters"] = list(parameters)
    if body is not None:
        fields["requestBody"] = body
    if security:
        fields["security"] = list(security)
    return fields | {"responses": {str(status): answer for status, answer in sorted(answers.items())}}


def json_body(kind: type[Struct], example: Any) -> Json:
    """A request body that is an object of this type."""
    return {"required": True, "content": {JSON: media(of_type(kind), example)}}


def media(schema: Json, example: Any = None) -> Json:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def parameter(where: str, name: str, description: str, schema: Json, *, is_required: bool = False) -> Json:
    """`where`: query, path or header."""
    return {"name": name, "in": where, "description": description, "required": is_required, "schema": schema}


def path_parameter(name: str, description: str, schema: Json) -> Json:
    return parameter("path", name, description, schema, is_required=True)


TEXT: Json = {"type": "string"}

USER_ID: Json = {"type": "string", "minLength": 1, "maxLength": 1024, "examples": ["alice"]}

NID: Json = {"type": "string", "pattern": "^[0-9a-f]{24}$", "examples": ["6740c0ffee0123456789abcc"]}


# -- answers -------------------------------------------------------------------------------------------------


def answer(description: str, content: Json | None = None, headers: Json | None = None) -> Json:
    """`content`: by media type; None: the body is empty."""
    fields: Json = {"description": description}
    if headers:
        fields["headers"] = headers
    return fields if content is None else fields | {"content": content}


def json_answer(description: str, kind: type[Struct], example: Any, headers: Json | None = None) -> Json:
    return answer(description, {JSON: media(of_type(kind), example)}, headers)


def problem_example(status: int, code: str, detail: str, /, **beside: Any) -> Json:
    return {"type": "about:blank", "title": code, "status": status, "detail": detail, **beside}


def problem(description: str, example: Json, **headers: Json) -> Json:
    """An answer that says what is wrong (RFC 9457)."""
    return answer(description, {PROBLEM: media(ref("schemas", "Problem"), example)}, DOOR_HEADERS | headers)


# -- headers -------------------------------------------------------------------------------------------------

HEADERS: Json = {
    "RequestId": {
        "description": "By which the request is found again in the log: the caller's own, or a new one",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
        "example": "5ddea7ba7c86da79",
    },
    "RateLimit": {
        "description": "Where requests are counted: how many are left (`r`), in how many seconds it will be all (`t`)",
        "schema": {"type": "string", "pattern": '^"[^"]+";r=[0-9]+;t=[0-9]+$'},
        "example": '"requests_per_key";r=599;t=1',
    },
    "RateLimitPolicy": {
        "description": "Where requests are counted: how many (`q`) there may be, in how many seconds (`w`)",
        "schema": {"type": "string", "pattern": '^"[^"]+";q=[0-9]+;(w=[0-9]+|qu="[a-z-]+")$'},
        "example": '"requests_per_key";q=600;w=60',
    },
    "IdempotentReplayed": {
        "description": "There if the same request, with this idempotency key, was carried out before: nothing changed",
        "schema": {"const": "true"},
    },
    "RetryAfter": {
        "description": "Seconds, after which trying again is worth it",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "2",
    },
}

REQUEST_ID: Json = {"X-Request-ID": ref("headers", "RequestId")}

IDEMPOTENCY_KEY = parameter(
    "header",
    "Idempotency-Key",
    "By which the same request is known when it comes again, for a day: it then changes nothing and is answered as at"
    " first. Visible ASCII, bare or as a quoted string (draft-ietf-httpapi-idempotency-key-header). It may also be the"
    " field `idempotency_key`.",
    {
        "type": "string",
        "pattern": r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$',
        "examples": ['"8e03978e-40d5-43dd-bc93-6894a57f9324"'],
    },
)

DOOR_HEADERS: Json = {
    **REQUEST_ID,
    "RateLimit": ref("headers", "RateLimit"),
    "RateLimit-Policy": ref("headers", "RateLimitPolicy"),
}
"""Of all doors for backends."""

PUBLISHED_HEADERS: Json = {**DOOR_HEADERS, "Idempotent-Replayed": ref("headers", "IdempotentReplayed")}

RETRY_AFTER: Json = {"Retry-After": ref("headers", "RetryAfter")}


RESPONSES: Json = {
    "Invalid": problem(
        "A field is wrong, and `field` names it. Only who may come in is told so.",
        problem_example(400, "invalid", "users[2].id: missing", field="users[2].id"),
    ),
    "NoCredentials": problem(
        "A credential is needed",
        problem_example(401, "no_credentials", "a key is needed"),
        **{"WWW-Authenticate": {"schema": TEXT, "example": "Api-Key"}},
    ),
    "Refused": problem(
        "The credential is wrong, or does not allow this",
        problem_example(403, "refused", "this credential has not the scope publish"),
    ),
    "NotFound": problem(
        "It is not there", problem_example(404, "not_found", "there is no such notification")
    ),
    "InProgress": problem(
        "The same request, with this idempotency key, is still being carried out. Try again.",
        problem_example(409, "in_progress", "the same request is still being carried out; try again"),
        **RETRY_AFTER,
    ),
    "KeyReused": problem(
        "This idempotency key was used for another request",
        problem_example(
            422,
            "idempotency_key_reused",
            "this idempotency key was used for another request; use a new key for each notification",
        ),
    ),
    "TooLarge": problem(
        "The body, a field or a list is over its limit",
        problem_example(
            413, "too_large", "content: 70000 bytes are more than the 65536 allowed", field="content"
        ),
    ),
    "UnsupportedMediaType": problem(
        "The body has a Content-Encoding: it is to be sent as it is",
        problem_example(
            415, "unsupported_media_type", "no Content-Encoding is understood; send the body as it is"
        ),
        **{"Accept-Encoding": {"schema": {"const": "identity"}}},
    ),
    "TooMany": problem(
        "More requests than this key or address may make",
        problem_example(429, "rate_limited", "too many requests with this key; slow down"),
        **RETRY_AFTER,
    ),
    "Unavailable": problem(
        "The store, or what decides about credentials, does not answer, or the server stops. Nothing is stored, or"
        " (after a time-out) all of it will be. Try again.",
        problem_example(503, "store_unavailable", "the store does not answer; try again"),
        **RETRY_AFTER,
    ),
}
"""What many routes answer."""

TROUBLES: dict[int, Json] = {
    429: ref("responses", "TooMany"),
    503: ref("responses", "Unavailable"),
}

ONCE: dict[int, Json] = {
    409: ref("responses", "InProgress"),
    422: ref("responses", "KeyReused"),
}
"""What is answered besides where a request may have an idempotency key."""

PROBLEMS: dict[int, Json] = {
    400: ref("responses", "Invalid"),
    401: ref("responses", "NoCredentials"),
    403: ref("responses", "Refused"),
    413: ref("responses", "TooLarge"),
    415: ref("responses", "UnsupportedMediaType"),
    **TROUBLES,
}
"""The refusals that doors for backends have in common."""


# -- credentials ---------------------------------------------------------------------------------------------

SECURITY_SCHEMES: Json = {
    "Api-Key": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Api-Key K`, K being a key of `notification-server key add`",
    },
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key, or the JSON Web Token of a service (`[SERVICE_JWT]`)",
    },
    "internal-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "internal-api-key",
        "description": "A key",
    },
    "apikey": {
        "type": "apiKey",
        "in": "query",
        "name": "apikey",
        "description": "A key, as a field of `POST /notify`: in the query, or in the body",
    },
    "mTLS": {"type": "mutualTLS", "description": "A client certificate whose subject is in `[CERTIFICATES]`"},
    "User": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "The token of a user"},
    "token": {"type": "apiKey", "in": "query", "name": "token", "description": "The token of a user"},
    "ticket": {"type": "apiKey", "in": "query", "name": "ticket", "description": "Of `POST /events/ticket`"},
    "api_key": {
        "type": "apiKey",
        "in": "query",
        "name": "api_key",
        "description": "A key with the scope broadcasts or listen",
    },
}


def any_of(*names: str) -> list[Json]:
    """One of these is needed; "" stands for none at all."""
    return [{name: []} if name else {} for name in names]


BACKEND = any_of("Api-Key", "Bearer", "internal-api-key", "mTLS")

PUBLISHER = [*BACKEND, *any_of("")]
"""Without a credential, callers on this machine publish, if `publish_without_key` says so."""
