"""Mails one claimed job: checks who is still owed it, hands it to a transport, and says what became of each recipient.

When jobs are claimed and settled is up to `outbox`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from server.config import Email
from server.errors import StartupError
from server.mail_message import MailMessage, Sender, build_message, envelope_address
from server.mail_transport import BEGIN_SHARE, NO_TIME_LEFT, MailTransport, Outage, Refusal
from server.messages import MailRecipient, to_milliseconds
from server.store import MailJob, MailOutcome, PostponedMail, RefusedMail, Store

logger = logging.getLogger(__name__)

SENDING_SHARE = 0.8
"""The part of a lease that may pass until the transport is done. The rest is for settling: a mail that is still on its
way when its lease ends goes out twice."""

ALONE_AFTER = 2
"""Attempts in vain after which a recipient gets a message apart: whatever one of them does to a mail server or a
connection, the others are mailed. Before that most are done: greylisting takes one or two."""

DAY_S = 86_400.0


class SignsOfLife(Protocol):
    """What the worker asks about users who were online when a notification was accepted."""

    async def alive_since(
        self, tenant: str, user_ids: Collection[str], instant: datetime, ago_s: float | None
    ) -> set[str]:
        """Those of these users of whom a connection gave a sign of life after `instant`; without those of whom that is
        not known. `ago_s`: how long ago that was; None: the clock of this node showed it."""


class Mailing:
    """Raises `StartupError` if the sender is not an address."""

    def __init__(
        self,
        store: Store,
        transport: MailTransport,
        signs_of_life: SignsOfLife,
        email: Email,
        clock: Callable[[], datetime],
        rng: random.Random,
        note: Callable[[Outage | None], None],
    ) -> None:
        """`note` is told after each message whether the transport failed as a whole."""
        self._store = store
        self._transport = transport
        self._signs_of_life = signs_of_life
        self._email = email
        self._sender = _parse_sender(email.sender)
        self._clock = clock
        self._rng = rng
        self._note = note

    async def attempt(self, job: MailJob, lease_ends_at: float) -> MailOutcome:
        """Mail those who are still owed it, and sort all recipients by what became of them."""
        owed = await self._still_owed(job)
        try:
            refused = await self._send(job, owed, lease_ends_at) if owed else {}
        except Exception as exc:
            logger.exception("mailing notification %s failed; trying again later", job.nid)
            failure = Refusal(0, f"internal error ({type(exc).__name__})", is_temporary=True)
            refused = dict.fromkeys((recipient.email for recipient in owed), failure)
        return self._outcome(job, owed, refused)

    async def _still_owed(self, job: MailJob) -> list[MailRecipient]:
        """Those who have neither seen nor deleted the notification, nor shown that they were there to be pushed it."""
        if job.mail.forced:
            return list(job.recipients)
        unseen = await self._store.still_unseen(job.tenant, job.nid, [r.user_id for r in job.recipients])
        owed = [r for r in job.recipients if r.user_id in unseen]
        pushed_to = [r.user_id for r in owed if r.accepted_online]
        if not pushed_to:
            return owed
        alive = await self._signs_of_life.alive_since(
            job.tenant, pushed_to, job.created_at, job.accepted_s_ago
        )
        return [r for r in owed if r.user_id not in alive]

    async def _send(
        self, job: MailJob, owed: Sequence[MailRecipient], lease_ends_at: float
    ) -> dict[str, Refusal]:
        """Hand the mail over; the refusals by the recipients' `email`."""
        refused: dict[str, Refusal] = {}
        addresses: dict[str, str] = {}
        for recipient in owed:
            try:
                addresses[recipient.email] = envelope_address(recipient.email)
            except ValueError as exc:
                refused[recipient.email] = Refusal(0, str(exc), is_temporary=False)
        if addresses:
            message = build_message(job.mail, job.nid, job.created_at, self._sender)
            by_address = await self._hand_over(message, _parts(owed, addresses), lease_ends_at)
            refused |= {
                email: by_address[address] for email, address in addresses.items() if address in by_address
            }
        return refused

    async def _hand_over(
        self, message: MailMessage, parts: Sequence[Sequence[str]], lease_ends_at: float
    ) -> dict[str, Refusal]:
        """Hand the message over for one part after the other, as long as that goes; the refusals by address."""
        refused: dict[str, Refusal] = {}
        sending_ends_at = lease_ends_at - (1 - SENDING_SHARE) * self._email.lease_s
        answering_s = (1 - BEGIN_SHARE) * SENDING_SHARE * self._email.lease_s
        reason = None
        for addresses in parts:
            within_s = sending_ends_at - time.monotonic()
            if reason is None and within_s <= answering_s:
                reason = NO_TIME_LEFT
            if reason is not None:
                untried = Refusal(0, reason, is_temporary=True, is_untried=True)
                refused |= dict.fromkeys(addresses, untried)
                continue
            handover = await self._transport.send(message, addresses, within_s)
            self._note(handover.outage)
            refused |= handover.refused
            reason = None if handover.outage is None else handover.outage.reason
        return refused

    def _outcome(
        self, job: MailJob, owed: Sequence[MailRecipient], refused: Mapping[str, Refusal]
    ) -> MailOutcome:
        sent, retry, given_up = [], [], []
        # Those who have failed equally often go together again.
        retry_at: dict[int, datetime] = {}
        for recipient in owed:
            refusal = refused.get(recipient.email)
            if refusal is None:
                sent.append(recipient)
            elif refusal.is_temporary and not self._is_given_up(recipient, refusal):
                failures = 0 if refusal.is_untried else recipient.attempts
                if failures not in retry_at:
                    retry_at[failures] = self._retry_at(failures)
                retry.append(_postponed(recipient, refusal, retry_at[failures]))
            else:
                given_up.append(self._refused_mail(recipient, refusal))
        still_owed = set(owed)
        return MailOutcome(
            sent=tuple(sent),
            dropped=tuple(recipient for recipient in job.recipients if recipient not in still_owed),
            refused=tuple(given_up),
            retry=tuple(retry),
        )

    def _refused_mail(self, recipient: MailRecipient, refusal: Refusal) -> RefusedMail:
        reason = refusal.reason
        if refusal.is_temporary:
            days = self._email.give_up_after_s / DAY_S
            reason = f"gave up after {days:.3g} days; the last answer: {reason}"
        return RefusedMail(recipient.user_id, recipient.email, refusal.code, reason)

    def _is_given_up(self, recipient: MailRecipient, refusal: Refusal) -> bool:
        if recipient.failing_since is None or refusal.is_untried:
            return False
        put_off_for = recipient.due_at - recipient.failing_since
        return put_off_for > timedelta(seconds=self._email.give_up_after_s)

    def _retry_at(self, failures: int) -> datetime:
        """When to try again after so many failures before this one."""
        delay_s = backoff_s(self._rng, failures, self._email.retry_first_s, self._email.retry_max_s)
        return to_milliseconds(self._clock() + timedelta(seconds=delay_s))


