"""What SQLite complains of, as the errors of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import StartupError, StoreUnavailable

_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}


def is_busy(error: Exception) -> bool:
    """Whether SQLite says that somebody else has a lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_full(error: Exception) -> bool:
    """Whether this is, or was caused by, SQLite's finding no room on the disk."""
    return getattr(error.__cause__ or error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def as_store_error(error: Exception) -> Exception:
    """`StoreUnavailable` caused by `error` where SQLite speaks of the disk, the file or a lock; else `error` itself,
    which is a mistake of ours."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _UNAVAILABLE:
        return error
    unavailable = StoreUnavailable(f"the store cannot be used now ({error}); try again")
    unavailable.__cause__ = error
    return unavailable


def cannot_open(path: Path, error: Exception) -> Exception:
    """What opening is to raise instead of this error of SQLite or the system."""
    if is_busy(error):
        return StoreUnavailable(f"{path} is locked by another program")
    reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else error
    return StartupError(f"{path} cannot be opened: {reason}")


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Around what opens and reads a file for the command line: raises as `cannot_open` says."""
    try:
        yield
    except (OSError, sqlite3.Error) as exc:
        raise cannot_open(path, exc) from exc
