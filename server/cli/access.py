"""`tenant …`, `key …`, `secret …`: who may do what; changed in the store, where running servers see it at once."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from server.cli.common import (
    BadInput,
    check_tenant,
    confirm,
    in_directory,
    instant,
    parse_end,
    parse_kept,
    print_json,
    print_table,
    say,
    shown_instant,
    shown_kept,
    with_config,
    with_json,
)
from server.errors import NotFound, Refused
from server.grants import (
    ALL_SCOPES,
    DEFAULT_TENANT,
    MAX_NAME_CHARS,
    NO_TENANT,
    ApiKey,
    Scope,
    SigningSecret,
    Tenant,
    hash_secret,
    is_name,
    new_secret,
)
from server.ids import new_id
from server.messages import now
from server.store import Directory

FIRST_KEY = "first"

ERASED_PER_STEP = 5000
"""Documents: a running server waits for no longer than this takes."""

HEARD_AFTER = timedelta(seconds=2)
"""By then every running server knows that a tenant is removed, as they ask several times a second, and what they were
storing for it is stored."""

OLD_SECRET_KEPT = timedelta(days=30)
"""The longest life that config allows a token: so long the secret before is good for checking."""

LONG_AGO = datetime.fromtimestamp(0, UTC)
"""Also by the clock of a server that is behind this machine's."""


def add_commands(commands: Any) -> None:
    """`commands`: what `add_subparsers` returned, whose type argparse does not name."""
    _add_tenant_commands(commands)
    _add_key_commands(commands)
    secret = commands.add_parser("secret", help="change the secret that signs the tokens made by the server")
    secret_commands = secret.add_subparsers(title="commands", required=True, metavar="COMMAND")
    rotate = secret_commands.add_parser(
        "rotate", parents=[with_config()], help="sign with a new one from now on"
    )
    rotate.add_argument(
        "--at-once",
        action="store_true",
        help="void the tokens that the old one signed, and end connections by them",
    )
    rotate.set_defaults(run=_rotate_secret)


def _add_tenant_commands(commands: Any) -> None:
    tenant = commands.add_parser("tenant", help="manage tenants")
    tenant_commands = tenant.add_subparsers(title="commands", required=True, metavar="COMMAND")
    options = [with_config(), with_json()]
    add = tenant_commands.add_parser("add", parents=options, help="add a tenant, and print its first key")
    add.add_argument("name", metavar="NAME")
    add.set_defaults(run=_add_tenant)
    list_ = tenant_commands.add_parser("list", parents=options, help="list the tenants")
    list_.add_argument("--all", action="store_true", help="also those removed whose data is still there")
    list_.set_defaults(run=_list_tenants)
    set_ = tenant_commands.add_parser(
        "set",
        parents=options,
        help="set for how long a tenant's notifications are kept; what is older is removed for good",
    )
    set_.add_argument("name", metavar="NAME")
    set_.add_argument("--keep", metavar="TIME", help="after they were created: 90d, forever, or default")
    set_.add_argument("--keep-deleted", metavar="TIME", help="after their users deleted them: the same")
    set_.set_defaults(run=_set_tenant)
    remove = tenant_commands.add_parser(
        "remove", parents=options, help="end a tenant's access at once: its keys, and its connections"
    )
    remove.add_argument("name", metavar="NAME")
    remove.add_argument(
        "--erase", action="store_true", help="erase its users, notifications and keys as well"
    )
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(run=_remove_tenant)


def _add_key_commands(commands: Any) -> None:
    key = commands.add_parser("key", help="manage the keys of backends")
    key_commands = key.add_subparsers(title="commands", required=True, metavar="COMMAND")
    options = [with_config(), with_json()]
    add = key_commands.add_parser(
        "add", parents=options, help="make a key, and print it: it is shown only once"
    )
    add.add_argument("tenant", metavar="TENANT")
    add.add_argument("name", metavar="NAME")
    add.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help="what it allows: publish, listen, admin, broadcasts; may be given several times (default: publish)",
    )
    add.add_argument("--expires", metavar="WHEN", help="90d, 12h, or a date (default: never)")
    add.set_defaults(run=_add_key)
    list_ = key_commands.add_parser("list", parents=options, help="list the keys, without their secrets")
    list_.add_argument("tenant", metavar="TENANT", nargs="?")
    list_.add_argument("--all", action="store_true", help="also those revoked or expired")
    list_.set_defaults(run=_list_keys)
    revoke = key_commands.add_parser("revoke", parents=options, help="make a key worthless at once")
    revoke.add_argument("tenant", metavar="TENANT")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(run=_revoke_key)


