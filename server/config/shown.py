"""The effective configuration for people: in the shape of config.ini, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from server.config.schema import SECTIONS, Config, Key, Section


def shown(config: Config) -> str:
    """Every section and key in force with its value. Secrets are masked; one that is not set is empty."""
    return "\n".join(_lines(config)) + "\n"


def _lines(config: Config) -> Iterator[str]:
    form = "RELEASE" if config.release else "DEBUG"
    yield f"; {config.file or 'no config.ini: defaults'}"
    for section in SECTIONS.values():
        yield f"\n[{section.name}-{form}]" if section.forms else f"\n[{section.name}]\nconfiguration = {form}"
        for name, value in _values(section, getattr(config, section.name.lower())):
            yield f"{name} = {value}".rstrip()


def _values(section: Section, record: object) -> Iterator[tuple[str, str]]:
    if isinstance(record, Mapping):
        for name, value in record.items():
            key = section.keys.get(name.lower()) or section.any_key
            yield name, _masked(value) if key is None or key.secret else value
        return
    for key in section.keys.values():
        if key.field:
            yield key.name, _text(key, getattr(record, key.field))


def _text(key: Key, value: object) -> str:
    if value is None:
        return "embedded" if key.name == "url" else ""
    return _masked(key.kind.show(value)) if key.secret else key.kind.show(value)


def _masked(secret: str) -> str:
    """Of an address, what says where it leads; user, password and options may be secret. Greedy, as a
    password may hold an unescaped `@`."""
    if "://" not in secret:
        return "***" if secret else ""
    return re.sub(r"\?.*", "?***", re.sub(r"://.*@", "://***@", secret))
