"""`user …`: who may join by config.ini, whom the server knows, and signing them out."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from server import claims
from server.cli.common import (
    DEFAULT_FILE,
    BadInput,
    check_tenant,
    config_file,
    in_directory,
    instant,
    load_config,
    print_json,
    print_table,
    printable,
    say,
    shown_instant,
    with_config,
    with_json,
)
from server.commands import MAX_CREDENTIAL_CHARS
from server.config import Config, editor
from server.errors import NotFound
from server.grants import DEFAULT_TENANT, KnownUser
from server.messages import now
from server.store import Directory

KNOWN_PER_PAGE = 1000

RELOAD = "a running server knows it after SIGHUP"


def add_commands(commands: Any) -> None:
    """`commands`: what `add_subparsers` returned, whose type argparse does not name."""
    user = commands.add_parser("user", help="manage who may join")
    user_commands = user.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = user_commands.add_parser(
        "add",
        parents=[with_config()],
        help="make the line for [USERS-…] of a user; the password is asked for, or read from standard input",
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument(
        "--write", action="store_true", help="put the line into the file, in place of an older one"
    )
    add.set_defaults(run=_add_user)
    options = [with_config(), with_json()]
    list_ = user_commands.add_parser("list", parents=options, help="list the users of config.ini")
    list_.set_defaults(run=_list_users)
    remove = user_commands.add_parser(
        "remove", parents=[with_config()], help="take a user's line out of config.ini"
    )
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove_user)
    known = user_commands.add_parser(
        "known", parents=options, help="list the users whom the server has notified or seen"
    )
    known.add_argument("--tenant", default=DEFAULT_TENANT, metavar="TENANT")
    known.set_defaults(run=_list_known)
    sign_out = user_commands.add_parser(
        "sign-out",
        parents=[with_config()],
        help="end all connections of a user at once, and void the tokens made before",
    )
    sign_out.add_argument("user_id", metavar="USER-ID")
    sign_out.add_argument("--tenant", default=DEFAULT_TENANT, metavar="TENANT")
    sign_out.set_defaults(run=_sign_out)


def _add_user(arguments: argparse.Namespace) -> int:
    name, path = arguments.name, config_file(arguments)
    _check_name(name)
    section = _section(load_config(arguments))
    if arguments.write and path is None:
        raise BadInput("--write: there is no config.ini in this folder; name the file by --config FILE")
    from server.passwords import hash_password

    hashed = hash_password(_read_password())
    if arguments.write and path is not None:
        editor.put(path, section, name, hashed)
        say(f"{name} stands in [{section}] of {path}; {RELOAD}")
    else:
        print(f"{name} = {hashed}")
        say(f"put this line into [{section}] of {path or DEFAULT_FILE}; {RELOAD}")
    return 0


def _list_users(arguments: argparse.Namespace) -> int:
    names = sorted(load_config(arguments).users)
    if arguments.json:
        print_json(names)
    else:
        for name in names:
            print(printable(name))
    return 0


def _remove_user(arguments: argparse.Namespace) -> int:
    config, path = load_config(arguments), config_file(arguments)
    if path is None:
        raise BadInput("there is no config.ini in this folder; name the file by --config FILE")
    # A name may stand in the plain section as well, which holds for both forms.
    sections = [_section(config), "USERS"]
    removed = [section for section in sections if editor.drop(path, section, arguments.name)]
    if not removed:
        raise NotFound(f"{path}: there is no user {printable(arguments.name)} in [{sections[0]}]")
    say(f"{arguments.name} is taken out of {path}; {RELOAD}, and connections that are open are ended then")
    return 0


def _list_known(arguments: argparse.Namespace) -> int:
    users = in_directory(arguments, lambda directory: _known(directory, arguments.tenant))
    if arguments.json:
        print_json(
            [
                {
                    "user_id": user.user_id,
                    "first_seen_at": instant(user.first_seen_at),
                    "last_seen_at": instant(user.last_seen_at),
                }
                for user in users
            ]
        )
        return 0
    rows = [
        {
            "user": printable(user.user_id),
            "first seen": shown_instant(user.first_seen_at),
            "last joined": shown_instant(user.last_seen_at),
        }
        for user in users
    ]
    print_table(rows, ["user", "first seen", "last joined"])
    return 0


async def _known(directory: Directory, tenant: str) -> list[KnownUser]:
    await check_tenant(directory, tenant)
    users: list[KnownUser] = []
    after: str | None = None
    while some := await directory.users(tenant, after=after, limit=KNOWN_PER_PAGE):
        users += some
        after = some[-1].user_id
    return users


def _sign_out(arguments: argparse.Namespace) -> int:
    tenant = arguments.tenant
    try:
        user_id = claims.user_id(arguments.user_id)
    except ValueError as exc:
        raise BadInput(f"USER-ID: {exc}") from None
    in_directory(arguments, lambda directory: _sign_out_of(directory, tenant, user_id))
    say(f"{printable(user_id)} of tenant {tenant} is signed out everywhere within a second")
    return 0


async def _sign_out_of(directory: Directory, tenant: str, user_id: str) -> None:
    await check_tenant(directory, tenant, must_be_active=True)
    await directory.sign_out(tenant, user_id, now())


def _section(config: Config) -> str:
    return "USERS-RELEASE" if config.release else "USERS-DEBUG"


def _check_name(name: str) -> None:
    if not editor.can_be_key(name):
        raise BadInput(
            "NAME: cannot be a key of config.ini; leave out = : and blanks at the ends, and [ # ; in front"
        )
    if len(name) > MAX_CREDENTIAL_CHARS:
        raise BadInput(f"NAME: has more than {MAX_CREDENTIAL_CHARS} characters")


def _read_password() -> str:
    """Asked for twice without echo; without a terminal, one line of standard input."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise BadInput("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise BadInput("the password is empty")
    if len(password) > MAX_CREDENTIAL_CHARS:
        raise BadInput(f"the password has more than {MAX_CREDENTIAL_CHARS} characters")
    # Bytes of the terminal that were not of its encoding; no client can send them.
    if any("\ud800" <= char <= "\udfff" for char in password):
        raise BadInput("the password is not valid Unicode")
    return password
