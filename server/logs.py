"""Where the log goes and how a line looks: one event a line, to standard error and, if configured, to a file; for
people, or as JSON for what collects logs. A line of a request's walk has its id.

What a caller sent may end up in a message, so nothing in it can look like a line of its own or move a
terminal's cursor, and what stands behind the `?` of a URL (an apikey, the content of a notification) is left
out.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from server import request_id
from server.config import Log
from server.errors import StartupError
from server.rates import Buckets, Rate

# C0, DEL and C1 controls, line and paragraph separators, marks that turn the direction of writing, lone surrogates.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

EVENTS_PER_KIND = Rate(100, 300.0)
"""A hundred at once, then one every three seconds: some 5 MB a day."""

MAX_KINDS = 1000
SHARED_BUCKETS = 16
"""Kinds that are counted apart from each other, and what more of them share: a library may fill in its texts itself."""

# Tornado quotes request lines; a URL in one holds no blank.
_QUERY = re.compile(r"\?\S+")


READER_MAY_TAKE_S = 0.1
"""To make room for a line: whoever reads standard error may hang, and the server must not hang with them."""

_worker: int | None = None
"""Which one this process is, of several."""


def name_worker(number: int) -> None:
    """Each line says from the next `setup` on that it is of this worker."""
    global _worker
    _worker = number


def setup(log: Log) -> None:
    """Send all logging of this process where `log` says, in place of where it went before.

    The level holds for the server's own messages; those of libraries begin at INFO, as some of them show what
    they carry at DEBUG. Raises StartupError if the file cannot be written.
    """
    handlers: list[logging.Handler] = [StderrHandler()]
    if log.file is not None:
        handlers.append(_open_file(log.file))
    formatter = JSONFormatter() if log.format == "json" else LineFormatter()
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(FloodFilter())
    logging.basicConfig(handlers=handlers, level=max(log.level, logging.INFO), force=True)
    logging.getLogger("server").setLevel(log.level)
    # One line for each request that went well is a web server's way, not a notification server's.
    logging.getLogger("tornado.access").setLevel(max(log.level, logging.WARNING))
    logging.captureWarnings(True)


class _LossyHandler(logging.StreamHandler[Any]):
    """What cannot be written is left out: the log is nothing that a request may fail or wait by. How many lines that
    were is said when there is room again. Keeps nothing to be written later, which would be there beside that."""

    loss = ""
    """What is said of so many lines."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._left_out = 0
        self._is_cut = False

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            if self._left_out and self._put(_warning(self.loss, self._left_out)):
                self._left_out = 0
            if self._left_out or not self._put(record):
                self._left_out += 1
        except Exception:
            self.handleError(record)

    def _put(self, record: logging.LogRecord) -> bool:
        begin = "\n" if self._is_cut else ""
        text = f"{begin}{self.format(record)}\n".encode(errors="backslashreplace")
        written = self._write(text)
        if written:
            self._is_cut = written < len(text)
        return written == len(text)

    def _write(self, text: bytes) -> int:
        """How much of it was written; does not raise OSError."""
        raise NotImplementedError


class StderrHandler(_LossyHandler):
    """To standard error, whose reader may hang or be gone."""

    loss = "standard error was not read, so %d lines were left out"

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            self.stream.fileno()
        except (AttributeError, OSError):  # it was closed, or is something else than a file
            return logging.StreamHandler.emit(self, record)
        super().emit(record)

    def _write(self, text: bytes) -> int:
        # One wait for all that is left out in a row.
        return _write_within(self.stream.fileno(), text, 0.0 if self._left_out else READER_MAY_TAKE_S)


class LogFileHandler(_LossyHandler, logging.handlers.WatchedFileHandler):
    """To a file, which is opened anew when it was moved away, as logrotate does. That it cannot be written (the disk is
    full, the folder is not ours) is said to standard error, once for all lines in a row."""

    loss = "the file could not be written, so %d lines were left out"

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        # It names users and addresses, which not everybody on this machine need know.
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_open_for_few)

    def _write(self, text: bytes) -> int:
        written = 0
        try:
            self.reopenIfNeeded()
            if self.stream is None:
                self.stream = self._open()
                self._statstream()
            while written < len(text):
                written += os.write(self.stream.fileno(), text[written:])
        except OSError as exc:
            if not self._left_out:
                last_word(f"notification-server: {_cannot_be_written(Path(self.baseFilename), exc)}\n")
        return written

    def close(self) -> None:
        """See `logging.Handler`; what a disk far away says then hurts nobody."""
        with suppress(OSError):
            super().close()


