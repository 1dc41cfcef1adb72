"""Every error that one part of the server may raise at another. Only doors turn them into replies.

ServerError                     code, http_status, retryable
├── InvalidInput                the caller sent something that cannot be taken; names the field
│   ├── InvalidNotification     at a publishing door
│   └── InvalidCommand          at a listening door
├── TooLarge                    a body, a list or a field over its limit; names the field
├── UnsupportedMediaType        a body in a form that nobody here reads
├── Refused                     the caller may not do this; says what would have to change
│   ├── NoCredentials           none were sent
│   ├── BadCredentials          login, password, key or token is wrong (never says which)
│   ├── TokenExpired            a token that was good once
│   └── NotJoined               a command that needs a user, on a connection that has none
├── NotFound                    what was named is not there
├── Conflict                    what was to be made is there already, or in the way
├── KeyReused                   an idempotency key came again with another request
├── InProgress                  the same request, with the same idempotency key, is being carried out
├── Busy                        a bounded resource is full for the moment
│   ├── RateLimited             this caller has had their share; says when to come back
│   └── AuthUnavailable         what decides about a login cannot be asked
└── StoreUnavailable            the store did not answer in time; what was written completes as a whole
                                or not at all
StartupError                    the server cannot start; one sentence for the operator
└── InvalidConfig               all that is wrong with the configuration, one problem a line
"""

from __future__ import annotations

from collections.abc import Sequence


class ServerError(Exception):
    """Base of all errors that a caller can act on. `str(error)` is a sentence without secrets or content."""

    code = "internal"
    http_status = 500
    retryable = False


class InvalidInput(ServerError):
    """`field` is the path of the offending field as the caller wrote it (`users[2].id`), "" for the whole
    input."""

    code = "invalid"
    http_status = 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class InvalidNotification(InvalidInput):
    """A notification that no door accepts."""


class InvalidCommand(InvalidInput):
    """A client's command that cannot be understood or carried out as it was written."""


class TooLarge(InvalidInput):
    """The input is well-formed but over a configured limit. `limit`: its key in [LIMITS], "" for one of the store's."""

    code = "too_large"
    http_status = 413

    def __init__(self, field: str, reason: str, limit: str = "") -> None:
        super().__init__(field, reason)
        self.limit = limit


class UnsupportedMediaType(ServerError):
    """A body in a form that is not read, whatever it says (RFC 9110 section 15.5.16)."""

    code = "unsupported_media_type"
    http_status = 415


class Refused(ServerError):
    """The caller is understood and not allowed."""

    code = "refused"
    http_status = 403


class NoCredentials(Refused):
    """A door that needs a credential was given none."""

    code = "no_credentials"
    http_status = 401


class BadCredentials(Refused):
    """Wrong login, password, key or token. One text for all of them, so that nobody learns which part was
    right."""

    code = "bad_credentials"

    def __init__(self, message: str = "login or password is wrong") -> None:
        super().__init__(message)


KEY_WRONG = "the key is wrong, expired or revoked"


class TenantGone(BadCredentials):
    """The tenant is not there, or no more. A caller is told what is told of any wrong key: whether there ever was such
    a tenant is nobody's business."""

    def __init__(self) -> None:
        super().__init__(KEY_WRONG)


class TokenExpired(BadCredentials):
    """A token that was good once. Getting a new one is right."""

    code = "token_expired"

    def __init__(self) -> None:
        super().__init__("the token has expired; get a new one")


class NotJoined(Refused):
    """A command that acts on a user's inbox came before a successful join."""

    code = "not_joined"
    http_status = 401

    def __init__(self) -> None:
        super().__init__("join first: this connection has no user")


class NotFound(ServerError):
    """What the caller named is not there, or not theirs."""

    code = "not_found"
    http_status = 404


class Conflict(ServerError):
    """What the caller wants to make is there already, or something is in its way."""

    code = "conflict"
    http_status = 409


class KeyReused(ServerError):
    """An idempotency key that was used for another request (draft-ietf-httpapi-idempotency-key-header, section 2.7)."""

    code = "idempotency_key_reused"
    http_status = 422

    def __init__(self) -> None:
        super().__init__(
            "this idempotency key was used for another request; use a new key for each notification"
        )


class InProgress(ServerError):
    """A request with the same idempotency key is being carried out. Trying again a little later is right."""

    code = "in_progress"
    http_status = 409
    retryable = True

    def __init__(self) -> None:
        super().__init__("the same request is still being carried out; try again")


class Busy(ServerError):
    """A bounded queue or pool is full. Trying again a little later is right."""

    code = "busy"
    http_status = 503
    retryable = True


class RateLimited(Busy):
    """The caller did more than their share. `retry_after_s`: when the same would be let through."""

    code = "rate_limited"
    http_status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AuthUnavailable(Busy):
    """What decides about a login or token (a database, a key server, a hook) cannot be asked now. Nobody gets in."""

    code = "auth_unavailable"


class StoreUnavailable(ServerError):
    """The store cannot be reached or did not answer in time."""

    code = "store_unavailable"
    http_status = 503
    retryable = True

    def __init__(self, message: str = "the store does not answer; try again") -> None:
        super().__init__(message)


class StartupError(Exception):
    """The server cannot start. `str(error)` is one clear sentence that says what to do."""


class InvalidConfig(StartupError):
    """Everything that is wrong with the configuration, each with file, section and key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
