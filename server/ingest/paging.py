"""What doors have in common that answer page by page: the query that asks for one."""

from __future__ import annotations

from server.errors import InvalidInput
from server.ingest.base import DoorHandler

PAGE = 100
MAX_PAGE = 1000


class PagedHandler(DoorHandler):
    """`?limit=` says how many are on a page; `?after=` is what a page said was `next`."""

    def query(self, name: str) -> str | None:
        """The last value of this name; None: there is none. Raises `InvalidInput`."""
        values = self.request.query_arguments.get(name)
        try:
            return None if values is None else values[-1].decode()
        except UnicodeDecodeError:
            raise InvalidInput(name, "not UTF-8") from None

    def limit(self) -> int:
        """Raises `InvalidInput`."""
        text = self.query("limit")
        if text is None:
            return PAGE
        if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_PAGE):
            raise InvalidInput("limit", f"not a number from 1 to {MAX_PAGE}")
        return int(text)
