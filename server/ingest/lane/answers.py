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
    lines = [f"Date: {_date(int(time.time()))}\r\n"]
    if answer.status != 204:  # RFC 9110 section 8.6
        lines.append(f"Content-Type: {answer.media_type}\r\nContent-Length: {len(answer.body)}\r\n")
    for fields in (headers, answer.headers):
        lines += [f"{name}: {value}\r\n" for name, value in fields.items()]
    lines.append(f"Connection: {connection}\r\n\r\n" if connection else "\r\n")
    head = (_status_line(answer.status), common, "".join(lines).encode("latin-1"))
    return b"".join((*head, answer.body) if has_body else head)


def plain_refusal(status: int, code: str, detail: str, **headers: str) -> Answer:
    """An answer to what is no request to a door (RFC 9457)."""
    problem = {"type": "about:blank", "title": code, "status": status, "detail": detail}
    return Answer(status, json.dumps(problem).encode(), PROBLEM, headers)


@functools.lru_cache(64)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()


@functools.lru_cache(2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
