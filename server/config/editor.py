"""Writes one line into config.ini and leaves every other byte of it as the operator wrote it."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from server.config.reader import parse_file, read_file
from server.errors import InvalidConfig

_SECTION = re.compile(r"\[(?P<name>[^\]]+)\]")


def can_be_key(name: str) -> bool:
    """Whether `name` comes back as it is when it is written as a key of config.ini."""
    if not name.isprintable():
        return False
    try:
        return parse_file(f"[USERS]\n{name} = x\n", Path()) == {"USERS": {name: "x"}}
    except InvalidConfig:
        return False


def put(path: Path, section: str, key: str, value: str) -> None:
    """Set `key` of `[section]`: in place of the line that sets it, else as the last line of the section, else
    in a new section at the end. The file is replaced at once, with its mode, or not at all. Raises
    InvalidConfig if it cannot be.
    """
    before = read_file(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = _with_line(file.read(), section, key, f"{key} = {value}")
        expected = before | {section: before.get(section, {}) | {key: value}}
        if parse_file(text.removeprefix("\ufeff"), path) != expected:
            raise InvalidConfig(
                [f"{path}: cannot be changed without changing its meaning; add the line yourself"]
            )
        _replace_file(path.resolve(), text)
    except OSError as exc:
        raise InvalidConfig([f"{path}: cannot be written: {exc.strerror}"]) from exc


def _with_line(text: str, section: str, key: str, line: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline
    current, insert_at = "", None
    for number, old in enumerate(lines):
        header = _SECTION.match(old.lstrip("\ufeff"))
        if header:
            current = header["name"]
        if current != section:
            continue
        if not header and re.split(r"[=:]", old, maxsplit=1)[0].rstrip() == key:
            lines[number] = line + newline
            return "".join(lines)
        # Comments at the end of a section may be about the next one.
        if old.strip() and not old.startswith((";", "#")):
            insert_at = number + 1
    if insert_at is None:
        lines += [newline, f"[{section}]{newline}"] if lines else [f"[{section}]{newline}"]
        insert_at = len(lines)
    lines.insert(insert_at, line + newline)
    return "".join(lines)


def _replace_file(path: Path, text: str) -> None:
    """Write beside, then rename: whoever reads or crashes meanwhile finds the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
