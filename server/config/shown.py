"""The effective configuration for people: in the shape of config.ini, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from server.config.access import CertificateGrant
from server.config.keys import Key
from server.config.schema import SECTIONS, Config, Section


def shown(config: Config) -> str:
    """Every section and key in force with its value. Secrets are masked; one that is not set is empty, and so is a
    section that is not configured."""
    return "\n".join(_lines(config)) + "\n"


def _lines(config: Config) -> Iterator[str]:
    form = "RELEASE" if config.release else "DEBUG"
    yield f"; {config.file or 'no config.ini: defaults'}"
    for section in SECTIONS.values():
        if not section.is_shown:
            continue
        yield f"\n[{section.name}-{form}]" if section.forms else f"\n[{section.name}]\nconfiguration = {form}"
        for name, (key, value) in values_in_force(section, config).items():
            yield f"{name} = {_text(key, value)}".rstrip()


def values_in_force(section: Section, config: Config) -> dict[str, tuple[Key, object]]:
    """The values of a section by the names under which they would be written; {} if it is not configured."""
    record = getattr(config, section.name.lower())
    if section.any_key is not None:
        return {name: (section.any_key, value) for name, value in _pairs(record)}
    keys = section.keys.values() if record is not None else ()
    return {key.name: (key, getattr(record, key.field)) for key in keys if key.field}


def _pairs(written: Mapping[str, str] | tuple[CertificateGrant, ...]) -> Iterator[tuple[str, object]]:
    if isinstance(written, Mapping):
        yield from written.items()
    else:
        yield from ((grant.name, (grant.tenant, grant.scopes, grant.subject)) for grant in written)


def _text(key: Key, value: object) -> str:
    text = key.kind.none if value is None else key.kind.show(value)
    return _masked(text) if key.secret and value is not None else text


def _masked(secret: str) -> str:
    """Of an address, what says where it leads; user, password and options may be secret. Greedy, as a
    password may hold an unescaped `@`."""
    if "://" not in secret:
        return "***" if secret else ""
    return re.sub(r"\?.*", "?***", re.sub(r"://.*@", "://***@", secret))
