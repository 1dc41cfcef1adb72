"""The data folder is made, checked, and held by one process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.errors import StartupError
from server.folder_lock import FolderInUse, FolderLock
from tests.support.ordinary_user import as_ordinary_user

ROOT = Path(__file__).resolve().parents[1]

HOLD = """
import sys
from pathlib import Path
from server.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the folder; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    """With its parents, and for its owner only."""
    folder = tmp_path / "a" / "data"
    lock = FolderLock(folder)
    lock.acquire()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    lock.release()


def test_a_held_folder_is_refused(tmp_path: Path) -> None:
    """The sentence names the folder and the process that holds it."""
    with held_elsewhere(tmp_path) as holder, pytest.raises(FolderInUse) as refusal:
        FolderLock(tmp_path).acquire()
    assert str(refusal.value) == (
        f"data folder {tmp_path} is in use by another notification server (pid {holder.pid})"
    )


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    """The system lets go for it: no stale lock."""
    with held_elsewhere(tmp_path) as holder:
        holder.kill()
        holder.wait()
        lock = FolderLock(tmp_path)
        lock.acquire()
        lock.release()


def test_a_folder_is_held_once_in_a_process(tmp_path: Path) -> None:
    """Until it is released; releasing twice is releasing once."""
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    with pytest.raises(StartupError, match=rf"in use by another notification server \(pid {os.getpid()}\)"):
        second.acquire()
    second.release()
    with pytest.raises(StartupError):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_holder_that_has_not_written_its_pid(tmp_path: Path) -> None:
    """The sentence does without it."""
    lock = FolderLock(tmp_path)
    lock.acquire()
    (tmp_path / "lock").write_text("")
    with pytest.raises(StartupError, match=r"notification server$"):
        FolderLock(tmp_path).acquire()
    lock.release()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    """Where the folder, or one of its parents, should be."""
    file = tmp_path / "data"
    file.write_text("")
    folder = file / below
    with pytest.raises(StartupError) as refusal:
        FolderLock(folder).acquire()
    assert str(refusal.value) == f"data folder {folder} cannot be used: a file is in the way"


def test_a_folder_without_write_permission() -> None:
    """Is named, with the system's reason."""
    folder = Path(tempfile.mkdtemp(prefix="test-readonly-"))
    folder.chmod(0o555)
    with as_ordinary_user():
        for unusable in (folder, folder / "data"):
            with pytest.raises(StartupError) as refusal:
                FolderLock(unusable).acquire()
            assert str(refusal.value) == f"data folder {unusable} cannot be used: permission denied"
    folder.rmdir()
