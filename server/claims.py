"""What others say about a user, in tokens and in answers of hooks: a JSON value made one of ours, or refused.

Each function raises ValueError with a reason that can follow the value's name and never repeats the value.
"""

from __future__ import annotations

from datetime import UTC, datetime

from server.grants import is_name

MAX_USER_ID_BYTES = 1024

TOKEN_WRONG = "the token is wrong"  # noqa: S105 - a message
"""Why a token is refused, whatever is wrong with it: who tries tokens learns nothing."""

_LAST_INSTANT = 253_402_300_799
"""The end of the year 9999, beyond which `datetime` knows nothing. A time in milliseconds, taken for one in seconds,
lies beyond it too, and is refused instead of lasting for ever."""


def user_id(value: object) -> str:
    """A text or an integer, which is the same user as its text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("is neither a text nor an integer")
    if not value:
        raise ValueError("is empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode (a lone surrogate)") from None
    if size > MAX_USER_ID_BYTES:
        raise ValueError(f"is longer than {MAX_USER_ID_BYTES} bytes")
    return value


def tenant(value: object) -> str | None:
    """A tenant's name; None (null, or not said) stays None."""
    if value is None:
        return None
    if not isinstance(value, str) or not is_name(value):
        raise ValueError("is not a tenant's name")
    return value


def instant(value: object) -> datetime:
    """A NumericDate (RFC 7519 section 2: seconds since 1970, maybe with a fraction) as aware UTC."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number of seconds")
    # Not `value < 0 or …`: NaN compares as false with everything.
    if not 0 <= value <= _LAST_INSTANT:
        raise ValueError("is not within the years 1970 to 9999")
    return datetime.fromtimestamp(value, UTC)
