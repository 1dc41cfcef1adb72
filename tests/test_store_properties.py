"""Any sequence of verbs leaves each store in the state of a simple model: lists in memory, written without any index,
lease or lock."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from server.ids import new_id
from server.messages import Document, EmailDuty, Mail, MailRecipient, Recipient, altered, now
from server.revs import COUNTER_BITS
from server.store import (
    ACKNOWLEDGED,
    WAYS,
    Change,
    Counts,
    MailJob,
    MailOutcome,
    MailState,
    PostponedMail,
    RefusedMail,
    Store,
    TypeCounts,
)
from tests.support.stores import Place, make_notification

START = now() - timedelta(hours=1)
PAST, FUTURE = START, START + timedelta(days=365)
USERS = ["a", "b", "c"]
TYPES = ["", "x", "y"]

user = st.sampled_from(USERS)
index = st.integers(0, 30)
limit = st.sampled_from([1, 2, 3, 100])
type_ = st.sampled_from(TYPES)
_tenants = itertools.count()


def position(document: Document) -> tuple[Any, str]:
    return document.created_at, document.id


@dataclass
class Client:
    """Who follows the inbox of a user. `known`: by id, tombstones too; `pushes`: what was sent since it came, and may
    arrive late, in any order, more than once, or never."""

    user_id: str
    since: int
    known: dict[str, Document]
    pushes: list[Document] = field(default_factory=list)

    def take(self, document: Document) -> None:
        """A change counts only if it is later than what is known."""
        if document.id not in self.known or self.known[document.id].rev < document.rev:
            self.known[document.id] = document


class InboxMachine(RuleBasedStateMachine):
    """Documents: what the store returns is what the model holds. Each run is a tenant of its own."""

    def __init__(self, store: Store, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        super().__init__()
        self.store, self.run = store, run
        self.documents: list[Document] = []
        self.marks: dict[str, set[str]] = {way: set() for way in WAYS}
        self.delivered: set[str] = set()
        self.clients: list[Client] = []
        self.last_rev = 0

    @initialize()
    def start(self) -> None:
        self.tenant = f"tenant-{next(_tenants)}"

    # -- the model -------------------------------------------------------------------------------------------
    def inbox(self, user_id: str) -> list[Document]:
        """Newest first."""
        mine = [each for each in self.documents if each.user_id == user_id and not each.deleted]
        return sorted(mine, key=position, reverse=True)

    def unseen(self, user_id: str) -> list[Document]:
        """Oldest first."""
        return [each for each in self.inbox(user_id)[::-1] if not each.seen]

    def some_ids(self, indexes: list[int]) -> list[str]:
        """Ids of any user, and one that nobody has."""
        known = [*(each.id for each in self.documents), new_id()]
        return [known[number % len(known)] for number in indexes]

    def expect(
        self, change: Change, user_id: str, ids: list[str], changes: dict[str, dict[str, bool]]
    ) -> None:
        """`change` is right, and the model follows it: `changes` says what changes in which document."""
        assert change.ids == tuple(ids)
        assert change.changed == len(changes)
        assert (change.rev is None) == (not changes)
        if change.rev is None:
            return
        assert change.rev > self.last_rev
        self.last_rev = change.rev
        self.delivered |= changes.keys()
        stored = {each.id: each for each in self.run(self.newest(user_id))}
        for number, document in enumerate(self.documents):
            if document.id in changes:
                fields: dict[str, Any] = {**changes[document.id], "rev": change.rev}
                if document.id in stored:  # the store's clock
                    assert stored[document.id].updated_at >= document.updated_at
                    fields["updated_at"] = stored[document.id].updated_at
                self.documents[number] = altered(document, **fields)
                self.push(self.documents[number])

    def push(self, document: Document) -> None:
        for client in self.clients:
            if client.user_id == document.user_id:
                client.pushes.append(document)

    def add_new(self, documents: list[Document]) -> None:
        assert all(each.rev > self.last_rev for each in documents)
        self.last_rev = max((each.rev for each in documents), default=self.last_rev)
        self.documents += documents
        for each in documents:
            self.push(each)

    async def newest(self, user_id: str) -> list[Document]:
        return await self.store.newest(self.tenant, user_id, before=None, limit=1000)

    # -- the verbs -------------------------------------------------------------------------------------------
    @rule(users=st.lists(user, min_size=1, unique=True), age_ms=st.integers(0, 3), type_=type_)
    def add(self, users: list[str], age_ms: int, type_: str) -> None:
        created_at = START - timedelta(milliseconds=age_ms)
        notification = make_notification(self.tenant, created_at=created_at, type=type_)
        stored = self.run(self.store.add(notification, [Recipient(each) for each in users], None))
        added = stored.documents
        assert [each.user_id for each in added] == users
        self.add_new(added)

    @rule(user_id=user, indexes=st.lists(index, max_size=6))
    def mark_seen(self, user_id: str, indexes: list[int]) -> None:
        ids = self.some_ids(indexes)
        change = self.run(self.store.mark_seen(self.tenant, user_id, ids))
        mine = {each.id: each for each in self.inbox(user_id)}
        found = [id_ for id_ in dict.fromkeys(ids) if id_ in mine]
        self.expect(change, user_id, found, {id_: {"seen": True} for id_ in found if not mine[id_].seen})

    @rule(user_id=user, limit=limit, index=st.none() | index)
    def mark_all_seen(self, user_id: str, limit: int, index: int | None) -> None:
        revs = [0, *(each.rev for each in self.documents)]
        up_to = None if index is None else revs[index % len(revs)]
        change = self.run(self.store.mark_all_seen(self.tenant, user_id, limit=limit, up_to=up_to))
        ids = [each.id for each in self.unseen(user_id) if up_to is None or each.rev <= up_to][:limit]
        self.expect(change, user_id, ids, {id_: {"seen": True} for id_ in ids})

    @rule(user_id=user, indexes=st.lists(index, max_size=6))
    def mark_unseen(self, user_id: str, indexes: list[int]) -> None:
        ids = self.some_ids(indexes)
        change = self.run(self.store.mark_unseen(self.tenant, user_id, ids))
        mine = {each.id: each for each in self.inbox(user_id)}
        found = [id_ for id_ in dict.fromkeys(ids) if id_ in mine]
        self.expect(change, user_id, found, {id_: {"seen": False} for id_ in found if mine[id_].seen})

    @rule(user_id=user, indexes=st.lists(index, max_size=6))
    def restore(self, user_id: str, indexes: list[int]) -> None:
        ids = self.some_ids(indexes)
        change = self.run(self.store.restore(self.tenant, user_id, ids))
        gone = {each.id for each in self.documents if each.user_id == user_id and each.deleted}
        found = [id_ for id_ in dict.fromkeys(ids) if id_ in gone]
        self.expect(change, user_id, found, {id_: {"deleted": False} for id_ in found})

    @rule(user_id=user, indexes=st.lists(index, max_size=3))
    def delete(self, user_id: str, indexes: list[int]) -> None:
        ids = self.some_ids(indexes)
        change = self.run(self.store.delete(self.tenant, user_id, ids))
        mine = {each.id for each in self.inbox(user_id)}
        found = [id_ for id_ in dict.fromkeys(ids) if id_ in mine]
        self.expect(change, user_id, found, {id_: {"deleted": True} for id_ in found})

    @rule(users=st.lists(user, max_size=3, unique=True), index=index)
    def expand(self, users: list[str], index: int) -> None:
        """For these users, a notification that some may have, or a new one."""
        notification = make_notification(self.tenant, created_at=START)
        if index < len(self.documents):
            notification = self.documents[index].notification
        having = {each.user_id for each in self.documents if each.notification == notification}
        new = self.run(self.store.broadcasts.expand(notification, users))
        assert [each.user_id for each in new] == [each for each in users if each not in having]
        self.add_new(new)

    @rule(way=st.sampled_from(WAYS), indexes=st.lists(index, max_size=6))
    def mark(self, way: str, indexes: list[int]) -> None:
        ids = self.some_ids(indexes)
        self.run(self.store.deliveries.mark(way, {(self.tenant, each): ids for each in USERS}))
        unseen = {document.id for each in USERS for document in self.unseen(each)}
        marked = unseen & set(ids)
        self.marks[way] |= marked
        if way == ACKNOWLEDGED:
            self.delivered |= marked

    # -- who follows -----------------------------------------------------------------------------------------
    @rule(user_id=user)
    def come(self, user_id: str) -> None:
        """Pushes arrive from then on; the inbox is read after the position."""
        client = Client(user_id, self.run(self.store.position()), {})
        self.clients.append(client)
        for document in self.run(self.newest(user_id)):
            client.take(document)

    @rule(index=index, which=index)
    def receive(self, index: int, which: int) -> None:
        if self.clients and (pushes := (client := self.clients[index % len(self.clients)]).pushes):
            client.take(pushes[which % len(pushes)])

    @rule(index=index, limit=limit)
    def sync(self, index: int, limit: int) -> None:
        """Whatever happened since, the client has the inbox then."""
        if not self.clients:
            return
        client = self.clients[index % len(self.clients)]
        upto = self.run(self.store.position())
        after = (client.since - (round(self.store.changes_overlap_s * 1000) << COUNTER_BITS), "")
        while some := self.run(self.store.changes(self.tenant, client.user_id, after=after, limit=limit)):
            for document in some:
                client.take(document)
            after = (some[-1].rev, some[-1].id)
        client.since = upto
        alive = [each for each in client.known.values() if not each.deleted]
        assert sorted(alive, key=position, reverse=True) == self.inbox(client.user_id)

    # -- what is read ----------------------------------------------------------------------------------------
    @rule(user_id=user)
    def read_all(self, user_id: str) -> None:
        assert self.run(self.newest(user_id)) == self.inbox(user_id)

    @rule(user_id=user, index=index, limit=limit)
    def read_before(self, user_id: str, index: int, limit: int) -> None:
        [id_] = self.some_ids([index])
        marks = [each for each in self.documents if each.id == id_ and each.user_id == user_id]
        read = self.run(self.store.newest(self.tenant, user_id, before=id_, limit=limit))
        older = [each for mark in marks for each in self.inbox(user_id) if position(each) < position(mark)]
        assert read == older[:limit]

    @rule(
        user_id=user,
        index=st.none() | index,
        limit=limit,
        type_=st.none() | type_,
        seen=st.sampled_from([None, False, True]),
    )
    def read_some(
        self, user_id: str, index: int | None, limit: int, type_: str | None, seen: bool | None
    ) -> None:
        mine = [each for each in self.documents if each.user_id == user_id]
        before = mine[index % len(mine)] if mine and index is not None else None
        read = self.run(
            self.store.newest(
                self.tenant,
                user_id,
                before=before and before.id,
                limit=limit,
                type=type_,
                seen=seen,
            )
        )
        wanted = [
            each
            for each in self.inbox(user_id)
            if type_ in (None, each.notification.type)
            and seen in (None, each.seen)
            and (before is None or position(each) < position(before))
        ]
        assert read == wanted[:limit]

    @rule(user_id=user, indexes=st.lists(index, max_size=6))
    def read_by_id(self, user_id: str, indexes: list[int]) -> None:
        ids = self.some_ids(indexes)
        mine = {each.id: each for each in self.documents if each.user_id == user_id}
        read = self.run(self.store.find(self.tenant, user_id, ids))
        assert [each.id for each in read] == [id_ for id_ in dict.fromkeys(ids) if id_ in mine]
        for each in read:
            assert each.deleted == mine[each.id].deleted == (each.deleted_at is not None)
            assert each.deleted or each == mine[each.id]

    @rule(user_id=user, page=st.integers(0, 3), limit=limit)
    def read_page(self, user_id: str, page: int, limit: int) -> None:
        read = self.run(self.store.page(self.tenant, user_id, page=page, limit=limit))
        assert read == self.inbox(user_id)[::-1][page * limit : (page + 1) * limit]

    @rule(user_id=user, index=index, limit=limit)
    def read_unseen(self, user_id: str, index: int, limit: int) -> None:
        marks = [None, *(each for each in self.documents if each.user_id == user_id)]
        after = marks[index % len(marks)]
        read = self.run(self.store.unseen(self.tenant, user_id, after=after, limit=limit))
        newer = [each for each in self.unseen(user_id) if after is None or position(each) > position(after)]
        assert read == newer[:limit]

    @rule(
        user_id=user,
        way=st.sampled_from([*WAYS, None]),
        index=index,
        limit=limit,
        since_ms=st.sampled_from([None, 1]),
    )
    def read_backlog(
        self, user_id: str, way: str | None, index: int, limit: int, since_ms: int | None
    ) -> None:
        marks = [None, *(each for each in self.documents if each.user_id == user_id)]
        after = marks[index % len(marks)]
        since = None if since_ms is None else START - timedelta(milliseconds=since_ms)
        read = self.run(
            self.store.deliveries.backlog(self.tenant, user_id, way, since=since, after=after, limit=limit)
        )
        waiting = [
            each
            for each in self.unseen(user_id)
            if (way is None or each.id not in self.marks[way])
            and (after is None or position(each) > position(after))
            and (since is None or each.created_at >= since)
        ]
        assert read == waiting[:limit]

    @rule(user_id=user, index=index, limit=limit)
    def read_changes(self, user_id: str, index: int, limit: int) -> None:
        mine = sorted((each.rev, each.id) for each in self.documents if each.user_id == user_id)
        after = [(0, ""), *mine][index % (len(mine) + 1)]
        read = self.run(self.store.changes(self.tenant, user_id, after=after, limit=limit))
        assert [(each.rev, each.id) for each in read] == [each for each in mine if each > after][:limit]
        known = {each.id: each for each in self.documents}
        for each in read:
            assert (each.seen, each.deleted) == (known[each.id].seen, known[each.id].deleted)
            assert each.deleted or each == known[each.id]

    @rule(index=index)
    def read_deliveries(self, index: int) -> None:
        if not self.documents:
            return
        nid = self.documents[index % len(self.documents)].notification.nid
        read = self.run(self.store.deliveries.of_notification(self.tenant, nid, after=None, limit=10))
        having = {each.user_id: each for each in self.documents if each.notification.nid == nid}
        assert [each.user_id for each in read] == sorted(having)
        delivered = {each.user_id for each in read if each.delivered_at is not None}
        assert delivered == {user for user, each in having.items() if each.id in self.delivered}

    @rule()
    def read_counts(self) -> None:
        counts = self.run(self.store.count_unseen(self.tenant, USERS))
        assert counts == {each: len(self.unseen(each)) for each in USERS}
        assert self.run(self.store.counts(self.tenant, USERS)) == {each: self.counts(each) for each in USERS}

    def counts(self, user_id: str) -> Counts:
        inbox, unseen = self.inbox(user_id), self.unseen(user_id)
        types = {
            type_: TypeCounts(
                sum(each.notification.type == type_ for each in unseen),
                sum(each.notification.type == type_ for each in inbox),
            )
            for type_ in {each.notification.type for each in inbox}
        }
        return Counts(len(unseen), len(inbox), types)

    @rule(index=index)
    def read_still_unseen(self, index: int) -> None:
        if not self.documents:
            return
        nid = self.documents[index % len(self.documents)].notification.nid
        mine = {each for each in USERS for document in self.unseen(each) if document.notification.nid == nid}
        assert self.run(self.store.still_unseen(self.tenant, nid, USERS)) == mine


class MailMachine(RuleBasedStateMachine):
    """Mail: every recipient is due, leased, waiting, refused or done, whatever workers and operators do, and a job
    settles only while its lease is the last one."""

    def __init__(self, store: Store, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        super().__init__()
        self.store, self.run = store, run
        self.owed: dict[tuple[str, str], Any] = {}  # (nid, user) -> when due
        self.leases: dict[
            tuple[str, str], tuple[str, bool]
        ] = {}  # (nid, user) -> its last lease, whether it holds
        self.attempts: dict[tuple[str, str], int] = {}
        self.dead: set[tuple[str, str]] = set()
        self.jobs: list[MailJob] = []
        self.dropped: set[tuple[str, str]] = set()
        self.refused_before = 0
        self.tenant = f"mail-{next(_tenants)}"

    @initialize()
    def start(self) -> None:
        """Mail is not by tenant: settle what an earlier run has left."""
        while jobs := self.run(self.store.claim_mail(600.0, 1000)):
            for job in jobs:
                assert self.run(self.store.settle_mail(job, MailOutcome(dropped=job.recipients)))
        self.refused_before = self.run(self.store.mail_counts()).refused
        self.left_over = self.run(self.store.mail_counts()).due

    @rule(users=st.lists(user, min_size=1, unique=True), data=st.data())
    def owe(self, users: list[str], data: st.DataObject) -> None:
        notification = make_notification(self.tenant)
        due = {
            each: data.draw(st.sampled_from([PAST, PAST + timedelta(seconds=1), FUTURE])) for each in users
        }
        recipients = tuple(MailRecipient(each, f"{each}@x.test", due[each]) for each in users)
        self.run(
            self.store.add(notification, [Recipient(e) for e in users], EmailDuty(Mail("s", "c"), recipients))
        )
        self.attempts |= {(notification.nid, each): 0 for each in users}
        self.owed |= {(notification.nid, each): due[each] for each in users}

    def is_free(self, key: tuple[str, str]) -> bool:
        return self.owed[key] < FUTURE and not self.leases.get(key, ("", False))[1]

    @rule(lasts=st.booleans(), limit=limit)
    def claim(self, lasts: bool, limit: int) -> None:
        jobs = self.run(self.store.claim_mail(600.0 if lasts else 0.0, limit))
        free: dict[str, set[str]] = {}
        due: dict[str, Any] = {}
        for (nid, user_id), due_at in self.owed.items():
            if self.is_free((nid, user_id)):
                free.setdefault(nid, set()).add(user_id)
                due[nid] = min(due.get(nid, due_at), due_at)
        assert len(jobs) == min(limit, len(free))
        claimed = [due[job.nid] for job in jobs]
        assert claimed == sorted(due.values())[: len(jobs)]
        for job in jobs:
            assert {each.user_id for each in job.recipients} == free[job.nid]
            assert len(job.recipients) == len(free[job.nid])
            assert all(each.due_at == self.owed[job.nid, each.user_id] for each in job.recipients)
            assert all(each.attempts == self.attempts[job.nid, each.user_id] for each in job.recipients)
            self.leases |= {(job.nid, each.user_id): (job.lease, lasts) for each in job.recipients}
        self.jobs += jobs

    @rule(index=index, data=st.data())
    def settle(self, index: int, data: st.DataObject) -> None:
        if not self.jobs:
            return
        job = self.jobs[index % len(self.jobs)]
        fates = {
            each: data.draw(st.sampled_from(["sent", "dropped", "refused", "retry"]))
            for each in job.recipients
        }
        by_fate = {
            fate: tuple(each for each in job.recipients if fates[each] == fate)
            for fate in ("sent", "dropped", "refused", "retry")
        }
        refused = tuple(RefusedMail(each.user_id, each.email, 550, "no") for each in by_fate["refused"])
        retry_at = data.draw(st.sampled_from([PAST, FUTURE]))
        is_untried = data.draw(st.booleans())
        retry = tuple(
            PostponedMail(each.user_id, each.email, 451, "later", retry_at, is_untried)
            for each in by_fate["retry"]
        )
        outcome = MailOutcome(by_fate["sent"], by_fate["dropped"], refused, retry)
        keys = {(job.nid, each.user_id) for each in job.recipients} - self.dropped
        holds = {key for key in keys if self.leases.get(key, ("", False))[0] == job.lease}
        is_settled = self.run(self.store.settle_mail(job, outcome))
        # Where all were dropped there is nothing to settle, nor to lose.
        assert is_settled == bool(holds) or not keys
        for key in holds:
            del self.leases[key], self.owed[key]
        for postponed in retry:
            if (key := (job.nid, postponed.user_id)) in holds:
                self.owed[key] = retry_at
                self.attempts[key] += not is_untried
        self.dead |= {(job.nid, each.user_id) for each in refused} & holds

    def is_leased(self, key: tuple[str, str]) -> bool:
        return self.leases.get(key, ("", False))[1]

    def meant(self, index: int, users: list[str] | None) -> tuple[str, set[tuple[str, str]]]:
        """A notification, and those of its mails that are not leased."""
        nid = sorted(key[0] for key in self.attempts)[index % len(self.attempts)]
        keys = {key for key in (*self.owed, *self.dead) if key[0] == nid and not self.is_leased(key)}
        return nid, {key for key in keys if users is None or key[1] in users}

    @rule(index=index, users=st.none() | st.lists(user))
    def retry(self, index: int, users: list[str] | None) -> None:
        if not self.attempts:
            return
        nid, keys = self.meant(index, users)
        if any(key[0] == nid and self.is_leased(key) for key in self.leases):
            return  # whether they may be claimed before those are settled is up to the store
        keys = {key for key in keys if key in self.dead or self.owed[key] == FUTURE}
        assert self.run(self.store.outbox.retry(self.tenant, {nid: users})) == len(keys)
        self.dead -= keys
        self.attempts |= dict.fromkeys(keys, 0)
        for entry in self.run(self.store.outbox.entries(self.tenant, nid=nid, limit=100)):
            if (key := (nid, entry.user_id)) in keys:
                assert PAST < entry.due_at <= now()
                self.owed[key] = entry.due_at
                self.leases.pop(key, None)

    @rule(index=index, users=st.none() | st.lists(user))
    def drop(self, index: int, users: list[str] | None) -> None:
        if not self.attempts:
            return
        nid, keys = self.meant(index, users)
        assert self.run(self.store.outbox.drop(self.tenant, {nid: users})) == len(keys)
        self.dead -= keys
        self.dropped |= keys
        for key in keys:
            self.owed.pop(key, None)
            self.leases.pop(key, None)

    @rule(state=st.none() | st.sampled_from(MailState))
    def look(self, state: MailState | None) -> None:
        states = {
            key: MailState.LEASED
            if self.is_leased(key)
            else MailState.DUE
            if due_at < FUTURE
            else MailState.WAITING
            for key, due_at in self.owed.items()
        } | dict.fromkeys(self.dead, MailState.DEAD)
        found = self.run(self.store.outbox.entries(self.tenant, state=state, limit=1000))
        assert {(each.nid, each.user_id): each.state for each in found} == {
            key: each for key, each in states.items() if state in (None, each)
        }

    @rule()
    def count(self) -> None:
        counts = self.run(self.store.mail_counts())
        assert counts.due - self.left_over == len(self.owed)
        assert counts.refused - self.refused_before == len(self.dead)

    @rule()
    def next_due(self) -> None:
        due_at = self.run(self.store.next_mail_due())
        if any(self.is_free(key) for key in self.owed):
            assert due_at is not None and due_at <= now()
        elif self.owed:
            assert due_at is not None and due_at > now()


def run_machine(place: Place, machine: type[InboxMachine] | type[MailMachine], examples: int) -> None:
    with asyncio.Runner() as runner:
        store = place.store()
        runner.run(store.open())
        try:
            run_state_machine_as_test(
                cast(type[RuleBasedStateMachine], lambda: machine(store, runner.run)),  # it is only called
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(store.close())


def test_any_sequence_of_changes_and_reads(place: Place) -> None:
    """Documents, counts, orders and revs are those of the model."""
    run_machine(place, InboxMachine, 25)


def test_any_sequence_of_claims_and_settlements(place: Place) -> None:
    """Who is owed, leased, refused and done is as in the model."""
    run_machine(place, MailMachine, 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", [InboxMachine, MailMachine])
def test_many_more_sequences(place: Place, machine: type[InboxMachine] | type[MailMachine]) -> None:
    """The same, longer."""
    run_machine(place, machine, 100)
