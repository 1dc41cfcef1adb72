"""`fsck`: whether the parts of the store fit together, and mending what does not."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from server.cli.common import (
    confirm,
    load_config,
    print_json,
    print_table,
    printable,
    say,
    with_config,
    with_json,
)
from server.cli.places import embedded_file, in_mongodb
from server.config import Config
from server.store.fsck import Report


def add_commands(commands: Any) -> None:
    """`commands`: what `add_subparsers` returned, whose type argparse does not name."""
    fsck = commands.add_parser(
        "fsck",
        parents=[with_config(), with_json()],
        help="look through the whole store for what does not fit together; exit code 1 if there is something",
        description="Compares inboxes, notifications, users, mail, leases, idempotency keys and clocks with each other."
        " Looks while servers run. Mending the embedded store takes its folder: stop the server first.",
    )
    fsck.add_argument("--repair", action="store_true", help="mend what is found; make a backup before")
    fsck.add_argument("--yes", action="store_true", help="do not ask")
    fsck.set_defaults(run=_fsck)


def _fsck(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    before = _look(config)
    after = None
    if arguments.repair and before.findings:
        if not arguments.json:
            _show(before)
        confirm("Mend all of that?", arguments.yes)
        after = _mend(config)
    left = before if after is None else after
    if arguments.json:
        print_json(asdict(left) | {"found": [asdict(each) for each in before.findings]})
    elif after is None:
        _show(before)
    else:
        _say_mended(before, after)
    return 1 if left.findings else 0


def _look(config: Config) -> Report:
    if config.mongodb.url is None:
        from server.store import sqlite_fsck

        return sqlite_fsck.look(embedded_file(config))
    from server.store import mongo_fsck

    return in_mongodb(config, mongo_fsck.look)


def _mend(config: Config) -> Report:
    if config.mongodb.url is None:
        from server.store import sqlite_fsck

        return sqlite_fsck.mend(embedded_file(config))
    from server.store import mongo_fsck

    return in_mongodb(config, mongo_fsck.mend)


def _show(report: Report) -> None:
    """Counts on standard output; what is wrong, and what mending it means, after them."""
    print_table(
        [{"what": what, "count": str(count)} for what, count in report.counts.items()], ["what", "count"]
    )
    for each in report.findings:
        print(f"\n{each.count} {each.sentence}\n  code: {each.code}, for example: {printable(each.example)}")
        print(f"  --repair: {each.remedy}")
    if not report.findings:
        say("all fits together")


def _say_mended(before: Report, after: Report) -> None:
    left = {each.code for each in after.findings}
    for each in before.findings:
        say(f"{each.code}: {'could not be mended' if each.code in left else 'mended'}")
    for each in after.findings:
        if each.code not in {known.code for known in before.findings}:
            say(f"{each.code}: found afterwards; look again")
