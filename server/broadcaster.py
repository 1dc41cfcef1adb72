"""Notifications for everybody of a tenant (CONTRACT C5): one durable record, then the answer, then a document for
each user whom the tenant knew by then, in batches. Whoever is connected comes first; who joins in between is not made
to wait.

Tenants take turns, batch by batch, so that nobody waits for the end of another's broadcast; those of one tenant go out
one after the other. Several nodes share the work, but not their memory: each knows the users of the others from the
store, which is why a join is not answered before the store knows its user.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial

from server.backplane import Backplane
from server.bus import (
    INBOX_CHANGED,
    NOTIFICATION_FAILED,
    NOTIFICATION_PUSHED,
    NOTIFICATION_REPLAYED,
    NOTIFICATION_STORED,
    tell,
)
from server.errors import StoreUnavailable, TenantGone
from server.messages import Added, Broadcasted, Document, Notification, Publication, altered
from server.notifier import KEEP_KEYS_S, once_of
from server.rooms import NOBODY, Room, Rooms
from server.store import Accepted, Broadcast, BroadcastRefused, Store, Welcome
from server.tasks import InFlight, Tasks
from server.tenants import Tenants

logger = logging.getLogger(__name__)

BATCH_USERS = 500
"""Documents of a batch: stored and pushed together, then others get their turn."""

CATCH_UP_DOCUMENTS = 200
"""That a user who joins is given at a time."""

MAX_AT_ONCE = 32
"""Broadcasts in hand, each of another tenant. All have their turn well within a lease."""

LEASE_S = 30.0
"""After so long another node goes on with what a node that crashed had begun."""

LOOK_S = 1.0
"""Between two looks for broadcasts of other nodes."""

RETRY_S = 2.0

MAX_FIRST = 100_000
"""Users who are noted as those to come first, of all open broadcasts together. With more, users come in their turn."""


class Broadcaster:
    """One for each node. `keep_keys_s`: as of `Notifier`."""

    def __init__(self, store: Store, backplane: Backplane, rooms: Rooms, tenants: Tenants) -> None:
        self._store = store
        self._backplane = backplane
        self._rooms = rooms
        self._tenants = tenants
        self.keep_keys_s = KEEP_KEYS_S
        self._wake = asyncio.Event()
        self._in_flight = InFlight()
        # None: not known yet, as before the first look
        self._open_count: int | None = None
        self._accepted_count = 0
        # the tenants of those that are carried out here
        self._in_hand: set[str] = set()
        # whoever holds it stores a batch; it is fair
        self._turn = asyncio.Lock()
        # who was connected when a broadcast was accepted here
        self._first: dict[str, list[str]] = {}

    async def broadcast(
        self, notification: Notification, received_at: float = 0.0, idempotency_key: str | None = None
    ) -> Accepted:
        """Accept one: when this returns it is durable, and every user will get it. Raises as `Notifier.notify`."""
        self._in_flight.begin()
        try:
            return await self._accept(notification, received_at, idempotency_key)
        finally:
            self._in_flight.end()

    async def close(self) -> None:
        """Refuse what comes from now on; return when what came before is answered for."""
        await self._in_flight.close()

    async def _accept(
        self, notification: Notification, received_at: float, idempotency_key: str | None
    ) -> Accepted:
        # Who has joined a moment ago is known, too.
        await self._tenants.write_down()
        connected = self._rooms.users_of(notification.tenant)
        publication = Publication(
            notification, (), door="broadcast", received_at=received_at, idempotency_key=idempotency_key
        )
        began_at = time.monotonic()
        try:
            notification = await self._dated(notification)
            if not self._tenants.is_active(notification.tenant):
                raise TenantGone
            accepted = await self._store.broadcasts.add(notification, once_of(publication, self.keep_keys_s))
        except StoreUnavailable as error:
            tell(NOTIFICATION_FAILED, self, publication=publication, code=error.code)
            raise
        stored_at = time.monotonic()
        if accepted.is_repeat:
            tell(NOTIFICATION_REPLAYED, self, publication=publication)
            return accepted
        notification = accepted.notification
        self._put_first(notification, connected)
        self._accepted_count += 1
        self._open_count = (self._open_count or 0) + 1
        self._wake.set()
        told = [((notification.tenant, NOBODY), Broadcasted(notification))]
        self._backplane.publish(told, partial(self._note_pushed, publication, stored_at))
        tell(
            NOTIFICATION_STORED,
            self,
            publication=publication,
            documents=[],
            duty=None,
            store_s=stored_at - began_at,
        )
        return accepted

    async def _dated(self, notification: Notification) -> Notification:
        """By the store's clock, if that is ahead: else who is known already could look as if they came later."""
        present = await self._store.present(notification.tenant)
        return altered(notification, created_at=max(notification.created_at, present))

    def _put_first(self, notification: Notification, connected: list[str]) -> None:
        if sum(map(len, self._first.values())) + len(connected) <= MAX_FIRST:
            self._first[notification.nid] = connected

    def _note_pushed(self, publication: Publication, stored_at: float, connections: int) -> None:
        present = time.monotonic()
        received_at = publication.received_at
        tell(
            NOTIFICATION_PUSHED,
            self,
            publication=publication,
            connections=connections,
            push_s=present - stored_at,
            total_s=present - received_at if received_at else None,
        )

    def hear(self) -> None:
        """Another node has accepted one."""
        self._accepted_count += 1
        self._open_count = (self._open_count or 0) + 1
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many broadcasts are not finished, on all nodes, as known here."""
        return self._open_count or 0

    async def welcome(self, room: Room, read: Callable[[], Awaitable[Welcome]]) -> Welcome:
        """What `read` finds of a user who has joined and caught up. While nothing is open it is asked once. Raises
        `StoreUnavailable`."""
        if self._open_count == 0:
            found = await read()
            if not await self._catch_up(room, found.known_since):
                return found
        else:
            await self.catch_up(room)
        return await read()

    async def catch_up(self, room: Room) -> None:
        """Give a user who has joined their document of each broadcast that has not come to them yet, and see to it that
        every later one will. Raises `StoreUnavailable`."""
        await self._catch_up(room, await self._store.directory.known_since(*room))

    async def _catch_up(self, room: Room, known_since: datetime | None) -> bool:
        """The same for a user of whom the store has said that, after they joined (see `Directory.known_since`). Whether
        any document was given: what was read of their inbox before is without it."""
        if known_since is None:
            # Not at the next time that joins are written down: a broadcast that another node accepts before that would
            # be over without this user.
            await self._tenants.write_user(*room)
        if self._open_count == 0:
            return False  # nothing is owed to anybody: it makes no difference since when
        if known_since is None:
            known_since = await self._store.directory.known_since(*room)
        return known_since is not None and await self._give_owed(room, known_since)

    async def _give_owed(self, room: Room, known_since: datetime) -> bool:
        (tenant, user_id), after = room, None
        broadcasts = self._store.broadcasts
        while owed := await broadcasts.open_of(
            tenant, user_id, since=known_since, after=after, limit=CATCH_UP_DOCUMENTS
        ):
            self._publish(await broadcasts.give(user_id, owed))
            after = owed[-1]
        return after is not None

    # -- in the background -----------------------------------------------------------------------------------
    def start(self, tasks: Tasks) -> None:
        """Bring all broadcasts to their users, as tasks of this owner, until cancelled."""
        tasks.start(self._run(tasks), "broadcasts")

    async def _run(self, tasks: Tasks) -> None:
        while True:
            await self._patiently(self._take_up(tasks))
            await self._pause()

    async def _patiently(self, step: Awaitable[None]) -> None:
        """What fails of it is tried again, by this node or another, but not at once."""
        try:
            await step
        except StoreUnavailable as error:
            logger.debug("broadcasts wait for the store: %s", error)
            await asyncio.sleep(RETRY_S)
        except Exception:
            logger.exception("a broadcast could not be carried on; it is tried again")
            await asyncio.sleep(RETRY_S)

    async def _take_up(self, tasks: Tasks) -> None:
        """Begin with what is open, of each tenant the oldest."""
        await self._look()
        while self._open_count and len(self._in_hand) < MAX_AT_ONCE:
            claimed = await self._store.broadcasts.claim(LEASE_S, self._in_hand)
            if claimed is None:
                break
            self._in_hand.add(claimed.notification.tenant)
            tasks.start(self._carry(claimed), f"broadcast {claimed.notification.nid}")

    async def _carry(self, broadcast: Broadcast) -> None:
        notification = broadcast.notification
        try:
            await self._patiently(self._carry_out(broadcast))
        finally:
            self._in_hand.discard(notification.tenant)
            self._wake.set()

    async def _look(self) -> None:
        """See how many are open."""
        accepted_count = self._accepted_count
        open_count = await self._store.broadcasts.count_open()
        if accepted_count != self._accepted_count:
            return  # it may have been counted too early for the latest
        self._open_count = open_count
        if not open_count:
            self._first.clear()  # of some, other nodes may have taken care

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _carry_out(self, broadcast: Broadcast) -> None:
        notification = broadcast.notification
        try:
            if await self._reach_first(broadcast) and await self._reach_all(broadcast):
                logger.info("a broadcast reached all users: tenant=%s", notification.tenant)
        except BroadcastRefused as error:  # the store has set it aside, and logged that
            publication = Publication(notification, (), door="broadcast")
            tell(NOTIFICATION_FAILED, self, publication=publication, code=error.code)
        self._first.pop(notification.nid, None)

    async def _reach_first(self, broadcast: Broadcast) -> bool:
        """Those who were connected; False if somebody else has the broadcast now."""
        first = self._first.get(broadcast.notification.nid, [])
        for start in range(0, len(first), BATCH_USERS):
            await self._expand(broadcast.notification, first[start : start + BATCH_USERS])
            # No id is below "": nobody is passed over, and the lease goes on.
            if not await self._store.broadcasts.advance(broadcast, broadcast.after or "", LEASE_S):
                return False
        return True

    async def _reach_all(self, broadcast: Broadcast) -> bool:
        """Everybody, in the order of their ids; False if somebody else has the broadcast now."""
        notification, after = broadcast.notification, broadcast.after
        directory, broadcasts = self._store.directory, self._store.broadcasts
        while users := await directory.users(notification.tenant, after=after, limit=BATCH_USERS):
            known = [user.user_id for user in users if user.first_seen_at <= notification.created_at]
            await self._expand(notification, known)
            after = users[-1].user_id
            if not await broadcasts.advance(broadcast, after, LEASE_S):
                return False
        return await broadcasts.finish(broadcast)

    async def _expand(self, notification: Notification, user_ids: list[str]) -> None:
        if not user_ids:
            return
        async with self._turn:
            await self._backplane.has_space()
            self._publish(await self._store.broadcasts.expand(notification, user_ids))

    def _publish(self, documents: Iterable[Document]) -> None:
        told = [((document.notification.tenant, document.user_id), Added(document)) for document in documents]
        self._backplane.publish(told)
        tell(INBOX_CHANGED, self, rooms=[room for room, _ in told])
