"""How mail leaves the server: what the outbox asks of `smtp` and `mail_folder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.mail_message import MailMessage

MAX_REASON_CHARS = 500
"""Of a mail server's answer that are kept."""

BEGIN_SHARE = 0.5
"""The part of the time for sending in which messages are begun. The rest is for their answers: a message that is cut
off while it waits for one comes twice."""

NO_TIME_LEFT = "there was no time left to come to this one"
"""The reason for those who are therefore left for the next time, as untried."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an address did not get the mail. `code`: the mail server's reply code, 0 if it gave none; `reason`: its
    words, or ours, up to `MAX_REASON_CHARS`. Temporary: trying again later is right. `is_untried`: it says nothing
    about this address, which was not come to."""

    code: int
    reason: str
    is_temporary: bool
    is_untried: bool = False


@dataclass(frozen=True, slots=True)
class Outage:
    """Why nothing at all goes out for now. `needs_operator`: it will not pass by itself (login, certificate, …)."""

    reason: str
    needs_operator: bool = False


@dataclass(frozen=True, slots=True)
class Handover:
    """What a transport did. Addresses that are not in `refused` have been accepted. `outage` is set if the transport
    as a whole failed; those it had not come to are among the temporarily refused, as untried."""

    refused: Mapping[str, Refusal]
    outage: Outage | None = None


class MailTransport(Protocol):
    """How mail leaves: `smtp`, or `mail_folder`."""

    name: str
    """For people: `SMTP mail.example.org:587 (STARTTLS)`, `files in data/mail`; never a password."""

    async def close(self) -> None:
        """Let go of what is kept between two messages. The next one may still come."""

    async def send(self, message: MailMessage, addresses: Sequence[str], within_s: float) -> Handover:
        """Hand a message over for these addresses (distinct, as `envelope_address` makes them). Returns within
        `within_s` seconds; does not raise for what a mail server or a disk may do. An address whose answer was lost is
        reported as temporarily refused: the mail may then arrive twice. Where it takes several messages, none but the
        first is begun after `BEGIN_SHARE` of that time."""
