"""Resume tickets: by which a client that was here comes back, without another look at its password or token.

A ticket stands for the proof by which its user joined: it says when that was and with which key, is signed with the
same secret of ours if there was one, and ends no later. So whatever ends the proof (a sign-out, a revoked key, a
removed tenant, a voided secret) ends the ticket, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from server import claims
from server.auth import Proof
from server.claims import TOKEN_WRONG
from server.errors import AuthUnavailable, BadCredentials
from server.messages import now
from server.store import STEP
from server.tokens.own import OwnTokens, proof

TYPE = "notification-resume+jwt"
"""The header `typ`: a ticket is no token, and no token is a ticket."""

LIFETIME = timedelta(minutes=30)
"""Who stays connected is given a new one in time. Longer than a server is away, or a laptop is carried about."""

MAX_AGE = timedelta(hours=12)
"""After the proof: then it is to be given anew, also by who came back by tickets all the time."""


class ResumeTickets:
    """`tokens`: whose secrets sign."""

    def __init__(self, tokens: OwnTokens, clock: Callable[[], datetime] = now) -> None:
        self._tokens = tokens
        self._clock = clock

    def make(self, proved: Proof, voided_at: datetime | None = None) -> str | None:
        """A ticket for who is here by this proof, which says of which tenant and when; None: there can be none.
        `voided_at`: when those of the user last were, by whatever clock; the proof is later than that."""
        issued_at, tenant = proved.issued_at, proved.tenant
        if issued_at is None or tenant is None:
            return None
        ends_at = min(self._clock() + LIFETIME, issued_at + MAX_AGE)
        if proved.expires_at is not None:
            ends_at = min(ends_at, proved.expires_at)
        if ends_at <= self._clock():
            return None
        said = {
            "sub": proved.user_id,
            "tenant": tenant,
            "iat": (issued_at if voided_at is None else max(issued_at, voided_at + STEP)).timestamp(),
            "exp": ends_at.timestamp(),
            # of the proof itself, and so of the connection
            "until": None if proved.expires_at is None else proved.expires_at.timestamp(),
            "key": proved.key_id or "",
        }
        try:
            return self._tokens.sign(said, TYPE, proved.secret_id)
        except AuthUnavailable:
            return None

    def check(self, ticket: str) -> Proof:
        """The proof that a ticket stands for. Raises `BadCredentials`, `TokenExpired`."""
        read = self._tokens.read(ticket, TYPE)
        if read is None:
            raise BadCredentials(TOKEN_WRONG)
        said, secret_id = read
        until = said.get("until")
        try:
            return replace(
                proof(said, secret_id), expires_at=None if until is None else claims.instant(until)
            )
        except ValueError:
            raise BadCredentials(TOKEN_WRONG) from None
