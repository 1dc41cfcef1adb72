"""`conformance`: whether a running server speaks dialect 2 of the socket protocol as docs/protocol.md has it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

from server.cli.common import BadInput, with_json
from server.errors import StartupError

DOORS = ("sockjs", "ws_v2", "events", "rest")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    conformance = commands.add_parser(
        "conformance",
        parents=[with_json()],
        help="check whether a running server keeps every rule of dialect 2",
        description="Joins as users whom it makes up, notifies them, and holds what the server says against each rule"
        " of docs/protocol.md, over SockJS, /ws/v2, Server-Sent Events and REST. Exit code 1 if a rule is broken, or if"
        " none could be checked. What it published stays in the inboxes of those users (conformance-…), who are nobody"
        " else's. Without a key it takes the demo users of a server on this machine, and deletes what is in their"
        " inboxes.",
    )
    conformance.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:8587")
    conformance.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="a key with the scopes publish and listen, and admin for what a sign-out does; -: standard input",
    )
    conformance.add_argument(
        "--door", action="append", choices=DOORS, help="only this one; may be given several times"
    )
    conformance.add_argument(
        "--rule", action="append", metavar="NAME", help="only this one, by its name in JSON"
    )
    conformance.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="S",
        help="how long an answer may take (default: 10 s)",
    )
    conformance.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="how long all may take (default: 600 s)"
    )
    conformance.set_defaults(run=_conformance)


def _conformance(arguments: argparse.Namespace) -> int:
    from server.conformance.lines import (
        Unreachable,
    )  # takes a moment, which the other commands need not wait for
    from server.conformance.report import Progress, table
    from server.conformance.run import BROKEN, KEPT, RULES, Outcome, check
    from server.conformance.target import CannotCheck, Target

    url, key = _url(arguments.url), _key(arguments.key_file)
    names = {rule.name for rule in RULES}
    for name in arguments.rule or ():
        if name not in names:
            raise BadInput(f"--rule: there is no {name!r}; there are {', '.join(sorted(names))}")
    for option in ("patience", "timeout"):
        if not 0 < getattr(arguments, option) <= 86_400:
            raise BadInput(f"--{option}: not above 0, or more than a day")

    async def run() -> list[Outcome]:
        target, progress = Target(url, key, arguments.patience), Progress()
        try:
            return await check(
                target,
                doors=arguments.door or DOORS,
                names=arguments.rule,
                within_s=arguments.timeout,
                tell=progress,
            )
        finally:
            progress.end()
            target.close()

    try:
        outcomes = asyncio.run(run())
    except (Unreachable, CannotCheck) as exc:
        raise StartupError(str(exc)) from exc
    if arguments.json:
        print(json.dumps([outcome.fields() for outcome in outcomes], indent=2))
    else:
        print(table(outcomes))
    results = {outcome.result for outcome in outcomes}
    return 0 if KEPT in results and BROKEN not in results else 1


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise BadInput(f"{text!r} is no address such as http://127.0.0.1:8587")
    return text.rstrip("/")


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        key = (sys.stdin.readline() if file == Path("-") else file.read_text()).strip()
    except (OSError, ValueError) as exc:
        raise BadInput(f"--key-file: {exc}") from exc
    if not key:
        raise BadInput("--key-file: there is no key in it")
    return key
