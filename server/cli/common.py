"""What the commands have in common: the configuration, how they speak, and the way to the store of a running server."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from server.config import Config, load, values
from server.config.keys import DAY_S
from server.errors import NotFound, StartupError
from server.grants import FOREVER
from server.messages import now, to_milliseconds
from server.store import Directory, Outbox

T = TypeVar("T")

PROGRAM = "notification-server"

DEFAULT_FILE = Path("config.ini")


class BadInput(Exception):
    """What the operator typed cannot be taken; one sentence."""


def say(*sentences: str) -> None:
    """To the person at the terminal; what a program reads goes to standard output."""
    for sentence in sentences:
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)


def with_config() -> argparse.ArgumentParser:
    """The options of all commands that read the configuration."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (default: config.ini in this folder, if any)",
    )
    return parser


def with_json() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def config_file(arguments: argparse.Namespace) -> Path | None:
    chosen: Path | None = arguments.config
    if chosen is None and DEFAULT_FILE.exists():
        return DEFAULT_FILE
    return chosen


def load_config(arguments: argparse.Namespace) -> Config:
    """Raises `InvalidConfig`."""
    return load(config_file(arguments), os.environ, options(arguments))


def options(arguments: argparse.Namespace) -> dict[str, str]:
    """Keys of [APPLICATION] that the command line sets."""
    workers = getattr(arguments, "workers", None)  # an option of `serve` only
    return {} if workers is None else {"workers": workers}


def in_directory(arguments: argparse.Namespace, work: Callable[[Directory], Awaitable[T]]) -> T:
    """Do something in the directory of the store. Raises as `beside_servers`."""
    return beside_servers(arguments, lambda directory, _: work(directory))


def beside_servers(arguments: argparse.Namespace, work: Callable[[Directory, Outbox], Awaitable[T]]) -> T:
    """Do something in the directory and the outbox of the store, whether or not a server is running on it. Raises
    `StartupError`, `StoreUnavailable`, and what `work` raises."""
    config = load_config(arguments)
    from server import wiring  # takes a moment, which the other commands need not wait for

    folder = config.application.data
    is_embedded = config.mongodb.url is None
    makes_store = is_embedded and not os.path.exists(folder / wiring.EMBEDDED_FILE)

    async def run() -> T:
        async with wiring.open_beside(config) as place:
            if makes_store:
                _tell_of_new_store(folder)
            return await work(place.directory, place.outbox)

    try:
        return asyncio.run(run())
    except StartupError as error:
        raise StartupError(f"{error}{_owner_hint(folder) if is_embedded else ''}") from error


def _tell_of_new_store(folder: Path) -> None:
    """It is there before the server's first start, or somebody stands in the wrong folder."""
    say(f"{folder} had no store, so one was made; a server with another data folder will not know it")
    if os.geteuid() == 0:
        say(f"it belongs to root; if the server is another user's: chown -R USER {folder}")


def _owner_hint(folder: Path) -> str:
    """What to say to somebody who is not the user that the server runs as."""
    try:
        owner = folder.stat().st_uid
        name = pwd.getpwuid(owner).pw_name
    except (OSError, KeyError):
        return ""
    return "" if os.geteuid() in (0, owner) else f"; {folder} belongs to {name}: be that user"


async def check_tenant(directory: Directory, name: str, *, must_be_active: bool = False) -> None:
    """Raises `NotFound` if there is no tenant of that name."""
    for tenant in await directory.tenants():
        if tenant.name == name and (tenant.removed_at is None or not must_be_active):
            return
    raise NotFound(f"there is no tenant {name!r}")


# -- output --------------------------------------------------------------------------------------------------
def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """In columns as wide as they need to be, with a heading; nothing but the heading if there are no rows."""
    lines = [[column.upper() for column in columns], *([row[column] for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def instant(at: datetime | None) -> str | None:
    """As JSON has it (RFC 3339)."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def shown_instant(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M}Z"


def printable(text: str) -> str:
    """A text from outside, as one line of glyphs."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- input ---------------------------------------------------------------------------------------------------
_UNITS_S = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600, "y": 365 * 24 * 3600}


def parse_end(text: str) -> datetime:
    """`90d`, `12h`, or an instant such as `2027-01-31` or `2027-01-31T12:00Z` (UTC unless it says otherwise). In the
    future. Raises `BadInput`."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdwy])", text)
    try:
        if match:
            end = now() + timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
        else:
            end = datetime.fromisoformat(text)
            end = to_milliseconds(end if end.tzinfo else end.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise BadInput(
            f"{text!r} is neither a time from now such as 90d, 12h or 30m, nor a date such as 2027-01-31"
        ) from None
    if end <= now():
        raise BadInput(f"{text!r} is in the past")
    return end


_KEPT = values.duration(DAY_S, 36_500 * DAY_S)


def parse_kept(text: str, option: str) -> int | None:
    """For how long something is kept, in seconds, as `grants.Keep` has it. Raises `BadInput`."""
    if text.lower() in ("default", "forever"):
        return None if text.lower() == "default" else FOREVER
    try:
        seconds: int = _KEPT.parse(text)
    except ValueError as exc:
        raise BadInput(f"{option}: {exc}; nor is it 'forever' or 'default'") from None
    return seconds


def shown_kept(seconds: int | None) -> str:
    """As `parse_kept` reads it."""
    if seconds is None:
        return "default"
    return "forever" if seconds == FOREVER else _KEPT.show(seconds)


def confirm(question: str, is_sure: bool) -> None:
    """Ask at the terminal; without one `--yes` has to be there. Raises `BadInput` if it is not wanted."""
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise BadInput(f"{question} Say --yes if that is meant.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BadInput("nothing was changed")
