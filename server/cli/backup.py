"""`backup`, `restore`: the store, whole and as of one moment, beside the servers that run on it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server import __version__
from server.cli.common import (
    BadInput,
    instant,
    load_config,
    print_json,
    say,
    with_config,
    with_json,
)
from server.cli.places import embedded_file, in_mongodb
from server.config import Config
from server.errors import StartupError
from server.messages import now
from server.store import backup
from server.store.backup import Manifest


def add_commands(commands: Any) -> None:
    """`commands`: what `add_subparsers` returned, whose type argparse does not name."""
    take = commands.add_parser(
        "backup",
        parents=[with_config(), with_json()],
        help="copy the whole store into a new folder, while servers run on it",
    )
    take.add_argument("folder", type=Path, metavar="FOLDER", help="empty, or not there yet")
    take.add_argument(
        "--offline", action="store_true", help="no server runs: a standalone MongoDB can be read only then"
    )
    take.set_defaults(run=_take)
    restore = commands.add_parser(
        "restore",
        parents=[with_config()],
        help="put a backup where there is no store yet; clients read their inboxes anew",
    )
    restore.add_argument("folder", type=Path, metavar="FOLDER", nargs="?", help="of the backup")
    restore.add_argument(
        "--new-epoch",
        action="store_true",
        help="restore nothing: the store was put back by other means, such as mongorestore; clients read anew",
    )
    restore.set_defaults(run=_restore)


# -- backup --------------------------------------------------------------------------------------------------
def _take(arguments: argparse.Namespace) -> int:
    config, folder = load_config(arguments), arguments.folder
    is_embedded = config.mongodb.url is None
    taken_at = instant(now()) or ""
    try:
        with backup.new_folder(folder):
            counts = _copy_file(config, folder) if is_embedded else _copy_database(config, arguments)
            kind, files = "embedded" if is_embedded else "mongodb", backup.digests(folder)
            manifest = Manifest(kind, __version__, taken_at, counts, files)
            backup.write(folder, manifest)
    except OSError as exc:
        raise StartupError(f"{folder} cannot be written: {exc.strerror}") from exc
    if arguments.json:
        print_json(asdict(manifest))
    else:
        say(f"{folder} has a backup of {counts['documents']} documents of {counts['users']} users")
    return 0


def _copy_file(config: Config, folder: Path) -> dict[str, int]:
    from server.store import sqlite_backup

    return sqlite_backup.take(embedded_file(config), folder)


def _copy_database(config: Config, arguments: argparse.Namespace) -> dict[str, int]:
    from server.store import mongo_backup

    return in_mongodb(config, lambda c: mongo_backup.take(c, arguments.folder, is_offline=arguments.offline))


# -- restore -------------------------------------------------------------------------------------------------
def _restore(arguments: argparse.Namespace) -> int:
    config, folder = load_config(arguments), arguments.folder
    if (folder is None) is not arguments.new_epoch:
        raise BadInput("name either the FOLDER of a backup, or --new-epoch")
    if folder is None:
        _renew_epoch(config)
        say("the store has a new epoch: (re)start the servers; clients read their inboxes anew")
        return 0
    manifest = backup.read(folder)
    kind = "embedded" if config.mongodb.url is None else "mongodb"
    if manifest.store != kind:
        raise StartupError(f"{folder} is a backup of another kind of store: {manifest.store}, not {kind}")
    try:
        backup.check(folder, manifest)
        _put(config, folder)
    except OSError as exc:
        raise StartupError(f"{folder} cannot be restored: {exc.strerror}") from exc
    counts = manifest.counts
    say(
        f"restored {counts['documents']} documents of {counts['users']} users, as of {manifest.taken_at};"
        " start the servers: clients read their inboxes anew"
    )
    return 0


def _put(config: Config, folder: Path) -> None:
    if config.mongodb.url is None:
        from server.store import sqlite_backup

        sqlite_backup.restore(folder, embedded_file(config))
    else:
        from server.store import mongo_backup

        in_mongodb(config, lambda connection: mongo_backup.restore(connection, folder))


def _renew_epoch(config: Config) -> None:
    if config.mongodb.url is None:
        from server.store import sqlite_backup

        sqlite_backup.renew_epoch(embedded_file(config))
    else:
        from server.store import mongo_backup

        in_mongodb(config, mongo_backup.renew_epoch)
