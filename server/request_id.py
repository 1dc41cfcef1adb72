"""The id of the request that is being worked on: in every log line of its walk, and in the answer.

Whoever calls may choose it (the header `X-Request-ID`), so that their log and ours can be laid side by side.
"""

from __future__ import annotations

import random
import re
from contextvars import ContextVar

HEADER = "X-Request-ID"

_WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_current: ContextVar[str] = ContextVar("request_id", default="")


def current() -> str:
    """That of the request of this task; "" outside of one."""
    return _current.get()


def begin(chosen: str | None) -> str:
    """Set the id for the rest of this task: the one the caller chose, if it has a sane form, else a fresh one."""
    if chosen is not None and _WELL_FORMED.fullmatch(chosen):
        id_ = chosen
    else:
        id_ = f"{random.getrandbits(64):016x}"  # noqa: S311  # no secret
    _current.set(id_)
    return id_
