"""What the log says of a migration: how far it is, and which documents were not as they should be."""

from __future__ import annotations

import logging
import time

from bson import ObjectId

logger = logging.getLogger(__name__)

PROGRESS_S = 5.0
"""Between two lines of the log."""


class Progress:
    """Tells the log how far it is, every few seconds and at the end."""

    def __init__(self, done: str, what: str, total: int) -> None:
        self._text = f"{done} %s of about {total:,} {what}"
        self._count = 0
        self._total = total
        self._told_at = time.monotonic()

    def advance(self, count: int) -> None:
        self._count = min(self._count + count, self._total)
        if time.monotonic() >= self._told_at + PROGRESS_S:
            self._tell()

    def end(self) -> None:
        if self._count:
            self._tell()

    def _tell(self) -> None:
        logger.info(self._text, f"{self._count:,}")
        self._told_at = time.monotonic()


class Exceptions:
    """Documents that had to be treated otherwise than the rest, to be told of once."""

    def __init__(self) -> None:
        self.refused: dict[ObjectId, int | None] = {}
        """By their ids, what MongoDB refused to change, and its error."""
        self._strange_count = 0
        self._first_strange: ObjectId | None = None

    def add_strange(self, id_: ObjectId) -> None:
        """One with times that cannot be read."""
        self._strange_count += 1
        self._first_strange = self._first_strange or id_

    def tell(self, collection: str) -> None:
        """Tell the log, and forget them."""
        if self._strange_count:
            logger.warning(
                "%d documents of %s have times that cannot be read, the first one has the _id %s: they got the nearest"
                " time, or that of their _id; `legacy` has what was written",
                self._strange_count,
                collection,
                self._first_strange,
            )
        if self.refused:
            first, code = next(iter(self.refused.items()))
            logger.error(
                "%d documents of %s are left as they are, in nobody's inbox, since MongoDB refuses to change them; the"
                " first one has the _id %s (error %s)",
                len(self.refused),
                collection,
                first,
                code,
            )
        self.refused = {}
        self._strange_count, self._first_strange = 0, None
