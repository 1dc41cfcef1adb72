"""The walk of one notification, and nothing but its order: store, answer, publish. Mail follows alone
(`outbox`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from server.backplane import Backplane
from server.bus import (
    INBOX_CHANGED,
    NOTIFICATION_FAILED,
    NOTIFICATION_PUSHED,
    NOTIFICATION_REPLAYED,
    NOTIFICATION_STORED,
    tell,
    telling,
)
from server.errors import StoreUnavailable, TenantGone
from server.idempotency import fingerprint_of
from server.messages import Added, Document, EmailDuty, MailRecipient, Publication
from server.presence import Presence
from server.rooms import Room
from server.store import Addition, Once, Store, Stored
from server.tasks import InFlight

logger = logging.getLogger(__name__)

KEEP_KEYS_S = 24 * 3600.0
"""How long idempotency keys are remembered, unless the configuration says otherwise."""


class Notifier:
    """What every publishing door calls. `is_active`: whether there is such a tenant. `keep_keys_s`: how long
    idempotency keys are remembered; may be changed while the server runs."""

    def __init__(
        self, store: Store, backplane: Backplane, presence: Presence, is_active: Callable[[str], bool]
    ) -> None:
        self._store = store
        self._backplane = backplane
        self._presence = presence
        self._is_active = is_active
        self.keep_keys_s = KEEP_KEYS_S
        self._is_store_away = False
        self._in_flight = InFlight()
        self._telling: dict[str, Callable[..., None]] = {}

    async def notify(self, publication: Publication) -> Stored:
        """Store a notification for its recipients. When this returns, documents and mail duty are durable, and pushes
        are under way. One with an idempotency key that came before changes nothing, and is answered with what is there.
        Raises `StoreUnavailable`: nothing was pushed, and either nothing is stored or all of it will be (then it is
        pushed too); `KeyReused` and `InProgress` as `Store.add`; `TenantGone`; `Busy` while the server stops."""
        self._in_flight.begin()
        try:
            if not publication.recipients:
                return Stored(publication.notification, [], [])
            return await self._walk(publication)
        finally:
            self._in_flight.end()

    async def notify_many(self, publications: Sequence[Publication]) -> Sequence[Stored | Exception]:
        """`notify` each of these, which have recipients, for little more than the time of one: what that returns or
        raises of each. Raises `StoreUnavailable` and `TenantGone` of all, and `Busy` while the server stops."""
        self._in_flight.begin()
        try:
            return await self._walk_together(publications)
        finally:
            self._in_flight.end()

    async def close(self) -> None:
        """Refuse what comes from now on; return when what came before is answered for."""
        await self._in_flight.close()

    def check_tenant(self, tenant: str) -> None:
        """What is stored for one that is not there would be seen by the next of its name. Raises `TenantGone`."""
        if not self._is_active(tenant):
            raise TenantGone

    async def _walk(self, publication: Publication) -> Stored:
        await self._backplane.has_space()
        duty = None if publication.mail is None else await self._duty(publication)
        # Last of all: other nodes have been asked meanwhile.
        self.check_tenant(publication.notification.tenant)
        began_at = time.monotonic()
        try:
            stored = await self._store.add(
                publication.notification,
                publication.recipients,
                duty,
                once_of(publication, self.keep_keys_s),
            )
        except StoreUnavailable as error:
            self._note_store(error)
            tell(NOTIFICATION_FAILED, self, publication=publication, code=error.code)
            raise
        self._note_store(None)
        changed = self._pass_on(publication, duty, stored, began_at)
        if changed:
            self._tell(INBOX_CHANGED, rooms=changed)
        return stored

    async def _walk_together(self, publications: Sequence[Publication]) -> Sequence[Stored | Exception]:
        await self._backplane.has_space()
        duties = [None if each.mail is None else await self._duty(each) for each in publications]
        for tenant in {each.notification.tenant for each in publications}:
            self.check_tenant(tenant)
        additions = [
            Addition(each.notification, each.recipients, duty, once_of(each, self.keep_keys_s))
            for each, duty in zip(publications, duties, strict=True)
        ]
        began_at = time.monotonic()
        try:
            outcomes = await self._store.add_many(additions)
        except StoreUnavailable as error:
            self._note_store(error)
            for publication in publications:
                tell(NOTIFICATION_FAILED, self, publication=publication, code=error.code)
            raise
        self._note_store(None)
        changed: list[Room] = []
        for publication, duty, outcome in zip(publications, duties, outcomes, strict=True):
            if isinstance(outcome, Stored):
                changed += self._pass_on(publication, duty, outcome, began_at)
            elif isinstance(outcome, StoreUnavailable):
                tell(NOTIFICATION_FAILED, self, publication=publication, code=outcome.code)
        if changed:
            tell(INBOX_CHANGED, self, rooms=changed)
        return outcomes

    def _pass_on(
        self,
        publication: Publication,
        duty: EmailDuty | None,
        stored: Stored,
        began_at: float,
    ) -> Sequence[Room]:
        """To the screens, and to whoever listens to the bus; whose inboxes have changed."""
        stored_at = time.monotonic()
        changed: Sequence[Room] = ()
        if stored.new:
            changed = self._publish(stored.new, partial(self._note_pushed, publication, stored_at))
        if stored.is_repeat:
            tell(NOTIFICATION_REPLAYED, self, publication=publication)
            return changed
        self._tell(
            NOTIFICATION_STORED,
            publication=publication,
            documents=stored.documents,
            duty=duty,
            store_s=stored_at - began_at,
        )
        return changed

    def _note_pushed(self, publication: Publication, stored_at: float, connections: int) -> None:
        present = time.monotonic()
        self._tell(
            NOTIFICATION_PUSHED,
            publication=publication,
            connections=connections,
            push_s=present - stored_at,
            total_s=present - publication.received_at if publication.received_at else None,
        )

    def _tell(self, signal: str, **what: Any) -> None:
        """As `tell`; notifications are stored, and pushed, several in a turn of the loop."""
        say = self._telling.get(signal)
        if say is None:
            if not self._telling:
                asyncio.get_running_loop().call_soon(self._telling.clear)
            say = self._telling[signal] = telling(signal, self)
        say(**what)

    async def complete(self) -> int:
        """Complete what a crash or a time-out left half stored, and push it; how many documents that made."""
        documents = await self._store.complete_intents()
        tell(INBOX_CHANGED, self, rooms=self._publish(documents))
        return len(documents)

    def _note_store(self, error: StoreUnavailable | None) -> None:
        """Tell the operator when notifications can no longer be stored, and when they can again; once each."""
        if error is not None and not self._is_store_away:
            logger.warning("notifications cannot be stored: %s", error)
        elif error is None and self._is_store_away:
            logger.warning("notifications are stored again")
        self._is_store_away = error is not None

    def _publish(
        self, documents: Sequence[Document], handed_over: Callable[[int], None] | None = None
    ) -> Sequence[Room]:
        """To the screens of their users, who are returned."""
        rooms = [(document.notification.tenant, document.user_id) for document in documents]
        self._backplane.publish(zip(rooms, map(Added, documents), strict=True), handed_over)
        return rooms

    async def _duty(self, publication: Publication) -> EmailDuty | None:
        """Who is owed a mail: at once who is away (or all, if forced); later who is online, unless the push
        is noticed."""
        mail, notification = publication.mail, publication.notification
        if mail is None:
            return None
        at_once = notification.created_at
        later = at_once + timedelta(seconds=self._presence.away_after_s)
        emails = [(each.user_id, each.email) for each in publication.recipients if each.email is not None]
        online: set[Room] = set()
        if emails and not mail.forced:
            online = await self._presence.online([(notification.tenant, user_id) for user_id, _ in emails])
        owed = []
        for user_id, email in emails:
            waits = (notification.tenant, user_id) in online
            owed.append(MailRecipient(user_id, email, later if waits else at_once, waits))
        return EmailDuty(mail, tuple(owed)) if owed else None


def once_of(publication: Publication, keep_s: float) -> Once | None:
    """By what a store knows the same request again; None: it has no key."""
    key = publication.idempotency_key
    return None if key is None else Once(key, fingerprint_of(publication), keep_s)
