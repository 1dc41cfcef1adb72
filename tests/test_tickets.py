"""server/transports/tickets.py."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from server.auth import Identity
from server.errors import BadCredentials, Busy, RateLimited
from server.messages import now
from server.transports import tickets
from server.transports.tickets import LIFETIME_S, MAX_PER_USER, Tickets

ISSUED_AT = datetime(2026, 11, 21, tzinfo=UTC)

ALICE = Identity("default", "alice", issued_at=ISSUED_AT)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_is_good_once() -> None:
    """For the one it was made for; another is none."""
    office = Tickets()
    text = office.make(ALICE)
    with pytest.raises(BadCredentials):
        office.redeem(text[:-1])
    assert office.redeem(text) == ALICE
    with pytest.raises(BadCredentials):
        office.redeem(text)
    assert len(office) == 0


def test_no_ticket_can_be_guessed() -> None:
    """256 bits of chance, in characters that a URL takes."""
    office = Tickets()
    texts = {office.make(ALICE) for _ in range(MAX_PER_USER)}
    assert len(texts) == MAX_PER_USER
    assert all(re.fullmatch(r"[\w-]{43}", text, re.ASCII) for text in texts)


def test_a_ticket_is_good_for_a_while() -> None:
    """Until the very end of that, and no longer; then nothing is left of it."""
    clock = Clock()
    office = Tickets(clock=clock)
    in_time, late = office.make(ALICE), office.make(ALICE)
    clock.now += LIFETIME_S - 0.001
    assert office.redeem(in_time) == ALICE
    clock.now += 0.001
    with pytest.raises(BadCredentials):
        office.redeem(late)
    assert len(office) == 0


def test_a_user_has_so_many_at_a_time() -> None:
    """And one more when one has been used, or has ended; others are not touched by it."""
    clock = Clock()
    office = Tickets(clock=clock)
    texts = [office.make(ALICE) for _ in range(MAX_PER_USER)]
    with pytest.raises(RateLimited) as refusal:
        office.make(ALICE)
    assert refusal.value.retry_after_s == LIFETIME_S
    office.make(Identity("default", "bob"))
    office.make(Identity("other", "alice"))
    office.redeem(texts[3])
    office.make(ALICE)
    clock.now += LIFETIME_S
    for _ in range(MAX_PER_USER):
        office.make(ALICE)


def test_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is refused, none is dropped; a tenant that has as many as are left takes none from others."""
    monkeypatch.setattr(tickets, "MAX_TICKETS", 6)
    office = Tickets()
    texts = [office.make(Identity("default", str(number))) for number in range(3)]
    with pytest.raises(Busy):
        office.make(ALICE)
    others = [Identity(name, "bob") for name in ("first", "second", "third")]
    for other in others:
        office.make(other)
    with pytest.raises(Busy):
        office.make(Identity("fourth", "bob"))
    assert office.redeem(texts[0]).user_id == "0"
    office.make(Identity("fourth", "bob"))
    for text in texts[1:]:
        office.redeem(text)
    office.make(ALICE)


def test_a_ticket_for_a_token_of_any_age_proves_as_much_as_that_did() -> None:
    """At the moment in which it was made: who was signed out since is out."""
    office = Tickets()
    before = now()
    text = office.make(Identity("default", "alice"))
    proved = office.redeem(text)
    assert proved.issued_at is not None and before <= proved.issued_at <= now()
    assert proved.by_own_clock, "it is to be compared with sign-outs as this node heard of them"
    assert not office.redeem(office.make(ALICE)).by_own_clock


def test_no_ticket_can_be_read_from_memory() -> None:
    """Only hashes are kept."""
    office = Tickets()
    text = office.make(ALICE)
    assert text not in repr(vars(office))
