"""The command `notification-server`: what an operator types, and what they read when it cannot be done.

Exit codes: 0 done; 1 could not be done; 2 the command line or the configuration is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server import __version__, logs
from server.config import Config, editor, load
from server.config.shown import shown
from server.errors import InvalidConfig, StartupError
from server.wire import MAX_CREDENTIAL_CHARS

PROGRAM = "notification-server"

DEFAULT_FILE = Path("config.ini")

logger = logging.getLogger(__name__)


class _BadInput(Exception):
    """What the operator typed cannot be taken; one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process). Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except InvalidConfig as exc:
        _say(*exc.problems)
        return 2
    except _BadInput as exc:
        _say(str(exc))
        return 2
    except StartupError as exc:
        _say(str(exc))
        return 1
    except KeyboardInterrupt:
        return 130


def _say(*sentences: str) -> None:
    for sentence in sentences:
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="A notification server with an inbox.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    with_file = argparse.ArgumentParser(add_help=False)
    with_file.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (default: config.ini in this folder, if any)",
    )

    serve = commands.add_parser("serve", parents=[with_file], help="run the server until SIGTERM or Ctrl-C")
    serve.set_defaults(run=_serve)
    check = commands.add_parser(
        "check-config",
        parents=[with_file],
        help="report what is wrong in the configuration, or show what is in force",
    )
    check.set_defaults(run=_check_config)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)

    user = commands.add_parser("user", help="manage who may join")
    user_commands = user.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = user_commands.add_parser(
        "add",
        parents=[with_file],
        help="make the line for [USERS-…] of a user; the password is asked for, or read from standard input",
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument(
        "--write", action="store_true", help="put the line into the file, in place of an older one"
    )
    add.set_defaults(run=_add_user)
    return parser


def _file(arguments: argparse.Namespace) -> Path | None:
    chosen: Path | None = arguments.config
    if chosen is None and DEFAULT_FILE.exists():
        return DEFAULT_FILE
    return chosen


def _load(arguments: argparse.Namespace) -> Config:
    return load(_file(arguments), os.environ)


def _serve(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    logs.setup(config.log)
    if config.file is None:
        logger.info("no config.ini in %s: the defaults are in force", Path.cwd())
    else:
        logger.info("configuration: %s", config.file.absolute())
    from server.app import serve  # takes a moment, which the other commands need not wait for

    return serve(config)


def _check_config(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    print(shown(config), end="")
    _say(*(f"warning: {warning}" for warning in config.warnings))
    return 0


def _version(arguments: argparse.Namespace) -> int:
    print(f"{PROGRAM} {__version__}")
    return 0


def _add_user(arguments: argparse.Namespace) -> int:
    name, path = arguments.name, _file(arguments)
    _check_name(name)
    section = "USERS-RELEASE" if _load(arguments).release else "USERS-DEBUG"
    if arguments.write and path is None:
        raise _BadInput("--write: there is no config.ini in this folder; name the file by --config FILE")
    from server.auth import hash_password

    hashed = hash_password(_read_password())
    if arguments.write and path is not None:
        editor.put(path, section, name, hashed)
        _say(f"{name} stands in [{section}] of {path}; a running server knows it after a restart")
    else:
        print(f"{name} = {hashed}")
        _say(f"put this line into [{section}] of {path or DEFAULT_FILE} and restart the server")
    return 0


def _check_name(name: str) -> None:
    if not editor.can_be_key(name):
        raise _BadInput(
            "NAME: cannot be a key of config.ini; leave out = : and blanks at the ends, and [ # ; in front"
        )
    if len(name) > MAX_CREDENTIAL_CHARS:
        raise _BadInput(f"NAME: has more than {MAX_CREDENTIAL_CHARS} characters")


def _read_password() -> str:
    """Asked for twice without echo; without a terminal, one line of standard input."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise _BadInput("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise _BadInput("the password is empty")
    if len(password) > MAX_CREDENTIAL_CHARS:
        raise _BadInput(f"the password has more than {MAX_CREDENTIAL_CHARS} characters")
    # Bytes of the terminal that were not of its encoding; no client can send them.
    if any("\ud800" <= char <= "\udfff" for char in password):
        raise _BadInput("the password is not valid Unicode")
    return password
