"""The mail worker: claims owed mail from the store, has it mailed (`mailing`), and settles what became of it.

Between handing over and settling a crash can always come, and then the mail is repeated after its
lease: late or twice, never lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from server.bus import MAIL_SETTLED, tell
from server.config import Email
from server.errors import StoreUnavailable
from server.mail_transport import MailTransport, Outage
from server.mailing import Mailing, SignsOfLife, backoff_s
from server.messages import now
from server.rates import TokenBucket
from server.store import MAX_JOB_RECIPIENTS, MailJob, MailOutcome, Store
from server.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_SLEEP_S = 5.0
"""Between two looks for due mail: other nodes leave mail behind, operators have it retried, and clocks differ. A look
that finds nothing is one or two reads of an index."""

MIN_SLEEP_S = 0.5
"""After a look that found nothing, although something is said to be due: another node is at it."""

SETTLE_RETRY_S = 0.5
"""The first wait before settling again when the store does not answer; doubles."""

PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 60.0
"""How long to leave the mail server, or the store, alone after it failed; growing with each failure in a row."""

REPORT_OUTAGE_EVERY_S = 60.0
"""While mail does not go out, the log says so at most so often."""

WORTH_A_MESSAGE = 10
"""Recipients to wait for before mail goes on that the sending rate held up."""


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
        self._email = email
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._mailing = Mailing(store, transport, signs_of_life, email, clock, self._rng, self._note)
        self._tasks = Tasks()
        self._handed_over = TokenBucket()
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
        await self._transport.close()

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
        return backoff_s(self._rng, self._store_failures - 1, PAUSE_FIRST_S, PAUSE_MAX_S)

    async def _claim(self) -> float:
        # After an outage one mail shows whether it is over; the others keep their turn.
        hands = 1 if self._outages else self._email.concurrency
        free = hands - self._in_hand
        if free <= 0:
            return MAX_SLEEP_S  # a hand that gets free wakes us
        affordable = self._affordable()
        if not affordable:
            return self._until_affordable_s()
        # With a rate one after the other, each as large as may be: the fewer the messages, the better.
        limit = free if self._email.rate is None else 1
        recipients = min(affordable, MAX_JOB_RECIPIENTS)
        # Taken before the claim: our idea of a lease's end must not be later than the store's.
        lease_ends_at = time.monotonic() + self._email.lease_s
        jobs = await self._store.claim_mail(self._email.lease_s, limit, recipients)
        for job in jobs:
            self._spend(len(job.recipients))
            self._in_hand += 1
            self._tasks.start(self._handle(job, lease_ends_at), f"mail {job.nid}")
        if len(jobs) == limit:
            return MAX_SLEEP_S if limit == free else 0.0
        due_at = await self._store.next_mail_due()
        if due_at is None:
            return MAX_SLEEP_S
        return min(max((due_at - self._clock()).total_seconds(), MIN_SLEEP_S), MAX_SLEEP_S)

    # -- the sending rate: what is claimed may be sent at once, so that no lease runs out while a mail waits -------
    def _affordable(self) -> int:
        """How many recipients may be handed over now."""
        rate = self._email.rate
        if rate is None:
            return MAX_JOB_RECIPIENTS
        return self._handed_over.available(rate, time.monotonic())

    def _spend(self, recipients: int) -> None:
        if self._email.rate is not None:
            self._handed_over.reserve(self._email.rate, time.monotonic(), recipients)

    def _until_affordable_s(self) -> float:
        """Not for a single recipient, if there can be more: a message for each would be the worst of all ways."""
        rate = self._email.rate
        if rate is None:
            return 0.0
        enough = min(WORTH_A_MESSAGE, rate.quota)
        return max(MIN_SLEEP_S, self._handed_over.until(enough, rate, time.monotonic()))

    # -- one job ---------------------------------------------------------------------------------------------
    async def _handle(self, job: MailJob, lease_ends_at: float) -> None:
        try:
            await self._settle(job, await self._mailing.attempt(job, lease_ends_at), lease_ends_at)
        except StoreUnavailable:
            logger.warning("the mail for notification %s waits for the store", job.nid)
        finally:
            self._in_hand -= 1
            self._wake.set()

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
        self._paused_until = present + backoff_s(self._rng, self._outages - 1, PAUSE_FIRST_S, PAUSE_MAX_S)
        if present - self._outage_reported_at >= REPORT_OUTAGE_EVERY_S:
            self._outage_reported_at = present
            level = logging.ERROR if outage.needs_operator else logging.WARNING
            logger.log(level, "mail does not go out (%s): %s", self._transport.name, outage.reason)
