"""How a field of a settings record is a key of config.ini."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from server.config.values import Kind

KIB = 1024
MIB = 1024 * KIB
DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Key:
    """`name`: as in the file. `field`: that of the section's record, "" for a key that only shapes others.
    `default`: for people, as it would be written in the file. `live`: whether a running server can take a new value
    over (SIGHUP); the others wait for its next start."""

    name: str
    kind: Kind
    field: str = ""
    default: str = ""
    secret: bool = False
    live: bool = False


def setting(
    default: object,
    kind: Kind,
    *,
    key: str = "",
    secret: bool = False,
    live: bool = False,
    default_note: str = "",
) -> Any:  # Any: as `dataclasses.field`, so that the field's own type counts
    """A field that is a key of the file. `default_note` says what the default is where it depends on
    something."""
    shown = kind.none if default is None else "" if default in ((), "") else kind.show(default)
    made = Key(key, kind, default=default_note or shown, secret=secret, live=live)
    return field(default=default, repr=not secret, metadata={"key": made})