def _open_for_few(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def _warning(text: str, *arguments: object) -> logging.LogRecord:
    level = {"levelno": logging.WARNING, "levelname": logging.getLevelName(logging.WARNING)}
    return logging.makeLogRecord({"name": __name__, "msg": text, "args": arguments} | level)


def _cannot_be_written(path: Path, exc: OSError) -> str:
    return f"the log file {path} cannot be written: {exc.strerror}"


def last_word(sentence: str) -> None:
    """To standard error, beside the log: of a process that ends at once, or of a log that cannot be written. Does not
    raise, and takes no longer than a line may."""
    with suppress(Exception):
        _write_within(sys.stderr.fileno(), sentence.encode(), READER_MAY_TAKE_S)


def _write_within(descriptor: int, text: bytes, wait_s: float) -> int:
    """How much of it was written: what there is room for, waiting so long for the next piece of it. Does not raise
    OSError."""
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    written = 0
    with suppress(OSError):  # nobody reads it any more, or it is a file and the disk is full
        # A pipe that can be written to takes so much without a wait.
        while written < len(text) and room.poll(wait_s * 1000):
            written += os.write(descriptor, text[written : written + select.PIPE_BUF])
    return written


class FloodFilter(logging.Filter):
    """Writes no kind of event more often than `EVENTS_PER_KIND`, so that nobody fills a disk by being refused; the next
    of its kind that is written says how many were not. A kind is the text of the code, without what is filled in. For
    one handler. What is asked for with DEBUG comes whole."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._buckets = Buckets("log", EVENTS_PER_KIND, clock, max_keys=MAX_KINDS, shared=SHARED_BUCKETS)
        self._left_out: Counter[Hashable] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        if not self._buckets.take(kind).allowed:
            if kind in self._left_out or len(self._left_out) < MAX_KINDS:
                self._left_out[kind] += 1
            return False
        record.left_out = self._left_out.pop(kind, 0)
        return True


def _open_file(path: Path) -> logging.Handler:
    """A folder that is made is for this user only."""
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return LogFileHandler(path)
    except OSError as exc:
        raise StartupError(_cannot_be_written(path, exc)) from exc


class LineFormatter(logging.Formatter):
    """`2026-11-21 06:14:58.123Z WARNING server.app: text (request 5f0c…)`, of several workers `WARNING [worker 2]
    server.app: …`; the lines of a traceback follow behind a tab."""

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        worker = "" if _worker is None else f"[worker {_worker}] "
        super().__init__(f"%(asctime)s %(levelname)s {worker}%(name)s: %(message)s")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = _printable(_without_query(record, super().formatMessage(record)))
        if left_out := getattr(record, "left_out", 0):
            text += f" ({left_out} more like this since the last one)"
        id_ = request_id.current()
        return f"{text} (request {id_})" if id_ else text

    def format(self, record: logging.LogRecord) -> str:
        first, *traceback = super().format(record).split("\n")
        return "\n\t".join([first, *map(_printable, traceback)])


class JSONFormatter(logging.Formatter):
    """An object a line: `time` (RFC 3339), `level`, `logger`, `message`, and where there are: `worker` (its number),
    `left_out` (how many like this were not written since the last one), `request_id`, `traceback`. All ASCII, so that
    a line is a line for everybody."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, str | int] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _without_query(record, record.getMessage()),
        }
        if _worker is not None:
            fields["worker"] = _worker
        if left_out := getattr(record, "left_out", 0):
            fields["left_out"] = left_out
        if id_ := request_id.current():
            fields["request_id"] = id_
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        elif record.stack_info:
            fields["traceback"] = self.formatStack(record.stack_info)
        return json.dumps(fields)


def _without_query(record: logging.LogRecord, text: str) -> str:
    return _QUERY.sub("?…", text) if record.name.startswith("tornado.") else text


def _printable(text: str) -> str:
    """`text` with what is no glyph written as an escape: `\\n`, `\\x1b`, `\\u2028`."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
