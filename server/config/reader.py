"""Reads config.ini and the environment: which text is in force for each key, and where it stands.

It knows the names of sections and keys and the kinds of their values, not what the values mean together.
"""

from __future__ import annotations

import configparser
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.config.keys import Key
from server.config.schema import SECTIONS, Section
from server.errors import InvalidConfig

Values = dict[str, Any]  # Any: as in Kind

PREFIX = "NOTIFY_"

# Ours by the prefix, but systemd's by right: it is set in every service of `Type=notify`.
_RESERVED = ("NOTIFY_SOCKET",)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as somebody wrote it. `where` names file, section and key, or the variable, or the option."""

    where: str
    key: Key
    name: str
    text: str


@dataclass(slots=True)
class Reading:
    """What was read so far, and everything said about it. `options`: keys of [APPLICATION] that the command line
    sets."""

    path: Path | None
    environ: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    release: bool = False
    _file: dict[str, dict[str, str]] = field(default_factory=dict)
    _entries: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def problem(self, section: str, key: str, reason: str) -> None:
        self.problems.append(f"{self.where(section, key)}: {reason}")

    def warn(self, section: str, key: str, reason: str) -> None:
        self.warnings.append(f"{self.where(section, key)}: {reason}")

    def where(self, section: str, key: str) -> str:
        """Where the value in force stands, or would stand if it were written. `key` "": the whole section."""
        entry = self._entries[section].get(key)
        if entry is not None:
            return entry.where
        if self.path is None:
            return f"{PREFIX}{section}_{key.upper() or '…'}"
        form = f"{section}{self._suffix}"
        has_forms = SECTIONS[section].forms and (form in self._file or section not in self._file)
        return self._in_file(form if has_forms else section, key)

    def is_written(self, section: str, key: str) -> bool:
        entry = self._entries[section].get(key)
        return entry is not None and entry.text != ""

    def values(self, section: str) -> Values:
        """The values in force, by the keys' names. Keys that nobody wrote are not in it: they have defaults."""
        found = {}
        for entry in self._entries[section].values():
            if entry.text:
                try:
                    found[entry.name] = entry.key.kind.parse(entry.text)
                except ValueError as exc:
                    self.problems.append(f"{entry.where}: {exc}")
        return found

    def fields(self, section: str, values: Values) -> Values:
        """These values by the names of the record's fields, without keys that are no fields; paths made absolute."""
        keys = SECTIONS[section].keys
        named = {keys[name].field: value for name, value in values.items() if keys[name].field}
        return {
            name: self.base / value if isinstance(value, Path) else value for name, value in named.items()
        }

    @property
    def base(self) -> Path:
        """The folder at which relative paths begin."""
        return self.path.parent.absolute() if self.path else Path.cwd()

    # -- reading ---------------------------------------------------------------------------------------------
    def read(self) -> None:
        """Read file and environment. Afterwards `release` is known and `values()` answers."""
        self._file = read_file(self.path) if self.path else {}
        variables = self._read_environ()
        plain, options = self._from_file("APPLICATION"), self._from_options()
        self._entries = {"APPLICATION": plain | variables["APPLICATION"] | options}
        self.release = self._read_form()
        for name in SECTIONS:
            if name != "APPLICATION":
                plain, chosen = self._from_file(name), self._from_file(f"{name}{self._suffix}")
                self._entries[name] = plain | chosen | variables[name]
        self._check_other_form()
        self._check_sections()

    @property
    def _suffix(self) -> str:
        return "-RELEASE" if self.release else "-DEBUG"

    def _in_file(self, section: str, key: str) -> str:
        return f"{self.path}: [{section}] {key}".rstrip()

    def _read_form(self) -> bool:
        entry = self._entries["APPLICATION"].get("configuration")
        try:
            return bool(entry and entry.text and entry.key.kind.parse(entry.text))
        except ValueError:
            return False  # `values()` reports it

    def _from_file(self, section: str) -> dict[str, Entry]:
        """The entries of this very section of the file, {} if it is not there. Reports unknown keys."""
        schema = SECTIONS[section.partition("-")[0]]
        entries: dict[str, Entry] = {}
        for written, text in self._file.get(section, {}).items():
            where = self._in_file(section, written)
            key, name = _find_key(schema, written)
            if key is None:
                self.problems.append(f"{where}: unknown key{_hint(written.lower(), schema.keys)}")
            elif name in entries:
                self.problems.append(f"{where}: written twice")
            else:
                entries[name] = Entry(where, key, name, text.strip())
        return entries

    def _read_environ(self) -> dict[str, dict[str, Entry]]:
        entries: dict[str, dict[str, Entry]] = {name: {} for name in SECTIONS}
        for variable, text in sorted(self.environ.items()):
            if variable.startswith(PREFIX) and variable not in _RESERVED:
                found = _find_variable(variable)
                if found is None:
                    self.problems.append(f"{variable}: unknown variable{_variable_hint(variable)}")
                else:
                    section, name, key = found
                    entries[section][name] = Entry(variable, key, name, text.strip())
        return entries

    def _from_options(self) -> dict[str, Entry]:
        keys = SECTIONS["APPLICATION"].keys
        return {name: Entry(f"--{name}", keys[name], name, text) for name, text in self.options.items()}

    def _check_other_form(self) -> None:
        """What is wrong with the form not in use is better known before it is."""
        other = "-DEBUG" if self.release else "-RELEASE"
        for name, schema in SECTIONS.items():
            for entry in self._from_file(f"{name}{other}").values() if schema.forms else ():
                try:
                    if entry.text:
                        entry.key.kind.parse(entry.text)
                except ValueError as exc:
                    self.problems.append(f"{entry.where}: {exc}")

    def _check_sections(self) -> None:
        known = [name + suffix for name, s in SECTIONS.items() for suffix in _suffixes(s)]
        for section in self._file:
            if section not in known:
                self.problems.append(
                    f"{self.path}: [{section}]: unknown section{_hint(section.upper(), known)}"
                )


