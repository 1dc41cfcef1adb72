"""What a backup says of itself: the file `backup.json` in its folder, empty until all else is there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from server.errors import StartupError

NAME = "backup.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`store`: `embedded` or `mongodb`; `version`: that of the server; `taken_at`: RFC 3339; `counts`: how many there
    are of what, `documents` and `users` among them; `files`: the SHA-256 of each other file, hexadecimal, none in
    backups of earlier versions."""

    store: str
    version: str
    taken_at: str
    counts: Mapping[str, int]
    files: Mapping[str, str]


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """An empty folder, for nobody else's eyes nor backup; empty again if what is done in it fails. Raises
    `StartupError`."""
    _take_empty(folder)
    try:
        yield
    except BaseException:
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        raise


def _take_empty(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_used = any(folder.iterdir())
        if not is_used:
            # Of two that find it empty, only one makes this; what the other did in the folder would be neither's.
            create(folder / NAME).close()
    except FileExistsError:
        is_used = True
    except OSError as exc:
        raise StartupError(f"{folder} cannot be made: {exc.strerror}") from exc
    if is_used:
        raise StartupError(f"{folder} is not empty; a backup takes a folder of its own")


def write(folder: Path, manifest: Manifest) -> None:
    """The last step of a backup, which is one when this returns. Raises `OSError`."""
    with (folder / NAME).open("wb") as descriptor:
        descriptor.write(json.dumps(asdict(manifest), indent=2).encode() + b"\n")
        sync(descriptor)
    sync_folder(folder)


def read(folder: Path) -> Manifest:
    """Raises `StartupError` if there is no backup that was finished."""
    try:
        text = (folder / NAME).read_text()
        if not text:
            raise FileNotFoundError
        fields = json.loads(text)
        return Manifest(
            fields["store"], fields["version"], fields["taken_at"], fields["counts"], fields.get("files", {})
        )
    except FileNotFoundError:
        raise StartupError(f"{folder} is no backup, or one that was not finished") from None
    except OSError as exc:
        raise StartupError(f"{folder} cannot be read: {exc.strerror}") from exc
    except (ValueError, LookupError, TypeError):
        raise StartupError(f"{folder / NAME} is damaged") from None


def digests(folder: Path) -> dict[str, str]:
    """The `files` of a manifest that says nothing yet. Raises `OSError`."""
    return {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.name != NAME}


def check(folder: Path, manifest: Manifest) -> None:
    """Raises `StartupError` if a file is not what it was when the backup was taken, `OSError`."""
    for name, digest in manifest.files.items():
        if _digest(folder / name) != digest:
            raise StartupError(f"{folder / name} is damaged: it is not what it was when the backup was taken")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def create(path: Path) -> io.BufferedWriter:
    """A new file that only its owner can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def sync(file: BinaryIO) -> None:
    """Return when what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The same for the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
