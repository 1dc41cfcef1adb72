"""`notification-server` under observation: `python -m server.torture.observed FOLDER ARGUMENTS…`.

Its wall clock can be set: FOLDER/clock holds a double, by how many seconds it differs from the machine's, and counts at
once. What is shifted is what Python code sees: `time.time`, `time.time_ns`, and `datetime.now` in the modules of the
server and of PyJWT. (A namespace of Linux shifts no wall clock, and the machine's own clock is none of our business.)

At SIGUSR1 it writes to FOLDER/tasks, as JSON, a list of the names of its tasks, each with the line where it waits.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DOUBLE = struct.Struct("d")

SHIFTED_PACKAGES = ("server.", "jwt.")


def write_shift(folder: Path, seconds: float) -> None:
    """Set the clock of the server that is, or will be, observed in this folder."""
    path = folder / "clock"
    # Changed in place: the server has it mapped.
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(_DOUBLE.pack(seconds))


def open_shift(folder: Path) -> Callable[[], float]:
    """What `write_shift` wrote last, whenever it is asked."""
    with (folder / "clock").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), _DOUBLE.size, access=mmap.ACCESS_READ)
    return lambda: float(_DOUBLE.unpack(mapped)[0])


def shift_clocks(shift: Callable[[], float]) -> None:
    """To be called when all modules that ask for the time are imported."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + shift()
    time.time_ns = lambda: real_ns() + int(shift() * 1e9)
    for name, module in tuple(sys.modules.items()):
        if name.startswith(SHIFTED_PACKAGES) and vars(module).get("datetime") is datetime.datetime:
            vars(module)["datetime"] = _ShiftedDatetime


class _LikeDatetime(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, datetime.datetime)


class _ShiftedDatetime(datetime.datetime, metaclass=_LikeDatetime):
    """Asks the clock that was shifted; what it makes are ordinary ones."""

    def __new__(cls, *arguments: Any, **fields: Any) -> Any:
        return datetime.datetime(*arguments, **fields)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.fromtimestamp(time.time(), tz)


def tell_tasks(folder: Path) -> None:
    """From now on, at SIGUSR1, which the server has no use for."""

    def tell(*_: object) -> None:
        try:
            tasks = sorted((name_of(task), place_of(task)) for task in asyncio.all_tasks())
        except RuntimeError:  # the loop does not run
            tasks = []
        written = folder / "tasks.new"
        written.write_text(json.dumps(tasks))
        os.replace(written, folder / "tasks")

    signal.signal(signal.SIGUSR1, tell)


def name_of(task: asyncio.Task[Any]) -> str:
    """Its own, or that of its function where nobody gave it one."""
    name = task.get_name()
    return getattr(task.get_coro(), "__qualname__", name) if name.startswith("Task-") else name


def place_of(task: asyncio.Task[Any]) -> str:
    """Where it waits: the line of the innermost coroutine."""
    waiting: Any = task.get_coro()
    while getattr(getattr(waiting, "cr_await", None), "cr_frame", None) is not None:
        waiting = waiting.cr_await
    frame = getattr(waiting, "cr_frame", None)
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def main() -> int:
    from server import cli, process  # with it all modules of the server, before its clock is shifted

    assert process  # noqa: S101  # imported for what comes with it
    folder = Path(sys.argv[1])
    shift_clocks(open_shift(folder))
    tell_tasks(folder)
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