def read_file(path: Path) -> dict[str, dict[str, str]]:
    """Sections -> keys (in their own letter case) -> texts. Raises InvalidConfig if it is no ini file."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise InvalidConfig([f"{path}: there is no such file"]) from None
    except OSError as exc:
        raise InvalidConfig([f"{path}: cannot be read: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise InvalidConfig([f"{path}: is not UTF-8 (byte {exc.start})"]) from exc
    return parse_file(text, path)


def parse_file(text: str, path: Path) -> dict[str, dict[str, str]]:
    """As `read_file`, of the text of the file `path`."""
    # No section is special to us, hence a name for the default one that nobody writes; no interpolation, as
    # passwords hold percent signs.
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # documented; user names keep their letter case
    try:
        parser.read_string(text)
    except configparser.DuplicateSectionError as exc:
        raise InvalidConfig([f"{path}: [{exc.section}]: written twice (line {exc.lineno})"]) from None
    except configparser.DuplicateOptionError as exc:
        raise InvalidConfig(
            [f"{path}: [{exc.section}] {exc.option}: written twice (line {exc.lineno})"]
        ) from None
    except configparser.MissingSectionHeaderError as exc:
        raise InvalidConfig([f"{path}: line {exc.lineno} stands before the first [SECTION]"]) from None
    except configparser.ParsingError as exc:
        # Never the lines themselves: one of them may hold a password. From Python 3.13 on, an indented line that
        # continues nothing comes with a number of its own instead of the list.
        numbers = [number for number, _ in exc.errors] or [getattr(exc, "lineno", 0)]
        raise InvalidConfig([f"{path}: line {number} is not key=value" for number in numbers]) from None
    return {name: dict(parser.items(name)) for name in parser.sections()}


def _find_key(schema: Section, written: str) -> tuple[Key | None, str]:
    """The key that is written so, and the name under which its value is known."""
    name = written.lower()
    if name in schema.keys:
        return schema.keys[name], name
    return schema.any_key, written


_VARIABLES = {
    f"{PREFIX}{section.name}_{name.upper()}": (section.name, name, key)
    for section in SECTIONS.values()
    for name, key in section.keys.items()
}


def _find_variable(variable: str) -> tuple[str, str, Key] | None:
    """Section, name and key that the variable sets; None if it is not ours."""
    section, _, name = variable.removeprefix(PREFIX).partition("_")
    any_key = SECTIONS[section].any_key if section in SECTIONS else None
    if any_key is not None and name:
        return section, name, any_key
    return _VARIABLES.get(variable)


def _variable_hint(variable: str) -> str:
    without_section = variable.replace(PREFIX, f"{PREFIX}APPLICATION_", 1)
    return _hint(without_section if without_section in _VARIABLES else variable, _VARIABLES)


def _suffixes(section: Section) -> tuple[str, ...]:
    return ("", "-DEBUG", "-RELEASE") if section.forms else ("",)


def _hint(written: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(written, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
