"""What a way between nodes has to do, and what it tells its node. Nothing here knows Redis or MongoDB."""

from __future__ import annotations

import asyncio
import logging
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.checks import NotYet, Trouble
from server.rooms import Room

logger = logging.getLogger(__name__)

BEAT_S = 1.0
"""Between two signs of life of a node."""

LIFE_S = 3.0
"""A node that gave none for so long is gone, and with it its users."""

LOOKUP_S = 1.0
"""For users to be looked up on other nodes: a publisher waits for it."""

LEFTOVERS_S = 60.0
"""After so long what such a node has left behind is removed."""

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 2.0
"""Between two tries to reach what is away; growing with each failure in a row. Short: others wait for it."""

NOT_CONNECTED, ACCESS_REFUSED = "not connected", "access is refused"

Address = int | str | None
"""A shard of users; a node, by its id; None: all nodes."""


class LinkDown(Exception):
    """What was to be sent may not have been, and what was asked is not known."""


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes for the nodes at an address."""

    to: Address
    body: bytes


class Ears(Protocol):
    """The node, as a link sees it. Nothing here raises; only `ready` blocks."""

    def received(self, body: bytes) -> None:
        """A message came, from whomever."""

    async def ready(self) -> None:
        """Return when more can be received: what comes faster than it is delivered waits on its way."""

    def connected(self) -> None:
        """From now on messages can be sent. Who is alive is told next."""

    def missed(self, rooms: Iterable[Room], since: datetime) -> None:
        """Messages for these users that were sent since then may not have come, and will not come any more."""

    def heard_of(self, nodes: Collection[str]) -> None:
        """Who is alive now, this node included: each time all of them. Whoever was in the last list and is not in this
        one is gone, however long nobody could be heard of in between."""


class Link(ABC):
    """A way to all nodes that share a store. A node's messages to an address come in the order in which they were sent;
    each may come more than once."""

    name: str
    """Of the place, for people: without a password."""

    shards: int
    """Into how many parts users are divided."""

    def shard_of(self, room: Room) -> int:
        """The part to which a user belongs: the same on all nodes."""
        return zlib.crc32("\0".join(room).encode("utf-8", "surrogatepass")) % self.shards

    @abstractmethod
    def note(self, room: Room) -> None:
        """A room has begun to exist on this node, or ceased to. Does not block."""

    @abstractmethod
    async def run(self, ears: Ears) -> None:
        """Follow the other nodes until cancelled, through all that happens to the link."""

    def stop(self) -> None:  # noqa: B027  # most can be cancelled at any time
        """Let `run` end soon, by itself."""

    @abstractmethod
    async def send(self, messages: Sequence[Message]) -> None:
        """Return when they are on their way. Raises `LinkDown`: any of them may be, or not."""

    @abstractmethod
    async def online(self, rooms: Collection[Room], nodes: Collection[str]) -> set[Room]:
        """Those of these users whom any of these nodes has. Raises `LinkDown`, also after `LOOKUP_S`."""

    @abstractmethod
    async def leave(self) -> None:
        """Take this node out of the list of those alive; does not raise. `run` has ended."""

    @abstractmethod
    async def probe(self) -> None:
        """Raises `Trouble`."""


class Patience:
    """Tries something for ever, and says once when it fails and once when it goes on."""

    def __init__(self, place: str, why: Callable[[Exception], str | None]) -> None:
        """`why`: what an error means, for the log, without secrets; None: it was not to be expected."""
        self.trouble = NOT_CONNECTED
        """What is wrong, in words for anybody; "": nothing."""
        self._place = place
        self._why = why
        self._said: str | None = None
        self._is_first = True
        self._is_stopped = False
        self._delay_s = RETRY_FIRST_S

    def well(self) -> None:
        """It has come through."""
        self._delay_s = RETRY_FIRST_S
        self.trouble = ""
        self._is_first = False
        if self._said != "":
            self._said = ""
            logger.info("backplane: connected to %s", self._place)

    def stop(self) -> None:
        """Try no more."""
        self._is_stopped = True

    async def keep(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Carry out the attempt again and again, until cancelled or stopped."""
        while not self._is_stopped:
            try:
                await attempt()
            except Exception as error:
                self._note(error)
            if self._is_stopped:
                return
            await asyncio.sleep(self._delay_s * random.uniform(0.5, 1))  # noqa: S311  # nobody gains by guessing it
            self._delay_s = min(2 * self._delay_s, RETRY_MAX_S)

    def check(self) -> None:
        """Raises `Trouble`: `NotYet` during the first attempt."""
        if self.trouble:
            raise (NotYet if self._is_first else Trouble)(self.trouble)

    def _note(self, error: Exception) -> None:
        self._is_first = False
        why = self._why(error)
        self.trouble = why if why == ACCESS_REFUSED else NOT_CONNECTED
        if why is None:
            logger.error("backplane: failed; trying again", exc_info=error)
            self._said = None
        elif why != self._said:
            self._said = why
            logger.warning("backplane: no way to other nodes over %s: %s; trying again", self._place, why)
