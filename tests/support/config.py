"""A folder with a config.ini, and what loading it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.config import Config, load
from server.errors import InvalidConfig

HASH = "$argon2id$v=19$m=65536,t=3,p=4$bzMucH0ENiIcigZJEpbLPA$DrX0OObeVL1OSefm2ZNMRIHCGQfgnA4SB9z2YVI+HkI"


class Folder:
    """A folder with one config.ini."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "config.ini"

    def load(self, text: str = "", **environ: str) -> Config:
        self.file.write_text(text, encoding="utf-8")
        return load(self.file, environ)

    def problems(self, text: str = "", **environ: str) -> list[str]:
        """All that is reported, with the file called by its name only."""
        with pytest.raises(InvalidConfig) as caught:
            self.load(text, **environ)
        return [problem.replace(str(self.file), "config.ini") for problem in caught.value.problems]

    def warnings(self, text: str, **environ: str) -> list[str]:
        return [
            warning.replace(str(self.file), "config.ini") for warning in self.load(text, **environ).warnings
        ]