def backoff_s(rng: random.Random, failures: int, first_s: float, max_s: float) -> float:
    """A random time in the upper half of the bound, which doubles with each earlier failure: spread, but never so
    short that it is no delay at all (RFC 5321 section 4.5.4.1 asks for one)."""
    bound_s = min(max_s, first_s * 2 ** min(failures, 40))
    return rng.uniform(bound_s / 2, bound_s)


def _parts(owed: Sequence[MailRecipient], addresses: Mapping[str, str]) -> list[list[str]]:
    """The addresses (by `email`) that get a message together, each once: users may share one, and it gets one mail."""
    attempts: dict[str, int] = {}
    for recipient in owed:
        if recipient.email in addresses:
            address = addresses[recipient.email]
            attempts[address] = max(attempts.get(address, 0), recipient.attempts)
    together = [address for address, failures in attempts.items() if failures < ALONE_AFTER]
    alone = [[address] for address, failures in attempts.items() if failures >= ALONE_AFTER]
    return [together, *alone] if together else alone


def _postponed(recipient: MailRecipient, refusal: Refusal, retry_at: datetime) -> PostponedMail:
    return PostponedMail(
        recipient.user_id, recipient.email, refusal.code, refusal.reason, retry_at, refusal.is_untried
    )


def _parse_sender(text: str) -> Sender:
    try:
        return Sender.parse(text)
    except ValueError as exc:
        raise StartupError(f"[EMAIL] sender: {exc}; write a@example.org or Name <a@example.org>") from exc
