"""What looking through a whole store finds, and mends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.grants import DEFAULT_TENANT

TENANTS_REMEDY = (
    "they count as removed, and can be erased (tenant remove NAME --erase);"
    f" {DEFAULT_TENANT!r} is there again"
)
HORIZON_REMEDY = "their clients read them anew, and nothing is dropped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with `count` things of a kind. `code`: that of the kind; `sentence`: what is wrong, in the plural;
    `example`: one of them; `remedy`: what mending does."""

    code: str
    sentence: str
    remedy: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Report:
    """`counts`: how many there are of what; `findings`: empty if all is well."""

    counts: Mapping[str, int]
    findings: tuple[Finding, ...]
