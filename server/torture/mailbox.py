"""What the mail server of the torture has written down: a line of JSON for each mail that it took."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Taken:
    """A mail. `at`: when it was taken, in seconds since 1970 by the machine's clock; `id`: its Message-ID; `to`: who it
    was handed over for."""

    at: float
    id: str
    subject: str
    to: tuple[str, ...]


def read_taken(path: Path) -> list[Taken]:
    """In the order in which they were taken. A line that is cut off was never acknowledged."""
    text = path.read_text() if path.exists() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    said = (json.loads(line) for line in lines)
    return [Taken(each["at"], each["id"], each["subject"], tuple(each["to"])) for each in said]
