"""Session affinity: which of several workers on the same ports a name belongs to. A session over several requests, or a
ticket that is kept in memory, is known to one of them only, and the kernel gives each connection to any.

It follows from the name alone, so that nobody has to be asked; names that we make up are made to be ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Affinity:
    """`number`: of this worker, from 0; `count`: of all."""

    number: int = 0
    count: int = 1

    def owner(self, name: str) -> int:
        """The number of the worker that it belongs to."""
        return zlib.crc32(name.encode(errors="surrogatepass")) % self.count

    def mint(self, make: Callable[[], str]) -> str:
        """The first name that belongs to this worker, of the random ones that `make` makes."""
        while self.owner(name := make()) != self.number:
            pass
        return name


ALONE = Affinity()
"""All is ours."""
