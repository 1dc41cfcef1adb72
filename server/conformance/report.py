"""What the person at the terminal reads of a check."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from server.conformance.run import BROKEN, NOT_CHECKED, Outcome

SEEN_CHARS = 400
"""Of what was seen, in the table; JSON has all of it."""


class Progress:
    """A line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out if out.isatty() else None
        self._count = 0

    def __call__(self, outcome: Outcome) -> None:
        if self._out is not None:
            self._count += 1
            self._out.write(f"\r\x1b[K{self._count}: {outcome.rule} at {outcome.door}")
            self._out.flush()

    def end(self) -> None:
        if self._out is not None:
            self._out.write("\r\x1b[K")


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each rule and door, with what is wrong beneath; the sum at the end."""
    results = max((len(each.result) for each in outcomes), default=0)
    doors = max((len(each.door) for each in outcomes), default=0)
    lines = [f"{'RESULT':{results}}  {'DOOR':{doors}}  RULE"]
    for each in outcomes:
        lines.append(f"{each.result:{results}}  {each.door:{doors}}  {each.text}")
        if each.result == BROKEN:
            lines.append(f"{'':{results}}    expected: {each.expected[:SEEN_CHARS]}")
            lines.append(f"{'':{results}}    seen:     {each.seen[:SEEN_CHARS]}")
        elif each.result == NOT_CHECKED:
            lines.append(f"{'':{results}}    {each.seen}")
    counts = Counter(each.result for each in outcomes)
    lines.append(", ".join(f"{count} {result}" for result, count in counts.items()) or "nothing was checked")
    return "\n".join(_printable(line) for line in lines)


def _printable(text: str) -> str:
    """What a server says must not steer a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
