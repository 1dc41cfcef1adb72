"""Whether what was promised was kept: the ledger against the inboxes, the clients and the mail. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.torture.ledger import Changes, Ledger, Request, State
from server.torture.mailbox import Taken

KINDS = ("lost", "duplicated", "foreign", "changed", "differs", "refused", "mail", "leak", "broken")
"""Lost: acknowledged, and not there. Duplicated: there more than once. Foreign: there, and nobody asked for it.
Changed: in a state that nobody put it in. Differs: a client knows something else than the inbox. Refused, or never
acknowledged. Mail: missing, or sent again without need. Leak: left behind in the server. Broken: the server did what it
never may."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Inbox:
    """A user's, as the server shows it to somebody who has nothing. `documents`: newest first, as they came."""

    user: str
    documents: Sequence[Mapping[str, Any]]

    @property
    def states(self) -> dict[str, bool]:
        """Whether each is seen."""
        return {each["_id"]: each["seen"] for each in self.documents}


@dataclass(frozen=True, slots=True)
class View:
    """What a client knows at the end. Of `states` (whether each document is seen), `unseen` (the ids of those that are
    not), `count` (of those) and `keys` (all that it ever was sent) it has what its dialect gives it. What was created
    before `since` need not be among `keys`."""

    client: str
    user: str
    states: Mapping[str, bool] | None = None
    unseen: Collection[str] | None = None
    count: int | None = None
    keys: Collection[str] | None = None
    since: str = ""


@dataclass(slots=True)
class Evidence:
    """All that is looked at. `overlap_s`: see `Changes.seen_up_to`. `disturbed`: when something was broken
    that can make a mail go out again, from and to, in seconds since 1970 by the machine's clock."""

    ledger: Ledger
    changes: Changes
    inboxes: Mapping[str, Inbox]
    views: Sequence[View] = ()
    mails: Sequence[Taken] = ()
    disturbed: Sequence[tuple[float, float]] = ()
    overlap_s: float = 0.0
    others: list[Finding] = field(default_factory=list)


def judge(evidence: Evidence) -> list[Finding]:
    """Everything that is wrong."""
    return [
        *_refused(evidence.ledger),
        *_in_inboxes(evidence),
        *_changed(evidence),
        *_in_views(evidence),
        *mail_findings(evidence.ledger, evidence.mails, evidence.disturbed),
        *evidence.others,
    ]


# -- requests ------------------------------------------------------------------------------------------------


def _refused(ledger: Ledger) -> Iterator[Finding]:
    for request in ledger.requests.values():
        if request.refusal is not None:
            yield Finding("refused", f"{request.key} by {request.door}: {request.refusal}")
        elif request.acknowledged_at is None:
            yield Finding("refused", f"{request.key} by {request.door}: never acknowledged")


def _in_inboxes(evidence: Evidence) -> Iterator[Finding]:
    for inbox in evidence.inboxes.values():
        yield from _in_inbox(inbox, evidence.ledger, evidence.changes)


def _in_inbox(inbox: Inbox, ledger: Ledger, changes: Changes) -> Iterator[Finding]:
    there = Counter(str(each["title"]) for each in inbox.documents)
    ids = Counter(str(each["_id"]) for each in inbox.documents)
    gone = changes.maybe_deleted(inbox.user)
    for request in ledger.acknowledged:
        if inbox.user not in request.users or request.key in there or not request.is_kept:
            continue
        if request.key not in gone:
            yield Finding("lost", f"{request.key} by {request.door}: not in the inbox of {inbox.user}")
    for key, count in there.items():
        known = ledger.requests.get(key)
        if known is None or inbox.user not in known.users:
            yield Finding("foreign", f"{key!r} in the inbox of {inbox.user}")
        elif count > 1:
            yield Finding("duplicated", f"{key} by {known.door}: {count} times in the inbox of {inbox.user}")
    for id_, count in ids.items():
        if count > 1:
            yield Finding("duplicated", f"document {id_}: {count} times in the pages of {inbox.user}")


def count_passed_over(ledger: Ledger, inboxes: Mapping[str, Inbox]) -> int:
    """How many were published by a door that keeps nothing, and are not there."""
    there = {user: {each["title"] for each in inbox.documents} for user, inbox in inboxes.items()}
    return sum(
        1
        for request in ledger.acknowledged
        for user in request.users
        if not request.is_kept and request.key not in there.get(user, ())
    )


