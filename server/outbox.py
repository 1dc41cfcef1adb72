"""The mail worker: claims owed mail from the store, checks who is still owed it, hands it to a transport, settles.

It knows no SMTP. Between handing over and settling a crash can always come, and then the mail is repeated after its
lease: late or twice, never lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from server.bus import MAIL_SETTLED, tell
from server.config import Email
from server.errors import StartupError, StoreUnavailable
from server.mail_message import MailMessage, Sender, build_message, envelope_address
from server.messages import MailRecipient, now, to_milliseconds
from server.store import MailJob, MailOutcome, RefusedMail, Store
from server.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_SLEEP_S = 30.0
"""Between two looks for due mail: other nodes leave mail behind, and clocks differ."""

MIN_SLEEP_S = 0.5
"""After a look that found nothing, although something is said to be due: another node is at it."""

SENDING_SHARE = 0.8
"""The part of a lease that may pass until the transport is done. The rest is for settling: a mail that is still on its
way when its lease ends goes out twice."""

SETTLE_RETRY_S = 0.5
"""The first wait before settling again when the store does not answer; doubles."""

PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 60.0
"""How long to leave the mail server, or the store, alone after it failed; growing with each failure in a row."""

REPORT_OUTAGE_EVERY_S = 60.0
"""While mail does not go out, the log says so at most so often."""

DAY_S = 86_400.0


# -- the transport's side ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an address did not get the mail. `code`: the mail server's reply code, 0 if it gave none; `reason`: its
    words, or ours. Temporary: trying again later is right."""

    code: int
    reason: str
    is_temporary: bool


@dataclass(frozen=True, slots=True)
class Outage:
    """Why nothing at all goes out for now. `needs_operator`: it will not pass by itself (login, certificate, …)."""

    reason: str
    needs_operator: bool = False


@dataclass(frozen=True, slots=True)
class Handover:
    """What a transport did. Addresses that are not in `refused` have been accepted. `outage` is set if the transport
    as a whole failed; those it had not come to are among the temporarily refused."""

    refused: Mapping[str, Refusal]
    outage: Outage | None = None


class MailTransport(Protocol):
    """How mail leaves: `smtp`, or `mail_folder`."""

    name: str
    """For people: `SMTP mail.example.org:587 (STARTTLS)`, `files in data/mail`; never a password."""

    async def send(self, message: MailMessage, addresses: Sequence[str], within_s: float) -> Handover:
        """Hand a message over for these addresses (distinct, as `envelope_address` makes them). Returns within
        `within_s` seconds; does not raise for what a mail server or a disk may do. An address whose answer was lost is
        reported as temporarily refused: the mail may then arrive twice."""


class SignsOfLife(Protocol):
    """What the worker asks about users who were online when a notification was accepted."""

    def alive_since(self, tenant: str, user_id: str, instant: datetime) -> bool:
        """Whether a connection of the user gave a sign of life after `instant`; False also if that is unknown."""


# -- the worker ----------------------------------------------------------------------------------------------


