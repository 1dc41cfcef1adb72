"""Where the log goes and how a line looks: one event a line, to standard error and, if configured, to a file.

What a caller sent may end up in a message, so nothing in it can look like a line of its own or move a
terminal's cursor, and what stands behind the `?` of a URL (an apikey, the content of a notification) is left
out.
"""

from __future__ import annotations

import logging
import logging.handlers
import re
import time
from pathlib import Path

from server.config import Log
from server.errors import StartupError

# C0, DEL and C1 controls, line and paragraph separators, marks that turn the direction of writing, lone surrogates.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# Tornado quotes request lines; a URL in one holds no blank.
_QUERY = re.compile(r"\?\S+")


def setup(log: Log) -> None:
    """Send all logging of this process where `log` says, in place of where it went before.

    The level holds for the server's own messages; those of libraries begin at INFO, as some of them show what
    they carry at DEBUG. Raises StartupError if the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log.file is not None:
        handlers.append(_open_file(log.file))
    for handler in handlers:
        handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=handlers, level=max(log.level, logging.INFO), force=True)
    logging.getLogger("server").setLevel(log.level)
    # One line for each request that went well is a web server's way, not a notification server's.
    logging.getLogger("tornado.access").setLevel(max(log.level, logging.WARNING))
    logging.captureWarnings(True)


def _open_file(path: Path) -> logging.Handler:
    """Opened anew when it was moved away, as logrotate does. A folder that is made is for this user only."""
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    except OSError as exc:
        raise StartupError(f"the log file {path} cannot be written: {exc.strerror}") from exc


class LineFormatter(logging.Formatter):
    """`2026-11-21 06:14:58.123Z WARNING server.app: text`; the lines of a traceback follow behind a tab."""

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return _printable(_QUERY.sub("?…", text) if record.name.startswith("tornado.") else text)

    def format(self, record: logging.LogRecord) -> str:
        first, *traceback = super().format(record).split("\n")
        return "\n\t".join([first, *map(_printable, traceback)])


def _printable(text: str) -> str:
    """`text` with what is no glyph written as an escape: `\\n`, `\\x1b`, `\\u2028`."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
