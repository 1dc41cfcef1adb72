"""What the doors have in common that fetch from a broker (Redis, RabbitMQ): connecting for ever, saying how that goes,
the lease, and work that keeps each user's order. It knows neither broker."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from server import reasons
from server.bus import CONSUMER_CHANGED, MESSAGE_RECEIVED, REFUSED, tell
from server.checks import NotYet, Trouble
from server.errors import InvalidNotification, StoreUnavailable, TenantGone, TooLarge
from server.store import Leases
from server.tasks import first_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_FIRST_S, RETRY_MAX_S = 0.25, 30.0
"""Between two tries to reach what is away; growing with each failure in a row."""

STABLE_S = 10.0
"""What was well for so long has recovered: the next failure begins with the shortest delay again."""

LEASE_S = 15.0
"""For how long one process alone consumes. It is renewed three times as often, so that a short trouble loses nothing; a
process that dies is followed by another after at most this and `STANDBY_S`."""

STANDBY_S = 1.0
"""Until who waits for a lease asks again: one that was given back in order is taken up so soon."""

LANES = 16
"""How many notifications of different users a door has stored at once: enough for the store's group commit."""

STORE_AWAY, NOT_CONNECTED, ACCESS_REFUSED = "the store is away", "not connected", "access is refused"
NO_TENANT = "its tenant is not there"
"""What is wrong, in words for anybody."""


class Backoff:
    """Delays that double up to `max_s`, with jitter, so that not all nodes come back at the same moment."""

    def __init__(self, first_s: float = RETRY_FIRST_S, max_s: float = RETRY_MAX_S) -> None:
        self._first_s, self._max_s = first_s, max_s
        self._next_s = first_s

    def next_s(self) -> float:
        """How long to wait this time."""
        delay_s, self._next_s = self._next_s, min(2 * self._next_s, self._max_s)
        return delay_s * random.uniform(0.5, 1)  # noqa: S311  # nobody gains by guessing it

    def reset(self) -> None:
        self._next_s = self._first_s


class Lease:
    """The right of one process, `holder`, to do what only one may do. Asks the store at each `renew`."""

    def __init__(self, leases: Leases, name: str, holder: str, lease_s: float = LEASE_S) -> None:
        self._leases, self._name, self._holder = leases, name, holder
        self._lease_s = lease_s
        self._asking = asyncio.Lock()
        self.is_ours = False
        """As far as is known."""
        self.is_known = False
        """Whether the store could say when it was last asked."""
        self.sure_until = float("-inf")
        """Until then (`time.monotonic`) nobody else has had it, whatever happens."""

    @property
    def renew_every_s(self) -> float:
        return self._lease_s / 3

    @property
    def ask_every_s(self) -> float:
        """While somebody else has it."""
        return min(self.renew_every_s, STANDBY_S)

    async def renew(self) -> bool:
        """Whether the lease is ours. While the store cannot say: whether it was, since others cannot get it either."""
        began_at = time.monotonic()
        try:
            self.is_ours = await self._leases.take(self._name, self._holder, self._lease_s)
        except StoreUnavailable:
            self.is_known = False
            return self.is_ours
        self.is_known = True
        if self.is_ours:
            self.sure_until = began_at + self._lease_s
        return self.is_ours

    async def covers(self, instant: float) -> bool:
        """Whether what came at this instant (`time.monotonic`) is ours to deal with, and nobody else's."""
        if instant <= self.sure_until:
            return True
        async with self._asking:  # many may wait for the same answer
            return instant <= self.sure_until or await self.renew()

    async def give_back(self) -> None:
        """Let somebody else have it at once; does not raise."""
        if self.is_ours:
            with suppress(StoreUnavailable):
                await self._leases.give_back(self._name, self._holder)
                self.is_ours = False


class Lanes(Generic[T]):
    """Does work for several users at once, and that for one user in its order. `work` does not raise what it expects;
    anything else is logged. Unbounded: who puts in looks at `waiting`."""

    def __init__(self, work: Callable[[T], Awaitable[None]], count: int = LANES) -> None:
        self._work = work
        self._queues: list[asyncio.Queue[T]] = [asyncio.Queue() for _ in range(count)]
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.waiting = 0
        """What was put in and is not done."""

    def put(self, user_id: str, item: T) -> None:
        self.waiting += 1
        self._is_idle.clear()
        self._queues[hash(user_id) % len(self._queues)].put_nowait(item)

    async def run(self) -> None:
        """Work until cancelled."""
        await first_of(*map(self._run_lane, self._queues))

    async def _run_lane(self, queue: asyncio.Queue[T]) -> None:
        while True:
            item = await queue.get()
            try:
                await self._work(item)
            except Exception:
                logger.exception("a message could not be worked on")
            finally:
                self.waiting -= 1
                if not self.waiting:
                    self._is_idle.set()

    async def idle(self) -> None:
        """Return when nothing waits."""
        await self._is_idle.wait()


