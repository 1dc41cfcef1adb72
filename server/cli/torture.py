"""`torture`: whether this server, on this machine, keeps what it promises, whatever is broken."""

from __future__ import annotations

import argparse
import asyncio
import json
import random

from server.cli.common import BadInput, with_json

MAX_ROUNDS = 100_000
MAX_NODES = 10


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    torture = commands.add_parser(
        "torture",
        parents=[with_json()],
        help="start a server of its own, break everything around it, and see whether anything is lost",
        description="Starts a server, its store and its neighbours in a temporary folder, publishes by many doors and"
        " listens by many, while processes are killed and frozen, connections are cut, the disk is full and the clock"
        " goes back. Then compares: exit code 1 if anything was lost or came twice. Nothing else is touched.",
    )
    torture.add_argument("--rounds", type=int, metavar="N", help="how often something is broken")
    torture.add_argument(
        "--seed", type=int, metavar="N", help="of an earlier run, whose faults are to come again"
    )
    torture.add_argument(
        "--store", choices=("embedded", "mongodb"), help="(default: embedded; of several nodes mongodb)"
    )
    torture.add_argument(
        "--nodes",
        type=int,
        default=1,
        metavar="N",
        help="so many servers, over a replica set of three members",
    )
    torture.add_argument(
        "--backplane",
        choices=("redis", "mongodb"),
        help="by which several nodes tell each other (default: redis)",
    )
    torture.add_argument(
        "--mongodb-url",
        metavar="URL",
        help="use this MongoDB, with a database of its own; without it a mongod is started ($MONGODB_BIN, or the PATH)",
    )
    torture.add_argument(
        "--plan", choices=("short", "long"), default="short", help="about a minute (default), or about ten"
    )
    torture.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FAULT",
        help='this fault, such as "kill server"; may be repeated',
    )
    torture.set_defaults(run=_torture)


def _torture(arguments: argparse.Namespace) -> int:
    from server.torture.house import Options  # takes a moment, which the other commands need not wait for
    from server.torture.report import Progress, table
    from server.torture.run import torture

    rounds, seed = arguments.rounds, arguments.seed
    if rounds is not None and not 0 <= rounds <= MAX_ROUNDS:
        raise BadInput(f"--rounds: not from 0 to {MAX_ROUNDS}")
    if not 1 <= arguments.nodes <= MAX_NODES:
        raise BadInput(f"--nodes: not from 1 to {MAX_NODES}")
    store = arguments.store or ("embedded" if arguments.nodes == 1 else "mongodb")
    if arguments.mongodb_url is not None and store != "mongodb":
        raise BadInput("--mongodb-url needs --store mongodb")
    if arguments.nodes > 1 and store == "embedded":
        raise BadInput("--nodes: the embedded store is for one; several need --store mongodb")
    if arguments.backplane is not None and arguments.nodes == 1:
        raise BadInput("--backplane needs --nodes of more than 1")
    options = Options(
        random.SystemRandom().randrange(10**6) if seed is None else seed,
        store,
        arguments.plan,
        rounds,
        arguments.mongodb_url,
        tuple(arguments.only),
        arguments.nodes,
        arguments.backplane or "redis",
    )
    try:
        result = asyncio.run(torture(options, Progress()))
    except asyncio.CancelledError:  # by SIGTERM
        raise KeyboardInterrupt from None
    print(json.dumps(result.fields(), indent=2) if arguments.json else table(result))
    return 1 if result.findings else 0
