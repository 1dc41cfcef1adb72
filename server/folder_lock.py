"""The data folder: made if missing, and held by one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from server.errors import StartupError


class FolderInUse(StartupError):
    """Another process holds the folder, or this one does already."""


class FolderLock:
    """An exclusive hold on a folder, through the file `lock` in it, which names the holder's pid.

    The system lets go of it when the process ends, in whatever way; the file stays and means nothing by itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Make the folder (0700) if it is missing, and hold it. Raises `StartupError` if it cannot be written,
        `FolderInUse` if it is held already, by this process too."""
        try:
            descriptor = self._open()
        except OSError as exc:
            raise StartupError(f"data folder {self._folder} cannot be used: {_reason(exc)}") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as exc:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise FolderInUse(
                f"data folder {self._folder} is in use by another notification server{holder}"
            ) from exc
        except OSError as exc:
            os.close(descriptor)
            raise StartupError(f"data folder {self._folder} cannot be locked: {_reason(exc)}") from exc
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go. Does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is in the way"
    return (error.strerror or str(error)).lower()


def _holder(descriptor: int) -> str:
    """` (pid N)`; empty in the moment between the holder's lock and its note."""
    pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return f" (pid {pid})" if pid.isdigit() else ""