# -- tenants -------------------------------------------------------------------------------------------------
def _add_tenant(arguments: argparse.Namespace) -> int:
    name = _checked(arguments.name, "NAME")
    key, secret = _new_key(name, FIRST_KEY, ALL_SCOPES)
    tenant = Tenant(name, now())
    in_directory(arguments, lambda directory: directory.add_tenant(tenant, key))
    if arguments.json:
        print_json(_tenant_fields(tenant) | {"key": _key_fields(key) | {"secret": secret}})
    else:
        print(secret)
        say(f"tenant {name} is there; above is its first key, which is shown only now")
    return 0


def _list_tenants(arguments: argparse.Namespace) -> int:
    tenants = in_directory(arguments, lambda directory: directory.tenants())
    tenants = [tenant for tenant in tenants if arguments.all or tenant.removed_at is None]
    if arguments.json:
        print_json([_tenant_fields(tenant) for tenant in tenants])
        return 0
    rows = [
        {
            "name": tenant.name,
            "created": shown_instant(tenant.created_at),
            "keep": shown_kept(tenant.keep.documents_s),
            "keep deleted": shown_kept(tenant.keep.tombstones_s),
            "removed": shown_instant(tenant.removed_at),
        }
        for tenant in tenants
    ]
    columns = ["name", "created", "keep", "keep deleted"]
    print_table(rows, [*columns, "removed"] if arguments.all else columns)
    return 0


def _set_tenant(arguments: argparse.Namespace) -> int:
    name = _checked(arguments.name, "NAME")
    if arguments.keep is None and arguments.keep_deleted is None:
        raise BadInput("nothing is to be set; say --keep, --keep-deleted, or both")
    # Each word is checked before anything is asked or changed.
    changes = {
        field: parse_kept(text, option)
        for field, text, option in (
            ("documents_s", arguments.keep, "--keep"),
            ("tombstones_s", arguments.keep_deleted, "--keep-deleted"),
        )
        if text is not None
    }
    tenant = in_directory(arguments, lambda directory: _set(directory, name, changes))
    if arguments.json:
        print_json(_tenant_fields(tenant))
    else:
        say(
            f"tenant {name}: notifications are kept {_kept(tenant.keep.documents_s)}, deleted ones"
            f" {_kept(tenant.keep.tombstones_s)}; what is older goes within hours"
        )
    return 0


async def _set(directory: Directory, name: str, changes: dict[str, int | None]) -> Tenant:
    """The tenant as it is then."""
    known = {tenant.name: tenant for tenant in await directory.tenants() if tenant.removed_at is None}
    if name not in known:
        raise NotFound(f"there is no active tenant {name!r}")
    tenant = known[name]
    tenant = replace(tenant, keep=replace(tenant.keep, **changes))
    await directory.set_keep(name, tenant.keep)
    return tenant


def _kept(seconds: int | None) -> str:
    """For people."""
    shown = shown_kept(seconds)
    return {"default": "as the configuration says", "forever": "for ever"}.get(shown, shown)


def _remove_tenant(arguments: argparse.Namespace) -> int:
    name = _checked(arguments.name, "NAME")
    if name == DEFAULT_TENANT:
        raise Refused(f"the tenant {DEFAULT_TENANT} cannot be removed")
    what = "Remove the tenant {}, and erase all it has?" if arguments.erase else "Remove the tenant {}?"
    confirm(what.format(name), arguments.yes)
    erased = in_directory(arguments, lambda directory: _remove(directory, name, arguments.erase))
    if arguments.json:
        print_json({"tenant": name, "erased_documents": erased})
    elif erased is None:
        say(f"tenant {name} is removed; its data is still there (--erase erases it, and frees the name)")
    else:
        say(f"tenant {name} is removed and erased ({erased} documents)")
    return 0


async def _remove(directory: Directory, name: str, erases: bool) -> int | None:
    """How many documents were erased; None if none were to be."""
    known = {tenant.name: tenant for tenant in await directory.tenants()}
    removed_at = known[name].removed_at if name in known else None
    # What was removed before can still be erased.
    if removed_at is None or not erases:
        removed_at = now()
        await directory.remove_tenant(name, removed_at)
    if not erases:
        return None
    await _until_heard(removed_at)
    total = 0
    while erased := await directory.erase_tenant(name, ERASED_PER_STEP):
        total += erased
        say(f"{total} documents erased …")
    return total


