"""Dialect 2 for those who only listen, as over Server-Sent Events: what they missed, then what is new, and now and then
how far they are. What they want to change they ask for by other requests."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from server.auth import Identity
from server.conversations.v2 import REFRESH_S, TellingOfDelay, chunk_fields
from server.errors import StoreUnavailable
from server.feed import Feed, FeedServices, Portion
from server.rooms import Connection
from server.wire import FAILED, Frame
from server.wire_v2 import InboxStream, answer_frame, delayed_frame, joined_fields

logger = logging.getLogger(__name__)

T = TypeVar("T")


class InboxFeed(Feed):
    """First `joined`, as a socket answers its join; then, to who says how far they are, what has changed since."""

    __slots__ = ("_refreshing", "_since")
    dialect: InboxStream = InboxStream()

    def __init__(
        self, connection: Connection, services: FeedServices, identity: Identity, since: str | None
    ) -> None:
        self._since = since
        self._refreshing: asyncio.TimerHandle | None = None
        super().__init__(connection, services, identity)

    def closed(self) -> None:
        super().closed()
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        with TellingOfDelay(lambda: self.connection.send(self.dialect.of(delayed_frame()))):
            return await super()._patiently(read)

    async def _backlog(self) -> AsyncIterator[Portion]:
        since = self._since
        joined = await self._patiently(self._welcome)
        frame = answer_frame("joined", None, joined)
        yield [(self.dialect.of(frame, joined["since"]), ())], None
        if since is None:
            self._since = joined["since"]
        else:
            async for portion in self._changes(since):
                yield portion
        self._refresh_later()

    async def _welcome(self) -> dict[str, Any]:
        services, room = self._services, self._room
        # Before the counting: what changes during it is not passed over.
        present = await services.sync.now()
        return joined_fields(
            room[1],
            str(present) if self._since is None else None,
            await services.inbox.counts(room),
            floor=services.sync.floor(room[0]),
            ticket=None,
            heartbeat_s=services.heartbeat_s,
        )

    async def _changes(self, since: str) -> AsyncIterator[Portion]:
        goes_on, limit = False, None
        while True:
            read = partial(self._services.sync.read, self._room, since, limit, goes_on=goes_on)
            chunk = await self._patiently(read)
            since, goes_on, limit = chunk.upto, True, chunk.next_limit
            yield [(self._frame(chunk_fields(chunk)), chunk.documents)], None
            if not chunk.more:
                self._since = since
                return

    def _frame(self, chunk: dict[str, Any]) -> Frame:
        return self.dialect.of(answer_frame("sync", None, chunk), chunk["upto"])

    # -- now and then ----------------------------------------------------------------------------------------
    def _refresh_later(self) -> None:
        delay_s = REFRESH_S * random.uniform(0.8, 1.2)  # noqa: S311  # apart from others, no secret
        self._refreshing = asyncio.get_running_loop().call_later(delay_s, self._start_refresh)

    def _start_refresh(self) -> None:
        self._task = self._services.tasks.start(self._refresh(), "feed")

    async def _catch_up_again(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._refresh(is_patient=True)

    async def _refresh(self, *, is_patient: bool = False) -> None:
        """As `ConversationV2.refresh`. `is_patient`: while the store is away, when it is back."""
        more, since, goes_on, limit = True, self._since, False, None
        try:
            while more and since is not None:
                self._screen.begin_answer()
                read = partial(self._services.sync.read, self._room, since, limit, goes_on=goes_on)
                # Nobody has asked for it, so nobody is told that it takes longer.
                chunk = await (super()._patiently(read) if is_patient else read())
                self._screen.answer(self._frame(chunk_fields(chunk)), chunk.documents)
                self._screen.end_answer()
                more, self._since, goes_on, limit = chunk.more, chunk.upto, True, chunk.next_limit
                since = chunk.upto
                await self.connection.drained()
        except StoreUnavailable:
            logger.debug("a client is told later how far it is")
        except Exception:
            logger.exception("a client could not be told how far it is")
            self.connection.close(FAILED)
        finally:
            self._screen.end_answer()
        self._refresh_later()