class OutboxWorker:
    """Sends the mail owed by this store. Any number of workers, on any number of nodes, may share one store.

    `sent`, `refused`, `retried`, `dropped` count recipients since the start. Raises `StartupError` if the sender is
    not an address.
    """

    def __init__(
        self,
        store: Store,
        transport: MailTransport,
        signs_of_life: SignsOfLife,
        email: Email,
        clock: Callable[[], datetime] = now,
        rng: random.Random | None = None,
    ) -> None:
        self.sent = self.refused = self.retried = self.dropped = 0
        self._store = store
        self._transport = transport
        self._signs_of_life = signs_of_life
        self._email = email
        self._sender = _parse_sender(email.sender)
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._tasks = Tasks()
        self._in_hand = 0
        self._stopping = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._store_failures = 0
        self._outages = 0
        self._paused_until = 0.0
        self._outage_reported_at = -REPORT_OUTAGE_EVERY_S

    @property
    def has_outage(self) -> bool:
        """Whether the transport failed as a whole when it was last asked to send."""
        return self._outages > 0

    # -- life ------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Work until `stop`. Nothing that a mail, the mail server or the store does ends it."""
        self._idle.clear()
        try:
            while not self._stopping:
                self._wake.clear()
                sleep_s = await self._round()
                with suppress(TimeoutError):
                    async with asyncio.timeout(sleep_s):
                        await self._wake.wait()
        finally:
            self._idle.set()

    def wake(self) -> None:
        """There may be mail to send now. Does not block; call it from the loop's thread."""
        self._wake.set()

    async def stop(self, deadline_s: float) -> None:
        """Claim no more; let the mail in hand be settled for so many seconds, then drop it: its lease lapses, and it is
        sent, perhaps again, after the next start. Idempotent."""
        ends_at = time.monotonic() + deadline_s
        self._stopping = True
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        await self._tasks.finish(max(0.0, ends_at - time.monotonic()))

    # -- claiming --------------------------------------------------------------------------------------------
    async def _round(self) -> float:
        """Claim what is due and free hands are there for; the seconds until the next look, unless woken."""
        pause_s = self._paused_until - time.monotonic()
        if pause_s > 0:
            return pause_s
        try:
            sleep_s = await self._claim()
        except StoreUnavailable as error:
            if not self._store_failures:
                logger.warning("the mail waits for the store: %s", error)
        except Exception:
            logger.exception("claiming mail failed; trying again")
        else:
            self._store_failures = 0
            return sleep_s
        self._store_failures += 1
        return self._backoff_s(self._store_failures - 1, PAUSE_FIRST_S, PAUSE_MAX_S)

    async def _claim(self) -> float:
        # After an outage one mail shows whether it is over; the others keep their turn.
        hands = 1 if self._outages else self._email.concurrency
        free = hands - self._in_hand
        if free <= 0:
            return MAX_SLEEP_S  # a hand that gets free wakes us
        # Taken before the claim: our idea of a lease's end must not be later than the store's.
        lease_ends_at = time.monotonic() + self._email.lease_s
        jobs = await self._store.claim_mail(self._email.lease_s, free)
        for job in jobs:
            self._in_hand += 1
            self._tasks.start(self._handle(job, lease_ends_at), f"mail {job.nid}")
        if len(jobs) == free:
            return MAX_SLEEP_S
        due_at = await self._store.next_mail_due()
        if due_at is None:
            return MAX_SLEEP_S
        return min(max((due_at - self._clock()).total_seconds(), MIN_SLEEP_S), MAX_SLEEP_S)

    # -- one job ---------------------------------------------------------------------------------------------
    async def _handle(self, job: MailJob, lease_ends_at: float) -> None:
        try:
            await self._settle(job, await self._attempt(job, lease_ends_at), lease_ends_at)
        except StoreUnavailable:
            logger.warning("the mail for notification %s waits for the store", job.nid)
        finally:
            self._in_hand -= 1
            self._wake.set()

    async def _attempt(self, job: MailJob, lease_ends_at: float) -> MailOutcome:
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
        return [r for r in job.recipients if r.user_id in unseen and not self._was_reached(job, r)]

    def _was_reached(self, job: MailJob, recipient: MailRecipient) -> bool:
        return recipient.accepted_online and self._signs_of_life.alive_since(
            job.tenant, recipient.user_id, job.created_at
        )

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
            # Users may share an address; it gets one mail.
            distinct = list(dict.fromkeys(addresses.values()))
            within_s = lease_ends_at - time.monotonic() - (1 - SENDING_SHARE) * self._email.lease_s
            handover = await self._transport.send(message, distinct, max(within_s, 0.0))
            self._note(handover.outage)
            refused |= {
                email: handover.refused[address]
                for email, address in addresses.items()
                if address in handover.refused
            }
        return refused

    def _outcome(
        self, job: MailJob, owed: Sequence[MailRecipient], refused: Mapping[str, Refusal]
    ) -> MailOutcome:
        sent, retry, given_up = [], [], []
        too_old = self._is_too_old(job)
        for recipient in owed:
            refusal = refused.get(recipient.email)
            if refusal is None:
                sent.append(recipient)
            elif refusal.is_temporary and not too_old:
                retry.append(recipient)
            else:
                given_up.append(self._refused_mail(recipient, refusal))
        still_owed = set(owed)
        return MailOutcome(
            sent=tuple(sent),
            dropped=tuple(recipient for recipient in job.recipients if recipient not in still_owed),
            refused=tuple(given_up),
            retry=tuple(retry),
            retry_at=self._retry_at(job) if retry else None,
        )

    def _refused_mail(self, recipient: MailRecipient, refusal: Refusal) -> RefusedMail:
        reason = refusal.reason
        if refusal.is_temporary:
            days = self._email.give_up_after_s / DAY_S
            reason = f"gave up after {days:.3g} days; the last answer: {reason}"
        return RefusedMail(recipient.user_id, recipient.email, refusal.code, reason)

    def _is_too_old(self, job: MailJob) -> bool:
        # The first failure never ends a mail, however long this server was down itself.
        age = self._clock() - job.created_at
        return job.attempts > 0 and age > timedelta(seconds=self._email.give_up_after_s)

    def _retry_at(self, job: MailJob) -> datetime:
        delay_s = self._backoff_s(job.attempts, self._email.retry_first_s, self._email.retry_max_s)
        return to_milliseconds(self._clock() + timedelta(seconds=delay_s))

    async def _settle(self, job: MailJob, outcome: MailOutcome, lease_ends_at: float) -> None:
        """Write the outcome down, trying for as long as the lease holds: what is not settled is mailed again."""
        delay_s = SETTLE_RETRY_S
        while True:
            try:
                is_settled = await self._store.settle_mail(job, outcome)
                break
            except StoreUnavailable:
                if time.monotonic() + delay_s >= lease_ends_at:
                    raise
                await asyncio.sleep(delay_s)
                delay_s *= 2
        if not is_settled:
            logger.warning("mailing notification %s outlived its lease; some may get it twice", job.nid)
        self._count(job, outcome)

    def _count(self, job: MailJob, outcome: MailOutcome) -> None:
        counts = len(outcome.sent), len(outcome.refused), len(outcome.retry), len(outcome.dropped)
        self.sent += counts[0]
        self.refused += counts[1]
        self.retried += counts[2]
        self.dropped += counts[3]
        tell(MAIL_SETTLED, self, tenant=job.tenant, outcome=outcome)
        level = logging.WARNING if outcome.refused else logging.INFO
        logger.log(
            level,
            "mail for notification %s: %d sent, %d refused, %d to retry, %d not needed",
            job.nid,
            *counts,
        )

    # -- when things fail ------------------------------------------------------------------------------------
    def _note(self, outage: Outage | None) -> None:
        """Pause after an outage, longer each time, and say so now and then; go on when a mail went through."""
        if outage is None:
            if self._outages:
                logger.info("mail goes out again (%s)", self._transport.name)
            self._outages = 0
            self._paused_until = 0.0
            self._outage_reported_at = -REPORT_OUTAGE_EVERY_S
            return
        present = time.monotonic()
        if present < self._paused_until:
            return  # noticed by several hands at once
        self._outages += 1
        self._paused_until = present + self._backoff_s(self._outages - 1, PAUSE_FIRST_S, PAUSE_MAX_S)
        if present - self._outage_reported_at >= REPORT_OUTAGE_EVERY_S:
            self._outage_reported_at = present
            level = logging.ERROR if outage.needs_operator else logging.WARNING
            logger.log(level, "mail does not go out (%s): %s", self._transport.name, outage.reason)

    def _backoff_s(self, failures: int, first_s: float, max_s: float) -> float:
        """A random time in the upper half of the bound, which doubles with each earlier failure: spread, but never so
        short that it is no delay at all (RFC 5321 section 4.5.4.1 asks for one)."""
        bound_s = min(max_s, first_s * 2 ** min(failures, 40))
        return self._rng.uniform(bound_s / 2, bound_s)


def _parse_sender(text: str) -> Sender:
    try:
        return Sender.parse(text)
    except ValueError as exc:
        raise StartupError(f"[EMAIL] sender: {exc}; write a@example.org or Name <a@example.org>") from exc
