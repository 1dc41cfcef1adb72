"""The nodes that serve together, and who comes in by which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from server.torture.node import Node


class Entrance(Protocol):
    """Where clients and publishers come in."""

    def any(self) -> Node:
        """The node of the next connection, or request: whether it lives, who connects finds out."""


class Nodes:
    """All of them."""

    def __init__(self, nodes: Sequence[Node], seed: str) -> None:
        self.all = nodes
        self._rng = random.Random(f"{seed} nodes")  # noqa: S311  # repeats a run, keeps no secret

    def any(self) -> Node:
        """At random, as a proxy in front of them would choose that does not look first."""
        return self._rng.choice(self.all)