class Consumer(ABC):
    """A door that fetches. `place`: where from, for people, without a password."""

    door = ""
    """The name of this door, for figures and logs."""

    def __init__(self, place: str, tenant: str, backoff: Backoff | None = None) -> None:
        self.place = place
        self._tenant = tenant
        self._backoff = backoff or Backoff()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._said: object = None
        self._is_up = False
        self._up_at = 0.0
        self._trouble = NOT_CONNECTED
        self._is_first = True

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many of the messages that were fetched wait to be stored."""

    @abstractmethod
    async def _consume(self) -> None:
        """Connect, and consume until `_stopping`; calls `_note_up` once it does. May return early where there is
        nothing to do for the moment. Raises what ended it."""

    @abstractmethod
    def _why(self, error: Exception) -> str | None:
        """Why an attempt failed, other than by the store, for the log: no secrets, no content. None: that was not to be
        expected."""

    def _trouble_of(self, error: Exception) -> str:
        """What is wrong then, in words for anybody: no addresses, no names."""
        return NOT_CONNECTED

    # -- life ------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Consume until `stop`, through all that the broker and the store do."""
        self._ended.clear()
        try:
            while not self._stopping.is_set():
                try:
                    await self._consume()
                except Exception as error:
                    self._note_down(error)
                    await self._pause(self._backoff.next_s())
            await self._finish()
        finally:
            self._set_up(False)
            self._ended.set()

    async def _finish(self) -> None:  # noqa: B027  # most have nothing to do then
        """What there is to do after the last message was fetched."""

    async def stop(self, deadline_s: float) -> None:
        """Fetch no more; let what was fetched be stored for so many seconds. Idempotent. To be called while the
        notifier still takes something."""
        self._stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._ended.wait()

    async def _pause(self, delay_s: float) -> None:
        """Wait, unless it is time to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    async def probe(self) -> None:
        """How the door is, for `Checks`. Raises `Trouble`: `NotYet` during the first attempt."""
        if self._trouble:
            raise (NotYet if self._is_first else Trouble)(self._trouble)

    # -- saying how it goes ----------------------------------------------------------------------------------
    def _note_up(self) -> None:
        self._up_at = time.monotonic()
        self._trouble, self._is_first = "", False
        self._say("up", logging.INFO, "consuming from %s", self.place)
        self._set_up(True)

    def _note_standby(self) -> None:
        """Another process does the work, and all is well."""
        self._trouble, self._is_first = "", False
        self._say("standby", logging.INFO, "another process consumes from %s", self.place)
        self._set_up(False)

    def _note_down(self, error: Exception) -> None:
        self._is_first = False
        if self._is_up and time.monotonic() - self._up_at >= STABLE_S:
            self._backoff.reset()
        if isinstance(error, StoreUnavailable):
            why: str | None = STORE_AWAY
            self._trouble = STORE_AWAY
        elif isinstance(error, TenantGone):
            why = f"there is no tenant {self._tenant!r}; `notification-server tenant add {self._tenant}` makes it"
            self._trouble = NO_TENANT
        else:
            why = self._why(error)
            self._trouble = self._trouble_of(error)
        if why is None:
            logger.error("%s: failed; trying again", self.door, exc_info=error)
            self._said = None
        else:
            self._say(why, logging.WARNING, "not consuming from %s: %s; trying again", self.place, why)
        self._set_up(False)

    def _say(self, what: object, level: int, text: str, *arguments: object) -> None:
        """Once for each change."""
        if what != self._said:
            self._said = what
            logger.log(level, f"%s: {text}", self.door, *arguments)

    def _set_up(self, is_up: bool) -> None:
        if is_up is not self._is_up:
            self._is_up = is_up
            tell(CONSUMER_CHANGED, self, door=self.door, is_up=is_up)

    def _note_received(self) -> None:
        tell(MESSAGE_RECEIVED, self, door=self.door)

    def _note_refused(self, code: str) -> None:
        """A message will not become a notification."""
        tell(REFUSED, self, door=self.door, code=code, tenant=self._tenant)


def check_size(size: int, max_bytes: int) -> None:
    """Raises `TooLarge`."""
    if size > max_bytes:
        raise TooLarge("", f"the message is over the {max_bytes} bytes allowed", "body_bytes")


def json_of(body: bytes, max_bytes: int) -> Any:
    """The JSON value in a message (RFC 8259: UTF-8). Raises `InvalidNotification`, `TooLarge`."""
    check_size(len(body), max_bytes)
    try:
        return json.loads(body.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise InvalidNotification("", "the message is not UTF-8") from exc
    except RecursionError as exc:
        raise InvalidNotification("", "nested too deeply") from exc
    except ValueError as exc:
        raise InvalidNotification("", "the message is not JSON") from exc


def _no_constant(name: str) -> None:
    raise ValueError(name)


def reason_of(error: BaseException) -> str:
    """Why something outside could not be reached, or what it said, for a line of the log."""
    return reasons.of_system(error) or reasons.in_one_line(str(error)) or type(error).__name__
