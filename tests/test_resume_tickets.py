"""Tests of server/tokens/resume.py: a ticket is worth what the proof behind it is, and not for as long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from server.auth import Proof
from server.errors import BadCredentials, TokenExpired
from server.grants import SigningSecret
from server.messages import now
from server.store import STEP
from server.tokens.own import OwnTokens
from server.tokens.resume import LIFETIME, MAX_AGE, ResumeTickets

AT = now()
OLD = SigningSecret("old", "o" * 43, AT - timedelta(days=1))
NEW = SigningSecret("new", "n" * 43, AT)
PROOF = Proof("alice", "acme", issued_at=AT, key_id="key-1")


class Clock:
    def __init__(self) -> None:
        self.now = AT

    def __call__(self):  # type: ignore[no-untyped-def]
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tickets(clock: Clock) -> ResumeTickets:
    return ResumeTickets(OwnTokens([OLD, NEW], clock), clock)


def made(tickets: ResumeTickets, proof: Proof) -> str:
    ticket = tickets.make(proof)
    assert ticket is not None
    return ticket


def test_a_ticket_stands_for_its_proof(tickets: ResumeTickets) -> None:
    """Who, when, with which key, and until when; a secret signs it, and is to be watched."""
    assert tickets.check(made(tickets, PROOF)) == replace(PROOF, secret_id="new")
    ends = replace(PROOF, expires_at=AT + timedelta(days=3))
    assert tickets.check(made(tickets, ends)).expires_at == ends.expires_at


def test_it_is_signed_with_the_secret_of_its_proof(tickets: ResumeTickets, clock: Clock) -> None:
    """So that it ends with that one; without it there is none."""
    proof = replace(PROOF, secret_id="old")
    ticket = made(tickets, proof)
    assert tickets.check(ticket).secret_id == "old"
    tickets._tokens.use([NEW])
    with pytest.raises(BadCredentials):
        tickets.check(ticket)
    assert tickets.make(proof) is None


def test_it_ends_after_a_while(tickets: ResumeTickets, clock: Clock) -> None:
    """And before that with what it stands for."""
    ticket, short = made(tickets, PROOF), made(tickets, replace(PROOF, expires_at=AT + timedelta(minutes=5)))
    # As tokens go by the clock of the machine.
    clock.now = AT - LIFETIME - timedelta(seconds=1)
    past = made(tickets, replace(PROOF, issued_at=clock.now))
    with pytest.raises(TokenExpired):
        tickets.check(past)
    clock.now = AT
    assert tickets.check(ticket)
    assert tickets.check(short)
    clock.now = AT + timedelta(minutes=5)
    assert tickets.make(replace(PROOF, expires_at=clock.now)) is None


def test_by_tickets_alone_nobody_stays_for_ever(tickets: ResumeTickets, clock: Clock) -> None:
    """The proof behind them grows old."""
    clock.now = AT + MAX_AGE
    assert tickets.make(PROOF) is None
    assert tickets.make(replace(PROOF, issued_at=AT + STEP)) is not None


def test_it_is_later_than_the_sign_out_before_it(tickets: ResumeTickets) -> None:
    """Which the clock of another machine may have dated ahead."""
    ahead = AT + timedelta(seconds=5)
    ticket = tickets.make(PROOF, ahead)
    assert ticket is not None
    issued_at = tickets.check(ticket).issued_at
    assert issued_at is not None and issued_at > ahead


def test_without_a_secret_there_is_none(clock: Clock) -> None:
    """Nor for a proof that does not say when, or of which tenant."""
    assert ResumeTickets(OwnTokens([], clock), clock).make(PROOF) is None
    tickets = ResumeTickets(OwnTokens([NEW], clock), clock)
    assert tickets.make(replace(PROOF, issued_at=None)) is None
    assert tickets.make(replace(PROOF, tenant=None)) is None


@pytest.mark.parametrize("until", ["x", -1, True])
def test_one_with_nonsense_in_it_is_wrong(tickets: ResumeTickets, until: object) -> None:
    """Though we have signed it."""
    said = {"sub": "a", "tenant": "acme", "iat": AT.timestamp(), "exp": AT.timestamp() + 60, "key": ""}
    ticket = tickets._tokens.sign(said | {"until": until}, "notification-resume+jwt")
    with pytest.raises(BadCredentials):
        tickets.check(ticket)
