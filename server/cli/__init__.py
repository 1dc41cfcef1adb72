"""The command `notification-server`: what an operator types, and what they read when it cannot be done.

`access`: tenants, keys, secrets. `users`: who may join. `outbox`: mail. `backup`: and restore.
`fsck`: whether a store is whole. `torture`: whether it keeps its promises.
`conformance`: whether a server speaks dialect 2. `common`: what all of them need.

Exit codes: 0 done; 1 could not be done; 2 the command line or the configuration is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from server import __version__, logs
from server.cli import access, backup, conformance, fsck, outbox, torture, users
from server.cli.common import PROGRAM, BadInput, load_config, options, say, with_config
from server.config import Config, load
from server.config.shown import shown
from server.errors import InvalidConfig, ServerError, StartupError
from server.workers.channel import Given

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process). Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        if sys.stdout is not None:  # closed by whoever called
            sys.stdout.flush()
        return code
    except InvalidConfig as exc:
        say(*exc.problems)
        return 2
    except BadInput as exc:
        say(str(exc))
        return 2
    except (StartupError, ServerError) as exc:
        say(str(exc))
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        say(f"the output cannot be written: {os.strerror(exc.errno).lower()}")
        if sys.stdout is not None:
            # What is left of it is dropped, or Python would try again and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="A notification server with an inbox.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        parents=[with_config()],
        help="run the server until SIGTERM or Ctrl-C; SIGHUP rereads the configuration",
        description="SIGTERM or Ctrl-C ends it in order, a second one at once. SIGHUP rereads the configuration. With"
        " several workers, SIGUSR2 replaces them one by one.",
    )
    serve.add_argument(
        "--workers",
        metavar="N",
        help="so many processes on the same ports (default: workers of the configuration)",
    )
    serve.set_defaults(run=_serve)
    check = commands.add_parser(
        "check-config",
        parents=[with_config()],
        help="report what is wrong in the configuration, or show what is in force",
    )
    check.set_defaults(run=_check_config)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    users.add_commands(commands)
    access.add_commands(commands)
    outbox.add_commands(commands)
    backup.add_commands(commands)
    fsck.add_commands(commands)
    torture.add_commands(commands)
    conformance.add_commands(commands)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    # By themselves they would end the process: they wait until `serve` can take them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR2})
    given = Given.take()
    if given is not None:
        return _work(arguments, given)
    config = load_config(arguments)
    logs.setup(config.log)
    if config.file is None:
        logger.info("no config.ini in %s: the defaults are in force", Path.cwd())
    else:
        logger.info("configuration: %s", config.file.absolute())
    if config.application.workers > 1:
        from server.workers.supervisor import supervise  # takes a moment, as below

        return supervise(config, _reread(arguments, config))
    from server.process import serve  # takes a moment, which the other commands need not wait for

    return serve(config, _reread(arguments, config))


def _work(arguments: argparse.Namespace, given: Given) -> int:
    """Serve as one of several."""
    from server.process import serve
    from server.workers.worker import WorkerSeat

    seat = WorkerSeat(given)
    logs.name_worker(given.number)
    # The file may name another number by now, which waits for a restart with all that follows from it: a worker that
    # took itself for the only one would tell the others nothing.
    of_all = {} if given.workers is None else {"workers": str(given.workers)}
    config = load_config(argparse.Namespace(**vars(arguments) | of_all))
    logs.setup(config.log)
    return serve(config, _reread(arguments, config), seat)


def _reread(arguments: argparse.Namespace, config: Config) -> Callable[[], Config]:
    def reread() -> Config:
        # A file that was there and is gone is a mistake, and not a wish for the defaults.
        is_without = config.file is None
        return load_config(arguments) if is_without else load(config.file, os.environ, options(arguments))

    return reread


def _check_config(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    from server.process import check  # takes a moment, which a wrong file need not wait for
    from server.tls import expired
    from server.wiring import missing_tenants

    try:
        check(config)
    except StartupError as exc:
        # Here there is nothing else that could be in the way.
        raise InvalidConfig([str(exc)]) from exc
    print(shown(config), end="")
    say(
        *(
            f"warning: {warning}"
            for warning in (*config.warnings, *expired(config.tls), *missing_tenants(config))
        )
    )
    return 0


def _version(arguments: argparse.Namespace) -> int:
    print(f"{PROGRAM} {__version__}")
    return 0
