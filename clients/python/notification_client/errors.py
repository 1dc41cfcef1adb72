"""Every error that a call can raise; texts and attributes never hold a key or what was sent.

NotificationError          status, code, maybe_done
├── Invalid                what was sent cannot be taken; `field` says what of it (400; 422: your idempotency key was
│   │                      used for something else)
│   └── TooLarge           … because it is over a limit (413)
├── Refused                the key is missing or wrong, or it may not do this (401, 403)
├── NotFound               what was named is not there (404)
├── Unavailable            not now; `retry_after` says when. Raised when the retries were used up (409 of the
│   │                      same call still being carried out, 502, 503, 504)
│   ├── RateLimited        this key has had its share for now (429)
│   ├── Unreachable        no connection: nothing was sent
│   └── AnswerLost         sent, but no answer came
└── UnexpectedAnswer       anything else: a redirect, a failure of the server, an answer of something else
"""

from __future__ import annotations


class NotificationError(Exception):
    """Base of all of them; `str(error)` is a sentence.

    `status`: of the answer, None if there was none. `code`: the server's stable word for what is wrong, as docs/api.md
    lists them, or "". `maybe_done`: whether the call may have been carried out all the same (by this attempt or an
    earlier one); False: surely not, so that calling again cannot do it twice.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str = "", maybe_done: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.maybe_done = maybe_done


class Invalid(NotificationError):
    """`field`: the path of what is wrong (`users[2].id`), "" for the request as a whole."""

    field = ""


class TooLarge(Invalid):
    """A text, a list or the whole is over a limit of the server."""


class Refused(NotificationError):
    """The server understood and does not allow it. Another key would help, repeating does not."""


class NotFound(NotificationError):
    """What was named is not there, or not this tenant's."""


class Unavailable(NotificationError):
    """Trying again later is right. `retry_after`: in how many seconds, None if the server did not say."""

    retry_after: float | None = None


class RateLimited(Unavailable):
    """Too many requests with this key, or from this address."""


class Unreachable(Unavailable):
    """No connection could be made."""


class AnswerLost(Unavailable):
    """No answer within the timeout, or the connection was cut before it was complete."""


class UnexpectedAnswer(NotificationError):
    """Not an answer that this client knows: is `url` the address of the notification server?"""
