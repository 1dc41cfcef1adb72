"""Tests of server/errors.py."""

from __future__ import annotations

import pytest

from server.errors import (
    AuthUnavailable,
    BadCredentials,
    Busy,
    Conflict,
    InvalidCommand,
    InvalidConfig,
    InvalidInput,
    InvalidNotification,
    NoCredentials,
    NotFound,
    NotJoined,
    RateLimited,
    Refused,
    ServerError,
    StartupError,
    StoreUnavailable,
    TokenExpired,
    TooLarge,
    UnsupportedMediaType,
)


@pytest.mark.parametrize(
    ("error", "code", "http_status", "retryable"),
    [
        (ServerError("it broke"), "internal", 500, False),
        (InvalidInput("a", "missing"), "invalid", 400, False),
        (InvalidNotification("a", "missing"), "invalid", 400, False),
        (InvalidCommand("a", "missing"), "invalid", 400, False),
        (TooLarge("a", "too long"), "too_large", 413, False),
        (UnsupportedMediaType("send it as it is"), "unsupported_media_type", 415, False),
        (Refused("not you"), "refused", 403, False),
        (NoCredentials("show a key"), "no_credentials", 401, False),
        (BadCredentials(), "bad_credentials", 403, False),
        (TokenExpired(), "token_expired", 403, False),
        (NotJoined(), "not_joined", 401, False),
        (NotFound("no such tenant"), "not_found", 404, False),
        (Conflict("there is one"), "conflict", 409, False),
        (Busy("later"), "busy", 503, True),
        (RateLimited("slow down", 1.5), "rate_limited", 429, True),
        (AuthUnavailable("ask again"), "auth_unavailable", 503, True),
        (StoreUnavailable(), "store_unavailable", 503, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServerError) else None,
)
def test_each_error_knows_how_doors_answer_it(
    error: ServerError, code: str, http_status: int, retryable: bool
) -> None:
    """Every error has a code, an HTTP status, a sentence, and says whether trying again can help."""
    assert (error.code, error.http_status, error.retryable) == (code, http_status, retryable)
    assert str(error)


def test_invalid_input_names_the_field_before_the_reason() -> None:
    """The sentence begins with the path of the field, as the caller wrote it."""
    error = InvalidNotification("users[2].id", "missing")
    assert str(error) == "users[2].id: missing"
    assert (error.field, error.reason) == ("users[2].id", "missing")


def test_invalid_input_as_a_whole_names_no_field() -> None:
    """Without a field the sentence is the reason alone."""
    assert str(InvalidCommand("", "the message is not JSON")) == "the message is not JSON"


def test_bad_credentials_do_not_say_which_part_was_wrong() -> None:
    """One text for all, unless the door speaks of something else than a login."""
    assert str(BadCredentials()) == "login or password is wrong"
    assert str(BadCredentials("API key refused")) == "API key refused"


def test_invalid_config_tells_all_problems_one_a_line() -> None:
    """The operator sees everything at once, and code can still tell the problems apart."""
    error = InvalidConfig(["config.ini [A] b: bad", "config.ini [C] d: bad"])
    assert isinstance(error, StartupError)
    assert error.problems == ("config.ini [A] b: bad", "config.ini [C] d: bad")
    assert str(error).splitlines() == list(error.problems)


def test_a_start_that_fails_is_no_callers_business() -> None:
    """Doors catch ServerError; what ends the process must pass them."""
    assert not issubclass(StartupError, ServerError)
