"""What was asked for, what was promised, and what clients changed: the account against which the torture is judged. No
I/O."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.revs import span_of, to_wire

TITLE = "torture"


@dataclass(slots=True, eq=False)
class Request:
    """One notification that somebody is to have. `key`: its idempotency key, and the title by which its documents and
    mails are known; `mailed`: the addresses that are owed a mail; `is_kept`: whether its door keeps what it takes
    (Redis keeps nothing). `sent_at`, `acknowledged_at`: `time.monotonic`, of the first try and of the answer."""

    key: str
    door: str
    users: tuple[str, ...]
    mailed: tuple[str, ...] = ()
    is_kept: bool = True
    size: int = 0
    sent_at: float = field(default_factory=time.monotonic)
    acknowledged_at: float | None = None
    tries: int = 0
    refusal: str | None = None
    """With what it was refused for good: nothing that the torture asks for may be."""


class Ledger:
    """All requests, by their keys."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self._numbers = itertools.count(1)

    def open(
        self,
        door: str,
        users: Sequence[str],
        mailed: Sequence[str] = (),
        *,
        is_kept: bool = True,
        size: int = 0,
    ) -> Request:
        """A new request; `size`: about so many characters of content."""
        key = f"{TITLE}-{next(self._numbers):06}"
        request = Request(key, door, tuple(users), tuple(mailed), is_kept, size)
        self.requests[key] = request
        return request

    def acknowledge(self, request: Request) -> None:
        if request.acknowledged_at is None:
            request.acknowledged_at = time.monotonic()

    @property
    def acknowledged(self) -> Iterator[Request]:
        return (each for each in self.requests.values() if each.acknowledged_at is not None)

    def first_acknowledged_after(self, instant: float, doors: Sequence[str]) -> float | None:
        """When the first request that was begun after `instant`, by one of these doors, was acknowledged."""
        found = (
            each.acknowledged_at
            for each in reversed(self.requests.values())
            if each.acknowledged_at is not None and each.sent_at >= instant and each.door in doors
        )
        return min(found, default=None)


@dataclass(frozen=True, slots=True)
class State:
    """Of a document."""

    is_seen: bool = False
    is_deleted: bool = False


FRESH = State()


class Changes:
    """What clients did with their documents: which states each may be in. What was acknowledged must be so; what was
    asked for and not answered may be so or not, and may still become so: such a document is left alone from then on."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], set[State]] = {}
        self._keys: dict[str, dict[str, str]] = {}
        self._open: set[tuple[str, str]] = set()
        self._seen_up_to: dict[str, str] = {}
        self._asked_for_all: set[str] = set()
        self._open_for_all: Counter[str] = Counter()
        self.acknowledged = 0

    # -- asked and answered ----------------------------------------------------------------------------------
    def ask(self, user: str, id_: str, key: str, after: Mapping[State, State]) -> None:
        """A change of the document of this request is asked for; its answer is to come."""
        states = self._states.setdefault((user, id_), {FRESH})
        self._states[user, id_] = states | {after.get(state, state) for state in states}
        self._keys.setdefault(user, {})[id_] = key
        self._open.add((user, id_))

    def settle(self, user: str, id_: str, after: Mapping[State, State]) -> None:
        """It was answered: it is made."""
        self._states[user, id_] = {after.get(state, state) for state in self._states[user, id_]}
        self._open.discard((user, id_))
        self.acknowledged += 1

    def ask_all_seen(self, user: str) -> None:
        self._asked_for_all.add(user)
        self._open_for_all[user] += 1

    def settle_all_seen(self, user: str, upto: str) -> None:
        """Whatever has a rev up to this one is seen."""
        self._seen_up_to[user] = max(upto, self._seen_up_to.get(user, ""))
        self._open_for_all[user] -= 1
        self.acknowledged += 1

    # -- what follows from it --------------------------------------------------------------------------------
    def is_open(self, user: str, id_: str) -> bool:
        """Whether a change of it was not answered."""
        return (user, id_) in self._open

    def unanswered(self) -> dict[str, list[str]]:
        """For each user the documents of which a change was not; `all`: that all is seen was not."""
        found: dict[str, list[str]] = {user: ["all"] for user in self._open_for_all if self.is_all_open(user)}
        for user, id_ in sorted(self._open):
            found.setdefault(user, []).append(id_)
        return found

    def is_all_open(self, user: str) -> bool:
        """Whether it was not answered that all is seen."""
        return self._open_for_all[user] > 0

    def states(self, user: str, id_: str) -> set[State]:
        """Those in which this document may be."""
        states = self._states.get((user, id_), {FRESH})
        return states | ({SEEN.get(each, each) for each in states} if user in self._asked_for_all else set())

    def seen_up_to(self, user: str, overlap_s: float) -> str:
        """The rev up to which there is nothing unseen; "": there is none such. `overlap_s`: how much later than a
        higher one a rev may become visible in the store."""
        upto = self._seen_up_to.get(user, "")
        return to_wire(max(0, int(upto, 16) - span_of(overlap_s))) if upto else ""

    def maybe_deleted(self, user: str) -> set[str]:
        """The keys of those documents that may be gone."""
        return {key for id_, key in self._keys.get(user, {}).items() if self._may_be(user, id_, True)}

    def surely_there(self, user: str) -> dict[str, str]:
        """The documents that were changed and cannot be gone, with their keys."""
        return {
            id_: key for id_, key in self._keys.get(user, {}).items() if not self._may_be(user, id_, True)
        }

    def surely_gone(self, user: str) -> set[str]:
        """The documents that are deleted."""
        return {id_ for id_ in self._keys.get(user, {}) if not self._may_be(user, id_, False)}

    def _may_be(self, user: str, id_: str, is_deleted: bool) -> bool:
        return any(state.is_deleted is is_deleted for state in self._states[user, id_])


SEEN = {State(False, False): State(True, False)}
UNSEEN = {State(True, False): State(False, False)}
DELETED = {State(seen, False): State(seen, True) for seen in (False, True)}
RESTORED = {State(seen, True): State(seen, False) for seen in (False, True)}
"""What each change makes of what; all else stays as it is."""
