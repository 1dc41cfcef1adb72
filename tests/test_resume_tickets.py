"""Tests of server/tokens/resume.py: a ticket is worth what the proof behind it is, and not for as long."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from server.auth import Proof
from server.errors import BadCredentials, TokenExpired
from server.grants import SigningSecret
from server.messages import now
from server.store import STEP
from server.tokens.own import OwnTokens
from server.tokens.resume import LIFETIME, MAX_AGE, ResumeTickets


class Clock:
    def __init__(self, at: datetime) -> None:
        self.now = at

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def at() -> datetime:
    """When the proof was given: just now, as tickets end by the clock of the machine."""
    return now()


@pytest.fixture
def proof(at: datetime) -> Proof:
    return Proof("alice", "acme", issued_at=at, key_id="key-1")


@pytest.fixture
def clock(at: datetime) -> Clock:
    return Clock(at)


@pytest.fixture
def new(at: datetime) -> SigningSecret:
    return SigningSecret("new", "n" * 43, at)


@pytest.fixture
def tickets(clock: Clock, new: SigningSecret) -> ResumeTickets:
    old = SigningSecret("old", "o" * 43, clock.now - timedelta(days=1))
    return ResumeTickets(OwnTokens([old, new], clock), clock)


def made(tickets: ResumeTickets, proof: Proof) -> str:
    ticket = tickets.make(proof)
    assert ticket is not None
    return ticket


def test_a_ticket_stands_for_its_proof(tickets: ResumeTickets, at: datetime, proof: Proof) -> None:
    """Who, when, with which key, and until when; a secret signs it, and is to be watched."""
    assert tickets.check(made(tickets, proof)) == replace(proof, secret_id="new")
    ends = replace(proof, expires_at=at + timedelta(days=3))
    assert tickets.check(made(tickets, ends)).expires_at == ends.expires_at


def test_it_is_signed_with_the_secret_of_its_proof(
    tickets: ResumeTickets, clock: Clock, proof: Proof, new: SigningSecret
) -> None:
    """So that it ends with that one; without it there is none."""
    earlier = replace(proof, secret_id="old")
    ticket = made(tickets, earlier)
    assert tickets.check(ticket).secret_id == "old"
    tickets._tokens.use([new])
    with pytest.raises(BadCredentials):
        tickets.check(ticket)
    assert tickets.make(earlier) is None


def test_it_ends_after_a_while(tickets: ResumeTickets, clock: Clock, at: datetime, proof: Proof) -> None:
    """And before that with what it stands for."""
    ticket, short = made(tickets, proof), made(tickets, replace(proof, expires_at=at + timedelta(minutes=5)))
    # As tokens go by the clock of the machine.
    clock.now = at - LIFETIME - timedelta(seconds=1)
    past = made(tickets, replace(proof, issued_at=clock.now))
    with pytest.raises(TokenExpired):
        tickets.check(past)
    clock.now = at
    assert tickets.check(ticket)
    assert tickets.check(short)
    clock.now = at + timedelta(minutes=5)
    assert tickets.make(replace(proof, expires_at=clock.now)) is None


def test_by_tickets_alone_nobody_stays_for_ever(
    tickets: ResumeTickets, clock: Clock, at: datetime, proof: Proof
) -> None:
    """The proof behind them grows old."""
    clock.now = at + MAX_AGE
    assert tickets.make(proof) is None
    assert tickets.make(replace(proof, issued_at=at + STEP)) is not None


def test_it_is_later_than_the_sign_out_before_it(tickets: ResumeTickets, at: datetime, proof: Proof) -> None:
    """Which the clock of another machine may have dated ahead."""
    ahead = at + timedelta(seconds=5)
    ticket = tickets.make(proof, ahead)
    assert ticket is not None
    issued_at = tickets.check(ticket).issued_at
    assert issued_at is not None and issued_at > ahead


def test_without_a_secret_there_is_none(clock: Clock, proof: Proof, new: SigningSecret) -> None:
    """Nor for a proof that does not say when, or of which tenant."""
    assert ResumeTickets(OwnTokens([], clock), clock).make(proof) is None
    tickets = ResumeTickets(OwnTokens([new], clock), clock)
    assert tickets.make(replace(proof, issued_at=None)) is None
    assert tickets.make(replace(proof, tenant=None)) is None


@pytest.mark.parametrize("until", ["x", -1, True])
def test_one_with_nonsense_in_it_is_wrong(tickets: ResumeTickets, until: object, at: datetime) -> None:
    """Though we have signed it."""
    said = {"sub": "a", "tenant": "acme", "iat": at.timestamp(), "exp": at.timestamp() + 60, "key": ""}
    ticket = tickets._tokens.sign(said | {"until": until}, "notification-resume+jwt")
    with pytest.raises(BadCredentials):
        tickets.check(ticket)
