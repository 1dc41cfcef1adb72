"""Writes one line into config.ini, or takes one out, and leaves every other byte of it as the operator wrote it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
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
    in a new section at the end. The file is replaced at once, with its owner and mode, or not at all. Raises
    InvalidConfig if it cannot be.
    """
    before = read_file(path)
    expected = before | {section: before.get(section, {}) | {key: value}}
    _rewrite(path, lambda text: _with_line(text, section, key, f"{key} = {value}"), expected)


def drop(path: Path, section: str, key: str) -> bool:
    """Take `key` out of `[section]`, with the lines that go on its value; False if it is not there. Else as `put`."""
    before = read_file(path)
    if key not in before.get(section, {}):
        return False
    expected = before | {section: {name: value for name, value in before[section].items() if name != key}}
    _rewrite(path, lambda text: _without_line(text, section, key), expected)
    return True


def _rewrite(path: Path, change: Callable[[str], str], expected: Mapping[str, Mapping[str, str]]) -> None:
    """Replace the text of the file, if it means `expected` then."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = change(file.read())
        if not _means(text, expected):
            raise InvalidConfig(
                [f"{path}: cannot be changed without changing its meaning; change it yourself"]
            )
        _replace_file(path.resolve(), text)
    except OSError as exc:
        raise InvalidConfig([f"{path}: cannot be written: {exc.strerror}"]) from exc


def _means(text: str, expected: Mapping[str, Mapping[str, str]]) -> bool:
    try:
        return parse_file(text.removeprefix("\ufeff"), Path()) == expected
    except InvalidConfig:
        return False


def _without_line(text: str, section: str, key: str) -> str:
    kept, current, is_dropping = [], "", False
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        header = _SECTION.match(line.lstrip("\ufeff"))
        if header:
            current = header["name"]
        if is_dropping and line[:1] in (" ", "\t") and line.strip():
            continue
        is_dropping = (
            not header and current == section and re.split(r"[=:]", line, maxsplit=1)[0].rstrip() == key
        )
        if not is_dropping:
            kept.append(line)
    return "".join(kept)


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
            before = path.stat()
            # The server may have read it by its group, and an administrator is not its user.
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), before.st_mode & 0o7777)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
