"""What differs between two configurations, and what of it a running server can take over (SIGHUP)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from server.config.schema import SECTIONS, Config, Section
from server.config.shown import values_in_force


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys as `[SECTION] key`, in the order of the schema; a section that comes or goes as `[SECTION]`. `live`: can be
    taken over now. `at_restart`: wait for the next start. Never a value: it may be secret."""

    live: tuple[str, ...] = ()
    at_restart: tuple[str, ...] = ()


def changed_keys(old: Config, new: Config) -> Changes:
    """What differs in `new`. What a file holds that both name is not looked at: it may differ all the same. Between
    DEBUG and RELEASE nothing is taken over: they are two servers."""
    live: list[str] = []
    at_restart = ["[APPLICATION] configuration"] if old.release != new.release else []
    for section in SECTIONS.values():
        if not section.is_shown:
            continue
        if _comes_or_goes(section, old, new):
            at_restart.append(f"[{section.name}]")
            continue
        before, after = values_in_force(section, old), values_in_force(section, new)
        for name, (key, value) in (before | after).items():
            if name not in before or name not in after or before[name][1] != value:
                is_live = key.live and old.release == new.release
                (live if is_live else at_restart).append(f"[{section.name}] {name}")
    return Changes(tuple(live), tuple(at_restart))


def with_live_keys(old: Config, new: Config) -> Config:
    """`old` with what can be taken over from `new`: what is in force after a SIGHUP."""
    if old.release != new.release:
        return old
    taken: dict[str, Any] = {"warnings": new.warnings}  # Any: each field has its own type
    for section in SECTIONS.values():
        if not section.is_shown or _comes_or_goes(section, old, new):
            continue
        name = section.name.lower()
        record, source = getattr(old, name), getattr(new, name)
        if section.any_key is not None:
            taken[name] = source if section.any_key.live else record
        elif record is not None:
            live = [key.field for key in section.keys.values() if key.live]
            taken[name] = replace(record, **{field: getattr(source, field) for field in live})
    return replace(old, **taken)


def _comes_or_goes(section: Section, old: Config, new: Config) -> bool:
    name = section.name.lower()
    return (getattr(old, name) is None) is not (getattr(new, name) is None)
