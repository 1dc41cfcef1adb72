"""The head of a request as the doors look at it, and how one is known again. No I/O."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tornado.escape import parse_qs_bytes

from server import idempotency

MAX_QUERY_FIELDS = 1000

MAX_LENGTH_DIGITS = 18
"""Of a Content-Length that is looked at; more is too much in any case."""

_KEYS = idempotency.HEADER.lower()


class HeadError(ValueError):
    """A head that is answered with 400, whatever it is about."""


class Headers(Mapping[str, str]):
    """By their names in any letter case; those that came more than once with a comma between (RFC 9110 section
    5.3)."""

    __slots__ = ("_values", "keys_given")

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self.keys_given: list[str] = []
        """The headers `Idempotency-Key`, of which there may be but one."""

    def add(self, name: bytes, value: bytes) -> None:
        """As they came."""
        lower, text = _lower(name), value.decode("latin-1")
        if lower == _KEYS:
            self.keys_given.append(text)
        known = self._values.get(lower)
        self._values[lower] = text if known is None else f"{known},{text}"

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:  # texts, and whatever the default is
        """As of any mapping, in a tenth of the time of what they inherit."""
        return self._values.get(name.lower(), default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


_LENGTH = b"\r\ncontent-length: "


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """A request with a plain Content-Length that came as a whole and alone: its head without the digits of that, and
    its body. None: it is no such request, or not easily seen to be one."""
    end = data.find(b"\r\n\r\n") + 4
    lower = data[:end].lower()
    start = lower.find(_LENGTH) + len(_LENGTH)
    if lower.count(_LENGTH[2:-2]) != 1 or start < len(_LENGTH):
        return None
    stop = lower.find(b"\r\n", start)
    digits = data[start:stop]
    if not (digits.isdigit() and len(digits) <= MAX_LENGTH_DIGITS) or int(digits) != len(data) - end:
        return None
    return data[:start] + data[stop:end], data[end:]


@functools.lru_cache(256)
def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()


def query_of(query: bytes) -> dict[str, list[bytes]]:
    """The values of each argument, in their order, as the main port reads them. Raises `HeadError`."""
    if not query:
        return {}
    try:
        return parse_qs_bytes(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError as exc:
        raise HeadError("the query cannot be read") from exc


_ORIGIN = re.compile(rb"[^/?]*://[^/?]*")
"""Which may be followed by a query at once (RFC 3986 section 3.2)."""


def target_of(url: bytes) -> tuple[str, bytes]:
    """The path and the query of a request target in origin form or absolute form (RFC 9112 section 3.2)."""
    if not url.startswith(b"/"):
        origin = _ORIGIN.match(url)
        rest = b"" if origin is None else url[origin.end() :]
        url = rest if rest.startswith(b"/") else b"/" + rest
    path, _, query = url.partition(b"?")
    return path.decode("latin-1"), query