def _changed(evidence: Evidence) -> Iterator[Finding]:
    changes = evidence.changes
    for user, inbox in evidence.inboxes.items():
        upto = changes.seen_up_to(user, evidence.overlap_s)
        gone, there = changes.surely_gone(user), inbox.states
        for document in inbox.documents:
            name, state = f"{document['title']} of {user}", State(document["seen"], False)
            if document["_id"] in gone:
                yield Finding("changed", f"{name} is there, though it was deleted")
            elif state not in changes.states(user, document["_id"]):
                yield Finding("changed", f"{name} is {_words(state)}")
            elif not state.is_seen and document["rev"] <= upto:
                yield Finding("changed", f"{name} is unseen, though all up to {upto} was marked seen")
        for id_, key in changes.surely_there(user).items():
            if id_ not in there:
                yield Finding("lost", f"{key} of {user} is gone, and nobody deleted it")


def _words(state: State) -> str:
    return "seen" if state.is_seen else "unseen"


# -- clients -------------------------------------------------------------------------------------------------


def _in_views(evidence: Evidence) -> Iterator[Finding]:
    for view in evidence.views:
        inbox = evidence.inboxes[view.user]
        if view.states is not None:
            yield from _differs(view, view.states.items(), inbox.states.items())
        unseen = {id_ for id_, is_seen in inbox.states.items() if not is_seen}
        if view.unseen is not None:
            # What becomes of a change that was not answered, its screens may never have been told.
            told = {id_ for id_ in unseen | set(view.unseen) if not evidence.changes.is_open(view.user, id_)}
            known = told & set(view.unseen)
            if evidence.changes.is_all_open(view.user):
                known &= unseen
            yield from _differs(view, known, told & unseen)
        if view.count is not None and view.count != len(unseen):
            yield Finding(
                "differs", f"{view.client} counts {view.count} unseen where there are {len(unseen)}"
            )
        if view.keys is not None:
            owed = (each for each in inbox.documents if not each["seen"] and each["createdAt"] >= view.since)
            keys = {each["title"] for each in owed}
            missing = sorted(keys - set(view.keys))
            if missing:
                yield Finding("differs", f"{view.client} was never sent {_some(missing)}")


def _differs(view: View, known: Iterable[Any], real: Iterable[Any]) -> Iterator[Finding]:
    missing, added = sorted(set(real) - set(known)), sorted(set(known) - set(real))
    if missing or added:
        what = f"has not {_some(missing)}" if missing else ""
        more = f"has {_some(added)}, which is not so" if added else ""
        yield Finding("differs", f"{view.client} {' and '.join(filter(None, (what, more)))}")


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:3])
    return f"{shown} and {len(values) - 3} more" if len(values) > 3 else shown


# -- mail ----------------------------------------------------------------------------------------------------


SETTLED_WITHIN_S = 5.0
"""After a mail was taken: what is broken later cannot make it go out again."""

TAKEN_WITHIN_S = 2.0
"""After something was mended: what was under way then is taken."""


def mail_findings(
    ledger: Ledger, mails: Sequence[Taken], disturbed: Sequence[tuple[float, float]]
) -> Iterator[Finding]:
    """All that is wrong with what was mailed."""
    by_key: dict[str, list[Taken]] = {}
    for mail in mails:
        by_key.setdefault(mail.subject, []).append(mail)
    for request in ledger.requests.values():
        taken = by_key.pop(request.key, [])
        yield from _mail_of(request, taken, disturbed)
    for key in by_key:
        yield Finding("mail", f"a mail with the subject {key!r} that nobody asked for")


def _mail_of(
    request: Request, taken: Sequence[Taken], disturbed: Sequence[tuple[float, float]]
) -> Iterator[Finding]:
    if len({mail.id for mail in taken}) > 1:
        yield Finding("mail", f"{request.key}: mailed with several Message-IDs")
    at: dict[str, list[float]] = {}
    for mail in taken:
        for address in mail.to:
            at.setdefault(address, []).append(mail.at)
    for address in at.keys() - set(request.mailed):
        yield Finding("mail", f"{request.key}: mailed to {address}, who is not owed it")
    for address in request.mailed:
        times = sorted(at.get(address, ()))
        if not times and request.acknowledged_at is not None:
            yield Finding("mail", f"{request.key}: not mailed to {address}")
        for instant in times[:-1]:
            if not _is_disturbed(instant, disturbed):
                yield Finding("mail", f"{request.key}: mailed again to {address}, without need")


def _is_disturbed(instant: float, disturbed: Sequence[tuple[float, float]]) -> bool:
    return any(begin - SETTLED_WITHIN_S <= instant <= end + TAKEN_WITHIN_S for begin, end in disturbed)


def count_repeated(mails: Sequence[Taken]) -> int:
    """How many mails went out again."""
    counts = Counter((mail.subject, address) for mail in mails for address in mail.to)
    return sum(count - 1 for count in counts.values())
