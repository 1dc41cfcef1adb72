"""Why something outside could not be reached, as the log says it: in one line."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Sequence
from socket import gaierror

MAX_CHARS = 300


def causes(error: BaseException) -> Sequence[BaseException]:
    """The error, and what is below it. Libraries wrap what the system says into words of theirs."""
    chain = [error]
    while below := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(below)
    return chain


def of_system(error: BaseException) -> str | None:
    """What TLS, the resolver of names or the system says below this error, or a peer by a number like theirs; None:
    nothing of it is theirs."""
    chain = causes(error)
    for each in chain:
        if isinstance(each, ssl.SSLError | gaierror):
            return in_one_line(str(each))
    for each in chain:
        if isinstance(each, OSError) and each.errno:
            # A number that the system does not have is of another protocol (AMQP's 530), and so is the text.
            is_of_system = each.errno in errno.errorcode
            return os.strerror(each.errno) if is_of_system else in_one_line(str(each.strerror))
    return None


def in_one_line(text: str) -> str:
    """Its beginning, without what would not be printed, and without a full stop."""
    printable = "".join(char if char.isprintable() else " " for char in text[:MAX_CHARS])
    return " ".join(printable.split()).rstrip(".")
