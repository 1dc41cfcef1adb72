"""What this machine lacks for the tests, as scripts/test found it out.

scripts/test passes it on in NOTIFICATION_TEST_MISSING: one line `name=sentence` for each thing. A test that
needs such a thing is skipped with that sentence; with CI=true it fails, because there a skipped test proves
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NoReturn

import pytest


def missing(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The name of each missing thing ("mongod", "browser", "node") -> what is missing and how to get it."""
    lines = environment.get("NOTIFICATION_TEST_MISSING", "").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def is_ci(environment: Mapping[str, str] = os.environ) -> bool:
    return environment.get("CI", "").lower() in {"1", "true", "yes"}


def unavailable(name: str, problem: str) -> NoReturn:
    """Skip this test if scripts/test has said that `name` is missing, else let it fail with `problem`."""
    reason = missing().get(name)
    if reason is not None and not is_ci():
        pytest.skip(reason)
    pytest.fail(reason or f"{problem}; ./scripts/test installs it", pytrace=False)
