"""`outbox …`: the mail that is owed and the dead letters; running servers see at once what is changed."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from server.cli.common import (
    BadInput,
    beside_servers,
    check_tenant,
    confirm,
    instant,
    print_json,
    print_table,
    printable,
    say,
    shown_instant,
    with_config,
    with_json,
)
from server.errors import NotFound
from server.store import Directory, MailState, Outbox, OutboxMail, OutboxNotification

PER_PAGE = 500
"""Mails that are read at a time."""

PER_CHANGE = 100
"""Mails that are changed at a time, so that a running server waits for no longer than that takes."""

SHOWN = 100
"""Mails that `list` and `show` show, unless told otherwise."""

MAX_ANSWER_CHARS = 60
"""Of an answer in `list`; `show` has it all."""

RETRIED = frozenset({MailState.WAITING, MailState.DEAD})
DROPPED = frozenset(MailState) - {MailState.LEASED}


def add_commands(commands: Any) -> None:
    """`commands`: what `add_subparsers` returned, whose type argparse does not name."""
    outbox = commands.add_parser(
        "outbox", help="look at and change the mail that is owed, and the dead letters"
    )
    outbox_commands = outbox.add_subparsers(title="commands", required=True, metavar="COMMAND")
    options = [with_config(), with_json(), _with_tenant()]
    list_ = outbox_commands.add_parser(
        "list", parents=options, help="list mails with the last answer to each"
    )
    list_.add_argument(
        "--state", choices=[state.value for state in MailState], help="only those in this state"
    )
    _add_limit(list_)
    list_.set_defaults(run=_list)
    show = outbox_commands.add_parser("show", parents=options, help="show the mail of one notification")
    show.add_argument("nid", metavar="NOTIFICATION")
    _add_limit(show)
    show.set_defaults(run=_show)
    retry = outbox_commands.add_parser(
        "retry", parents=options, help="let mail that waits or is dead be due now, as if never tried"
    )
    _add_selection(retry, RETRIED)
    retry.set_defaults(run=_retry)
    drop = outbox_commands.add_parser(
        "drop", parents=options, help="owe mail no longer, and forget dead letters; the inboxes keep theirs"
    )
    _add_selection(drop, DROPPED)
    drop.add_argument("--yes", action="store_true", help="do not ask")
    drop.set_defaults(run=_drop)


def _with_tenant() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tenant", metavar="TENANT", help="only of this one (default: of all)")
    return parser


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=int, default=SHOWN, metavar="N", help=f"show so many (default: {SHOWN})"
    )


def _add_selection(parser: argparse.ArgumentParser, states: Collection[MailState]) -> None:
    parser.add_argument("nid", metavar="NOTIFICATION", nargs="?")
    parser.add_argument("--user", metavar="USER-ID", help="only the mail to this user")
    parser.add_argument("--all", action="store_true", help="of all notifications")
    choices = [state.value for state in MailState if state in states]
    parser.add_argument("--state", choices=choices, help="only those in this state")


# -- looking -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Mail:
    tenant: str
    mail: OutboxMail


def _list(arguments: argparse.Namespace) -> int:
    limit = _limit(arguments)
    state = None if arguments.state is None else MailState(arguments.state)

    async def work(directory: Directory, outbox: Outbox) -> list[_Mail]:
        return await _first(_mails(directory, outbox, arguments.tenant, state), limit + 1)

    found = beside_servers(arguments, work)
    if arguments.json:
        print_json([_fields(each) for each in found[:limit]])
    else:
        print_table([_row(each) for each in found[:limit]], ["tenant", "notification", *_COLUMNS])
    if len(found) > limit:
        say(f"these are the first {limit}; there are more (--limit)")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    limit, nid = _limit(arguments), arguments.nid

    async def work(directory: Directory, outbox: Outbox) -> tuple[str, OutboxNotification, list[OutboxMail]]:
        tenant, found = await _find(directory, outbox, arguments.tenant, nid)
        return tenant, found, await outbox.entries(tenant, nid=nid, limit=limit + 1)

    tenant, notification, mails = beside_servers(arguments, work)
    shown = [_Mail(tenant, each) for each in mails[:limit]]
    mail = notification.mail
    if arguments.json:
        head = {
            "tenant": tenant,
            "notification": nid,
            "created_at": instant(notification.created_at),
            "subject": None if mail is None else mail.subject,
            "forced": None if mail is None else mail.forced,
        }
        print_json(head | {"mails": [_fields(each) for each in shown]})
    else:
        print(f"notification  {nid} of tenant {tenant}, {shown_instant(notification.created_at)}")
        print(f"subject       {'- (the text is not kept)' if mail is None else printable(mail.subject)}")
        print_table([_row(each, is_whole=True) for each in shown], _COLUMNS)
    if len(mails) > limit:
        say(f"these are the first {limit}; there are more (--limit)")
    return 0


async def _tenants(directory: Directory, chosen: str | None) -> list[str]:
    """The one that was chosen, or all that are active. Raises `NotFound`."""
    if chosen is not None:
        await check_tenant(directory, chosen, must_be_active=True)
        return [chosen]
    return [tenant.name for tenant in await directory.tenants() if tenant.removed_at is None]


async def _find(
    directory: Directory, outbox: Outbox, chosen: str | None, nid: str
) -> tuple[str, OutboxNotification]:
    """The tenant of a notification with mail, and what there is of it. Raises `NotFound`."""
    for tenant in await _tenants(directory, chosen):
        try:
            return tenant, await outbox.find(tenant, nid)
        except NotFound:
            continue
    raise NotFound(f"there is no mail of a notification {printable(nid)} in the outbox")


async def _mails(
    directory: Directory, outbox: Outbox, chosen: str | None, state: MailState | None, nid: str | None = None
) -> AsyncIterator[_Mail]:
    for tenant in await _tenants(directory, chosen):
        after = None
        while page := await outbox.entries(tenant, nid=nid, state=state, after=after, limit=PER_PAGE):
            for mail in page:
                yield _Mail(tenant, mail)
            after = page[-1].nid, page[-1].user_id


async def _first(mails: AsyncIterator[_Mail], limit: int) -> list[_Mail]:
    found: list[_Mail] = []
    async for mail in mails:
        found.append(mail)
        if len(found) == limit:
            break
    return found


def _limit(arguments: argparse.Namespace) -> int:
    limit: int = arguments.limit
    if limit < 1:
        raise BadInput("--limit: less than 1")
    return limit


# -- changing ------------------------------------------------------------------------------------------------
def _retry(arguments: argparse.Namespace) -> int:
    _check_selection(arguments)

    async def work(directory: Directory, outbox: Outbox) -> tuple[int, int]:
        chosen = await _chosen(arguments, directory, outbox, RETRIED)
        return len(chosen), sum([await outbox.retry(*each) for each in _in_steps(chosen)])

    meant, retried = beside_servers(arguments, work)
    if arguments.json:
        print_json({"retried": retried})
    else:
        say(f"{_count(retried)} due now; running servers send what is due within seconds")
    if retried < meant:
        say(
            f"{_count(meant - retried)} as before: changed meanwhile, or dead since a version that kept no text"
        )
    return 0


def _drop(arguments: argparse.Namespace) -> int:
    _check_selection(arguments)

    async def work(directory: Directory, outbox: Outbox) -> tuple[int, int]:
        chosen = await _chosen(arguments, directory, outbox, DROPPED)
        if len(chosen) > 1:
            confirm(f"Drop {len(chosen)} mails? Nobody gets them.", arguments.yes)
        return len(chosen), sum([await outbox.drop(*each) for each in _in_steps(chosen)])

    meant, dropped = beside_servers(arguments, work)
    if arguments.json:
        print_json({"dropped": dropped})
    else:
        say(f"{_count(dropped)} dropped")
    if dropped < meant:
        say(f"{_count(meant - dropped)} not there any more, or being sent")
    return 0


def _check_selection(arguments: argparse.Namespace) -> None:
    if arguments.all == (arguments.nid is not None):
        raise BadInput("say either NOTIFICATION or --all")
    if arguments.all and arguments.user is not None:
        raise BadInput("--user: goes with NOTIFICATION, not with --all")


async def _chosen(
    arguments: argparse.Namespace, directory: Directory, outbox: Outbox, states: Collection[MailState]
) -> list[_Mail]:
    """The mails that a command is about. Raises `NotFound` if that notification has none at all."""
    tenant: str | None = arguments.tenant
    if arguments.nid is not None:
        tenant, _ = await _find(directory, outbox, tenant, arguments.nid)
    state = None if arguments.state is None else MailState(arguments.state)
    return [
        each
        async for each in _mails(directory, outbox, tenant, state, arguments.nid)
        if each.mail.state in states and arguments.user in (None, each.mail.user_id)
    ]


def _in_steps(mails: Sequence[_Mail]) -> list[tuple[str, dict[str, list[str]]]]:
    """What to change at a time, of one tenant each."""
    steps: list[tuple[str, dict[str, list[str]]]] = []
    for tenant in dict.fromkeys(each.tenant for each in mails):
        own = (each.mail for each in mails if each.tenant == tenant)
        while some := list(islice(own, PER_CHANGE)):
            step: dict[str, list[str]] = {}
            for mail in some:
                step.setdefault(mail.nid, []).append(mail.user_id)
            steps.append((tenant, step))
    return steps


# -- showing -------------------------------------------------------------------------------------------------
_COLUMNS = ["user", "e-mail", "state", "time", "attempts", "last answer"]


def _count(mails: int) -> str:
    return "1 mail is" if mails == 1 else f"{mails} mails are"


def _row(of: _Mail, *, is_whole: bool = False) -> dict[str, str]:
    mail = of.mail
    answer = _answer(mail)
    if not is_whole and len(answer) > MAX_ANSWER_CHARS:
        answer = answer[: MAX_ANSWER_CHARS - 1] + "…"
    at = {MailState.LEASED: mail.leased_until, MailState.DEAD: mail.failed_at}.get(mail.state, mail.due_at)
    return {
        "tenant": of.tenant,
        "notification": mail.nid,
        "user": printable(mail.user_id),
        "e-mail": printable(mail.email),
        "state": mail.state,
        "time": shown_instant(at),
        "attempts": str(mail.attempts),
        "last answer": answer,
    }


def _answer(mail: OutboxMail) -> str:
    if mail.reason is None:
        return "-"
    return printable(f"{mail.code} {mail.reason}" if mail.code else mail.reason)


def _fields(of: _Mail) -> dict[str, Any]:
    mail = of.mail
    return {
        "tenant": of.tenant,
        "notification": mail.nid,
        "user_id": mail.user_id,
        "email": mail.email,
        "state": mail.state,
        "due_at": instant(mail.due_at),
        "leased_until": instant(mail.leased_until),
        "attempts": mail.attempts,
        "failed_at": instant(mail.failed_at),
        "code": mail.code,
        "reason": mail.reason,
    }