async def _until_heard(removed_at: datetime) -> None:
    """Return when running servers know that the tenant was removed: what one that does not know stores for it would
    come after the erasing, and stay."""
    left = min(HEARD_AFTER, removed_at + HEARD_AFTER - now())
    if left > timedelta(0):
        say("waiting until every running server has heard of the removal …")
        await asyncio.sleep(left.total_seconds())


# -- keys ----------------------------------------------------------------------------------------------------
def _add_key(arguments: argparse.Namespace) -> int:
    scopes = frozenset(map(Scope, arguments.scope or [Scope.PUBLISH]))
    tenant, name = _checked(arguments.tenant, "TENANT"), _checked(arguments.name, "NAME")
    expires_at = parse_end(arguments.expires) if arguments.expires else None
    key, secret = _new_key(tenant, name, scopes, expires_at)
    in_directory(arguments, lambda directory: directory.add_key(key))
    if arguments.json:
        print_json(_key_fields(key) | {"secret": secret})
    else:
        print(secret)
        say(f"key {name} of tenant {tenant} ({_scopes(key)}) is shown only now; only its hash is kept")
    return 0


def _list_keys(arguments: argparse.Namespace) -> int:
    keys = in_directory(arguments, lambda directory: _keys(directory, arguments.tenant))
    at = now()
    keys = [key for key in keys if arguments.all or key.is_valid(at)]
    if arguments.json:
        print_json([_key_fields(key) for key in keys])
        return 0
    rows = [
        {
            "tenant": key.tenant,
            "name": key.name,
            "scopes": _scopes(key),
            "created": shown_instant(key.created_at),
            "last used": shown_instant(key.last_used_at),
            "expires": shown_instant(key.expires_at),
            "revoked": shown_instant(key.revoked_at),
        }
        for key in keys
    ]
    columns = ["tenant", "name", "scopes", "created", "last used", "expires"]
    print_table(rows, [*columns, "revoked"] if arguments.all else columns)
    return 0


async def _keys(directory: Directory, tenant: str | None) -> list[ApiKey]:
    if tenant is not None:
        await check_tenant(directory, tenant)
    return await directory.keys(tenant)


def _revoke_key(arguments: argparse.Namespace) -> int:
    tenant, name = _checked(arguments.tenant, "TENANT"), _checked(arguments.name, "NAME")
    key = in_directory(arguments, lambda directory: directory.revoke_key(tenant, name, now()))
    if arguments.json:
        print_json(_key_fields(key))
    else:
        say(f"key {key.name} of tenant {key.tenant} is revoked; connections made with it end within a second")
    return 0


def _rotate_secret(arguments: argparse.Namespace) -> int:
    at = now()
    secret = SigningSecret(new_id(), new_secret(), at)
    retired_at = LONG_AGO if arguments.at_once else at + OLD_SECRET_KEPT
    in_directory(arguments, lambda directory: directory.add_secret(secret, retire_others_at=retired_at))
    end = (
        "are void, and connections by them end within a second"
        if arguments.at_once
        else "stay good until they end"
    )
    say(f"tokens are signed with a new secret from now on; those made before {end}")
    return 0


# -- making and showing --------------------------------------------------------------------------------------
def _new_key(
    tenant: str, name: str, scopes: frozenset[Scope], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A key and its secret."""
    secret = new_secret()
    return ApiKey(new_id(), tenant, name, hash_secret(secret), scopes, now(), expires_at), secret


def _checked(text: str, what: str) -> str:
    if not is_name(text):
        raise BadInput(
            f"{what}: {text!r} is not a name: up to {MAX_NAME_CHARS} of a-z 0-9 . _ -, beginning with a letter or"
            f" digit; nor is {NO_TENANT!r} one"
        )
    return text


def _scopes(key: ApiKey) -> str:
    return " ".join(scope for scope in Scope if scope in key.scopes)


def _tenant_fields(tenant: Tenant) -> dict[str, Any]:
    return {
        "tenant": tenant.name,
        "created_at": instant(tenant.created_at),
        "removed_at": instant(tenant.removed_at),
        "keep": shown_kept(tenant.keep.documents_s),
        "keep_deleted": shown_kept(tenant.keep.tombstones_s),
    }


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": _scopes(key).split(),
        "created_at": instant(key.created_at),
        "expires_at": instant(key.expires_at),
        "last_used_at": instant(key.last_used_at),
        "revoked_at": instant(key.revoked_at),
    }
