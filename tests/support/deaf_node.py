"""A node with a defect: what it may have missed it does not read. For the torture to find: `python -m
tests.support.deaf_node FOLDER ARGUMENTS…`."""

from __future__ import annotations

import sys

from server.cluster.gaps import Gaps
from server.torture import observed

if __name__ == "__main__":
    Gaps.note = lambda *_: None  # type: ignore[method-assign]
    sys.exit(observed.main())
