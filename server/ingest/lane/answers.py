"""Answers as bytes. No I/O."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from server.ingest.visits import PROBLEM, Answer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def encode(
    answer: Answer,
    headers: Mapping[str, str],
    common: bytes,
    connection: str = "",
    *,
    has_body: bool = True,
) -> bytes:
    """`headers`: of this answer, beside its own. `common`: what all answers say, each line with its end. `connection`:
    what becomes of it, where that is to be said. `has_body`: False in an answer to HEAD."""
    fixed = _fixed(answer.status, answer.media_type, len(answer.body), connection)
    lines = [f"{name}: {value}\r\n" for fields in (headers, answer.headers) for name, value in fields.items()]
    own = "".join(lines).encode("latin-1")
    return b"".join((fixed, common, _date(int(time.time())), own, b"\r\n", answer.body if has_body else b""))


def plain_refusal(status: int, code: str, detail: str, **headers: str) -> Answer:
    """An answer to what is no request to a door (RFC 9457)."""
    problem = {"type": "about:blank", "title": code, "status": status, "detail": detail}
    return Answer(status, json.dumps(problem).encode(), PROBLEM, headers)


@functools.lru_cache(256)
def _fixed(status: int, media_type: str, size: int, connection: str) -> bytes:
    """What answers of a kind begin with."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"]
    if status != 204:  # RFC 9110 section 8.6
        lines.append(f"Content-Type: {media_type}\r\nContent-Length: {size}\r\n")
    if connection:
        lines.append(f"Connection: {connection}\r\n")
    return "".join(lines).encode("latin-1")


@functools.lru_cache(2)
def _date(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
