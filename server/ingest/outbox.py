"""`/api/outbox…`: what a tenant's administrators see and change of its mail, as `notification-server outbox` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from server import claims
from server.errors import InvalidInput, ServerError
from server.grants import Scope
from server.ids import is_id
from server.ingest.base import Gate
from server.ingest.keyed import KeyedHandler
from server.ingest.paging import PagedHandler
from server.store import MailState, Outbox, OutboxMail
from server.wire import instant

logger = logging.getLogger(__name__)


class _OutboxHandler(KeyedHandler, PagedHandler):
    door = "outbox"
    scope = Scope.ADMIN

    def initialize(self, gate: Gate, outbox: Outbox) -> None:  # type: ignore[override]  # what the route holds
        super().initialize(gate)
        self._outbox = outbox

    # -- what is asked for -----------------------------------------------------------------------------------
    def _after(self) -> tuple[str, str] | None:
        text = self.query("after")
        if text is None:
            return None
        nid, _, user_id = text.partition(":")
        if not is_id(nid):
            raise InvalidInput("after", "not the `next` of a page")
        return nid, user_id

    def _state(self) -> MailState | None:
        text = self.query("state")
        try:
            return None if text is None else MailState(text)
        except ValueError:
            raise InvalidInput("state", f"none of {', '.join(MailState)}") from None

    def _users(self) -> list[str] | None:
        text = self.query("user_id")
        try:
            return None if text is None else [claims.user_id(text)]
        except ValueError as exc:
            raise InvalidInput("user_id", str(exc)) from None


class ListHandler(_OutboxHandler):
    async def get(self) -> None:
        """`{"mails", "next"}`, by `state`; `next` is what `after` must be for the next page, null if there is none."""
        try:
            grant = await self.admit(self.presented())
            limit, state, after = self.limit(), self._state(), self._after()
            found = await self._outbox.entries(grant.tenant, state=state, after=after, limit=limit + 1)
        except ServerError as error:
            self.refuse(error)
        else:
            self.answer(_page(found, limit))


class NotificationHandler(_OutboxHandler):
    async def get(self, nid: str) -> None:
        """`{"id", "created_at", "subject", "forced", "mails", "next"}`: the last two as of the list."""
        try:
            grant = await self.admit(self.presented())
            limit, after = self.limit(), self._after()
            found = await self._outbox.find(grant.tenant, nid)
            mails = await self._outbox.entries(grant.tenant, nid=nid, after=after, limit=limit + 1)
        except ServerError as error:
            self.refuse(error)
        else:
            mail = found.mail
            head = {
                "id": nid,
                "created_at": instant(found.created_at),
                "subject": None if mail is None else mail.subject,
                "forced": None if mail is None else mail.forced,
            }
            self.answer(head | _page(mails, limit))

    async def delete(self, nid: str) -> None:
        """`{"dropped"}`: how many mails are owed no longer, to all or the `user_id`. What is being sent is left."""
        try:
            grant = await self.admit(self.presented())
            users = self._users()
            await self._outbox.find(grant.tenant, nid)
            dropped = await self._outbox.drop(grant.tenant, {nid: users})
        except ServerError as error:
            self.refuse(error)
        else:
            logger.info("dropped %d mails of notification %s by %s", dropped, nid, grant.label)
            self.answer({"dropped": dropped})


class RetryHandler(_OutboxHandler):
    async def post(self, nid: str) -> None:
        """`{"retried"}`: how many mails that waited or were dead are due now, to all or the `user_id`."""
        try:
            grant = await self.admit(self.presented())
            users = self._users()
            await self._outbox.find(grant.tenant, nid)
            retried = await self._outbox.retry(grant.tenant, {nid: users})
        except ServerError as error:
            self.refuse(error)
        else:
            logger.info("%d mails of notification %s are retried by %s", retried, nid, grant.label)
            self.answer({"retried": retried})


def _page(found: Sequence[OutboxMail], limit: int) -> dict[str, Any]:
    last = found[limit - 1] if len(found) > limit else None
    return {
        "mails": [_fields(mail) for mail in found[:limit]],
        "next": None if last is None else f"{last.nid}:{last.user_id}",
    }


def _fields(mail: OutboxMail) -> dict[str, Any]:
    return {
        "id": mail.nid,
        "user_id": mail.user_id,
        "email": mail.email,
        "state": mail.state,
        "due_at": instant(mail.due_at),
        "leased_until": instant(mail.leased_until),
        "attempts": mail.attempts,
        "failed_at": instant(mail.failed_at),
        "code": mail.code,
        "reason": mail.reason,
    }


def routes(gate: Gate, outbox: Outbox) -> list[tuple[Any, ...]]:
    what = {"gate": gate, "outbox": outbox}
    return [
        (r"/api/outbox", ListHandler, what),
        (r"/api/outbox/([^/]+)", NotificationHandler, what),
        (r"/api/outbox/([^/]+)/retry", RetryHandler, what),
    ]
